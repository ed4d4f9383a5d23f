"""The pieces of the experiment, each in its own process and kept in its own file, so that a second run goes on.

A file belongs to its settings: with others the piece is computed again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...lq import evaluate, scheme_value
from ...lq.problem import LQProblem
from ...policy import ZeroMean
from ..outputs import write_json
from .affine import ChebyshevAffine, fit_extrapolated
from .measure import TruthPaths, simulated_cost
from .networks import Costate
from .problems import Setting, make
from .train import Budget, train

__all__ = ["affine_piece", "do", "network_piece", "truth_piece"]

Numbers = dict[str, Any]
TRUTH, TRAIN, COST, AFFINE = 11, 12, 13, 14  # streams of randomness


@cache
def _paths(name: str, paths: int, seed: int) -> tuple[Setting, TruthPaths]:
    setting = make(name)
    return setting, TruthPaths(setting, paths, seed, TRUTH)


def truth_piece(problem: str, paths: int, cost_paths: int, seed: int) -> Numbers:
    """J*, the normaliser of the errors, doing nothing, and what the grid does to J* where that is known exactly.

    Args:
        problem: its name.
        paths: of the optimum.
        cost_paths: of the simulated costs.
        seed: of all randomness.
    """
    setting, truth = _paths(problem, paths, seed)
    zero = simulated_cost(setting, ZeroMean(), cost_paths, seed, COST)
    out: Numbers = {"value": setting.truth.value, "normaliser": truth.normaliser, "zero": asdict(zero)}
    if isinstance(setting.problem, LQProblem):
        law = setting.truth.law  # type: ignore[attr-defined]
        nodes = torch.from_numpy(_chebyshev_nodes(24))
        exact = ChebyshevAffine.through(nodes, [torch.cat([k.mT, o[None]]) for k, o in map(law, nodes.tolist())])
        out["scheme_value"] = _at_start(scheme_value(setting.problem, exact.policy, setting.grid, mode="mean"), setting)
    return out


def _chebyshev_nodes(n: int) -> NDArray[np.float64]:
    return 0.5 + 0.5 * np.polynomial.chebyshev.chebpts1(n)


def _at_start(value: Any, setting: Setting) -> float:
    return float(value(0.0, setting.x0[None]))


def network_piece(
    problem: str, loss: str, seed: int, widths: list[int], gated: list[str], budget: Mapping[str, Any], paths: int,
    cost_paths: int,
) -> Numbers:  # fmt: skip
    """Train and measure one network.

    Args:
        problem: its name.
        loss: a key of `losses.LOSSES`.
        seed: of all randomness.
        widths: hidden units.
        gated: problems whose network has the gated gradient of the terminal cost.
        budget: of `train.Budget`.
        paths: of the optimum.
        cost_paths: of the simulated cost.
    """
    setting, truth = _paths(problem, paths, seed)
    actor = Costate(setting.problem, len(setting.x0), widths, problem in gated, (seed, TRAIN))
    done = train(setting, loss, actor, Budget(**budget), truth, (seed, TRAIN, 1))
    error, spread = truth.error(done.control)
    cost = simulated_cost(setting, done.control, cost_paths, seed, COST)
    curve = {"iterations": done.iterations, "errors": done.errors, "seconds": done.seconds}
    return {"error": error, "standard_error": spread, "cost": asdict(cost), "curve": curve}


def affine_piece(
    problem: str, seed: int, paths: int, cost_paths: int, fit_paths: int, rounds: int, degree: int
) -> Numbers:
    """Fit and measure the affine control.

    Args:
        problem: the name of a linear-quadratic one.
        seed: of all randomness.
        paths: of the optimum.
        cost_paths: of the simulated cost.
        fit_paths: a round of the regression.
        rounds: of it.
        degree: in time.
    """
    setting, truth = _paths(problem, paths, seed)
    assert isinstance(setting.problem, LQProblem)
    start = time.process_time()
    key = (seed, AFFINE)
    control, coarse, moves = fit_extrapolated(
        setting.problem, setting.x0, setting.steps, fit_paths, rounds, degree, *key
    )
    seconds = time.process_time() - start
    policy = control.policy
    error, spread = truth.error(policy.mean)
    cost = simulated_cost(setting, policy.mean, cost_paths, seed, COST)
    return {
        "error": error,
        "standard_error": spread,
        "grid_error": truth.error(coarse.policy.mean)[0],
        "moves": moves,
        "cost": asdict(cost),
        "exact": _at_start(evaluate(setting.problem, policy), setting),
        "scheme_value": _at_start(scheme_value(setting.problem, policy, setting.grid, mode="mean"), setting),
        "seconds": seconds,
    }


PIECES = {"truth": truth_piece, "network": network_piece, "affine": affine_piece}


def do(kind: str, settings: Numbers, file: str) -> Numbers:
    """Compute a piece, or read it where it was computed before with the same settings.

    Args:
        kind: a key of the table of pieces.
        settings: arguments of the piece.
        file: where it is kept.

    Returns:
        The numbers of the piece, and ``minutes`` of this process's processor time.
    """
    torch.set_num_threads(1)
    path = Path(file)
    if path.is_file():
        try:
            kept = json.loads(path.read_text())
        except ValueError:  # not ours, or cut off by hand
            kept = {}
        if isinstance(kept, dict) and kept.get("settings") == settings and "numbers" in kept:
            return kept["numbers"]
    start = time.process_time()
    numbers = PIECES[kind](**settings)  # type: ignore[operator]
    numbers["minutes"] = (time.process_time() - start) / 60
    write_json(path, {"settings": settings, "numbers": numbers})
    return numbers
