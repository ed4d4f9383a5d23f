r"""Masks of plain geometry: boxes, halves, frames, lines, grids, single pixels; 1 = known, 0 = hole.

The hole of a shape of side $N$ has a fraction $h$ of the pixels.  Where a coverage $c$ is asked for,
the free whole number of the shape is the one whose $h$ comes nearest to it (the smaller of two equally near):

$$
\begin{aligned}
h_{\mathrm{box}}(s) &= \frac{s^2}{N^2}, && 1 \le s \le N, \\
h_{\mathrm{half}}(k) &= \frac{k}{N}, && 1 \le k \le N, \\
h_{\mathrm{border}}(s) &= 1 - \frac{s^2}{N^2}, && 0 \le s \le N - 1,
\end{aligned}
$$

and ``random`` takes $\max(1, \mathrm{round}(c N^2))$ pixels, uniform among all such sets.  Without a coverage,
$s = \lfloor N / 2 \rfloor$ for box and border and $k = \lceil N / 2 \rceil$.  What lies in the middle starts at
$\lfloor (N - s) / 2 \rfloor$.  Lines and grids have no such number: with a step $d$, the pixels whose row
and column are multiples of $d$ are known, $h \approx 1 - d^{-2}$.

Border is RePaint's "expand" (64 of 256 known: coverage 15/16), lines and grids are its "alternating lines" and
"super-resolution" (Lugmayr et al. 2022, section 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["border", "box", "grid", "half", "integer", "lines", "random_box", "random_pixels"]

COVERAGE = (0.3, 0.92)  # hole fraction of "random" unless given


def integer(rng: torch.Generator, low: int, high: int) -> int:
    """A uniform integer.

    Args:
        rng: moves on by one draw.
        low: smallest value.
        high: largest value, included.
    """
    return int(torch.randint(low, high + 1, (), generator=rng))


def _nearest(numbers: Iterable[int], fraction: Callable[[int], float], coverage: float) -> int:
    return min(numbers, key=lambda n: (abs(fraction(n) - coverage), fraction(n)))


def _square(size: int, top: int, left: int, side: int) -> Tensor:
    mask = torch.ones(1, size, size)
    mask[:, top : top + side, left : left + side] = 0
    return mask


def _box_side(size: int, coverage: float) -> int:
    return _nearest(range(1, size + 1), lambda s: s * s / size**2, coverage)


def box(size: int, coverage: float | None = None) -> Tensor:
    """A square hole in the centre.

    Args:
        size: side of the image in pixels.
        coverage: hole fraction in (0, 1]; ``None``: a side of half the image.

    Returns:
        (1, size, size) float32, 1 = known.
    """
    side = size // 2 if coverage is None else _box_side(size, coverage)
    return _square(size, (size - side) // 2, (size - side) // 2, side)


def random_box(size: int, rng: torch.Generator, coverage: float | None = None) -> Tensor:
    """A square hole anywhere, at least size/16 away from the edges where it fits, else as far as it can.

    Args:
        size: side of the image in pixels.
        rng: draws the side, unless the coverage sets it, and the place.
        coverage: hole fraction in (0, 1]; ``None``: a side uniform in [size/4, 5 size/8].

    Returns:
        (1, size, size) float32, 1 = known.
    """
    side = integer(rng, math.ceil(size / 4), size * 5 // 8) if coverage is None else _box_side(size, coverage)
    margin = min(size // 16, (size - side) // 2)
    top, left = (integer(rng, margin, size - margin - side) for _ in range(2))
    return _square(size, top, left, side)


def half(size: int, coverage: float | None = None) -> Tensor:
    """The columns at the right are the hole.

    Args:
        size: side of the image in pixels.
        coverage: hole fraction in (0, 1]; ``None``: one half.

    Returns:
        (1, size, size) float32, 1 = known.
    """
    columns = size - size // 2 if coverage is None else _nearest(range(1, size + 1), lambda k: k / size, coverage)
    mask = torch.ones(1, size, size)
    mask[..., size - columns :] = 0
    return mask


def border(size: int, coverage: float | None = None) -> Tensor:
    """Outpainting: a square in the centre is known, all around it is the hole.

    Args:
        size: side of the image in pixels.
        coverage: hole fraction in (0, 1]; ``None``: the known square has half the side, a hole of 3/4.

    Returns:
        (1, size, size) float32, 1 = known.
    """
    side = size // 2 if coverage is None else _nearest(range(size), lambda s: 1 - s * s / size**2, coverage)
    return 1 - _square(size, (size - side) // 2, (size - side) // 2, side)


def lines(size: int) -> Tensor:
    """Every second row is a hole, starting with row 1.

    Args:
        size: side of the image in pixels.

    Returns:
        (1, size, size) float32, 1 = known.
    """
    mask = torch.ones(1, size, size)
    mask[:, 1::2] = 0
    return mask


def grid(size: int, step: int) -> Tensor:
    """Super-resolution by subsampling: one pixel of every step x step block is known, its upper left one.

    Args:
        size: side of the image in pixels.
        step: side of the blocks in pixels.

    Returns:
        (1, size, size) float32, 1 = known.
    """
    mask = torch.zeros(1, size, size)
    mask[:, ::step, ::step] = 1
    return mask


def random_pixels(size: int, rng: torch.Generator, coverage: float | None = None) -> Tensor:
    """Single pixels, uniform among all holes of their number, which is at least one.

    Args:
        size: side of the image in pixels.
        rng: draws the fraction, unless it is given, and the pixels.
        coverage: hole fraction in (0, 1]; ``None``: uniform in [0.3, 0.92].

    Returns:
        (1, size, size) float32, 1 = known.
    """
    low, high = COVERAGE
    fraction = low + (high - low) * float(torch.rand((), generator=rng)) if coverage is None else coverage
    holes = max(1, round(fraction * size * size))
    mask = torch.ones(size * size)
    mask[torch.randperm(size * size, generator=rng)[:holes]] = 0
    return mask.reshape(1, size, size)
