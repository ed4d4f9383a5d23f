r"""Batches for training guidance in latent space: the trainer, the networks and both phases are those of pixels.

The clean "image" is a latent $z \sim q(z \mid x)$, drawn anew from its picture's moments at every visit; the mask is a
pixel mask seen through the codec's cells (`masks`).  In use the known cells come from the encoder's view of a picture
with a filled hole; far from the hole the two agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...noise import generator
from ...parallel import Rows
from ..data import batch_indices
from ..masks import make_mask
from ..training import InpaintingData
from .codec import Codec
from .masks import latent_mask

__all__ = ["LatentInpaintingData"]


class LatentInpaintingData(InpaintingData):
    """Training batches of latents, a pure function of (seed, iteration).

    Args:
        moments: (N, 2C, h, h), see `dataset.LatentSource`; square, as masks are.
        codec: gives the scale and the size of a cell.
        mask_kind: of the pixel masks.
        seed: of everything random.
        device: where batches go.
    """

    def __init__(
        self,
        moments: Tensor,
        codec: Codec,
        mask_kind: str = "mixed",
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(moments, mask_kind, seed, device)
        self.codec = codec

    def clean_and_mask(self, batch: int, iteration: int, rows: Rows | None = None) -> tuple[Tensor, Tensor]:
        """One iteration's latents and masks; no mirror images: a mirrored latent is none.

        Args:
            batch: how many, B.
            iteration: which, from 0.
            rows: the part wanted; ``None`` = all.

        Returns:
            Clean latents (b, C, h, h) and their masks (b, 1, h, h), 1 = known, on the device; b rows, B or those of
            the part.

        Raises:
            InputError: for an unknown mask kind, or pictures too small for masks, as `masks.make_mask`.
        """
        gen = generator(self.seed, 0x3A5C, iteration)
        rows = rows or Rows(0, batch, batch)
        seeds = rows.take(torch.randint(2**31, (batch,), generator=gen)).tolist()
        indices = rows.take(batch_indices(len(self.images), batch, iteration, self.seed))
        z = self.codec.draw(self.images[indices], seeds)
        side = z.shape[-1] * self.codec.factor
        mask = torch.stack([make_mask(self.mask_kind, side, s) for s in seeds])
        return z.to(self.device), latent_mask(mask, self.codec.factor).to(self.device)
