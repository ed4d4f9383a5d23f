"""The picture of the experiment: learning on the policy, off the policy, and what the step does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .problem import ErgodicProblem, Optimum
from .train import Trained

__all__ = ["draw"]

Array = NDArray[np.float64]
FORMS = {"Q": "Q", "Q_scaled": "Q scaled", "q": "q"}


def _band(axis: Any, x: Array, values: Array, colour: str, label: str) -> None:
    """Median and quartiles over the last axis."""
    finite = np.where(np.isfinite(values), values, np.nan)
    low, middle, high = np.nanpercentile(finite, [25, 50, 75], axis=1)
    axis.fill_between(x, low, high, color=colour, alpha=0.25, lw=0)
    axis.plot(x, middle, color=colour, label=label)


def _parameters(axis: Any, found: Trained, streams: int, truth: Optimum, mean: Array | None) -> None:
    x = found.steps * streams
    curves = (
        (found.trace[:, 3], truth.slope, "slope", None if mean is None else mean[:, 3]),
        (found.trace[:, 4], truth.intercept, "intercept", None if mean is None else mean[:, 4]),
        (np.exp(found.trace[:, 5]), truth.variance, "variance", None if mean is None else np.exp(mean[:, 5])),
    )
    for i, (values, exact, label, line) in enumerate(curves):
        _band(axis, x, values / exact, f"C{i}", f"{label} {exact:.4f}")
        if line is not None:
            axis.plot(x, line / exact, color="k", ls=":", lw=1, label="mean equation" if i == 0 else None)
    axis.axhline(1.0, color="k", lw=0.8)
    axis.set(xscale="log", ylim=(0, 2.2), xlabel="environment steps a repeat", ylabel="learned / closed form")
    axis.legend(fontsize=7)


def draw(
    found: Mapping[str, Trained],
    streams: Mapping[str, int],
    problem: ErgodicProblem,
    truth: Optimum,
    mean: Array,
    errors: Mapping[str, Mapping[str, Any]],
    dts: Sequence[float],
) -> Any:
    """Six panels.

    Args:
        found: learners by name, as `tasks.learn` returns them.
        streams: B of each.
        problem: gives the temperature.
        truth: the closed form.
        mean: the mean equation at the actor-critic's records, (K, 6).
        errors: for each form of `big_q`, lists by step: ``common`` and ``best`` (medians), ``share``.
        dts: the steps.

    Returns:
        The matplotlib figure.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(13, 7.2), layout="constrained")
    ac = found["actor_critic"]
    top = axes[0]
    x = ac.steps * streams["actor_critic"]
    _band(top[0], x, -ac.costs, "C0", "realised, between records")
    total = -np.cumsum(ac.costs, axis=0) / np.arange(1, len(ac.steps) + 1)[:, None]
    _band(top[0], x, total, "C1", "from the first step on")
    omniscient = 0.5 * truth.intercept**2 * problem.temperature / truth.variance  # Q^2 / (2 S), as S = tau / variance
    top[0].axhline(truth.reward, color="k", ls="--", lw=1, label=f"optimum less exploration cost {truth.reward:.4f}")
    top[0].axhline(omniscient, color="k", ls=":", lw=1, label=f"omniscient {omniscient:.4f}")
    top[0].set(title="actor-critic: average reward", ylim=(0.3, 0.75), xlabel="environment steps a repeat")
    top[0].legend(fontsize=7, loc="lower right")
    _parameters(top[1], ac, streams["actor_critic"], truth, mean)
    top[1].set_title("actor-critic: parameters (median, quartiles)")
    _parameters(top[2], found["q_off"], streams["q_off"], truth, None)
    top[2].set_title("q-learning off the policy, N(x + 1, 1)")

    axis = axes[1, 0]
    for i, (name, label) in enumerate((("q_off", "weights"), ("q_plain", "no weights, rates / 100"))):
        x, trace = found[name].steps * streams[name], found[name].trace
        with np.errstate(all="ignore"):
            near = [np.abs(trace[:, 3] / truth.slope - 1) < 1, np.abs(trace[:, 4] / truth.intercept - 1) < 1]
        diverged = ~np.isfinite(trace).all(1)
        axis.plot(x, 100 * diverged.mean(1), color=f"C{i}", label=f"{label}: diverged")
        axis.plot(x, 100 * (~(near[0] & near[1])).mean(1), color=f"C{i}", ls="--", lw=1, label=f"{label}: > 100 % off")
    axis.set(title="off the policy: repeats that are lost", xlabel="environment steps a repeat", ylabel="% of repeats")
    axis.set(xscale="log", ylim=(-3, 103))
    axis.legend(fontsize=7, loc="center right")

    axis = axes[1, 1]
    for i, form in enumerate(("Q", "Q_scaled", "q")):
        for kind, style in (("common", "-"), ("best", "--")):
            middle = np.array([100 * min(m.value, 1.0) for m in errors[form][kind]])
            low = np.array([100 * min(m.low, 1.0) for m in errors[form][kind]])
            high = np.array([100 * min(m.high, 1.0) for m in errors[form][kind]])
            bars = np.stack([middle - low, high - middle])
            label = FORMS[form] + (", one rate" if kind == "common" else ", best rate a step")
            axis.errorbar(dts, middle, bars, color=f"C{i}", ls=style, marker="o", ms=3, capsize=2, lw=1.2, label=label)
    axis.set(
        xscale="log", yscale="log", title="error of the gain, same simulated time", ylabel="median, % (100 = lost)"
    )
    axis.set(xlabel="step", ylim=(0.25, 130))
    axis.invert_xaxis()
    axis.legend(fontsize=7, loc="lower center", ncols=2)

    axis = axes[1, 2]
    for i, form in enumerate(("Q", "Q_scaled", "q")):
        middle = np.array([100 * m for m in errors[form]["share"]])
        axis.plot(dts, middle, color=f"C{i}", marker="o", ms=3, label=FORMS[form])
    axis.plot(dts, [100 * s for s in errors["exact"]["share"]], color="k", ls=":", label="optimal Q")
    axis.set(xscale="log", yscale="log", title="learned Q: variance due to the action", ylabel="%", xlabel="step")
    axis.invert_xaxis()
    axis.legend(fontsize=7)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    return figure
