r"""Asset-liability management in random markets, after Huang (ICAIF 2025): interim and terminal costs of a surplus.

Y is the deviation of the surplus from its target, in units of its size today: liabilities make it drift and
fluctuate by itself, the portfolio u adds excess return and risk,

$$
dY = (AY + Bu)\,dt + (CY + Du)\,dW, \qquad
\min\ E\Big[\tfrac Q2\int_0^TY^2dt + \tfrac H2Y_T^2\Big] .
$$

The paper's own parameters could not be read; ours are $A \in [-0.2, 0.4]$, $\pm B \in [0.1, 0.6]$,
$C \in [-0.4, 0.4]$, $D \in [0.15, 0.6]$, uniform and independent, Q = H = T = 1, 252 days.  The learner is that of the
mean-variance problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...lq import LQProblem, riccati
from .market import Market
from .paths import explore, stream
from .plug_in import plug_in_linear
from .training import Settings, offline

__all__ = ["Costs", "compare", "continuous_optimum", "random_markets"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """Exact expected costs of deterministic execution in K markets.

    Attributes:
        optimum: of the optimal gain of the grid, (K,).
        nothing: of u = 0, (K,).
        learned: of the learned gains, (S, K).
        plug_in: of gains estimated from as many years as a person might have, (S, K).
        theta: relative gap of the critic's rate to the exact one of the learned gain, (S, K).
    """

    optimum: Array
    nothing: Array
    learned: Array
    plug_in: Array
    theta: Array

    @classmethod
    def join(cls, parts: Sequence[Costs]) -> Costs:
        """The seeds of several runs in the same markets.

        Args:
            parts: of the runs.
        """
        many = (np.concatenate([getattr(p, name) for p in parts]) for name in ("learned", "plug_in", "theta"))
        return cls(parts[0].optimum, parts[0].nothing, *many)


def random_markets(count: int, seed: int, steps: int = 252) -> Market:
    """Markets with the laws above.

    Args:
        count: K.
        seed: of the draw.
        steps: trading days.
    """
    noise = stream(seed, 3)
    a, c = noise.uniform(-0.2, 0.4, count), noise.uniform(-0.4, 0.4, count)
    b, d = noise.uniform(0.1, 0.6, count) * noise.choice([-1.0, 1.0], count), noise.uniform(0.15, 0.6, count)
    return Market(a, b, c, d, Q=1.0, H=1.0, steps=steps)


def continuous_optimum(market: Market) -> Array:
    """The optimal cost with continuous trading from Y = 1, by the package's Riccati equation.

    Args:
        market: K markets.

    Returns:
        (K,).
    """
    shaped = {name: getattr(market, name)[:, None, None] for name in "AB"}
    columns = {name: getattr(market, name)[:, None, None, None] for name in "CD"}
    problem = LQProblem(**shaped, **columns, Q=market.Q, R=0.0, G=market.H, horizon=market.horizon)
    big: Array = riccati(problem).value.terms(0.0)[0].numpy()
    return 0.5 * big[:, 0, 0]


def compare(market: Market, seed: int, settings: Settings, years: int) -> Costs:
    """Learn, estimate, do nothing; and what each costs.

    Args:
        market: K markets.
        seed: of the noise, S = 1.
        settings: of the learner.
        years: of the plug-in's data, explored with variance 1.
    """
    found = offline(market, None, seed, settings)
    exact = -np.log(market.factors(found.gain)[1]) / market.h
    xi, dw = stream(seed, 4).standard_normal((2, market.steps, 1, years))
    spread = np.ones((market.steps, len(market)))
    y = explore(market, np.zeros(len(market)), spread, xi, dw * market.h**0.5)
    estimated = plug_in_linear(market, y, np.broadcast_to(xi, (market.steps, len(market), years)))
    return Costs(
        optimum=market.cost(market.best_gain),
        nothing=market.cost(np.zeros(len(market))),
        learned=market.cost(found.gain),
        plug_in=market.cost(estimated[None]),
        theta=np.abs(found.theta - exact) / (1 + np.abs(exact)),
    )
