r"""Discrete-time soft Q-learning and the rate q, in the same coordinates, to see what a small step does to each.

For an agent that holds its action for $\Delta t$ the optimal action value is $J(x)$ plus $\Delta t$ times a quadratic
in a (docs/explanation/q-learning.md, section 1).  Both learners write it, with one unit u,

$$
Q(x, a) = \tfrac12\theta_0x^2 + \theta_1x + u\,\big(\tfrac12Sa^2 + kxa + la\big), \qquad
V(x) = -\tau\Delta t\,\log\int e^{-Q(x,a)/(\tau\Delta t)}da,
$$

$$
\delta = V(x') - Q(x, a) + (c - \eta)\Delta t, \qquad
(\theta, \eta) \mathrel{+}= a_n\big(\tfrac12x^2, x, 1\big)\,\delta, \qquad
(S, k, l) \mathrel{+}= a_n\,g\,\big(\tfrac12a^2, xa, a\big)\,\delta ,
$$

and the policy is $N\big(-(kx + l)/S,\ \tau\Delta t/(uS)\big)$.  What differs is u and g:

| form | u | g | the step of S, k, l seen in units of q |
|---|---|---|---|
| ``Q``: the plain linear Q | 1 | 1 | $a_n/\Delta t$ |
| ``Q_scaled``: the same Q, its action part written in units of its size | $\Delta t$ | $\Delta t$ | $a_n\Delta t$ |
| ``q``: the rate | $\Delta t$ | 1 | $a_n$ |

At $\Delta t = 1$ the three are one algorithm; started from the same function they *are* one algorithm up to the last
column (tested number by number).  $\delta$ has mean $O(\Delta t)$ and noise $O(\sqrt{\Delta t})$.  A weight of rate
$a$ then learns $O(a)$ in a unit of simulated time, with a variance $O(a)$: for q neither depends on the step.  Q's
action part has rate $a/\Delta t$ or $a\Delta t$ instead: it is noise, or it stands still, and a rate that suits it
does not suit J.

S is kept above ``floor`` (in units of q): below 0 there is no policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .problem import ErgodicProblem

__all__ = ["BigQ", "Form", "action_share", "optimal_weights"]

Array = NDArray[np.float64]
Form = Literal["Q", "Q_scaled", "q"]


class BigQ:
    """Soft Q-learning off the policy.  Starts at J = 0 and the policy N(0, tau), whatever the form.

    Args:
        problem: coefficients and grid.
        repeats: S.
        streams: B.
        rates: rate of all weights of a repeat, (S,), or of every weight, (6, S).
        behaviour: slope, intercept and variance of the acting policy.
        form: ``Q``, ``Q_scaled`` or ``q``.
        schedule: factor of all rates by step.
        floor: smallest S, in units of q.

    Attributes:
        weights: theta_0, theta_1, eta, S, k, l, (6, S).
        x: states, (S, B).
        n: steps made.

    Raises:
        ValueError: for another form.
    """

    def __init__(
        self,
        problem: ErgodicProblem,
        repeats: int,
        streams: int,
        rates: Array,
        behaviour: tuple[float, float, float],
        form: Form,
        schedule: Callable[[int], float] = lambda n: 1.0,
        floor: float = 0.1,
    ) -> None:
        if form not in get_args(Form):
            raise ValueError(f"form is {form}; expected one of {', '.join(get_args(Form))}")
        self.problem, self.behaviour, self.form, self.schedule = problem, behaviour, form, schedule
        self.rates, self.floor = np.asarray(rates, dtype=float), floor
        self.unit = 1.0 if form == "Q" else problem.dt
        self.slope_factor = problem.dt if form == "Q_scaled" else 1.0
        self.weights = np.zeros((6, repeats))
        self.weights[3] = problem.dt / self.unit
        self.x = np.zeros((repeats, streams))
        self.n = 0

    def in_units_of_q(self, weights: Array) -> Array:
        """Weights with S, k, l times u / dt: what should depend neither on the form nor on the step.

        Args:
            weights: of this learner at some time, (6, S).

        Returns:
            (6, S).
        """
        factor = np.array([1.0, 1.0, 1.0, *3 * (self.unit / self.problem.dt,)])
        return factor[:, None] * weights

    def step(self, xi: Array, z: Array) -> Array:
        """One step of every stream, and the update.

        Args:
            xi: normals of the actions, (S, B).
            z: normals of the Brownian motion, (S, B).

        Returns:
            The mean cost rate of each repeat over its streams, without the entropy, (S,).
        """
        p, x, unit = self.problem, self.x, self.unit
        slope, intercept, variance = self.behaviour
        a = slope * x + intercept + math.sqrt(variance) * xi
        ahead = p.alpha * x + math.sqrt(p.beta2) * a * z
        cost = p.cost(x, a)
        t0, t1, eta, s, k, c = (w[:, None] for w in self.weights)
        now = x * (0.5 * t0 * x + t1) + unit * a * (0.5 * s * a + k * x + c)
        line = k * ahead + c
        level = 0.5 * p.temperature * p.dt * np.log(2 * math.pi * p.temperature * p.dt / (unit * s))
        value = ahead * (0.5 * t0 * ahead + t1) - (0.5 * unit / s) * line * line - level
        delta = value - now + (cost - eta) * p.dt
        moved, acted = x * delta, a * delta
        directions = np.stack(
            [
                0.5 * np.einsum("ij,ij->i", moved, x),
                moved.sum(1),
                delta.sum(1),
                0.5 * self.slope_factor * np.einsum("ij,ij->i", acted, a),
                self.slope_factor * np.einsum("ij,ij->i", acted, x),
                self.slope_factor * acted.sum(1),
            ]
        )
        self.weights = self.weights + (self.schedule(self.n) / x.shape[1]) * self.rates * directions
        self.weights[3] = np.maximum(self.weights[3], self.floor * p.dt / unit)
        self.x = ahead
        self.n += 1
        mean: Array = cost.mean(1)
        return mean


def action_share(problem: ErgodicProblem, behaviour: tuple[float, float, float], weights: Array) -> Array:
    """The share of the variance of Q that is due to the action, under a behaviour and its stationary states.

    Args:
        problem: coefficients and grid.
        behaviour: slope, intercept and variance of the actions.
        weights: theta_0, theta_1, anything, S, k, l in units of q, (6, S).

    Returns:
        E Var(Q given x) / Var(Q), (S,); of order dt^2 for weights that do not depend on dt.

    Raises:
        ValueError: for a behaviour without fourth moments of the state.
    """
    f, i, v = behaviour
    m2, m3, m4 = (float(m[0]) for m in problem.moments(*(np.array([b]) for b in behaviour)))
    if not math.isfinite(m4):
        raise ValueError(f"behaviour is {behaviour} and the state has no fourth moment; expected one that has")
    t0, t1, _, s, k, c = weights
    s, k, c = problem.dt * s, problem.dt * k, problem.dt * c
    # a = f x + i + e: the action's part is e (g1 x + g2) + s e^2 / 2
    g1, g2 = s * f + k, s * i + c
    inside = v * (g1 * g1 * m2 + g2 * g2) + 0.5 * (s * v) ** 2
    # E[Q given x] = c2 x^2 / 2 + c1 x + a constant
    c2, c1 = t0 + s * f * f + 2 * k * f, t1 + s * f * i + k * i + c * f
    between = 0.25 * c2 * c2 * (m4 - m2 * m2) + c2 * c1 * m3 + c1 * c1 * m2
    share: Array = inside / (inside + between)
    return share


def optimal_weights(problem: ErgodicProblem) -> Array:
    """The weights of the optimal Q: S = N - k2 beta^2/dt, k = R, l = Q, and theta so that V is the value.

    Args:
        problem: coefficients and grid.

    Returns:
        theta_0, theta_1, eta, S, k, l in units of q, (6,).  Q has no constant, so eta is minus the average reward.
    """
    best, dt = problem.optimum(), problem.dt
    s = problem.temperature / best.variance
    theta = (-best.k2 + dt * problem.R**2 / s, -best.k1 + dt * problem.R * problem.Q / s)
    return np.array([*theta, -best.average, s, problem.R, problem.Q])
