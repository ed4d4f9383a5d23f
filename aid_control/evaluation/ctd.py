r"""CTD(lambda): continuous-time temporal differences (Jia & Zhou 2022a, section 4.2).

$E\int_0^T \xi_t\, dM_t = 0$ for every test process $\xi$ iff J is the value (M as in `martingale`).  The choice

$$
\xi_t = \int_0^t \lambda^{t-s}\, \partial_\theta J(s, X_s)\, ds \quad (\lambda > 0), \qquad
\xi_t = \partial_\theta J(t, X_t) \quad (\lambda = 0)
$$

gives the stochastic approximation $\theta \mathrel{+}= a \sum_k \xi_k\, \delta_k$ with the temporal differences
$\delta_k = M_{t_{k+1}} - M_{t_k}$; on a grid the trace is the sum
$\xi_k = \sum_{i \le k} \lambda^{t_k - t_i} \partial_\theta J(t_i, X_i)$ (TD($\lambda$) is Sutton's, 1988).
The mean *squared* $\delta$ (`mstde`) is not the same thing: it minimises the quadratic variation of M.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..rollout import Trajectory
from ..value import Shifted
from .martingale import increments_of, temporal_differences

__all__ = ["ctd_loss", "ctd_losses"]


def ctd_losses(value: Shifted, trajectory: Trajectory, decay: float = 0.0) -> Iterator[Tensor]:
    """One scalar a step, the sum of whose gradients is minus the CTD(lambda) direction, averaged over the paths.

    Each can be differentiated and dropped before the next one is made: memory does not grow with the steps.

    Args:
        value: the critic.
        trajectory: made by the policy that is evaluated.
        decay: lambda in [0, 1], per unit of time.
    """
    with torch.no_grad():
        delta = temporal_differences(value.along(trajectory), trajectory)
        ahead = increments_of(delta, trajectory, decay)
    for k, _, _ in trajectory.steps():
        yield -value.mean(value.at(trajectory, k) * ahead[k])


def ctd_loss(value: Shifted, trajectory: Trajectory, decay: float = 0.0) -> Tensor:
    """The sum of `ctd_losses`, a scalar; arguments as `ctd_losses`."""
    return torch.stack(list(ctd_losses(value, trajectory, decay))).sum()
