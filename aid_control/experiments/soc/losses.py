r"""Four losses of one control $u_\theta$, on paths of the control itself (v: its current value, not differentiated).

*Relative entropy* (discrete adjoint): the cost itself, differentiated through the whole discretised path,

$$
L = E\Big[\sum_k \big(\tfrac12|u_\theta|^2 + f\big)(t_k, X_k)\,\Delta t + g(X_K)\Big] .
$$

*Adjoint matching* (Domingo-Enrich, Drozdzal, Karrer and Chen 2025), with the lean adjoint
$p_k = p_{k+1} + \Delta t\,(\nabla b' p_{k+1} + \nabla f)(X_k)$, $p_K = \nabla g(X_K)$ (`improvement.adjoint`):

$$
L = E\sum_k |u_\theta(t_k, X_k) + \sigma' p_{k+1}|^2 ,
$$

a regression, so the rows of a batch of paths can be used in several small steps.

*Log-variance* and *moment* (Nüsken and Richter 2021), from what is the same on every path at the optimum,

$$
R_\theta = g(X_K) + \sum_k \big(f + u_\theta\cdot v - \tfrac12 |u_\theta|^2\big)\Delta t
+ \sum_k u_\theta\cdot\Delta B_k, \qquad L = \mathrm{Var}(R_\theta) \quad\text{or}\quad E\,(R_\theta - y)^2 ,
$$

with a learned number y; mean R at the optimum is $V(0, x_0)$.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ...improvement import adjoint_targets
from ...increments import Increments
from ...noise import generator
from ...policy import GaussianPolicy
from ...problem import ControlProblem, inner
from ...rollout import Trajectory, rollout
from ...value import Shifted
from .networks import Costate

__all__ = ["LOSSES", "PathReward", "adjoint_matching", "end_cost", "relative_entropy"]


def end_cost(problem: ControlProblem) -> Shifted:
    """The terminal cost in the place of a critic, as the adjoint asks for it.

    Args:
        problem: gives g.
    """

    def critic(t: Tensor, x: Tensor, context: Any, probe: Any) -> Tensor:
        return problem.terminal_cost(x, None)

    return Shifted(critic)  # type: ignore[arg-type]


def _run(problem: ControlProblem, actor: Costate, x: Tensor, noise: Increments, grad: bool) -> Trajectory:
    with torch.set_grad_enabled(grad):
        return rollout(problem, GaussianPolicy(actor), x, noise.grid, target=True, increments=noise)


def _rows(path: Trajectory) -> tuple[Tensor, Tensor]:
    """Times (K B,) and states (K B, d) of all decisions, step by step."""
    batch = len(path.states[0])
    return path.times[:-1].repeat_interleave(batch), torch.cat(path.states[:-1])


def relative_entropy(
    problem: ControlProblem, actor: Costate, x: Tensor, noise: Increments, pieces: int, key: tuple[int, ...]
) -> Iterator[Tensor]:
    """The expected cost, differentiable through the path.

    Args:
        problem: the problem.
        actor: the control.
        x: start, (B, d).
        noise: Brownian increments on the grid.
        pieces: not looked at.
        key: not looked at.

    Returns:
        One scalar.
    """
    yield _run(problem, actor, x, noise, True).total_cost().mean()


def adjoint_matching(
    problem: ControlProblem, actor: Costate, x: Tensor, noise: Increments, pieces: int, key: tuple[int, ...]
) -> Iterator[Tensor]:
    """Regression on the lean adjoint.

    Args:
        problem: the problem.
        actor: the control.
        x: start, (B, d).
        noise: Brownian increments on the grid.
        pieces: how many random parts the rows are used in.
        key: integers of the parts.

    Returns:
        A scalar a part; take a step after each.
    """
    path = _run(problem, actor, x, noise, False)
    targets = torch.cat(adjoint_targets(problem, GaussianPolicy(actor), end_cost(problem), path))
    times, states = _rows(path)
    order = torch.randperm(len(times), generator=generator(*key))
    for part in order.chunk(pieces):
        yield (actor(times[part], states[part]) - targets[part]).square().sum(1).mean()


class PathReward:
    """The log-variance or the moment loss.

    Args:
        moment: the moment loss, with ``actor.level`` as its y.
    """

    def __init__(self, moment: bool) -> None:
        self.moment = moment

    @staticmethod
    def rewards(problem: ControlProblem, actor: Costate, x: Tensor, noise: Increments) -> Tensor:
        """R of every path, differentiable in the actor's weights.

        Args:
            problem: the problem.
            actor: the control.
            x: start, (B, d).
            noise: Brownian increments on the grid.

        Returns:
            (B,).
        """
        path = _run(problem, actor, x, noise, False)
        assert path.terminal is not None
        held, dw = torch.stack(path.means), noise.dw
        dt = noise.grid.diff()
        times, states = _rows(path)
        u = actor(times, states).reshape(held.shape)
        # the rollout's costs hold f + |v|^2/2
        fixed = path.terminal + sum(c - 0.5 * h * inner(v, v) for c, v, h in zip(path.costs, held, dt, strict=True))
        moving = ((u * held - 0.5 * u.square()).sum(2) * dt[:, None] + (u * dw).sum(2)).sum(0)
        return fixed + moving

    def __call__(
        self, problem: ControlProblem, actor: Costate, x: Tensor, noise: Increments, pieces: int, key: tuple[int, ...]
    ) -> Iterator[Tensor]:
        """The loss of one batch.

        Args:
            problem: the problem.
            actor: the control; the moment loss has its ``level`` as y.
            x: start, (B, d).
            noise: Brownian increments on the grid.
            pieces: not looked at.
            key: not looked at.

        Returns:
            One scalar.
        """
        reward = self.rewards(problem, actor, x, noise)
        yield (reward - actor.level).square().mean() if self.moment else reward.var()


LOSSES: dict[str, Any] = {
    "adjoint_matching": adjoint_matching,
    "relative_entropy": relative_entropy,
    "log_variance": PathReward(False),
    "moment": PathReward(True),
}
