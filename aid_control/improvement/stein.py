r"""The Stein form of the actor update: the score's expectation, from the gradient of the critic.

By Stein's lemma (Stein 1981), $E[\tfrac{A - m}{v}\, g(A)] = E[\nabla g(A)]$ for $A \sim N(m, v I)$, so the score
estimator has the same expectation as

$$
g_k = \Delta t\,\big( e^{-\rho\Delta t} B' \nabla_x \hat V(t_{k+1}, X_{k+1}) + R m_k \big),
$$

without the noise of the score.  Only the critic is differentiated, never the drift.  The target is
$w_k = -e^{-\rho\Delta t} B' \nabla \hat V_{k+1} / R$; in general it minimises
$c(u) + e^{-\rho\Delta t}\nabla\hat V_{k+1} \cdot Bu$.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..policy import GaussianPolicy
from ..problem import ControlProblem
from ..rollout import Trajectory
from ..value import Shifted

__all__ = ["stein_targets"]


def stein_targets(
    problem: ControlProblem, policy: GaussianPolicy, value: Shifted, trajectory: Trajectory
) -> Iterator[Tensor]:
    """Targets w_k, like the control (B, ...), one a step.

    Args:
        problem: gives the response to a costate and Psi.
        policy: not looked at; here for the common signature.
        value: the critic, differentiable in x.
        trajectory: made by the policy, with all its states.
    """
    steps = trajectory.times.diff()
    decay = torch.exp(-problem.discount * steps).tolist()
    for k, t, _ in trajectory.steps():
        gradient = value.gradient(problem, trajectory, k + 1)
        yield problem.response(t, trajectory.states[k], decay[k] * gradient)
