r"""AID's networks: the guidance module (actor) and its critic.

**Actor.** The correction of the denoised image is

$$
v = \sum_j g_j(\sigma)\,\mathrm{band}_j(\hat m - D) + a(\sigma)\, M (y - D) + h_\phi(x, D, \hat m, M; \sigma),
$$

with $\hat m$ the context encoder's guess (once an image), gains $g_j$ and $a$ that are tables over the noise
level, and $h$ a small network at a quarter of the resolution.  All of $g, a, h$ start at zero: training starts
from the unguided flow.  On a Gaussian image model diagonal in the bands the first sum *is* the form of the
optimum ($v$ is a linear function of $m - F$, $F$ the end of the unguided flow).

**Critic.** In the same model, with variance $l_j$ in band $j$ and the ``levels`` cost, the value is

$$
\begin{aligned}
V(\sigma, x) &= \frac1{2d}\sum_j \frac{|\mathrm{band}_j(A_j x - \hat m)|^2}{c_j}, \qquad
A_j(\sigma) = \sqrt{\frac{l_j}{l_j + \sigma^2}}, \\
c_j(\sigma) &= 1 + \frac1\beta\Big(1 + \int_{\sigma_{min}}^{\sigma} A_j(s)^2\, d\log s\Big),
\end{aligned}
$$

(the lone 1 in the bracket is the last step, from $\sigma_{min}$ to 0).  The critic is this formula with learned
corrections of $\log A_j$ and $\log c_j$ and a learned constant, all tables over the noise level; at $\sigma = 0$ it is
$|x - \hat m|^2/(2d)$ exactly.  Its gradient in $x$ is what the ``stein`` estimator uses.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones.precond import Denoiser
from .clock import Clock, KarrasClock
from .encoder import ContextEncoder
from .module_files import load_module, save_module
from .problem import Observation
from .pyramid import BANDS, LevelTable, band_energies, combine

__all__ = [
    "DEFAULT_GUIDANCE",
    "Guidance",
    "PyramidCritic",
    "load_guidance",
    "price",
    "save_guidance",
    "shipped_guidance",
]

DEFAULT_GUIDANCE = "aid-faces64-mini"
KIND = "aid-guidance"


class Guidance(nn.Module):
    """The AID module: called as the mean of a policy, (t, x, observation, D) -> v.

    Args:
        resolution: side of the images, a multiple of 8, of 2^(bands - 1) and of ``coarse``.
        channels: colour channels.
        width: channels of the small network h.
        bands: of the Haar pyramid.
        coarse: h works at 1/coarse of the resolution.
        base: the frozen drift it corrects, ``"flow"`` or ``"projected"`` (`problem`).
        sigma_min: lowest positive noise level of the clock.
        sigma_max: highest.
        sigma_data: standard deviation of the data.

    Attributes:
        backbone: fingerprint of the backbone it was trained for; empty = any.
        facts: what is known of its training.

    Raises:
        ValueError: for a resolution that is no such multiple.
    """

    def __init__(
        self,
        resolution: int,
        channels: int = 3,
        width: int = 32,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        bands: int = BANDS,
        coarse: int = 4,
        base: str = "flow",
    ) -> None:
        super().__init__()
        multiple = math.lcm(2 ** (bands - 1), coarse)
        if resolution % multiple:
            raise ValueError(f"resolution is {resolution}; expected a multiple of {multiple}")
        self.coarse, self.base = coarse, base
        self.config: dict[str, Any] = dict(
            resolution=resolution, channels=channels, width=width,
            sigma_min=sigma_min, sigma_max=sigma_max, sigma_data=sigma_data,
            bands=bands, coarse=coarse, base=base,
        )  # fmt: skip
        self.backbone, self.facts = "", dict[str, Any]()
        self.clock: Clock = KarrasClock(sigma_min, sigma_max)
        self.sigma_data = sigma_data
        self.encoder = ContextEncoder(resolution, channels)
        self.gains = LevelTable(bands + 1, sigma_min, sigma_max)
        self.modulation = LevelTable(width, sigma_min, sigma_max)
        self.conv_in = nn.Conv2d(3 * channels + 1, width, 3, padding=1)
        self.conv_mid = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    @torch.no_grad()
    def observe(self, y: Tensor, mask: Tensor, class_labels: Tensor | None = None) -> Observation:
        """The observation with the encoder's guess filled in (no gradients): once an image, before sampling.

        Args:
            y: observed images (B, C, H, W).
            mask: (B, 1, H, W), 1 = known.
            class_labels: one-hot (B, n) for conditional backbones; the guidance does not look at them.
        """
        return Observation(y, mask, self.encoder(y, mask), class_labels)

    def forward(self, t: Tensor, x: Tensor, context: Observation, probe: Tensor) -> Tensor:
        """The correction v of the denoised image.

        Args:
            t: scalar time.
            x: states (B, C, H, W).
            context: the observation; without a guess it is made here, without gradients to the encoder.
            probe: D, the frozen drift's denoised images (B, C, H, W).

        Returns:
            v, (B, C, H, W), in image units.
        """
        sigma = self.clock.sigma(t)
        guess = context.guess if context.guess is not None else self.encoder(context.y, context.mask).detach()
        gains = self.gains(sigma)
        v = combine(guess - probe, gains[:-1], smooth=True) + gains[-1] * context.mask * (context.y - probe)
        c_in = 1 / (sigma**2 + self.sigma_data**2).sqrt()
        seen = (c_in * x, probe, guess, context.mask)
        coarse = torch.cat([F.avg_pool2d(z, self.coarse) for z in seen], dim=1).to(x.dtype)
        h = F.silu(self.conv_in(coarse)) * (1 + self.modulation(sigma)[:, None, None])
        h = self.conv_out(F.silu(self.conv_mid(h)))
        return v + F.interpolate(h, scale_factor=float(self.coarse), mode="bilinear")

    def parameter_count(self) -> int:
        """Number of weights, encoder included."""
        return sum(p.numel() for p in self.parameters())


def price(variance: Tensor, sigma: float, sigma_min: float, beta: float) -> Tensor:
    """c_j of the module's formula: the value of no control over the optimal one's, in one band.

    Args:
        variance: l_j, any shape.
        sigma: noise level; below ``sigma_min`` it counts as that.
        sigma_min: last positive level of the clock.
        beta: weight of the control cost.

    Returns:
        c_j > 1, of the same shape.
    """
    low, s2 = sigma_min**2, max(sigma, sigma_min) ** 2
    integral = 0.5 * math.log(s2 / low) - 0.5 * ((variance + s2) / (variance + low)).log()
    return 1 + (1 + integral) / beta


class PyramidCritic(nn.Module):
    """The critic of the module's formula; (t, x, observation, ignored) -> (B,).

    Args:
        encoder: gives the guess where the observation has none; trained by the critic's terminal condition.
        beta: of the problem.
        pixels: d.
        variances: l_j a band, per coordinate, (bands,), finest first (`training.band_variances`).
        clock: t -> sigma.
    """

    band_variances: Tensor

    def __init__(
        self, encoder: ContextEncoder, beta: float, pixels: int, variances: Tensor, clock: Clock | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.beta, self.pixels = encoder, beta, pixels
        self.clock = clock or KarrasClock()
        self.register_buffer("band_variances", variances.float())
        self.bands = len(variances)
        self.corrections = LevelTable(2 * self.bands + 1, self.clock.sigma_min, self.clock.sigma_max)

    def forward(self, t: Tensor, x: Tensor, context: Observation, probe: Tensor | None = None) -> Tensor:
        """V(sigma(t), x).

        Args:
            t: scalar time; at the end of the clock the value is the terminal cost with the guess as target.
            x: states (B, C, H, W).
            context: the observation; without a guess it is made here, with gradients to the encoder.
            probe: D, like ``x``; ignored.

        Returns:
            (B,).
        """
        guess = context.guess if context.guess is not None else self.encoder(context.y, context.mask)
        sigma = float(self.clock.sigma(t))
        if sigma <= 0:
            return 0.5 * (x - guess).square().flatten(1).sum(1) / self.pixels
        l = self.band_variances
        a = (l / (l + max(sigma, self.clock.sigma_min) ** 2)).sqrt()
        c = price(l, sigma, self.clock.sigma_min, self.beta)
        fix = self.corrections(sigma)
        n = self.bands
        a, c = a * fix[:n].exp(), c * fix[n : 2 * n].exp()
        energies = band_energies(combine(x, a) - guess, n)
        return 0.5 * (energies / c).sum(1) / self.pixels + fix[2 * n]


def save_guidance(path: str | os.PathLike[str], guidance: Guidance, weights: dict[str, Tensor] | None = None) -> None:
    """Write a guidance module atomically.

    Args:
        path: target, ``.safetensors``.
        guidance: gives configuration, fingerprint and facts.
        weights: tensors by name, in place of its own and of the same shapes, e.g. averaged ones.
    """
    save_module(path, KIND, guidance, guidance.config, weights)


def load_guidance(
    name_or_path: str | os.PathLike[str] = DEFAULT_GUIDANCE, device: torch.device | str = "cpu"
) -> Guidance:
    """Load a guidance module.

    Args:
        name_or_path: a shipped name (``"aid-faces64-mini"``) or a ``.safetensors`` file.
        device: where to put it.

    Raises:
        InputError: if the file is missing, truncated, or not a guidance file.
    """
    writer = "examples/train_guidance.py"
    return load_module(name_or_path, KIND, Guidance, DEFAULT_GUIDANCE, writer, device, noun="guidance")


def shipped_guidance(backbone: Denoiser, device: torch.device | str = "cpu") -> Guidance | None:
    """The guidance shipped for a backbone; ``None`` where there is none.

    Args:
        backbone: told by its fingerprint.
        device: where to put the module.
    """
    guidance = load_guidance(device=device)
    return guidance if guidance.backbone == backbone.fingerprint else None
