"""A median over repeats with its bootstrap interval; repeats that were lost count as infinite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Median", "median"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Median:
    """A median.

    Attributes:
        value: the median.
        low: lower end of its 95 % bootstrap interval over repeats.
        high: upper end.
        quartiles: of the repeats themselves.
        repeats: how many.
    """

    value: float
    low: float
    high: float
    quartiles: tuple[float, float]
    repeats: int

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return 0.5 * (self.high - self.low)

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


def median(values: Array, resamples: int = 2000, seed: int = 0) -> Median:
    """Of repeats, any of which may be infinite.

    Args:
        values: (S,), none of them not a number.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The median and its percentile interval.

    Raises:
        ValueError: for no values, or one that is not a number.
    """
    if values.size == 0 or np.isnan(values).any():
        raise ValueError(
            f"values are {values.size}, {int(np.isnan(values).sum())} not a number; expected some, all numbers"
        )
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975], method="nearest")
    lower, upper = np.quantile(values, [0.25, 0.75], method="nearest")
    return Median(float(np.median(values)), float(low), float(high), (float(lower), float(upper)), len(values))
