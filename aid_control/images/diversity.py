r"""What paired quality does not see: how fillings of one image differ between seeds, and whether known pixels hold.

For $S$ fillings $x_1, \dots, x_S$ of one masked image ($M$: 1 = known), $d$ a perceptual distance over the hole,

$$
\mathrm{diversity} = \frac{2}{S (S - 1)} \sum_{i < j} d(x_i, x_j), \qquad
s(p) = \Big( \frac{1}{C} \sum_c \frac{1}{S - 1} \sum_i (x_{ic} - \bar x_c)^2(p) \Big)^{1/2},
$$

and the deviation is the mean of $s$ over the hole's pixels.  Both are 0 where every seed gives the same filling, and
diversity alone is no merit: noise is diverse.  The known-region error is the maximum and the mean of
$|\mathrm{out} - y|$ over the known pixels and channels, in the units of the images (1/127.5 is one grey level).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor

from ..errors import InputError
from .metrics import region_mean

__all__ = ["deviation_map", "hole_deviation", "known_error", "pairwise_distance"]

Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


def _fillings(samples: Tensor) -> Tensor:
    if samples.ndim != 5 or len(samples) < 2:
        raise InputError(f"samples of shape {tuple(samples.shape)}; expected (S, B, C, H, W) with S >= 2 seeds")
    return samples


def _check_mask(mask: Tensor, images: Tensor) -> None:
    b, (h, w) = images.shape[-4], images.shape[-2:]
    if mask.ndim != 4 or mask.shape[0] not in (1, b) or mask.shape[1:] != (1, h, w):
        raise InputError(f"mask of shape {tuple(mask.shape)}; expected ({b} or 1, 1, {h}, {w})")


@torch.no_grad()
def pairwise_distance(samples: Tensor, mask: Tensor, distance: Distance) -> Tensor:
    """Mean distance over the hole between all pairs of an image's fillings; S (S - 1) / 2 calls of ``distance``.

    Args:
        samples: (S, B, C, H, W), S >= 2 seeds of the same B masked images.
        mask: (B or 1, 1, H, W), 1 = known, 0 = hole.
        distance: (a, b, region) -> (B,), e.g. `perceptual.Lpips`.

    Returns:
        (B,); NaN for an image without a hole.

    Raises:
        InputError: for other shapes.
    """
    x = _fillings(samples)
    _check_mask(mask, x)
    hole = (1 - mask).expand(x.shape[1], -1, -1, -1)
    return torch.stack([distance(x[i], x[j], hole) for i, j in combinations(range(len(x)), 2)]).mean(0)


def deviation_map(samples: Tensor) -> Tensor:
    """Standard deviation over seeds at every pixel: the root of the channels' mean variance (divisor S - 1).

    Args:
        samples: (S, B, C, H, W), S >= 2.

    Returns:
        (B, H, W) float64, in the units of the images.

    Raises:
        InputError: for other shapes.
    """
    return _fillings(samples).double().var(0).mean(1).sqrt()


def hole_deviation(samples: Tensor, mask: Tensor) -> Tensor:
    """Mean of `deviation_map` over the hole.

    Args:
        samples: (S, B, C, H, W), S >= 2.
        mask: (B or 1, 1, H, W), 1 = known, 0 = hole.

    Returns:
        (B,) float64; NaN for an image without a hole.

    Raises:
        InputError: for other shapes.
    """
    deviation = deviation_map(samples)
    _check_mask(mask, samples)
    return region_mean(deviation, 1 - mask)


def known_error(out: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """How far an inpainted image is from the observation where that is known.

    Args:
        out: (B, C, H, W).
        y: the observation, same shape; its values in the hole do not count.
        mask: (B or 1, 1, H, W), 1 = known, 0 = hole.

    Returns:
        Maximum and mean of |out - y| over known pixels and channels, (B,) float64 each; NaN where nothing is known, or
            where a known value is NaN.

    Raises:
        InputError: for other shapes.
    """
    if out.shape != y.shape or out.ndim != 4:
        raise InputError(f"images of shapes {tuple(out.shape)} and {tuple(y.shape)}; expected two equal (B, C, H, W)")
    _check_mask(mask, out)
    known = (mask != 0).expand_as(out).flatten(1)
    # where, not a product: what stands in the hole may be NaN, and 0 * NaN is NaN
    error = torch.where(known, (out.double() - y.double()).abs().flatten(1), 0.0)
    count = known.sum(1)
    largest = torch.where(count > 0, error.amax(1), torch.nan)
    return largest, error.sum(1) / count
