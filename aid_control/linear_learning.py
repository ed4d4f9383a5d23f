r"""Actor-critic with linear parameterisations, by least squares: learning a policy from data alone, many seeds at once.

An iteration runs the current Gaussian policy through the problem (only states, actions and observed costs are used,
never the problem's coefficients), solves the martingale conditions of the critic J and of the advantage rate q in
one linear system (`improvement.q_learning.least_squares_q`), and moves the actor's mean by a step of a
schedule,

$$
m_{n+1} = m_n - a_n\, S^{-1} g ,
$$

the natural policy gradient (Kakade 2001; g is the gradient of q at the mean, S its curvature).  With $a_n = 1$ it is
policy iteration; a falling $a_n$ averages the noise of successive batches.  The returned mean is an average over the
last part of the run (Polyak & Juditsky 1992).  ``groups`` seeds learn side by side, each from its own rows.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from .features import LinearMean, LinearValue, time_powers
from .improvement.q_learning import QSolution, least_squares_q
from .noise import generator
from .policy import GaussianPolicy
from .problem import ControlProblem
from .rollout import Trajectory, rollout
from .schedules import Projection, Schedule, constant, positive_definite

__all__ = ["LeastSquaresActorCritic"]


class LeastSquaresActorCritic:
    """The loop of this module, with the state it carries from one iteration to the next.

    Args:
        problem: finite horizon; is only run, never looked into.
        critic: J.
        actor: m; the same groups as the critic.
        variance: v of the exploration N(m, v I).
        step: a_n by iteration; default 1.
        temperature_schedule: factor on v by iteration; default 1.
        curvature_degree: degree of S(t) in time (0 where the noise is free of the control and R constant).
        curvature: projection of S, keeps it invertible while the data are few; default: eigenvalues >= 1e-3.
        projection: of the actor's weights.
        average_from: iteration from which the returned mean is averaged.
        seed: of exploration and Brownian noise.

    Raises:
        ValueError: for a variance that is not positive, or a critic and an actor with different numbers of groups.
    """

    def __init__(
        self,
        problem: ControlProblem,
        critic: LinearValue,
        actor: LinearMean,
        variance: float = 1.0,
        step: Schedule | None = None,
        temperature_schedule: Schedule | None = None,
        curvature_degree: int = 0,
        curvature: Projection | None = None,
        projection: Projection | None = None,
        average_from: int = 0,
        seed: int = 0,
    ) -> None:
        if not variance > 0:
            raise ValueError(f"variance is {variance}; expected v > 0")
        if critic.groups != actor.groups:
            raise ValueError(f"critic has {critic.groups} groups and actor {actor.groups}; expected the same")
        self.problem, self.critic, self.actor, self.variance = problem, critic, actor, variance
        self.step, self.temperature_schedule = step or constant(1.0), temperature_schedule or constant(1.0)
        self.curvature_degree, self.curvature = curvature_degree, curvature or positive_definite(1e-3)
        self.projection, self.average_from, self.seed = projection, average_from, seed
        self.iteration, self.averaged = 0, 0
        self.average = actor.weights.detach().clone()

    def collect(self, x: Tensor, grid: Tensor) -> Trajectory:
        """Run the current policy with fresh noise.

        Args:
            x: initial states (S b, d), S groups of rows.
            grid: times (K + 1,).
        """
        v = self.variance * self.temperature_schedule(self.iteration)
        policy = GaussianPolicy(self.actor, lambda t: v)
        noise = generator(self.seed, self.iteration, 2)
        return rollout(
            self.problem, policy, x, grid, target=(), mode="sampled", noise=noise, entropy=(self.seed, self.iteration)
        )

    @torch.no_grad()
    def iterate(self, x: Tensor, grid: Tensor) -> QSolution:
        """One iteration: a rollout, one linear system, one step of the mean.

        Args:
            x: initial states (S b, d), S groups of rows.
            grid: times (K + 1,).

        Returns:
            The solved J and q.
        """
        trajectory = self.collect(x, grid)
        q = least_squares_q(self.critic, self.actor, trajectory, self.curvature_degree)
        self._move(q, grid)
        self.iteration += 1
        if self.iteration > self.average_from:
            self.averaged += 1
            self.average += (self.actor.weights - self.average) / self.averaged
        else:
            self.average.copy_(self.actor.weights)
        return q

    def _move(self, q: QSolution, grid: Tensor) -> None:
        """m <- m - a S^{-1} g, refitted to the actor's polynomials in time where S depends on time."""
        actor, rate = self.actor, self.step(self.iteration)
        shape = (*q.slope.shape[:2], actor.time_degree + 1, -1)
        if self.curvature_degree == 0:
            s = self.curvature(q.curvature[:, 0])
            move = torch.linalg.solve(s, q.slope)
        else:
            times = grid[:-1]
            basis = torch.stack([time_powers(t, actor.horizon, actor.time_degree) for t in times])
            moves = []
            for t in times:
                slope, s = q.at(t, actor)
                moves.append(torch.linalg.solve(self.curvature(s), slope))
            fit = torch.linalg.lstsq(basis, torch.stack(moves).flatten(1)).solution
            move = fit.reshape(-1, *moves[0].shape).permute(1, 2, 0, 3).reshape(*q.slope.shape[:2], -1)
        move = move.reshape(shape).flatten(2)
        actor.weights.sub_(rate * move.reshape(actor.weights.shape))
        if self.projection is not None:
            actor.weights.copy_(self.projection(actor.weights))

    def mean(self) -> LinearMean:
        """The averaged mean, as a module of its own."""
        out = copy.deepcopy(self.actor)
        with torch.no_grad():
            out.weights.copy_(self.average)
        return out
