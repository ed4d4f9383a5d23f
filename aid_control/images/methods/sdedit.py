r"""SDEdit (Meng et al. 2022): noise an image whose hole was filled somehow, and denoise it again.

$$
x = g + s_0 e, \qquad x' = M (y + s' e) + (1 - M)\, A(x; s, s') ,
$$

$A$ the ancestral step and $e$ one noise for the whole pass; the result's hole becomes the guide $g$ of the next of
``repeats`` passes.  The first guide's hole is the mean colour of the known pixels (``fill="mean"``) or 0, grey
(``fill="grey"``): the published method expects a user's drawing there, so the filling is ours.

Published: $t = 500$ of 1,000 linear-beta steps, $s_0 = 3.424$ ($t = 400$: 2.031), three passes.  ``steps`` counts the
levels of one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import InputError
from ..backbones.precond import Denoiser
from ..clock import Clock, within
from .task import Callback, Task, ancestral, prepare

__all__ = ["sdedit"]

KEY = 0x5DE


def _filled(task: Task, fill: str) -> Tensor:
    """y with its hole filled by the mean colour of what is known, image by image."""
    if fill == "grey":
        return task.y
    guides = []
    for y, mask in zip(task.y, task.mask, strict=True):
        known = mask.sum().clamp_min(1)
        colour = torch.stack([(mask[0] * channel).sum() for channel in y]) / known
        guides.append(torch.where(mask.bool(), y, colour[:, None, None]))
    return torch.stack(guides)


@torch.no_grad()
def sdedit(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 500,
    *,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
    sigma: float = 3.424,
    repeats: int = 3,
    fill: str = "mean",
) -> Tensor:
    """Inpaint by SDEdit; arguments, result and errors as `task.Method`.

    Args:
        backbone: frozen denoiser.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: noise levels of a pass; ``repeats`` times as many denoiser calls.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: noise levels; default EDM's grid between the backbone's lowest level and ``sigma``.
        callback: called as callback(n, x) after the n-th step of all passes.
        sigma: s_0, the level the guide is noised to; not used with a clock, whose first level it then is.
        repeats: passes.
        fill: ``"mean"`` or ``"grey"``.

    Raises:
        InputError: also for an unknown fill, no repeats, or a level that is not positive.
    """
    if fill not in ("mean", "grey") or repeats < 1 or not sigma > 0:
        raise InputError(f"fill {fill!r}, repeats {repeats}, sigma {sigma}; expected mean or grey, at least 1, above 0")
    clock = clock or within(backbone.sigma_min, min(backbone.sigma_max, sigma), high=sigma)
    task = prepare(backbone, y, mask, steps, seeds, class_labels, clock, callback)
    guide = _filled(task, fill)
    for turn in range(repeats):
        e = task.noise(KEY, turn)
        x = guide + float(task.sigmas[0]) * e
        for k, s, s_next in task.levels():
            x = ancestral(x, task.denoise(x, s), s, s_next, task.noise(KEY, turn, 1 + k))
            x = task.paste(x, task.y + s_next * e)
            task.done(turn * steps + k, x)
        guide = x
    return task.paste(guide)
