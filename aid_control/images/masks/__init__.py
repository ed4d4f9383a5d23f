r"""Inpainting masks: 1 = known, 0 = hole; float32 (1, H, W), so that ``mask * image`` keeps what is given.

A mask is a pure function of (kind, seed, size, coverage), where the coverage is the fraction

$$
h = 1 - \frac{1}{H W} \sum_{ij} m_{ij}
$$

of the hole.  One seed gives the same scene at every resolution where it can.  ``shapes`` has plain geometry,
``strokes`` LaMa's free-form presets, ``files`` masks from outside, and ``table`` prints the coverage of every kind.
A coverage $c$ picks the shape that comes nearest to it; for free-form kinds it conditions the preset,

$$
p(m \mid c) \propto p_{\mathrm{preset}}(m) \, 1\{|h(m) - c| \le 0.02\},
$$

in place of the preset's own $0 < h \le 1/2$, by rejection.  LaMa and Palette write 1 = hole: their masks are ours
inverted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...errors import InputError
from ...noise import generator
from .files import check_mask, read_mask
from .shapes import border, box, grid, half, integer, lines, random_box, random_pixels
from .strokes import PRESETS, freeform

__all__ = ["COVERED_KINDS", "MASK_KINDS", "check_mask", "make_mask", "mask_source", "read_mask"]

# The place of a kind is part of its random key: new kinds are added at the end.
MASK_KINDS = (
    "box", "random_box", "half", "random", "freeform", "mixed",
    "border", "lines", "grid2", "grid4", "freeform_thin", "freeform_medium", "freeform_thick",
)  # fmt: skip
COVERED_KINDS = tuple(kind for kind in MASK_KINDS if kind not in ("mixed", "lines", "grid2", "grid4"))
MIXTURE = {"box": 0.25, "random_box": 0.2, "half": 0.1, "random": 0.15, "freeform": 0.3}
MAX_FREEFORM_HOLE = 0.5
TOLERANCE = 0.02  # of the hole fraction of free-form kinds, where it is asked for
MIN_SIZE = 8  # below this, boxes and strokes degenerate
KEY = 0x3A5C  # keeps mask draws apart from noise of the same seed


def _make(kind: str, size: int, rng: torch.Generator, coverage: float | None) -> Tensor:
    if kind in PRESETS:
        if coverage is None:
            return freeform(kind, size, rng, 0, MAX_FREEFORM_HOLE)[0]
        return freeform(kind, size, rng, coverage - TOLERANCE, coverage + TOLERANCE)[0]
    if kind == "random_box":
        return random_box(size, rng, coverage)
    if kind == "random":
        return random_pixels(size, rng, coverage)
    if kind == "lines":
        return lines(size)
    if kind in ("grid2", "grid4"):
        return grid(size, int(kind[-1]))
    return {"box": box, "half": half, "border": border}[kind](size, coverage)


def make_mask(kind: str, size: int, seed: int, coverage: float | None = None) -> Tensor:
    """A mask by name.

    | kind | hole | coverage |
    |---|---|---|
    | `box` | centred square, side size/2 | nearest side |
    | `random_box` | square, side in [size/4, 5 size/8], margin size/16 | nearest side |
    | `half` | right half (any half within `mixed`) | nearest number of columns |
    | `border` | all but a centred square of side size/2 | nearest side |
    | `lines` | every second row, from row 1 | none |
    | `grid2`, `grid4` | all but one pixel of every 2 x 2, 4 x 4 | none |
    | `random` | single pixels, 30 to 92 % | exact number of pixels |
    | `freeform` | LaMa's medium strokes, at most half | within 0.02 |
    | `freeform_thin` | LaMa's thin masks for 256, at most half | within 0.02 |
    | `freeform_medium`, `freeform_thick` | the same, with boxes 3 times in 13 | within 0.02 |
    | `mixed` | `box`, `random_box`, `half`, `random` or `freeform` | none |

    Args:
        kind: one of ``MASK_KINDS``.
        size: side in pixels.
        seed: the draw; only ``random_box``, ``random``, ``mixed`` and free-form kinds depend on it.
        coverage: hole fraction in (0, 1], for the kinds in ``COVERED_KINDS``; ``None``: the default of the kind.

    Returns:
        (1, size, size) float32, 1 = known.

    Raises:
        InputError: for an unknown kind, a size below 8, a coverage that is outside (0, 1] or not applicable, or one
            that a free-form kind misses in 1000 draws.
    """
    if kind not in MASK_KINDS:
        raise InputError(f"mask kind is {kind!r}; expected one of {', '.join(MASK_KINDS)}")
    if size < MIN_SIZE:
        raise InputError(f"mask size is {size}; expected at least {MIN_SIZE}")
    if coverage is not None and kind not in COVERED_KINDS:
        raise InputError(f"coverage {coverage} given for mask kind {kind!r}; it applies to {', '.join(COVERED_KINDS)}")
    if coverage is not None and not 0 < coverage <= 1:
        raise InputError(f"coverage is {coverage}; expected a hole fraction above 0 and at most 1")
    # The size is left out of the key: one seed gives the same scene at every resolution where it can.
    rng = generator(KEY, MASK_KINDS.index(kind), seed)
    if kind != "mixed":
        return _make(kind, size, rng, coverage)
    choice = torch.multinomial(torch.tensor(list(MIXTURE.values())), 1, generator=rng)
    kind, turns = list(MIXTURE)[int(choice)], integer(rng, 0, 3)
    mask = _make(kind, size, rng, None)
    # Quarter turns against the clock; the hole of a half goes up, left, down.
    return torch.rot90(mask, turns, (1, 2)).contiguous() if kind == "half" else mask


def mask_source(kind_or_file: str, size: int) -> Callable[[Sequence[int]], Tensor]:
    """Masks by seed, from what a program's ``mask`` option says.

    Args:
        kind_or_file: one of ``MASK_KINDS``, or an image file (white = known), which is read here, once.
        size: side in pixels.

    Returns:
        A function of seeds: (len(seeds), 1, size, size) float32; a file's mask is the same for all of them.

    Raises:
        InputError: if it is neither, or the file is no mask of that size.
    """
    if kind_or_file in MASK_KINDS:
        return lambda seeds: torch.stack([make_mask(kind_or_file, size, seed) for seed in seeds])
    if not (kind_or_file.lower().endswith(".png") or os.path.exists(kind_or_file)):
        kinds = ", ".join(MASK_KINDS)
        raise InputError(f"mask is {kind_or_file!r}; expected {kinds} or a PNG file (white = known)")
    mask = read_mask(kind_or_file, size)
    return lambda seeds: mask.expand(len(seeds), 1, size, size)
