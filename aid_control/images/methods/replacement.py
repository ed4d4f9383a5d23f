r"""Replacement (projection; Song et al. 2021, score-SDE inpainting): known pixels are re-noised into the state.

After every solver step to level s the known part of the state is overwritten by a sample of its marginal,

.. math::  x \leftarrow M (y + s z) + (1 - M) x, \qquad z \sim N(0, I) \text{ fresh each step}.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...noise import per_image_normal
from ...policy import GaussianPolicy, ZeroMean
from ...rollout import Solver, rollout
from ..backbones.precond import Denoiser
from ..clock import Clock, within
from ..inpaint import check_images, starting_noise
from ..problem import GuidanceProblem, Observation, levels_of

__all__ = ["replacement"]


@torch.no_grad()
def replacement(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 18,
    solver: Solver = "heun",
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Inpaint by replacement; arguments and result as :func:`aid_control.images.inpaint`, without guidance."""
    check_images(backbone, y, mask)
    clock = clock or within(backbone.sigma_min, backbone.sigma_max)
    problem, policy = GuidanceProblem(backbone, clock), GaussianPolicy(ZeroMean())
    seeds = range(len(y)) if seeds is None else seeds
    y = torch.where(mask.bool(), y, 0.0)
    x = starting_noise(backbone, seeds, len(y), y.device) * clock.sigma_max
    grid = levels_of(problem, steps).to(y.device)
    context = Observation(y, mask, class_labels=class_labels)
    for k in range(steps):
        x = rollout(problem, policy, x, grid[k : k + 2], context, solver=solver, keep="last").states[-1]
        z = per_image_normal(seeds, x.shape[1:], 0x4E9, k).to(x)
        x = torch.where(mask.bool(), y + clock.sigma(grid[k + 1]).to(x) * z, x)
        if callback is not None:
            callback(k, x)
    return torch.where(mask.bool(), y, x)
