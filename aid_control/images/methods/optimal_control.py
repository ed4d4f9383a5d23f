r"""Per-instance optimal control: the controls themselves are optimised, through the sampler, for every image.

$$
\min_{v_0, \dots, v_{K-1}} \; \sum_k \tfrac12 w_k |v_k|^2 + \Psi(X_K), \qquad
X_{k+1} = X_k + f_k (D(X_k; \sigma_k) + v_k - X_k) .
$$

The reference optimum for a backbone without closed form (on a Gaussian one it must equal
`optimum`), and a baseline: no training, but a hundred times the backbone calls of an amortised policy.  $\Psi$ is
the squared distance to a ``target``: the posterior mean where it is known; for a plain observation the known pixels
only, so that the hole is filled by what the backbone finds plausible.  L-BFGS with a strong Wolfe line search.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.precond import Denoiser
from ..clock import Clock, within
from ..problem import GuidanceProblem, Observation, levels_of
from .task import Callback, prepare

__all__ = ["optimal_control", "optimise_controls"]


def optimise_controls(
    problem: GuidanceProblem,
    x: Tensor,
    grid: Tensor,
    context: Observation,
    target: Tensor,
    weight: Tensor | None = None,
    iterations: int = 20,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Optimise the controls of one batch.

    Args:
        problem: the guidance problem.
        x: initial states (B, C, H, W).
        grid: times (K + 1,), Euler steps.
        context: gives class labels, if any.
        target: (B, C, H, W).
        weight: of the pixels in Psi, of a shape that broadcasts to (B, C, H, W), such as a mask (B, 1, H, W); default
            1.
        iterations: of L-BFGS, each about 1.25 passes forth and back through the sampler.
        start: controls to start from (K, B, C, H, W); default zero.

    Returns:
        Controls (K, B, C, H, W), final states (B, C, H, W), and the cost of every image (B,), detached.
    """
    falls, costs = problem.discrete(grid)
    importance = torch.ones_like(target) if weight is None else weight.expand_as(target)
    # the step of unit curvature in v_k: images times fall, costs w; scale to make L-BFGS' first step sensible
    scale = torch.tensor(costs, dtype=x.dtype).rsqrt().reshape(-1, *(1,) * x.dim())
    z = torch.zeros(len(falls), *x.shape, dtype=x.dtype) if start is None else start / scale
    z = z.detach().clone().requires_grad_()

    def run(z: Tensor) -> tuple[Tensor, Tensor]:
        state, v = x, z * scale
        for k, fall in enumerate(falls):
            d = problem.probe(grid[k], state, context)
            state = state + fall * (d + v[k] - state)
        miss = 0.5 * (importance * (state - target).square()).flatten(1).sum(1) / problem.pixels
        return state, miss + 0.5 * z.square().flatten(2).sum(2).sum(0)

    optimiser = torch.optim.LBFGS([z], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe",
                                  tolerance_grad=1e-12, tolerance_change=1e-15)  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = run(z)[1].sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        end, cost = run(z)
    return (z * scale).detach(), end, cost


def optimal_control(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 18,
    *,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
    beta: float = 0.1,
    iterations: int = 20,
) -> Tensor:
    """Inpaint by optimising the controls of every image; arguments, result and errors as `task.Method`.

    Images are optimised one at a time: a joint line search would couple an image's result to its batch.

    Args:
        backbone: frozen, differentiable denoiser.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: Euler steps.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: noise levels.
        callback: called as callback(steps - 1, x) with the whole result, once.
        beta: weight of the control cost.
        iterations: of L-BFGS.
    """
    clock = clock or within(backbone.sigma_min, backbone.sigma_max)
    task = prepare(backbone, y, mask, steps, seeds, class_labels, clock, callback)
    problem = GuidanceProblem(backbone, clock, beta=beta)
    noise, grid, out = task.start(), levels_of(problem, steps).to(y.device), []
    for i in range(len(y)):
        one = slice(i, i + 1)
        labels = None if class_labels is None else class_labels[one]
        context = Observation(task.y[one], task.mask[one], class_labels=labels)
        out.append(optimise_controls(problem, noise[one], grid, context, task.y[one], task.mask[one], iterations)[1])
    x = torch.cat(out)
    task.done(steps - 1, x)
    return task.paste(x)
