"""Where the rollouts of one iteration start, and which rows of the global batch they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .increments import Increments
from .parallel import Rows
from .problem import ControlProblem

__all__ = ["Batch"]


@dataclass
class Batch:
    """A batch, or a part of one.

    Attributes:
        x: initial states (B, ...).
        grid: times (K + 1,).
        context: xi.
        target: what the terminal cost sees.
        rows: which part of the global batch these are; ``None`` = it is the whole.
    """

    x: Tensor
    grid: Tensor
    context: Any = None
    target: Any = None
    rows: Rows | None = None

    @property
    def part(self) -> Rows:
        """Its rows, given or all."""
        return Rows(0, len(self.x), len(self.x)) if self.rows is None else self.rows

    def noise(self, generator: torch.Generator) -> Callable[[Sequence[int], torch.dtype], Tensor]:
        """Noise of sampled actions, for `rollout.rollout`: these rows of what is drawn for the global batch.

        Args:
            generator: moves on by the global batch.

        Returns:
            A function of shape, (b, ...) with b of these rows, and precision.
        """
        return lambda shape, dtype: self.part.normal(shape[1:], generator, dtype)

    def paths(self, problem: ControlProblem, key: tuple[int, ...]) -> Increments | None:
        """Brownian paths of these rows, where they are a part.

        Args:
            problem: gives the noise.
            key: of the paths of the global batch.

        Returns:
            ``None`` where a rollout draws them itself, by the same key: for a whole batch, and without noise.
        """
        rows = self.part
        if rows.whole or problem.noise == "none":
            return None
        drawn = Increments.sample(self.grid, rows.of, problem.noise_dim(self.x), *key, dtype=self.x.dtype)
        return Increments(drawn.grid, drawn.dw[:, rows.start : rows.stop])
