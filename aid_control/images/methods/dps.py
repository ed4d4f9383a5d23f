r"""DPS, diffusion posterior sampling (Chung et al. 2023, algorithm 1), in sigma form.

$$
x' = A(x) - \zeta \sqrt{(1 + s^2)(1 + s'^2)}\; \nabla_x \| M (y - D(x; s)) \|_2 ,
$$

$A$ the ancestral step.  The root is what the variance-preserving coordinates $x_{VP} = x/\sqrt{1 + s^2}$ of the
published rule $x'_{VP} = A_{VP} - \zeta \nabla_{x_{VP}} \| M (y - D) \|$ become; a constant step in $x$ would be a
different method, far weaker at high noise.  The norm is one image's: the published code's is over the batch, which
shrinks every step by the root of the batch size.

Published: 1,000 levels of the linear-beta schedule (`aid_control.images.clock.DDPMClock`), $\zeta = 0.5$ for
inpainting (repository; the paper's text says 1).  Known pixels are fitted, not fixed; they are pasted at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.precond import Denoiser
from ..clock import Clock
from .task import Callback, Task, ancestral, prepare

__all__ = ["corrected", "dps", "residual_gradient"]

KEY = 0xD95


def residual_gradient(task: Task, x: Tensor, s: float) -> tuple[Tensor, Tensor]:
    """The denoised images, and how the misfit of their known pixels changes with the state.

    Args:
        task: the job.
        x: states (B, C, H, W).
        s: their noise level.

    Returns:
        D(x; s), and the gradient in x of each image's norm of M (y - D), both (B, C, H, W), detached.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        denoised = task.denoise(x, s)
        norms = torch.stack([torch.linalg.vector_norm(r) for r in task.miss(denoised)])
        (gradient,) = torch.autograd.grad(norms.sum(), x)
    return denoised.detach(), gradient


def corrected(task: Task, x: Tensor, s: float, s_next: float, zeta: float, z: Tensor) -> Tensor:
    """x' of the module: an ancestral step and the correction.

    Args:
        task: the job.
        x: states (B, C, H, W) at the level ``s``.
        s: noise level.
        s_next: s', the level to go to.
        zeta: step size of the correction.
        z: unit noise (B, C, H, W) of the ancestral step.

    Returns:
        States (B, C, H, W).
    """
    denoised, gradient = residual_gradient(task, x, s)
    scale = zeta * ((1 + s**2) * (1 + s_next**2)) ** 0.5
    return ancestral(x, denoised, s, s_next, z) - scale * gradient


@torch.no_grad()
def dps(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 1000,
    *,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
    zeta: float = 0.5,
) -> Tensor:
    """Inpaint by DPS; arguments, result and errors as `task.Method`.

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
        task.done(k, x)
    return task.paste(x)
