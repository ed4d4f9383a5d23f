r"""The score-function estimator (REINFORCE, Williams 1992): Algorithm 1 of AID.

$$
g_k = \frac{A_k - m_k}{v_k}\, \delta_k, \qquad
\delta_k = e^{-\rho\Delta t} \hat V_{k+1} - \hat V_k + (f + \tfrac12 R |A_k|^2)\Delta t .
$$

Its expectation is, to first order in $\Delta t$, the gradient of the expected cost in $m_k$,
$(B'\nabla\hat V + R m_k)\, \Delta t$, so the target is $w_k = m_k - g_k / (R\,\Delta t)$.  It needs only values of the
critic, but its noise grows with the dimension.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..evaluation import temporal_differences
from ..policy import GaussianPolicy
from ..problem import ControlProblem
from ..rollout import Trajectory
from ..value import Shifted

__all__ = ["score_targets"]


def score_targets(
    problem: ControlProblem, policy: GaussianPolicy, value: Shifted, trajectory: Trajectory
) -> Iterator[Tensor]:
    """Targets w_k, like the control (B, ...), one a step, from a trajectory with sampled actions.

    Args:
        problem: with a scalar control weight R.
        policy: with a scalar variance v > 0.
        value: the critic.
        trajectory: sampled under ``policy``, with its means and actions.
    """
    with torch.no_grad():
        delta = temporal_differences(value.along(trajectory), trajectory)
    weights = trajectory.discounts().tolist()  # the differences are discounted from the start
    for k, t, dt in trajectory.steps():
        mean, action = trajectory.means[k], trajectory.actions[k]
        scale = policy.variance(t) * problem.control_weight(t) * dt
        shape = (-1,) + (1,) * (mean.dim() - 1)
        yield mean - (action - mean) * (delta[k] / weights[k]).reshape(shape) / scale
