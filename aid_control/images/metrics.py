r"""Paired quality of images in [-1, 1], over the whole image or a region such as the hole.

With weights $w$ (B, 1, H, W), a region's mean of $v$ is $\mathrm{mean}_w v = \sum w v / \sum w$, and

$$
\begin{aligned}
\mathrm{PSNR} &= 10 \log_{10} \frac{2^2}{\mathrm{mean}_w (a - b)^2}, \\
\mathrm{SSIM} &= \frac{(2 \mu_a \mu_b + c_1)(2 \sigma_{ab} + c_2)}
{(\mu_a^2 + \mu_b^2 + c_1)(\sigma_a^2 + \sigma_b^2 + c_2)}, \qquad
c_1 = (0.01 \cdot 2)^2, \; c_2 = (0.03 \cdot 2)^2,
\end{aligned}
$$

where the local moments are those of an 11 x 11 Gaussian window of deviation 1.5 (Wang et al. 2004), with $1/n$
covariances.  Computed in float64: $\sigma^2 = E[a^2] - \mu^2$ cancels badly in flat areas.  The numbers are those of
``skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)``.
The hole is the region ``1 - mask``.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import conv2d

from ..errors import InputError

__all__ = ["bootstrap", "psnr", "region_mean", "ssim", "ssim_map", "summary"]

PEAK = 2.0
SIGMA = 1.5
RADIUS = 5
C1 = (0.01 * PEAK) ** 2
C2 = (0.03 * PEAK) ** 2


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.ndim != 4:
        raise InputError(f"images of shapes {tuple(a.shape)} and {tuple(b.shape)}; expected two equal (B, C, H, W)")
    return a.double(), b.double()


def region_mean(values: Tensor, region: Tensor) -> Tensor:
    """Weighted mean over a region.

    Args:
        values: (B, H, W).
        region: weights (B or 1, 1, H, W).

    Returns:
        (B,); NaN where the region is empty.

    Raises:
        InputError: if the region does not fit the values.
    """
    if region.ndim != 4 or region.shape[1] != 1 or region.shape[2:] != values.shape[1:]:
        expected = f"(B, 1, {values.shape[1]}, {values.shape[2]})"
        raise InputError(f"region of shape {tuple(region.shape)}; expected {expected}")
    weights = region[:, 0].to(values).expand_as(values)
    return (weights * values).sum((1, 2)) / weights.sum((1, 2))


def psnr(a: Tensor, b: Tensor, region: Tensor | None = None) -> Tensor:
    """Peak signal-to-noise ratio in dB, peak 2.

    Args:
        a: images (B, C, H, W) in [-1, 1].
        b: images of the same shape.
        region: weights (B, 1, H, W); ``None`` is the whole image.

    Returns:
        (B,) float64; infinite where the images are equal, NaN where the region is empty.

    Raises:
        InputError: for unequal shapes, or a region that does not fit.
    """
    a, b = _pair(a, b)
    error = (a - b).square().mean(1)
    mse = error.mean((1, 2)) if region is None else region_mean(error, region)
    return 10 * torch.log10(PEAK**2 / mse)


def _blur(image: Tensor) -> Tensor:
    """Gaussian window means (B, C, H, W) -> (B, C, H, W); at the border ... c b a | a b c ..., as scipy."""
    b, c, h, w = image.shape
    offset = torch.arange(-RADIUS, RADIUS + 1, dtype=image.dtype, device=image.device)
    taps = torch.exp(-0.5 * (offset / SIGMA) ** 2)
    taps = taps / taps.sum()
    # torch's own "reflect" does not repeat the edge pixel, which would differ from scikit-image there.
    flat = image.reshape(b * c, 1, h, w)
    flat = torch.cat([flat[:, :, :RADIUS].flip(2), flat, flat[:, :, -RADIUS:].flip(2)], 2)
    flat = torch.cat([flat[..., :RADIUS].flip(3), flat, flat[..., -RADIUS:].flip(3)], 3)
    return conv2d(conv2d(flat, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1)).reshape(b, c, h, w)


def ssim_map(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity at every pixel, averaged over channels.

    Args:
        a: images (B, C, H, W) in [-1, 1], at least 11 x 11.
        b: images of the same shape.

    Returns:
        (B, H, W) float64.

    Raises:
        InputError: for unequal shapes, or fewer than 11 pixels a side.
    """
    a, b = _pair(a, b)
    if min(a.shape[2:]) < 2 * RADIUS + 1:
        raise InputError(f"images of {a.shape[3]}x{a.shape[2]} pixels; SSIM needs at least {2 * RADIUS + 1} a side")
    mean_a, mean_b = _blur(a), _blur(b)
    var_a = _blur(a * a) - mean_a**2
    var_b = _blur(b * b) - mean_b**2
    cov = _blur(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + C1) * (2 * cov + C2)
    below = (mean_a**2 + mean_b**2 + C1) * (var_a + var_b + C2)
    return (above / below).mean(1)


def ssim(a: Tensor, b: Tensor, region: Tensor | None = None) -> Tensor:
    """Mean structural similarity.

    Args:
        a: images (B, C, H, W) in [-1, 1], at least 11 x 11.
        b: images of the same shape.
        region: weights (B, 1, H, W); ``None`` is all pixels at least 5 from the border, as in scikit-image.

    Returns:
        (B,) float64; NaN where the region is empty.

    Raises:
        InputError: as `ssim_map`, or for a region that does not fit.
    """
    values = ssim_map(a, b)
    if region is None:
        return values[:, RADIUS:-RADIUS, RADIUS:-RADIUS].mean((1, 2))
    return region_mean(values, region)


def summary(values: Tensor) -> dict[str, float]:
    """Mean and half-width of its 95 % normal interval, over the finite values.

    Args:
        values: any shape; infinite PSNRs and NaNs of empty regions are left out, and ``n`` shows it.

    Returns:
        ``mean``, ``ci95`` = 1.96 s / sqrt(n) with s the standard deviation (divisor n - 1), and ``n``; NaN where too
            few values are left to say (0; 1).
    """
    kept = values.double().flatten()
    kept = kept[kept.isfinite()]
    n = len(kept)
    spread = float(kept.std()) / n**0.5 if n > 1 else float("nan")
    return {"mean": float(kept.mean()) if n else float("nan"), "ci95": 1.96 * spread, "n": n}


def bootstrap(values: Tensor, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean and its 95 % percentile bootstrap interval; for paired comparisons pass the differences.

    Args:
        values: one number an image, any shape, finite.
        resamples: of the images.
        seed: of the resampling.

    Returns:
        Mean, lower end, upper end; without an interval (NaN) for a single value.

    Raises:
        InputError: for no values, or values that are not finite.
    """
    v = values.double().flatten().numpy()
    if not np.isfinite(v).all() or len(v) == 0:
        raise InputError(f"{int((~np.isfinite(v)).sum())} of {len(v)} values are not finite; expected numbers")
    if len(v) < 2 or np.ptp(v) == 0:
        edge = float("nan") if len(v) < 2 else float(v[0])
        return float(v.mean()), edge, edge
    found = stats.bootstrap((v,), np.mean, n_resamples=resamples, method="percentile", vectorized=True, rng=seed)
    interval = found.confidence_interval
    return float(v.mean()), float(interval.low), float(interval.high)
