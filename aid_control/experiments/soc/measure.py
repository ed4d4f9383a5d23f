r"""Control error and cost of a control, on paths that no loss has seen.

The error is $E_{P^{u^*}}$ of the time-mean of $|u - u^*|^2$ at the solver's times, over that of $|u^*|^2$ (the error
of doing nothing).  The paths are simulated *with* $u^*$, four Euler-Maruyama steps to each of the solver's: no
importance weights are needed, as they are where $u^*$ is not at hand.

The cost is simulated on the solver's grid with its martingale as control variate: $\sum_k u\cdot\Delta B_k$ has
mean zero for any control, and cost plus martingale does not vary at all at the optimum of the continuous problem.  As
$J(u) = J^* + \tfrac12 E_{P^u}\int |u - u^*|^2 dt$, the excess is estimated on the same paths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...increments import Increments, time_grid
from ...policy import GaussianPolicy, MeanNetwork
from ...problem import inner
from ...rollout import rollout
from .problems import Setting

__all__ = ["Cost", "TruthPaths", "simulated_cost"]

CHUNK = 1024


class TruthPaths:
    """States and exact controls on paths of the optimum.

    Args:
        setting: the problem.
        paths: N, independent.
        key: integers.
        finer: Euler-Maruyama steps to one of the solver's.
    """

    def __init__(self, setting: Setting, paths: int, *key: int, finer: int = 4) -> None:
        problem, truth = setting.problem, setting.truth
        fine = time_grid(problem.horizon, steps=setting.steps * finer)
        self.times = setting.grid[:-1]
        policy = GaussianPolicy(lambda t, x, context, probe: truth.control(float(t), x))
        states: list[Tensor] = []
        for start in range(0, paths, CHUNK):
            n = min(CHUNK, paths - start)
            x = setting.x0.expand(n, -1)
            noise = Increments.sample(fine, n, problem.noise_dim(x), *key, start)
            run = rollout(problem, policy, x, fine, increments=noise, keep="path")
            states.append(torch.stack(run.states[:-1:finer]))
        self.states = torch.cat(states, dim=1)
        self.best = torch.stack([truth.control(float(t), x) for t, x in zip(self.times, self.states, strict=True)])
        self.normaliser = float(self.best.square().sum(2).mean())

    @torch.no_grad()
    def error(self, control: MeanNetwork, paths: int | None = None) -> tuple[float, float]:
        """Relative error of a control, and the standard error of that number.

        Args:
            control: of (t, x, context, probe).
            paths: use the first so many; default all.
        """
        states, best = self.states[:, :paths], self.best[:, :paths]
        gaps = [
            (control(t, x, None, None) - u).square().sum(1) for t, x, u in zip(self.times, states, best, strict=True)
        ]
        per_path = torch.stack(gaps).mean(0) / float(best.square().sum(2).mean())
        return float(per_path.mean()), float(per_path.std()) / math.sqrt(len(per_path))


@dataclass(frozen=True)
class Cost:
    """A simulated cost.

    Attributes:
        mean: J on the solver's grid.
        error: its standard error.
        plain_error: what it would be without the control variate.
        excess: half the control error on the control's own paths, which is J - J* in continuous time.
    """

    mean: float
    error: float
    plain_error: float
    excess: float


@torch.no_grad()
def simulated_cost(setting: Setting, control: MeanNetwork, paths: int, *key: int) -> Cost:
    """J of a control on the solver's grid.

    Args:
        setting: the problem.
        control: of (t, x, context, probe).
        paths: N, independent.
        key: integers.
    """
    problem, grid = setting.problem, setting.grid
    totals, martingales, excess = [], [], []
    for start in range(0, paths, CHUNK):
        n = min(CHUNK, paths - start)
        x = setting.x0.expand(n, -1)
        noise = Increments.sample(grid, n, problem.noise_dim(x), *key, start)
        run = rollout(problem, GaussianPolicy(control), x, grid, target=True, increments=noise)
        totals.append(run.total_cost())
        martingales.append(torch.stack([inner(u, w) for u, w in zip(run.means, noise.dw, strict=True)]).sum(0))
        gaps = [
            h * inner(u - b, u - b)
            for u, b, h in (
                (run.means[k], setting.truth.control(float(t), run.states[k]), h) for k, t, h in run.steps()
            )
        ]
        excess.append(0.5 * torch.stack(gaps).sum(0))
    plain = torch.cat(totals)
    total = plain + torch.cat(martingales)
    root = math.sqrt(len(total))
    return Cost(
        float(total.mean()), float(total.std()) / root, float(plain.std()) / root, float(torch.cat(excess).mean())
    )
