r"""Step sizes and temperatures that change with the iteration, and sets that parameters are kept in.

Stochastic approximation wants $\sum a_n = \infty, \sum a_n^2 < \infty$; projections keep an iterate in a set
known to contain the answer until it settles (Huang, Jia & Zhou 2025 project both the gain and the variance).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "Projection",
    "Schedule",
    "ball",
    "box",
    "constant",
    "inverse_log",
    "linear",
    "positive_definite",
    "power",
]

Schedule = Callable[[int], float]
Projection = Callable[[Tensor], Tensor]


def constant(value: float) -> Schedule:
    """a_n = value.

    Args:
        value: of every iteration.
    """
    return lambda n: value


def power(start: float, exponent: float, delay: float = 1.0) -> Schedule:
    """a_n = start ((n + delay)/delay)^(-exponent): about ``start`` for ``delay`` steps, then falling like a power of n.

    Args:
        start: a_0.
        exponent: in (1/2, 1] for convergence of stochastic approximation.
        delay: n at which the fall begins to show, > 0.

    Raises:
        ValueError: unless delay > 0.
    """
    if not delay > 0:
        raise ValueError(f"delay is {delay}; expected a positive number")
    return lambda n: start * ((n + delay) / delay) ** -exponent


def linear(start: float, end: float, steps: int) -> Schedule:
    """a_n falls (or rises) linearly, and goes on doing so after ``steps``.

    Args:
        start: a_0.
        end: a_n at n = ``steps``.
        steps: at least 1.
    """
    return lambda n: start + (end - start) * n / steps


def inverse_log(start: float) -> Schedule:
    """a_n = start / max(1, log(n + 1)) (Jia & Zhou 2022b, ergodic example).

    Args:
        start: a_0.
    """
    return lambda n: start / max(1.0, math.log(n + 1))


def box(low: float, high: float) -> Projection:
    """Clip every entry of a tensor to [low, high].

    Args:
        low: smallest entry allowed.
        high: largest.

    Raises:
        ValueError: unless low <= high.
    """
    if not low <= high:
        raise ValueError(f"low is {low} and high {high}; expected low <= high")
    return lambda w: w.clamp(low, high)


def ball(radius: float) -> Projection:
    """Shrink each group's weights into the Euclidean ball.

    A tensor of more than two dimensions holds one group a row of its first dimension, any other is one group.

    Args:
        radius: of the ball, > 0.

    Raises:
        ValueError: unless radius > 0.
    """
    if not radius > 0:
        raise ValueError(f"radius is {radius}; expected a positive number")

    def project(w: Tensor) -> Tensor:
        dims = tuple(range(1, w.dim())) if w.dim() > 2 else tuple(range(w.dim()))
        norm = w.square().sum(dims, keepdim=True).sqrt()
        return w * (radius / norm.clamp(min=radius))

    return project


def positive_definite(low: float, high: float = math.inf) -> Projection:
    """Clip the eigenvalues of (the symmetric part of) matrices (..., m, m) to [low, high].

    Args:
        low: smallest eigenvalue allowed, > 0.
        high: largest.

    Raises:
        ValueError: unless 0 < low <= high.
    """
    if not 0 < low <= high:
        raise ValueError(f"low is {low} and high {high}; expected 0 < low <= high")

    def project(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
        return (vectors * values.clamp(low, high).unsqueeze(-2)) @ vectors.mT

    return project
