r"""CTD(lambda): continuous-time temporal differences (Jia & Zhou 2022a, section 4.2).

E int xi dM = 0 for every test process xi iff J is the value.  The choice

.. math::  \xi_t = \int_0^t \lambda^{t-s}\, \partial_\theta J(s, X_s)\, ds \quad (\lambda > 0), \qquad
           \xi_t = \partial_\theta J(t, X_t) \quad (\lambda = 0)

gives the stochastic approximation :math:`\theta \mathrel{+}= a \sum_k \xi_k\, \delta_k`; on a grid the trace is a sum.
The mean *squared* delta (:mod:`.mstde`) is not the same thing: it minimises the quadratic variation of M.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rollout import Trajectory
from ..value import Shifted
from .martingale import increments_of, temporal_differences

__all__ = ["ctd_loss"]


def ctd_loss(value: Shifted, trajectory: Trajectory, decay: float = 0.0) -> Tensor:
    """A scalar whose gradient is minus the CTD(lambda) direction, averaged over the paths.

    Args:
        value: the critic.
        trajectory: made by the policy that is evaluated.
        decay: lambda in [0, 1], per unit of time.
    """
    values = value.along(trajectory)
    delta = temporal_differences(values, trajectory).detach()
    ahead = increments_of(delta, trajectory, decay)
    return -value.mean((torch.stack(values[:-1]) * ahead).sum(0))
