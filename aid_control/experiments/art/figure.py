"""The experiment's figure: densities, errors against calls for both solvers, and the learned clock in one dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .backbones import clock_of, refined_for

__all__ = ["draw"]

STYLES = {
    "karras": ("k", "o", "Karras, rho = 7"),
    "log": ("C7", "v", "uniform in log sigma"),
    "uniform": ("C5", "^", "uniform in sigma"),
    "local": ("C0", "s", "ART: local error"),
    "arriving": ("C2", "d", "error that arrives"),
    "refined": ("C3", "D", "refined on errors"),
    "short": ("C1", "x", "Karras, ends as refined"),
}


def _errors(axis: Any, rows: Sequence[Mapping[str, Any]], solver: str, title: str) -> None:
    for name, (color, marker, label) in STYLES.items():
        mine = [r for r in rows if r["solver"] == solver and r["clock"] == name]
        if mine:
            calls, errors = [r["calls"] for r in mine], [np.mean(r["errors"]) for r in mine]
            axis.loglog(calls, errors, color=color, marker=marker, ms=4, lw=1, label=label)
    ticks = sorted({r["calls"] for r in rows if r["solver"] == solver and r["clock"] == "karras"})
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.set_xticks([], minor=True)
    axis.set(title=title, xlabel="calls an image", ylabel="RMS error a pixel")
    axis.grid(alpha=0.3)


def _one_dim(axis: Any, found: Mapping[str, Any], end: float) -> None:
    s = np.linspace(0, end, 200)
    knots = np.linspace(end, 0, len(found["knots"][0]))
    for i, log in enumerate(found["knots"]):
        speed = np.exp(-np.interp(s, knots[::-1], np.array(log)[::-1]))
        speed *= np.trapezoid(1 / speed, s)  # int ds / theta = 1
        axis.plot(s, speed, color="C3", lw=1, label="learned (one line a seed)" if i == 0 else None)
    for power, style, label in ((0.75, "k-", "optimum, power 3/4"), (1.0, "k:", "power 1"), (0.0, "C5--", "uniform")):
        speed = (1 + s**2) ** power
        axis.plot(s, speed * np.trapezoid(1 / speed, s), style, label=label)
    axis.set(title="one dimension: speed of the clock", ylim=(0, 10), xlabel="noise level s", ylabel="theta")
    axis.legend(fontsize=7)


def _clocks(axis: Any, learned: Mapping[str, Any], name: str) -> None:
    u = np.linspace(np.log(0.002), np.log(80), 300)
    rho = np.exp(u / 7)
    axis.semilogx(np.exp(u), rho / np.trapezoid(rho, u), "k", label="Karras, rho = 7")
    for kind in ("local", "refined"):
        for solver, dash in (("heun", "-"), ("euler", "--")):
            if kind in learned["clocks"]:
                found = learned["clocks"][kind][solver]
                clock = refined_for(found, 10**6) if kind == "refined" else clock_of(found)
                v, log = np.log(clock.levels), np.log(clock.density)
                w = np.exp(np.interp(u, v[::-1], log[::-1]))
                color, _, label = STYLES[kind]
                axis.semilogx(np.exp(u), w / np.trapezoid(w, u), dash, color=color, label=f"{label}, {solver}")
    axis.set(title=f"{name}: density of levels", xlabel="sigma", ylabel="share a unit of log sigma")
    axis.legend(fontsize=7)


def _costs(axis: Any, found: Mapping[str, Any]) -> None:
    for costs in found["costs"]:
        window = max(1, len(costs) // 20)
        smooth = np.convolve(costs, np.full(window, 1 / window), "valid")
        axis.plot(np.arange(len(smooth)) + window, smooth, color="C3", lw=1)
    axis.set(title="one dimension: cost of an episode, smoothed", xlabel="batches", ylabel="cost, exploring taken off")
    axis.grid(alpha=0.3)


def _detail(axis: Any, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    for clock in ("karras", "local", "refined"):
        for solver, dash in (("heun", "-"), ("euler", "--")):
            mine = [r for r in rows if r["solver"] == solver and r["clock"] == clock]
            if mine:
                color, marker, label = STYLES[clock]
                calls, detail = [r["calls"] for r in mine], [np.mean(r["detail"]) for r in mine]
                axis.semilogx(calls, detail, dash, color=color, marker=marker, ms=4, lw=1, label=f"{label}, {solver}")
    axis.axhline(1, color="k", lw=0.5)
    axis.set(title=f"{name}: energy of details", xlabel="calls an image", ylabel="over the fine solution's")
    axis.legend(fontsize=6)
    axis.grid(alpha=0.3)


def draw(one_dim: Mapping[str, Any] | None, end: float, backbones: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw what was measured.

    Args:
        one_dim: of `one_dim.compare`, or ``None``.
        end: T there.
        backbones: name to ``learned`` (of `backbones.learn_clocks`) and ``rows`` (of `backbones.errors_of_clocks`).
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = 2 * (one_dim is not None) + 3 * len(backbones) + bool(backbones)
    columns = min(3, panels)
    lines = -(-panels // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(4.3 * columns, 3.5 * lines), squeeze=False)
    figure.set_layout_engine("constrained")
    axes = list(grid.flat)
    for axis in axes[panels:]:
        axis.axis("off")
    for name, found in backbones.items():
        density, euler, heun, *axes = axes
        _clocks(density, found["learned"], name)
        _errors(euler, found["rows"], "euler", f"{name}: Euler")
        _errors(heun, found["rows"], "heun", f"{name}: Heun")
        euler.legend(fontsize=6)
    if one_dim is not None:
        _one_dim(axes[0], one_dim, end)
        _costs(axes[1], one_dim)
        axes = axes[2:]
    if backbones:
        name = next(iter(backbones))
        _detail(axes[0], backbones[name]["rows"], name)
    return figure
