r"""Running a policy through a problem on a grid of times.

The action is held over each step [t_k, t_{k+1}] (that *is* a policy in discrete time), the drift is
integrated by Euler or Heun, and diffusing problems go through torchsde step by step on one Brownian path.

Execution modes:

``mean``
    the action is the policy's mean and costs what it costs: the deterministic, deployed control;
``averaged``
    the relaxed dynamics of the exploratory problem: the state moves by the mean, the cost is the expected
    cost of a sampled action, R (|m|^2 + d v)/2;
``sampled``
    actions are drawn at the grid times, independent across time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torchsde
from torch import Tensor, nn

from .noise import brownian
from .policy import GaussianPolicy
from .problem import ControlProblem, inner

__all__ = ["Mode", "Solver", "Trajectory", "rollout"]

Mode = Literal["mean", "averaged", "sampled"]
Solver = Literal["euler", "heun"]


@dataclass
class Trajectory:
    """What happened; lists over the K steps (states: K + 1), every entry with a leading batch dimension.

    Attributes:
        times: (K + 1,) grid.
        states: X_k.
        probes: what the frozen system answered at (t_k, X_k).
        means: m_k.
        actions: A_k.
        costs: (f + control cost) Dt, (B,) each.
        terminal: Psi(X_K), (B,), or ``None`` if no target was given.
        context: xi.
        target: what Psi used.
        calls: number of drift evaluations.
    """

    times: Tensor
    context: Any = None
    target: Any = None
    states: list[Tensor] = field(default_factory=list)
    probes: list[Any] = field(default_factory=list)
    means: list[Tensor] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)
    costs: list[Tensor] = field(default_factory=list)
    terminal: Tensor | None = None
    calls: int = 0

    def __len__(self) -> int:
        return len(self.actions)

    def steps(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(k, t_k, Dt_k) for every step."""
        for k in range(len(self)):
            yield k, self.times[k], self.times[k + 1] - self.times[k]

    def total_cost(self) -> Tensor:
        """Running plus terminal cost, (B,)."""
        total = torch.stack(self.costs).sum(0)
        return total if self.terminal is None else total + self.terminal


def rollout(
    problem: ControlProblem,
    policy: GaussianPolicy,
    x: Tensor,
    grid: Tensor,
    context: Any = None,
    target: Any = None,
    mode: Mode = "mean",
    solver: Solver = "euler",
    noise: torch.Generator | None = None,
    entropy: int = 0,
    keep: bool = True,
    callback: Any = None,
) -> Trajectory:
    """Run ``policy`` from ``x`` along ``grid``.

    Args:
        problem: the control problem.
        policy: the Gaussian policy.
        x: initial states (B, ...).
        grid: increasing times (K + 1,).
        context: what the policy sees.
        target: what the terminal cost sees; ``None`` = no terminal cost.
        mode: ``"mean"``, ``"averaged"`` or ``"sampled"``.
        solver: ``"euler"`` or ``"heun"``; a diffusing problem needs ``"euler"``.
        noise: generator of the sampled actions.
        entropy: seed of the Brownian path of a diffusing problem.
        keep: store states, probes and means; otherwise only the last state and the costs.
        callback: called as callback(k, x) after every step, e.g. for a progress bar.

    Returns:
        The trajectory.

    Raises:
        ValueError: for an unknown mode or solver, or Heun on a diffusing problem.
    """
    if mode not in ("mean", "averaged", "sampled") or solver not in ("euler", "heun"):
        raise ValueError(f"mode {mode!r}, solver {solver!r}: expected mean, averaged or sampled; euler or heun")
    out = Trajectory(times=grid, context=context, target=target, states=[x])
    path = _brownian_path(problem, x, grid, entropy)
    if path is not None and solver == "heun":
        raise ValueError("Heun is for deterministic problems; a diffusing one is integrated by Euler-Maruyama")
    last = len(grid) - 2
    dim = x[0].numel()
    for k in range(len(grid) - 1):
        t, dt = grid[k], grid[k + 1] - grid[k]
        probe = problem.probe(t, x, context)
        mean = policy.mean(t, x, context, probe)
        action = mean
        if mode == "sampled":
            eps = torch.randn(x.shape, generator=noise, dtype=x.dtype).to(x.device)
            action = mean + policy.std(t).to(x) * eps
        weight = problem.control_weight(t)
        cost = 0.5 * weight * inner(action, action) + problem.running_cost(t, x, context)
        if mode == "averaged":
            cost = cost + 0.5 * weight * policy.variance(t) * dim

        push = problem.gain(t) * action
        velocity = problem.drift(t, x, context, probe) + push
        out.calls += 1
        if path is not None:
            x_next = _diffuse(problem, x, velocity, t, grid[k + 1], path)
        else:
            x_next = x + dt * velocity
            if solver == "heun" and not (k == last and problem.singular_end):
                s = grid[k + 1]
                end = problem.drift(s, x_next, context, problem.probe(s, x_next, context)) + problem.gain(s) * action
                x_next = x + dt * (velocity + end) / 2
                out.calls += 1
        x = x_next
        out.actions.append(action if keep else action.new_empty(0))
        out.costs.append(cost * dt)
        if keep:
            out.probes.append(probe)
            out.means.append(mean)
            out.states.append(x)
        else:
            out.states[0] = x
        if callback is not None:
            callback(k, x)
    if target is not None:
        out.terminal = problem.terminal_cost(x, target)
    return out


def _brownian_path(problem: ControlProblem, x: Tensor, grid: Tensor, entropy: int) -> Any:
    if problem.diffusion(grid[0], x) is None:
        return None
    steps = grid.diff()
    flat = (x.shape[0], x[0].numel())
    return brownian(float(grid[0]), float(grid[-1]), float(steps.min()), flat, entropy, x)


class _Step(nn.Module):
    """One step's SDE for torchsde: the velocity is held, the diffusion is the problem's."""

    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, problem: ControlProblem, velocity: Tensor) -> None:
        super().__init__()
        self.problem, self.velocity = problem, velocity

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.velocity.flatten(1)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        sigma = self.problem.diffusion(t, y.reshape(self.velocity.shape))
        assert sigma is not None
        return sigma.expand(self.velocity.shape).flatten(1)


def _diffuse(problem: ControlProblem, x: Tensor, velocity: Tensor, t: Tensor, s: Tensor, path: Any) -> Tensor:
    # One call a step with ts = the step itself: torchsde interpolates between its own steps, which would
    # destroy the quadratic variation that every martingale statistic lives on.
    ts = torch.stack([t, s]).to(x)
    y = torchsde.sdeint(_Step(problem, velocity), x.flatten(1), ts, bm=path, method="euler", dt=float(s - t))
    return y[-1].reshape(x.shape)
