r"""Learn the clocks of one backbone and measure them beside fixed grids, on seeds they were not learned on.

| clock | what it is |
|---|---|
| karras | EDM's grid, $\rho = 7$ from 80 to 0.002, then 0 |
| log | uniform in $\log\sigma$ |
| uniform | uniform in $\sigma$ |
| local | optimum for the measured local error density (ART), straight to 0 |
| arriving | the same for what arrives at the end (`flow`) |
| refined | from local, by direct minimisation of the measured error, a clock a budget |
| short | Karras' rule that ends where the refined grid ends: the gain that is not the shape's |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ...images.backbones.precond import Denoiser
from ...images.clock import Clock, KarrasClock, LinearClock, LogClock
from ...images.inpaint import function_evaluations
from ...images.learned_clock import LearnedClock
from ...rollout import Solver
from .flow import densities, rms, trace
from .images import detail, from_density, powers, refine, sample, short, steps_within

__all__ = [
    "SOLVERS",
    "Plan",
    "clock_of",
    "errors_of_clocks",
    "fine_solutions",
    "learn_clocks",
    "refined_for",
    "rows_of",
]

SOLVERS: tuple[Solver, Solver] = ("euler", "heun")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Sizes of the experiment on one backbone.

    Args:
        seeds: tested: 0 to seeds - 1.
        fine: Heun steps of the tested seeds' fine solutions, on EDM's grid.
        budgets: calls an image.
        low: budgets up to this one are "few calls": some clocks are measured there only.
        first: seed of the first trajectory to learn on.
        paths: trajectories to learn the densities on.
        trace: Heun steps of these, uniform in log sigma.
        stride: cells of the trace that a measured step crosses.
        carried: trajectories whose defects are carried to the end.
        knots: of the clocks.
        refine_paths: trajectories to refine on, at most ``paths``.
        refine_budgets: budgets to refine for, each a clock; other budgets take the one of the nearest below.
        evaluations: clocks that are measured for one; 0 = none.
    """

    seeds: int = 32
    fine: int = 128
    budgets: tuple[int, ...] = (6, 8, 13, 19, 35)
    low: int = 13
    first: int = 1000
    paths: int = 8
    trace: int = 96
    stride: int = 6
    carried: int = 4
    knots: int = 6
    refine_paths: int = 4
    refine_budgets: tuple[int, ...] = (6, 8, 13)
    evaluations: int = 45


def clock_of(found: Mapping[str, Any]) -> LearnedClock:
    """A clock of `learn_clocks`.

    Args:
        found: ``levels``, ``density`` and ``about``.
    """
    return LearnedClock(tuple(found["levels"]), tuple(found["density"]), found["about"])


def refined_for(clocks: Mapping[str, Any], budget: int) -> LearnedClock:
    """Among the refined clocks of a solver the one for this budget, or for the nearest below (or else the smallest).

    Args:
        clocks: budget, as text, to clock.
        budget: calls an image.
    """
    known = sorted(int(b) for b in clocks)
    return clock_of(clocks[str(max([b for b in known if b <= budget], default=known[0]))])


def learn_clocks(net: Denoiser, name: str, plan: Plan, progress: Callable[[], object] | None = None) -> dict[str, Any]:
    """Measure the densities and make the clocks of both solvers.

    Args:
        net: a denoiser.
        name: of it, for the clocks' files.
        plan: sizes.
        progress: called now and then.

    Returns:
        ``levels`` and, by solver, ``local`` and ``arriving`` densities; ``clocks``: by name and solver (and for
        ``refined`` by budget, as text), as `clock_of` reads them.
    """
    ends = KarrasClock()
    path = trace(net, range(plan.first, plan.first + plan.paths), plan.trace, LogClock())
    measured = densities(net, path, plan.stride, plan.carried, progress)
    clocks: dict[str, dict[str, Any]] = {}
    for solver in SOLVERS:
        for kind, values in (("local", measured.local), ("arriving", measured.arriving)):
            about: dict[str, str | float] = {"backbone": name, "fingerprint": str(net.fingerprint)}
            about |= {"solver": solver, "method": kind}
            clock = from_density(measured.levels, values[solver], plan.knots, ends, about)
            clocks.setdefault(kind, {})[solver] = dataclasses.asdict(clock)
        starts = powers(clock_of(clocks["local"][solver]), (1.0, 1.5, 2.0))
        seeds, truth = range(plan.first, plan.first + plan.refine_paths), path.states[-1][: plan.refine_paths]
        for budget in plan.refine_budgets if plan.evaluations else ():

            def error(clock: Clock, solver: Solver = solver, budget: int = budget) -> float:
                steps = steps_within(net, budget, solver, clock)
                return float(rms(sample(net, seeds, steps, solver, clock) - truth).mean())  # noqa: B023 - called here

            best = refine(starts, error, plan.evaluations, progress)
            about = {**starts[0].about, "method": "refined", "calls": budget}
            own = clocks.setdefault("refined", {}).setdefault(solver, {})
            own[str(budget)] = dataclasses.asdict(dataclasses.replace(best, about=about))
    return {
        "levels": measured.levels.tolist(),
        "local": {k: v.tolist() for k, v in measured.local.items()},
        "arriving": {k: v.tolist() for k, v in measured.arriving.items()},
        "clocks": clocks,
    }


def errors_of_clocks(
    net: Denoiser,
    learned: Mapping[str, Mapping[str, Any]],
    plan: Plan,
    truth: Tensor,
    progress: Callable[[], object] | None = None,
) -> list[dict[str, Any]]:
    """Errors of every clock at every budget.

    Args:
        net: a denoiser.
        learned: ``clocks`` of `learn_clocks`.
        plan: sizes.
        truth: fine solutions of the tested seeds, (B, C, H, W).
        progress: called after every row.

    Returns:
        Rows: ``solver``, ``clock``, ``budget``, ``steps``, ``calls``, ``errors`` by seed, ``detail`` by seed.
    """
    seeds, rows = range(plan.seeds), []
    fixed: dict[str, Clock] = {"karras": KarrasClock(), "log": LogClock(), "uniform": LinearClock()}
    everywhere = {"karras", "log", "local", "refined"}

    def add(name: str, solver: Solver, budget: int, clock: Clock, steps: int) -> None:
        x = sample(net, seeds, steps, solver, clock)
        row = {"solver": solver, "clock": name, "budget": budget, "steps": steps}
        row |= {"calls": function_evaluations(steps, solver, net, clock)}
        rows.append(row | {"errors": rms(x - truth).tolist(), "detail": detail(x, truth).tolist()})
        if progress is not None:
            progress()

    for solver in SOLVERS:
        for budget in plan.budgets:
            clocks = fixed | {name: clock_of(learned[name][solver]) for name in ("local", "arriving")}
            last = clocks["local"]
            if "refined" in learned:
                last = clocks["refined"] = refined_for(learned["refined"][solver], budget)
            for name, clock in clocks.items():
                if budget <= plan.low or name in everywhere:
                    add(name, solver, budget, clock, steps_within(net, budget, solver, clock))
            if budget <= plan.low:
                steps = steps_within(net, budget, solver, last)
                add("short", solver, budget, short(last, steps), steps)
    return rows


def rows_of(plan: Plan, refined: bool) -> int:
    """How many rows `errors_of_clocks` makes, for progress bars.

    Args:
        plan: sizes.
        refined: whether there are refined clocks.
    """
    few = sum(b <= plan.low for b in plan.budgets)
    return 2 * (few * (6 + refined) + (len(plan.budgets) - few) * (3 + refined))


def fine_solutions(net: Denoiser, seeds: Sequence[int], steps: int) -> Tensor:
    """Heun solutions on EDM's grid.

    Args:
        net: a denoiser.
        seeds: one an image.
        steps: of Heun's method.

    Returns:
        (B, C, H, W).
    """
    return sample(net, seeds, steps, "heun", KarrasClock())
