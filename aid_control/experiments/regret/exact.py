r"""The problem of Huang, Jia and Zhou (SICON 2025, section 5), and the exact value of every policy in it.

$dx = (Ax + Bu)dt + (Cx + Du)dW$, reward $-\tfrac Q2 x^2$ a unit of time, terminal $-\tfrac H2 x_T^2$, policy
$N(\phi_1 x, \phi_2)$ charged without entropy.  With $a = 2A + 2B\phi_1 + (C + D\phi_1)^2$ (derived in
docs/explanation/lq.md, section 11)

$$
J = f + \phi_2 g, \qquad f = \frac{x_0^2}{2a}\big(Q - (Q + Ha)e^{aT}\big), \qquad
g = \frac{D^2}{2a^2}\big(QTa + (Q + Ha)(1 - e^{aT})\big) ,
$$

largest at $\phi_1^* = -(B + CD)/D^2$, $\phi_2 = 0$.  Rewards are maximised here, as in the paper; the regret of an
episode is $J^* - J(\phi_1, \phi_2) \ge 0$, the price of exploration included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["RegretProblem"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class RegretProblem:
    """Coefficients; the defaults are the published ones.

    Attributes:
        A: drift of the state.
        B: control in the drift.
        C: state in the noise.
        D: control in the noise, not 0.
        Q: running weight.
        H: terminal weight.
        x0: initial state.
        horizon: T.
        steps: Euler-Maruyama steps an episode.

    Raises:
        ValueError: for D = 0, fewer than one step, or a horizon that is not positive.
    """

    A: float = 1.0
    B: float = 1.0
    C: float = 1.0
    D: float = 1.0
    Q: float = 1.0
    H: float = 1.0
    x0: float = 1.0
    horizon: float = 1.0
    steps: int = 100

    def __post_init__(self) -> None:
        if self.D == 0 or self.steps < 1 or not self.horizon > 0:
            raise ValueError(f"D is {self.D}, steps {self.steps}, horizon {self.horizon}; expected D != 0, >= 1, > 0")

    @property
    def dt(self) -> float:
        """The step."""
        return self.horizon / self.steps

    @property
    def best_gain(self) -> float:
        """phi_1*."""
        return -(self.B + self.C * self.D) / self.D**2

    @property
    def best_value(self) -> float:
        """J*."""
        return float(self.value(np.array([self.best_gain]), 0.0)[0])

    def value(self, gain: Array, variance: Array | float) -> Array:
        """J of N(gain x, variance), exactly.

        Args:
            gain: phi_1, (S,).
            variance: phi_2, (S,) or one number.

        Returns:
            (S,).
        """
        a = 2 * self.A + 2 * self.B * gain + (self.C + self.D * gain) ** 2
        small = np.abs(a) < 1e-5  # the formulas divide by a^2: their limits at 0 are exact to O(a) there
        a = np.where(small, 1.0, a)
        grown = (self.Q + self.H * a) * np.exp(a * self.horizon)
        f = self.x0**2 / (2 * a) * (self.Q - grown)
        g = self.D**2 / (2 * a**2) * (self.Q * self.horizon * a + self.Q + self.H * a - grown)
        f0 = -0.5 * self.x0**2 * (self.Q * self.horizon + self.H)
        g0 = -0.25 * self.D**2 * (self.Q * self.horizon**2 + 2 * self.H * self.horizon)
        return np.where(small, f0, f) + variance * np.where(small, g0, g)

    def regret(self, gain: Array, variance: Array | float) -> Array:
        """J* - J, (S,), of an episode; arguments as `value`."""
        return self.best_value - self.value(gain, variance)
