r"""Several processes at one task: who is who, and data-parallel gradients of one global batch.

A global batch of B rows is cut into parts p, a few for every process (micro-batches).  The gradient of the mean loss

$$
\nabla \frac1B \sum_{i=1}^B l_i = \sum_p \frac{|p|}B\, \nabla \Big[ \frac1{|p|} \sum_{i \in p} l_i \Big]
$$

is accumulated over a process' own parts and summed over the processes, once an optimiser step.  Every random number
belongs to a row of the *global* batch: it is drawn for all rows and a part takes its own, so that the number of
processes and of parts changes results by the order of summation alone.  Processes are started by ``torchrun`` or
``accelerate launch``; Hugging Face accelerate is the engine.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from .errors import Failed, InputError
from .program import check_device, launched

__all__ = ["Place", "Rows", "Team", "place", "team"]

PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Rows:
    """A part of a global batch.

    Attributes:
        start: its first row.
        stop: behind its last.
        of: rows of the global batch, B.
    """

    start: int
    stop: int
    of: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def weight(self) -> float:
        """|p| / B."""
        return len(self) / self.of

    @property
    def whole(self) -> bool:
        """Whether it is the global batch."""
        return len(self) == self.of

    def take(self, batch: Tensor) -> Tensor:
        """Its rows of a global batch.

        Args:
            batch: (B, ...).

        Returns:
            A view (p, ...) of its p rows.
        """
        return batch[self.start : self.stop]

    def normal(self, shape: Sequence[int], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
        """Its rows of standard normal noise that is drawn for the global batch.

        Args:
            shape: of a row.
            generator: moves on by the whole batch.
            dtype: of the noise.

        Returns:
            (p, *shape) for its p rows, on the CPU.
        """
        return self.take(torch.randn(self.of, *shape, generator=generator, dtype=dtype))


class Place:
    """The place of this process among those that were launched together.

    Args:
        index: number of the process.
        count: how many there are.
        device: what it computes on.
        wait: returns when all processes have called it.
    """

    def __init__(self, index: int, count: int, device: str, wait: Callable[[], Any]) -> None:
        self.index, self.count, self.device, self._wait = index, count, device, wait

    def wait(self) -> None:
        """Return when all processes have called it.

        Raises:
            Failed: where another process has ended.
        """
        with _together():
            self._wait()

    @property
    def first(self) -> bool:
        """Whether it speaks for all."""
        return self.index == 0


def place(device: str, patience: timedelta | None = None) -> Place:
    """Find out how many processes were launched, and which one this is.

    Args:
        device: as the user says; ``cuda`` becomes the process' own GPU.
        patience: how long one waits for the others; ``None`` = torch's half an hour.

    Returns:
        This process' place.

    Raises:
        InputError: if several were launched and ``accelerate`` is not installed, or the device is not usable.
    """
    index, count, wait = 0, 1, _nothing
    if launched() > 1:
        try:
            accelerate = importlib.import_module("accelerate")
        except ImportError as error:
            raise InputError(
                f"launched as {launched()} processes, which needs the package accelerate; "
                "expected pip install 'aid-control[train]', or one process"
            ) from error
        more = {} if patience is None else {"timeout": patience}
        state = accelerate.PartialState(cpu=not device.startswith("cuda"), **more)
        index, count, wait = state.process_index, state.num_processes, state.wait_for_everyone
        device = str(state.device) if device == "cuda" else device
    check_device(device)
    return Place(index, count, device, wait)


def _nothing() -> None:
    pass


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """What the others take part in; the engine's error where one of them is gone becomes a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise Failed(
            "another of the processes that were launched together has ended; what is saved is kept, and the same "
            f"command goes on from there ({str(error).splitlines()[0]})"
        ) from error


class Team:
    """Processes that train one model: parts of a batch, and sums over everybody.

    Args:
        where: place of this process; ``None`` = the only one.
        accumulate: parts a process, one after the other: memory of a part, gradient of the whole.
        precision: of networks' arithmetic: ``"no"`` (as their weights) or ``"bf16"`` (autocast; it has the range of
            float32, so that no loss scaling is needed).

    Raises:
        InputError: for an unknown precision, or fewer than one part.
    """

    def __init__(self, where: Place | None = None, accumulate: int = 1, precision: str = "no") -> None:
        if precision not in PRECISIONS:
            raise InputError(f"precision is {precision}; expected one of {', '.join(PRECISIONS)}")
        if accumulate < 1:
            raise InputError(f"accumulate is {accumulate}; expected at least 1")
        self.where = where or Place(0, 1, "cpu", _nothing)
        self.accumulate, self.precision = accumulate, precision

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.where.first

    def parts(self, batch: int, accumulate: int | None = None) -> list[Rows]:
        """This process' parts of a global batch, as even as can be.

        Args:
            batch: rows of the global batch.
            accumulate: parts a process, where it is not the team's number.

        Raises:
            InputError: if there are fewer rows than parts.
        """
        own = accumulate or self.accumulate
        count = own * self.where.count
        if batch < count:
            raise InputError(
                f"batch is {batch} for {self.where.count} processes of {own} parts; expected at least {count}"
            )
        ends = [batch * i // count for i in range(count + 1)]
        first = own * self.where.index
        return [Rows(ends[i], ends[i + 1], batch) for i in range(first, first + own)]

    def sum_gradients(self, weights: Iterable[torch.nn.Parameter]) -> None:
        """Replace gradients by their sums over the processes, in one message.

        Args:
            weights: the same in every process; those without a gradient are left out.
        """
        if self.where.count == 1:
            return
        gradients = [w.grad for w in weights if w.grad is not None]
        total = self._sum(torch.cat([g.flatten() for g in gradients]))
        for gradient, part in zip(gradients, torch.split(total, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the processes.

        Args:
            values: numbers, as many in every process.

        Returns:
            As many.
        """
        if self.where.count == 1 or not values:
            return list(values)
        return self._sum(torch.tensor(values, dtype=torch.float64, device=self.where.device)).tolist()

    def _sum(self, tensor: Tensor) -> Tensor:
        with _together():
            return importlib.import_module("accelerate.utils").reduce(tensor, "sum")

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Within it networks compute in the team's precision."""
        if self.precision == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.where.device.split(":")[0], torch.bfloat16)


def team(device: str, accumulate: int | None = None, precision: str | None = None) -> Team:
    """The team of the processes that were launched together.

    Args:
        device: as the user says.
        accumulate: parts a process; ``None`` = what ``accelerate launch`` was told, or 1.
        precision: ``"no"`` or ``"bf16"``; ``None`` = what ``accelerate launch`` was told, or ``"no"``.

    Returns:
        Also where there is one process.

    Raises:
        InputError: as `place` and `Team`.
    """
    told = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    accumulate = int(told) if accumulate is None else accumulate
    return Team(place(device), accumulate, precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))
