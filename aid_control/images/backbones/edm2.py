r"""EDM2: the magnitude-preserving U-Net of Karras et al. (2024), its preconditioner and its published sizes.

$$
D(x; \sigma) = \frac{s^2}{\sigma^2 + s^2}\, x + \frac{\sigma s}{\sqrt{\sigma^2 + s^2}}\;
g\, F\Big(\frac{x}{\sqrt{\sigma^2 + s^2}};\ \tfrac14 \log\sigma,\ c\Big), \qquad s = \sigma_{\mathrm{data}},
$$

which is EDM's preconditioning (`precond`) for a network $g F$ and class $c$; $F$ is built of `mp_layers`, sees a
constant channel of ones in place of biases, and $g$ is a learned gain that starts at 0.  A head $u(\sigma)$ estimates
the logarithm of the loss at each noise level (`edm2_loss`).  Parameters are named as in the published state dicts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from .mp_layers import MPBlock, MPConv, MPFourier, mp_cat, mp_silu, mp_sum
from .precond import EDMPrecond

__all__ = ["PRESETS", "EDM2Precond", "EDM2UNet", "edm2_preset"]

PRESETS: dict[str, dict[str, Any]] = {
    "xxs": {"model_channels": 64, "dropout": 0.0},
    "xs": {"model_channels": 128, "dropout": 0.0},
    "s": {"model_channels": 192, "dropout": 0.0},
    "m": {"model_channels": 256, "dropout": 0.1},
    "l": {"model_channels": 320, "dropout": 0.1},
    "xl": {"model_channels": 384, "dropout": 0.1},
    "xxl": {"model_channels": 448, "dropout": 0.1},
}


class EDM2UNet(nn.Module):
    """The map g F(x, c_noise, labels) on images, with its gain.

    Args:
        img_resolution: side of the images, divisible by 2 for each level but one.
        img_channels: channels of input and output.
        label_dim: number of classes, 0 = unconditional.
        model_channels: base width.
        channel_mult: width multiplier of each resolution, finest first.
        channel_mult_noise: width multiplier of the noise embedding; ``None`` = that of the finest resolution.
        channel_mult_emb: width multiplier of the conditioning vector; ``None`` = the largest of ``channel_mult``.
        num_blocks: residual blocks a resolution.
        attn_resolutions: resolutions with self-attention.
        label_balance: share of the label in the conditioning vector.
        concat_balance: share of the skip connection in the decoder's concatenations.
        **block_kwargs: of `mp_layers.MPBlock`.

    Raises:
        ValueError: for a resolution that cannot be halved often enough, sizes below 1, or what `MPBlock` refuses.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        **block_kwargs: Any,
    ) -> None:
        super().__init__()
        levels = len(channel_mult)
        if levels < 1 or img_resolution < 1 or img_resolution % 2 ** (levels - 1):
            raise ValueError(f"img_resolution is {img_resolution}; expected a multiple of {2 ** max(levels - 1, 0)}")
        if min(img_channels, model_channels, num_blocks, *channel_mult) < 1 or label_dim < 0:
            raise ValueError(
                f"img_channels {img_channels}, model_channels {model_channels}, num_blocks {num_blocks}, channel_mult "
                f"{tuple(channel_mult)}, label_dim {label_dim}; expected at least 1, label_dim at least 0"
            )
        widths = [model_channels * mult for mult in channel_mult]
        noise = widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise
        emb = max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb
        self.label_balance, self.concat_balance = label_balance, concat_balance
        self.out_gain = nn.Parameter(torch.zeros(()))
        self.emb_fourier = MPFourier(noise)
        self.emb_noise = MPConv(noise, emb)
        self.emb_label = MPConv(label_dim, emb) if label_dim else None

        def block(cin: int, cout: int, flavor: str, mode: str = "keep", attention: bool = False) -> MPBlock:
            return MPBlock(cin, cout, emb, flavor, resample_mode=mode, attention=attention, **block_kwargs)

        self.enc = nn.ModuleDict()
        width, skips = img_channels + 1, []
        for level, wide in enumerate(widths):
            res = img_resolution >> level
            if level == 0:
                self.enc[f"{res}x{res}_conv"] = MPConv(width, wide, (3, 3))
                width = wide
            else:
                self.enc[f"{res}x{res}_down"] = block(width, width, "enc", "down")
            skips.append(width)
            for i in range(num_blocks):
                self.enc[f"{res}x{res}_block{i}"] = block(width, wide, "enc", attention=res in attn_resolutions)
                width = wide
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level, wide in reversed(list(enumerate(widths))):
            res = img_resolution >> level
            if level == levels - 1:
                self.dec[f"{res}x{res}_in0"] = block(width, width, "dec", attention=True)
                self.dec[f"{res}x{res}_in1"] = block(width, width, "dec")
            else:
                self.dec[f"{res}x{res}_up"] = block(width, width, "dec", "up")
            for i in range(num_blocks + 1):
                attention = res in attn_resolutions
                self.dec[f"{res}x{res}_block{i}"] = block(width + skips.pop(), wide, "dec", attention=attention)
                width = wide
        self.out_conv = MPConv(width, img_channels, (3, 3))

    def forward(self, x: Tensor, noise: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """The map on a batch.

        Args:
            x: scaled images (B, img_channels, H, W).
            noise: c_noise, (B,).
            class_labels: one-hot (B, label_dim) or (1, label_dim), zeros = the null class; ``None`` mixes in no label.

        Returns:
            (B, img_channels, H, W), in the precision of ``x``.
        """
        emb = self.emb_noise(self.emb_fourier(noise))
        if self.emb_label is not None and class_labels is not None:
            # one-hot vectors scaled to unit rms
            label = self.emb_label(class_labels * math.sqrt(class_labels.shape[1]))
            emb = mp_sum(emb, label.expand_as(emb), self.label_balance)
        emb = mp_silu(emb)

        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, MPBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = layer(x, emb)
        return self.out_conv(x, gain=self.out_gain)


class EDM2Precond(EDMPrecond):
    """The denoiser ``net(x, sigma, class_labels=None) -> D``, and its log-variance head.

    Args:
        img_resolution: side of the images (latents) in pixels.
        img_channels: their channels.
        label_dim: number of classes, 0 = unconditional.
        use_fp16: run the U-Net in half precision (on CUDA only).
        sigma_data: standard deviation of the data.
        logvar_channels: features of the log-variance head.
        **unet_kwargs: of `EDM2UNet`.

    Raises:
        ValueError: for sizes that `EDM2UNet` refuses.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = True,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        **unet_kwargs: Any,
    ) -> None:
        # Not EDMPrecond.__init__: the published names call the network "unet", and it takes other arguments.
        nn.Module.__init__(self)
        self.img_resolution, self.img_channels = img_resolution, img_channels
        self.shape = (img_channels, img_resolution, img_resolution)
        self.label_dim, self.use_fp16, self.sigma_data = label_dim, use_fp16, sigma_data
        self.unet = EDM2UNet(img_resolution, img_channels, label_dim, **unet_kwargs)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1)

    def logvar(self, sigma: Tensor | float) -> Tensor:
        """The head u(sigma): positive noise levels (B,) or a scalar -> (B, 1, 1, 1)."""
        weight = self.logvar_linear.weight
        sigma = torch.as_tensor(sigma, device=weight.device, dtype=weight.dtype).reshape(-1)
        return self.logvar_linear(self.logvar_fourier(sigma.log() / 4)).reshape(-1, 1, 1, 1)

    def _labels(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if not self.label_dim:
            return None
        if labels is None:
            return x.new_zeros(1, self.label_dim)
        if labels.shape[-1:] != (self.label_dim,) or labels.numel() not in (self.label_dim, len(x) * self.label_dim):
            raise InputError(
                f"class_labels of shape {tuple(labels.shape)} for {len(x)} images; expected one-hot "
                f"({len(x)}, {self.label_dim})"
            )
        return labels.to(x).reshape(-1, self.label_dim)

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
            sigma: positive noise level, a scalar or (B,).
            class_labels: one-hot (B, label_dim) or (label_dim,); ``None`` means the null class.
            augment_labels: of any shape, ignored: EDM2 is trained without augmentation.

        Returns:
            Denoised images like ``x``, in the precision of the weights.

        Raises:
            InputError: for images, noise levels or labels that do not fit.
        """
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            raise InputError(f"images of shape {tuple(x.shape)}; expected (B, {', '.join(map(str, self.shape))})")
        x = x.to(self.logvar_linear.weight.dtype)
        sigma = torch.as_tensor(sigma, device=x.device, dtype=x.dtype).reshape(-1)
        if len(sigma) not in (1, len(x)):
            raise InputError(f"sigma holds {len(sigma)} levels for {len(x)} images; expected 1 or {len(x)}")
        c_skip, c_out, c_in, c_noise = (c.expand(len(x)) for c in self.coefficients(sigma))
        c_skip, c_out, c_in = (c.reshape(-1, 1, 1, 1) for c in (c_skip, c_out, c_in))
        half = self.use_fp16 and x.device.type == "cuda"
        # The layers follow the precision of the image; the embedding stays in that of the weights.
        inner = (c_in * x).to(torch.float16 if half else x.dtype)
        return c_skip * x + c_out * self.unet(inner, c_noise, self._labels(class_labels, x)).to(x.dtype)


def edm2_preset(
    name: str, img_resolution: int = 64, img_channels: int = 4, label_dim: int = 1000, **kwargs: Any
) -> EDM2Precond:
    """A network of a published size, with random weights.

    Args:
        name: one of `PRESETS`.
        img_resolution: side of the images (64 for the published latents and pixels alike).
        img_channels: 4 for latents, 3 for pixels.
        label_dim: number of classes.
        **kwargs: further arguments of `EDM2Precond`, or others in place of the preset's.

    Returns:
        The denoiser, in training mode.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in PRESETS:
        raise ValueError(f"preset is {name!r}; expected one of {', '.join(PRESETS)}")
    return EDM2Precond(img_resolution, img_channels, label_dim, **(PRESETS[name] | kwargs))
