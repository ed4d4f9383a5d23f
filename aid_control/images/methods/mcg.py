r"""MCG, manifold constrained gradients (Chung et al. 2022): DPS' gradient in the hole, replacement around it.

$$
x' = (1 - M) \Big( A(x) - \zeta \sqrt{(1 + s^2)(1 + s'^2)}\; \nabla_x \| M (y - D(x; s)) \|_2 \Big)
+ M (y + s' z) .
$$

Published: 1,000 levels, $\zeta = 1$.  Without the gradient it is the score-SDE's replacement in the ancestral sampler.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.precond import Denoiser
from ..clock import Clock
from .dps import corrected
from .task import Callback, prepare

__all__ = ["mcg"]

KEY = 0x3C6


@torch.no_grad()
def mcg(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 1000,
    *,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
    zeta: float = 1.0,
) -> Tensor:
    """Inpaint by MCG; arguments, result and errors as `task.Method`.

    Args:
        backbone: frozen denoiser, differentiable in its input.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: noise levels.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: noise levels.
        callback: called after every step.
        zeta: step size of the correction.
    """
    task = prepare(backbone, y, mask, steps, seeds, class_labels, clock, callback)
    x = task.start()
    for k, s, s_next in task.levels():
        x = corrected(task, x, s, s_next, zeta, task.noise(KEY, k))
        x = task.paste(x, task.y + s_next * task.noise(KEY, k, 1))
        task.done(k, x)
    return task.paste(x)
