"""Time travel: the order in which RePaint and DDNM visit noise levels."""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import InputError

__all__ = ["travel"]


def travel(steps: int, length: int, visits: int) -> Iterator[tuple[int, int]]:
    """Yield moves (from level, to level) between the levels 0 (the noisiest) ... ``steps`` (clean).

    A move by +1 denoises, a move by -1 puts noise back.  Counted from the end (the last noisy level is 0), every
    multiple of ``length`` below ``steps - length`` is a place to jump: the first ``visits - 1`` times it is reached,
    the state goes up ``length`` levels and comes down again (Lugmayr et al. 2022, appendix).

    Args:
        steps: noise levels; ``steps`` moves denoise if nothing jumps.
        length: levels a jump goes up.
        visits: how often each stretch is denoised; 1 = no jumps.

    Raises:
        InputError: for a length or a number of visits below 1.
    """
    if length < 1 or visits < 1:
        raise InputError(f"jump length {length}, visits {visits}; expected at least 1 each")
    jumps = {steps - 1 - t: visits - 1 for t in range(0, steps - length, length)}
    level = 0
    while level < steps:
        while jumps.get(level, 0) > 0:
            jumps[level] -= 1
            for up in range(level, level - length, -1):
                yield up, up - 1
            for down in range(level - length, level):
                yield down, down + 1
        yield level, level + 1
        level += 1
