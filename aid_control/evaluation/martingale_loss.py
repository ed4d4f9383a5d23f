r"""The martingale loss (Jia & Zhou 2022a, section 4.1): regression of J on the realised cost-to-go.

.. math::
    ML(\theta) = \tfrac12 E \int_0^T |M_T - M_t^\theta|^2 dt
               = \tfrac12 E \int_0^T \Big| \Psi + \int_t^T c_s ds - J_\theta(t, X_t) \Big|^2 dt .
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rollout import Trajectory
from ..value import Shifted

__all__ = ["martingale_loss"]


def martingale_loss(value: Shifted, trajectory: Trajectory) -> Tensor:
    """ML on a grid, averaged over the batch.

    Args:
        value: the critic.
        trajectory: sampled under the current policy.
    """
    values = value.along(trajectory)
    to_go = torch.stack(trajectory.costs).flip(0).cumsum(0).flip(0) + values[-1]
    steps = trajectory.times.diff().to(to_go).reshape(-1, 1)
    return 0.5 * ((to_go.detach() - torch.stack(values[:-1])).square() * steps).sum(0).mean()
