r"""CTD(0): continuous-time temporal differences (Jia & Zhou 2022a, section 4.2).

:math:`M_t = J(t, X_t) + \int_0^t c_s ds` is a martingale iff J is the value, so E int xi dM = 0 for every
test process; the choice :math:`\xi = \partial_\theta J` gives the update
:math:`\theta \mathrel{+}= a \sum_k \partial_\theta J_k\, \delta_k`,
:math:`\delta_k = J_{k+1} - J_k + c_k \Delta t`.  The mean *squared* delta (MSTDE) is not the same thing: it
minimises the quadratic variation of M.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rollout import Trajectory
from ..value import Shifted

__all__ = ["ctd_loss", "temporal_differences"]


def temporal_differences(values: list[Tensor], trajectory: Trajectory) -> Tensor:
    """delta_k = V_{k+1} - V_k + cost_k, (K, B).

    Args:
        values: V at the K + 1 grid times.
        trajectory: gives the costs.
    """
    v = torch.stack(values)
    return v[1:] - v[:-1] + torch.stack(trajectory.costs)


def ctd_loss(value: Shifted, trajectory: Trajectory) -> Tensor:
    """A scalar whose gradient is minus the CTD(0) direction, averaged over the batch.

    Args:
        value: the critic.
        trajectory: sampled under the current policy.
    """
    values = value.along(trajectory)
    delta = temporal_differences(values, trajectory).detach()
    return -(torch.stack(values[:-1]) * delta).sum(0).mean()
