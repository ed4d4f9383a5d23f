r"""Free-form masks: brush strokes and boxes in the manner of LaMa (Suvorov et al. 2022).

A draw of strokes has $n$ of them; stroke $i$ is a chain of 1 to 5 segments

$$
p_{j+1} = \mathrm{clip}\bigl(p_j + \ell_j\,(\sin a_j, \cos a_j)\bigr), \qquad
a_j \in (-1)^{i+1} \bigl(0.01 + \{0, 1, 2, 3\}\bigr) \text{ rad},
$$

held inside the canvas, with $n$, the lengths $\ell_j$ and the widths uniform whole numbers.  A draw of
boxes has some rectangles with sides uniform in a range, uniform among the places that keep a margin.  The presets, in
pixels of a 256 canvas, with the odds of strokes to boxes 1 : 0.3 where there are boxes:

| preset | strokes | widths | lengths | boxes | sides | margin |
|---|---|---|---|---|---|---|
| `freeform` | 4-6 | 5-54 | 10-109 | | | |
| `freeform_thin` | 4-51 | 6-15 | 10-49 | | | |
| `freeform_medium` | 4-6 | 6-55 | 10-109 | 1-5 | 10-50 | 0 |
| `freeform_thick` | 1-6 | 6-105 | 10-209 | 1-3 | 30-150 | 10 |

LaMa's files say one stroke less, but its sampler includes one more.  Its widths are one pixel less as well, but OpenCV,
which it draws with, makes lines wider than asked for (5: 6.9, 10: 10.9, 54: 54.6 on average over directions), while
Pillow keeps to the number: with one pixel more, mean holes and refusals agree.  ``freeform``, the older kind of
this project, has the nominal widths and no boxes.

Shrinking the presets instead of the drawing would leave their constants 10 and 5 as they are: at 64, strokes get
relatively fat and most thin draws fail the test "at most half is hole".  Hence we draw at 256 (or the next multiple of
the size) and call a pixel a hole if half or more of its block is.  That keeps the mean hole to about 0.01 down to size
16; at 8, blocks are so much wider than thin strokes that those which lie alone get lost.

A draw is kept if its hole is not empty and its fraction within given bounds; otherwise the next one is tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ...errors import InputError
from .shapes import integer

__all__ = ["PRESETS", "Boxes", "Preset", "freeform"]

CANVAS = 256  # the resolution the presets are written for
MOST_DRAWS = 1000  # about three seconds of drawing; a fraction hit once in a hundred is missed once in 23,000 masks
BOX_SHARE = 0.3 / 1.3


@dataclass(frozen=True)
class Boxes:
    """Ranges of whole numbers, both ends included, in pixels of the canvas.

    Args:
        count: of boxes.
        side: of a box, height and width apart.
        margin: to every edge.
    """

    count: tuple[int, int]
    side: tuple[int, int]
    margin: int


@dataclass(frozen=True)
class Preset:
    """Ranges of whole numbers, both ends included, in pixels of the canvas.

    Args:
        count: of strokes.
        width: of a segment.
        length: of a segment.
        boxes: drawn instead of strokes, 3 times in 13; ``None``: always strokes.
    """

    count: tuple[int, int]
    width: tuple[int, int]
    length: tuple[int, int]
    boxes: Boxes | None = None


PRESETS = {
    "freeform": Preset((4, 6), (5, 54), (10, 109)),
    "freeform_thin": Preset((4, 51), (6, 15), (10, 49)),
    "freeform_medium": Preset((4, 6), (6, 55), (10, 109), Boxes((1, 5), (10, 50), 0)),
    "freeform_thick": Preset((1, 6), (6, 105), (10, 209), Boxes((1, 3), (30, 150), 10)),
}


def _draw_strokes(draw: ImageDraw.ImageDraw, preset: Preset, canvas: int, rng: torch.Generator) -> None:
    scale = canvas / CANVAS
    for stroke in range(integer(rng, *preset.count)):
        x, y = (scale * integer(rng, 0, CANVAS - 1) for _ in range(2))
        for _ in range(integer(rng, 1, 5)):
            angle = (0.01 + integer(rng, 0, 3)) * (-1 if stroke % 2 == 0 else 1)
            length, width = scale * integer(rng, *preset.length), scale * integer(rng, *preset.width)
            new_x = min(max(x + length * math.sin(angle), 0.0), canvas)
            new_y = min(max(y + length * math.cos(angle), 0.0), canvas)
            draw.line((x, y, new_x, new_y), fill=1, width=round(width))
            # Pillow cuts thick lines square at their ends; a disc at each end joins the segments.
            for cx, cy in ((x, y), (new_x, new_y)):
                draw.ellipse((cx - width / 2, cy - width / 2, cx + width / 2, cy + width / 2), fill=1)
            x, y = new_x, new_y


def _draw_boxes(draw: ImageDraw.ImageDraw, boxes: Boxes, canvas: int, rng: torch.Generator) -> None:
    scale = canvas / CANVAS
    for _ in range(integer(rng, *boxes.count)):
        width, height = (integer(rng, *boxes.side) for _ in range(2))
        left, top = (integer(rng, boxes.margin, CANVAS - boxes.margin - side) for side in (width, height))
        edges = [round(scale * edge) for edge in (left, top, left + width, top + height)]
        draw.rectangle((edges[0], edges[1], edges[2] - 1, edges[3] - 1), fill=1)  # Pillow includes the last pixel


def _draw(preset: Preset, canvas: int, rng: torch.Generator) -> Tensor:
    """Hole indicator (1, canvas, canvas) of one draw."""
    image = Image.new("L", (canvas, canvas), 0)
    draw = ImageDraw.Draw(image)
    if preset.boxes is not None and float(torch.rand((), generator=rng)) < BOX_SHARE:
        _draw_boxes(draw, preset.boxes, canvas, rng)
    else:
        _draw_strokes(draw, preset, canvas, rng)
    return torch.from_numpy(np.array(image, dtype=np.float32))[None]


def freeform(name: str, size: int, rng: torch.Generator, low: float, high: float) -> tuple[Tensor, int]:
    """The first draw of a preset whose hole has a fraction within bounds.

    Args:
        name: a key of ``PRESETS``.
        size: side of the mask in pixels.
        rng: moves on by as many draws as it takes.
        low: smallest hole fraction; an empty hole is never accepted.
        high: largest hole fraction.

    Returns:
        The mask (1, size, size) float32, 1 = known, and the number of draws it took, itself included.

    Raises:
        InputError: if none of 1000 draws is within the bounds.
    """
    block = math.ceil(CANVAS / size)
    seen = []
    for draws in range(1, MOST_DRAWS + 1):
        hole = torch.nn.functional.avg_pool2d(_draw(PRESETS[name], size * block, rng), block) >= 0.5
        fraction = float(hole.float().mean())
        if fraction > 0 and low <= fraction <= high:
            return (~hole).float(), draws
        seen.append(fraction)
    raise InputError(
        f"mask kind {name!r} gave no hole fraction in [{max(low, 0):.3g}, {high:.3g}] in {MOST_DRAWS} draws of size "
        f"{size}; expected a coverage it reaches, those draws had {min(seen):.2f} to {max(seen):.2f}, "
        f"mostly {np.quantile(seen, 0.05):.2f} to {np.quantile(seen, 0.95):.2f}"
    )
