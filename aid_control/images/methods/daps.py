r"""DAPS, decoupled annealing posterior sampling (Zhang et al. 2024).

At every level $s$ of an annealing,

1. $x$ runs down the probability-flow ODE to an estimate $\hat x_0$ (``ode_steps`` Euler steps of a grid with
   $\rho = 7$);
2. $n$ Langevin steps of size $h$ sample
   $p(x_0 \mid \hat x_0, y) \propto N(x_0; \hat x_0, s^2)\, N(y; x_0, \tau^2)$ (the second factor for known pixels),
   starting from $\hat x_0$;
3. noise of the next level is added, $x = x_0 + s' z$.

For inpainting the target of step 2 is a diagonal Gaussian, of precision $a = s^{-2} + M \tau^{-2}$ and mean $c$, and
$n$ steps $x \leftarrow x - h a (x - c) + \sqrt{2 h}\, z$ are a linear recursion.  With $q = 1 - h a$ it ends at

$$
x_n = c + q^n (\hat x_0 - c) + \sqrt{2 h\, (1 - q^{2n})/(1 - q^2)}\; z ,
$$

one draw with the law of the $n$ published steps (which, in the hole, are far from having converged: they add noise
of deviation 0.1 whatever $s$).  The last level returns $\hat x_0$.

Published (pixels): 200 levels from 100 to 0.1, 5 ODE steps, $n = 100$, $h = 5 \cdot 10^{-5}$ falling linearly to 1 % of
it, $\tau = 0.01$: 1,000 denoiser calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import InputError
from ..backbones.precond import Denoiser
from ..clock import Clock, KarrasClock, within
from .task import Callback, Task, prepare

__all__ = ["daps"]

KEY = 0xDA5
ODE_END = 0.01  # the flow's last level before 0


def _flow(task: Task, x: Tensor, sigma: float, steps: int) -> Tensor:
    """Euler steps of the probability flow from ``sigma`` to 0."""
    low = max(min(ODE_END, sigma / 2), task.backbone.sigma_min)
    grid = KarrasClock(min(low, sigma), sigma).sigmas(steps, rounding=task.backbone.round_sigma).tolist()
    for s, s_next in zip(grid[:-1], grid[1:], strict=True):
        x = x + (1 - s_next / s) * (task.denoise(x, s) - x)
    return x


def _langevin(task: Task, guess: Tensor, s: float, tau: float, h: float, n: int, z: Tensor) -> Tensor:
    """The end of n Langevin steps from ``guess``; see the module."""
    known, hole = s**-2 + tau**-2, s**-2

    def spread(a: float) -> float:
        return float((2 * h * sum((1 - h * a) ** (2 * j) for j in range(n))) ** 0.5)  # q = 1 to rounding in the hole

    centre = guess + task.miss(guess) * (tau**-2 / known)
    left = (1 - h * known) ** n  # in the hole the centre is the guess
    return task.paste(guess + spread(hole) * z, centre + left * (guess - centre) + spread(known) * z)


@torch.no_grad()
def daps(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 200,
    *,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
    ode_steps: int = 5,
    langevin_steps: int = 100,
    rate: float = 5e-5,
    rate_end: float = 0.01,
    tau: float = 0.01,
) -> Tensor:
    """Inpaint by DAPS; arguments, result and errors as `task.Method`.

    Args:
        backbone: frozen denoiser.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: annealing levels; ``ode_steps`` times as many denoiser calls.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: annealing levels; default rho = 7 from 100 to 0.1, within the backbone's range.
        callback: called after every level.
        ode_steps: Euler steps of each run down the flow.
        langevin_steps: n.
        rate: h at the first level.
        rate_end: share of ``rate`` to which h falls linearly over the levels.
        tau: deviation of known pixels in the likelihood.

    Raises:
        InputError: also for settings out of range, or a rate at which the Langevin steps explode, h a >= 2.
    """
    if min(ode_steps, langevin_steps) < 1 or min(rate, tau) <= 0 or not 0 <= rate_end <= 1:
        raise InputError("daps: expected ode_steps, langevin_steps >= 1, rate, tau > 0 and rate_end in [0, 1]")
    clock = clock or within(backbone.sigma_min, backbone.sigma_max, 0.1, 100.0)
    task = prepare(backbone, y, mask, steps, seeds, class_labels, clock, callback)
    x = task.start()
    for k, s, s_next in task.levels():
        x = _flow(task, x, s, ode_steps)
        if k < steps - 1:
            h = rate * (1 + k / steps * (rate_end - 1))
            if h * (s**-2 + tau**-2) >= 2:
                raise InputError(f"daps: rate {h:g} at noise level {s:g}; expected less than {2 / (s**-2 + tau**-2):g}")
            x = _langevin(task, x, s, tau, h, langevin_steps, task.noise(KEY, k, 1)) + s_next * task.noise(KEY, k)
        task.done(k, x)
    return task.paste(x)
