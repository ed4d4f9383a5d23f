r"""The model-based rival: estimate A, B, C, D by least squares, plug them into the formula of the optimal gain.

Along an episode $\Delta x = (Ax + Bu)\Delta t + (Cx + Du)\Delta W$, so drift and squared noise are linear in unknowns,

$$
E[\Delta x] = (A, B) \cdot (x, u)\,\Delta t, \qquad
E[(\Delta x)^2] = (C^2, 2CD, D^2) \cdot (x^2, xu, u^2)\,\Delta t + O(\Delta t^2),
$$

and the two regressions over all data seen give $\phi_1 = -(B + CD)/D^2$.  Exploration falls as $v_n = v_0 / n$
(published: $v_0 = 5$, estimates from -2, gains kept in [-2.2, -0.5]).  The squared increments of a step hold
those of the drift too: $(\Delta x)^2$ is corrected by the estimated drift's square.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .exact import RegretProblem

__all__ = ["PlugIn"]

Array = NDArray[np.float64]


@dataclass
class PlugIn:
    """The learner of many seeds; arrays (S,).

    Attributes:
        problem: gives the grid; its coefficients are estimated.
        seeds: S.
        start_variance: v_0.
        start_gain: the gain of the first episode.
        ridge: weight of the start (-2 for all four) in the regressions.
    """

    problem: RegretProblem
    seeds: int
    start_variance: float = 5.0
    start_gain: float = -0.5
    ridge: float = 1e-2

    def __post_init__(self) -> None:
        s = self.seeds
        self.gain = np.full(s, self.start_gain)
        self.n = 0
        # normal equations of both regressions, started at A = B = C = D = -2
        self.drift_gram = np.tile(self.ridge * np.eye(2), (s, 1, 1))
        self.drift_right = np.einsum("sij,j->si", self.drift_gram, np.array([-2.0, -2.0]))
        self.noise_gram = np.tile(self.ridge * np.eye(3), (s, 1, 1))
        self.noise_right = np.einsum("sij,j->si", self.noise_gram, np.array([4.0, 8.0, 4.0]))

    @property
    def variance(self) -> Array:
        """phi_2 of the next episode, (S,)."""
        return np.full(self.seeds, self.start_variance / (self.n + 1))

    def learn(self, x: Array, xi: Array) -> None:
        """Use one episode; arguments as `ModelFree.learn`."""
        dt = self.problem.dt
        here, moved = x[:, :-1], np.diff(x, axis=1)
        action = self.gain[:, None] * here + np.sqrt(self.variance)[:, None] * xi
        rows = np.stack([here, action], axis=1)
        self.drift_gram += np.einsum("sik,sjk->sij", rows, rows) * dt
        self.drift_right += np.einsum("sik,sk->si", rows, moved)
        drift = np.linalg.solve(self.drift_gram, self.drift_right[..., None])[..., 0]
        rest = moved - np.einsum("si,sik->sk", drift, rows) * dt
        squares = np.stack([here * here, here * action, action * action], axis=1)
        # weights 1 / (x^2 + u^2)^2: the variance of a squared increment grows with its own square
        weight = 1.0 / (here * here + action * action + 1e-3) ** 2
        self.noise_gram += np.einsum("sik,sk,sjk->sij", squares, weight, squares)
        self.noise_right += np.einsum("sik,sk,sk->si", squares, weight, rest * rest / dt)
        noise = np.linalg.solve(self.noise_gram, self.noise_right[..., None])[..., 0]
        d2 = np.maximum(noise[:, 2], 1e-3)
        self.gain = np.clip(-(drift[:, 1] + 0.5 * noise[:, 1]) / d2, -2.2, -0.5)
        self.n += 1
