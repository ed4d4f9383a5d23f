r"""Small dense matrices acting on batches of states, one matrix for all or one for each group of rows.

States are rows (B, d).  A matrix (e, d) acts on every row; a stack (S, e, d) of S problems or S seeds acts on
S groups of B/S consecutive rows, so that many problems run through one rollout.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["dot", "grouped", "matvec", "per_row"]


def grouped(x: Tensor, groups: int) -> Tensor:
    """The rows of S groups apart: (S b, ...) -> (S, b, ...).

    Raises:
        ValueError: if the number of rows is not a multiple of ``groups``.
    """
    if x.shape[0] % groups:
        raise ValueError(f"x has {x.shape[0]} rows (shape {tuple(x.shape)}); expected a multiple of {groups}")
    return x.reshape(groups, -1, *x.shape[1:])


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """M x for every row x: (e, d) or (S, e, d), with (B, d) -> (B, e)."""
    if matrix.dim() == 2:
        return x @ matrix.mT
    return (grouped(x, matrix.shape[0]) @ matrix.mT).flatten(0, 1)


def per_row(value: Tensor, x: Tensor, event: int) -> Tensor:
    """Repeat what belongs to each of S groups for its rows of x.

    Args:
        value: what every row shares, of ``event`` dimensions; or (S, ...), with ``event`` further ones.
        x: states (B, d).
        event: dimensions that are not the group: 0 a number, 1 a vector, 2 a matrix.

    Returns:
        ``value`` itself or, for a stack, (B, ...).
    """
    if value.dim() == event:
        return value
    return value.repeat_interleave(grouped(x, value.shape[0]).shape[1], dim=0)


def dot(vector: Tensor, x: Tensor) -> Tensor:
    """v'x for every row: (d,) or (S, d) with (B, d) -> (B,)."""
    if vector.dim() == 1:
        return x @ vector
    return torch.einsum("sd,sbd->sb", vector, grouped(x, vector.shape[0])).flatten()
