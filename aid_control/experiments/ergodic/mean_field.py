r"""Where the online actor-critic goes on average: its ordinary differential equation, in closed form.

With weights $w = (\theta_0, \theta_1, \eta, \phi_1, \phi_2, \phi_3)$, costs $c = -r$,
$J = \tfrac12\theta_0x^2 + \theta_1x$ (so $\theta = -k$, $\eta = -V$) and the state in its stationary law under the
present policy, the expected temporal difference given x is $\tfrac12C_2x^2 + C_1x + C_0$ with
$S = N\Delta t + \beta^2\theta_0$ and

$$
\begin{aligned}
C_2 &= (\alpha^2-1)\theta_0 + S\phi_1^2 + (M + 2R\phi_1)\Delta t, \qquad
C_1 = (\alpha-1)\theta_1 + S\phi_1\phi_2 + (R\phi_2 + P + Q\phi_1)\Delta t, \\
C_0 &= \tfrac12S(\phi_2^2 + e^{\phi_3}) + \big(Q\phi_2 - \tfrac\tau2(1 + \log2\pi + \phi_3) - \eta\big)\Delta t,
\end{aligned}
$$

and the six mean directions of a step are

$$
\begin{aligned}
\dot\theta_0 &= \tfrac14C_2m_4 + \tfrac12C_1m_3 + \tfrac12C_0m_2, &
\dot\theta_1 &= \tfrac12C_2m_3 + C_1m_2, &
\dot\eta &= \tfrac12C_2m_2 + C_0, \\
\dot\phi_1 &= -(S\phi_1 + R\Delta t)m_2, &
\dot\phi_2 &= -(S\phi_2 + Q\Delta t), &
\dot\phi_3 &= -\tfrac12(Se^{\phi_3} - \tau\Delta t) .
\end{aligned}
$$

All are $O(\Delta t)$, so with one rate for all weights the state of learning depends on the rates a_n through
$\sum_n a_n\Delta t$ alone: 10^8 published steps at $10^{-3}/\log t$ amount to about 78 units with t in units of time,
58 with t in steps.  The last line shows what takes longest: near the optimum the log-variance relaxes at rate
$\tfrac\tau2 = 0.05$.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .problem import ErgodicProblem

__all__ = ["mean_direction", "mean_path"]

Array = NDArray[np.float64]


def mean_direction(problem: ErgodicProblem, weights: Array) -> Array:
    """The expected change of the weights in a step, for rates of 1.

    Args:
        problem: coefficients and grid.
        weights: theta_0, theta_1, eta, phi_1, phi_2, phi_3, (6, S).

    Returns:
        (6, S).
    """
    t0, t1, eta, f1, f2, f3 = weights
    al, b2, dt, tau = problem.alpha, problem.beta2, problem.dt, problem.temperature
    v = np.exp(f3)
    m2, m3, m4 = problem.moments(f1, f2, v)
    s = problem.N * dt + b2 * t0
    c2 = (al * al - 1) * t0 + s * f1 * f1 + (problem.M + 2 * problem.R * f1) * dt
    c1 = (al - 1) * t1 + s * f1 * f2 + (problem.R * f2 + problem.P + problem.Q * f1) * dt
    entropy = 0.5 * tau * (1 + math.log(2 * math.pi) + f3)
    c0 = 0.5 * s * (f2 * f2 + v) + (problem.Q * f2 - entropy - eta) * dt
    return np.stack(
        [
            0.25 * c2 * m4 + 0.5 * c1 * m3 + 0.5 * c0 * m2,
            0.5 * c2 * m3 + c1 * m2,
            0.5 * c2 * m2 + c0,
            -(s * f1 + problem.R * dt) * m2,
            -(s * f2 + problem.Q * dt),
            -0.5 * (s * v - tau * dt),
        ]
    )


def mean_path(
    problem: ErgodicProblem, rates: Array, schedule: Callable[[int], float], steps: Array, pieces: int = 400
) -> Array:
    """Weights along the mean equation, from 0, by Runge-Kutta of order 4.

    Args:
        problem: coefficients and grid.
        rates: of the six weights, (6,).
        schedule: factor of all rates, by step.
        steps: increasing step numbers n, (K,), at which the weights are wanted; the first may be 0.
        pieces: integration steps between two of them.

    Returns:
        (K, 6).
    """

    def rhs(w: Array) -> Array:
        return rates * mean_direction(problem, w[:, None])[:, 0]

    w, path, before = np.zeros(6), [], 0.0
    for n in steps:
        edges = np.linspace(before, float(n), pieces + 1)
        middles = 0.5 * (edges[1:] + edges[:-1])
        for h, mid in zip(np.diff(edges), middles, strict=True):
            h = h * schedule(int(mid))
            k1 = rhs(w)
            k2 = rhs(w + 0.5 * h * k1)
            k3 = rhs(w + 0.5 * h * k2)
            w = w + h / 6 * (k1 + 2 * k2 + 2 * k3 + rhs(w + h * k3))
        path.append(w)
        before = float(n)
    return np.array(path)
