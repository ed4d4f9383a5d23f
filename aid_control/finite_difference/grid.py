r"""Uniform grids on a box: nodes, central differences, and quadrature over actions.

*Boundary.*  A ghost beyond each face, $V_n = 3V_{n-1} - 3V_{n-2} + V_{n-3}$, is exact for quadratic V.  A linear
ghost sets the second derivative to zero: where paths leave the box it does not converge for values that grow.

*Quadrature.*  For a Gaussian of standard deviation s well inside the box the trapezoid rule of spacing h has the
relative error $2 e^{-2 (\pi s/h)^2}$.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Box", "Grid", "check_box", "trapezoid"]

Box = Sequence[tuple[float, float]]


def trapezoid(box: Box, nodes: int) -> tuple[Tensor, Tensor]:
    """The product trapezoid rule.

    Args:
        box: (low, high) of every coordinate.
        nodes: a coordinate, at least 2.

    Returns:
        Nodes (A, m) and weights (A,), A = nodes^m.

    Raises:
        ValueError: for an empty box, low >= high, or fewer than 2 nodes.
    """
    check_box("box", box)
    if nodes < 2:
        raise ValueError(f"nodes is {nodes}; expected at least 2")
    axes = [torch.linspace(low, high, nodes, dtype=torch.float64) for low, high in box]
    rule = torch.ones(nodes, dtype=torch.float64)
    rule[[0, -1]] = 0.5
    weights = torch.ones((), dtype=torch.float64)
    for axis in axes:
        weights = weights.unsqueeze(-1) * (rule * (axis[1] - axis[0]))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2), weights.flatten()


@dataclass(frozen=True)
class Grid:
    """A uniform grid.

    Attributes:
        axes: coordinates (n_i,) along every dimension, float64.
    """

    axes: tuple[Tensor, ...]

    @classmethod
    def uniform(cls, box: Box, points: Sequence[int]) -> Grid:
        """The grid with ``points[i]`` nodes on ``box[i]``, ends included.

        Args:
            box: (low, high) of every coordinate; one or two.
            points: nodes along every coordinate, at least 5.

        Raises:
            ValueError: for other than 1 or 2 dimensions, low >= high, or fewer than 5 points.
        """
        check_box("box", box)
        if len(box) > 2:
            raise ValueError(f"box has {len(box)} dimensions ({box}); expected 1 or 2")
        if len(points) != len(box) or any(int(n) != n or n < 5 for n in points):
            raise ValueError(f"points is {tuple(points)}; expected {len(box)} whole numbers, each at least 5")
        return cls(
            tuple(torch.linspace(lo, hi, n, dtype=torch.float64) for (lo, hi), n in zip(box, points, strict=True))
        )

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(n_1,) or (n_1, n_2)."""
        return tuple(len(axis) for axis in self.axes)

    @cached_property
    def spacing(self) -> Tensor:
        """h along every dimension, (d,)."""
        return torch.stack([axis[1] - axis[0] for axis in self.axes])

    @cached_property
    def states(self) -> Tensor:
        """All nodes (N, d); the last coordinate runs fastest."""
        return torch.stack(torch.meshgrid(*self.axes, indexing="ij"), dim=-1).flatten(0, -2)

    def _neighbours(self, v: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """V one node below and one above along an axis, with the quadratic ghosts at the faces."""
        n = self.shape[axis]

        def ghost(i: int, j: int, k: int) -> Tensor:
            return 3 * v.narrow(axis, i, 1) - 3 * v.narrow(axis, j, 1) + v.narrow(axis, k, 1)

        below = torch.cat([ghost(0, 1, 2), v.narrow(axis, 0, n - 1)], dim=axis)
        return below, torch.cat([v.narrow(axis, 1, n - 1), ghost(n - 1, n - 2, n - 3)], dim=axis)

    def differences(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Central gradient and Hessian of a grid function: (n_1,) or (n_1, n_2) -> (N, d), (N, d, d)."""
        h, d = self.spacing, len(self.axes)
        p, second = [], []
        for i in range(d):
            below, above = self._neighbours(v, i)
            p.append((above - below) / (2 * h[i]))
            second.append((above - 2 * v + below) / h[i] ** 2)
        hessian = torch.diag_embed(torch.stack([y.flatten() for y in second], dim=-1))
        if d == 2:
            below, above = self._neighbours(p[0], 1)
            hessian[:, 0, 1] = hessian[:, 1, 0] = ((above - below) / (2 * h[1])).flatten()
        return torch.stack([q.flatten() for q in p], dim=-1), hessian


def check_box(name: str, box: Box) -> None:
    """Refuse what is no box.

    Args:
        name: of the argument, for the message.
        box: (low, high) of every coordinate.

    Raises:
        ValueError: for no coordinate at all, or one without low < high.
    """
    if len(box) == 0 or any(len(side) != 2 or not side[0] < side[1] for side in box):
        raise ValueError(f"{name} is {box}; expected (low, high) with low < high for every coordinate")
