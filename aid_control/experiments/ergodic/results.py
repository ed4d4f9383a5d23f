r"""From what was run to numbers: learned parameters, average rewards, the scan's table, the file of the traces.

What a repeat has learned is the average of its weights over the end of the run; a repeat that diverged counts as
infinitely wrong.  *Average reward* is r itself, exploration included and entropy not charged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..outputs import write_csv
from .big_q import Form, action_share, optimal_weights
from .problem import ErgodicProblem
from .summary import Median, median
from .tasks import Scanned
from .train import Trained

__all__ = ["FORMS", "average_rewards", "learned", "scan_table", "write_traces"]

Array = NDArray[np.float64]
FORMS: tuple[Form, ...] = ("Q", "Q_scaled", "q")


def learned(found: Trained) -> dict[str, Array]:
    """Slope, intercept and variance of the policy by repeat.

    Args:
        found: a learner.

    Returns:
        (S,) each, infinite where a repeat diverged.
    """
    with np.errstate(all="ignore"):
        values = {"slope": found.average[3], "intercept": found.average[4], "variance": np.exp(found.average[5])}
    return {k: np.where(np.isfinite(v), v, np.inf) for k, v in values.items()}


def average_rewards(found: Trained, problem: ErgodicProblem, on_policy: bool) -> dict[str, Median]:
    """The learned policy's exact average reward, and on the policy the realised ones.

    Args:
        found: a learner.
        problem: coefficients and grid.
        on_policy: whether the costs seen were the learned policy's.

    Returns:
        Medians over repeats: ``policy``, and ``last_tenth``, ``averaging_window``, ``from_the_start``.
    """
    own = learned(found)
    with np.errstate(all="ignore"):
        exact = problem.reward(own["slope"], own["intercept"], own["variance"])
    rewards = {"policy": median(np.where(np.isfinite(exact), exact, -np.inf))}
    if on_policy:
        rewards["last_tenth"] = median(-found.costs[-(len(found.steps) // 10) :].mean(0))
        rewards["averaging_window"] = median(-found.cost)
        rewards["from_the_start"] = median(-found.costs.mean(0))
    return rewards


def scan_table(
    scans: dict[tuple[Form, float], Scanned], settings: dict[str, Any], problem: dict[str, Any]
) -> tuple[dict[str, dict[str, list[Any]]], float]:
    """Medians by form and step, at one rate for all steps and at the best rate of each step.

    Args:
        scans: by form and step.
        settings: of the scan: steps, rates, behaviour.
        problem: settings of `ErgodicProblem`.

    Returns:
        The table, lists by step for every form (``exact`` holds the optimal Q's share), and the one rate: the best of
        the largest step.
    """
    dts, rates = [float(d) for d in settings["steps"]], [float(r) for r in settings["rates"]]
    exact = [ErgodicProblem(**{**problem, "dt": dt, "transition": "exact"}) for dt in dts]
    shares = [action_share(p, tuple(settings["behaviour"]), optimal_weights(p)[:, None]) for p in exact]
    common = int(np.argmin([median(e).value for e in scans["q", dts[0]].gain]))
    table: dict[str, dict[str, list[Any]]] = {"exact": {"share": [float(s[0]) for s in shares]}}
    for form in FORMS:
        found = [scans[form, dt] for dt in dts]
        best = [int(np.argmin([median(e).value for e in s.gain])) for s in found]
        kept = [s.share[b][np.isfinite(s.share[b])] for s, b in zip(found, best, strict=True)]
        table[form] = {
            "common": [median(s.gain[common]) for s in found],
            "best": [median(s.gain[b]) for s, b in zip(found, best, strict=True)],
            "best_rate": [rates[b] for b in best],
            "common_value": [median(s.value[common]) for s in found],
            "best_value": [median(s.value[b]) for s, b in zip(found, best, strict=True)],
            "common_averaged": [median(s.averaged[common]) for s in found],
            "best_averaged": [min((median(e) for e in s.averaged), key=lambda m: m.value) for s in found],
            "share": [float(np.median(s)) if len(s) else float("nan") for s in kept],
            "gain_by_rate": [[median(e).value for e in s.gain] for s in found],
            "value_by_rate": [[median(e).value for e in s.value] for s in found],
        }
    return table, rates[common]


def write_traces(path: Path, found: dict[str, Trained], streams: dict[str, int], mean: Array) -> None:
    """Every learner's quartiles over repeats at every record.

    Args:
        path: a CSV file: learner, environment steps, quantity, quartiles, repeats lost, mean equation.
        found: learners by name.
        streams: B of each.
        mean: the mean equation at the actor-critic's records, (K, 6).
    """
    names = ("theta_0", "theta_1", "eta", "phi_1", "phi_2", "phi_3", "reward")
    rows: dict[str, list[Any]] = {k: [] for k in ("learner", "steps", "quantity", "q25", "q50", "q75", "lost", "mean")}
    for learner, trained in found.items():
        for k, step in enumerate(trained.steps):
            for i, name in enumerate(names):
                values = trained.trace[k, i] if i < 6 else -trained.costs[k]
                kept = values[np.isfinite(values)]
                quartiles = np.percentile(kept, [25, 50, 75]) if len(kept) else np.full(3, np.nan)
                expected = mean[k, i] if learner == "actor_critic" and i < 6 else np.nan
                row = (learner, int(step * streams[learner]), name, *map(float, quartiles))
                for key, value in zip(rows, (*row, len(values) - len(kept), float(expected)), strict=True):
                    rows[key].append(value)
    write_csv(path, rows)
