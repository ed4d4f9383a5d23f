r"""The AID toy: the smallest problem with everything in it, solved by hand.

$$
\dot x = -a x + u, \qquad J = \tfrac{\beta}{2}\int_0^T |u|^2 dt + \tfrac12 |x_T - c|^2, \qquad x, u, c \in R^d .
$$

With $G(t) = (1 - e^{-2a(T-t)})/(2a)$ (and $T - t$ for $a = 0$) and $F = e^{-a(T-t)} x$, the end of the
uncontrolled flow,

$$
V(t, x) = \frac{|F - c|^2}{2\,(1 + G/\beta)}, \qquad u^*(t, x) = -\frac{e^{-a(T-t)}(F - c)}{\beta + G} .
$$

Putting V into $V_t - a x \cdot V_x - |V_x|^2/(2\beta)$ gives zero, and $V(T, x)$ is the terminal cost.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..problem import ControlProblem

__all__ = ["AIDToy"]


class AIDToy(ControlProblem):
    """The toy problem; the context is the goal c (B, d), which is also the terminal cost's target.

    Args:
        a: decay rate of the frozen drift.
        beta: weight of the control cost.
        horizon: T.
        volatility: constant diffusion (0 = deterministic); the optimal control does not depend on it.
    """

    def __init__(self, a: float = 1.0, beta: float = 0.5, horizon: float = 1.0, volatility: float = 0.0) -> None:
        self.a, self.beta, self.horizon, self.volatility = a, beta, horizon, volatility
        self.noise = "diagonal" if volatility else "none"

    def drift(self, t: Tensor, x: Tensor, context: Any, probe: Any) -> Tensor:
        return -self.a * x

    def control_weight(self, t: Tensor) -> float:
        return self.beta

    def terminal_cost(self, x: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (x - target).square().flatten(1).sum(1)

    def diffusion(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return torch.full_like(x, self.volatility)

    def _decay_and_reach(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        left = self.horizon - torch.as_tensor(t, dtype=torch.float64)
        decay = torch.exp(-self.a * left)
        reach = (1 - decay**2) / (2 * self.a) if self.a else left
        return decay, reach

    def value(self, t: Tensor | float, x: Tensor, goal: Tensor) -> Tensor:
        """V(t, x) of the deterministic problem with goal c: (), (B, d), (B, d) -> (B,)."""
        decay, reach = self._decay_and_reach(t)
        return 0.5 * (decay * x - goal).square().flatten(1).sum(1) / (1 + reach / self.beta)

    def optimal_control(self, t: Tensor | float, x: Tensor, goal: Tensor) -> Tensor:
        """The optimal control at (t, x) with goal c: (), (B, d), (B, d) -> (B, d)."""
        decay, reach = self._decay_and_reach(t)
        return -decay * (decay * x - goal) / (self.beta + reach)

    def exploratory_value(self, t: Tensor | float, x: Tensor, goal: Tensor, tau: float) -> Tensor:
        r"""The value of the entropy-regularised problem: (), (B, d), (B, d), tau > 0 -> (B,).

        $V^\tau = V - \tfrac\tau2 (T - t) \log\big((2\pi\tau)^d / \beta^d\big)$.
        """
        left = self.horizon - torch.as_tensor(t, dtype=torch.float64)
        shift = 0.5 * tau * left * x[0].numel() * math.log(2 * math.pi * tau / self.beta)
        return self.value(t, x, goal) - shift
