r"""RED-diff (Mardani et al. 2024): a point is optimised, regularised by the denoiser along falling noise levels.

One Adam step on $\mu$ a level $s$, from the highest, on

$$
\begin{aligned}
&\frac1{2d} \| M (y - \mu) \|^2 + \frac{\lambda s}{d} \big\langle \mathrm{sg}(e - z),\, \mu \big\rangle, \\
&x = \mu + s z, \quad e = (x - D(x; s))/s, \quad z \sim N(0, I) ,
\end{aligned}
$$

sg stops gradients, and $s e - s z = \mu - D$: the second term draws $\mu$ to what the denoiser makes of its noised
copy. The result is one point, an approximate mode and no sample: spread over seeds says little.

Published: Adam with betas (0.9, 0.99) at rate 0.1, $\lambda = 0.25$, $\mu$ from $y$ with zeros in the hole (its default
configuration); 1,000 levels in the paper, 100 in its command for inpainting, there at rate 0.5.  With fewer levels than
that, rate 0.5 does not settle: Adam's last steps stay large.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.precond import Denoiser
from ..clock import Clock
from .task import Callback, prepare

__all__ = ["red_diff"]

KEY = 0x4EDD


@torch.no_grad()
def red_diff(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 100,
    *,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
    rate: float = 0.1,
    weight: float = 0.25,
) -> Tensor:
    """Inpaint by RED-diff; arguments, result and errors as `task.Method`.

    Args:
        backbone: frozen denoiser; no gradients are asked of it.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: noise levels, one Adam step each.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: noise levels.
        callback: called after every step.
        rate: Adam's learning rate.
        weight: lambda.
    """
    task = prepare(backbone, y, mask, steps, seeds, class_labels, clock, callback)
    mu = task.y.clone()
    adam = torch.optim.Adam([mu], lr=rate, betas=(0.9, 0.99))  # elementwise: images do not meet
    for k, s, _ in task.levels():
        z = task.noise(KEY, k)
        x = mu + s * z
        e = (x - task.denoise(x, s)) / s
        mu.grad = (weight * s * (e - z) - task.miss(mu)) / mu[0].numel()
        adam.step()
        task.done(k, mu)
    return task.paste(mu)
