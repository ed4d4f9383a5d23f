r"""Replacement (projection; Song et al. 2021, score-SDE inpainting): known pixels are re-noised into the state.

After every solver step to level $s$ the known part of the state is overwritten by a sample of its marginal,

$$
x \leftarrow M (y + s z) + (1 - M) x, \qquad z \sim N(0, I) \text{ fresh each step}.
$$
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...policy import GaussianPolicy, ZeroMean
from ...rollout import Solver, rollout
from ..backbones.precond import Denoiser
from ..clock import Clock, within
from ..problem import GuidanceProblem, Observation, levels_of
from .task import Callback, prepare

__all__ = ["replacement"]

KEY = 0x4E9


@torch.no_grad()
def replacement(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 18,
    *,
    solver: Solver = "heun",
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Inpaint by replacement; arguments, result and errors as `task.Method`, ``solver`` as `inpaint.inpaint`."""
    clock = clock or within(backbone.sigma_min, backbone.sigma_max)
    task = prepare(backbone, y, mask, steps, seeds, class_labels, clock, callback)
    problem, policy = GuidanceProblem(backbone, clock), GaussianPolicy(ZeroMean())
    grid, x = levels_of(problem, steps).to(y.device), task.start()
    context = Observation(task.y, task.mask, class_labels=class_labels)
    for k, _, s_next in task.levels():
        x = rollout(problem, policy, x, grid[k : k + 2], context, solver=solver, keep="last").states[-1]
        x = task.paste(x, task.y + s_next * task.noise(KEY, k))
        task.done(k, x)
    return task.paste(x)
