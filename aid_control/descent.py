r"""Guarded steps of an optimiser: gradients of a batch in parts, summed over processes, clipped, skipped where broken.

A step whose gradient is not finite (a broken batch, an overflow) is left out and counted; the weights and the
optimiser's averages stay as they are.  After too many in a row the training gives up: it would not end otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .errors import Diverged
from .parallel import Team

__all__ = ["Descent", "Part"]

Part = tuple[float, Iterable[Tensor]]  # weight of a part of the batch, its losses (scalars)


class Descent:
    """Takes optimiser steps and counts those that it left out.

    Args:
        clip: bound of the gradients' norm.
        team: the processes that train together.
        max_skipped: give up after so many steps in a row without a finite gradient.

    Attributes:
        skipped: steps left out so far.
        in_a_row: of them since the last good one.
    """

    def __init__(self, clip: float = 1.0, team: Team | None = None, max_skipped: int = 20) -> None:
        self.clip, self.team, self.max_skipped = clip, team or Team(), max_skipped
        self.skipped, self.in_a_row = 0, 0

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Iterable[nn.Parameter],
        parts: Iterable[Part],
        stepwise: bool = False,
    ) -> float:
        """One step down the weighted sum of the losses.

        Args:
            optimizer: of the weights.
            weights: what is clipped and summed over the processes.
            parts: of the batch; a part's graph is freed before the next is asked for.
            stepwise: differentiate the losses of a part one by one.

        Returns:
            This process' share of the sum.

        Raises:
            Diverged: after ``max_skipped`` steps in a row without a finite gradient.
        """
        weights = list(weights)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for weight, losses in parts:
            for loss in losses if stepwise else [torch.stack(list(losses)).sum()]:
                (weight * loss).backward()  # type: ignore[no-untyped-call]
                total += weight * float(loss.detach())
        self.team.sum_gradients(weights)
        if torch.isfinite(nn.utils.clip_grad_norm_(weights, self.clip)):  # the same number in every process
            optimizer.step()
            self.in_a_row = 0
            return total
        self.skipped += 1
        self.in_a_row += 1
        if self.in_a_row >= self.max_skipped:
            raise Diverged(
                f"training gave up: {self.in_a_row} steps in a row without a finite gradient; expected finite data, or "
                "smaller learning rates"
            )
        return total

    def state(self) -> dict[str, Any]:
        """The counts."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on counting.

        Args:
            state: what `state` returned; what is missing counts as 0.
        """
        self.skipped, self.in_a_row = int(state.get("skipped", 0)), int(state.get("in_a_row", 0))
