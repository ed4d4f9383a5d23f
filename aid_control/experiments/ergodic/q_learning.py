r"""q-learning (Jia and Zhou 2023) for the ergodic problem, on and off the policy, many repeats at once.

The normalised rate and its policy, with $m = \psi_1x + \psi_2$ and $S = e^{-\psi_3}$:

$$
q(x, a) = \tfrac12S\,(a - m)^2 + \tfrac\tau2\big(\log2\pi\tau + \psi_3\big), \qquad
\pi = e^{-q/\tau} = N(m, \tau e^{\psi_3}),
$$

$$
\delta = J(x') - J(x) + (c - q - \eta)\Delta t, \qquad
(\theta, \eta, \psi) \mathrel{+}= a_n\,w(x, a)\,\big(\partial_\theta J, 1, \partial_\psi q\big)\,\delta .
$$

The costs c are without the entropy and the path may be any policy's.  With $w = 1$ these are the gradients of
`improvement.q_learning.q_learning_loss` (tested).  On the policy $-q/\tau = \log\pi$, so $\delta$ is the
actor-critic's, $\partial_\psi q = -\tau\,\partial_\psi\log\pi$, and *q-learning at rate a for the policy's weights is
the actor-critic at rate $a\tau$* (tested, number by number).

**Heavy tails.** Off the policy the published behaviour is $a \sim N(x + 1, 1)$.  Its state obeys
$dX = -X\,dt + (X + \dots)\,dW$, so $E|X|^p$ is finite only while $-p + \tfrac12p(p-1) < 0$, that is $p < 3$: the
stationary law has a power tail of exponent 3.  The update of theta_0 is of order $x^4$: *its mean does not exist*,
and no step size repairs that.  The martingale condition holds for every test function of (x, a); weights

$$
w(x, a) = \Big(1 + \frac{x^2 + a^2}{\ell^2}\Big)^{-2}
$$

make every update bounded in (x, a) up to the normal z, and leave the solution where it was.  Infinite $\ell$ gives
$w = 1$.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .problem import ErgodicProblem

__all__ = ["WEIGHTS", "QLearning"]

Array = NDArray[np.float64]
WEIGHTS = ("theta_0", "theta_1", "eta", "psi_1", "psi_2", "psi_3")


class QLearning:
    """Weights (6, S) of S repeats and their streams' states (S, B), all 0 at the start.

    Args:
        problem: coefficients and grid.
        repeats: S.
        streams: B.
        rates: factor of the rate of each of `WEIGHTS`, (6,) or (6, S).
        schedule: a_n by step.
        behaviour: slope, intercept and variance of the acting policy; ``None`` = the policy that is learned.
        scale: ell of the weights of the updates; infinite for none.

    Attributes:
        weights: (6, S), in the order of `WEIGHTS`.
        x: states, (S, B).
        n: steps made.
    """

    def __init__(
        self,
        problem: ErgodicProblem,
        repeats: int,
        streams: int,
        rates: Array,
        schedule: Callable[[int], float],
        behaviour: tuple[float, float, float] | None = None,
        scale: float = math.inf,
    ) -> None:
        self.problem, self.schedule, self.behaviour, self.scale = problem, schedule, behaviour, scale
        rates = np.asarray(rates, dtype=float)
        self.rates = rates[:, None] if rates.ndim == 1 else rates
        self.weights = np.zeros((6, repeats))
        self.x = np.zeros((repeats, streams))
        self.n = 0

    def act(self, xi: Array) -> Array:
        """Actions of the behaviour, (S, B).

        Args:
            xi: normals, (S, B).
        """
        if self.behaviour is not None:
            slope, intercept, variance = self.behaviour
            return slope * self.x + intercept + math.sqrt(variance) * xi
        f1, f2, f3 = self.weights[3:]
        spread = np.sqrt(self.problem.temperature * np.exp(f3))
        return f1[:, None] * self.x + f2[:, None] + spread[:, None] * xi

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
        a = self.act(xi)
        ahead = a * z
        ahead *= p.beta2**0.5
        ahead += p.alpha * x
        cost = p.cost(x, a)
        precision = np.exp(-f3)
        gap = a - f1[:, None] * x
        gap -= f2[:, None]
        square = gap * gap
        # J(x') - J(x) + (c - q - eta) dt
        delta = ahead + x
        delta *= (0.5 * t0)[:, None]
        delta += t1[:, None]
        delta *= ahead - x
        delta += p.dt * cost
        delta -= (0.5 * p.dt * precision)[:, None] * square
        level = 0.5 * p.temperature * (math.log(2 * math.pi * p.temperature) + f3) + eta
        delta -= (p.dt * level)[:, None]
        if not math.isinf(self.scale):
            size = x * x
            size += a * a
            size *= self.scale**-2
            size += 1.0
            size *= size
            delta /= size
        moved = delta * x
        b = x.shape[1]
        total = delta.sum(1)
        directions = np.stack(
            [
                0.5 * np.einsum("ij,ij->i", moved, x),
                moved.sum(1),
                total,
                -precision * np.einsum("ij,ij->i", moved, gap),
                -precision * np.einsum("ij,ij->i", delta, gap),
                0.5 * (p.temperature * total - precision * np.einsum("ij,ij->i", delta, square)),
            ]
        )
        self.weights = self.weights + (self.schedule(self.n) / b) * self.rates * directions
        self.x = ahead
        self.n += 1
        mean: Array = cost.mean(1)
        return mean
