r"""The supervised proxy: every step regresses the guided denoised image onto the clean one.

$$
w_k = x_0 - D(X_k; \sigma_k), \qquad \text{at its optimum}\quad D + m_\phi = E[x_0 | X_k, \xi] .
$$

One-step regression along the policy's own path, without a value, a trajectory's future or the control's price: the
ablation that separates "learns to denoise given the observation" from optimal control.  It knows no beta.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ..policy import GaussianPolicy
from ..problem import ControlProblem
from ..rollout import Trajectory
from ..value import Shifted
from .terminal import Goal

__all__ = ["proxy_targets"]


def proxy_targets(
    problem: ControlProblem, policy: GaussianPolicy, value: Shifted, trajectory: Trajectory
) -> Iterator[Tensor]:
    """Yield targets w_k (B, ...), one a step; an estimator for `trainer.ActorCritic`.

    Args:
        problem: ignored.
        policy: ignored.
        value: ignored: there is no critic in it.
        trajectory: its target is the clean image x_0 (or a `terminal.Goal` with it), its probes D.
    """
    target = trajectory.target
    image = target.image if isinstance(target, Goal) else target
    for k, _, _ in trajectory.steps():
        yield image - trajectory.probes[k]
