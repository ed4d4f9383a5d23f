r"""Palette (Saharia et al. 2022) in EDM's form: a network that was trained to inpaint, and EDM's deterministic sampler.

The denoiser $D(x, y, M; s)$ (`backbones.conditional`) estimates $E[x_0 \mid x, y, M]$ and is trained on the
hole,

$$
L = E\, w(s)\, \frac{\| (1 - M) (D(x_0 + s n, y, M; s) - x_0) \|^2}{\| 1 - M \|^2}, \qquad
w = \frac{s^2 + s_{data}^2}{(s\, s_{data})^2} .
$$

Its known part is not trained and not used: in the flow it is replaced by $y$,

$$
\frac{dx}{ds} = \frac{x - M y - (1 - M) D}{s} .
$$

*Noise is everywhere.*  In training the known part of the state is $y + s n$ like the rest; from a start
$s_{max} n$ the known part of this flow is $y + s\,n$ up to the start's missing $y$, with the image's own $n$,
at every level and for every solver (it is linear): the network sees in sampling what it saw in training, and what the
unconditional network it starts from was trained on.

*What differs from Palette.*  Its chain is DDPM's ancestral one, 1,000 or 2,000 steps, with the clean $y$ pasted into
the state and noise in the hole only; here the probability flow is solved on EDM's grid and $y$ is pasted into the
denoised image.  Palette fills the hole of its condition with noise; here the condition is $[M y, M]$.  Palette is
trained from scratch, for far longer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ...rollout import Solver
from ..backbones.conditional import ConditionalDenoiser, Given, load_conditional
from ..backbones.precond import Denoiser
from ..backbones.training import hole_loss
from ..clock import Clock
from ..inpaint import check_images, inpaint
from .task import Callback

__all__ = ["DEFAULT_PALETTE", "load_palette", "palette", "palette_loss"]

DEFAULT_PALETTE = "palette-faces64-mini"


def load_palette(
    name_or_path: str | os.PathLike[str] = DEFAULT_PALETTE, device: torch.device | str = "cpu"
) -> ConditionalDenoiser:
    """Load a Palette network.

    Args:
        name_or_path: a shipped name (``"palette-faces64-mini"``) or a ``.safetensors`` file.
        device: where to put it.

    Raises:
        InputError: if the file is missing, truncated, or of another kind.
    """
    return load_conditional(name_or_path, "palette", DEFAULT_PALETTE, device)


def palette_loss(
    net: Denoiser, images: Tensor, mask: Tensor, sigma: Tensor, noise: Tensor, sigma_data: float = 0.5
) -> Tensor:
    """The module's loss an image, (B,).

    Args:
        net: conditional denoiser.
        images: clean (B, C, H, W) in [-1, 1].
        mask: (B, 1, H, W), 1 = known, every one with a hole.
        sigma: noise levels (B,).
        noise: standard normal like ``images``.
        sigma_data: standard deviation of the data.
    """
    x = images + sigma.reshape(-1, 1, 1, 1) * noise
    return hole_loss(Given(net, images, mask)(x, sigma), images, mask, sigma, sigma_data)


def palette(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 18,
    *,
    module: Denoiser | None = None,
    solver: Solver = "heun",
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Inpaint with a Palette network; arguments, result and errors as `task.Method`.

    Args:
        backbone: not evaluated; the images must fit it.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: solver steps.
        module: trained network, called as `backbones.conditional.ConditionalDenoiser`; default the shipped
            one.
        solver: ``"heun"`` or ``"euler"``, as `inpaint.inpaint`.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: noise levels.
        callback: called after every step.
    """
    module = load_palette(device=y.device) if module is None else module
    check_images(backbone, y, mask)
    given = Given(module, y, mask)
    return inpaint(given, None, y, mask, steps, solver, seeds, class_labels, clock, callback, base="projected")
