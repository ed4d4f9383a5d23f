r"""Clocks for image backbones: from measured densities, refined on measured errors, and compared with fixed grids.

The error of a sampler is the root mean square over pixels between its image and the fine solution from the same noise,
averaged over seeds.  A budget is a number of backbone calls an image; every clock takes as many steps as its budget
allows (Heun with K steps takes 2 K - 1 calls, less where the sampler steps by Euler because the level falls by a factor
of 30 or more).

`refine` starts at the best of a few clocks (the one of the local errors, and more concentrated ones) and minimises the
error itself over the logarithms of the density at the knots (Nelder and Mead 1965; no gradients), on seeds that are not
tested, for one budget.  All candidates are clocks of `images.learned_clock`, so every one has increasing time and
falling levels.

*Detail* is the energy of what a 3 x 3 box filter removes, relative to the fine solution's: a smaller root mean square
may be bought with blur, which this shows (1 = as sharp).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import avg_pool2d

from ...errors import InputError
from ...images.backbones.precond import Denoiser
from ...images.clock import Clock, KarrasClock
from ...images.inpaint import function_evaluations, inpaint
from ...images.learned_clock import LearnedClock
from ...rollout import Solver
from .warp import interpolate

__all__ = ["detail", "from_density", "powers", "ratio", "refine", "sample", "short", "steps_within"]

BATCH = 16


def sample(net: Denoiser, seeds: Sequence[int], steps: int, solver: Solver, clock: Clock) -> Tensor:
    """Unguided samples by the package's sampler, a function of their seeds.

    Args:
        net: a denoiser.
        seeds: one an image.
        steps: of the solver.
        solver: ``"euler"`` or ``"heun"``.
        clock: noise levels.

    Returns:
        (B, C, H, W).
    """
    parts = []
    for i in range(0, len(seeds), BATCH):
        some = list(seeds[i : i + BATCH])
        y = torch.zeros(len(some), *net.shape)
        parts.append(inpaint(net, None, y, y[:, :1], steps, solver, some, clock=clock))
    return torch.cat(parts)


def steps_within(net: Denoiser, budget: int, solver: Solver, clock: Clock) -> int:
    """The largest number of steps that takes at most ``budget`` calls an image.

    Args:
        net: gives the rounding of levels.
        budget: calls an image, at least 1.
        solver: ``"euler"`` or ``"heun"``.
        clock: noise levels.

    Returns:
        K >= 1.

    Raises:
        InputError: for a budget below 1.
    """
    if budget < 1:
        raise InputError(f"budget is {budget}; expected at least 1 call an image")
    steps = budget
    while function_evaluations(steps, solver, net, clock) > budget:
        steps -= 1
    return steps


def from_density(
    levels: Tensor, density: Tensor, knots: int, clock: KarrasClock, about: Mapping[str, str | float]
) -> LearnedClock:
    """The clock of a measured density, read off at equally spaced knots of log sigma.

    Args:
        levels: where it was measured, (n,) decreasing.
        density: per unit of log sigma, (n,) positive; constant beyond the outermost levels.
        knots: how many, at least 2.
        clock: gives the first and the last knot.
        about: what the clock says of itself.
    """
    u = torch.linspace(math.log(clock.sigma_max), math.log(clock.sigma_min), knots, dtype=torch.float64)
    log = interpolate(u, levels.log().flip(0), density.log().flip(0))
    return LearnedClock(tuple(u.exp().tolist()), tuple((log - log.max()).exp().tolist()), about)


def refine(
    starts: Sequence[LearnedClock],
    error: Callable[[Clock], float],
    evaluations: int,
    progress: Callable[[], object] | None = None,
) -> LearnedClock:
    """Minimise a measured error over the density at the knots, from the best of a few clocks.

    Args:
        starts: clocks with the same knots, at least one.
        error: of a clock, positive.
        evaluations: clocks that are measured, at least the number of starts and of knots together.
        progress: called after every one.

    Returns:
        The best clock found, never worse than the starts; ``about`` is that of the best start.
    """
    found: list[float] = []

    def measured(clock: Clock) -> float:
        found.append(math.log(error(clock)))
        if progress is not None:
            progress()
        return found[-1]

    start = min(starts, key=measured)
    first = np.log(start.density)

    def clock(v: NDArray[np.float64]) -> LearnedClock:
        log = first + np.append(0.0, v)  # only ratios count: the first knot stays
        return LearnedClock(start.levels, tuple(np.exp(log - log.max()).tolist()), start.about)

    n = len(first) - 1
    simplex = np.vstack([np.zeros(n), 0.4 * np.eye(n)])
    options = {"maxfev": evaluations - len(found), "initial_simplex": simplex, "xatol": 0.0, "fatol": 0.0}
    return clock(minimize(lambda v: measured(clock(v)), np.zeros(n), method="Nelder-Mead", options=options).x)


def powers(clock: LearnedClock, exponents: Sequence[float]) -> list[LearnedClock]:
    """Clocks of the same knots whose densities are powers of one density: the larger, the more concentrated.

    Args:
        clock: the clock.
        exponents: one a clock; 1 is the clock itself.
    """
    return [dataclasses.replace(clock, density=tuple(w**e for w in clock.density)) for e in exponents]


def short(clock: Clock, steps: int, rho: float = 7.0) -> KarrasClock:
    """Karras' rule between the first and the last positive level of another clock's grid.

    It tells apart what a learned clock gains by where it ends, and by its shape.

    Args:
        clock: the other one.
        steps: of the grid, at least 2.
        rho: exponent.
    """
    levels = clock.sigmas(steps)
    return KarrasClock(float(levels[-2]), float(levels[0]), rho)


def detail(x: Tensor, truth: Tensor) -> Tensor:
    """Energy of the details of images over that of others.

    Args:
        x: images (B, C, H, W).
        truth: the others, of the same shape.

    Returns:
        (B,) float64.
    """

    def energy(image: Tensor) -> Tensor:
        image = image.double()
        return (image - avg_pool2d(image, 3, 1, 1, count_include_pad=False)).flatten(1).square().mean(1)

    return energy(x) / energy(truth)


def ratio(a: Tensor, b: Tensor, groups: int = 1, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean of a over mean of b, and its 95 % interval by a paired bootstrap.

    Args:
        a: positive numbers, (n,).
        b: those of the other side, like a, in the same order.
        groups: rows that are resampled together: row i belongs to group i modulo n/groups.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The ratio, and the ends of the interval.
    """
    x, y = (v.double().reshape(groups, -1).mean(0).numpy() for v in (a, b))
    draws = np.random.default_rng(seed).integers(len(x), size=(resamples, len(x)))
    low, high = np.percentile(x[draws].mean(1) / y[draws].mean(1), [2.5, 97.5])
    return float(x.mean() / y.mean()), float(low), float(high)
