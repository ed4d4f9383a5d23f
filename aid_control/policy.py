r"""Gaussian policies :math:`\pi(\cdot\,|\,t, x) = N(m_\phi(t, x; \xi), v_t I)`.

For a drift affine in the control and a quadratic control cost the optimal exploratory policy is the Gibbs
measure exp(-H/tau), a Gaussian whose mean is the optimal *deterministic* control and whose variance is
tau/R_t (recovery theorem): only the mean is learned.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["GaussianPolicy", "MeanNetwork", "ZeroMean"]

MeanNetwork = Callable[[Tensor, Tensor, Any, Any], Tensor]


class ZeroMean(nn.Module):
    """m = 0: the unguided system."""

    def forward(self, t: Tensor, x: Tensor, context: Any, probe: Any) -> Tensor:
        return torch.zeros_like(x)


class GaussianPolicy:
    """N(m(t, x, xi, probe), v(t) I).

    Args:
        mean: maps (t, x, context, probe) to the mean, like x.
        variance: maps a scalar time to v >= 0; ``None`` = a deterministic policy.
    """

    def __init__(self, mean: MeanNetwork, variance: Callable[[Tensor], Tensor | float] | None = None) -> None:
        self.mean = mean
        self.variance = variance or (lambda t: 0.0)

    def std(self, t: Tensor) -> Tensor:
        """sqrt(v(t)), a scalar."""
        return torch.as_tensor(self.variance(t)).sqrt()

    def log_prob(self, t: Tensor, action: Tensor, mean: Tensor) -> Tensor:
        """log pi(action), (B,)."""
        v = torch.as_tensor(self.variance(t))
        d = action[0].numel()
        return -0.5 * (action - mean).square().flatten(1).sum(1) / v - 0.5 * d * torch.log(2 * math.pi * v)

    def entropy(self, t: Tensor, dim: int) -> Tensor:
        """Differential entropy of ``dim`` coordinates (may be negative)."""
        return 0.5 * dim * torch.log(2 * math.pi * math.e * torch.as_tensor(self.variance(t)))
