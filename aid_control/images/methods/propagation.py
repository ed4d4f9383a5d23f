r"""LatentPaint's trained part: carries features from the known cells into the unknown ones (`latentpaint`).

With $h$ the mixed features (B, C, h, w), $m$ the known share of each of their cells, and $r$ the root mean square of an
image's $h$,

$$
h' = h + (1 - m)\, r\, P_\phi(h/r, m; \sigma) ,
$$

$P$ a 1x1 convolution to ``width`` channels, three residual 3x3 convolutions with dilation 1, 2, 4 (reach: 7 cells each
way, the whole of an 8x8 bottleneck), each scaled and shifted by an embedding of $\log\sigma$, and a 1x1 convolution
back whose weights start at zero: untrained, $h' = h$.  Cells that are known entirely are never changed.  The division
by $r$ makes $P$ fit networks whose features have any size.

The paper's module is described in words only; layers, widths and the form of the residual are ours.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InputError
from ..module_files import load_module, save_module

__all__ = ["DEFAULT_PROPAGATION", "Propagation", "load_propagation", "save_propagation"]

DEFAULT_PROPAGATION = "latentpaint-faces64-mini"
KIND = "latentpaint-propagation"
DILATIONS = (1, 2, 4)
FREQUENCIES = (1.0, 2.0, 4.0, 8.0)  # of log(sigma)/4, which lies in about [-1.6, 1.1]


class Propagation(nn.Module):
    """The module: (features, known share, sigma) -> features.

    Args:
        channels: C, of the network's bottleneck.
        width: channels of the convolutions.

    Attributes:
        backbone: fingerprint of the network it was trained for; empty = any.
        facts: what is known of its training.

    Raises:
        InputError: for sizes below 1.
    """

    frequencies: Tensor

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        if channels < 1 or width < 1:
            raise InputError(f"{channels} channels, width {width}; expected at least 1")
        self.config: dict[str, int] = {"channels": channels, "width": width}
        self.backbone, self.facts = "", dict[str, Any]()
        self.register_buffer("frequencies", torch.tensor(FREQUENCIES), persistent=False)
        self.level = nn.Linear(2 * len(FREQUENCIES), width)
        self.modulation = nn.Linear(width, 2 * width * len(DILATIONS))
        self.conv_in = nn.Conv2d(channels + 1, width, 1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in DILATIONS)
        self.conv_out = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, h: Tensor, known: Tensor, sigma: Tensor) -> Tensor:
        """Spread what is known.

        Args:
            h: mixed features (B, C, h, w).
            known: m, (B, 1, h, w) in [0, 1].
            sigma: noise level, (B,).

        Returns:
            h', like ``h``; computed in the precision of the weights.
        """
        weight = self.conv_in.weight
        inner, m = h.to(weight.dtype), known.to(weight.dtype)
        size = inner.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clip(min=1e-8)
        phase = sigma.to(weight.dtype).log()[:, None] / 4 * self.frequencies
        level = F.silu(self.level(torch.cat([phase.sin(), phase.cos()], dim=1)))
        parts = self.modulation(level)[:, :, None, None].chunk(2 * len(DILATIONS), dim=1)
        z = self.conv_in(torch.cat([inner / size, m], dim=1))
        for i, conv in enumerate(self.convs):
            z = z + conv(F.silu(z * (1 + parts[2 * i]) + parts[2 * i + 1]))
        return h + ((1 - m) * size * self.conv_out(F.silu(z))).to(h.dtype)

    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(p.numel() for p in self.parameters())


def save_propagation(
    path: str | os.PathLike[str], module: Propagation, weights: dict[str, Tensor] | None = None
) -> None:
    """Write a module atomically.

    Args:
        path: target, ``.safetensors``.
        module: gives configuration, fingerprint and facts.
        weights: tensors by name, in place of its own and of the same shapes, e.g. averaged ones.
    """
    save_module(path, KIND, module, module.config, weights)


def load_propagation(
    name_or_path: str | os.PathLike[str] = DEFAULT_PROPAGATION, device: torch.device | str = "cpu"
) -> Propagation:
    """Load a module, frozen.

    Args:
        name_or_path: a shipped name (``"latentpaint-faces64-mini"``) or a ``.safetensors`` file.
        device: where to put it.

    Raises:
        InputError: if the file is missing, truncated, or holds no propagation module.
    """
    writer = "examples/train_baseline.py"
    return load_module(name_or_path, KIND, Propagation, DEFAULT_PROPAGATION, writer, device, noun="propagation module")
