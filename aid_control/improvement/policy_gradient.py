r"""The policy gradient (Jia & Zhou 2022b, theorem 5), for a minimisation and any baseline.

$$
\partial_\phi J(0, x) = E \int_0^T \big[ \partial_\phi \log \pi_\phi(A_t | t, X_t) + H_t \big]\, dM_t, \qquad
dM = e^{-\rho t} \big( dJ + (c + \tau \log\pi - \rho J)\, dt \big),
$$

so that $\phi \mathrel{-}= a\,\partial_\phi J$.  H is any process that is adapted and does not know the
present action: it multiplies a martingale's increments (where J is right) and only changes the variance.  It is
entered here as the gradient of a scalar,
$H_t = \partial_\phi h(t, X_t)$; and a function $b(t, x)$ may be subtracted from $dM/dt$, because the score has mean
zero given the state.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..evaluation import temporal_differences
from ..policy import GaussianPolicy
from ..rollout import Trajectory
from ..value import Shifted

__all__ = ["policy_gradient_loss"]

StateFunction = Callable[[Tensor, Tensor], Tensor]


def policy_gradient_loss(
    policy: GaussianPolicy,
    value: Shifted,
    trajectory: Trajectory,
    baseline: StateFunction | None = None,
    test: StateFunction | None = None,
    average: Tensor | float = 0.0,
) -> Tensor:
    """A scalar whose gradient in the policy's weights is the policy gradient, averaged over the paths.

    Args:
        policy: differentiable mean and, where it is learned, covariance.
        value: the critic.
        trajectory: sampled under ``policy``, its costs with tau log pi where the problem has a temperature.
        baseline: b(t, x) -> (B,), in units of cost per time, subtracted from dM/dt.
        test: h(t, x) -> (B,), differentiable in the policy's weights; H is its gradient.
        average: eta of an ergodic problem, a number or (B,).

    Returns:
        A scalar.
    """
    with torch.no_grad():
        delta = temporal_differences(value.along(trajectory), trajectory, average)
    total = torch.zeros_like(delta[0])
    for k, t, dt in trajectory.steps():
        x = trajectory.states[k]
        mean = policy.mean(t, x, trajectory.context, trajectory.probes[k])
        advantage = delta[k] if baseline is None else delta[k] - baseline(t, x).detach() * dt
        total = total + policy.log_prob(t, trajectory.actions[k], mean) * advantage
        if test is not None:
            total = total + test(t, x) * delta[k]
    return value.mean(total)
