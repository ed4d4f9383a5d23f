r"""DDNM, the denoising diffusion null-space model (Wang et al. 2023), and its noisy form DDNM+.

For inpainting the range-null decomposition replaces the known part of the denoised image:

$$
\hat D = M y + (1 - M) D, \qquad
x' = \hat D + s' \big(\sqrt{1 - \eta^2}\, e + \eta z\big), \quad e = (x - D)/s ,
$$

with $e$ from the image before its known part is replaced.  With observation noise of deviation $s_y > 0$,

$$
\hat D = D + \lambda M (y - D), \quad \lambda = \min(1, s'/s_y), \qquad
\text{known pixels: } x' = \hat D + \gamma z, \quad \gamma^2 = s'^2 - (\lambda s_y)^2 ,
$$

so that the noise of $y$ and the added noise together have level $s'$.  ``travel_length`` and ``travel_repeat`` are
RePaint's jumps (`travel.travel`).

Published: 100 steps, $\eta = 0.85$, no travel.  With $\eta = 0$ and $s_y = 0$ it is `projection` by Euler's method.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import InputError
from ..backbones.precond import Denoiser
from ..clock import Clock
from .task import Callback, ddim, prepare
from .travel import travel

__all__ = ["ddnm"]

KEY = 0xDD3


@torch.no_grad()
def ddnm(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 100,
    *,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
    eta: float = 0.85,
    sigma_y: float = 0.0,
    travel_length: int = 1,
    travel_repeat: int = 1,
) -> Tensor:
    """Inpaint by DDNM; arguments, result and errors as `task.Method`.

    Args:
        backbone: frozen denoiser.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: noise levels.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: noise levels.
        callback: called as callback(n, x) after the n-th move.
        eta: share of fresh noise in a step, in [0, 1].
        sigma_y: deviation of the noise on known pixels; 0 = exact, and returned as they are.
        travel_length: levels that a jump goes up.
        travel_repeat: how often each stretch is denoised; 1 = no jumps.

    Raises:
        InputError: also for eta or sigma_y out of range.
    """
    if not 0 <= eta <= 1 or sigma_y < 0:
        raise InputError(f"eta is {eta}, sigma_y {sigma_y}; expected eta in [0, 1] and sigma_y >= 0")
    task = prepare(backbone, y, mask, steps, seeds, class_labels, clock, callback)
    sigmas, x = task.sigmas.tolist(), task.start()
    for n, (k, to) in enumerate(travel(steps, travel_length, travel_repeat)):
        s, s_next = sigmas[k], sigmas[to]
        z = task.noise(KEY, n)
        if s_next > s:
            x = x + (s_next**2 - s**2) ** 0.5 * z
        else:
            denoised = task.denoise(x, s)
            step = ddim(x, denoised, s, s_next, z, eta)
            if sigma_y == 0:
                x = step + task.miss(denoised)
            else:
                share = min(1.0, s_next / sigma_y)
                gamma = max(s_next**2 - (share * sigma_y) ** 2, 0.0) ** 0.5
                x = task.paste(step, denoised + share * task.miss(denoised) + gamma * z)
        task.done(n, x)
    return task.paste(x) if sigma_y == 0 else x
