"""The figure of the experiment: Sharpe ratios, terminal wealth, learning curves, asset-liability costs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .asset_liability import Costs
from .market import Goal, Market
from .published import SHARPE
from .training import Learned

__all__ = ["draw"]

Array = NDArray[np.float64]


def draw(market: Market, goal: Goal, cells: list[tuple[float, float]], found: dict[str, Learned], costs: Costs) -> Any:
    """Draw the four panels.

    Args:
        market: the K mean-variance problems.
        goal: x0 and z.
        cells: (mu, sigma) of each.
        found: what the learners ended with, by name.
        costs: of the asset-liability markets.

    Returns:
        The figure.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ((ratio, wealth), (curve, alm)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    best, price = market.sharpe(market.best_gain), np.abs(market.B / market.D)
    for i, (name, learned) in enumerate(found.items()):
        low, middle, high = np.percentile(market.sharpe(learned.gain) / best, [25, 50, 75], axis=0)
        where = price * (1 + 0.02 * (i - 0.5 * len(found)))
        style: dict[str, Any] = {"fmt": "o", "ms": 4, "lw": 1, "color": f"C{i}", "label": name}
        ratio.errorbar(where, middle, [middle - low, high - middle], **style)
        if not np.isnan(learned.w).any():
            reached = market.mean_wealth(learned.gain, learned.w, goal.x0)
            low, middle, high = np.percentile(reached, [25, 50, 75], axis=0)
            wealth.errorbar(where, middle, [middle - low, high - middle], **style)
        path = np.array([1 - np.maximum(market.sharpe(g) / best, 0) for g in learned.gains])
        low, middle, high = np.percentile(path.reshape(len(path), -1), [25, 50, 75], axis=1)
        curve.fill_between(learned.years, low, high, color=f"C{i}", alpha=0.2, lw=0)
        curve.loglog(learned.years, middle, color=f"C{i}", label=name)
    for column, (marker, name) in enumerate((("x", "WZ, MSTDE"), ("v", "offline"), ("^", "online"))):
        at = [cells.index(c) for c in SHARPE]
        values = np.array([SHARPE[c][column] for c in SHARPE]) / best[at]
        ratio.plot(price[at], values, marker, color="0.4", ms=6, label=f"published: {name}")
    ratio.axhline(0.95, color="k", lw=0.8, ls=":")
    ratio.set(xscale="log", xlabel="price of risk", title="Sharpe ratio over the optimum of daily trading")
    ratio.set_ylim(-0.05, 1.05)
    wealth.axhspan(0.98 * goal.z, 1.02 * goal.z, color="0.9")
    wealth.axhline(goal.z, color="k", lw=0.8)
    wealth.set(xscale="log", xlabel="price of risk", title="mean terminal wealth (grey: goal within 2 %)")
    curve.set(xlabel="years seen", title="1 - Sharpe / optimum (median and quartiles, all markets and seeds)")
    order = np.argsort(costs.nothing / costs.optimum)
    rank = np.arange(1, len(order) + 1)
    curves = {"learned": costs.learned, "plug-in": costs.plug_in, "no control": costs.nothing[None]}
    for i, (label, values) in enumerate(curves.items()):
        middle = np.median(values, axis=0)[order] / costs.optimum[order] - 1
        alm.semilogy(rank, middle, "o-", ms=3, lw=0.8, color=f"C{i}", label=label)
    alm.axhline(0.02, color="k", lw=0.8, ls=":")
    alm.set(xlabel="random market, in the order of what control can gain")
    alm.set_title("asset-liability: cost / optimum - 1 (median)")
    for axis in (ratio, wealth, curve, alm):
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    return figure
