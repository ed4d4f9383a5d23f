r"""The regret experiment from settings to files: learners x seeds in processes, slopes with intervals, a figure.

Regret of the first N episodes is $\sum_{n<N}(J^* - J(\phi_{1,n}, \phi_{2,n}))$ with the exact J, not the noisy
rewards; the error is $(\phi_{1,n} - \phi_1^*)^2$.  Slopes are those of their means over seeds (`slopes`).
"""

from __future__ import annotations

import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ...errors import InputError
from ...report import Report
from ..outputs import write_csv, write_figure, write_json
from ..slopes import Slope, loglog_slope
from .adaptive import Adaptive
from .exact import RegretProblem
from .model_free import ModelFree
from .paths import Noise, episode
from .plug_in import PlugIn

__all__ = ["LEARNERS", "curves", "run"]

Array = NDArray[np.float64]


class Learner(Protocol):
    """What a learner offers."""

    gain: Array

    @property
    def variance(self) -> Array:
        """phi_2 of the next episode, (S,)."""
        ...

    def learn(self, x: Array, xi: Array) -> None:
        """Use one episode: states (S, K + 1), standardised actions (S, K)."""
        ...


# name: (class, what differs from its defaults, label)
LEARNERS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "published": (ModelFree, {}, "model-free, published setting"),
    "no_entropy": (ModelFree, {"temperature": 0.0}, "without the entropy term"),
    "no_props": (
        ModelFree,
        {"temperature": 0.0, "critic": "learned", "projection": "growing", "rate": 0.15},
        "critic learned, no oracle projection",
    ),
    "adaptive": (Adaptive, {"temperature": 0.0}, "data-driven exploration"),
    "plug_in": (PlugIn, {}, "model-based plug-in"),
}


def curves(name: str, seeds: list[int], episodes: int, every: int, settings: dict[str, float]) -> tuple[Array, Array]:
    """Cumulative regret and squared error of the gain of one learner.

    Args:
        name: a key of `LEARNERS`.
        seeds: one run each.
        episodes: N.
        every: episodes between recorded points.
        settings: of `RegretProblem`.

    Returns:
        (N // every, S) each.
    """
    problem = RegretProblem(**settings)  # type: ignore[arg-type]
    make, options, _ = LEARNERS[name]
    learner: Learner = make(problem, len(seeds), **options)
    noise = Noise(seeds, problem.steps)
    total = np.zeros(len(seeds))
    regrets, errors = [], []
    for n in range(1, episodes + 1):
        xi, normals = noise.episode()
        variance = learner.variance
        x = episode(problem, learner.gain, np.sqrt(variance), xi, normals)
        total = total + problem.regret(learner.gain, variance)
        learner.learn(x, xi)
        if n % every == 0:
            regrets.append(total)
            errors.append((learner.gain - problem.best_gain) ** 2)
    return np.array(regrets), np.array(errors)


def _figure(n: Array, found: dict[str, tuple[Array, Array]], slopes: dict[str, tuple[Slope, Slope]]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for i, name in enumerate(found):
        for axis, values, slope in zip(axes, found[name], slopes[name], strict=True):
            low, high = np.percentile(values, [25, 75], axis=1)
            label = f"{LEARNERS[name][2]}: {slope.slope:.3f} [{slope.low:.3f}, {slope.high:.3f}]"
            axis.fill_between(n, low, high, color=f"C{i}", alpha=0.2, lw=0)
            axis.loglog(n, values.mean(1), color=f"C{i}", label=label)
    axes[0].set(title="cumulative regret (mean; band: quartiles)", xlabel="episodes")
    axes[1].set(title="squared error of the gain", xlabel="episodes")
    for axis in axes:
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    return figure


def run(cfg: Any) -> int:
    """Run the experiment.

    Args:
        cfg: see ``examples/conf/experiment/regret.yaml``.

    Returns:
        The exit code: 1 if a row of the report fails.

    Raises:
        InputError: for unknown learners or sizes.
    """
    names = list(cfg.learners)
    unknown = set(names) - set(LEARNERS)
    if unknown or not names:
        raise InputError(f"learners is {names}; expected some of {', '.join(LEARNERS)}")
    if cfg.seeds < 2 or cfg.episodes < 4 * cfg.every or cfg.workers < 1:
        raise InputError(f"seeds {cfg.seeds}, episodes {cfg.episodes}, workers {cfg.workers}; expected more of them")
    out, start = Path(cfg.out), time.perf_counter()
    seeds = list(range(cfg.seed, cfg.seed + cfg.seeds))
    blocks = [b.tolist() for b in np.array_split(seeds, max(cfg.workers, 1))]
    jobs = [(name, block) for name in names for block in blocks]
    problem = dict(cfg.problem)
    parts: dict[str, list[tuple[Array, Array]]] = {name: [] for name in names}
    seconds: dict[str, float] = {}
    with ProcessPoolExecutor(cfg.workers) as pool, tqdm(total=len(jobs), unit="run", desc="regret") as bar:
        futures = [(name, pool.submit(curves, name, b, cfg.episodes, cfg.every, problem)) for name, b in jobs]
        for name, future in futures:
            parts[name].append(future.result())
            seconds[name] = time.perf_counter() - start
            bar.update()
    n = np.arange(1, cfg.episodes // cfg.every + 1, dtype=float) * cfg.every
    window = (float(cfg.window[0]), float(cfg.window[1]))
    found = {k: (np.concatenate([p[0] for p in v], 1), np.concatenate([p[1] for p in v], 1)) for k, v in parts.items()}
    slopes = {k: (loglog_slope(n, r, window), loglog_slope(n, e, window)) for k, (r, e) in found.items()}
    took = time.perf_counter() - start

    columns: dict[str, Any] = {"episode": n.astype(int).tolist()}
    for name, values in found.items():
        for kind, array in zip(("regret", "squared_error"), values, strict=True):
            columns[f"{name}_{kind}_mean"] = array.mean(1).tolist()
            for q in (25, 50, 75):
                columns[f"{name}_{kind}_q{q}"] = np.percentile(array, q, axis=1).tolist()
    write_csv(out / "results.csv", columns)
    write_json(
        out / "results.json",
        {
            "problem": asdict(RegretProblem(**problem)),
            "seconds": took,
            "learners": {
                name: {
                    "label": LEARNERS[name][2],
                    "regret": asdict(slopes[name][0]),
                    "squared_error": asdict(slopes[name][1]),
                    "final_regret": found[name][0][-1].mean(),
                    "final_squared_error": found[name][1][-1].mean(),
                }
                for name in names
            },
        },
    )
    write_figure(out / "figure.png", _figure(n, found, slopes))
    report = Report(program="run_experiment name=regret", seeds=[seeds[0], seeds[-1]], seconds=round(took, 1))
    for name in names:
        regret, error = slopes[name]
        bars = cfg.bars.get(name, {})
        text = f"[{regret.low:.3f}, {regret.high:.3f}]"
        limit = bars.get("regret", float("inf"))
        report.add(f"{name}: slope of regret {text}", regret.slope, f"<= {limit:g}", regret.slope <= limit)
        limit, text = bars.get("squared_error", float("inf")), f"[{error.low:.3f}, {error.high:.3f}]"
        report.add(f"{name}: slope of squared error {text}", error.slope, f"<= {limit:g}", error.slope <= limit)
    if cfg.minutes:
        report.below("minutes of the whole experiment", took / 60, float(cfg.minutes))
    return report.finish(out)
