r"""The two U-Nets of EDM: ``SongUNet`` (DDPM++ and NCSN++ of Song et al. 2021) and ``DhariwalUNet`` (ADM).

Both are maps $F(x, c_{\mathrm{noise}}, \text{labels})$ on images, wrapped by a preconditioner (`precond`).  Layers are
kept in two ordered dictionaries, ``enc`` and ``dec``, under the names of the published checkpoints
(``64x64_conv``, ``32x32_down``, ``32x32_block0``, ``64x64_aux_norm``, ...).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Conv2d, FourierEmbedding, GroupNorm, Init, Linear, PositionalEmbedding, UNetBlock

__all__ = ["DhariwalUNet", "SongUNet"]


def _width(layer: nn.Module) -> int:
    assert isinstance(layer, Conv2d | UNetBlock)
    return layer.out_channels


def _drop_labels(labels: Tensor, p: float, training: bool) -> Tensor:
    """Zero whole label rows with probability p while training (classifier-free guidance)."""
    if training and p:
        labels = labels * (torch.rand(labels.shape[0], 1, device=labels.device) >= p).to(labels.dtype)
    return labels


class SongUNet(nn.Module):
    """DDPM++ (``positional``, ``standard``, ``standard``) or NCSN++ (``fourier``, ``residual``, ``standard``).

    Args:
        img_resolution: side of the images.
        in_channels: colour channels of the input.
        out_channels: colour channels of the output.
        label_dim: number of classes, 0 = unconditional.
        augment_dim: size of the augmentation vector, 0 = none.
        model_channels: base width.
        channel_mult: width multiplier of each resolution, finest first.
        channel_mult_emb: width multiplier of the conditioning vector.
        num_blocks: residual blocks a resolution.
        attn_resolutions: resolutions with self-attention.
        dropout: in the residual blocks.
        label_dropout: probability of dropping the class label while training.
        embedding_type: ``"positional"`` or ``"fourier"`` embedding of the noise level.
        channel_mult_noise: width multiplier of the noise embedding.
        encoder_type: ``"standard"``, ``"skip"`` or ``"residual"``.
        decoder_type: ``"standard"`` or ``"skip"``.
        resample_filter: FIR taps, (1, 1) or (1, 3, 3, 1).

    Raises:
        ValueError: for an unknown embedding, encoder or decoder type.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        _choose("embedding_type", embedding_type, ("positional", "fourier"))
        _choose("encoder_type", encoder_type, ("standard", "skip", "residual"))
        _choose("decoder_type", decoder_type, ("standard", "skip"))
        self.label_dropout = label_dropout
        emb = model_channels * channel_mult_emb
        noise = model_channels * channel_mult_noise
        init = Init("xavier_uniform")
        init_zero = Init("xavier_uniform", weight=1e-5)
        fir = tuple(resample_filter)
        block: dict[str, Any] = dict(
            emb_channels=emb, num_heads=1, dropout=dropout, skip_scale=math.sqrt(0.5), eps=1e-6,
            resample_filter=fir, resample_proj=True, adaptive_scale=False,
            init=init, init_zero=init_zero, init_attn=Init("xavier_uniform", weight=math.sqrt(0.2)),
        )  # fmt: skip

        positional = embedding_type == "positional"
        self.map_noise = PositionalEmbedding(noise, endpoint=True) if positional else FourierEmbedding(noise)
        self.map_label = Linear(label_dim, noise, init=init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise, bias=False, init=init) if augment_dim else None
        self.map_layer0 = Linear(noise, emb, init=init)
        self.map_layer1 = Linear(emb, emb, init=init)

        self.enc = nn.ModuleDict()
        width, aux = in_channels, in_channels
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            name = f"{res}x{res}"
            if level == 0:
                width = model_channels
                self.enc[f"{name}_conv"] = Conv2d(in_channels, width, 3, init=init)
            else:
                self.enc[f"{name}_down"] = UNetBlock(width, width, down=True, **block)
                if encoder_type == "skip":
                    self.enc[f"{name}_aux_down"] = Conv2d(aux, aux, 0, down=True, resample_filter=fir)
                    self.enc[f"{name}_aux_skip"] = Conv2d(aux, width, 1, init=init)
                if encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = Conv2d(
                        aux, width, 3, down=True, resample_filter=fir, fused_resample=True, init=init
                    )
                    aux = width
            for i in range(num_blocks):
                cin, width = width, model_channels * mult
                self.enc[f"{name}_block{i}"] = UNetBlock(cin, width, attention=res in attn_resolutions, **block)

        skips = [_width(layer) for name, layer in self.enc.items() if "aux" not in name]
        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            name = f"{res}x{res}"
            if level == len(channel_mult) - 1:
                self.dec[f"{name}_in0"] = UNetBlock(width, width, attention=True, **block)
                self.dec[f"{name}_in1"] = UNetBlock(width, width, **block)
            else:
                self.dec[f"{name}_up"] = UNetBlock(width, width, up=True, **block)
            for i in range(num_blocks + 1):
                cin, width = width + skips.pop(), model_channels * mult
                attention = i == num_blocks and res in attn_resolutions
                self.dec[f"{name}_block{i}"] = UNetBlock(cin, width, attention=attention, **block)
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < len(channel_mult) - 1:
                    self.dec[f"{name}_aux_up"] = Conv2d(out_channels, out_channels, 0, up=True, resample_filter=fir)
                self.dec[f"{name}_aux_norm"] = GroupNorm(width, eps=1e-6)
                self.dec[f"{name}_aux_conv"] = Conv2d(width, out_channels, 3, init=init_zero)

    def _embed(self, noise: Tensor, labels: Tensor | None, augment: Tensor | None) -> Tensor:
        # The checkpoints hold sines before cosines.
        emb = self.map_noise(noise)
        emb = emb.reshape(emb.shape[0], 2, -1).flip(1).reshape(emb.shape)
        if self.map_label is not None and labels is not None:
            labels = _drop_labels(labels, self.label_dropout, self.training)
            emb = emb + self.map_label(labels * math.sqrt(self.map_label.in_features))
        if self.map_augment is not None and augment is not None:
            emb = emb + self.map_augment(augment)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(
        self, x: Tensor, noise: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Scaled images (B, in_channels, H, W), c_noise (B,) -> (B, out_channels, H, W).

        Class labels: one-hot (B, label_dim) or (1, label_dim); augmentation labels (B, augment_dim); ``None`` = none.
        """
        emb = self._embed(noise, class_labels, augment_labels)
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            if "aux_down" in name:
                aux = layer(aux)
            elif "aux_skip" in name:
                x = skips[-1] = x + layer(aux)
            elif "aux_residual" in name:
                x = skips[-1] = aux = (x + layer(aux)) * math.sqrt(0.5)
            else:
                x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)

        out: Tensor | None = None
        head = x
        for name, layer in self.dec.items():
            if "aux_up" in name:
                out = layer(out)
            elif "aux_norm" in name:
                head = layer(x)
            elif "aux_conv" in name:
                head = layer(F.silu(head))
                out = head if out is None else head + out
            else:
                if x.shape[1] != layer.in_channels:
                    x = torch.cat([x, skips.pop()], dim=1)
                x = layer(x, emb)
        assert out is not None
        return out


class DhariwalUNet(nn.Module):
    """ADM U-Net: adaptive scale and shift, attention with 64 channels a head.

    Args:
        img_resolution: side of the images.
        in_channels: colour channels of the input.
        out_channels: colour channels of the output.
        label_dim: number of classes, 0 = unconditional.
        augment_dim: size of the augmentation vector, 0 = none.
        model_channels: base width.
        channel_mult: width multiplier of each resolution, finest first.
        channel_mult_emb: width multiplier of the conditioning vector.
        num_blocks: residual blocks a resolution.
        attn_resolutions: resolutions with self-attention.
        dropout: in the residual blocks.
        label_dropout: probability of dropping the class label while training.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.label_dropout = label_dropout
        emb = model_channels * channel_mult_emb
        init = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
        init_zero = Init(weight=0.0)
        block: dict[str, Any] = dict(
            emb_channels=emb, channels_per_head=64, dropout=dropout, init=init, init_zero=init_zero
        )
        self.map_noise = PositionalEmbedding(model_channels)
        self.map_augment = Linear(augment_dim, model_channels, bias=False, init=init_zero) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb, init=init)
        self.map_layer1 = Linear(emb, emb, init=init)
        label_init = Init(weight=math.sqrt(max(label_dim, 1)))
        self.map_label = Linear(label_dim, emb, bias=False, init=label_init) if label_dim else None

        self.enc = nn.ModuleDict()
        width = in_channels
        for level, mult in enumerate(channel_mult):
            res = img_resolution >> level
            name = f"{res}x{res}"
            if level == 0:
                width = model_channels * mult
                self.enc[f"{name}_conv"] = Conv2d(in_channels, width, 3, init=init)
            else:
                self.enc[f"{name}_down"] = UNetBlock(width, width, down=True, **block)
            for i in range(num_blocks):
                cin, width = width, model_channels * mult
                self.enc[f"{name}_block{i}"] = UNetBlock(cin, width, attention=res in attn_resolutions, **block)

        skips = [_width(layer) for layer in self.enc.values()]
        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            res = img_resolution >> level
            name = f"{res}x{res}"
            if level == len(channel_mult) - 1:
                self.dec[f"{name}_in0"] = UNetBlock(width, width, attention=True, **block)
                self.dec[f"{name}_in1"] = UNetBlock(width, width, **block)
            else:
                self.dec[f"{name}_up"] = UNetBlock(width, width, up=True, **block)
            for i in range(num_blocks + 1):
                cin, width = width + skips.pop(), model_channels * mult
                self.dec[f"{name}_block{i}"] = UNetBlock(cin, width, attention=res in attn_resolutions, **block)
        self.out_norm = GroupNorm(width)
        self.out_conv = Conv2d(width, out_channels, 3, init=init_zero)

    def forward(
        self, x: Tensor, noise: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """(B, in_channels, H, W), (B,) -> (B, out_channels, H, W); arguments as `SongUNet.forward`."""
        emb = self.map_noise(noise)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(_drop_labels(class_labels, self.label_dropout, self.training))
        emb = F.silu(emb)

        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for layer in self.dec.values():
            if x.shape[1] != layer.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = layer(x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))


def _choose(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(allowed)}")
