r"""One inpainting job, as every method is given it, and the steps that methods share.

The sampler's state has the noise level $\sigma$, $x = x_0 + \sigma n$, and known pixels are $M = 1$.  One denoised
image $D = D(x; s)$ makes a step from $s$ to $s' < s$ in three ways, with $e = (x - D)/s$ and $z$ fresh noise:

$$
\begin{aligned}
&\text{flow:} && D + s' e, \\
&\text{DDIM, } \eta: && D + s' \big(\sqrt{1 - \eta^2}\, e + \eta z\big), \\
&\text{ancestral (DDPM):} && D + \rho^2 (x - D) + s' \sqrt{1 - \rho^2}\, z, \quad \rho = s'/s .
\end{aligned}
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

from ...errors import InputError
from ...noise import per_image_normal
from ..backbones.precond import Denoiser
from ..clock import Clock, check_clock, within
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
            InputError: for inputs that do not fit the backbone, as `inpaint.check_images`, fewer than one step, a
                wrong number of seeds, and where the method checks them options out of range.
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
        """K, the number of noise levels above 0."""
        return len(self.sigmas) - 1

    def levels(self) -> Iterator[tuple[int, float, float]]:
        """(k, s, s') of every step, in order: step k goes from the level s down to s'."""
        levels = self.sigmas.tolist()
        return zip(range(self.steps), levels[:-1], levels[1:], strict=True)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """D(x; sigma), in the precision of ``y``: (B, C, H, W), one level for all -> (B, C, H, W)."""
        return self.backbone(x, sigma, self.class_labels).to(self.y.dtype)

    def noise(self, *key: int) -> Tensor:
        """Unit noise like ``y``, keyed by (seed of the image, key)."""
        return per_image_normal(self.seeds, self.y.shape[1:], *key).to(self.y)

    def start(self) -> Tensor:
        """The state at the first level, (B, C, H, W): starting noise, the same for every method.

        Raises:
            InputError: if there is not one seed an image.
        """
        return starting_noise(self.backbone, self.seeds, len(self.y)).to(self.y) * float(self.sigmas[0])

    def paste(self, x: Tensor, known: Tensor | None = None) -> Tensor:
        """x in the hole, ``known`` (default y, exactly) where the mask is 1: (B, C, H, W) -> (B, C, H, W)."""
        return torch.where(self.mask.bool(), self.y if known is None else known, x)

    def miss(self, image: Tensor) -> Tensor:
        """M (y - image), zero in the hole: (B, C, H, W) -> (B, C, H, W)."""
        return self.mask * (self.y - image)

    def done(self, k: int, x: Tensor) -> None:
        """Tell the callback that a step is done.

        Args:
            k: number of the step, from 0.
            x: the state it ended in (B, C, H, W); the callback gets it detached.
        """
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
    """Check a job and lay out its noise levels; arguments as `Method`.

    Raises:
        InputError: for inputs that do not fit the backbone, fewer than one step, noise levels as
            `clock.check_clock` refuses them, or a wrong number of seeds.
    """
    check_images(backbone, y, mask)
    if steps < 1:
        raise InputError(f"steps is {steps}; expected at least 1")
    if seeds is not None and len(seeds) != len(y):
        raise InputError(f"{len(seeds)} seeds for {len(y)} images; expected one an image")
    clock = clock or within(backbone.sigma_min, backbone.sigma_max)
    check_clock(clock)
    sigmas = clock.sigmas(steps, rounding=backbone.round_sigma).to(torch.float64)
    seeds = range(len(y)) if seeds is None else seeds
    mask = mask.to(y)
    return Task(backbone, torch.where(mask.bool(), y, 0.0), mask, sigmas, seeds, class_labels, callback)


def ancestral(x: Tensor, denoised: Tensor, s: float, s_next: float, z: Tensor) -> Tensor:
    """A DDPM step (Ho et al. 2020) with the posterior's variance ("fixedsmall"); the module's third line.

    Args:
        x: states (B, C, H, W) at the level ``s``.
        denoised: D(x; s), (B, C, H, W).
        s: noise level, above 0.
        s_next: s', the level to go to, from 0 to ``s``.
        z: unit noise (B, C, H, W).

    Returns:
        States (B, C, H, W) at the level ``s_next``.
    """
    rho2 = (s_next / s) ** 2
    return denoised + rho2 * (x - denoised) + s_next * (1 - rho2) ** 0.5 * z


def ddim(x: Tensor, denoised: Tensor, s: float, s_next: float, z: Tensor, eta: float) -> Tensor:
    r"""A DDIM step with a share of fresh noise; the module's second line.  Arguments and result as `ancestral`.

    Args:
        x: states (B, C, H, W) at the level ``s``.
        denoised: D(x; s), (B, C, H, W).
        s: noise level, above 0.
        s_next: s'.
        z: unit noise (B, C, H, W).
        eta: share in [0, 1] of the noise of level s' that is fresh: the eta of DDNM; DDIM's own (Song et al. 2021) is
            this over $\sqrt{1 - (s'/s)^2}$.
    """
    return denoised + s_next * ((1 - eta**2) ** 0.5 * (x - denoised) / s + eta * z)


def totals(values: Tensor) -> Tensor:
    """Sums over all but the first index, (B, ...) -> (B,), each in the same order whatever the batch."""
    return torch.stack([v.sum() for v in values.flatten(1)])
