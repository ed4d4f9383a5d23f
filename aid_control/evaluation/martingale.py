r"""The process every method of this folder is about.

$$
M_t = e^{-\rho t} J(t, X_t) + \int_0^t e^{-\rho s} (c_s - \eta)\, ds
$$

is a martingale iff J, with $J(T, \cdot) = \Psi$, is the value of the policy that made the path (Jia & Zhou 2022a,
proposition 1); c includes the entropy cost where there is one, and $\eta$ is the average cost of an ergodic problem (0
otherwise).  Time is counted from the start of the path.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rollout import Trajectory

__all__ = ["increments_of", "temporal_differences"]


def temporal_differences(values: list[Tensor], trajectory: Trajectory, average: Tensor | float = 0.0) -> Tensor:
    r"""The increments of M on the grid, (K, B).

    $$
    \delta_k = e^{-\rho t_{k+1}} V_{k+1} - e^{-\rho t_k} V_k + e^{-\rho t_k} (c_k - \eta)\, \Delta t_k .
    $$

    Args:
        values: V at the K + 1 grid times, (B,) each.
        trajectory: gives times, costs and discount; t_0 = 0 is where it starts.
        average: eta, a number or (B,).
    """
    v, costs = torch.stack(values), torch.stack(trajectory.costs)
    if isinstance(average, Tensor) or average:
        costs = costs - average * trajectory.times.diff().to(costs).unsqueeze(1)
    if not trajectory.discount:
        return v[1:] - v[:-1] + costs
    w = trajectory.discounts().to(v).unsqueeze(1)
    return w[1:] * v[1:] - w[:-1] * v[:-1] + w[:-1] * costs


def increments_of(per_step: Tensor, trajectory: Trajectory, decay: float) -> Tensor:
    r"""The future of a process y as an eligibility trace sees it, $\sum_{k \ge i} \lambda^{t_k - t_i} y_k$ for all i.

    Because

    $$
    \sum_k \Big(\sum_{i \le k} \lambda^{t_k - t_i} a_i\Big)\, y_k
    = \sum_i a_i \Big(\sum_{k \ge i} \lambda^{t_k - t_i} y_k\Big) ,
    $$

    traces need no storage of a.

    Args:
        per_step: y, (K, B).
        trajectory: gives the times.
        decay: lambda in [0, 1], per unit of time.

    Returns:
        (K, B), like y.
    """
    if decay == 0:
        return per_step
    out, ahead = [], torch.zeros_like(per_step[0])
    fall = (decay ** trajectory.times.diff()).tolist()
    for k in range(len(per_step) - 1, -1, -1):
        ahead = per_step[k] + fall[k] * ahead
        out.append(ahead)
    return torch.stack(out[::-1])
