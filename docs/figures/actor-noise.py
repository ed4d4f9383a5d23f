"""Noise of the actor's target on the toy with its exact critic: score (Algorithm 1) and Stein.

Root mean square error of one target about the exact one, averaged over a path of 20 steps, for d = 1, 16, 256, against
the exploration's variance.  The score form is worst at both ends; the Stein form has only that of the next state.
"""

import torch
from style import plt, save

from aid_control import GaussianPolicy, rollout
from aid_control.improvement import score_targets, stein_targets
from aid_control.increments import time_grid
from aid_control.lq import AIDToy
from aid_control.noise import generator
from aid_control.value import Shifted

problem, paths = AIDToy(a=1.0, beta=0.5), 400
grid = time_grid(problem.horizon, steps=20)


def error(estimator, d: int, variance: float) -> float:
    """Root mean square of (target - exact target) over paths, steps and coordinates."""
    goal, start = torch.ones(paths, d), torch.zeros(paths, d)
    policy = GaussianPolicy(lambda t, x, c, p: problem.optimal_control(t, x, c), lambda t: variance)
    run = rollout(problem, policy, start, grid, context=goal, target=goal, mode="sampled", noise=generator(5, d))
    rate = 0.5 * problem.beta * variance * d  # lambda
    critic = Shifted(lambda t, x, c, p: problem.value(t, x, c), rate)
    gaps = []
    for k, target in enumerate(estimator(problem, policy, critic, run)):
        exact = run.means[k]  # the policy is optimal: the exact target is its own mean
        gaps.append((target - exact).square().mean())
    return float(torch.stack(gaps).mean().sqrt())


figure, axis = plt.subplots(figsize=(6, 3.4))
variances = torch.logspace(-3, 4, 15)
for i, d in enumerate((1, 16, 256)):
    axis.loglog(
        variances,
        [error(score_targets, d, float(v)) for v in variances],
        "o-",
        ms=3,
        color=f"C{i}",
        label=f"score, d = {d}",
    )
    axis.loglog(
        variances, [error(stein_targets, d, float(v)) for v in variances], "--", color=f"C{i}", label=f"Stein, d = {d}"
    )
axis.set(
    title="noise of one actor target, exact critic",
    xlabel="variance ν of the exploration",
    ylabel="RMS error a coordinate",
)
axis.legend(ncol=2)
save(figure, __file__)
