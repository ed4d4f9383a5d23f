r"""Rates of convergence with honest intervals: a line through (log n, log y_n) in a window, and its bootstrap.

For y averaged over seeds the least-squares slope is that of $\log \bar y_n$ on $\log n$ over the recorded n of the
window.  The points of one run are far from independent, so the line's own standard error means nothing; what is
resampled is *seeds*: each replicate averages a bootstrap sample of them and fits again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Slope", "loglog_slope"]


@dataclass(frozen=True)
class Slope:
    """A fitted power law y = e^intercept n^slope.

    Attributes:
        slope: the exponent.
        low: lower end of its 95 % bootstrap interval over seeds.
        high: upper end.
        intercept: log y at n = 1.
        window: first and last n of the fit.
        seeds: how many were averaged.
    """

    slope: float
    low: float
    high: float
    intercept: float
    window: tuple[float, float]
    seeds: int


def _fit(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Slopes and intercepts of lines through (x, y_r), rows r of y."""
    centred = x - x.mean()
    slope = y @ centred / (centred @ centred)
    return slope, y.mean(1) - slope * x.mean()


def loglog_slope(
    n: NDArray[np.float64], y: NDArray[np.float64], window: tuple[float, float], resamples: int = 2000, seed: int = 0
) -> Slope:
    """Fit a power law to the mean over seeds.

    Args:
        n: (K,) positive.
        y: (K, S) non-negative, one column a seed; its mean over seeds must be positive in the window.
        window: n of the first and last point used.
        resamples: of the seeds.
        seed: of the resampling.

    Returns:
        The slope, its interval, its window.

    Raises:
        ValueError: for fewer than three points in the window, or a mean that is not positive.
    """
    inside = (n >= window[0]) & (n <= window[1])
    if inside.sum() < 3:
        raise ValueError(f"window is {window} and holds {int(inside.sum())} points; expected at least 3")
    x, values = np.log(n[inside]), y[inside]
    if not (values.mean(1) > 0).all():
        raise ValueError("the mean over seeds is not positive everywhere in the window; expected positive values")
    slope, intercept = _fit(x, np.log(values.mean(1))[None])
    draws = np.random.default_rng(seed).multinomial(y.shape[1], np.full(y.shape[1], 1 / y.shape[1]), size=resamples)
    means = draws @ values.T / y.shape[1]
    with np.errstate(divide="ignore"):
        low, high = np.percentile(_fit(x, np.log(means))[0], [2.5, 97.5])
    edges = (float(n[inside][0]), float(n[inside][-1]))
    return Slope(float(slope[0]), float(low), float(high), float(intercept[0]), edges, y.shape[1])
