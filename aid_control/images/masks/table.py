r"""How much of the picture each kind of mask hides: ``python -m aid_control.images.masks.table SIZE DRAWS``.

Over seeds $0, \dots, n - 1$: the mean and the 5 % and 95 % quantiles of the hole fraction $h$, and for
free-form kinds, of which a draw is refused if its hole is empty or above one half, the share of refused draws

$$
1 - n \Big/ \sum_{i<n} \#\{\text{draws until mask } i\}.
$$
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from ...errors import InputError
from ...noise import generator
from ...program import refuse
from . import KEY, MASK_KINDS, MAX_FREEFORM_HOLE, make_mask
from .strokes import PRESETS, freeform

__all__ = ["coverage_table"]


def _row(kind: str, size: int, draws: int) -> str:
    holes, tried = [], 0
    for seed in range(draws):
        if kind in PRESETS:
            rng = generator(KEY, MASK_KINDS.index(kind), seed)
            mask, count = freeform(kind, size, rng, 0, MAX_FREEFORM_HOLE)
            tried += count
        else:
            mask = make_mask(kind, size, seed)
        holes.append(1 - float(mask.double().mean()))
    refused = f"{100 * (1 - draws / tried):.0f} %" if tried else ""
    low, high = np.quantile(holes, [0.05, 0.95])
    return f"| `{kind}` | {np.mean(holes):.3f} | {low:.3f} | {high:.3f} | {refused} |"


def coverage_table(size: int, draws: int) -> str:
    """A Markdown table with a line for every kind in ``MASK_KINDS``.

    Args:
        size: side of the masks in pixels.
        draws: masks a kind, of seeds 0 to draws - 1.

    Returns:
        The table: kind, mean hole fraction, its 5 % and 95 % quantiles, share of refused draws.

    Raises:
        InputError: for less than one draw, or a size below 8.
    """
    if draws < 1:
        raise InputError(f"number of draws is {draws}; expected at least 1")
    head = "| kind | mean hole | 5 % | 95 % | refused draws |\n|---|---|---|---|---|\n"
    return head + "\n".join(_row(kind, size, draws) for kind in MASK_KINDS)


def main(arguments: Sequence[str]) -> int:
    """The program.

    Args:
        arguments: of the command line: size and number of draws.

    Returns:
        The exit code.
    """
    try:
        if len(arguments) != 2 or not all(argument.isdecimal() for argument in arguments):
            raise InputError(f"arguments are {' '.join(arguments)!r}; expected SIZE DRAWS, such as 64 400")
        print(coverage_table(int(arguments[0]), int(arguments[1])))
    except InputError as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
