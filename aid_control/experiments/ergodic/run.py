r"""The ergodic experiment from settings to files: three learners, one that must fail, and a scan over steps and rates.

- ``actor_critic``: `actor_critic`, average-reward policy gradient on the policy;
- ``q_on``, ``q_off``: `q_learning` on the policy, and off it with weighted updates;
- ``q_plain``: off the policy with the updates as they stand, which has no mean to converge to;
- the scan: Q and q (`big_q`) at several steps over the same simulated time.

Reported are medians over repeats of $\phi_1, \phi_2, e^{\phi_3}$ (`results`) with 95 % bootstrap intervals.  The
published line for the average reward, exploration included and entropy not charged, is
$0.6584974 = \tfrac{Q^2}{2S} - \tfrac\tau2$, the deterministic optimum less the exploration cost.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from tqdm import tqdm

from ...errors import InputError
from ...report import Report
from ...schedules import power
from ..outputs import write_figure, write_json
from .big_q import Form
from .figure import draw
from .mean_field import mean_path
from .problem import PUBLISHED_REWARD, ErgodicProblem, Optimum
from .results import FORMS, average_rewards, learned, scan_table, write_traces
from .summary import Median, median
from .tasks import Scanned, learn, scan
from .train import Trained

__all__ = ["LEARNERS", "run"]

Array = NDArray[np.float64]
LEARNERS = ("actor_critic", "q_on", "q_off", "q_plain")


def _join(parts: list[Trained]) -> Trained:
    """Blocks of repeats side by side."""
    return Trained(
        parts[0].steps,
        np.concatenate([p.trace for p in parts], -1),
        np.concatenate([p.costs for p in parts], -1),
        np.concatenate([p.average for p in parts], -1),
        np.concatenate([p.cost for p in parts]),
    )


def _check(cfg: dict[str, Any]) -> None:
    """Refuse what cannot be run.

    Raises:
        InputError: naming the option.
    """
    if cfg["repeats"] < 2 or cfg["blocks"] < 1 or cfg["workers"] < 1 or cfg["records"] < 10:
        given = ", ".join(f"{k} {cfg[k]}" for k in ("repeats", "blocks", "workers", "records"))
        raise InputError(f"sizes are {given}; expected at least 2, 1, 1 and 10")
    for name in LEARNERS:
        given = cfg[name]
        if len(given["rates"]) != 6 or not all(r > 0 for r in given["rates"]):
            raise InputError(f"{name}.rates is {given['rates']}; expected 6 positive numbers")
        if given["streams"] < 1 or given["steps"] < cfg["records"] or not 0 <= given["average_from"] < 1:
            raise InputError(
                f"{name} has streams {given['streams']}, steps {given['steps']}, average_from {given['average_from']}; "
                f"expected >= 1, >= records {cfg['records']}, and in [0, 1)"
            )
    dts = cfg["scan"]["steps"]
    if len(dts) < 2 or sorted(dts, reverse=True) != list(dts) or not dts[-1] > 0:
        raise InputError(f"scan.steps is {dts}; expected at least two falling positive numbers")
    if cfg["scan"]["repeats"] < 2 or len(cfg["scan"]["rates"]) < 1:
        raise InputError(f"scan.repeats is {cfg['scan']['repeats']}, scan.rates {cfg['scan']['rates']}; expected more")
    try:
        ErgodicProblem(**cfg["problem"])
    except (TypeError, ValueError) as error:
        raise InputError(f"problem: {error}") from None


def _compute(cfg: dict[str, Any]) -> tuple[dict[str, Trained], dict[tuple[Form, float], Scanned]]:
    """Everything that takes time."""
    seeds = list(range(cfg["seed"], cfg["seed"] + cfg["repeats"]))
    blocks = [b.tolist() for b in np.array_split(seeds, cfg["blocks"]) if len(b)]
    scanned = list(range(cfg["seed"], cfg["seed"] + cfg["scan"]["repeats"]))
    dts = [float(d) for d in cfg["scan"]["steps"]]
    with ProcessPoolExecutor(cfg["workers"]) as pool:
        learning = [
            (name, pool.submit(learn, name, cfg[name], cfg["problem"], block, cfg["records"]))
            for name in LEARNERS
            for block in blocks
        ]
        scanning = {
            (form, dt): pool.submit(scan, form, dt, cfg["scan"], cfg["problem"], scanned)
            for dt in sorted(dts)
            for form in FORMS
        }
        with tqdm(total=len(learning) + len(scanning), unit="run", desc="ergodic") as bar:

            def done(future: Future[Any]) -> None:
                bar.update()

            for future in [f for _, f in learning] + list(scanning.values()):
                future.add_done_callback(done)
            parts: dict[str, list[Trained]] = {name: [] for name in LEARNERS}
            for name, future in learning:
                parts[name].append(future.result())
            scans = {key: future.result() for key, future in scanning.items()}
    return {name: _join(p) for name, p in parts.items()}, scans


def _plain(table: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Medians as JSON takes them."""
    return {k: [asdict(m) if isinstance(m, Median) else m for m in v] for k, v in table.items()}


def _numbers(
    found: Trained, settings: dict[str, Any], truth: Optimum, rewards: dict[str, Median]
) -> tuple[dict[str, Median], dict[str, Any]]:
    """Relative errors of a learner's medians, and all of its numbers."""
    own = learned(found)
    errors = {k: median(v / getattr(truth, k) - 1) for k, v in own.items()}
    lost = float((~np.isfinite(found.trace[-1]).all(0)).mean())
    return errors, {
        "environment_steps_a_repeat": int(settings["streams"]) * int(settings["steps"]),
        "lost": lost,
        "median": {k: float(np.median(v)) for k, v in own.items()},
        "standard_deviation": None if lost else {k: float(np.std(v)) for k, v in own.items()},
        "relative_error": {k: asdict(v) for k, v in errors.items()},
        "average_reward": {k: asdict(v) for k, v in rewards.items()},
    }


def _report(
    plain: dict[str, Any],
    errors: dict[str, dict[str, Median]],
    rewards: dict[str, Median],
    lost: float,
    table: dict[str, dict[str, list[Any]]],
    common: float,
    seconds: float,
) -> Report:
    report = Report(program="run_experiment name=ergodic", repeats=plain["repeats"], seconds=round(seconds, 1))
    bars, limit = plain["bars"], plain["bars"]["relative"]
    for name in ("actor_critic", "q_on", "q_off"):
        for key, error in errors[name].items():
            row = f"{name}: {key}, relative error of the median [{error.low:.4f}, {error.high:.4f}]"
            report.add(row, abs(error.value), f"<= {limit:g}", abs(error.value) <= limit)
    for kind, words in (("policy", "of the learned policy, exact"), ("last_tenth", "realised, last tenth of the run")):
        reward = rewards[kind]
        row = f"actor_critic: average reward {words} [{reward.low:.5f}, {reward.high:.5f}]"
        least = PUBLISHED_REWARD - reward.half_width
        report.add(row, reward.value, f">= {PUBLISHED_REWARD} - {reward.half_width:.5f}", reward.value >= least)
    report.above("q off the policy without weights: share of repeats lost", lost, bars["lost"])
    # an estimate that is off by more than 100 % is worth no more than 0
    ends = {form: {k: [min(m.value, 1.0) for m in table[form][k]] for k in ("common", "best")} for form in FORMS}
    first, last = plain["scan"]["steps"][0], plain["scan"]["steps"][-1]
    growth = {form: ends[form]["common"][-1] / ends[form]["common"][0] for form in FORMS}
    words = f"error of the gain at step {last:g} over that at {first:g}"
    report.below(f"q, rate {common:g}: {words}", growth["q"], bars["q_stays"])
    report.above(f"Q, rate {common:g}: {words}", growth["Q"], bars["Q_grows"])
    ratio = ends["Q"]["best"][-1] / ends["q"]["best"][-1]
    report.above(f"each at its best rate: error of Q over that of q at step {last:g}", ratio, bars["best"])
    shares = table["Q"]["share"]
    words = f"share of variance due to the action at step {last:g} over that at {first:g}"
    report.below(f"learned Q: {words}", shares[-1] / shares[0], bars["share"])
    if plain["minutes"]:
        report.below("minutes of the whole experiment", seconds / 60, float(plain["minutes"]))
    return report


def run(cfg: Any) -> int:
    """Run the experiment.

    Args:
        cfg: see ``examples/conf/experiment/ergodic.yaml``.

    Returns:
        The exit code: 1 if a row of the report fails.

    Raises:
        InputError: for sizes, rates or steps that cannot be run.
    """
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    _check(plain)
    out, start = Path(plain["out"]), time.perf_counter()
    found, scans = _compute(plain)
    seconds = time.perf_counter() - start

    problem = ErgodicProblem(**plain["problem"])
    # policy and rewards of continuous time, whatever the step
    truth = ErgodicProblem(**{**plain["problem"], "transition": "exact"}).optimum()
    settings = plain["actor_critic"]
    schedule = power(1.0, settings["exponent"], settings["delay"] * settings["steps"])
    mean = mean_path(problem, np.array(settings["rates"], dtype=float), schedule, found["actor_critic"].steps, 40)
    rewards = {name: average_rewards(found[name], problem, name in ("actor_critic", "q_on")) for name in LEARNERS}
    numbers = {name: _numbers(found[name], plain[name], truth, rewards[name]) for name in LEARNERS}
    table, common = scan_table(scans, plain["scan"], plain["problem"])
    streams = {name: int(plain[name]["streams"]) for name in LEARNERS}
    slope = float(plain["q_off"]["behaviour"][0])

    write_traces(out / "results.csv", found, streams, mean)
    write_json(
        out / "results.json",
        {
            "truth": asdict(truth),
            "truth_of_the_grid": asdict(problem.optimum()),
            "tail_exponent_of_the_behaviour": problem.tail_exponent(slope) if slope else None,
            "seconds": seconds,
            "settings": plain,
            "learners": {name: numbers[name][1] for name in LEARNERS},
            "scan": {"one_rate": common, **{form: _plain(table[form]) for form in table}},
        },
    )
    dts = [float(d) for d in plain["scan"]["steps"]]
    write_figure(out / "figure.png", draw(found, streams, problem, truth, mean, table, dts))
    errors = {name: numbers[name][0] for name in LEARNERS}
    lost = numbers["q_plain"][1]["lost"]
    return _report(plain, errors, rewards["actor_critic"], lost, table, common, seconds).finish(out)
