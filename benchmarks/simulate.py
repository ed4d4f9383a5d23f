"""What a simulated path costs: the toolkit's rollout, a hand-written loop and torchsde, interleaved in one run.

``python benchmarks/simulate.py [out=outputs/simulate] [reps=7] [threads=1] [paths=4096] [steps=200] [seed=0]``

Two linear-quadratic problems with four states, two controls and four Brownian motions under a linear feedback, Euler,
float64: one with additive noise, one whose four columns depend on state and control.  Everything includes the sampling
of its noise and keeps all states, but for the rollout with ``keep="last"``.  All contenders are first shown to end in
the same states on one Brownian path; then they take turns, and the ratios are those of the fastest turns (medians are
printed beside them).  The rollout adds up the costs; torchsde does not, and the hand-written loop is timed with and
without.
"""

from __future__ import annotations

import inspect
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import torchsde
from torch import Tensor, nn

from aid_control.increments import Increments, time_grid
from aid_control.lq import AffineGaussian, LQProblem
from aid_control.report import Report
from aid_control.rollout import rollout
from aid_control.schemes import PathBrownian

F64 = torch.float64
HORIZON = 1.0


def make(noise: str) -> tuple[LQProblem, AffineGaussian]:
    """A stable problem with dense matrices and a linear feedback."""
    numbers = torch.Generator().manual_seed(0)

    def draw(*shape: int, size: float = 0.3) -> Tensor:
        return size * torch.randn(*shape, generator=numbers, dtype=F64)

    eye = torch.eye(4, dtype=F64)
    a, b, k = draw(4, 4) - eye, draw(4, 2), draw(2, 4)
    costs = {"Q": eye, "R": torch.eye(2, dtype=F64), "N": draw(4, 2), "G": eye}
    moving = {} if noise == "additive" else {"C": draw(4, 4, 4), "D": draw(4, 4, 2)}
    return LQProblem(a, b, s=draw(4, 4), horizon=HORIZON, **costs, **moving), AffineGaussian.constant(k)


class Hand:
    """The loop one writes for this problem alone, on plain tensors; ``costs`` adds up those of every path."""

    def __init__(self, problem: LQProblem, policy: AffineGaussian) -> None:
        c = {name: problem.at(name, 0.0) for name in ("A", "B", "C", "D", "s", "Q", "R", "N", "G")}
        self.a, self.b, self.s = c["A"].mT, c["B"].mT, c["s"]
        self.q, self.r, self.n, self.g = c["Q"], c["R"], c["N"], c["G"]
        self.k = policy.law(torch.zeros(()))[0].mT
        self.moving = bool(problem.used & {"C", "D"})
        # (d, n d): one product for all columns
        self.c, self.d = c["C"].flatten(0, 1).mT.contiguous(), c["D"].flatten(0, 1).mT.contiguous()

    def __call__(self, x: Tensor, grid: Tensor, costs: bool, dw: Tensor | None = None) -> list[Tensor]:
        steps, h = len(grid) - 1, HORIZON / (len(grid) - 1)
        if dw is None:
            dw = torch.randn(steps, len(x), 4, dtype=F64).mul_(h**0.5)
        states, total = [x], torch.zeros(len(x), dtype=F64)
        for k in range(steps):
            u = x @ self.k
            if costs:
                total += (0.5 * h) * ((x @ self.q) * x).sum(1)
                total += h * ((x @ self.n + 0.5 * (u @ self.r)) * u).sum(1)
            if self.moving:
                columns = (x @ self.c + u @ self.d).view(-1, 4, 4) + self.s
                noise = torch.einsum("bnd,bn->bd", columns, dw[k])
            else:
                noise = dw[k] @ self.s
            x = x + h * (x @ self.a + u @ self.b) + noise
            states.append(x)
        if costs:
            total += 0.5 * ((x @ self.g) * x).sum(1)
        return states


class Sde(nn.Module):
    """The same closed loop as torchsde asks for it."""

    sde_type = "ito"

    def __init__(self, hand: Hand) -> None:
        super().__init__()
        self.hand, self.noise_type = hand, "general" if hand.moving else "additive"

    def f(self, t: Tensor, x: Tensor) -> Tensor:
        return x @ self.hand.a + (x @ self.hand.k) @ self.hand.b

    def g(self, t: Tensor, x: Tensor) -> Tensor:
        hand = self.hand
        if not hand.moving:
            return hand.s.mT.expand(len(x), 4, 4)
        return ((x @ hand.c + (x @ hand.k) @ hand.d).view(-1, 4, 4) + hand.s).mT


def contenders(
    problem: LQProblem, policy: AffineGaussian, x: Tensor, grid: Tensor
) -> dict[str, Callable[[int], object]]:
    """Name -> a run with a seed."""
    hand, steps = Hand(problem, policy), len(grid) - 1
    sde, dt = Sde(hand), HORIZON / steps

    def own(keep: Literal["all", "last"]) -> Callable[[int], object]:
        return lambda seed: rollout(problem, policy, x, grid, target=0, entropy=seed, keep=keep).total_cost()

    def guarded(seed: int) -> Tensor:
        path = torchsde.BrownianInterval(0.0, HORIZON, size=(len(x), 4), dtype=F64, entropy=seed, dt=dt)
        return torchsde.sdeint(sde, x, grid, bm=path, dt=dt, method="euler")

    return {
        "own": own("all"),
        "own, last state": own("last"),
        "hand, no costs": lambda seed: hand(x, grid, False),
        "hand": lambda seed: hand(x, grid, True),
        "torchsde": lambda seed: torchsde.sdeint(sde, x, grid, dt=dt, method="euler"),
        "torchsde, dt": guarded,
    }


def same_ends(problem: LQProblem, policy: AffineGaussian, x: Tensor, grid: Tensor, seed: int) -> float:
    """The largest difference of the three programs' last states on one Brownian path."""
    increments, hand = Increments.sample(grid, len(x), (4,), seed), Hand(problem, policy)
    own = rollout(problem, policy, x, grid, increments=increments).states[-1]
    by_hand = hand(x, grid, False, increments.dw)[-1]
    theirs = torchsde.sdeint(
        Sde(hand), x, grid, bm=PathBrownian(increments), dt=HORIZON / (len(grid) - 1), method="euler"
    )
    return max(float((own - by_hand).abs().max()), float((own - theirs[-1]).abs().max()))


def main(
    out: str = "outputs/simulate", reps: int = 7, threads: int = 1, paths: int = 4096, steps: int = 200, seed: int = 0
) -> int:
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    grid, x = time_grid(HORIZON, steps=steps), torch.ones(paths, 4, dtype=F64)
    report = Report(program="benchmarks/simulate.py", reps=reps, threads=threads, paths=paths, steps=steps, seed=seed)
    for noise in ("additive", "state and control"):
        problem, policy = make(noise)
        report.below(f"{noise}: difference of the last states", same_ends(problem, policy, x, grid, seed), 1e-10)
        runs = contenders(problem, policy, x, grid)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(reps + 1):  # the first is a rehearsal
            for name, run in runs.items():
                start = time.perf_counter()
                run(seed + turn)
                seconds[name].append(time.perf_counter() - start)
        least = {name: min(times[1:]) for name, times in seconds.items()}
        middle = {name: statistics.median(times[1:]) for name, times in seconds.items()}
        print(f"{noise} noise, {paths} paths, {steps} steps, {threads} threads: seconds, ratio to the loop by hand")
        for name in runs:
            ratios = f"{least[name] / least['hand']:6.2f} {middle[name] / middle['hand']:6.2f}"
            print(f"  {name:16} min {least[name]:.4f}  median {middle[name]:.4f}  ratios {ratios}")
        for name in ("own", "own, last state"):
            report.below(f"{noise}: {name} / hand", least[name] / least["hand"], 1.5)
            report.below(f"{noise}: {name} / torchsde", least[name] / least["torchsde"], 1 / 3)
        report.below(f"{noise}: own / hand, no costs", least["own"] / least["hand, no costs"], 1.5)
        report.add(f"{noise}: own / torchsde, dt", least["own"] / least["torchsde, dt"], "reported", True)
    return report.finish(out)


if __name__ == "__main__":
    try:
        words = dict(word.split("=", 1) for word in sys.argv[1:])
        options: dict[str, Any] = {name: value if name == "out" else int(value) for name, value in words.items()}
        inspect.signature(main).bind(**options)
    except (TypeError, ValueError) as error:
        print(f"error: {error}; expected out=DIR reps= threads= paths= steps= seed=", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(**options))
