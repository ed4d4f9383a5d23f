r"""The multiplier w by stochastic approximation (Jia & Zhou 2022b): $w \mathrel{+}= \alpha_w\,(z - \overline{X_T})$.

$\overline{X_T}$ is the average terminal wealth of m years.  How much it answers to w differs by a factor of thousands
between markets: $\partial EX_T/\partial w = 1 - a^n$, equal to $(EX_T - x_0)/(w - x_0)$, which at the goal is
$(z - x_0)/(w - x_0)$.  So the i-th step is

$$
\alpha_w = \alpha_i\,\frac{w - x_0}{z - x_0}, \qquad \alpha_i = \frac{\alpha_0\, d}{i + d} ,
$$

Newton's at the goal times $\alpha_i$; with $\alpha_0 d = 1$ the last w is an average of the data.  $w - x_0$ changes by
no more than half in a step and is kept between 1/2 and 10 000 times $z - x_0$.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...schedules import power
from .market import Goal

__all__ = ["Multiplier"]

Array = NDArray[np.float64]
LONGEST = 0.5
BOUNDS = (0.5, 1e4)


class Multiplier:
    """w of many markets, starting at z.

    Args:
        goal: x0 and z.
        shape: of w.
        start: alpha_0.
        delay: d.
    """

    def __init__(self, goal: Goal, shape: tuple[int, ...], start: float = 0.5, delay: float = 2.0) -> None:
        self.goal, self.rate, self.count = goal, power(start, 1.0, delay), 0
        self.distance: Array = np.full(shape, goal.gain)

    @property
    def w(self) -> Array:
        """The present multiplier, of the constructor's shape."""
        return self.goal.x0 + self.distance

    def update(self, final: Array) -> None:
        """Use m years.

        Args:
            final: the average of Y_T = (X_T - w) / (w - x0) over them, like w in shape.
        """
        wealth = self.w + self.distance * final
        step = self.rate(self.count) * (self.goal.z - wealth) / self.goal.gain
        low, high = BOUNDS
        moved = self.distance * (1 + np.clip(step, -LONGEST, LONGEST))
        self.distance = np.clip(moved, low * self.goal.gain, high * self.goal.gain)
        self.count += 1
