r"""The model-free actor of Huang, Jia and Zhou: a policy gradient an episode, nothing estimated of the system.

After episode n with $\xi_k = (u_k - \phi_1 x_k)/\sqrt{\phi_2}$,

$$
Z_n = \sum_k \frac{\xi_k x_k}{\sqrt{\phi_2}} \Big( J(t_{k+1}, x_{k+1}) - J(t_k, x_k) - \tfrac Q2 x_k^2 \Delta t
- \gamma \log\pi(u_k)\,\Delta t \Big), \qquad
\phi_1 \leftarrow \Pi\big(\phi_1 + a_n Z_n\big) .
$$

Published: $a_n = 0.05/(n+1)^{3/4}$, $\phi_2 = 5/(n+1)^{1/4}$, $\gamma = 1$, $\Pi$ onto [-2.2, -0.5], and the critic
frozen at $J = -\tfrac12 x^2$, which is the optimal value.  The entropy term has mean zero in Z and only adds (a
little) noise: $\gamma = 0$ leaves it out.  Two props are not available to a learner who does not know the answer, and
can be taken away:

- *the critic*: ``learned`` fits $J = -\tfrac12(H + \theta_1(T-t))x^2 - \theta_2(T-t)$ by CTD(0);
- *the projection*: ``growing`` uses $|\phi_1| \le c_0 + \tfrac14\log(1 + n)$, sets that end up holding any answer.  At
  a gain of +1 the terms of Z have tails like those of $e^8$, so here every summand is divided by $1 + x_k^2$.  That
  is an adapted weight, known before the action: it leaves the sign of the mean direction alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .exact import RegretProblem

__all__ = ["ModelFree"]

Array = NDArray[np.float64]


@dataclass
class ModelFree:
    """The learner of many seeds; arrays (S,).

    Attributes:
        problem: gives Q, H and the grid; its A, B, C, D are not looked at.
        seeds: S.
        rate: a_0 of a_n = a_0 / (n + 1)^{3/4}.
        start_variance: of phi_2 = start_variance / (n + 1)^{1/4}.
        start_gain: phi_1 at n = 0.
        temperature: gamma.
        critic: frozen at the optimal value, or learned.
        start_critic: theta_1 at n = 0 of a learned critic.
        projection: ``oracle``: [-2.2, -0.5]; ``growing``.
        radius: c_0 of the growing sets.

    Raises:
        ValueError: for another critic or projection.
    """

    problem: RegretProblem
    seeds: int
    rate: float = 0.05
    start_variance: float = 5.0
    start_gain: float = -0.5
    temperature: float = 1.0
    critic: Literal["frozen", "learned"] = "frozen"
    start_critic: float = 1.0
    projection: Literal["oracle", "growing"] = "oracle"
    radius: float = 0.5

    def __post_init__(self) -> None:
        if self.critic not in ("frozen", "learned") or self.projection not in ("oracle", "growing"):
            raise ValueError(
                f"critic is {self.critic}, projection {self.projection}; expected frozen or learned, oracle or growing"
            )
        self.gain = np.full(self.seeds, self.start_gain)
        learned = self.critic == "learned"
        self.theta = np.full((2, self.seeds), 0.0)
        self.theta[0] = self.start_critic if learned else 0.0
        times = np.arange(self.problem.steps + 1) * self.problem.dt
        self.left = self.problem.horizon - times
        self.n = 0

    @property
    def variance(self) -> Array:
        """phi_2 of the next episode, (S,)."""
        return np.full(self.seeds, self.start_variance * (self.n + 1) ** -0.25)

    def learn(self, x: Array, xi: Array) -> None:
        """Use one episode.

        Args:
            x: states, (S, K + 1).
            xi: standardised actions, (S, K).
        """
        problem, spread = self.problem, np.sqrt(self.variance)
        square = x * x
        curve = problem.H + self.theta[0][:, None] * self.left if self.theta.any() else problem.H
        value = -0.5 * curve * square - self.theta[1][:, None] * self.left
        delta = value[:, 1:] - value[:, :-1] - 0.5 * problem.Q * problem.dt * square[:, :-1]
        if self.critic == "learned":
            slope = self.rate * (self.n + 1) ** -0.75
            # d_theta J = -(T - t) x^2 / 2 and -(T - t), each divided by 1 + x^4: adapted weights against heavy tails
            weighted = self.left[:-1] * delta / (1 + square[:, :-1] ** 2)
            first = np.einsum("ij,ij->i", square[:, :-1], weighted)
            self.theta[0] = np.clip(self.theta[0] - 0.5 * slope * first, -0.8 * problem.H, 10.0 * problem.H)
            self.theta[1] -= slope * weighted.sum(1)
        if self.temperature:
            log_density = -0.5 * xi * xi - np.log(spread * math.sqrt(2 * math.pi))[:, None]
            delta = delta - self.temperature * problem.dt * log_density
        lever = x[:, :-1] if self.projection == "oracle" else x[:, :-1] / (1 + square[:, :-1])
        gradient = np.einsum("ij,ij,ij->i", xi, lever, delta) / spread
        gain = self.gain + self.rate * (self.n + 1) ** -0.75 * gradient
        bound = self.radius + 0.25 * math.log(1 + self.n)
        low, high = (-2.2, -0.5) if self.projection == "oracle" else (-bound, bound)
        self.gain = np.clip(gain, low, high)
        self.n += 1
