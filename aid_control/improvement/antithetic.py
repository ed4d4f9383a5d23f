r"""The score estimator made strong: mirrored pairs, analytic control cost, many pairs a state.

Where the dynamics are affine in the control and noise-free, the next state under another action is known without
asking the drift again, $X_{k+1}(a) = X_{k+1} + \Delta t\, B (a - A_k)$.  With $e \sim N(0, v I)$ and the pair
$m \pm e$, the even part of the advantage cancels (the value itself, the quadratic cost of e) and the control
cost's part is known exactly, so that

$$
g_k = \frac{e}{v} \cdot \tfrac12 e^{-\rho\Delta t}\big[ \hat V(t_{k+1}, X(m + e)) - \hat V(t_{k+1}, X(m - e)) \big]
+ R\,\Delta t\, m_k
$$

has the expectation of `score` with a variance that no longer grows as v falls; the target $m_k - g_k/(R \Delta t)$
is $w_k = -\frac{e}{v R \Delta t} \cdot \tfrac12 e^{-\rho\Delta t}[\dots]$.  Only
values of the critic are used, no gradients and no calls of the drift; n pairs divide the variance by n.  The e of
further pairs are those of the other paths of the batch, which are independent of this one's state.  What remains is
the noise of looking along one direction of d: a relative variance of about d/n.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..policy import GaussianPolicy
from ..problem import ControlProblem
from ..rollout import Trajectory
from ..value import Shifted

__all__ = ["antithetic_targets"]


def antithetic_targets(
    problem: ControlProblem, policy: GaussianPolicy, value: Shifted, trajectory: Trajectory, pairs: int = 8
) -> Iterator[Tensor]:
    """Targets w_k, like the control (B, ...), one a step, from sampled actions of a noise-free problem.

    Args:
        problem: affine in the control, without Brownian noise.
        policy: with a scalar variance.
        value: the critic; called without a probe.
        trajectory: sampled, integrated by Euler.
        pairs: n, at most the number of paths.

    Raises:
        ValueError: for a diffusing problem.
    """
    if problem.noise != "none":
        raise ValueError(f"problem has {problem.noise} noise; expected none for mirrored next states")
    for k, t, dt in trajectory.steps():
        x, mean = trajectory.states[k], trajectory.means[k]
        e = trajectory.actions[k] - mean
        at_mean = trajectory.states[k + 1] - dt * problem.push(t, x, e)
        scale = policy.covariance(t) * problem.control_weight(t) * dt
        total = torch.zeros_like(mean)
        count = min(pairs, len(e))
        for j in range(count):
            turned = e.roll(j, dims=0)
            shift = dt * problem.push(t, x, turned)
            with torch.no_grad():
                ends = [value.of(problem, trajectory, k + 1, at_mean + sign * shift) for sign in (1, -1)]
            total -= turned * (0.5 * (ends[0] - ends[1])).reshape(-1, *(1,) * (mean.dim() - 1))
        yield total * torch.exp(-problem.discount * dt) / (count * scale)
