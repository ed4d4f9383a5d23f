r"""The mean-square TD error: a NEGATIVE control, kept to show what not to do (Jia & Zhou 2022a, section 3).

$$
MSTDE(\theta) = E \sum_k \frac{\delta_k^2}{\Delta t}
\;\to\; \frac1{\Delta t}\, E\, \langle M^\theta \rangle_T + O(1) .
$$

A squared TD error is dominated by the quadratic variation of M, so its minimiser is the J with the *flattest*
gradient, not the value.  Known case (`known_case`): $X = W$, $J = x + \theta (T - t) x$; the truth is $\theta = 0$,
while $\langle M^\theta \rangle_T = \int (1 + \theta (T - t))^2 dt$ is smallest at $\theta = -3/(2T)$; the loss with
n steps is smallest at $-3n/(2T(n + 1))$.
"""

from __future__ import annotations

from torch import Tensor

from ..rollout import Trajectory
from ..value import Shifted
from .martingale import temporal_differences

__all__ = ["mstde_loss"]


def mstde_loss(value: Shifted, trajectory: Trajectory) -> Tensor:
    """The mean-square TD error, a scalar (do not use it to learn a value).

    Args:
        value: the critic.
        trajectory: made by the policy that is evaluated.
    """
    delta = temporal_differences(value.along(trajectory), trajectory)
    steps = trajectory.times.diff().to(delta).unsqueeze(1)
    return value.mean((delta.square() / steps).sum(0))
