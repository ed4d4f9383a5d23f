r"""CLSTD(lambda): the CTD equations solved exactly, for critics linear in their weights (Jia & Zhou 2022a).

With $J = \theta\cdot\varphi$ the orthogonality conditions $E\sum_k \xi_k\, dM_k = 0$ are p linear
equations (section 4.2 there),

$$
E\sum_k \xi_k\,(d_k\varphi_k - d_{k+1}\varphi_{k+1})'\,\theta
= E\sum_k \xi_k\, d_k c_k\Delta t \;+\; E\, \xi_{K-1}\, d_K \Psi, \qquad d_k = e^{-\rho t_k},\; \varphi_K := 0,
$$

with the trace $\xi_k = \sum_{i\le k}\lambda^{t_k-t_i}\varphi_i$ ($\varphi_k$ for $\lambda = 0$).  No step
size, no iteration; in discrete time it is least-squares TD (Bradtke & Barto 1996).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..features import LinearValue
from ..rollout import Trajectory
from ..value import Shifted

__all__ = ["clstd", "solve_linear"]


def solve_linear(matrix: Tensor, vector: Tensor, ridge: float = 0.0) -> Tensor:
    """Solve S linear systems, scaled to unit diagonal first, with a relative ridge.

    Args:
        matrix: the equations, (S, p, p).
        vector: the right-hand sides, (S, p).
        ridge: added to the scaled diagonal; 0 = minimum-norm least squares.

    Returns:
        The solutions, (S, p).
    """
    scale = matrix.diagonal(dim1=-2, dim2=-1).abs().clamp(min=1e-300).rsqrt()
    scaled = scale.unsqueeze(-1) * matrix * scale.unsqueeze(-2)
    if ridge:
        scaled = scaled + ridge * torch.eye(scaled.shape[-1], dtype=scaled.dtype)
        return scale * torch.linalg.solve(scaled, scale * vector)
    return scale * torch.linalg.lstsq(scaled, (scale * vector).unsqueeze(-1), driver="gelsd").solution.squeeze(-1)


@torch.no_grad()
def clstd(value: Shifted, trajectory: Trajectory, decay: float = 0.0, ridge: float = 0.0) -> Tensor:
    """Solve for the critic's weights and store them in the critic.

    Args:
        value: a critic linear in its weights (`features.LinearValue`).
        trajectory: made by the policy that is evaluated.
        decay: lambda in [0, 1], per unit of time.
        ridge: relative ridge; 0 = minimum-norm least squares.

    Returns:
        The weights, (p,) or with groups (S, p).

    Raises:
        ValueError: for a critic that is not linear in its weights.
    """
    critic = value.critic
    if not isinstance(critic, LinearValue):
        raise ValueError(f"critic is a {type(critic).__name__}; expected a LinearValue (linear in its weights)")
    groups = critic.groups
    weights = trajectory.discounts().tolist()
    fall = (decay ** trajectory.times.diff()).tolist() if decay else None

    def at(k: int) -> Tensor:
        phi = critic.features(trajectory.times[k], trajectory.states[k])
        return phi.reshape(groups, -1, phi.shape[1])

    now = at(0)
    trace = torch.zeros_like(now)
    matrix = now.new_zeros(groups, now.shape[2], now.shape[2])
    vector = now.new_zeros(groups, now.shape[2])
    last = len(trajectory) - 1
    for k, t, dt in trajectory.steps():
        trace = now if fall is None else now + (fall[k - 1] * trace if k else 0)
        free = k == last and value.anchored
        ahead = torch.zeros_like(now) if free else at(k + 1)
        matrix += trace.mT @ (weights[k] * now - weights[k + 1] * ahead)
        gain = weights[k] * trajectory.costs[k]
        # J = known + theta . phi - lambda t: what is known moves to the right-hand side
        shift = value.temperature * (weights[k] * t - weights[k + 1] * (t + dt))
        shift = shift - weights[k] * critic.known(t, trajectory.states[k])
        if free:
            assert trajectory.terminal is not None, "the terminal anchor needs a rollout with a target"
            shift = shift + weights[k + 1] * trajectory.terminal
        else:
            shift = shift + weights[k + 1] * critic.known(t + dt, trajectory.states[k + 1])
        vector += (trace.mT @ (gain + shift).reshape(groups, -1, 1)).squeeze(-1)
        now = ahead
    theta = solve_linear(matrix, vector, ridge).reshape(critic.weights.shape)
    critic.weights.copy_(theta)
    return theta
