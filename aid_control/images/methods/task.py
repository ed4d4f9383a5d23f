r"""One inpainting job, as every method is given it, and the steps that methods share.

The sampler's state has the noise level sigma, $x = x_0 + \sigma n$, and known pixels are M = 1.  One denoised
image D = D(x; s) makes a step from s to s' < s in three ways, with $e = (x - D)/s$ and z fresh noise:

$$
\text{flow: } D + s' e, \qquad
\text{DDIM, } \eta: D + s' (\sqrt{1 - \eta^2}\, e + \eta z), \qquad
\text{ancestral (DDPM): } D + \rho^2 (x - D) + s' \sqrt{1 - \rho^2}\, z, \quad \rho = s'/s .
$$

*Order of randomness.*  All noise is keyed by (image seed, method, step); the starting noise by the image seed only, so
that methods are compared on the same draw.  *No coupling.*  Sums over pixels are taken image by image
(`totals`): with a denoiser that treats images one at a time, results do not depend on the batch in any bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...noise import per_image_normal
from ..backbones.precond import Denoiser
from ..clock import Clock, within
from ..inpaint import check_images, starting_noise

__all__ = ["Callback", "Method", "Task", "ancestral", "ddim", "prepare", "totals"]

Callback = Callable[[int, Tensor], None]


class Method(Protocol):
    """What all methods are called like; each has options of its own behind these."""

    def __call__(
        self,
        backbone: Denoiser,
        y: Tensor,
        mask: Tensor,
        steps: int = ...,
        *,
        seeds: Sequence[int] | None = None,
        class_labels: Tensor | None = None,
        clock: Clock | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Fill the holes of images.

        Args:
            backbone: frozen denoiser.
            y: images (B, C, H, W) in [-1, 1]; what they hold in the hole is ignored.
            mask: (B, 1, H, W), 1 = known, 0 = hole.
            steps: noise levels visited; the default is the published number.
            seeds: one an image; default 0, 1, 2, ...
            class_labels: one-hot (B, n) for conditional backbones.
            clock: noise levels; default EDM's grid within the backbone's range, unless the method says otherwise.
            callback: called as callback(k, x) after step k.

        Returns:
            Images (B, C, H, W); known pixels equal ``y`` exactly, unless the method takes them as noisy.

        Raises:
            InputError: for inputs that do not fit the backbone.
        """


@dataclass
class Task:
    """A checked job.

    Attributes:
        backbone: frozen denoiser.
        y: images (B, C, H, W), zero in the hole.
        mask: (B, 1, H, W), 1 = known.
        sigmas: (K + 1,) decreasing noise levels, the last 0; float64.
        seeds: one an image.
        class_labels: one-hot (B, n) or ``None``.
        callback: what is called after every step.
    """

    backbone: Denoiser
    y: Tensor
    mask: Tensor
    sigmas: Tensor
    seeds: Sequence[int]
    class_labels: Tensor | None = None
    callback: Callback | None = None

    @property
    def steps(self) -> int:
        """K."""
        return len(self.sigmas) - 1

    def levels(self) -> Iterator[tuple[int, float, float]]:
        """(k, s, s') of every step."""
        levels = self.sigmas.tolist()
        return zip(range(self.steps), levels[:-1], levels[1:], strict=True)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """D(x; sigma), in the precision of ``y``."""
        return self.backbone(x, sigma, self.class_labels).to(self.y.dtype)

    def noise(self, *key: int) -> Tensor:
        """Unit noise like ``y``, keyed by (seed of the image, key)."""
        return per_image_normal(self.seeds, self.y.shape[1:], *key).to(self.y)

    def start(self) -> Tensor:
        """The state at the first level: starting noise, the same for every method."""
        return starting_noise(self.backbone, self.seeds, len(self.y)).to(self.y) * float(self.sigmas[0])

    def paste(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """x in the hole, ``known`` (default y, exactly) where the mask is 1."""
        return torch.where(self.mask.bool(), self.y if known is None else known, x)

    def miss(self, image: Tensor) -> Tensor:
        """M (y - image)."""
        return self.mask * (self.y - image)

    def done(self, k: int, x: Tensor) -> None:
        """Tell the callback that step k ended in x."""
        if self.callback is not None:
            self.callback(k, x.detach())


def prepare(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
) -> Task:
    """Check a job and lay out its noise levels; arguments and errors as `Method`."""
    check_images(backbone, y, mask)
    clock = clock or within(backbone.sigma_min, backbone.sigma_max)
    sigmas = clock.sigmas(steps, rounding=backbone.round_sigma).to(torch.float64)
    seeds = range(len(y)) if seeds is None else seeds
    mask = mask.to(y)
    return Task(backbone, torch.where(mask.bool(), y, 0.0), mask, sigmas, seeds, class_labels, callback)


def ancestral(x: Tensor, denoised: Tensor, s: float, s_next: float, z: Tensor) -> Tensor:
    """A DDPM step, posterior variance ("fixedsmall"); see the module."""
    rho2 = (s_next / s) ** 2
    return denoised + rho2 * (x - denoised) + s_next * (1 - rho2) ** 0.5 * z


def ddim(x: Tensor, denoised: Tensor, s: float, s_next: float, z: Tensor, eta: float) -> Tensor:
    """A DDIM step with the share eta of fresh noise (DDNM's eta, not DDIM's); see the module."""
    return denoised + s_next * ((1 - eta**2) ** 0.5 * (x - denoised) / s + eta * z)


def totals(values: Tensor) -> Tensor:
    """Sums (B,) over all but the first index, each in the same order whatever the batch."""
    return torch.stack([v.sum() for v in values.flatten(1)])
