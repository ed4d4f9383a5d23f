r"""One dimension, where everything is known: data N(0, 1), $dx = \sqrt{2s}\,dw$, from noise level T.

The flow is $F = -s x/(1 + s^2)$ with $s = T - \psi$; ART's clock is $\theta^* \propto (1 + s^2)^{3/4}$.  Euler's scheme
is linear, so its law at the end is Gaussian, and the distance to the data is exact:

$$
W_2 = \Big|1 - \sqrt{1 + T^2} \prod_k \Big(1 - \frac{(s_k - s_{k+1})\, s_k}{1 + s_k^2}\Big)\Big| .
$$

`learn` is given the drift as a function to ask, not its formula: a policy gradient (Jia & Zhou 2022b) with a critic
fitted to the realised costs, from the uniform clock.  One iteration is a batch of episodes of the randomised clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...evaluation import martingale_loss
from ...improvement.policy_gradient import policy_gradient_loss
from ...increments import time_grid
from ...noise import generator
from ...policy import GaussianPolicy
from ...rollout import rollout
from ...value import Shifted
from .control import ClockProblem, ClockValue, Speed
from .warp import LogLinear, equal_steps

__all__ = ["Learned", "Settings", "best", "compare", "excess", "field", "learn", "rho_grid", "w2"]


@dataclass(frozen=True)
class Settings:
    """How the clock is learned.

    Args:
        end: T.
        knots: of the densities.
        iterations: batches of episodes.
        episodes: per batch.
        paths: n, carried by one clock.
        steps: of an episode.
        variance: lambda.
        rate: of Adam, for the actor; it falls linearly to a hundredth.
        critic_rate: the same for the critic.
        average: the last part of the iterations over which the actor's weights are averaged.
    """

    end: float = 3.0
    knots: int = 8
    iterations: int = 300
    episodes: int = 64
    paths: int = 16
    steps: int = 40
    variance: float = 0.05
    rate: float = 0.05
    critic_rate: float = 0.05
    average: float = 0.3


@dataclass(frozen=True)
class Learned:
    """What `learn` found.

    Attributes:
        warp: the density.
        costs: mean cost of an episode without the cost of exploring, one an iteration.
        calls: evaluations of the drift, one a path and a clock.
    """

    warp: LogLinear
    costs: list[float]
    calls: int


def field(x: Tensor, psi: Tensor, end: float = 3.0) -> Tensor:
    """F, the flow of data N(0, 1): paths (B, n) and clocks (B, 1) -> like x."""
    s = end - psi
    return -s * x / (1 + s**2)


def learn(
    drift: Callable[[Tensor, Tensor], Tensor],
    settings: Settings,
    seed: int,
    progress: Callable[[], object] | None = None,
) -> Learned:
    """Learn one clock for all paths of a flow that starts at N(0, 1 + T^2).

    Args:
        drift: F(x, psi), of paths (B, n) at clocks (B, 1), like x; it is only asked.
        settings: how.
        seed: of starts and exploration.
        progress: called after every iteration.
    """
    end, s = settings.end, settings
    problem = ClockProblem(drift, end, end / s.steps)
    actor, critic = Speed(LogLinear(end, s.knots), end), ClockValue(LogLinear(end, s.knots), end)
    policy = GaussianPolicy(actor, lambda t: s.variance)
    value = Shifted(critic, s.variance)
    optimisers = [torch.optim.Adam(actor.parameters(), s.rate), torch.optim.Adam(critic.parameters(), s.critic_rate)]
    fall = [torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.01, s.iterations) for o in optimisers]
    grid, start, kept = time_grid(end, steps=s.steps), math.sqrt(1 + end**2), list[Tensor]()
    costs = []
    for n in range(s.iterations):
        rng = generator(seed, n)
        x = torch.randn(s.episodes, s.paths, generator=rng, dtype=torch.float64) * start
        x = torch.cat([x, x.new_zeros(s.episodes, 1)], 1)
        with torch.no_grad():
            path = rollout(problem, policy, x, grid, target=(), mode="sampled", noise=rng)
        costs.append(float(path.total_cost().mean()) - s.variance * end)
        losses = (policy_gradient_loss(policy, value, path), martingale_loss(value, path))
        for loss, optimiser, falling in zip(losses, optimisers, fall, strict=True):
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            falling.step()
        if n >= (1 - s.average) * s.iterations - 1:
            kept.append(actor.warp.weights.detach().clone())
        if progress is not None:
            progress()
    with torch.no_grad():
        actor.warp.weights.copy_(torch.stack(kept).mean(0))
    return Learned(actor.warp, costs, problem.calls * s.episodes)


def w2(levels: Tensor | NDArray[np.float64]) -> float:
    """W_2 between N(0, 1) and the end of Euler's scheme started at the exact law.

    Args:
        levels: decreasing noise levels, (K + 1,), from T to 0.
    """
    s = [float(v) for v in levels]
    deviation = math.sqrt(1 + s[0] ** 2)
    for here, after in zip(s, s[1:], strict=False):
        deviation *= 1 - (here - after) * here / (1 + here**2)
    return abs(1 - deviation)


def best(power: float, steps: int, end: float = 3.0) -> Tensor:
    """Levels of the clock theta proportional to (1 + s^2)^power.

    Args:
        power: 3/4 is ART's optimum, 0 the uniform clock.
        steps: K.
        end: T.

    Returns:
        (K + 1,) decreasing from T to 0, by quadrature on 20,000 cells.
    """
    s = torch.linspace(0, end, 20_001, dtype=torch.float64)
    return equal_steps(s, (1 + s**2) ** -power, steps).flip(0)


def rho_grid(steps: int, end: float = 3.0, last: float = 0.0, rho: float = 7.0) -> Tensor:
    """Levels whose power 1/rho falls linearly, (K + 1,) from T to 0.

    Args:
        steps: K.
        end: T.
        last: 0 = the rule goes straight to 0; otherwise the last positive level, from which the last step falls to 0.
        rho: 7 is EDM's.
    """
    inner = steps if last == 0 else max(steps - 1, 1)
    s = torch.arange(inner + 1, dtype=torch.float64) / inner
    levels = (end ** (1 / rho) + s * (last ** (1 / rho) - end ** (1 / rho))) ** rho
    return levels if last == 0 else torch.cat([levels, levels.new_zeros(1)])


def excess(s: Tensor, density: Tensor) -> float:
    r"""How much more than the optimum a clock costs, $\int w\,ds \int (q/w)\,ds\, / (\int \sqrt q\,ds)^2 - 1$.

    Args:
        s: noise levels, (n,) increasing from 0 to T.
        density: w there, (n,).
    """
    q = (1 + s**2) ** -1.5
    cost = torch.trapezoid(density, s) * torch.trapezoid(q / density, s)
    return float(cost / torch.trapezoid(q.sqrt(), s) ** 2) - 1


def compare(
    settings: Settings, seeds: Sequence[int], steps: Sequence[int], progress: Callable[[], object] | None = None
) -> dict[str, Any]:
    """Learn with every seed, and measure fixed clocks beside.

    Args:
        settings: how the clock is learned.
        seeds: one clock each.
        steps: numbers of Euler steps K.
        progress: called after every iteration.

    Returns:
        ``steps``; ``fixed``: clock to its distances; ``learned``: distances by seed; ``knots``: log densities by seed;
        ``excess`` by seed and ``uniform_excess``; ``costs``: by seed and iteration; ``calls`` of the drift, a seed.
    """
    end = settings.end
    fixed = {
        "optimum of ART": [w2(best(0.75, k, end)) for k in steps],
        "uniform": [w2(best(0.0, k, end)) for k in steps],
        "rho 7 to zero": [w2(rho_grid(k, end)) for k in steps],
        "rho 7 to 0.002, then zero": [w2(rho_grid(k, end, 0.002)) for k in steps],
        "optimum of the error at the end": [w2(best(1.0, k, end)) for k in steps],
    }
    found = [learn(lambda x, psi: field(x, psi, end), settings, seed, progress) for seed in seeds]
    fine = found[0].warp.fine
    with torch.no_grad():
        densities = [f.warp.density(fine).flip(0) for f in found]  # by noise level
    return {
        "steps": list(steps),
        "fixed": fixed,
        "learned": [[w2(end - f.warp.grid(k)) for k in steps] for f in found],
        "knots": [f.warp.weights.tolist() for f in found],
        "excess": [excess(fine, d) for d in densities],
        "uniform_excess": excess(fine, torch.ones_like(fine)),
        "costs": [f.costs for f in found],
        "calls": found[0].calls,
    }
