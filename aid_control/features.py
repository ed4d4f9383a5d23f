r"""Functions linear in their weights: values, and means of policies.

A value is $J = \theta \cdot \varphi(t, x)$, a mean $m = W \varphi(t, x)$.  They are ordinary modules, so
every gradient method takes them in the place of a network; the methods that *solve* for the weights (least squares)
ask for `features` as well.  ``groups`` = S holds S independent weight vectors, each for its own group of rows
(`linear`): S seeds or S problems learn in one rollout.

$\varphi$ is the product of Legendre polynomials in t and monomials in x, in float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .linear import dot, matvec

__all__ = ["LinearMean", "LinearValue", "monomials", "time_powers"]


def monomials(x: Tensor, degree: int) -> Tensor:
    """All monomials of x up to total degree 0, 1 or 2: 1; x_i; x_i x_j with i <= j.

    Args:
        x: (B, d).
        degree: 0, 1 or 2.

    Returns:
        (B, 1), (B, 1 + d) or (B, 1 + d + d (d + 1)/2).

    Raises:
        ValueError: for another degree.
    """
    if degree not in (0, 1, 2):
        raise ValueError(f"degree is {degree}; expected 0, 1 or 2")
    parts = [torch.ones_like(x[:, :1])]
    if degree >= 1:
        parts.append(x)
    if degree == 2:
        i, j = torch.triu_indices(x.shape[1], x.shape[1])
        parts.append(x[:, i] * x[:, j])
    return torch.cat(parts, dim=1)


def time_powers(t: Tensor | float, horizon: float, degree: int) -> Tensor:
    """Legendre polynomials of 2t/T - 1: the same functions of t as its powers, but well conditioned.

    Args:
        t: a scalar time.
        horizon: T.
        degree: of the last one, >= 0.

    Returns:
        (degree + 1,), float64.
    """
    z = 2 * torch.as_tensor(t, dtype=torch.float64) / horizon - 1
    out = [torch.ones_like(z), z]
    for n in range(1, degree):
        out.append(((2 * n + 1) * z * out[n] - n * out[n - 1]) / (n + 1))
    return torch.stack(out[: degree + 1])


class _TimesMonomials(nn.Module):
    """phi(t, x) = time polynomials (x) monomials, and weights for it."""

    def __init__(self, dim: int, degree: int, time_degree: int, horizon: float, rows: int, groups: int | None) -> None:
        super().__init__()
        self.degree, self.time_degree, self.horizon, self.groups = degree, time_degree, horizon, groups or 1
        size = monomials(torch.zeros(1, dim), degree).shape[1] * (time_degree + 1)
        shape = (rows, size) if rows else (size,)
        self.weights = nn.Parameter(torch.zeros(*((groups,) if groups else ()), *shape, dtype=torch.float64))

    def features(self, t: Tensor | float, x: Tensor, context: Any = None, probe: Any = None) -> Tensor:
        """phi(t, x), (B, p)."""
        time = time_powers(t, self.horizon, self.time_degree).to(x)
        return (time[:, None] * monomials(x, self.degree)[:, None, :]).flatten(1)


class LinearValue(_TimesMonomials):
    """J(t, x): quadratic in x, polynomial in t, linear in its weights (zero at the start).

    ``features(t, x)`` gives phi, (B, p), with p = (time_degree + 1) times the number of monomials.

    Args:
        dim: d.
        time_degree: of the polynomial in t; 0 for a stationary problem.
        horizon: T, scales t.
        groups: S independent weight vectors (S, p); ``None`` = one vector (p,).
        degree: in x.
    """

    def __init__(
        self, dim: int, time_degree: int = 3, horizon: float = 1.0, groups: int | None = None, degree: int = 2
    ) -> None:
        super().__init__(dim, degree, time_degree, horizon, 0, groups)

    def known(self, t: Tensor | float, x: Tensor) -> Tensor | float:
        """A part of J that is not learned: (), (B, d) -> (B,); override it for J = known + theta . phi."""
        return 0.0

    def forward(self, t: Tensor | float, x: Tensor, context: Any = None, probe: Any = None) -> Tensor:
        """J(t, x): (), (B, d) -> (B,); context and probe are not looked at."""
        return dot(self.weights, self.features(t, x)) + self.known(t, x)


class LinearMean(_TimesMonomials):
    """m(t, x) = K(t) x + kappa(t): affine in x, polynomial in t, linear in its weights (zero at the start).

    Args:
        dim: d.
        control_dim: m.
        time_degree: of the polynomial in t; 0 for a stationary policy.
        horizon: T, scales t.
        groups: S independent weights (S, m, p); ``None`` = one (m, p).
    """

    def __init__(
        self, dim: int, control_dim: int, time_degree: int = 3, horizon: float = 1.0, groups: int | None = None
    ) -> None:
        super().__init__(dim, 1, time_degree, horizon, control_dim, groups)

    def forward(self, t: Tensor | float, x: Tensor, context: Any = None, probe: Any = None) -> Tensor:
        """m(t, x): (), (B, d) -> (B, m); context and probe are not looked at."""
        # contract with time first: (S?, m, T, 1 + d) -> K and kappa at t, then one small product a row
        return matvec(self.at(t), torch.cat([torch.ones_like(x[:, :1]), x], dim=1))

    def at(self, t: Tensor | float) -> Tensor:
        """The columns kappa(t) and K(t) side by side: () -> (m, 1 + d), with groups (S, m, 1 + d)."""
        time = time_powers(t, self.horizon, self.time_degree).to(self.weights)
        shaped = self.weights.reshape(*self.weights.shape[:-1], self.time_degree + 1, -1)
        return torch.einsum("...tj,t->...j", shaped, time)

    def gain(self, t: Tensor | float) -> Tensor:
        """K(t): () -> (m, d), with groups (S, m, d)."""
        return self.at(t)[..., 1:]
