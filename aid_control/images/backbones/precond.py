r"""Preconditioners: from a U-Net $F$ to a denoiser $D$ (Karras et al. 2022, table 1 and section 5).

$$
D(x; \sigma) = c_{\mathrm{skip}}(\sigma)\, x + c_{\mathrm{out}}(\sigma)\,
F(c_{\mathrm{in}}(\sigma)\, x;\; c_{\mathrm{noise}}(\sigma)).
$$

| class | $c_{\mathrm{skip}}$ | $c_{\mathrm{out}}$ | $c_{\mathrm{in}}$ | $c_{\mathrm{noise}}$ |
|---|---|---|---|---|
| VP | $1$ | $-\sigma$ | $1/\sqrt{\sigma^2 + 1}$ | $(M - 1)\, t(\sigma)$ |
| VE | $1$ | $\sigma$ | $1$ | $\log(\sigma/2)$ |
| iDDPM | $1$ | $-\sigma$ | $1/\sqrt{\sigma^2 + 1}$ | $M - 1 - \arg\min_j \lvert u_j - \sigma \rvert$ |
| EDM | $s^2/(\sigma^2 + s^2)$ | $\sigma s/\sqrt{\sigma^2 + s^2}$ | $1/\sqrt{\sigma^2 + s^2}$ | $\tfrac14 \log\sigma$ |

Here $s = \sigma_{\mathrm{data}}$, and $t(\sigma)$ is the time at which the variance-preserving process has the noise
level $\sigma$: $\sigma^2 = e^{\beta_d t^2/2 + \beta_{\min} t} - 1$.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .unets import DhariwalUNet, SongUNet

__all__ = ["PRECONDITIONERS", "Denoiser", "EDMPrecond", "VEPrecond", "VPPrecond", "iDDPMPrecond"]

UNETS: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}


class Denoiser(nn.Module):
    """A preconditioned network: ``net(x, sigma, class_labels=None) -> D``.

    Args:
        img_resolution: side of the images in pixels.
        img_channels: colour channels.
        label_dim: number of classes, 0 = unconditional.
        use_fp16: run the U-Net in half precision (on CUDA only).
        model_type: ``"SongUNet"`` or ``"DhariwalUNet"``.
        out_multiple: output channels of the U-Net over ``img_channels``.
        **model_kwargs: of the U-Net.

    Attributes:
        sigma_min: smallest noise level the network was trained for.
        sigma_max: largest.
        shape: (C, H, W) of an image.
        fingerprint: of the weights; empty until they are loaded (`registry.load_backbone`).

    Raises:
        ValueError: for an unknown ``model_type``, or a layer type that the U-Net does not know.
    """

    sigma_min: float = 0.0
    sigma_max: float = float("inf")
    fingerprint: str = ""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = False,
        model_type: str = "SongUNet",
        out_multiple: int = 1,
        **model_kwargs: Any,
    ) -> None:
        super().__init__()
        if model_type not in UNETS:
            raise ValueError(f"model_type is {model_type!r}; expected one of {', '.join(UNETS)}")
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.shape: tuple[int, ...] = (img_channels, img_resolution, img_resolution)
        self.label_dim, self.use_fp16 = label_dim, use_fp16
        self.model = UNETS[model_type](
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels * out_multiple,
            label_dim=label_dim,
            **model_kwargs,
        )

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor | float, Tensor | float, Tensor]:
        """The class's row of the module's table: sigma (B,) -> c_skip, c_out, c_in, c_noise, each (B,) or a number."""
        raise NotImplementedError  # pragma: no cover - abstract

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """Levels of any shape -> the nearest that the network knows (all, unless a class says otherwise)."""
        return torch.as_tensor(sigma)

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
            class_labels: one-hot (B, label_dim); ``None`` means the null class.
            augment_labels: (B, augment_dim) or ``None``.

        Returns:
            Denoised images like ``x``, in the precision of the weights.
        """
        weight = next(self.parameters())
        x = x.to(weight.dtype)
        sigma = torch.as_tensor(sigma, device=x.device, dtype=x.dtype).reshape(-1).expand(x.shape[0])
        if self.label_dim and class_labels is None:
            class_labels = x.new_zeros(1, self.label_dim)
        if self.label_dim and class_labels is not None:
            class_labels = class_labels.to(x.dtype).reshape(-1, self.label_dim)
        else:
            class_labels = None
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        half = self.use_fp16 and x.device.type == "cuda"
        with torch.autocast("cuda", torch.float16, enabled=half):
            out = self.model(_image(c_in) * x, c_noise.to(x.dtype), class_labels, augment_labels=augment_labels)
        return _image(c_skip) * x + _image(c_out) * out[:, : self.img_channels].to(x.dtype)


def _image(c: Tensor | float) -> Tensor | float:
    return c.reshape(-1, 1, 1, 1) if isinstance(c, Tensor) else c


class EDMPrecond(Denoiser):
    """EDM's preconditioning; errors as `Denoiser`.

    Args:
        sigma_min: smallest supported noise level.
        sigma_max: largest.
        sigma_data: standard deviation of the data.
        **kwargs: see `Denoiser`.
    """

    def __init__(
        self, sigma_min: float = 0.0, sigma_max: float = float("inf"), sigma_data: float = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.sigma_min, self.sigma_max, self.sigma_data = sigma_min, sigma_max, sigma_data

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        s2, d2 = sigma**2, self.sigma_data**2
        norm = (s2 + d2).sqrt()
        return d2 / (s2 + d2), sigma * self.sigma_data / norm, 1 / norm, sigma.log() / 4


class VPPrecond(Denoiser):
    """Variance preserving: noise of rate beta_min + beta_d t at time t in [0, 1]; errors as `Denoiser`.

    Args:
        beta_d: range of the noise rate.
        beta_min: its start.
        M: discrete steps of the original network.
        epsilon_t: smallest time.
        **kwargs: see `Denoiser`.
    """

    def __init__(
        self, beta_d: float = 19.9, beta_min: float = 0.1, M: int = 1000, epsilon_t: float = 1e-5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.beta_d, self.beta_min, self.M = beta_d, beta_min, M
        # float32 on purpose: the published bounds are float32 numbers
        self.sigma_min, self.sigma_max = (
            float(((0.5 * beta_d * t**2 + beta_min * t).exp() - 1).sqrt())
            for t in (torch.tensor(epsilon_t, device="cpu"), torch.tensor(1.0, device="cpu"))  # also under "meta"
        )

    def coefficients(self, sigma: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
        t = ((self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt() - self.beta_min) / self.beta_d
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1) * t


class VEPrecond(Denoiser):
    """Variance exploding; errors as `Denoiser`.

    Args:
        sigma_min: smallest supported noise level.
        sigma_max: largest.
        **kwargs: see `Denoiser`.
    """

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 100.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def coefficients(self, sigma: Tensor) -> tuple[float, Tensor, float, Tensor]:
        return 1.0, sigma, 1.0, (0.5 * sigma).log()


class iDDPMPrecond(Denoiser):  # noqa: N801 - the published name
    """Improved DDPM: a table of noise levels, and a network that also predicts a variance (ignored here).

    Args:
        C_1: lower clip of the ratio of successive alpha-bars.
        C_2: offset of the cosine schedule.
        M: number of positive levels.
        **kwargs: see `Denoiser`; errors are its, too.

    Attributes:
        u: noise levels (M + 1,), from the largest to 0.
    """

    u: Tensor

    def __init__(self, C_1: float = 0.001, C_2: float = 0.008, M: int = 1000, **kwargs: Any) -> None:
        super().__init__(out_multiple=2, **kwargs)
        self.M = M

        def alpha_bar(j: Tensor) -> Tensor:
            return (0.5 * math.pi * j / M / (C_2 + 1)).sin() ** 2

        u = torch.zeros(M + 1, device="cpu")  # also under "meta"
        for j in torch.arange(M, 0, -1, device="cpu"):
            u[j - 1] = ((u[j] ** 2 + 1) / (alpha_bar(j - 1) / alpha_bar(j)).clip(min=C_1) - 1).sqrt()
        self.register_buffer("u", u)
        self.sigma_min, self.sigma_max = float(u[M - 1]), float(u[0])

    def _nearest(self, sigma: Tensor) -> Tensor:
        u, s = self.u.float(), sigma.to(self.u.device, torch.float32).reshape(1, -1, 1)
        return torch.cdist(s, u.reshape(1, -1, 1)).argmin(2).reshape(sigma.shape)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        sigma = torch.as_tensor(sigma)
        return self.u[self._nearest(sigma)].to(sigma.dtype).to(sigma.device)

    def coefficients(self, sigma: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
        index = self._nearest(sigma).to(sigma.device)
        return 1.0, -sigma, 1 / (sigma**2 + 1).sqrt(), (self.M - 1 - index).to(sigma.dtype)


PRECONDITIONERS: dict[str, type[Denoiser]] = {
    "EDMPrecond": EDMPrecond,
    "VPPrecond": VPPrecond,
    "VEPrecond": VEPrecond,
    "iDDPMPrecond": iDDPMPrecond,
}
