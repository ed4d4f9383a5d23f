r"""PiGDM, pseudo-inverse guidance (Song et al. 2023): a Gaussian guess of the image given the state.

With $x_0 \mid x \approx N(D, r^2 I)$, $r^2 = s^2/(1 + s^2)$, and exact known pixels,

$$
\nabla_x \log p(y \mid x) \approx r^{-2} J' M (y - D), \qquad J = \partial D / \partial x ,
$$

the pseudo-inverse of "see the known pixels" being the mask.  The published step scales it by $r^2$ (its "adaptive
weights") and adds it to DDIM's; in sigma coordinates

$$
x' = D + s' \big(\sqrt{1 - c^2}\, e + c z\big) + w\, J' M (y - D), \qquad c = \eta \sqrt{1 - (s'/s)^2},
\quad e = (x - D)/s ,
$$

with DDIM's own $\eta$: 1 is the ancestral step.  $J'$ is a vector-Jacobian product: one call forth, one back.

Published: 100 steps, $\eta = 1$, $w = 1$ (as in the authors' later code, where the factor is
$\sqrt{\bar\alpha_t \bar\alpha_s}$).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.precond import Denoiser
from ..clock import Clock
from .task import Callback, ddim, prepare

__all__ = ["pigdm"]

KEY = 0x916


@torch.no_grad()
def pigdm(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 100,
    *,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
    weight: float = 1.0,
) -> Tensor:
    """Inpaint by PiGDM; arguments, result and errors as `task.Method`.

    Args:
        backbone: frozen denoiser, differentiable in its input.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: noise levels.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: noise levels.
        callback: called after every step.
        eta: DDIM's eta, 0 = no fresh noise, 1 = ancestral.
        weight: w of the correction.
    """
    task = prepare(backbone, y, mask, steps, seeds, class_labels, clock, callback)
    x = task.start()
    for k, s, s_next in task.levels():
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = task.denoise(x, s)
            (correction,) = torch.autograd.grad(denoised, x, task.miss(denoised.detach()))
        x, denoised = x.detach(), denoised.detach()
        share = eta * (1 - (s_next / s) ** 2) ** 0.5
        x = ddim(x, denoised, s, s_next, task.noise(KEY, k), share) + weight * correction
        task.done(k, x)
    return task.paste(x)
