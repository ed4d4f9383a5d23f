r"""Years of many markets at once: exploring, $u = \varphi Y + \sqrt{v_k}\,\xi_k$, and executing, $u = \varphi Y$.

Both are steps affine in Y,

$$
Y_{k+1} = \alpha_k Y_k + \beta_k, \qquad
\alpha_k = 1 + (A + B\varphi)h + (C + D\varphi)\Delta W_k, \qquad
\beta_k = \sqrt{v_k}\,\xi_k\,(Bh + D\Delta W_k),
$$

so with $P_k = \prod_{j<k}\alpha_j$ a whole year is $Y_k = P_k\big(Y_0 + \sum_{j<k}\beta_j/P_{j+1}\big)$.  An $\alpha$
close to 0 makes the sum large just where the past is forgotten, so that no digits that count are lost.

All markets of a seed see the same normals: $\xi$ and $\Delta W$ have a 1 where states have the markets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .market import Market

__all__ = ["explore", "stream", "terminal"]

Array = NDArray[np.float64]
KEY = 0x3A9D


def stream(*key: int) -> np.random.Generator:
    """The generator of a key.

    Args:
        *key: non-negative integers.
    """
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([KEY, *key])))


def explore(market: Market, gain: Array, spread: Array, xi: Array, dw: Array, start: float = -1.0) -> Array:
    """Years under an exploring policy.

    Args:
        market: K markets.
        gain: (K,).
        spread: the policy's standard deviation in every step, (n, K).
        xi: normals of the actions, (n, 1, M).
        dw: Brownian increments, (n, 1, M).
        start: Y_0.

    Returns:
        Y, (n + 1, K, M).
    """
    alpha = (market.C + market.D * gain)[:, None] * dw
    alpha += 1 + ((market.A + market.B * gain) * market.h)[:, None]
    beta = (market.D[:, None] * dw + (market.B * market.h)[:, None]) * xi
    beta *= spread[..., None]
    np.multiply.accumulate(alpha, axis=0, out=alpha)
    beta /= alpha
    y = np.empty((len(dw) + 1, *alpha.shape[1:]))
    y[0] = start
    np.add.accumulate(beta, axis=0, out=y[1:])
    y[1:] += start
    y[1:] *= alpha
    return y


def terminal(market: Market, gain: Array, dw: Array, start: float = -1.0) -> Array:
    """Y_T of the deterministic execution, (K, M); arguments as `explore`."""
    y = np.full((len(market), dw.shape[-1]), start)
    level = (1 + (market.A + market.B * gain) * market.h)[:, None]
    slope = (market.C + market.D * gain)[:, None]
    for now in dw:
        y *= level + slope * now
    return y
