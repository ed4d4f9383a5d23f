r"""The martingale loss (Jia & Zhou 2022a, section 4.1): regression of J on the realised cost-to-go.

.. math::
    ML(\theta) = \tfrac12 E \int_0^T |M_T - M_t^\theta|^2 dt
               = \tfrac12 E \int_0^T \Big| e^{-\rho T}\Psi + \int_t^T e^{-\rho s} c_s ds
                 - e^{-\rho t} J_\theta(t, X_t) \Big|^2 dt .
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rollout import Trajectory
from ..value import Shifted

__all__ = ["martingale_loss"]


def martingale_loss(value: Shifted, trajectory: Trajectory) -> Tensor:
    """ML on a grid, averaged over the paths.

    Args:
        value: the critic.
        trajectory: made by the policy that is evaluated.
    """
    values = torch.stack(value.along(trajectory))
    weights = trajectory.discounts().to(values).unsqueeze(1)
    ahead = (weights[:-1] * torch.stack(trajectory.costs)).flip(0).cumsum(0).flip(0) + weights[-1] * values[-1]
    steps = trajectory.times.diff().to(values).reshape(-1, 1)
    return 0.5 * value.mean(((ahead.detach() - weights[:-1] * values[:-1]).square() * steps).sum(0))
