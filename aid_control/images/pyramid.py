r"""The Haar pyramid: orthogonal bands of an image, cheap stand-ins for the eigenspaces of natural images.

$P_j$ replaces every block of $2^j \times 2^j$ pixels by its mean; $P_0$ is the identity, and after the last of them
comes 0.  These projections are nested, so the bands $(P_j - P_{j+1}) x$ are mutually orthogonal and add up to $x$.
On a Gaussian image model that is diagonal in them,
optimal guidance is diagonal too, with one gain a band and noise level.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BANDS", "LevelTable", "band_energies", "combine"]

BANDS = 6


def _means(x: Tensor, bands: int) -> list[Tensor]:
    """P_1 x .. P_{bands-1} x at their own resolution."""
    out = []
    for _ in range(bands - 1):
        x = F.avg_pool2d(x, 2)
        out.append(x)
    return out


def combine(x: Tensor, gains: Tensor, smooth: bool = False) -> Tensor:
    r"""Sum of bands with gains, $\sum_j g_j (P_j - P_{j+1})\, x$.

    Args:
        x: (B, C, H, W).
        gains: (bands,), finest first; the last one is for the coarsest mean.
        smooth: interpolate linearly between block means (no longer orthogonal, but without visible blocks).

    Returns:
        (B, C, H, W).
    """
    bands = len(gains)
    mode = "bilinear" if smooth else "nearest"
    # sum_j g_j (P_j - P_{j+1}) = g_0 + sum_{j>=1} (g_j - g_{j-1}) P_j, evaluated coarse to fine
    means = _means(x, bands)
    total: Tensor | None = None
    for j in range(bands - 1, 0, -1):
        term = (gains[j] - gains[j - 1]) * means[j - 1]
        total = term if total is None else term + F.interpolate(total, scale_factor=2.0, mode=mode)
    base = gains[0] * x
    return base if total is None else base + F.interpolate(total, scale_factor=2.0, mode=mode)


def band_energies(x: Tensor, bands: int = BANDS) -> Tensor:
    """Squared norms of the bands; they add up to $|x|^2$.

    Args:
        x: (B, C, H, W); H and W are multiples of 2^(bands - 1).
        bands: how many.

    Returns:
        (B, bands), finest first.
    """
    norms = [x.square().flatten(1).sum(1)]
    for j, mean in enumerate(_means(x, bands), start=1):
        norms.append(mean.square().flatten(1).sum(1) * 4**j)
    norms.append(torch.zeros_like(norms[0]))
    return torch.stack([norms[j] - norms[j + 1] for j in range(bands)], dim=1)


class LevelTable(nn.Module):
    """Learned functions of the noise level: piecewise linear in log sigma.

    Args:
        outputs: number of functions.
        sigma_min: first knot.
        sigma_max: last knot; outside, the functions are constant.
        knots: number of knots.
    """

    def __init__(self, outputs: int, sigma_min: float = 0.002, sigma_max: float = 80.0, knots: int = 16) -> None:
        super().__init__()
        self.low, self.high, self.knots = math.log(sigma_min), math.log(sigma_max), knots
        self.values = nn.Parameter(torch.zeros(knots, outputs))

    def forward(self, sigma: Tensor | float) -> Tensor:
        """The functions' values; all start at zero.

        Args:
            sigma: one noise level, a scalar; 0 counts as the first knot.

        Returns:
            (outputs,).
        """
        s = math.log(max(float(sigma), 1e-12))
        place = min(max((s - self.low) / (self.high - self.low), 0.0), 1.0) * (self.knots - 1)
        i = min(int(place), self.knots - 2)
        return torch.lerp(self.values[i], self.values[i + 1], place - i)
