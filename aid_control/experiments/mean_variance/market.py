r"""Markets in which the state, the control and the noise are scalar, with everything exact on their own grid.

$$
dY = (AY + Bu)\,dt + (CY + Du)\,dW, \qquad
\text{cost } \tfrac Q2\int_0^T Y^2dt + \tfrac H2 Y_T^2 .
$$

The mean-variance problem is $A = C = Q = 0$, $B = \mu - r$, $D = \sigma$, $H = 2$, with Y the discounted wealth minus
the multiplier w (docs/explanation/mean-variance.md, section 3).  A control $u = \varphi Y$ held over steps of length h
gives $Y' = Y\,(1 + (A + B\varphi)h + (C + D\varphi)\Delta W)$, hence $EY' = aY$ and $EY'^2 = bY^2$ with

$$
a = 1 + (A + B\varphi)h, \qquad b = a^2 + (C + D\varphi)^2h .
$$

b is least at $\varphi^* = -(B(1 + Ah) + CD)/(D^2 + B^2h)$ in every step and whatever comes after, so that this gain is
optimal among *all* strategies that trade on the grid, for every Q and H; in the mean-variance problem it is
equation (11) of that page.  Costs and moments of wealth after n steps are geometric sums,

$$
E Y_T = a^n Y_0, \qquad E Y_T^2 = b^n Y_0^2, \qquad
\text{cost} = \tfrac12 Y_0^2\Big(Qh\,\frac{1 - b^n}{1 - b} + Hb^n\Big) .
$$
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Goal", "Market", "stocks"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Goal:
    """What is wanted of wealth.

    Attributes:
        x0: discounted wealth at time 0.
        z: the mean that it should have at T, above x0.

    Raises:
        ValueError: unless z > x0.
    """

    x0: float = 1.0
    z: float = 1.4

    def __post_init__(self) -> None:
        if not self.z > self.x0:
            raise ValueError(f"x0 is {self.x0}, z {self.z}; expected a goal z above x0")

    @property
    def gain(self) -> float:
        """z - x0."""
        return self.z - self.x0


@dataclass(frozen=True)
class Market:
    """K markets with one grid and one cost; coefficients (K,).

    Attributes:
        A: state in the drift, (K,).
        B: control in the drift, (K,).
        C: state in the noise, (K,).
        D: control in the noise, (K,), nowhere 0.
        Q: running weight.
        H: terminal weight.
        horizon: T.
        steps: n trading days.

    Raises:
        ValueError: for a D of 0, fewer than one step, a horizon that is not positive, or coefficients of other shapes.
    """

    A: Array
    B: Array
    C: Array
    D: Array
    Q: float = 0.0
    H: float = 2.0
    horizon: float = 1.0
    steps: int = 252

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.horizon > 0:
            raise ValueError(f"steps is {self.steps}, horizon {self.horizon}; expected at least 1 and more than 0")
        shapes = {np.shape(c) for c in (self.A, self.B, self.C, self.D)}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1 or (self.D == 0).any():
            raise ValueError(f"A, B, C, D have shapes {sorted(shapes)}; expected one shape (K,) and D nowhere 0")

    def __len__(self) -> int:
        return len(self.A)

    @property
    def h(self) -> float:
        """The length of a step."""
        return self.horizon / self.steps

    @property
    def left(self) -> Array:
        """T - t at the n + 1 times of the grid, (n + 1,)."""
        return self.horizon * (1 - np.arange(self.steps + 1) / self.steps)

    @property
    def best_gain(self) -> Array:
        """The optimal gain of this grid, (K,)."""
        return -(self.B * (1 + self.A * self.h) + self.C * self.D) / (self.D**2 + self.B**2 * self.h)

    def factors(self, gain: Array) -> tuple[Array, Array]:
        """a and b of one step.

        Args:
            gain: of u = gain Y, (..., K).

        Returns:
            Two arrays like gain, (..., K).
        """
        a = 1 + (self.A + self.B * gain) * self.h
        return a, a * a + (self.C + self.D * gain) ** 2 * self.h

    def cost(self, gain: Array) -> Array:
        """Expected cost of u = gain Y from Y_0 = 1, exactly; arguments as `factors`, (..., K)."""
        b = self.factors(gain)[1]
        power = b**self.steps
        with np.errstate(divide="ignore", invalid="ignore"):
            summed = np.where(np.abs(b - 1) < 1e-12, float(self.steps), (1 - power) / (1 - b))
        return 0.5 * (self.Q * self.h * summed + self.H * power)

    def sharpe(self, gain: Array) -> Array:
        """(E X_T - x0) / sd(X_T) of the deterministic execution, for w > x0; the same for every w and x0.

        Args:
            gain: of u = gain (X - w), (..., K).

        Returns:
            (..., K); 0 where the gain is 0.
        """
        a, b = self.factors(gain)
        mean, second = a**self.steps, b**self.steps
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(gain == 0, 0.0, (1 - mean) / np.sqrt(second - mean * mean))

    def mean_wealth(self, gain: Array, w: Array, x0: float) -> Array:
        """E X_T of u = gain (X - w), exploring or not.

        Args:
            gain: (..., K).
            w: the multiplier, (..., K).
            x0: wealth at time 0.

        Returns:
            (..., K).
        """
        return w + (x0 - w) * self.factors(gain)[0] ** self.steps

    def multiplier(self, gain: Array, goal: Goal) -> Array:
        """The w with which E X_T = z: arguments as `mean_wealth`, (..., K)."""
        return goal.x0 + goal.gain / (1 - self.factors(gain)[0] ** self.steps)


def stocks(
    mu: Sequence[float], sigma: Sequence[float], rate: float = 0.02, horizon: float = 1.0, steps: int = 252
) -> Market:
    """The mean-variance problems of all pairs (mu, sigma), sigma running fastest.

    Args:
        mu: drifts of the stock, none equal to the rate.
        sigma: volatilities, positive.
        rate: r.
        horizon: T.
        steps: trading days.

    Returns:
        ``len(mu) len(sigma)`` markets.

    Raises:
        ValueError: for a drift equal to the rate (nothing can be earned), or a volatility that is not positive.
    """
    if min(sigma) <= 0 or any(m == rate for m in mu):
        raise ValueError(f"mu is {list(mu)}, sigma {list(sigma)}, rate {rate}; expected mu != rate and sigma > 0")
    excess, volatility = np.meshgrid(np.asarray(mu, float) - rate, np.asarray(sigma, float), indexing="ij")
    zero = np.zeros(excess.size)
    return Market(zero, excess.ravel(), zero, volatility.ravel(), horizon=horizon, steps=steps)
