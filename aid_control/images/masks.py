r"""Inpainting masks: 1 = known, 0 = hole; float32 (1, H, W), so that ``mask * image`` keeps what is given.

A mask is a pure function of (kind, seed, size), and coverage where it applies.  Two kinds take more than a line:

* ``random``: a hole of exactly round(coverage H W) pixels, at least one, uniform among all such holes;
* ``freeform``: brush strokes in the manner of LaMa's medium preset (Suvorov et al. 2022).  Stroke i is a chain
  of 1 to 5 segments p_{j+1} = p_j + l_j (sin a_j, cos a_j), whose ends are held inside the canvas, with whole
  numbers l_j in [10, 109], widths in [5, 54], and a_j in 0.01 + {0, 1, 2, 3} radians, negated for even i.
  These are pixels of a 256 canvas.  Shrinking the preset instead would leave its constants 10 and 5 as they
  are: at 64 the strokes get relatively fat, and most draws fail the test "at most half is hole".  Hence we draw
  at 256 (or the next multiple of the size) and call a pixel a hole if half or more of its block is.

``mixed`` draws one of the other kinds.  LaMa and Palette write 1 = hole: their masks are ours inverted.
"""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..errors import InputError
from ..noise import generator
from .data import read_image

__all__ = ["MASK_KINDS", "check_mask", "make_mask", "read_mask"]

MASK_KINDS = ("box", "random_box", "half", "random", "freeform", "mixed")
MIXTURE = {"box": 0.25, "random_box": 0.2, "half": 0.1, "random": 0.15, "freeform": 0.3}
COVERAGE = (0.3, 0.92)  # hole fraction of "random" unless given
CANVAS = 256  # the resolution the stroke preset is written for
MAX_FREEFORM_HOLE = 0.5
MIN_SIZE = 8  # below this, boxes and strokes degenerate
KEY = 0x3A5C  # keeps mask draws apart from noise of the same seed


def _integer(rng: torch.Generator, low: int, high: int) -> int:
    """A uniform integer in [low, high], both included."""
    return int(torch.randint(low, high + 1, (), generator=rng))


def _box(size: int, top: int, left: int, side: int) -> Tensor:
    mask = torch.ones(1, size, size)
    mask[:, top : top + side, left : left + side] = 0
    return mask


def _random_box(size: int, rng: torch.Generator) -> Tensor:
    margin = size // 16
    side = _integer(rng, math.ceil(size / 4), size * 5 // 8)
    top, left = (_integer(rng, margin, size - margin - side) for _ in range(2))
    return _box(size, top, left, side)


def _half(size: int, turns: int = 0) -> Tensor:
    """The right half is the hole, then turned by ``turns`` quarters against the clock (up, left, down)."""
    mask = torch.ones(1, size, size)
    mask[..., size // 2 :] = 0
    return torch.rot90(mask, turns, (1, 2)).contiguous()


def _random(size: int, rng: torch.Generator, coverage: float | None) -> Tensor:
    low, high = COVERAGE
    fraction = low + (high - low) * float(torch.rand((), generator=rng)) if coverage is None else coverage
    holes = max(1, round(fraction * size * size))
    mask = torch.ones(size * size)
    mask[torch.randperm(size * size, generator=rng)[:holes]] = 0
    return mask.reshape(1, size, size)


def _strokes(canvas: int, rng: torch.Generator) -> Tensor:
    """Hole indicator (1, canvas, canvas) of one draw of strokes; see the module docstring."""
    image = Image.new("L", (canvas, canvas), 0)
    draw = ImageDraw.Draw(image)
    scale = canvas / CANVAS
    # LaMa's preset says 4 to 5 strokes, but its sampler includes one more.
    for stroke in range(_integer(rng, 4, 6)):
        x, y = (scale * _integer(rng, 0, CANVAS - 1) for _ in range(2))
        for _ in range(_integer(rng, 1, 5)):
            angle = (0.01 + _integer(rng, 0, 3)) * (-1 if stroke % 2 == 0 else 1)
            length, width = scale * _integer(rng, 10, 109), scale * _integer(rng, 5, 54)
            new_x = min(max(x + length * math.sin(angle), 0.0), canvas)
            new_y = min(max(y + length * math.cos(angle), 0.0), canvas)
            draw.line((x, y, new_x, new_y), fill=1, width=round(width))
            # Pillow cuts thick lines square at their ends; a disc at each end joins the segments.
            for cx, cy in ((x, y), (new_x, new_y)):
                draw.ellipse((cx - width / 2, cy - width / 2, cx + width / 2, cy + width / 2), fill=1)
            x, y = new_x, new_y
    return torch.from_numpy(np.array(image, dtype=np.float32))[None]


def _freeform(size: int, rng: torch.Generator) -> Tensor:
    block = math.ceil(CANVAS / size)
    while True:
        hole = torch.nn.functional.avg_pool2d(_strokes(size * block, rng), block) >= 0.5
        if 0 < float(hole.float().mean()) <= MAX_FREEFORM_HOLE:
            return (~hole).float()


def make_mask(kind: str, size: int, seed: int, coverage: float | None = None) -> Tensor:
    """A mask by name.

    Args:
        kind: ``"box"`` (centred, side size/2), ``"random_box"`` (side in [size/4, 5 size/8], margin size/16),
            ``"half"`` (right half; any half within ``"mixed"``), ``"random"`` (pixels), ``"freeform"`` (strokes)
            or ``"mixed"`` (one of the others).
        size: side in pixels.
        seed: the draw; ``"box"`` and ``"half"`` do not depend on it.
        coverage: hole fraction of ``"random"``; ``None`` draws it uniformly from [0.3, 0.92].

    Returns:
        (1, size, size) float32, 1 = known.

    Raises:
        InputError: for an unknown kind, a size below 8, or a coverage that is outside (0, 1] or not applicable.
    """
    if kind not in MASK_KINDS:
        raise InputError(f"mask kind is {kind!r}; expected one of {', '.join(MASK_KINDS)}")
    if size < MIN_SIZE:
        raise InputError(f"mask size is {size}; expected at least {MIN_SIZE}")
    if coverage is not None and kind != "random":
        raise InputError(f"coverage {coverage} given for mask kind {kind!r}; it applies to 'random' only")
    if coverage is not None and not 0 < coverage <= 1:
        raise InputError(f"coverage is {coverage}; expected a hole fraction above 0 and at most 1")
    # The size is left out of the key: one seed gives the same scene at every resolution where it can.
    rng = generator(KEY, MASK_KINDS.index(kind), seed)
    turns = 0
    if kind == "mixed":
        choice = torch.multinomial(torch.tensor(list(MIXTURE.values())), 1, generator=rng)
        kind, turns = list(MIXTURE)[int(choice)], _integer(rng, 0, 3)
    if kind == "box":
        return _box(size, (size - size // 2) // 2, (size - size // 2) // 2, size // 2)
    if kind == "half":
        return _half(size, turns)
    if kind == "random_box":
        return _random_box(size, rng)
    return _random(size, rng, coverage) if kind == "random" else _freeform(size, rng)


def read_mask(path: str | os.PathLike[str], size: int) -> Tensor:
    """A mask from a black and white image: white = known, black = hole.

    Args:
        path: an image whose pixels are all 0 or 255 (or all 0 or 1).
        size: expected side in pixels.

    Returns:
        (1, size, size) float32, 1 = known.

    Raises:
        InputError: if the file cannot be read, has another size, or holds another value.
    """
    pixels = read_image(path, mode="L")
    if pixels.shape[1:] != (size, size):
        raise InputError(f"{path}: is {pixels.shape[2]}x{pixels.shape[1]} pixels; expected {size}x{size}")
    white = 255 if bool((pixels == 255).any()) else 1
    wrong = ((pixels != 0) & (pixels != white)).nonzero()
    if len(wrong):
        _, row, column = wrong[0].tolist()
        value = int(pixels[0, row, column])
        raise InputError(
            f"{path}: pixel value {value} at row {row}, column {column}; "
            "expected a mask of 0 (hole) and 255 (known) only, saved without grey edges"
        )
    return (pixels != 0).float()


def check_mask(mask: Tensor, name: str = "mask") -> None:
    """Refuse what is not a mask, or asks for nothing; a mask that is all hole is allowed.

    Args:
        mask: (..., H, W); every leading index is a mask of its own.
        name: how messages call it, e.g. the file it came from.

    Raises:
        InputError: if a value is neither 0 nor 1, or some mask has no hole.
    """
    wrong = mask[(mask != 0) & (mask != 1)]
    if len(wrong):
        raise InputError(f"{name}: holds the value {float(wrong[0]):g}; expected 1 (known) and 0 (hole) only")
    full = (mask != 0).flatten(-2).all(-1).flatten()
    if bool(full.any()):
        which = f" {int(full.nonzero()[0])} of the batch" if len(full) > 1 else ""
        raise InputError(f"{name}{which}: every pixel is known, nothing to inpaint; expected a hole of 0s")
