r"""The online actor-critic of Jia and Zhou (2022b, algorithm 3) for the ergodic problem, many repeats at once.

The update is `online.OnlineActorCritic`'s in the ergodic case (a test compares the two number by number): with
$x' = \alpha x + \beta az$, $a = \phi_1x + \phi_2 + e^{\phi_3/2}\xi$, $J = \tfrac12\theta_0x^2 + \theta_1x$ and costs
$c = -r$,

$$
\begin{aligned}
\delta &= J(x') - J(x) + \big(c + \tau\log\pi(a) - \eta\big)\Delta t, \qquad
\theta \mathrel{+}= a_n\big(\tfrac12x^2, x\big)\,\delta, \qquad \eta \mathrel{+}= a_n\delta, \\
\phi &\mathrel{-}= a_n\Big(\frac{\xi x}{e^{\phi_3/2}},\ \frac\xi{e^{\phi_3/2}},\ \tfrac12(\xi^2 - 1)\Big)\,\delta .
\end{aligned}
$$

Every repeat has B streams, whose updates are averaged: to first order B streams at rate a are one stream at rate a / B
for B times as many steps, and B can be vectorised.  Each of the six weights has its own constant factor of the rate;
the published setting is 1e-3 for all and B = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .problem import ErgodicProblem

__all__ = ["WEIGHTS", "ActorCritic"]

Array = NDArray[np.float64]
WEIGHTS = ("theta_0", "theta_1", "eta", "phi_1", "phi_2", "phi_3")


class ActorCritic:
    """Weights (6, S) of S repeats and their streams' states (S, B), all 0 at the start.

    Args:
        problem: coefficients and grid.
        repeats: S.
        streams: B.
        rates: factor of the rate of each of `WEIGHTS`, (6,).
        schedule: a_n by step.

    Attributes:
        weights: (6, S), in the order of `WEIGHTS`.
        x: states, (S, B).
        n: steps made.
    """

    def __init__(
        self, problem: ErgodicProblem, repeats: int, streams: int, rates: Array, schedule: Callable[[int], float]
    ) -> None:
        self.problem, self.schedule = problem, schedule
        self.rates = np.asarray(rates, dtype=float)[:, None]
        self.weights = np.zeros((6, repeats))
        self.x = np.zeros((repeats, streams))
        self.n = 0

    def step(self, xi: Array, z: Array) -> Array:
        """One step of every stream, and the update.

        Args:
            xi: normals of the actions, (S, B).
            z: normals of the Brownian motion, (S, B).

        Returns:
            The mean cost rate of each repeat over its streams, without the entropy, (S,).
        """
        p, x = self.problem, self.x
        t0, t1, eta, f1, f2, f3 = self.weights
        spread = np.exp(0.5 * f3)
        a = spread[:, None] * xi
        a += f1[:, None] * x
        a += f2[:, None]
        ahead = a * z
        ahead *= p.beta2**0.5
        ahead += p.alpha * x
        cost = p.cost(x, a)
        square = xi * xi
        # J(x') - J(x) = (x' - x) (theta_0 (x' + x) / 2 + theta_1), then (c + tau log pi - eta) dt
        delta = ahead + x
        delta *= (0.5 * t0)[:, None]
        delta += t1[:, None]
        delta *= ahead - x
        delta += p.dt * cost
        delta -= (0.5 * p.temperature * p.dt) * square
        level = p.temperature * (0.5 * math.log(2 * math.pi) + 0.5 * f3) + eta
        delta -= (p.dt * level)[:, None]
        moved = delta * x
        b = x.shape[1]
        total = delta.sum(1)
        directions = np.stack(
            [
                0.5 * np.einsum("ij,ij->i", moved, x),
                moved.sum(1),
                total,
                -np.einsum("ij,ij->i", moved, xi) / spread,
                -np.einsum("ij,ij->i", delta, xi) / spread,
                -0.5 * (np.einsum("ij,ij->i", delta, square) - total),
            ]
        )
        self.weights = self.weights + (self.schedule(self.n) / b) * self.rates * directions
        self.x = ahead
        self.n += 1
        mean: Array = cost.mean(1)
        return mean
