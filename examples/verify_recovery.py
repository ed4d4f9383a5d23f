"""Verify the recovery theorem: ``python examples/verify_recovery.py out=outputs/recovery``.

Solving the randomised Gaussian problem recovers the optimal deterministic control.  The rows of the table check it on
linear-quadratic problems to machine precision, by simulation, and by learning from trajectories alone, and beyond them
by finite differences.  Writes ``report.json``, ``recovery.png`` and the learned gains (``gains.npz``) into ``out``;
the exit code is 1 if a row fails.  ``parts=[exact,bias]`` runs some of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from aid_control import finite_difference, rollout
from aid_control.errors import InputError
from aid_control.evaluation import clstd, martingale_loss, mstde_loss
from aid_control.evaluation.known_case import LineCritic, minimiser, sample
from aid_control.increments import Increments, time_grid
from aid_control.lq import AffineGaussian, LQProblem, riccati, scheme_value
from aid_control.lq.experiments import learn_gain, monte_carlo, order, scheme_bias
from aid_control.lq.recovery import KINDS, aid_form_gap, mean_gap, random_problem, relative_residual, shift_gap
from aid_control.noise import generator
from aid_control.nonlinear import DoubleWell, VanDerPol
from aid_control.program import program
from aid_control.report import Report
from aid_control.value import Shifted

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the backend is chosen

F64 = torch.float64
Panels = list[Callable[[Any], None]]


def exact(cfg: Any, report: Report, panels: Panels) -> None:
    """Mean, shift and residual on random problems of every kind, at every temperature."""
    cases = [(kind, d, tau) for kind in KINDS for d in cfg.exact.dims for tau in cfg.exact.temperatures]
    worst: dict[str, list[float]] = {}
    for i, (kind, d, tau) in enumerate(tqdm(cases, desc="exact", leave=False)):
        solution = riccati(random_problem(cfg.seed + i, d, kind), tau)
        found = (mean_gap(solution), shift_gap(solution), relative_residual(solution))
        worst.setdefault(kind, [0.0, 0.0, 0.0])
        worst[kind] = [max(a, b) for a, b in zip(worst[kind], found, strict=True)]
    temperatures = f"tau {min(cfg.exact.temperatures):g} to {max(cfg.exact.temperatures):g}, d <= {max(cfg.exact.dims)}"
    for kind, (mean, shift, residual) in worst.items():
        title = f"{kind.replace('_', '-')} problems ({temperatures})"
        report.below(f"{title}: mean of the exploratory optimum against Riccati", mean, 1e-8)
        report.below(f"{title}: value shift against its formula", shift, 1e-8)
        report.below(f"{title}: HJB residual", residual, 1e-8)

    def panel(axis: Any) -> None:
        problem = random_problem(cfg.seed, 1)
        x = torch.zeros(1, 1, dtype=F64)
        taus = np.logspace(-3, 1, 30)
        axis.semilogx(taus, [float(riccati(problem, t).value(0.0, x)) for t in taus], label=r"$V^\tau(0, 0)$")
        axis.axhline(float(riccati(problem).value(0.0, x)), ls=":", c="k", label=r"$V^0(0, 0)$")
        ways = {k: float(riccati(problem, t).policy.law(torch.zeros(()))[0]) for k, t in (("lo", 1e-3), ("hi", 10.0))}
        axis.set(
            title=f"the value shifts, the gain does not\n(gain {ways['lo']:.6f} and {ways['hi']:.6f})", xlabel="tau"
        )
        axis.legend()

    panels.append(panel)


def aid(cfg: Any, report: Report, panels: Panels) -> None:
    """AID's form: fixed variance 2 lambda / (beta d)."""
    gaps = [
        aid_form_gap(cfg.seed + d, d, beta, lam)
        for d in cfg.exact.dims
        for beta in (0.1, 1.0, 10.0)
        for lam in (0.01, 1.0, 100.0)
    ]
    value, variance, advantage = (max(column) for column in zip(*gaps, strict=True))
    report.below("AID: V^(lambda) = V - lambda t", value, 1e-8)
    report.below("AID: variance 2 lambda/(beta d) is the optimum at tau = 2 lambda/d", variance, 1e-8)
    report.below("AID: q = beta/2 |a - m*|^2 - lambda", advantage, 1e-8)


def montecarlo(cfg: Any, report: Report, panels: Panels) -> None:
    """Simulated exploratory cost of random problems, sampled actions, entropy included."""
    c, runs = cfg.montecarlo, []
    for d in tqdm(c.dims, desc="monte carlo", leave=False):
        problem = random_problem(cfg.seed + 1000, d, groups=c.problems)
        runs.append(monte_carlo(problem, c.temperature, c.paths, c.steps, cfg.seed))
    first = runs[0]
    report.near(
        f"Monte-Carlo cost of the first problem, s.e. {first.error[0]:.4f}, against V^tau",
        float(first.estimate[0]), float(first.limit[0]), 3 * float(first.error[0]),
    )  # fmt: skip
    z = torch.cat([r.scores(r.scheme) for r in runs])
    z_limit = torch.cat([r.scores(r.limit) for r in runs])
    n = len(z)
    for what, scores in (("V^tau", z_limit), ("the Euler scheme's exact value", z)):
        share = float((scores.abs() < 3).double().mean())
        report.above(f"Monte-Carlo cost within 3 s.e. of {what}, share of {n} problems", share, 0.99)
    report.near(f"... standard deviation of the {n} scores (scheme)", float(z.std()), 1.0, 0.2)

    def panel(axis: Any) -> None:
        axis.hist(z_limit.numpy(), bins=25, density=True, label="(cost - V) / s.e.")
        grid = np.linspace(-4, 4, 100)
        axis.plot(grid, np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi), label="N(0, 1)")
        axis.set(title=f"simulated cost of {n} random problems")
        axis.legend()

    panels.append(panel)


def bias(cfg: Any, report: Report, panels: Panels) -> None:
    """Sampled and averaged execution against the continuous problem."""
    steps = list(cfg.bias.steps)
    one = torch.ones(1, 1, dtype=F64)
    noisy = LQProblem(1.0, 1.0, C=[[[1.0]]], D=[[[1.0]]], G=2.0)  # the cost is E X_T^2
    policy = AffineGaussian.constant([[-1.5]], covariance=0.5)
    errors = {mode: scheme_bias(noisy, policy, mode, steps, one) for mode in ("sampled", "averaged")}
    for mode, e in errors.items():
        report.near(f"bias of {mode} execution, control in the noise: order in dt", order(steps, e), 1.0, 0.15)
    ratio = errors["sampled"] / errors["averaged"]
    report.add(
        "... sampled over averaged, constant ratio at the smallest step",
        float(ratio[-1]),
        "shown (theory: about 4)",
        True,
    )
    free = LQProblem(-0.5, 1.0, Q=1.0, R=1.0, s=0.5, G=2.0)
    gap = scheme_bias(free, policy, "sampled", steps, one) - scheme_bias(free, policy, "averaged", steps, one)
    report.near("sampled minus averaged, control-free noise: order in dt", order(steps, gap), 1.0, 0.15)
    # the engine does what the recursion says
    start = torch.ones(cfg.bias.paths, 1, dtype=F64)
    worst = 0.0
    for k in steps[:2]:
        for mode in ("sampled", "averaged"):
            grid = time_grid(1.0, steps=k)
            noise = generator(cfg.seed, 5, k, 1)
            run = rollout(
                noisy, policy, start, grid, target=(), mode=mode, noise=noise, entropy=cfg.seed + k, keep="last"
            )
            cost = run.total_cost()
            exact_cost = float(scheme_value(noisy, policy, grid, mode)(0.0, one))
            worst = max(worst, abs(float(cost.mean()) - exact_cost) / float(cost.std() / math.sqrt(len(cost))))
    report.below("simulated bias against the scheme's exact value, worst of 4, in s.e.", worst, 3.5)

    def panel(axis: Any) -> None:
        for mode, e in errors.items():
            axis.loglog([1 / k for k in steps], np.abs(e), "o-", label=f"{mode}, slope {order(steps, e):.2f}")
        axis.loglog(
            [1 / k for k in steps],
            np.abs(gap),
            "s--",
            label=f"sampled - averaged, additive noise, {order(steps, gap):.2f}",
        )
        axis.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.set(title="bias of the cost", xlabel="dt")
        axis.legend()

    panels.append(panel)


def evaluation(cfg: Any, report: Report, panels: Panels) -> None:
    """Policy evaluation on the known case X = W: the truth is theta = 0."""
    found: dict[str, float] = {}
    for horizon in (1.0, 2.0):
        paths = sample(horizon, cfg.evaluation.paths, cfg.evaluation.steps, cfg.seed + 3)
        found |= {
            f"mean-square TD error, T = {horizon:g}": minimiser(mstde_loss, paths),
            f"martingale loss, T = {horizon:g}": minimiser(martingale_loss, paths),
            f"CLSTD(0), T = {horizon:g}": float(clstd(Shifted(LineCritic(horizon)), paths)),
        }
        for name, value in list(found.items())[-3:]:
            report.near(name, value, -1.5 / horizon if name.startswith("mean") else 0.0, 0.01)

    def panel(axis: Any) -> None:
        axis.barh(list(found), list(found.values()))
        axis.axvline(0, c="k", lw=0.8)
        axis.set(title="learned theta (truth 0): the TD error goes astray")

    panels.append(panel)


def grid(cfg: Any, report: Report, panels: Panels) -> None:
    """Not linear-quadratic: finite differences; the exploratory mean by quadrature over actions."""
    tau = cfg.grid.temperature
    well, box = DoubleWell(), [(-2.0, 2.0)]
    errors, gaps, shifts = {"u*": [], "exploratory mean": []}, [], []
    for n in cfg.grid.points_1d:
        plain = finite_difference.solve(well, box, [n])
        mixed = finite_difference.solve(
            well, box, [n], temperature=tau, how="quadrature", action_box=[(-18.0, 18.0)], action_nodes=181
        )
        x = plain.axes[0].unsqueeze(1)
        inside = x[:, 0].abs() <= 1.25
        truth = well.optimal_control(0.0, x)
        for name, solution in (("u*", plain), ("exploratory mean", mixed)):
            errors[name].append(float((solution.policy(0) - truth)[inside].abs().max()))
        gaps.append(float((plain.policy(0) - mixed.policy(0)).abs().max()))
        rate = 0.5 * tau * math.log(2 * math.pi * tau)
        shifts.append(float((mixed.values[0] - plain.values[0] + rate).abs().max()))
    report.below("double well: exploratory mean against the optimum, same grid", max(gaps), 1e-8)
    report.below("double well: value shift against its formula", max(shifts), 1e-8)
    for name, e in errors.items():
        report.near(
            f"double well: order of the error of {name} against Hopf-Cole",
            order([n - 1 for n in cfg.grid.points_1d], np.array(e)),
            2.0,
            0.3,
        )
        report.below(f"double well: error of {name} on the finest grid", e[-1], 1e-2)

    problem, box = VanDerPol(), [(-2.0, 2.0), (-2.0, 2.0)]
    means, gaps = [], []
    for n in cfg.grid.points_2d:
        plain = finite_difference.solve(problem, box, [n, n])
        mixed = finite_difference.solve(
            problem, box, [n, n], temperature=tau, how="quadrature", action_box=[(-18.0, 18.0)], action_nodes=181
        )
        gaps.append(float((plain.policy(0) - mixed.policy(0)).abs().max()))
        means.append(mixed.policy(0)[:: (n - 1) // 16, :: (n - 1) // 16][4:13, 4:13])
    steps = [float((b - a).abs().max()) for a, b in zip(means[:-1], means[1:], strict=True)]
    report.below("Van der Pol (2-d): exploratory mean against the optimum, same grid", max(gaps), 1e-8)
    report.near(
        "Van der Pol (2-d): self-convergence order of the exploratory mean", math.log2(steps[0] / steps[1]), 2.0, 0.35
    )

    def panel(axis: Any) -> None:
        fine = finite_difference.solve(well, [(-2.0, 2.0)], [cfg.grid.points_1d[0]], temperature=tau)
        x = torch.linspace(-2, 2, 200, dtype=F64).unsqueeze(1)
        axis.plot(x[:, 0], well.optimal_control(0.0, x)[:, 0], label="deterministic optimum (Hopf-Cole)")
        axis.plot(
            fine.axes[0],
            fine.policy(0)[:, 0],
            "o",
            ms=3,
            label=f"exploratory mean, tau = {tau:g}, {cfg.grid.points_1d[0]} points",
        )
        axis.set(title="double well: not linear-quadratic", xlabel="x", ylabel="u(0, x)")
        axis.legend()

    panels.append(panel)


def learning_problem(dim: int, control: int) -> LQProblem:
    """The problems whose gains are learned: state-dependent and additive noise, and in 1-d the control in the noise."""
    if dim == 1:
        return LQProblem(0.5, 1.0, Q=1.0, R=1.0, C=[[[0.2]]], D=[[[0.2]]], s=[[0.2]], G=0.5)
    gen, n = torch.Generator().manual_seed(5 + dim), 2

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=gen)

    eye = torch.eye(dim, dtype=F64)
    return LQProblem(
        0.5 * normal(dim, dim) / math.sqrt(dim), normal(dim, control), Q=eye, R=torch.eye(control),
        C=0.1 * normal(n, dim, dim) / math.sqrt(dim), s=0.2 * normal(n, dim), G=0.5 * eye,
    )  # fmt: skip


def learning(cfg: Any, report: Report, panels: Panels) -> None:
    """The optimal gain from trajectories alone."""
    gains: dict[str, np.ndarray] = {}
    curves = []
    for name, c in tqdm(cfg.learning.problems.items(), desc="learning", leave=False):
        start = time.perf_counter()
        learned = learn_gain(
            learning_problem(c.dim, c.control), cfg.learning.seeds, c.paths, c.steps, c.iterations, c.variance,
            time_degree=3, curvature_degree=1 if c.dim == 1 else 0, seed=cfg.seed,
        )  # fmt: skip
        minutes = (time.perf_counter() - start) / 60
        title = f"gain learned from data, {name} (d = {c.dim}, m = {c.control})"
        report.below(
            f"{title}: relative error, median of {cfg.learning.seeds} seeds", float(learned.errors.median()), 0.02
        )
        report.add(
            f"... worst seed; error of the seeds' mean {learned.bias:.4f}", float(learned.errors.max()), "shown", True
        )
        report.below("... minutes", minutes, cfg.learning.minutes)
        gains |= {f"{name}_times": learned.times.numpy(), f"{name}_truth": learned.truth.numpy()}
        gains[f"{name}_learned"] = learned.gains.numpy()
        curves.append((name, learned))
    path = Path(cfg.out) / "gains.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **gains)

    def panel(axis: Any) -> None:
        name, learned = curves[-1]
        k, i, j = learned.truth.shape
        for row in range(i):
            for column in range(j):
                colour = f"C{row * j + column}"
                axis.plot(learned.times, learned.gains[:, :, row, column], c=colour, lw=0.4, alpha=0.5)
                axis.plot(learned.times, learned.truth[:, row, column], c=colour, lw=1.5)
        axis.set(title=f"'{name}': gains of {learned.gains.shape[1]} learners (thin), Riccati (thick)", xlabel="t")

    panels.append(panel)


def refusals(cfg: Any, report: Report, panels: Panels) -> None:
    """Bad input: a ValueError that names the argument (and its shape) and what was expected."""
    eye = torch.eye(2, dtype=F64)
    plain = LQProblem(eye, eye, Q=eye, R=eye)
    policy = AffineGaussian.constant(-eye)
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("S(t)", lambda: riccati(LQProblem(eye, eye, Q=eye, R=-eye))),
        ("S(t)", lambda: riccati(LQProblem(1.0, 1.0, Q=-3.0, R=-0.1, D=[[[1.0]]], G=0.2))),
        ("P escapes", lambda: riccati(LQProblem(0.0, 1.0, R=1.0, G=-2.0))),
        ("A", lambda: LQProblem(torch.ones(2, 3), eye)),
        ("B", lambda: LQProblem(eye, torch.ones(3, 1))),
        ("R", lambda: LQProblem(eye, eye, R=torch.eye(3))),
        ("Q", lambda: LQProblem(eye, eye, Q=torch.tensor([[1.0, 2.0], [0.0, 1.0]]))),
        ("D", lambda: LQProblem(eye, eye, D=torch.ones(2, 2))),
        ("g", lambda: LQProblem(eye, eye, g=torch.ones(3))),
        ("discount", lambda: LQProblem(eye, eye, discount=-1.0)),
        ("horizon", lambda: LQProblem(eye, eye, horizon=0.0)),
        ("temperature", lambda: riccati(plain, -0.1)),
        ("temperature", lambda: rollout(plain, policy, eye, time_grid(1.0, steps=2), temperature=-1.0)),
        ("dt", lambda: time_grid(1.0, dt=0.3)),
        ("increments", lambda: rollout(LQProblem(eye, eye, s=eye), policy, eye, time_grid(1.0, steps=2),
                                       increments=Increments.sample(time_grid(1.0, steps=3), 2, (2,), 0))),
        ("points", lambda: finite_difference.solve(DoubleWell(), [(-1.0, 1.0)], [3])),
    ]  # fmt: skip
    clear = 0
    for name, call in calls:
        try:
            call()
        except ValueError as error:
            clear += name in str(error) and "expected" in str(error)
    report.add(
        f"bad inputs refused with a clear ValueError, of {len(calls)}", clear, f"= {len(calls)}", clear == len(calls)
    )


PARTS = {
    "exact": exact, "aid": aid, "montecarlo": montecarlo, "bias": bias,
    "evaluation": evaluation, "grid": grid, "learning": learning, "refusals": refusals,
}  # fmt: skip


def main(cfg: Any) -> int:
    unknown = set(cfg.parts) - set(PARTS)
    if unknown or not cfg.parts:
        raise InputError(f"parts is {list(cfg.parts)}; expected some of {', '.join(PARTS)}")
    torch.set_num_threads(int(cfg.threads))
    report = Report(program="verify_recovery", seed=cfg.seed, parts=list(cfg.parts))
    panels: Panels = []
    start = time.perf_counter()
    for name in PARTS:
        if name in cfg.parts:
            PARTS[name](cfg, report, panels)
    report.about["seconds"] = round(time.perf_counter() - start, 1)
    if panels:
        columns = min(3, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(5.2 * columns, 3.9 * rows), layout="constrained", squeeze=False
        )
        for axis in axes.flat[len(panels) :]:
            axis.axis("off")
        for axis, panel in zip(axes.flat, panels, strict=False):
            panel(axis)
        Path(cfg.out).mkdir(parents=True, exist_ok=True)
        figure.savefig(Path(cfg.out) / "recovery.png", dpi=110)
    return report.finish(cfg.out)


if __name__ == "__main__":
    program("conf/verify_recovery", main)
