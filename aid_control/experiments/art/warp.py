r"""Warps: positive densities on an interval, and the grids of equal steps they stand for.

A density $w > 0$ on $0 \le \psi \le T$ is the clock $\theta \propto 1/w$: the levels of $K$ steps divide
$\int w\,d\psi$ into equal parts.  Local errors $g\,h^{p+1}$ of a method of order $p$ (Euler: 1, Heun: 2) add up to
least for

$$
\min_\theta \int g\,\theta^p\,d\psi, \quad \int \frac{d\psi}\theta = 1: \qquad \theta \propto g^{-1/(p+1)}, \qquad
w = g^{1/(p+1)},
$$

by Hoelder's inequality, with equality exactly there; $p = 1$ is equation (5) of ART's page.

Learned densities are the exponentials of piecewise linear functions of a fixed coordinate, with their values at few
knots as weights, so that they are positive whatever the weights are.  The integral
$I(\psi) = \int_\psi^T w$ is that of the trapezoidal rule on a fixed fine grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["LogLinear", "equal_steps", "interpolate"]


def interpolate(x: Tensor, known: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear interpolation, constant outside.

    Args:
        x: places, of any shape.
        known: increasing places of the values, (n,), n >= 2.
        values: (n,).

    Returns:
        Of the shape of x; differentiable in x and in the values.
    """
    i = torch.searchsorted(known, x.detach().contiguous()).clamp(1, len(known) - 1)
    part = ((x - known[i - 1]) / (known[i] - known[i - 1])).clamp(0, 1)
    return values[i - 1] + part * (values[i] - values[i - 1])


def equal_steps(places: Tensor, density: Tensor, steps: int) -> Tensor:
    """Where the integral of a density from the first place has reached k/K of the whole.

    Args:
        places: increasing, (n,).
        density: positive values there, (n,).
        steps: K, at least 1.

    Returns:
        (K + 1,) increasing; the first and the last place are those given.
    """
    total = torch.cat([density.new_zeros(1), torch.cumulative_trapezoid(density, places)])
    wanted = torch.arange(steps + 1, dtype=total.dtype) / steps * total[-1]
    return interpolate(wanted, total, places)


class LogLinear(nn.Module):
    r"""$\log w$ piecewise linear in $\psi$, and the integral that is left, $I(\psi) = \int_\psi^T w$.

    Args:
        end: T.
        knots: values of log w at equally spaced places from 0 to T, the weights; at least 2.
        cells: of the fine grid of the integral.

    Attributes:
        weights: (knots,), zero at the start: the uniform clock.
        fine: the fine grid, (cells + 1,).

    Raises:
        ValueError: for fewer than two knots.
    """

    def __init__(self, end: float, knots: int = 8, cells: int = 300) -> None:
        super().__init__()
        if knots < 2:
            raise ValueError(f"knots is {knots}; expected at least 2")
        self.weights = nn.Parameter(torch.zeros(knots, dtype=torch.float64))
        self.fine = torch.linspace(0, end, cells + 1, dtype=torch.float64)
        self._knots = torch.linspace(0, end, knots, dtype=torch.float64)

    def density(self, psi: Tensor) -> Tensor:
        """w, of any shape -> the same shape."""
        return interpolate(psi, self._knots, self.weights).exp()

    def table(self) -> Tensor:
        """I on the fine grid, (cells + 1,)."""
        w = self.density(self.fine)
        steps = torch.diff(self.fine) * (w[1:] + w[:-1]) / 2
        return torch.cat([steps.flip(0).cumsum(0).flip(0), steps.new_zeros(1)])

    def rest(self, psi: Tensor) -> Tensor:
        """I, of any shape -> the same shape."""
        return interpolate(psi, self.fine, self.table())

    @torch.no_grad()
    def grid(self, steps: int) -> Tensor:
        """Equal steps of the integral of w.

        Args:
            steps: K, at least 1.

        Returns:
            (K + 1,) increasing places from 0 to T.
        """
        return equal_steps(self.fine, self.density(self.fine), steps)
