r"""Masks between pixels and latents, and the way back without a visible seam.

A latent cell is known only if all its pixels are: the hole is max-pooled.  A cell beside the hole was still encoded by
convolutions that saw it; ``grow`` gives up such cells, too.

The decoder reproduces known pixels only roughly, so they are pasted.  Let $e = y - \mathrm{decoded}$ be its error
there.  At the hole's edge the paste jumps by $e$.  Blending carries $e$ on into the hole and lets it fade: a hole pixel
$p$ at distance $k \le n$ from the known ones (in king's moves) becomes

$$
\mathrm{decoded}(p) + \big(1 - \tfrac{k}{n+1}\big)\, \bar e(p),
$$

where $\bar e(p)$ is the mean of $e$ over the known pixels at distance $k$ of $p$, its nearest ones: the farther inside,
the more of them, and the smoother what is carried on.

Known pixels are never touched.  Masks: 1 = known, 0 = hole.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import InputError

__all__ = ["fill", "latent_mask", "paste"]


def latent_mask(mask: Tensor, factor: int, grow: int = 0) -> Tensor:
    """The mask of latent cells.

    Args:
        mask: (B, 1, H, W) or (1, H, W), 1 = known.
        factor: side of a cell in pixels.
        grow: cells by which the hole is widened.

    Returns:
        (B, 1, h, w) or (1, h, w), h = H / factor, w = W / factor; 1 = known.

    Raises:
        InputError: if the size is no multiple of ``factor``, or ``grow`` is negative.
    """
    if mask.shape[-1] % factor or mask.shape[-2] % factor:
        raise InputError(f"mask of shape {tuple(mask.shape)}; expected a height and width that {factor} divides")
    if grow < 0:
        raise InputError(f"grow is {grow}; expected 0 or more latent cells")
    hole = F.max_pool2d(1 - mask, factor)
    return 1 - (F.max_pool2d(hole, 2 * grow + 1, stride=1, padding=grow) if grow else hole)


def fill(y: Tensor, mask: Tensor) -> Tensor:
    """Something calm for the hole before encoding: local means of what is known, from fine to coarse.

    Args:
        y: (B, C, H, W); what it holds in the hole is ignored.
        mask: (B, 1, H, W), 1 = known.

    Returns:
        (B, C, H, W), known pixels as they are; an image of which nothing is known is 0.
    """
    y = torch.where(mask.bool(), y, 0.0)
    if bool(mask.all()) or max(y.shape[-2:]) < 2:
        return y
    # Weighted block means; the same question at half the size answers it for blocks without a known pixel.
    weight = F.avg_pool2d(mask, 2, ceil_mode=True)
    mean = F.avg_pool2d(y, 2, ceil_mode=True) / weight.clip(min=1e-12)
    coarse = fill(mean, (weight > 0).to(y.dtype))
    smooth = F.interpolate(coarse, size=y.shape[-2:], mode="bilinear")
    return torch.where(mask.bool(), y, smooth)


def paste(decoded: Tensor, y: Tensor, mask: Tensor, blend: int = 0) -> Tensor:
    """Known pixels from ``y``, bit by bit, the hole from ``decoded``.

    Args:
        decoded: (B, C, H, W) in [-1, 1].
        y: like it; what it holds in the hole is ignored.
        mask: (B, 1, H, W), 1 = known.
        blend: n, width of the seam inside the hole in pixels; 0 leaves the hole as decoded.

    Returns:
        Images like ``y``; the blended part of the hole is clipped to [-1, 1].

    Raises:
        InputError: if shapes do not agree, or ``blend`` is negative.
    """
    if decoded.shape != y.shape or mask.shape != (len(y), 1, *y.shape[2:]):
        raise InputError(
            f"decoded {tuple(decoded.shape)}, image {tuple(y.shape)}, mask {tuple(mask.shape)}; "
            "expected two of one shape (B, C, H, W) and a mask (B, 1, H, W)"
        )
    if blend < 0:
        raise InputError(f"blend is {blend}; expected 0 or more pixels")
    known = mask.bool()
    decoded = decoded.to(y.dtype)
    hole = decoded
    error, weight = torch.where(known, y - decoded, 0.0), mask.to(y.dtype)
    left = ~known
    for k in range(1, blend + 1):
        near = F.avg_pool2d(weight, 2 * k + 1, stride=1, padding=k)
        ring = left & (near > 0)
        mean = F.avg_pool2d(error, 2 * k + 1, stride=1, padding=k) / near.clip(min=1e-12)
        hole = torch.where(ring, (decoded + (1 - k / (blend + 1)) * mean).clip(-1, 1), hole)
        left = left & ~ring
    return torch.where(known, y, hole)
