r"""RePaint (Lugmayr et al. 2022): replacement in the ancestral sampler, with resampling.

Going down from $s$ to $s' < s$,

$$
x' = M (y + s' z_1) + (1 - M)\, A(x; s, s'), \qquad A \text{ the ancestral (DDPM) step};
$$

going up, as much noise is put back as was taken away, $x = x' + \sqrt{s^2 - s'^2}\, z$.  The order of levels is
`travel.travel`: each stretch of ``jump_length`` levels is denoised ``resamples`` times, which lets the filling
agree with what is known around it.

Published: 250 levels, jump length 10, 10 resamplings: 2,410 denoiser calls.  The known part is drawn at the level
that is reached (the paper; its code draws it at the level before the step), and with its own noise each time.  The
published networks predict their variance and clip $D$ to [-1, 1]; here the variance is the posterior's ("fixedsmall")
and nothing is clipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.precond import Denoiser
from ..clock import Clock
from .task import Callback, ancestral, prepare
from .travel import travel

__all__ = ["repaint"]

KEY = 0x4E9A


@torch.no_grad()
def repaint(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 250,
    *,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
    jump_length: int = 10,
    resamples: int = 10,
) -> Tensor:
    """Inpaint by RePaint; arguments, result and errors as `task.Method`.

    Args:
        backbone: frozen denoiser.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: noise levels; calls of the denoiser are more, see `travel.travel`.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: noise levels.
        callback: called as callback(n, x) after the n-th move, down or up.
        jump_length: levels that a jump goes up.
        resamples: how often each stretch is denoised; 1 = plain replacement in the ancestral sampler.
    """
    task = prepare(backbone, y, mask, steps, seeds, class_labels, clock, callback)
    sigmas, x = task.sigmas.tolist(), task.start()
    for n, (k, to) in enumerate(travel(steps, jump_length, resamples)):
        s, s_next = sigmas[k], sigmas[to]
        z = task.noise(KEY, n)
        if s_next > s:
            x = x + (s_next**2 - s**2) ** 0.5 * z
        else:
            x = ancestral(x, task.denoise(x, s), s, s_next, z)
            x = task.paste(x, task.y + s_next * task.noise(KEY, n, 1))
        task.done(n, x)
    return task.paste(x)
