"""The exact optimal guidance of Gaussian signals (32 numbers, synthetic) for three weights of the control.

One signal with a gap.  Left: the unguided flow, the optimum for three betas, and the posterior mean it is drawn to.
Right: where along the noise levels the control is spent (its running cost a step).
"""

import torch
from style import plt, save

from aid_control import GaussianPolicy, rollout
from aid_control.images.optimum import GaussianOptimum
from aid_control.images.problem import GuidanceProblem
from aid_control.images.study import signals
from aid_control.policy import ZeroMean

torch.set_default_dtype(torch.float32)  # of images and signals
study = signals(32)
backbone, clock = study.backbone, study.problem.clock
truth, _, noise = study.draw(1, 3)
mask = torch.ones(1, 1, 1, 32)
mask[..., 9:22] = 0
start = clock.sigma_max * noise
target = backbone.posterior_mean(truth * mask, mask)
grid = clock.grid(40)

figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2))
unguided = rollout(GuidanceProblem(backbone, clock), GaussianPolicy(ZeroMean()), start, grid, keep="path")
left.plot(unguided.states[-1].flatten(), color="C7", lw=1, label="unguided flow")
for i, beta in enumerate((10.0, 1.0, 0.1)):
    problem = GuidanceProblem(backbone, clock, beta=beta)
    best = rollout(problem, GaussianPolicy(GaussianOptimum(problem, grid, target)), start, grid)
    left.plot(best.states[-1].flatten(), color=f"C{i}", lw=1.2, label=f"optimum, β = {beta:g}")
    right.semilogx(clock.sigmas(40)[:-1], torch.stack(best.costs).flatten(), ".-", ms=3, lw=0.8, label=f"β = {beta:g}")
left.plot(target.flatten(), "k--", lw=1, label="posterior mean m(ξ)")
known = mask.flatten() > 0
left.plot(torch.arange(32)[known], truth.flatten()[known], "k.", ms=4, label="known numbers")
left.axvspan(8.5, 21.5, color="C7", alpha=0.15, lw=0)
left.set(title="a signal with a gap", xlabel="position")
left.legend(ncol=2, fontsize=7)
right.set(title="running cost of the control a step", xlabel="σ (the sampler runs to the right)")
right.invert_xaxis()
right.legend()
save(figure, __file__)
