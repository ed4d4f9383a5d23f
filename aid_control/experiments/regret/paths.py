r"""Episodes of many seeds at once, without a loop over time.

Under $u = \phi_1 x + \sqrt{\phi_2}\,\xi$ an Euler-Maruyama step is affine in x,

$$
x_{k+1} = \alpha_k x_k + \beta_k, \qquad
\alpha_k = 1 + (A + B\phi_1)\Delta t + (C + D\phi_1)\Delta W_k, \qquad
\beta_k = \sqrt{\phi_2}\,\xi_k\,(B\Delta t + D\Delta W_k),
$$

so with $P_k = \prod_{j<k}\alpha_j$ the whole path is $x_k = P_k\big(x_0 + \sum_{j<k}\beta_j / P_{j+1}\big)$: two
cumulative operations.  Dividing by P loses digits where some alpha is close to 0; such episodes (rare: eight standard
deviations at the published settings) are stepped one by one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .exact import RegretProblem

__all__ = ["Noise", "episode"]

Array = NDArray[np.float64]
SMALLEST = 1e-2  # of |alpha|, below which a path is stepped
KEY = 0x4E64E7


class Noise:
    """Standard normals by seed: what a seed is given does not depend on which others run beside it.

    Args:
        seeds: one stream each.
        steps: steps an episode.
        ahead: episodes drawn at a time (changes nothing but the speed).
    """

    def __init__(self, seeds: list[int], steps: int, ahead: int = 64) -> None:
        self.streams = [np.random.Generator(np.random.SFC64(np.random.SeedSequence([KEY, s]))) for s in seeds]
        self.buffer = np.empty((len(seeds), ahead, 2, steps))
        self.next = ahead

    def episode(self) -> tuple[Array, Array]:
        """Normals of the actions and of the Brownian increments, (S, steps) each."""
        if self.next == self.buffer.shape[1]:
            for stream, row in zip(self.streams, self.buffer, strict=True):
                stream.standard_normal(out=row)
            self.next = 0
        drawn = self.buffer[:, self.next]
        self.next += 1
        return drawn[:, 0], drawn[:, 1]


def episode(problem: RegretProblem, gain: Array, spread: Array | float, xi: Array, normals: Array) -> Array:
    """States of one episode.

    Args:
        problem: the coefficients.
        gain: phi_1, (S,).
        spread: sqrt(phi_2), (S,) or one number.
        xi: normals of the actions, (S, K).
        normals: normals of the Brownian motion, (S, K).

    Returns:
        x, (S, K + 1).
    """
    dt, g = problem.dt, gain[:, None]
    dw = normals * dt**0.5
    alpha = 1 + (problem.A + problem.B * g) * dt + (problem.C + problem.D * g) * dw
    beta = np.reshape(spread, (-1, 1)) * xi * (problem.B * dt + problem.D * dw)
    x = np.empty((len(gain), problem.steps + 1))
    x[:, 0] = problem.x0
    product = np.cumprod(alpha, axis=1)
    delicate = np.abs(alpha).min(1) < SMALLEST
    if delicate.any():
        product[delicate] = 1.0
    np.cumsum(beta / product, axis=1, out=x[:, 1:])
    x[:, 1:] += problem.x0
    x[:, 1:] *= product
    for k in range(problem.steps if delicate.any() else 0):
        x[delicate, k + 1] = alpha[delicate, k] * x[delicate, k] + beta[delicate, k]
    return x
