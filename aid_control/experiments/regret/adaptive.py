r"""Data-driven exploration after Huang and Zhou (arXiv 2507.00358): variance and temperature follow the data.

The paper's settings could not be read; what follows is our reading of its idea.  The variance is learned by the policy
gradient of the *entropy-regularised* objective, in $w = \log\phi_2$,

$$
w \leftarrow w + b_n \sum_k \tfrac12(\xi_k^2 - 1)\big(\Delta J_k - \tfrac Q2 x_k^2\Delta t
- \gamma_n \log\pi(u_k)\Delta t\big) ,
$$

whose fixed point is $\phi_2 = \gamma_n / (D^2 \bar P)$ without knowing D, and the temperature falls with what the
actor's own steps say is left to learn: with $m_n$ a running mean of the gradients and $s_n$ of their squares,

$$
\gamma_n = \gamma_0\,(1 + N_n)^{-1/4}, \qquad N_{n+1} = N_n + \frac{s_n}{s_n + \kappa\, m_n^2} .
$$

While the gradients agree ($m^2 \approx s$) the clock N stands nearly still and exploration stays; when they are noise
it runs at one an episode, and the exploration falls as in the fixed schedule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .model_free import ModelFree

__all__ = ["Adaptive"]

Array = NDArray[np.float64]


@dataclass
class Adaptive(ModelFree):
    """`ModelFree` with learned variance and adaptive temperature.

    Attributes:
        start_temperature: gamma_0.
        variance_rate: b_0 of b_n = b_0 / (n + 1)^{1/2}.
        caution: kappa.
        memory: length of the running means, in episodes.
    """

    start_temperature: float = 5.0
    variance_rate: float = 0.1
    caution: float = 100.0
    memory: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.log_variance = np.full(self.seeds, np.log(self.start_variance))
        self.clock = np.zeros(self.seeds)
        self.mean, self.square = np.zeros(self.seeds), np.zeros(self.seeds)

    @property
    def variance(self) -> Array:
        """phi_2 of the next episode, (S,)."""
        return np.exp(self.log_variance)

    def learn(self, x: Array, xi: Array) -> None:
        """Use one episode; arguments as `ModelFree.learn`."""
        problem = self.problem
        gamma = self.start_temperature * (1 + self.clock) ** -0.25
        variance, n = self.variance, self.n
        square = x * x
        delta = -0.5 * problem.H * np.diff(square, axis=1) - 0.5 * problem.Q * problem.dt * square[:, :-1]
        score = 0.5 * (xi * xi - 1)
        log_density = -0.5 * xi * xi - 0.5 * np.log(2 * np.pi * variance)[:, None]
        up = np.einsum("ij,ij->i", score, delta - gamma[:, None] * problem.dt * log_density)
        before = self.gain
        super().learn(x, xi)
        step = (self.gain - before) / (self.rate * (n + 1) ** -0.75)
        self.mean += (step - self.mean) / self.memory
        self.square += (step**2 - self.square) / self.memory
        with np.errstate(divide="ignore", invalid="ignore"):
            pace = self.square / (self.square + self.caution * self.mean**2)
        self.clock += np.nan_to_num(pace, nan=1.0)
        move = np.clip(self.variance_rate * (n + 1) ** -0.5 * up / np.maximum(variance, 1.0), -0.5, 0.5)
        self.log_variance = np.clip(self.log_variance + move, np.log(1e-3), np.log(50.0))
