"""Which noise levels a grid of 18 steps visits under four clocks, and the flow they cut into steps.

Right: the probability flow of a one-dimensional mixture of two Gaussians, from its exact denoiser.
"""

import torch
from style import plt, save

from aid_control.images.clock import DDPMClock, KarrasClock, LinearClock, LogClock

clocks = {"Karras, ρ = 7": KarrasClock(), "log": LogClock(), "linear": LinearClock(), "DDPM levels": DDPMClock()}
figure, (grids, flow) = plt.subplots(1, 2, figsize=(9.5, 3.3))
for i, (name, clock) in enumerate(clocks.items()):
    levels = clock.sigmas(18)[:-1]
    grids.semilogy(range(len(levels)), levels, ".-", ms=4, lw=0.8, label=name, color=f"C{i}")
grids.set(title="levels of 18 steps (then 0)", xlabel="step k", ylabel="σ")
grids.legend()

means, spread = torch.tensor([-1.0, 1.0]), 0.15


def denoised(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """E[x0 | x] of the mixture, from its responsibilities."""
    total = spread**2 + sigma**2
    share = torch.softmax(-((x[:, None] - means) ** 2) / (2 * total), dim=1)
    return (share * (means + spread**2 / total * (x[:, None] - means))).sum(1)


levels = LogClock(0.02, 20.0).sigmas(400)[:-1]
x = torch.linspace(-45.0, 45.0, 31)
path = [x]
for here, below in zip(levels, levels[1:], strict=False):
    x = x + (1 - below / here) * (denoised(x, float(here)) - x)
    path.append(x)
scaled = torch.stack(path) / (1 + levels[:, None] ** 2).sqrt()
flow.plot(levels, scaled, color="C0", lw=0.7)
flow.set(xscale="log", title="probability flow of two Gaussians")
flow.set_ylabel("x / √(1 + σ²)")
flow.invert_xaxis()
flow.set_xlabel("σ (the sampler runs to the right)")
save(figure, __file__)
