r"""The local errors of Euler and Heun along a denoiser's flow, and what reaches the end, measured on few trajectories.

The flow is $dx/d\sigma = f(x, \sigma) = (x - D(x; \sigma))/\sigma$.  A *trace* is a fine Heun solution with its slopes.
From a point of it one step to a later point arrives beside the trace; the defect is

$$
e_p(\sigma) = \text{one step of order } p - \text{the trace} = O(h^{p+1}), \qquad
\tfrac12 |Q|\,h^2 \ (p = 1), \quad \big|\tfrac1{12} x''' - \tfrac14 \partial_x f\, x''\big|\,h^3 \ (p = 2),
$$

with the derivatives in $\sigma$ along the flow: no Jacobian is formed, the differences are taken along the trace.  As a
density per unit of $\log\sigma$ (where a step has the length $h = \sigma\,|\Delta\log\sigma|$) the best clock for the
sum of the defects is $w = (|e_p|/|\Delta\log\sigma|^{p+1})^{1/(p+1)}$ (`warp`).

What later steps make of a defect is left out of that sum.  It is measured by carrying the defect to $\sigma = 0$: the
solution from the point reached, less the solution from the trace's, on the same grid.  The densities of what arrives
weigh the levels by what the end sees of them.  Norms are root mean squares over pixels, averaged over trajectories.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...images.backbones.precond import Denoiser
from ...images.clock import Clock
from ...images.inpaint import starting_noise

__all__ = ["ORDERS", "Densities", "Trace", "densities", "rms", "trace"]

ORDERS = {"euler": 1, "heun": 2}


@dataclass(frozen=True)
class Trace:
    """A fine solution.

    Attributes:
        levels: (N + 1,) decreasing, the last one 0.
        states: N + 1 of (B, C, H, W).
        slopes: f there, N of (B, C, H, W).
    """

    levels: Tensor
    states: list[Tensor]
    slopes: list[Tensor]


@dataclass(frozen=True)
class Densities:
    """Measured densities per unit of log sigma, by solver.

    Attributes:
        levels: middles (geometric means) of the steps, (n,) decreasing.
        local: solver to (n,), from the defects.
        arriving: solver to (n,), from what arrives of them at sigma = 0.
    """

    levels: Tensor
    local: dict[str, Tensor]
    arriving: dict[str, Tensor]


def rms(x: Tensor) -> Tensor:
    """Root mean square over pixels: (B, C, H, W) -> (B,)."""
    return x.double().flatten(1).square().mean(1).sqrt()


def _slope(net: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    return (x - net(x, sigma)) / sigma


def _heun(net: Denoiser, x: Tensor, slope: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """One step; by Euler to 0."""
    guess = x + (there - here) * slope
    if float(there) == 0:
        return guess
    return x + (there - here) * (slope + _slope(net, guess, there)) / 2


@torch.no_grad()
def trace(net: Denoiser, seeds: Sequence[int], steps: int, clock: Clock) -> Trace:
    """A Heun solution of the flow from the starting noise of these seeds (that of `inpaint`).

    Args:
        net: a denoiser.
        seeds: one an image.
        steps: N; 2 N - 1 calls an image.
        clock: of the fine grid.
    """
    levels = clock.sigmas(steps)
    x = starting_noise(net, seeds, len(seeds)) * clock.sigma_max
    states, slopes = [x], []
    for here, there in zip(levels[:-1], levels[1:], strict=True):
        slopes.append(_slope(net, x, here))
        x = _heun(net, x, slopes[-1], here, there)
        states.append(x)
    return Trace(levels, states, slopes)


def _finish(net: Denoiser, x: Tensor, levels: Tensor) -> Tensor:
    for here, there in zip(levels[:-1], levels[1:], strict=True):
        x = _heun(net, x, _slope(net, x, here), here, there)
    return x


@torch.no_grad()
def densities(
    net: Denoiser, path: Trace, stride: int, carried: int, progress: Callable[[], object] | None = None
) -> Densities:
    """Measure both densities with steps over ``stride`` cells of a trace.

    Args:
        net: a denoiser.
        path: of the same denoiser; its steps divided by ``stride`` are the steps measured.
        stride: cells of a step.
        carried: how many of the trajectories are carried to the end (the first ones).
        progress: called after every level.
    """
    nodes = list(range(0, len(path.slopes), stride))  # the last step, to 0, is not a step in log sigma
    middles, local, arriving = [], dict[str, list[float]](), dict[str, list[float]]()
    for a, b in zip(nodes, nodes[1:], strict=False):
        here, there = path.levels[a], path.levels[b]
        x, slope, truth = path.states[a], path.slopes[a], path.states[b]
        reached = {"euler": x + (there - here) * slope, "heun": _heun(net, x, slope, here, there)}
        rest = torch.cat([path.levels[nodes[nodes.index(b) :]], path.levels[-1:]])
        base = _finish(net, truth[:carried], rest)
        length = float((here / there).log())
        middles.append(float((here * there).sqrt()))
        for solver, point in reached.items():
            power = ORDERS[solver] + 1
            gap = float(rms(point - truth).mean())
            end = float(rms(_finish(net, point[:carried], rest) - base).mean())
            local.setdefault(solver, []).append((gap / length**power) ** (1 / power))
            arriving.setdefault(solver, []).append((end / length**power) ** (1 / power))
        if progress is not None:
            progress()

    def tensors(found: dict[str, list[float]]) -> dict[str, Tensor]:
        return {solver: torch.tensor(values, dtype=torch.float64) for solver, values in found.items()}

    return Densities(torch.tensor(middles, dtype=torch.float64), tensors(local), tensors(arriving))
