r"""The experiment from settings to files: problems x losses in processes, a table against the exact controls, a figure.

Rows with bars: the control error of the network (bar on the loss `bars.loss`) and of the affine control, J of either
against what it should be, V(0, 0) of the log cost, the closed forms' J*, minutes.  For a network J is not known
exactly; $J^* + \tfrac12 E_{P^u} \int|u - u^*|^2$ is, in continuous time, and the margin is three standard errors plus
the discretisation's bias of the optimum, which `aid_control.lq.discrete` computes.  For the affine control J of the
*discretised* problem is computed, so its margin is three standard errors alone.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from ...errors import InputError
from ...report import Report
from ..outputs import write_csv, write_figure, write_json
from .figure import draw
from .jobs import do
from .losses import LOSSES
from .problems import PROBLEMS

__all__ = ["run"]

Numbers = dict[str, Any]
Job = tuple[str, Numbers, str]  # kind, settings, file


def _chosen(what: str, names: list[str], known: dict[str, Any]) -> list[str]:
    if not names or not set(names) <= set(known) or len(set(names)) < len(names):
        raise InputError(f"{what} is {names}; expected different ones of {', '.join(known)}")
    return names


def _jobs(cfg: Numbers) -> dict[tuple[str, str], Job]:
    """(problem, piece) -> job."""
    out: dict[tuple[str, str], Job] = {}
    folder = Path(cfg["out"]) / "runs"
    sizes = {"paths": cfg["paths"], "cost_paths": cfg["cost_paths"], "seed": cfg["seed"]}
    for problem in cfg["problems"]:
        jobs: dict[str, tuple[str, Numbers]] = {"truth": ("truth", {"problem": problem, **sizes})}
        if problem.startswith("ou_"):
            jobs["affine"] = ("affine", {"problem": problem, **sizes, **cfg["affine"]})
        for loss in cfg["losses"]:
            budget = {**cfg["training"]["all"], **cfg["training"][problem]}
            jobs[loss] = ("network", {"problem": problem, "loss": loss, **sizes, **cfg["network"], "budget": budget})
        for piece, (kind, settings) in jobs.items():
            out[problem, piece] = (kind, settings, str(folder / f"{problem}-{piece}.json"))
    return out


def _results(jobs: dict[tuple[str, str], Job], workers: int) -> Iterator[tuple[tuple[str, str], Numbers]]:
    if workers == 1:
        for key, job in jobs.items():
            yield key, do(*job)
        return
    # fresh processes: torch's threads do not survive a fork
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {key: pool.submit(do, *job) for key, job in jobs.items()}
        for key, future in futures.items():
            yield key, future.result()


def _rows(report: Report, problem: str, found: dict[str, Numbers], losses: list[str], bars: Numbers) -> None:
    truth = found["truth"]
    if problem in bars["values"]:
        report.near(f"{problem}: J* in closed form", truth["value"], bars["values"][problem], 1e-6)
    bias = truth.get("scheme_value", truth["value"]) - truth["value"]
    for loss in losses:
        now, barred = found[loss], loss == bars["loss"]
        limit = bars["network"].get(problem, float("inf")) if barred else float("inf")
        report.below(f"{problem}: error of the network, {loss}", now["error"], limit)
        cost = now["cost"]
        if barred and "scheme_value" in truth:
            margin = 3 * cost["error"] + abs(bias)
            report.near(f"{problem}: J of it, simulated", cost["mean"], truth["value"] + cost["excess"], margin)
        if barred and problem == "hjb_log":
            report.near(f"{problem}: V(0, 0) as its J", cost["mean"], truth["value"], bars["value"] * truth["value"])
            left = cost["excess"] / truth["zero"]["excess"]
            report.below(f"{problem}: share of the avoidable cost left by it", left, float("inf"))
    if "affine" in found:
        now = found["affine"]
        report.below(f"{problem}: error of the affine control", now["error"], bars["affine"])
        cost = now["cost"]
        report.near(f"{problem}: J of it, simulated", cost["mean"], now["scheme_value"], 3 * cost["error"])
    if bars["minutes"]:
        spent = sum(v["minutes"] for v in found.values())
        report.below(f"{problem}: minutes of one core", spent, float(bars["minutes"]))


def run(cfg: Any) -> int:
    """Run the experiment.

    Args:
        cfg: see ``examples/conf/experiment/soc.yaml``.

    Returns:
        The exit code: 1 if a row of the report fails.

    Raises:
        InputError: for unknown problems or losses, or sizes that are too small.
    """
    plain: Numbers = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else cfg  # type: ignore[assignment]
    problems = _chosen("problems", plain["problems"], PROBLEMS)
    losses = _chosen("losses", plain["losses"], LOSSES)
    if plain["workers"] < 1 or plain["paths"] < 2 or plain["cost_paths"] < 2:
        raise InputError(
            f"workers {plain['workers']}, paths {plain['paths']}, cost_paths {plain['cost_paths']}; expected >= 1, "
            ">= 2, >= 2"
        )
    for problem in problems:
        batch = {**plain["training"]["all"], **plain["training"][problem]}["batch"]
        if batch < 4 or batch % 2:
            raise InputError(f"batch is {batch} ({problem}); expected an even number >= 4")
    out, start = Path(plain["out"]), time.perf_counter()
    jobs = _jobs(plain)
    found: dict[str, dict[str, Numbers]] = {p: {} for p in problems}
    with tqdm(total=len(jobs), unit="piece", desc="soc") as bar:
        for (problem, piece), numbers in _results(jobs, plain["workers"]):
            found[problem][piece] = numbers
            bar.update()
            bar.set_postfix_str(f"{problem} {piece} {numbers.get('error', float('nan')):.2g}")
    took = time.perf_counter() - start

    rows: dict[str, list[Any]] = {k: [] for k in ("problem", "loss", "iteration", "seconds", "error")}
    for problem in problems:
        for loss in losses:
            curve = found[problem][loss]["curve"]
            for n, s, e in zip(curve["iterations"], curve["seconds"], curve["errors"], strict=True):
                for column, value in zip(rows, (problem, loss, n, s, e), strict=True):
                    rows[column].append(value)
    write_csv(out / "results.csv", rows)
    summary = {
        problem: {
            piece: {
                **{k: v for k, v in numbers.items() if k != "curve"},
                **(
                    {"interval": [numbers["error"] + z * numbers["standard_error"] for z in (-1.96, 1.96)]}
                    if "error" in numbers
                    else {}
                ),
            }
            for piece, numbers in pieces.items()
        }
        for problem, pieces in found.items()
    }
    write_json(out / "results.json", {"settings": plain, "seconds": took, "problems": summary})
    write_figure(out / "figure.png", draw(found, losses, plain["bars"]))
    report = Report(program="run_experiment name=soc", seed=plain["seed"], seconds=round(took, 1))
    for problem in problems:
        _rows(report, problem, found[problem], losses, plain["bars"])
    return report.finish(out)
