r"""Estimate the market, put the estimates into the formula of the optimal gain: what learning is compared with.

The returns of a stock, $\sigma(kh + \Delta W)$ a day in excess of the rate, give $\sigma k$ as their mean over h and
$\sigma^2$ as their variance over h.  In n years $\sigma k$ is known to $\sigma/\sqrt n$ and no method knows more; in
particular w, which rests on k, cannot be better than this.

With a state in drift and noise, increments of an exploring path are regressed on (Y, u), their squares, after the
fitted drift is taken away, on $(Y^2, Yu, u^2)$, with weights $1/(Y^2 + u^2)$ and its square.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .market import Goal, Market

__all__ = ["plug_in_linear", "plug_in_stocks"]

Array = NDArray[np.float64]


def plug_in_stocks(
    market: Market, goal: Goal, years: int, seeds: int, noise: np.random.Generator
) -> tuple[Array, Array]:
    """Gains and multipliers from daily returns of so many years.

    Args:
        market: K mean-variance problems.
        goal: x0 and z.
        years: of data.
        seeds: S data sets.
        noise: of the data; mean and variance are drawn from their exact laws.

    Returns:
        gain and w, (S, K) each.
    """
    days, h = years * market.steps, market.h
    drift = market.B + market.D * noise.standard_normal((seeds, 1)) / np.sqrt(days * h)
    variance = market.D**2 * noise.chisquare(days - 1, (seeds, 1)) / (days - 1)
    gain = -drift / (variance + drift**2 * h)
    return gain, goal.x0 + goal.gain / (1 - (1 + drift * gain * h) ** market.steps)


def plug_in_linear(market: Market, y: Array, u: Array) -> Array:
    """Gains from exploring paths.

    Args:
        market: gives the grid; its coefficients are estimated.
        y: states, (n + 1, K, M).
        u: actions, (n, K, M).

    Returns:
        (K,).
    """
    here, h = y[:-1], market.h
    weight = 1 / (here**2 + u**2 + 1e-12)
    rows = np.stack([here, u])
    gram = np.einsum("iakm,akm,jakm->kij", rows, weight, rows) * h
    moved = np.diff(y, axis=0)
    drift = np.linalg.solve(gram, np.einsum("iakm,akm,akm->ki", rows, weight, moved)[..., None])[..., 0]
    rest = moved - np.einsum("ki,iakm->akm", drift, rows) * h
    squares = np.stack([here**2, here * u, u**2])
    gram = np.einsum("iakm,akm,jakm->kij", squares, weight**2, squares)
    noise = np.linalg.solve(gram, np.einsum("iakm,akm,akm->ki", squares, weight**2, rest**2 / h)[..., None])[..., 0]
    return -(drift[:, 1] + 0.5 * noise[:, 1]) / np.maximum(noise[:, 2], 1e-6)
