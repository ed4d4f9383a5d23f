"""Images in micro-batches, halved where memory runs out: what is finished is kept, and the rest goes on smaller.

Torch tells a lack of memory in several ways: ``OutOfMemoryError`` on an accelerator; on a CPU a ``RuntimeError`` of its
allocator or, where a convolution's kernel cannot be built any more, of oneDNN ("could not create a primitive"); NumPy
and Python raise ``MemoryError``.  A system that kills the process instead (Linux with overcommitted memory), or a
library that ends it (OpenBLAS), leaves nothing to catch.

Images are drawn by their own seeds, so that a smaller batch gives the same results up to the rounding of kernels whose
sums depend on the batch (docs/results/numerics.md has numbers).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import InputError

__all__ = ["MicroBatch", "out_of_memory"]

T = TypeVar("T")

WORDS = ("out of memory", "can't allocate memory", "DefaultCPUAllocator", "not enough memory", "std::bad_alloc",
         "could not create a primitive", "could not create a memory")  # fmt: skip


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on whatever device.

    Args:
        error: what was raised.
    """
    told = isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)
    return told or isinstance(error, MemoryError)


class MicroBatch:
    """Runs a function over rows, so many at a time as memory allows.

    A size that did not fit is not tried again: use one object for all that runs on the same memory.

    Args:
        size: rows at a time, at first.

    Attributes:
        size: rows at a time now.

    Raises:
        InputError: for a size below 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise InputError(f"batch is {size}; expected at least 1")
        self.size = self._told = size

    def __call__(self, run: Callable[[slice], T], rows: int) -> list[T]:
        """Run over all rows.

        Args:
            run: what to do with rows ``start:stop``; called again from the same start, with fewer rows, where memory
                ran out in it.
            rows: how many there are.

        Returns:
            What ``run`` returned for each micro-batch, in the order of the rows.

        Raises:
            InputError: if memory runs out with one row.
        """
        out: list[T] = []
        start = 0
        while start < rows:
            n = min(self.size, rows - start)
            failed = False
            try:
                out.append(run(slice(start, start + n)))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if n == 1:
                    said = (" ".join(str(error).split()) or type(error).__name__)[:160]
                    raise InputError(
                        f"out of memory with one image at a time ({said}); expected more memory or a smaller network"
                    ) from error
                failed = True
            if failed:  # here, not in the handler, where the error still holds the tensors of the attempt
                self.size = n // 2
                _free()
                continue
            start += n
            if self.size < self._told:
                print(f"out of memory with {self._told} images at a time: going on with {self.size}", file=sys.stderr)
                self._told = self.size
        return out


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
