"""Sampled actions on the AID toy: the noise of the policy averages out as the grid is refined.

Left and middle: 30 paths of the optimal Gaussian policy with its actions sampled, on 10 and on 320 steps, and the path
of its mean.  Right: what sampling costs more than the mean, the price of exploration taken off, against the step.
"""

import torch
from style import plt, save

from aid_control import GaussianPolicy, rollout
from aid_control.increments import time_grid
from aid_control.lq import AIDToy
from aid_control.noise import generator

problem, goal, variance = AIDToy(a=1.0, beta=0.5), 1.0, 1.0
exploration = 0.5 * problem.beta * variance  # lambda, the cost of exploring for a unit of time


def run(paths: int, steps: int, mode: str):
    target = torch.full((paths, 1), goal)
    policy = GaussianPolicy(lambda t, x, c, p: problem.optimal_control(t, x, c), lambda t: variance)
    start = torch.full((paths, 1), -1.0)
    grid = time_grid(problem.horizon, steps=steps)
    return rollout(problem, policy, start, grid, context=target, target=target, mode=mode, noise=generator(7, steps))


figure, (few, many, excess) = plt.subplots(1, 3, figsize=(10, 3.1))
for axis, steps in ((few, 10), (many, 320)):
    sampled, mean = run(30, steps, "sampled"), run(1, steps, "mean")
    axis.plot(sampled.times, torch.stack(sampled.states)[:, :, 0], color="C0", lw=0.6, alpha=0.6)
    axis.plot(mean.times, torch.stack(mean.states)[:, :, 0], color="k", lw=1.8, label="the mean, executed")
    axis.axhline(goal, color="C1", ls=":", label="goal")
    axis.set(title=f"actions sampled, {steps} steps", xlabel="t", ylim=(-1.6, 1.6))
    axis.legend(loc="upper left")

counts = [5, 10, 20, 40, 80, 160]
gaps, errors = [], []
for steps in counts:
    cost = run(200_000, steps, "sampled").total_cost()
    mean_cost = float(run(1, steps, "mean").total_cost())
    gaps.append(float(cost.mean()) - mean_cost - exploration * problem.horizon)
    errors.append(1.96 * float(cost.std()) / len(cost) ** 0.5)
dt = [1 / n for n in counts]
excess.errorbar(dt, gaps, errors, fmt="o", capsize=2, label="sampled - mean - λT, 95 %")
excess.loglog(dt, [gaps[0] * d / dt[0] for d in dt], color="k", ls="--", lw=1, label="slope 1")
excess.set(title="what sampling costs on a grid", xlabel="Δt", ylabel="cost")
excess.legend()
save(figure, __file__)
