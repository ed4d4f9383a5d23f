r"""Two denoisers into one: classifier-free guidance and autoguidance.

$$
D(x; \sigma) = g\, D_{\mathrm{main}}(x; \sigma) + (1 - g)\, D_{\mathrm{guide}}(x; \sigma), \quad
\sigma_{\mathrm{lo}} \lt \sigma \le \sigma_{\mathrm{hi}},
$$

and $D_{\mathrm{main}}$ at other noise levels.  $g > 1$ extrapolates away from what the guide says.

*Classifier-free guidance* (Ho and Salimans 2021): the guide ignores the class.  It is the main network under the
null class, or an unconditional network of its own.

*Autoguidance* (Karras et al. 2024): the guide is a worse version of the main network (smaller, or less trained)
that sees the same class.

*Interval* (Kynkaanniemi et al. 2024): guidance harms at high noise levels and does nothing at low ones.

The result is a denoiser, and may stand wherever one may; the samplers and `inpaint.inpaint` need no change.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from ..errors import InputError
from .backbones.precond import Denoiser

__all__ = ["GuidedDenoiser", "autoguidance", "classifier_free"]

ALWAYS = (0.0, math.inf)


class GuidedDenoiser(Denoiser):
    """g D_main + (1 - g) D_guide inside an interval of noise levels, D_main outside.

    Calls the guide on the images of the batch that are inside only, and never where g is 1.

    Args:
        main: the denoiser that knows the class.
        guide: the other one; ``None`` = ``main`` under the null class.
        guidance: g; 1 = none.
        interval: (sigma_lo, sigma_hi].
        guide_labels: whether the guide sees the class labels.

    Attributes:
        sigma_min: the larger of the two.
        sigma_max: the smaller.
        shape: of ``main``, like all else; `fingerprint` tells both networks and the settings.

    Raises:
        InputError: for networks that do not fit one another, or settings out of range.
    """

    def __init__(
        self,
        main: Denoiser,
        guide: Denoiser | None,
        guidance: float,
        interval: tuple[float, float] = ALWAYS,
        guide_labels: bool = False,
    ) -> None:
        # Not Denoiser.__init__: there is no U-Net of its own.
        nn.Module.__init__(self)
        low, high = interval
        if not math.isfinite(guidance):
            raise InputError(f"guidance is {guidance}; expected a finite number")
        if not 0 <= low < high:
            raise InputError(f"interval is {tuple(interval)}; expected 0 <= low < high")
        if guide is None and not main.label_dim:
            raise InputError("the denoiser has no classes to leave out; expected label_dim > 0, or a guide")
        if guide is not None and tuple(guide.shape) != tuple(main.shape):
            raise InputError(f"guide of images {tuple(guide.shape)}; expected {tuple(main.shape)}")
        if guide_labels and (guide is None or guide.label_dim != main.label_dim):
            known = "none" if guide is None else guide.label_dim
            raise InputError(f"guide of {known} classes; expected {main.label_dim}, to be given the same labels")
        self.main, self.guide = main, guide
        self.guidance, self.interval, self.guide_labels = float(guidance), (float(low), float(high)), guide_labels
        self.shape, self.img_channels, self.use_fp16 = tuple(main.shape), main.img_channels, main.use_fp16
        if hasattr(main, "img_resolution"):  # signals have none
            self.img_resolution = main.img_resolution
        self.label_dim = main.label_dim
        nets = [main] if guide is None else [main, guide]
        self.sigma_min, self.sigma_max = max(n.sigma_min for n in nets), min(n.sigma_max for n in nets)
        if self.sigma_min >= self.sigma_max:
            raise InputError("the two denoisers know no noise level in common; expected overlapping ranges")
        marks = [n.fingerprint for n in nets]
        if all(marks):  # a network without a name makes a pair without a name
            facts = (*marks, self.guidance, self.interval, guide_labels)
            self.fingerprint = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
        self.training = main.training  # the networks themselves are left as they are

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Levels of any shape -> the nearest that the main network knows."""
        return self.main.round_sigma(sigma)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Denoise.

        Args:
            x: noisy images (B, C, H, W).
            sigma: noise level, a scalar or (B,).
            class_labels: one-hot (B, label_dim), or ``None``.
            augment_labels: of any shape, ignored: augmentation belongs to training.

        Returns:
            Denoised images like ``x``, in the precision of the main network.
        """
        denoised: Tensor = self.main(x, sigma, class_labels)
        same = self.guide is None and class_labels is None  # both would be asked for the null class
        if self.guidance == 1 or same:
            return denoised
        level = torch.as_tensor(sigma, device=x.device).detach().reshape(-1)
        rows = ((level > self.interval[0]) & (level <= self.interval[1])).expand(len(x)).nonzero()[:, 0]
        if not len(rows):
            return denoised
        if len(rows) == len(x):
            return self._combine(denoised, x, sigma, class_labels)
        if class_labels is not None and class_labels.dim() > 1 and len(class_labels) == len(x):
            class_labels = class_labels[rows]
        part = self._combine(denoised[rows], x[rows], level[rows], class_labels)
        return denoised.index_copy(0, rows, part)

    def _combine(self, denoised: Tensor, x: Tensor, sigma: Tensor | float, labels: Tensor | None) -> Tensor:
        guide = self.main if self.guide is None else self.guide
        other = guide(x, sigma, labels if self.guide_labels else None)
        return torch.lerp(other.to(denoised), denoised, self.guidance)


def classifier_free(
    net: Denoiser, guidance: float, interval: tuple[float, float] = ALWAYS, unconditional: Denoiser | None = None
) -> GuidedDenoiser:
    """Classifier-free guidance.

    Args:
        net: class-conditional denoiser.
        guidance: g; 1 = none.
        interval: of noise levels (low, high] that are guided.
        unconditional: the guide, where it is a network of its own (EDM2); ``None`` = ``net`` under the null class,
            which then has to be trained with dropped labels.

    Raises:
        InputError: as `GuidedDenoiser`, e.g. for networks that do not fit one another.
    """
    return GuidedDenoiser(net, unconditional, guidance, interval)


def autoguidance(
    net: Denoiser, guide: Denoiser, guidance: float, interval: tuple[float, float] = ALWAYS
) -> GuidedDenoiser:
    """Guidance by a worse version of the network, which sees the same labels.

    Args:
        net: denoiser.
        guide: smaller or less trained, of the same classes.
        guidance: g; 1 = none.
        interval: of noise levels (low, high] that are guided.

    Raises:
        InputError: as `GuidedDenoiser`, e.g. for networks that do not fit one another.
    """
    return GuidedDenoiser(net, guide, guidance, interval, guide_labels=True)
