r"""The recovery theorem by simulation and by learning, against the closed forms.

- the simulated exploratory cost against $V^\tau$, and against what the Euler scheme computes exactly;
- sampled against averaged execution: both of order one in the step, by `discrete` without noise;
- the optimal gain learned from trajectories alone, by many learners at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..features import LinearMean, LinearValue
from ..increments import Increments, time_grid
from ..linear import grouped
from ..linear_learning import LeastSquaresActorCritic
from ..motion import Mode
from ..noise import generator
from ..rollout import rollout
from ..schedules import Projection, power
from .discrete import scheme_value
from .evaluate import evaluate
from .problem import LQProblem
from .quadratic import AffineGaussian
from .riccati import riccati

__all__ = ["Learned", "MonteCarlo", "learn_gain", "monte_carlo", "order", "scheme_bias"]


@dataclass(frozen=True)
class MonteCarlo:
    """Simulated costs of a batch of problems beside the exact ones.

    Attributes:
        estimate: mean cost, (S,).
        error: its standard error, (S,).
        scheme: what the Euler scheme's expectation is, exactly, (S,).
        limit: V^tau, the closed form of the continuous problem, (S,).
    """

    estimate: Tensor
    error: Tensor
    scheme: Tensor
    limit: Tensor

    def scores(self, exact: Tensor) -> Tensor:
        """Signed distances of the estimates from exact costs, in standard errors: (S,) -> (S,)."""
        return (self.estimate - exact) / self.error


def monte_carlo(problem: LQProblem, temperature: float, paths: int, steps: int, seed: int) -> MonteCarlo:
    """Simulate the exploratory optimum of every problem of a batch with sampled actions, entropy in the cost.

    Args:
        problem: a batch of S.
        temperature: tau.
        paths: antithetic pairs a problem.
        steps: K.
        seed: of noise and initial states (one a problem, standard normal).
    """
    assert problem.batch is not None
    solution, grid = riccati(problem, temperature), time_grid(problem.horizon, steps=steps)
    groups, d = problem.batch, problem.state_dim
    x0 = torch.randn(groups, d, generator=generator(seed, 1), dtype=torch.float64)
    start = x0.repeat_interleave(2 * paths, 0)
    half = Increments.sample(grid, groups * paths, (problem.columns,), seed, 2).dw.reshape(steps, groups, paths, -1)
    increments = Increments(grid, torch.cat([half, -half], dim=2).flatten(1, 2))
    run = rollout(
        problem, solution.policy, start, grid, target=(), mode="sampled", noise=generator(seed, 3),
        increments=increments, temperature=temperature, keep="last",
    )  # fmt: skip
    cost = grouped(run.total_cost(), groups).reshape(groups, 2, paths).mean(1)
    scheme = scheme_value(problem, solution.policy, grid, "sampled", temperature)
    return MonteCarlo(cost.mean(1), cost.std(1) / math.sqrt(paths), scheme(0.0, x0), solution.value(0.0, x0))


def scheme_bias(problem: LQProblem, policy: AffineGaussian, mode: Mode, steps: Sequence[int], x0: Tensor) -> np.ndarray:
    """Exact cost of the Euler scheme minus the exact cost of the continuous problem, for every number of steps.

    Args:
        problem: a single problem with a finite horizon.
        policy: an affine Gaussian policy.
        mode: execution mode of `rollout.rollout`.
        steps: numbers of steps.
        x0: the initial state, (1, d).

    Returns:
        One number for each of ``steps``, (len(steps),).
    """
    exact = float(evaluate(problem, policy)(0.0, x0))
    grids = [time_grid(problem.horizon, steps=k) for k in steps]
    return np.array([float(scheme_value(problem, policy, g, mode)(0.0, x0)) - exact for g in grids])


def order(steps: Sequence[int], errors: np.ndarray) -> float:
    """Slope of the logarithm of the absolute error against that of the step size, by least squares.

    Args:
        steps: numbers of steps.
        errors: of each, like ``steps``; not zero.
    """
    return float(-np.polyfit(np.log(np.asarray(steps, float)), np.log(np.abs(errors)), 1)[0])


@dataclass(frozen=True)
class Learned:
    """Gains learned from data by many seeds.

    Attributes:
        times: (K,).
        truth: Riccati gain, (K, m, d).
        gains: (K, S, m, d).
        errors: relative error of every seed, L2 over time, (S,).
        bias: relative error of the seeds' mean gain: what more data would not remove.
    """

    times: Tensor
    truth: Tensor
    gains: Tensor
    errors: Tensor
    bias: float


def learn_gain(
    problem: LQProblem,
    seeds: int = 20,
    paths: int = 500,
    steps: int = 100,
    iterations: int = 10,
    variance: float = 25.0,
    time_degree: int = 2,
    curvature_degree: int = 0,
    projection: Projection | None = None,
    seed: int = 0,
) -> Learned:
    """Learn the optimal gain of a problem from its trajectories alone, ``seeds`` times side by side.

    The learner sees states, its own actions and observed costs; A, B, C, D and the weights are used only here, to
    compare.  Initial states are standard normal.

    Args:
        problem: finite horizon.
        seeds: S independent learners.
        paths: trajectories an iteration and learner.
        steps: K.
        iterations: of the actor-critic.
        variance: of the exploration; by the recovery theorem any value has the same optimal mean.
        time_degree: of the gain's polynomial in time.
        curvature_degree: of the learned curvature S(t).
        projection: of the actor's weights.
        seed: of everything.
    """
    d, m, grid = problem.state_dim, problem.control_dim, time_grid(problem.horizon, steps=steps)
    learner = LeastSquaresActorCritic(
        problem,
        LinearValue(d, 3, problem.horizon, seeds),
        LinearMean(d, m, time_degree, problem.horizon, seeds),
        variance=variance,
        step=power(1.0, 0.7, 2.0),
        average_from=iterations // 2,
        curvature_degree=curvature_degree,
        projection=projection,
        seed=seed,
    )
    for i in range(iterations):
        learner.iterate(torch.randn(seeds * paths, d, generator=generator(seed, 4, i, 1), dtype=torch.float64), grid)
    mean, best = learner.mean(), riccati(problem).policy
    times = grid[:-1]
    truth = torch.stack([best.law(t)[0] for t in times])
    gains = torch.stack([mean.gain(t) for t in times]).detach()
    size = truth.square().sum()
    errors = ((gains - truth.unsqueeze(1)).square().sum((0, 2, 3)) / size).sqrt()
    return Learned(times, truth, gains, errors, float(((gains.mean(1) - truth).square().sum() / size).sqrt()))
