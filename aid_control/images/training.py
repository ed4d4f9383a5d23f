r"""What the generic trainer needs to learn guidance: batches of (start, observation, clean image).

Two phases, one `ActorCritic`:

1. the critic's terminal condition (no backbone calls): the encoder learns $m(\xi) = E[x_0 \mid y, M]$;
2. actor-critic on rollouts of the guided flow, the guess held fixed: gains, corrections and the small network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..batch import Batch
from ..noise import generator
from ..parallel import Rows
from .data import batch_indices, to_float
from .guidance import Guidance
from .masks import make_mask
from .problem import GuidanceProblem, levels_of
from .pyramid import BANDS, band_energies

__all__ = ["InpaintingData", "band_variances"]


def band_variances(images: Tensor, bands: int = BANDS) -> Tensor:
    """Variance a coordinate of each Haar band around the mean image, for `guidance.PyramidCritic`.

    Args:
        images: (N, C, H, W) in [-1, 1].
        bands: number of bands.

    Returns:
        (bands,) float32, finest first, at least 1e-6.
    """
    centred = images - images.mean(0, keepdim=True)
    d = images[0].numel()
    sizes = torch.tensor([d / 4**j for j in range(bands)])
    sizes = sizes - torch.cat([sizes[1:], torch.zeros(1)])
    return (band_energies(centred, bands).mean(0) / sizes).clip(min=1e-6)


class InpaintingData:
    """Training batches, a pure function of (seed, iteration).

    Args:
        images: uint8 (N, C, H, W).
        mask_kind: see `masks.make_mask`.
        seed: of everything random.
        device: where batches go.
    """

    def __init__(
        self, images: Tensor, mask_kind: str = "mixed", seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        self.images, self.mask_kind, self.seed, self.device = images, mask_kind, seed, device

    def clean_and_mask(self, batch: int, iteration: int, rows: Rows | None = None) -> tuple[Tensor, Tensor]:
        """Clean images (randomly mirrored) and masks of one iteration.

        Args:
            batch: number of images, B.
            iteration: which batch, from 0.
            rows: the part wanted; ``None`` = all.

        Returns:
            x0, (b, C, H, W) in [-1, 1], and masks (b, 1, H, W), 1 = known, on the device; b rows, B or those of the
            part.

        Raises:
            InputError: for an unknown mask kind, or images too small for masks, as `masks.make_mask`.
        """
        rows = rows or Rows(0, batch, batch)
        x0 = to_float(self.images[rows.take(batch_indices(len(self.images), batch, iteration, self.seed))])
        gen = generator(self.seed, 0x3A5C, iteration)
        mirrored = rows.take(torch.rand(batch, generator=gen) < 0.5)
        x0[mirrored] = x0[mirrored].flip(-1)
        seeds = rows.take(torch.randint(2**31, (batch,), generator=gen)).tolist()
        mask = torch.stack([make_mask(self.mask_kind, x0.shape[-1], s) for s in seeds])
        return x0.to(self.device), mask.to(self.device)

    def rollout_batch(
        self,
        problem: GuidanceProblem,
        guidance: Guidance,
        batch: int,
        iteration: int,
        steps: int,
        rows: Rows | None = None,
    ) -> Batch:
        """A batch for `aid_control.trainer.ActorCritic.iterate`.

        Args:
            problem: gives the clock and the backbone's rounding of levels.
            guidance: makes the guess, once an image.
            batch: number of images, B.
            iteration: which batch, from 0.
            steps: solver steps.
            rows: the part wanted; ``None`` = all.
        """
        rows = rows or Rows(0, batch, batch)
        x0, mask = self.clean_and_mask(batch, iteration, rows)
        noise = rows.normal(x0.shape[1:], generator(self.seed, 0x5EED, iteration)).to(x0)
        context = guidance.observe(x0 * mask, mask)
        return Batch(noise * problem.clock.sigma_max, levels_of(problem, steps), context, x0, rows)
