"""Masks from outside: reading one from an image file, and refusing tensors that are none.

In a file white is known and black is hole, as in RePaint's and DPS's; LaMa, Palette and Stable Diffusion write white
for the hole: invert theirs first.
"""

from __future__ import annotations

import os

from torch import Tensor

from ...errors import InputError
from ..data import read_image

__all__ = ["check_mask", "read_mask"]


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
