r"""The mean-variance experiment from settings to files.

What is judged is the deterministic execution of the learned mean, exactly: wealth is affine in every step, so its
first two moments are powers (`market`).  The optimum is that of daily trading, which bounds every strategy
(docs/explanation/mean-variance.md, section 7).  For each market the median over seeds counts, with its 95 % bootstrap
interval; the same execution is simulated by `rollout.rollout` and compared with the exact moments.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ...errors import InputError
from ...lq import AffineGaussian, LQProblem
from ...report import Report
from ...rollout import rollout
from ..outputs import write_csv, write_figure, write_json
from .asset_liability import Costs, compare, continuous_optimum, random_markets
from .figure import draw
from .market import Goal, Market, stocks
from .paths import stream
from .plug_in import plug_in_stocks
from .published import SHARPE
from .training import Learned, Settings, execute, offline, online

__all__ = ["bootstrap", "jackknife", "run", "simulate"]

Array = NDArray[np.float64]
LEARNERS = ("offline", "online", "unweighted")
FINE = 16384  # trades a year that are as good as continuous
CALM = 1.0  # price of risk up to which fourth moments of wealth can be sampled: they grow like exp(4 k^2)


def bootstrap(values: Array, resamples: int = 1000, seed: int = 0) -> tuple[Array, Array]:
    """95 % intervals of the medians over seeds.

    Args:
        values: (S, K).
        resamples: of the seeds.
        seed: of the resampling.

    Returns:
        Lower and upper ends, (K,) each.
    """
    chosen = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(np.median(values[chosen], axis=1), [2.5, 97.5], axis=0)
    return low, high


def jackknife(wealth: Array, x0: float, groups: int = 20) -> Array:
    """Standard errors of simulated Sharpe ratios, leaving out one group of paths at a time.

    Args:
        wealth: terminal, (K, N), N a multiple of the groups.
        x0: wealth at time 0.
        groups: of paths.

    Returns:
        (K,).
    """
    parts = wealth.reshape(len(wealth), groups, -1)
    rest = [np.delete(parts, g, axis=1).reshape(len(wealth), -1) for g in range(groups)]
    ratios = np.array([(r.mean(1) - x0) / r.std(1) for r in rest])
    error: Array = np.sqrt((groups - 1) * ratios.var(0))
    return error


def simulate(market: Market, gain: Array, w: Array, x0: float, paths: int, seed: int) -> Array:
    """Terminal wealth of the deterministic execution by the package's rollout.

    Args:
        market: K mean-variance problems.
        gain: of u = gain (X - w), (K,).
        w: the multiplier, (K,).
        x0: wealth at time 0.
        paths: N a market.
        seed: of the Brownian paths.

    Returns:
        (K, N).
    """
    shaped = [torch.from_numpy(c)[:, None, None] for c in (market.B, gain)]
    problem = LQProblem(0.0, shaped[0], R=0.0, D=torch.from_numpy(market.D)[:, None, None, None], G=2.0)
    distance = torch.from_numpy(w - x0).repeat_interleave(paths)[:, None]
    grid = torch.linspace(0, market.horizon, market.steps + 1, dtype=torch.float64)
    end = rollout(problem, AffineGaussian.constant(shaped[1]), -distance, grid, entropy=seed, keep="last").states[-1]
    return w[:, None] + end.numpy().reshape(len(market), paths)


def _learn(kind: str, market: Market, goal: Goal, seeds: list[int], settings: Settings, years: int) -> Learned:
    """One job: learn some seeds, then execute."""
    if kind == "online":
        found = online(market, goal, seeds, settings)
    else:
        found = Learned.join([offline(market, goal, s, settings) for s in seeds])
    found.w = np.stack(
        [execute(market, goal, g, w, s, years, settings.m) for g, w, s in zip(found.gain, found.w, seeds, strict=True)]
    )
    return found


def _check(cfg: Any) -> None:
    names = list(cfg.learners)
    unknown = set(names) - set(LEARNERS)
    if unknown or "offline" not in names or "online" not in names:
        raise InputError(f"learners is {names}; expected offline, online and perhaps unweighted")
    sizes = {"seeds": cfg.seeds, "workers": cfg.workers, "execute": cfg.execute, "paths": cfg.paths}
    if min(sizes.values()) < 1 or cfg.seeds < 2 or cfg.paths % 20:
        given = ", ".join(f"{k} is {v}" for k, v in sizes.items())
        raise InputError(f"{given}; expected at least 1, 2 seeds, paths a multiple of 20")
    missing = [c for c in SHARPE if c[0] not in list(cfg.mu) or c[1] not in list(cfg.sigma)]
    if missing:
        raise InputError(f"mu and sigma leave out {missing}; expected all published pairs")


def _settings(given: Any) -> Settings:
    try:
        return Settings(**dict(given))
    except (TypeError, ValueError) as error:
        raise InputError(f"settings are {dict(given)}: {error}; expected those of training.Settings") from error


def _work(cfg: Any, market: Market, goal: Goal, alm: Market) -> tuple[dict[str, Learned], Costs]:
    """All jobs in processes; what a job sees depends on its seeds alone."""
    every = list(range(cfg.seed, cfg.seed + cfg.seeds))
    jobs: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = []
    for name in cfg.learners:
        settings, seeds = _settings(cfg[name]), every if name != "unweighted" else every[: cfg.few]
        size = -(-len(seeds) // cfg.workers) if name == "online" else 1  # online, seeds share the loop over days
        blocks = [seeds[i : i + size] for i in range(0, len(seeds), size)]
        jobs += [(name, _learn, (name, market, goal, block, settings, cfg.execute)) for block in blocks]
    settings = _settings(cfg.asset_liability.learner)
    jobs += [("alm", compare, (alm, seed, settings, cfg.asset_liability.data)) for seed in every]
    parts: dict[str, list[Any]] = {}
    with ProcessPoolExecutor(cfg.workers) as pool, tqdm(total=len(jobs), unit="job", desc="mean_variance") as bar:
        futures = [(name, pool.submit(do, *args)) for name, do, args in jobs]
        for name, future in futures:
            parts.setdefault(name, []).append(future.result())
            bar.update()
    return {name: Learned.join(parts[name]) for name in cfg.learners}, Costs.join(parts["alm"])


def _rows(
    report: Report, name: str, sharpe: Array, wealth: Array, best: Array, goal: Goal, six: list[int], bars: Any
) -> dict[str, Any]:
    """Rows of a learner; numbers for the JSON."""
    near, off = np.median(sharpe, axis=0) / best, np.median(np.abs(wealth / goal.z - 1), axis=0)
    ends = bootstrap(sharpe)
    top = np.array([max(v) for v in SHARPE.values()])
    for where, label in ((six, "published"), (list(range(len(best))), "all")):
        share = float(np.mean(near[where] >= 0.95))
        report.above(
            f"{name}: share of {len(where)} {label} pairs, Sharpe within 5 % of the optimum", share, bars.sharpe
        )
        share = float(np.mean(off[where] <= 0.02))
        report.above(f"{name}: share of {len(where)} {label} pairs, mean wealth within 2 % of z", share, bars.wealth)
    above = float(np.sum(ends[0][six] > top))
    report.above(f"{name}: published pairs with Sharpe interval above all published", above, bars.above_published)
    return {
        "sharpe_share_of_pairs_and_seeds": np.mean(sharpe / best >= 0.95),
        "wealth_share_of_pairs_and_seeds": np.mean(np.abs(wealth / goal.z - 1) <= 0.02),
        "smallest_sharpe_over_optimum": (sharpe / best).min(),
        "smallest_median": near.min(),
        "largest_median_gap_of_wealth": off.max(),
    }


def run(cfg: Any) -> int:
    """Run the experiment.

    Args:
        cfg: see ``examples/conf/experiment/mean_variance.yaml``.

    Returns:
        The exit code: 1 if a row of the report fails.

    Raises:
        InputError: for unknown learners, sizes, or pairs that leave out the published ones.
    """
    _check(cfg)
    out, start = Path(cfg.out), time.perf_counter()
    try:
        goal = Goal(cfg.x0, cfg.z)
        market = stocks(list(cfg.mu), list(cfg.sigma), cfg.rate, cfg.horizon, cfg.steps)
        alm = random_markets(cfg.asset_liability.markets, cfg.seed, cfg.steps)
    except ValueError as error:
        raise InputError(str(error)) from error
    cells = [(float(m), float(s)) for m in cfg.mu for s in cfg.sigma]
    six, best = [cells.index(c) for c in SHARPE], market.sharpe(market.best_gain)
    found, costs = _work(cfg, market, goal, alm)
    data = plug_in_stocks(market, goal, cfg.data, 1000, stream(cfg.seed, 5))
    report = Report(program="run_experiment name=mean_variance", seeds=[cfg.seed, cfg.seed + cfg.seeds - 1])
    columns: dict[str, Any] = {"mu": [c[0] for c in cells], "sigma": [c[1] for c in cells], "optimum": best.tolist()}
    columns["optimum_continuous"] = np.sqrt(np.expm1((market.B / market.D) ** 2 * market.horizon)).tolist()
    for i, name in enumerate(("wz", "offline", "online")):
        columns[f"published_{name}"] = [SHARPE[c][i] if c in SHARPE else "" for c in cells]
    numbers: dict[str, Any] = {}
    tables = {name: (learned.gain, learned.w) for name, learned in found.items()} | {f"plug_in_{cfg.data}_years": data}
    for name, (gain, w) in tables.items():
        sharpe, wealth = market.sharpe(gain), market.mean_wealth(gain, w, goal.x0)
        for kind, values in (("sharpe", sharpe), ("wealth", wealth)):
            for q in (25, 50, 75):
                columns[f"{name}_{kind}_q{q}"] = np.percentile(values, q, axis=0).tolist()
            low, high = bootstrap(values)
            columns[f"{name}_{kind}_low"], columns[f"{name}_{kind}_high"] = low.tolist(), high.tolist()
        if name in ("offline", "online"):
            numbers[name] = _rows(report, name, sharpe, wealth, best, goal, six, cfg.bars)
        else:
            near = np.median(sharpe, axis=0) / best
            off = np.median(np.abs(wealth / goal.z - 1), axis=0)
            numbers[name] = {
                "share_of_medians_within_5_percent": np.mean(near >= 0.95),
                "sharpe_share_of_pairs_and_seeds": np.mean(sharpe / best >= 0.95),
                "wealth_share_of_pairs_and_seeds": np.mean(np.abs(wealth / goal.z - 1) <= 0.02),
                "largest_median_gap_of_wealth": off.max(),
            }

    # the median run, simulated: where the noise of a sampled mean and ratio is known, that is with calm fourth moments
    gain, w = np.median(found["offline"].gain, axis=0), np.median(found["offline"].w, axis=0)
    wealth = simulate(market, gain, w, goal.x0, cfg.paths, cfg.seed)
    means_of, ratios = wealth.mean(1), (wealth.mean(1) - goal.x0) / wealth.std(1)
    calm = np.abs(market.B / market.D) <= CALM
    scores = (means_of - market.mean_wealth(gain, w, goal.x0)) / (wealth.std(1) / cfg.paths**0.5)
    report.below("simulated mean wealth, standard errors from exact, largest", np.abs(scores[calm]).max(), 4)
    scores = (ratios - market.sharpe(gain)) / jackknife(wealth, goal.x0)
    report.below("simulated Sharpe ratio, standard errors from exact, largest", np.abs(scores[calm]).max(), 4)
    columns |= {"simulated_sharpe": ratios.tolist(), "simulated_wealth": means_of.tolist()}

    excess = costs.learned / costs.optimum - 1
    share = float(np.mean(np.median(excess, axis=0) <= 0.02))
    report.above(f"asset-liability: share of {len(alm)} markets, cost within 2 % of the optimum", share, cfg.bars.cost)
    means = {name: float(np.mean(getattr(costs, name))) for name in ("optimum", "nothing", "learned", "plug_in")}
    report.below(
        f"asset-liability: mean cost learned over plug-in of {cfg.asset_liability.data} years",
        means["learned"] / means["plug_in"],
        1.0,
    )
    fine = replace(alm, steps=FINE)
    gap = np.abs(fine.cost(fine.best_gain) / continuous_optimum(alm) - 1).max()
    report.below(f"asset-liability: optimum of {FINE} trades a year against the Riccati equation, relative", gap, 1e-3)
    steady = continuous_optimum(alm) / costs.optimum - 1
    took = time.perf_counter() - start
    numbers["asset_liability"] = {
        "mean_cost": means,
        "median_excess": np.median(excess),
        "quartiles_of_excess": np.percentile(excess, [25, 75]),
        "largest_median_excess": np.median(excess, axis=0).max(),
        "median_excess_plug_in": np.median(costs.plug_in / costs.optimum - 1),
        "share_of_plug_in_medians_within_2_percent": np.mean(np.median(costs.plug_in, 0) / costs.optimum <= 1.02),
        "continuous_over_daily": [steady.min(), steady.max()],
        "median_gap_of_theta": np.median(costs.theta),
    }
    settings = {name: asdict(_settings(cfg[name])) for name in cfg.learners}
    write_csv(out / "results.csv", columns)
    write_json(out / "results.json", {"seconds": took, "settings": settings, "seeds": cfg.seeds, **numbers})
    write_figure(out / "figure.png", draw(market, goal, cells, found, costs))
    report.about["seconds"] = round(took, 1)
    if cfg.minutes:
        report.below("minutes of the whole experiment", took / 60, float(cfg.minutes))
    return report.finish(out)
