r"""Building blocks of the EDM U-Nets (Karras et al. 2022, appendix F; Song et al. 2021; Dhariwal & Nichol 2021).

A residual block maps features $x$ and a conditioning vector $e$ to

$$
h = \mathrm{conv}_0(\mathrm{silu}(\mathrm{gn}_0(x))), \qquad
\mathrm{out} = c\,\big(\mathrm{conv}_1(\mathrm{silu}(\mathrm{modulate}(\mathrm{gn}_1(h), e))) + \mathrm{skip}(x)\big),
$$

optionally followed by self-attention with the same scaled residual form.  Parameter names are those of
the published checkpoints, so that a state dict loads with strict keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Conv2d", "FourierEmbedding", "GroupNorm", "Init", "Linear", "PositionalEmbedding", "UNetBlock"]


class Init:
    """A weight initialiser: uniform, fan-in (kaiming) or fan-average (xavier), times a gain.

    Args:
        mode: ``"xavier_uniform"`` or ``"kaiming_uniform"``.
        weight: gain of the weights.
        bias: gain of the biases (0 = start at zero).
    """

    def __init__(self, mode: str = "kaiming_uniform", weight: float = 1.0, bias: float = 0.0) -> None:
        self.mode, self.weight, self.bias = mode, weight, bias

    def __call__(self, shape: Sequence[int], fan_in: int, fan_out: int, gain: float) -> nn.Parameter:
        fan = {"xavier_uniform": (fan_in + fan_out) / 2, "kaiming_uniform": fan_in}[self.mode]
        return nn.Parameter((torch.rand(*shape) * 2 - 1) * math.sqrt(3 / fan) * gain)


class Linear(nn.Module):
    """Affine map (B, in_features) -> (B, out_features); ``init`` is `Init` by default."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, init: Init | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        init = init or Init()
        fans = (in_features, out_features)
        self.weight = init((out_features, in_features), *fans, gain=init.weight)
        self.bias = init((out_features,), *fans, gain=init.bias) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) -> (B, out_features)."""
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """Convolution with optional 2x up- or down-sampling by a separable FIR filter.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: side of the kernel; 0 means resampling only (no weights).
        up: double the resolution before the convolution.
        down: halve the resolution before the convolution.
        resample_filter: taps of the one-dimensional filter.
        fused_resample: when down-sampling, convolve first and filter after (NCSN++'s residual encoder);
            when up-sampling, share the padding between the two.
        init: weight initialiser.

    Raises:
        ValueError: if ``up`` and ``down`` are both set.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused_resample: bool = False,
        init: Init | None = None,
    ) -> None:
        super().__init__()
        if up and down:
            raise ValueError("a convolution cannot sample up and down at once")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.up, self.down, self.fused_resample = up, down, fused_resample
        init = init or Init()
        fans = (in_channels * kernel**2, out_channels * kernel**2)
        shape = (out_channels, in_channels, kernel, kernel)
        self.weight = init(shape, *fans, gain=init.weight) if kernel else None
        self.bias = init((out_channels,), *fans, gain=init.bias) if kernel else None
        taps = torch.as_tensor(resample_filter, dtype=torch.float32)
        taps = torch.outer(taps, taps)[None, None] / taps.sum() ** 2
        self.register_buffer("resample_filter", taps if up or down else None)

    def _filter(self, x: Tensor, padding: int) -> Tensor:
        """Depth-wise FIR filter with stride 2, forwards (down) or transposed (up)."""
        assert self.resample_filter is not None
        channels = x.shape[1]
        taps = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, taps * 4, stride=2, padding=padding, groups=channels)
        return F.conv2d(x, taps, stride=2, padding=padding, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H', W'), twice (up), half (down) or the same size."""
        w_pad = 0 if self.weight is None else self.weight.shape[-1] // 2
        f_pad = 0 if self.resample_filter is None else (self.resample_filter.shape[-1] - 1) // 2
        if self.fused_resample and self.weight is not None and (self.up or self.down):
            if self.up:
                x = self._filter(x, max(f_pad - w_pad, 0))
                x = F.conv2d(x, self.weight, padding=max(w_pad - f_pad, 0))
            else:
                x = self._filter(F.conv2d(x, self.weight, padding=w_pad + f_pad), 0)
        else:
            if self.up or self.down:
                x = self._filter(x, f_pad)
            if self.weight is not None:
                return F.conv2d(x, self.weight, self.bias, padding=w_pad)
        return x if self.bias is None else x + self.bias[:, None, None]


class GroupNorm(nn.Module):
    """Group normalisation with an affine map a channel.

    Args:
        channels: channels of the input, a multiple of the number of groups.
        groups: at most so many groups.
        min_channels: at least so many channels a group.
        eps: added to the variance.
    """

    def __init__(self, channels: int, groups: int = 32, min_channels: int = 4, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.eps = min(groups, channels // min_channels), eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, channels, H, W)."""
        return F.group_norm(x, self.groups, self.weight, self.bias, self.eps)


class PositionalEmbedding(nn.Module):
    """Cosines, then sines, of ``x`` at geometrically spaced frequencies: (B,) -> (B, channels).

    Args:
        channels: features, an even number.
        max_positions: the frequencies fall from 1 to 1 / ``max_positions``.
        endpoint: whether the last frequency is that end, or would be the next.
    """

    def __init__(self, channels: int, max_positions: int = 10000, endpoint: bool = False) -> None:
        super().__init__()
        self.channels, self.max_positions, self.endpoint = channels, max_positions, endpoint

    def forward(self, x: Tensor) -> Tensor:
        """(B,) -> (B, channels)."""
        half = self.channels // 2
        exponent = torch.arange(half, dtype=torch.float32, device=x.device) / (half - int(self.endpoint))
        freqs = (1 / self.max_positions) ** exponent
        angle = torch.outer(x, freqs.to(x.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines, then sines, of 2 pi f x at fixed random frequencies f: (B,) -> (B, channels).

    Args:
        channels: features, an even number.
        scale: standard deviation of the frequencies.
    """

    freqs: Tensor

    def __init__(self, channels: int, scale: float = 16) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        """(B,) -> (B, channels)."""
        angle = torch.outer(x, (2 * math.pi * self.freqs).to(x.dtype))
        return torch.cat([angle.cos(), angle.sin()], dim=1)


class UNetBlock(nn.Module):
    """Residual block with noise conditioning and optional self-attention (see the module's formula).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        emb_channels: size of the conditioning vector.
        up: double the resolution.
        down: halve the resolution.
        attention: append self-attention.
        num_heads: heads; ``None`` means ``out_channels // channels_per_head``.
        channels_per_head: see ``num_heads``.
        dropout: dropout before the second convolution.
        skip_scale: the factor c of the residual sum.
        eps: of the group norms.
        resample_filter: taps for up and down.
        resample_proj: project the skip path when resampling, even where the channels agree.
        adaptive_scale: modulate by scale and shift (True) or by shift before the norm (False).
        init: of every layer but the following.
        init_zero: of the last convolution and the attention's projection.
        init_attn: of the attention's query-key-value map.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        num_heads: int | None = None,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        init: Init | None = None,
        init_zero: Init | None = None,
        init_attn: Init | None = None,
    ) -> None:
        super().__init__()
        init_zero = init_zero or Init(weight=0.0)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.num_heads = 0 if not attention else num_heads or out_channels // channels_per_head
        self.dropout, self.skip_scale, self.adaptive_scale = dropout, skip_scale, adaptive_scale
        fir = tuple(resample_filter)

        self.norm0 = GroupNorm(in_channels, eps=eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, up=up, down=down, resample_filter=fir, init=init)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), init=init)
        self.norm1 = GroupNorm(out_channels, eps=eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init=init_zero)
        self.skip: Conv2d | None = None
        if out_channels != in_channels or up or down:
            kernel = 1 if resample_proj or out_channels != in_channels else 0
            self.skip = Conv2d(in_channels, out_channels, kernel, up=up, down=down, resample_filter=fir, init=init)
        if self.num_heads:
            self.norm2 = GroupNorm(out_channels, eps=eps)
            self.qkv = Conv2d(out_channels, out_channels * 3, 1, init=init_attn or init)
            self.proj = Conv2d(out_channels, out_channels, 1, init=init_zero)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, in_channels, H, W), (B, emb_channels) -> (B, out_channels, H', W'), sizes as in `Conv2d.forward`."""
        residual = x if self.skip is None else self.skip(x)
        h = self.conv0(F.silu(self.norm0(x)))
        shift = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            scale, shift = shift.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h + shift))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = (h + residual) * self.skip_scale
        if self.num_heads:
            x = (self._attend(x) + x) * self.skip_scale
        return x

    def _attend(self, x: Tensor) -> Tensor:
        # The published layout interleaves query, key and value on the axis after the head's channels.
        qkv = self.qkv(self.norm2(x)).reshape(x.shape[0] * self.num_heads, -1, 3, x.shape[2] * x.shape[3])
        dtype = torch.promote_types(qkv.dtype, torch.float32)  # half-precision logits would overflow
        # (3, n, 1, positions, channels), in this order in memory: what the fused kernels are fast on
        q, k, v = qkv.to(dtype).permute(2, 0, 3, 1).unsqueeze(2).contiguous()
        out = F.scaled_dot_product_attention(q, k, v).mT.to(qkv.dtype)
        return self.proj(out.reshape(x.shape))
