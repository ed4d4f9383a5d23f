r"""Inpainting with a latent backbone: encode what is known, inpaint latents, decode, paste.

$$
\hat x = \mathrm{paste}\big(G(\hat z)\big), \qquad \hat z = \mathrm{inpaint}\big(E(y'), M_z\big)
$$

with $y'$ the picture whose hole is filled calmly, so that its edge does not ring in the known cells, $E$ and $G$ the
codec's encoder and decoder, and $M_z$ the latent mask (`masks`).  In between nothing is new: the same problem, guidance
and solver as for pixels, whose observation is $(E(y'), M_z)$.  A mask of scattered pixels leaves no cell known: then
what is known only enters by pasting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...errors import InputError
from ...rollout import Solver
from ..backbones.precond import Denoiser
from ..clock import Clock
from ..guidance import Guidance
from ..inpaint import check_shape, inpaint
from .codec import Codec
from .masks import fill, latent_mask, paste

__all__ = ["check_latent", "inpaint_latent", "observe_latent"]


def check_latent(backbone: Denoiser, codec: Codec, y: Tensor, mask: Tensor) -> None:
    """Refuse pictures that do not fit the codec and the backbone, or a codec that does not fit the backbone.

    Args:
        backbone: denoiser of latents (C, h, w).
        codec: between pictures and its latents.
        y: pictures (B, 3, H, W) in [-1, 1], H and W ``codec.factor`` times h and w.
        mask: (B, 1, H, W), 1 = known.

    Raises:
        InputError: for another size or number of channels, NaN in known pixels, or a bad mask.
    """
    channels, height, width = backbone.shape
    if channels != codec.channels:
        raise InputError(f"backbone of {channels} channels, codec of {codec.channels}; expected the same")
    check_shape((codec.image_channels, height * codec.factor, width * codec.factor), y, mask)


def observe_latent(
    codec: Codec, y: Tensor, mask: Tensor, seeds: Sequence[int] | None = None, grow: int = 0
) -> tuple[Tensor, Tensor]:
    """What is known, as latents.

    Args:
        codec: the encoder.
        y: pictures (B, 3, H, W) in [-1, 1]; what they hold in the hole is ignored.
        mask: (B, 1, H, W), 1 = known.
        seeds: of the draws, one a picture; ``None`` takes the means.
        grow: latent cells by which the hole is widened.

    Returns:
        Latents (B, C, h, w), 0 in the hole, and their mask (B, 1, h, w), 1 = known.

    Raises:
        InputError: for pictures, masks or seeds that do not fit the codec, or a negative ``grow``.
    """
    cells = latent_mask(mask, codec.factor, grow)
    return codec.encode(fill(y, mask), seeds) * cells, cells


@torch.no_grad()
def inpaint_latent(
    backbone: Denoiser,
    codec: Codec,
    guidance: Guidance | None,
    y: Tensor,
    mask: Tensor,
    steps: int = 18,
    solver: Solver = "heun",
    seeds: Sequence[int] | None = None,
    blend: int = 0,
    grow: int = 0,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
    base: str | None = None,
) -> Tensor:
    """Fill the holes of pictures with a latent backbone.

    Args:
        backbone: frozen denoiser of latents.
        codec: between pictures and its latents.
        guidance: AID module trained on latents; ``None`` = the pretrained flow.
        y: pictures (B, 3, H, W) in [-1, 1]; what they hold in the hole is ignored.
        mask: (B, 1, H, W), 1 = known, 0 = hole.
        steps: solver steps.
        solver: ``"heun"`` or ``"euler"``.
        seeds: one a picture, for its latent draw and its noise; default 0, 1, 2, ...
        blend: width of the blended seam inside the hole, in pixels.
        grow: latent cells by which the hole is widened.
        class_labels: one-hot (B, n) for conditional backbones.
        clock: noise levels; default EDM's grid.
        callback: called as callback(k, latents) after every step.
        base: frozen drift, see `inpaint.inpaint`; without guidance, ``"projected"`` is what makes the flow
            see the known cells.

    Returns:
        Pictures (B, 3, H, W) in the dtype of ``y``; known pixels equal ``y`` exactly.

    Raises:
        InputError: for inputs that do not fit.
    """
    check_latent(backbone, codec, y, mask)
    chosen = list(range(len(y)) if seeds is None else seeds)
    known, cells = observe_latent(codec, y, mask, chosen, grow)
    latents = inpaint(
        backbone, guidance, known, cells, steps, solver, chosen, class_labels, clock, callback, base
    )  # fmt: skip
    return paste(codec.decode(latents), y, mask, blend)
