r"""Quadratic values and affine Gaussian policies: the two objects every LQ answer consists of.

$$
V(t, x) = \tfrac12 x'P(t)x + p(t)'x + k(t), \qquad
\pi(\cdot|t, x) = N\big(K(t)x + \kappa(t),\, \Sigma(t)\big).
$$
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..linear import dot, matvec, per_row
from ..policy import GaussianPolicy
from .dense import DenseSolution

__all__ = ["AffineGaussian", "QuadraticValue"]

TimeFunction = Callable[[Tensor], Tensor]


class QuadraticValue:
    """V(t, x) on [0, T], or of a stationary problem.

    Args:
        terms: maps t to P (S, d, d), p (S, d), k (S,).
        batched: whether the problem is a batch of S (states are S groups of rows); otherwise S = 1.
    """

    def __init__(self, terms: Callable[[Tensor | float], tuple[Tensor, Tensor, Tensor]], batched: bool) -> None:
        self._terms, self.batched = terms, batched

    @classmethod
    def from_dense(cls, dense: DenseSolution, groups: int, d: int, batched: bool) -> QuadraticValue:
        """From one solution whose entries are P, p, k of every problem, one after the other.

        Args:
            dense: the solution, of size S (d d + d + 1).
            groups: S.
            d: the dimension of the state.
            batched: as in the constructor.
        """

        def terms(t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
            y = dense(t).reshape(groups, d * d + d + 1)
            return y[:, : d * d].reshape(groups, d, d), y[:, d * d : -1], y[:, -1]

        return cls(terms, batched)

    def terms(self, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """P, p and k at time t: () -> (d, d), (d,), (), with a leading S only for a batch of problems."""
        big, small, constant = self._terms(t)
        return (big, small, constant) if self.batched else (big[0], small[0], constant[0])

    def __call__(self, t: Tensor | float, x: Tensor, context: Any = None, probe: Any = None) -> Tensor:
        """V(t, x), (B,); differentiable in t and x."""
        big, small, constant = self.terms(t)
        square = 0.5 * (matvec(big, x) * x).sum(1)
        return square + dot(small, x) + (constant if constant.dim() == 0 else per_row(constant, x, 0))

    def gradient(self, t: Tensor | float, x: Tensor) -> Tensor:
        """P(t) x + p(t): (), (B, d) -> (B, d)."""
        big, small, _ = self.terms(t)
        return matvec(big, x) + per_row(small, x, 1)


class AffineGaussian(GaussianPolicy):
    """N(K x + kappa, Sigma).

    Args:
        law: maps t to K (m, d), kappa (m,), Sigma (m, m) or a scalar; each may have a leading S.
    """

    def __init__(self, law: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> None:
        self.law = law
        super().__init__(self._mean, lambda t: self.law(t)[2])

    @classmethod
    def constant(cls, gain: Any, offset: Any = None, covariance: Any = 0.0) -> AffineGaussian:
        """A stationary policy; ``offset`` defaults to zero.

        Args:
            gain: K (m, d) or (S, m, d).
            offset: kappa (m,) or (S, m).
            covariance: Sigma, a scalar v, (m, m) or (S, m, m).
        """
        k = torch.as_tensor(gain, dtype=torch.float64)
        zero = k.new_zeros(k.shape[:-1]) if offset is None else torch.as_tensor(offset, dtype=torch.float64)
        sigma = torch.as_tensor(covariance, dtype=torch.float64)
        return cls(lambda t: (k, zero, sigma))

    def _mean(self, t: Tensor, x: Tensor, context: Any = None, probe: Any = None) -> Tensor:
        gain, offset, _ = self.law(t)
        return matvec(gain, x) + per_row(offset, x, 1)

    def deterministic(self) -> AffineGaussian:
        """The same mean without the spread."""
        return AffineGaussian(lambda t: (*self.law(t)[:2], torch.zeros((), dtype=torch.float64)))
