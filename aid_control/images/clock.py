r"""Clocks: how the noise level falls while the sampler's time runs, $t \mapsto \sigma(t)$, $0 \le t \le T$.

EDM's probability-flow ODE $dx/d\sigma = (x - D(x; \sigma))/\sigma$ becomes, under a decreasing clock,

$$
\dot x = r(t)\,\big(D(x; \sigma(t)) - x\big), \qquad r(t) = -\dot\sigma(t)/\sigma(t) \ge 0 .
$$

Here $t$ is the fallen noise, $t = \sigma_{max} - \sigma$, so that $r = 1/\sigma$ and an Euler step from $\sigma$ to
$\sigma'$ is $x + (1 - \sigma'/\sigma)(D - x)$: the same step in every clock that visits the same levels.  A clock only
decides *which* levels a grid of $K$ steps visits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

__all__ = ["Clock", "DDPMClock", "GridClock", "KarrasClock", "LinearClock", "LogClock", "check_clock", "within"]

SPAN = 1e-9  # sigma_min over sigma_max


class Clock:
    """Base class: a noise range and the levels a grid visits.

    Attributes:
        sigma_min: last positive noise level.
        sigma_max: first noise level.
    """

    sigma_min: float
    sigma_max: float

    def level(self, s: Tensor) -> Tensor:
        """Noise level at s in [0, 1] (0 = sigma_max, 1 = sigma_min): any shape -> the same shape."""
        raise NotImplementedError  # pragma: no cover - abstract

    def sigmas(self, steps: int, rounding: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The float64 levels of a grid: ``steps`` positive ones, then 0.

        Args:
            steps: number of solver steps, at least 1.
            rounding: maps levels to those a network knows.

        Returns:
            (steps + 1,) decreasing levels; a single step goes from sigma_max to 0.

        Raises:
            ValueError: if ``steps`` is below 1.
        """
        if steps < 1:
            raise ValueError(f"steps is {steps}; a sampler needs at least 1")
        s = torch.arange(steps, dtype=torch.float64) / max(steps - 1, 1)
        levels = self.level(s)
        if rounding is not None:
            levels = rounding(levels)
        return torch.cat([levels, levels.new_zeros(1)])

    def grid(self, steps: int) -> Tensor:
        r"""Times $t_k = \sigma_{max} - \sigma_k$ of the grid of `sigmas`, unrounded, from 0 to $T = \sigma_{max}$.

        Args:
            steps: K, the number of solver steps, at least 1.

        Returns:
            (steps + 1,) increasing times, float64.
        """
        return self.sigma_max - self.sigmas(steps)

    def sigma(self, t: Tensor | float) -> Tensor:
        """Noise level sigma_max - t at a time in [0, sigma_max]: a number or any shape -> the same shape."""
        return self.sigma_max - torch.as_tensor(t)


@dataclass(frozen=True)
class KarrasClock(Clock):
    r"""EDM's grid: $\sigma^{1/\rho}$ falls linearly (Karras et al. 2022, equation 5).

    Args:
        sigma_min: last positive noise level.
        sigma_max: first noise level.
        rho: exponent; 7 is the published value, 1 is linear in sigma.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def level(self, s: Tensor) -> Tensor:
        lo, hi = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (hi + s * (lo - hi)) ** self.rho


def LinearClock(sigma_min: float = 0.002, sigma_max: float = 80.0) -> KarrasClock:  # noqa: N802 - reads as a class
    """Levels equally spaced in sigma (the plain reading of AID's paper): Karras' grid with rho = 1.

    Args:
        sigma_min: last positive noise level.
        sigma_max: first noise level.
    """
    return KarrasClock(sigma_min, sigma_max, rho=1.0)


def within(sigma_min: float, sigma_max: float, low: float = 0.002, high: float = 80.0, rho: float = 7.0) -> KarrasClock:
    """EDM's clock on [low, high], cut to the range a network was trained for.

    Args:
        sigma_min: lowest level of the network.
        sigma_max: highest level of the network.
        low: last positive level wanted.
        high: first level wanted.
        rho: exponent, as `KarrasClock`.
    """
    return KarrasClock(max(low, sigma_min), min(high, sigma_max), rho)


@dataclass(frozen=True)
class LogClock(Clock):
    """Levels equally spaced in log sigma.

    Args:
        sigma_min: last positive noise level.
        sigma_max: first noise level.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def level(self, s: Tensor) -> Tensor:
        return self.sigma_max * (self.sigma_min / self.sigma_max) ** s


@dataclass(frozen=True)
class GridClock(Clock):
    """Given levels: a grid of as many steps visits exactly these, any other interpolates them geometrically.

    Args:
        levels: decreasing positive noise levels, at least two.

    Raises:
        ValueError: for fewer levels, or levels that do not decrease to something positive.
    """

    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        levels = self.levels
        if len(levels) < 2 or not all(a > b > 0 for a, b in zip(levels, levels[1:], strict=False)):
            raise ValueError(f"levels are {levels}; expected at least two, decreasing, positive")
        if not math.isfinite(levels[0]):
            raise ValueError(f"levels are {levels}; expected finite numbers")

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        """The last level."""
        return self.levels[-1]

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        """The first level."""
        return self.levels[0]

    def level(self, s: Tensor) -> Tensor:
        known = torch.tensor(self.levels, dtype=torch.float64)
        place = s * (len(known) - 1)
        near = place.round()
        place = torch.where((place - near).abs() < 1e-9, near, place)  # k/(n-1) times n-1 may miss k by rounding
        i = place.floor().long().clamp(max=len(known) - 2)
        return known[i] * (known[i + 1] / known[i]) ** (place - i)


def DDPMClock(levels: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> GridClock:  # noqa: N802
    r"""The noise levels of DDPM's linear schedule (Ho et al. 2020), by default 157.4 to 0.0100.

    $\sigma_t^2 = (1 - \bar\alpha_t)/\bar\alpha_t$ with $\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$.

    Args:
        levels: T; a grid of fewer steps is spread over them geometrically.
        beta_min: first rate beta_1.
        beta_max: last rate beta_T; the rates between are equally spaced.
    """
    beta = torch.linspace(beta_min, beta_max, levels, dtype=torch.float64)
    abar = (1 - beta).cumprod(0)
    return GridClock(tuple(((1 - abar) / abar).sqrt().flip(0).tolist()))


def check_clock(clock: Clock) -> None:
    """Refuse noise levels that no sampler can use.

    Args:
        clock: noise range.

    Raises:
        InputError: unless 0 < sigma_min < sigma_max < infinity, and where sigma_min / sigma_max is below 1e-9: times
            are sigma_max - sigma in float64, which would not tell the last levels apart.
    """
    low, high = clock.sigma_min, clock.sigma_max
    if not 0 < low < high < math.inf:
        raise InputError(f"noise levels from {high:g} down to {low:g}; expected 0 < sigma_min < sigma_max < infinity")
    if low < SPAN * high:
        raise InputError(f"noise levels from {high:g} down to {low:g}; expected sigma_min of at least {SPAN * high:g}")
