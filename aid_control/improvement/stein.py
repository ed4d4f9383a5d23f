r"""The Stein (Rao-Blackwellised) form of the actor update.

By Stein's lemma E[(A - m)/v g(A)] = E[grad g(A)], so the score estimator has the same expectation as

.. math::  g_k = \Delta t\,\big( B' \nabla_x \hat V(t_{k+1}, X_{k+1}) + R m_k \big),

without the noise of the score.  Only the critic is differentiated, never the drift.  The target is
:math:`w_k = -B' \nabla \hat V_{k+1} / R`.
"""

from __future__ import annotations

from torch import Tensor

from ..policy import GaussianPolicy
from ..problem import ControlProblem
from ..rollout import Trajectory
from ..value import Shifted

__all__ = ["stein_targets"]


def stein_targets(
    problem: ControlProblem, policy: GaussianPolicy, value: Shifted, trajectory: Trajectory
) -> list[Tensor]:
    """Targets w_k (B, ...) a step."""
    targets = []
    for k, t, _ in trajectory.steps():
        gradient = value.gradient(problem, trajectory, k + 1)
        targets.append(-problem.pull(t, trajectory.states[k], gradient) / problem.control_weight(t))
    return targets
