r"""The martingale loss (Jia & Zhou 2022a, section 4.1): regression of J on the realised cost-to-go.

$$
ML(\theta) = \tfrac12 E \int_0^T |M_T - M_t^\theta|^2 dt
= \tfrac12 E \int_0^T \Big| e^{-\rho T}\Psi + \int_t^T e^{-\rho s} c_s ds
- e^{-\rho t} J_\theta(t, X_t) \Big|^2 dt .
$$
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..rollout import Trajectory
from ..value import Shifted

__all__ = ["martingale_loss", "martingale_losses"]


def martingale_losses(value: Shifted, trajectory: Trajectory) -> Iterator[Tensor]:
    """ML on a grid, one scalar a step, averaged over the paths.

    Args:
        value: the critic.
        trajectory: made by the policy that is evaluated.
    """
    with torch.no_grad():
        costs, end = torch.stack(trajectory.costs), value.at(trajectory, len(trajectory))
        weights = trajectory.discounts().to(costs)
        ahead = (weights[:-1, None] * costs).flip(0).cumsum(0).flip(0) + weights[-1] * end
    for k, _, dt in trajectory.steps():
        yield 0.5 * dt * value.mean((ahead[k] - weights[k] * value.at(trajectory, k)).square())


def martingale_loss(value: Shifted, trajectory: Trajectory) -> Tensor:
    """The sum of `martingale_losses`, a scalar; arguments as `martingale_losses`."""
    return torch.stack(list(martingale_losses(value, trajectory))).sum()
