r"""Gaussian policies $\pi(\cdot\,|\,t, x) = N(m_\phi(t, x; \xi), \Sigma_t)$.

For a drift affine in the control and a cost quadratic in it the optimal exploratory policy is the Gibbs
measure exp(-H/tau), a Gaussian whose mean is the optimal *deterministic* control and whose covariance is
$\tau S^{-1}$ (recovery theorem; S = R when the noise is free of the control): only the mean matters at
deployment.  The covariance is a number v ($\Sigma = v I$, any shape of control), a matrix (m, m), or a
stack (S, m, m) for S groups of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .linear import matvec, per_row

__all__ = ["GaussianPolicy", "MeanNetwork", "ZeroMean"]

MeanNetwork = Callable[[Tensor, Tensor, Any, Any], Tensor]


class ZeroMean(nn.Module):
    """m = 0: the unguided system (control and state of one shape)."""

    def forward(self, t: Tensor, x: Tensor, context: Any, probe: Any) -> Tensor:
        return torch.zeros_like(x)


class GaussianPolicy:
    """N(m(t, x, xi, probe), Sigma(t)).

    Args:
        mean: maps (t, x, context, probe) to the mean, (B, ...).
        variance: maps a scalar time to v >= 0 or to a covariance; ``None`` = a deterministic policy.
    """

    def __init__(self, mean: MeanNetwork, variance: Callable[[Tensor], Tensor | float] | None = None) -> None:
        self.mean = mean
        self.variance = variance or (lambda t: 0.0)

    def covariance(self, t: Tensor) -> Tensor:
        """Sigma(t): a scalar, (m, m) or (S, m, m)."""
        return torch.as_tensor(self.variance(t))

    def std(self, t: Tensor) -> Tensor:
        """A factor F with F F' = Sigma(t): a scalar, or lower triangular."""
        sigma = self.covariance(t)
        return sigma.sqrt() if sigma.dim() == 0 else torch.linalg.cholesky(sigma)

    def sample(self, t: Tensor, mean: Tensor, eps: Tensor) -> Tensor:
        """m + F eps of standard normals eps, like the mean."""
        factor = self.std(t).to(mean)
        return mean + (factor * eps if factor.dim() == 0 else matvec(factor, eps))

    def score(self, t: Tensor, action: Tensor, mean: Tensor) -> Tensor:
        """d log pi / d mean = Sigma^{-1} (action - mean), like the mean."""
        sigma = self.covariance(t).to(mean)
        gap = action - mean
        return gap / sigma if sigma.dim() == 0 else matvec(torch.linalg.inv(sigma), gap)

    def _log_volume(self, t: Tensor, mean: Tensor) -> Tensor:
        """log det(2 pi Sigma) over the action's coordinates, a scalar or (B,)."""
        sigma, d = self.covariance(t).to(mean), mean[0].numel()
        logdet = d * torch.log(sigma) if sigma.dim() == 0 else per_row(torch.logdet(sigma), mean, 0)
        return logdet + d * math.log(2 * math.pi)

    def log_prob(self, t: Tensor, action: Tensor, mean: Tensor) -> Tensor:
        """log pi(action), (B,)."""
        square = (self.score(t, action, mean) * (action - mean)).flatten(1).sum(1)
        return -0.5 * (square + self._log_volume(t, mean))

    def entropy(self, t: Tensor, mean: Tensor) -> Tensor:
        """Differential entropy (may be negative), a scalar or (B,); ``mean`` gives the number of coordinates."""
        return 0.5 * (self._log_volume(t, mean) + mean[0].numel())
