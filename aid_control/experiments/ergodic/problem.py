r"""The ergodic problem of Jia and Zhou (JMLR 2022b, section 5.2) and its truth, in continuous time and on a grid.

$dX = AX\,dt + Da\,dW$ with reward rate $r = -\big(\tfrac M2x^2 + Rxa + \tfrac N2a^2 + Px + Qa\big)$, $A = -1$, $D = 1$,
$M = N = Q = 2$, $R = P = 1$, temperature $\tau = 0.1$; policy $N(\phi_1x + \phi_2, e^{\phi_3})$, value
$J = \tfrac12k_2x^2 + k_1x$ up to a constant, V the average reward with its entropy (docs/explanation/lq.md, section 7):

$$
-2Ak_2 = \frac{R^2}S - M, \quad S = N - k_2D^2, \qquad
\phi_1 = -\frac RS, \quad \phi_2 = -\frac QS, \quad e^{\phi_3} = \frac\tau S .
$$

An agent that holds its action for $\Delta t$ sees $x' = \alpha x + \beta a z$, $z \sim N(0, 1)$: with
$\alpha = e^{A\Delta t}$, $\beta^2 = D^2(e^{2A\Delta t} - 1)/(2A)$ exactly (``exact``), with $\alpha = 1 + A\Delta t$,
$\beta^2 = D^2\Delta t$ by Euler-Maruyama (``euler``).  Its own optimum solves, with the same S,

$$
\frac{1-\alpha^2}{\Delta t}\,k_2 = \frac{R^2}S - M, \quad S = N - \frac{\beta^2}{\Delta t}k_2, \qquad
\frac{1-\alpha}{\Delta t}\,k_1 = \frac{RQ}S - P .
$$

The exact transition has $1-\alpha^2 = -2A\beta^2/D^2$: then $k_2\beta^2/(D^2\Delta t)$ solves the equation of
continuous time, and *slope, intercept, variance and average reward are those of continuous time at every step*.
Whatever an estimate does as the step changes is the estimator's doing.  Euler's grid moves them by $O(\Delta t)$.

Stationary moments $m_j = E[x^j]$ of a policy with variance v follow from $E[x'^j] = m_j$ and $m_1 = 0$:

$$
m_2 = \frac{\beta^2(\phi_2^2 + v)}{1 - \alpha^2 - \beta^2\phi_1^2}, \qquad
m_3 = \frac{6\alpha\beta^2\phi_1\phi_2m_2}{1 - \alpha^3 - 3\alpha\beta^2\phi_1^2}, \qquad
m_4 = \frac{6\alpha^2\beta^2\big(2\phi_1\phi_2m_3 + (\phi_2^2+v)m_2\big) + 3\beta^4\big(4\phi_1^3\phi_2m_3
+ 6\phi_1^2(\phi_2^2+v)m_2 + \phi_2^4 + 6\phi_2^2v + 3v^2\big)}{1 - \alpha^4 - 6\alpha^2\beta^2\phi_1^2
- 3\beta^4\phi_1^4} ,
$$

where the denominators are positive; otherwise the moment is infinite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

__all__ = ["PUBLISHED_REWARD", "ErgodicProblem", "Optimum"]

Array = NDArray[np.float64]
PUBLISHED_REWARD = 0.6584974  # the line of their figure: Q^2 / (2 S) - tau / 2


@dataclass(frozen=True)
class Optimum:
    """What a learner should find.

    Attributes:
        slope: phi_1.
        intercept: phi_2.
        variance: e^{phi_3}.
        k2: of the value k2 x^2 / 2 + k1 x.
        k1: of the value.
        average: V, the average reward with its entropy.
        reward: the average reward of the same policy without its entropy.
    """

    slope: float
    intercept: float
    variance: float
    k2: float
    k1: float
    average: float
    reward: float


@dataclass(frozen=True)
class ErgodicProblem:
    """Coefficients and grid; the defaults are the published ones, but for the transition (Euler-Maruyama there).

    Attributes:
        A: drift of the state, < 0.
        D: control in the noise, not 0.
        M: weight of x^2.
        N: weight of a^2.
        R: weight of x a.
        P: weight of x.
        Q: weight of a.
        temperature: tau, > 0.
        dt: how long an action is held.
        transition: ``exact`` or ``euler``.

    Raises:
        ValueError: for a drift that is not negative, D = 0, a temperature or step that is not positive, another
            transition, or an Euler step that is not stable.
    """

    A: float = -1.0
    D: float = 1.0
    M: float = 2.0
    N: float = 2.0
    R: float = 1.0
    P: float = 1.0
    Q: float = 2.0
    temperature: float = 0.1
    dt: float = 0.01
    transition: Literal["exact", "euler"] = "exact"

    def __post_init__(self) -> None:
        if not (self.A < 0 and self.D != 0 and self.temperature > 0 and self.dt > 0):
            raise ValueError(
                f"A is {self.A}, D {self.D}, temperature {self.temperature}, dt {self.dt}; "
                "expected < 0, not 0, > 0 and > 0"
            )
        if self.transition not in ("exact", "euler") or not abs(self.alpha) < 1:
            raise ValueError(f"transition is {self.transition}, dt {self.dt}; expected exact, or euler with dt < -2/A")

    @property
    def alpha(self) -> float:
        """The state's own factor over a step."""
        return math.exp(self.A * self.dt) if self.transition == "exact" else 1 + self.A * self.dt

    @property
    def beta2(self) -> float:
        """beta^2, the variance a unit action adds over a step."""
        length = math.expm1(2 * self.A * self.dt) / (2 * self.A) if self.transition == "exact" else self.dt
        return self.D**2 * length

    def cost(self, x: Array, a: Array) -> Array:
        """-r, a unit of time, without the entropy.

        Args:
            x: states, any shape.
            a: actions, the same shape.

        Returns:
            The same shape.
        """
        return x * (0.5 * self.M * x + self.R * a + self.P) + a * (0.5 * self.N * a + self.Q)

    def optimum(self) -> Optimum:
        """Of the agent that holds its actions for dt (equal to continuous time's for the exact transition).

        Raises:
            ValueError: where the quadratic has no real root.
        """
        decay, spread = (1 - self.alpha**2) / self.dt, self.beta2 / self.dt
        # decay k2 (N - spread k2) = R^2 - M (N - spread k2)
        a, b, c = -decay * spread, decay * self.N - self.M * spread, self.M * self.N - self.R**2
        root = b * b - 4 * a * c
        if root < 0:
            raise ValueError(f"the discriminant of k2's equation is {root:.3g}; expected a problem with a solution")
        k2 = (-b + math.sqrt(root)) / (2 * a)
        s = self.N - spread * k2
        other = (-b - math.sqrt(root)) / (2 * a)
        if self.N - spread * other > s:  # the stabilising root has the larger S, and the smaller slope
            k2, s = other, self.N - spread * other
        k1 = (self.R * self.Q / s - self.P) * self.dt / (1 - self.alpha)
        variance = self.temperature / s
        level = self.Q**2 / (2 * s) + 0.5 * self.temperature * math.log(2 * math.pi * variance)
        return Optimum(-self.R / s, -self.Q / s, variance, k2, k1, level, self.Q**2 / (2 * s) - 0.5 * self.temperature)

    def moments(self, slope: Array, intercept: Array, variance: Array) -> tuple[Array, Array, Array]:
        """m_2, m_3, m_4 of the state under N(slope x + intercept, variance).

        Args:
            slope: phi_1, (S,).
            intercept: phi_2, (S,).
            variance: v, (S,).

        Returns:
            (S,) each; infinite where the moment does not exist.
        """
        al, b2, f, c, v = self.alpha, self.beta2, slope, intercept, variance
        cv = c * c + v

        def over(top: Array, bottom: Array) -> Array:
            return np.where(bottom > 0, top / np.where(bottom > 0, bottom, 1.0), np.inf)

        with np.errstate(invalid="ignore", over="ignore"):
            m2 = over(b2 * cv, 1 - al**2 - b2 * f**2)
            m3 = over(6 * al * b2 * f * c * m2, 1 - al**3 - 3 * al * b2 * f**2)
            mixed = 6 * al**2 * b2 * (2 * f * c * m3 + cv * m2)
            fourth = 4 * f**3 * c * m3 + 6 * f**2 * cv * m2 + c**4 + 6 * c**2 * v + 3 * v**2
            # m_1 = 0, so E a^4 has no further terms
            m4 = over(mixed + 3 * b2**2 * fourth, 1 - al**4 - 6 * al**2 * b2 * f**2 - 3 * b2**2 * f**4)
        return m2, m3, m4

    def reward(self, slope: Array, intercept: Array, variance: Array) -> Array:
        """The average reward, without entropy, of N(slope x + intercept, variance), exactly (M N > R^2).

        Args:
            slope: phi_1, (S,).
            intercept: phi_2, (S,).
            variance: v, (S,).

        Returns:
            (S,); minus infinity for a policy that is not mean-square stable.
        """
        m2 = self.moments(slope, intercept, variance)[0]
        curvature = 0.5 * self.M + self.R * slope + 0.5 * self.N * slope**2
        return -(curvature * m2 + 0.5 * self.N * (intercept**2 + variance) + self.Q * intercept)

    def tail_exponent(self, slope: float) -> float:
        """The p at which E|x|^p stops existing under a policy of that slope: the root of E|alpha + beta slope z|^p = 1.

        Kesten (1973): the stationary law has the tail P(|x| > y) ~ y^-p.  As dt goes to 0, p = 1 - 2A/(D slope)^2.

        Args:
            slope: of the acting policy, not 0, mean-square stable.

        Returns:
            p > 2.

        Raises:
            ValueError: for a slope of 0 or one that is not mean-square stable.
        """
        width = math.sqrt(self.beta2) * abs(slope)
        if width == 0 or self.alpha**2 + width**2 >= 1:
            raise ValueError(f"slope is {slope}; expected not 0 and mean-square stable")
        z, w = np.polynomial.legendre.leggauss(400)
        z, w = 12 * z, 12 * w * np.exp(-72 * z * z) / math.sqrt(2 * math.pi)  # the normal law on [-12, 12]
        factor = np.abs(self.alpha + width * z)

        def excess(p: float) -> float:
            return float(w @ factor**p) - 1

        high = 4.0
        while excess(high) < 0:
            high *= 2
        return float(brentq(excess, 2.0, high))
