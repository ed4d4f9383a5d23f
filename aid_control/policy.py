r"""Gaussian policies, a mean of time, state and context with a covariance of time.

$$
\pi(\cdot \mid t, x) = N\big(m_\phi(t, x; \xi),\, \Sigma_t\big) .
$$

For a drift affine in the control and a cost quadratic in it the optimal exploratory policy is the Gibbs
measure $\propto e^{-H/\tau}$, a Gaussian whose mean is the optimal *deterministic* control and whose covariance is
$\tau S^{-1}$ (recovery theorem; $S = R$ when the noise is free of the control): only the mean matters at
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
        """Zeros: (), (B, ...), xi, probe -> (B, ...)."""
        return torch.zeros_like(x)


class GaussianPolicy:
    """N(m(t, x, xi, probe), Sigma(t)).

    Actions and means are (B, ...) of any shape for a number v, (B, m) for a matrix.  Where Sigma is zero, `score`,
    `log_prob` and `entropy` are not finite.

    Args:
        mean: maps (t, x, context, probe) to the mean, (B, ...).
        variance: maps a scalar time to v >= 0 or to a covariance (m, m) or (S, m, m), positive definite; ``None`` = a
            deterministic policy.
    """

    def __init__(self, mean: MeanNetwork, variance: Callable[[Tensor], Tensor | float] | None = None) -> None:
        self.mean = mean
        self.variance = variance or (lambda t: 0.0)

    def covariance(self, t: Tensor) -> Tensor:
        """Sigma(t): () -> () for v, (m, m) or (S, m, m)."""
        return torch.as_tensor(self.variance(t))

    def std(self, t: Tensor) -> Tensor:
        """A factor F with F F' = Sigma(t): () -> () for v, or lower triangular (m, m) or (S, m, m)."""
        sigma = self.covariance(t)
        return sigma.sqrt() if sigma.dim() == 0 else torch.linalg.cholesky(sigma)

    def sample(self, t: Tensor, mean: Tensor, eps: Tensor) -> Tensor:
        """The action m + F eps of standard normals eps: (), (B, ...), (B, ...) -> (B, ...)."""
        factor = self.std(t).to(mean)
        return mean + (factor * eps if factor.dim() == 0 else matvec(factor, eps))

    def score(self, t: Tensor, action: Tensor, mean: Tensor) -> Tensor:
        r"""$\partial_m \log \pi(a) = \Sigma^{-1} (a - m)$ of action and mean: (), (B, ...), (B, ...) -> (B, ...)."""
        sigma = self.covariance(t).to(mean)
        gap = action - mean
        return gap / sigma if sigma.dim() == 0 else matvec(torch.linalg.inv(sigma), gap)

    def _log_volume(self, t: Tensor, mean: Tensor) -> Tensor:
        """log det(2 pi Sigma) over the action's coordinates, a scalar or (B,)."""
        sigma, d = self.covariance(t).to(mean), mean[0].numel()
        logdet = d * torch.log(sigma) if sigma.dim() == 0 else per_row(torch.logdet(sigma), mean, 0)
        return logdet + d * math.log(2 * math.pi)

    def log_prob(self, t: Tensor, action: Tensor, mean: Tensor) -> Tensor:
        r"""$\log \pi(a)$ of action and mean: (), (B, ...), (B, ...) -> (B,)."""
        square = (self.score(t, action, mean) * (action - mean)).flatten(1).sum(1)
        return -0.5 * (square + self._log_volume(t, mean))

    def entropy(self, t: Tensor, mean: Tensor) -> Tensor:
        """Differential entropy, which may be negative; of ``mean`` only the shape counts.

        (), (B, ...) -> (), or (B,) where Sigma is a stack.
        """
        return 0.5 * (self._log_volume(t, mean) + mean[0].numel())
