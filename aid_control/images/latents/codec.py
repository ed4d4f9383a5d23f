r"""Codecs: pictures in, latents out, and back.

A codec sees a picture $x$ in $[-1, 1]$ and gives, for every cell of ``factor`` x ``factor`` pixels, a Gaussian: its
*moments* are the raw mean $m$ and standard deviation $s$, stacked to $2C$ channels.  A latent is a draw, brought to the
scale on which diffusion models work:

$$
z = a\,(m + s\,\epsilon) + b, \qquad a = s_{\mathrm{final}}/s_{\mathrm{raw}}, \quad
b = m_{\mathrm{final}} - a\, m_{\mathrm{raw}},
$$

channel by channel, so that latents have mean $m_{\mathrm{final}}$ and deviation $s_{\mathrm{final}}$ over the data.
The standard normal $\epsilon$ belongs to the picture's seed and to nothing else; without seeds it is 0.

`StabilityCodec` is the encoder of EDM2's latent models.  Three things go wrong easily:

- EDM2 hands the VAE pixels in **[0, 1]**, although that VAE was trained on [-1, 1]; its constants, and so its models,
  are for latents made that way.  In [-1, 1] the same picture has other latents.  After decoding it clamps to [0, 1].
- These are the VAE's raw moments: diffusers' ``scaling_factor`` (0.18215) plays no part.
- The data sets hold the raw moments, not draws: a draw and the scale come anew each time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...noise import per_image_normal

__all__ = ["Codec", "StabilityCodec"]

KEY = 0x1A7E  # keeps a picture's latent noise apart from the sampler's noise of the same seed


class Codec(nn.Module):
    """Base class; a codec implements `raw_moments` and `raw_decode`.

    Args:
        raw_mean: m_raw, one a latent channel.
        raw_std: s_raw > 0.
        final_mean: m_final.
        final_std: s_final.
        factor: side of a cell in pixels.
        batch: pictures worked on at a time.

    Attributes:
        channels: latent channels C.
        image_channels: colour channels.
        scale: a, (C,).
        bias: b, (C,).

    Raises:
        ValueError: for a ``factor`` or ``batch`` below 1, or constants that `Codec.calibrate` refuses.
    """

    scale: Tensor
    bias: Tensor
    image_channels = 3

    def __init__(
        self,
        raw_mean: Sequence[float],
        raw_std: Sequence[float],
        final_mean: float = 0.0,
        final_std: float = 0.5,
        factor: int = 8,
        batch: int = 8,
    ) -> None:
        super().__init__()
        if factor < 1 or batch < 1:
            raise ValueError(f"factor is {factor}, batch {batch}; expected at least 1")
        self.channels, self.factor, self.batch = len(raw_mean), factor, batch
        self.final_mean, self.final_std = final_mean, final_std
        self.register_buffer("scale", torch.empty(0), persistent=False)
        self.register_buffer("bias", torch.empty(0), persistent=False)
        self.calibrate(raw_mean, raw_std)

    def calibrate(self, raw_mean: Sequence[float], raw_std: Sequence[float]) -> None:
        """Set the constants of the data.

        Args:
            raw_mean: m_raw, C numbers.
            raw_std: s_raw, C positive numbers.

        Raises:
            ValueError: for another number of them, or a deviation that is not positive.
        """
        if not raw_mean or not self.channels == len(raw_mean) == len(raw_std) or not min(raw_std) > 0:
            raise ValueError(f"raw_mean {raw_mean}, raw_std {raw_std}; expected a mean and a deviation > 0 a channel")
        scale = self.final_std / torch.tensor(raw_std, dtype=torch.float64)
        bias = self.final_mean - scale * torch.tensor(raw_mean, dtype=torch.float64)
        self.scale, self.bias = scale.to(self.scale), bias.to(self.bias)

    def raw_moments(self, images: Tensor) -> Tensor:
        """Moments of a few pictures in [-1, 1], unchecked: (B, 3, H, W) -> (B, 2C, h, w)."""
        raise NotImplementedError  # pragma: no cover - abstract

    def raw_decode(self, latents: Tensor) -> Tensor:
        """Pictures of a few raw latents, unchecked: (B, C, h, w) -> (B, 3, H, W), possibly outside [-1, 1]."""
        raise NotImplementedError  # pragma: no cover - abstract

    @torch.no_grad()
    def moments(self, images: Tensor) -> Tensor:
        """Raw mean and standard deviation.

        Args:
            images: (B, 3, H, W) in [-1, 1], H and W multiples of ``factor``.

        Returns:
            (B, 2C, h, w), h = H / factor, w = W / factor.

        Raises:
            InputError: for another shape, or numbers that are not finite.
        """
        shape = tuple(images.shape)
        wrong = len(shape) != 4 or shape[1] != self.image_channels or shape[2] % self.factor or shape[3] % self.factor
        if wrong or not images.numel():
            raise InputError(
                f"images of shape {shape}; expected (B, {self.image_channels}, H, W) with multiples of {self.factor}"
            )
        if not torch.isfinite(images).all():
            raise InputError("images hold NaN or infinity; expected numbers in [-1, 1]")
        return torch.cat([self.raw_moments(part) for part in torch.split(images, self.batch)])

    def draw(self, moments: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Latents z of moments.

        Args:
            moments: (B, 2C, h, w).
            seeds: one a picture; ``None`` takes the means.

        Returns:
            (B, C, h, w).

        Raises:
            InputError: for another shape, or another number of seeds.
        """
        if moments.dim() != 4 or moments.shape[1] != 2 * self.channels:
            raise InputError(f"moments of shape {tuple(moments.shape)}; expected (B, {2 * self.channels}, h, w)")
        raw, std = moments.chunk(2, dim=1)
        if seeds is not None:
            if len(seeds) != len(moments):
                raise InputError(f"{len(seeds)} seeds for {len(moments)} images; expected one an image")
            raw = raw + std * per_image_normal(seeds, tuple(raw.shape[1:]), KEY).to(raw)
        return raw * self._row(self.scale, raw) + self._row(self.bias, raw)

    def encode(self, images: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        """Latents of pictures in [-1, 1], (B, 3, H, W) -> (B, C, h, w): `moments`, then `draw`."""
        return self.draw(self.moments(images), seeds)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents.

        Args:
            latents: (B, C, h, w).

        Returns:
            (B, 3, H, W), clipped to [-1, 1].

        Raises:
            InputError: for another shape, or numbers that are not finite.
        """
        if latents.dim() != 4 or latents.shape[1] != self.channels or not latents.numel():
            raise InputError(f"latents of shape {tuple(latents.shape)}; expected (B, {self.channels}, h, w)")
        if not torch.isfinite(latents).all():
            raise InputError("latents hold NaN or infinity; expected finite numbers")
        raw = (latents - self._row(self.bias, latents)) / self._row(self.scale, latents)
        return torch.cat([self.raw_decode(part) for part in torch.split(raw, self.batch)]).clip(-1, 1)

    @staticmethod
    def _row(values: Tensor, like: Tensor) -> Tensor:
        return values.to(like).reshape(1, -1, 1, 1)


class StabilityCodec(Codec):
    """The Stability VAE with EDM2's constants (see the module).

    Args:
        source: folder with the VAE's ``config.json`` and weights, a hub name whose files are on this machine
            already (nothing is downloaded), or a ready ``AutoencoderKL``; read when first needed.
        batch: pictures worked on at a time.

    Raises:
        InputError: for a ready VAE of another factor or number of channels.
    """

    def __init__(
        self, source: str | os.PathLike[str] | nn.Module = "stabilityai/sd-vae-ft-mse", batch: int = 8
    ) -> None:
        super().__init__([5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28], final_std=0.5, batch=batch)
        self.source = "" if isinstance(source, nn.Module) else str(source)
        # in a list, so that the VAE's weights are no part of this module's state
        self._vae: list[Any] = [self._ready(source)] if isinstance(source, nn.Module) else []

    def vae(self) -> Any:
        """The VAE, read from ``source`` at the first call, on the codec's device.

        Raises:
            InputError: if diffusers is missing, or the VAE is not on this machine or does not fit.
        """
        if not self._vae:
            self._vae.append(self._ready(_load_vae(self.source)))
        return self._vae[0].to(self.scale.device)

    def _ready(self, vae: Any) -> Any:
        config = vae.config
        factor, channels = 2 ** (len(config.block_out_channels) - 1), config.latent_channels
        if (factor, channels) != (self.factor, self.channels):
            raise InputError(
                f"VAE of factor {factor} with {channels} latent channels; expected {self.factor} and {self.channels}"
            )
        return vae.eval().requires_grad_(False)

    def raw_moments(self, images: Tensor) -> Tensor:
        vae = self.vae()
        pixels = (images.to(vae.dtype) + 1) / 2
        found = vae.encode(pixels).latent_dist
        return torch.cat([found.mean, found.std], dim=1).to(images.dtype)

    def raw_decode(self, latents: Tensor) -> Tensor:
        vae = self.vae()
        pixels = vae.decode(latents.to(vae.dtype)).sample
        return 2 * pixels.to(latents.dtype) - 1


def _load_vae(source: str) -> Any:
    try:
        from diffusers import AutoencoderKL
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise InputError("the Stability VAE needs a package: install it with pip install diffusers") from error
    try:
        # from_pretrained asks the hub's server for the list of files of a name even with local_files_only
        folder = source if os.path.isdir(source) else snapshot_download(source, local_files_only=True)
        read: Callable[..., Any] = AutoencoderKL.from_pretrained
        return read(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{source}: no Stability VAE on this machine ({reason}); expected a folder with config.json and "
            "diffusion_pytorch_model.safetensors, or a hub name fetched before"
        ) from error
