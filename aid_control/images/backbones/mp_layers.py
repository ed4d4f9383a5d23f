r"""Magnitude-preserving layers of EDM2.

The source is Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", section 2 and
appendix B.  Every operation keeps the expected magnitude of what flows through it: inputs of unit variance that are
uncorrelated give outputs of unit variance, without normalisation layers that learn.

$$
\begin{aligned}
\mathrm{silu}_{mp}(x) &= \mathrm{silu}(x) / 0.596, \qquad 0.596^2 \approx E[\mathrm{silu}(n)^2],\; n \sim N(0,1) \\
\mathrm{sum}_{mp}(a, b; t) &= \frac{(1-t)\,a + t\,b}{\sqrt{(1-t)^2 + t^2}} \\
\mathrm{cat}_{mp}(a, b; t) &= \sqrt{\frac{N_a + N_b}{(1-t)^2 + t^2}}\;
\Big[\tfrac{1-t}{\sqrt{N_a}}\,a,\; \tfrac{t}{\sqrt{N_b}}\,b\Big] \\
\mathrm{fourier}_{mp}(x) &= \sqrt 2\,\cos(2\pi (f x + \varphi)), \qquad f \sim N(0, 1),\; \varphi \sim U(0, 1) \\
\mathrm{conv}_{mp}(x) &= \frac{g\,\hat w}{\sqrt{\mathrm{fan}}} * x, \qquad \hat w = w / \mathrm{rms}(w)
\text{ for each output channel.}
\end{aligned}
$$

*Forced normalisation.*  The output depends on the direction of $w$ alone, so that gradients are orthogonal to $w$
and every optimiser step lengthens it, which slows learning down.  In training mode a forward pass therefore
first replaces $w$ itself by its normalised value.  In evaluation mode nothing is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MPBlock", "MPConv", "MPFourier", "mp_cat", "mp_silu", "mp_sum", "normalise", "resample"]

EPS = 1e-4  # of the published norm; the golden numbers depend on it


def normalise(x: Tensor, dim: int | Sequence[int] | None = None, eps: float = EPS) -> Tensor:
    """Scale ``x`` to unit root mean square over ``dim``.

    Args:
        x: of any shape, one dimension or more.
        dim: dimensions of one vector; ``None`` = all but the first.
        eps: added to the root mean square, so that zeros stay zeros.

    Returns:
        Of the shape and precision of ``x``.
    """
    axes = tuple(range(1, x.dim())) if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)
    # squares of half-precision activations (up to 256) overflow
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=axes, keepdim=True)
    rms = norm * math.sqrt(norm.numel() / max(x.numel(), 1))
    return x / (rms + eps).to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    """x sigmoid(x) / 0.596, any shape -> the same; of unit second moment on standard normal inputs."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    """Weighted sum; of unit variance where ``a`` and ``b`` are, and uncorrelated.

    Args:
        a: of any shape.
        b: of the same shape.
        t: share of ``b``, in [0, 1].

    Returns:
        ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2), of their shape.
    """
    return torch.lerp(a, b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float = 0.5, dim: int = 1) -> Tensor:
    """Concatenation in which ``b`` contributes t / (1 - t) times the norm of ``a``, whatever their widths.

    Args:
        a: of any shape, e.g. (B, N_a, H, W).
        b: of the same shape but in ``dim``.
        t: share of ``b``, in [0, 1].
        dim: dimension that is concatenated.

    Returns:
        For example (B, N_a + N_b, H, W); of unit mean square where both are.
    """
    scale = math.sqrt(a.shape[dim] + b.shape[dim]) / math.hypot(1 - t, t)
    share_a, share_b = (1 - t) / math.sqrt(a.shape[dim]), t / math.sqrt(b.shape[dim])
    return torch.cat([scale * share_a * a, scale * share_b * b], dim)


def resample(x: Tensor, mode: str = "keep", taps: Sequence[float] = (1, 1)) -> Tensor:
    """Keep, halve or double the resolution by a separable FIR filter with an even number of taps.

    Args:
        x: (B, C, H, W), H and W even for ``"down"``.
        mode: ``"keep"``, ``"down"`` or ``"up"``.
        taps: one-dimensional filter; (1, 1) is a block mean, transposed a repetition.

    Returns:
        (B, C, H, W), (B, C, H/2, W/2) or (B, C, 2H, 2W).
    """
    if mode == "keep":
        return x
    if tuple(taps) == (1, 1):
        return F.avg_pool2d(x, 2) if mode == "down" else F.interpolate(x, scale_factor=2.0, mode="nearest")
    line = torch.as_tensor(taps, dtype=x.dtype, device=x.device)
    line = line / line.sum()
    kernel = torch.outer(line, line).expand(x.shape[1], 1, -1, -1)
    padding = (len(taps) - 1) // 2
    if mode == "down":
        return F.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=x.shape[1])


class MPFourier(nn.Module):
    """Cosines of ``x`` at fixed random frequencies and phases: (B,) -> (B, channels).

    Args:
        channels: features.
        bandwidth: standard deviation of the frequencies.
    """

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * bandwidth * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B,) -> (B, channels), in the precision of ``x``."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        angle = torch.outer(x.to(dtype), self.freqs.to(dtype)) + self.phases.to(dtype)
        return (math.sqrt(2) * angle.cos()).to(x.dtype)


class MPConv(nn.Module):
    """Convolution without bias, or linear map, with normalised weights (see the module).

    In training mode a forward pass writes to the weights: run the backward pass before the next forward.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel: sides of the kernel, e.g. (3, 3); () is a linear map of (B, in_channels).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[int] = ()) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Apply.

        Args:
            x: (B, in_channels) for a linear map, else (B, in_channels, H, W).
            gain: scale of the output, a number or a 0-d tensor.

        Returns:
            (B, out_channels) or, for odd kernels, (B, out_channels, H, W), in the precision of ``x``.
        """
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalise(self.weight))
        fan = self.weight[0].numel()
        weight = (normalise(self.weight) * (gain / math.sqrt(fan))).to(x.dtype)
        if weight.dim() == 2:
            return x @ weight.T
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class MPBlock(nn.Module):
    r"""Residual block with noise conditioning and optional cosine attention.

    $$
    \begin{aligned}
    x &\leftarrow \mathrm{skip}(\mathrm{resample}(x)) / \mathrm{rms}_{\mathrm{channels}} \quad \text{(encoder)} \\
    y &= \mathrm{conv}_1\big(\mathrm{silu}(\mathrm{conv}_0(\mathrm{silu}(x)) (1 + g\,\mathrm{linear}(e)))\big) \\
    x &\leftarrow \mathrm{sum}_{mp}(x, y; b_{\mathrm{res}}) \\
    x &\leftarrow \mathrm{sum}_{mp}(x, \mathrm{attention}(x); b_{\mathrm{attn}}), \quad
    \text{clipped to } [-a, a].
    \end{aligned}
    $$

    Here $b_{\mathrm{res}}$, $b_{\mathrm{attn}}$ and $a$ are ``res_balance``, ``attn_balance`` and ``clip_act``.
    A decoder's block resamples first, does not normalise, and applies skip, a 1x1 convolution where the widths
    differ, in the residual sum only: its first convolution sees all channels of the concatenation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        emb_channels: size of the conditioning vector e.
        flavor: ``"enc"`` or ``"dec"``.
        resample_mode: ``"keep"``, ``"down"`` or ``"up"``.
        resample_filter: taps.
        attention: append self-attention (none where the block is narrower than one head).
        channels_per_head: width of an attention head.
        dropout: before the second convolution.
        res_balance: share of the residual branch.
        attn_balance: share of the attention branch.
        clip_act: bound of the output, ``None`` = none.

    Raises:
        ValueError: for an unknown flavor or mode, an odd filter, or heads that do not divide the channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        flavor: str = "enc",
        resample_mode: str = "keep",
        resample_filter: Sequence[float] = (1, 1),
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256,
    ) -> None:
        super().__init__()
        if flavor not in ("enc", "dec"):
            raise ValueError(f"flavor is {flavor!r}; expected enc or dec")
        if resample_mode not in ("keep", "down", "up"):
            raise ValueError(f"resample_mode is {resample_mode!r}; expected keep, down or up")
        if len(resample_filter) % 2 or sum(resample_filter) == 0:
            raise ValueError(f"resample_filter is {tuple(resample_filter)}; expected an even number of taps, sum not 0")
        if channels_per_head < 1:
            raise ValueError(f"channels_per_head is {channels_per_head}; expected at least 1")
        self.num_heads = out_channels // channels_per_head if attention else 0
        if self.num_heads and out_channels % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide {out_channels} channels; change channels_per_head")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.encoder, self.resample_mode, self.resample_filter = flavor == "enc", resample_mode, tuple(resample_filter)
        self.dropout, self.res_balance, self.attn_balance, self.clip_act = dropout, res_balance, attn_balance, clip_act

        self.emb_gain = nn.Parameter(torch.zeros(()))
        self.conv_res0 = MPConv(out_channels if self.encoder else in_channels, out_channels, (3, 3))
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, (3, 3))
        self.conv_skip = MPConv(in_channels, out_channels, (1, 1)) if in_channels != out_channels else None
        if self.num_heads:
            self.attn_qkv = MPConv(out_channels, 3 * out_channels, (1, 1))
            self.attn_proj = MPConv(out_channels, out_channels, (1, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(B, in_channels, H, W), (B, emb_channels) -> (B, out_channels, H', W'), sizes as in `resample`."""
        x = resample(x, self.resample_mode, self.resample_filter)
        if self.encoder:
            x = x if self.conv_skip is None else self.conv_skip(x)
            x = normalise(x, dim=1)
        y = self.conv_res0(mp_silu(x))
        scale = 1 + self.emb_linear(emb, gain=self.emb_gain)
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        y = self.conv_res1(F.dropout(y, self.dropout, self.training))
        if not self.encoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.res_balance)
        if self.num_heads:
            x = mp_sum(x, self._attend(x), self.attn_balance)
        return x if self.clip_act is None else x.clip(-self.clip_act, self.clip_act)

    def _attend(self, x: Tensor) -> Tensor:
        # The published layout interleaves query, key and value on the axis after the head's channels.
        wide, positions = x.shape[1] // self.num_heads, x.shape[2] * x.shape[3]
        qkv = self.attn_qkv(x).reshape(x.shape[0], self.num_heads, wide, 3, positions)
        # Of unit rms, so that logits are sqrt(channels of a head) times a cosine, and bounded.
        q, k, v = (part.mT for part in normalise(qkv, dim=2).unbind(3))
        out = F.scaled_dot_product_attention(q, k, v)
        return self.attn_proj(out.mT.reshape(x.shape))
