r"""Running a policy through a problem on a grid of times.

The action is held over each step $[t_k, t_{k+1}]$ (that *is* a policy in discrete time), and the state moves by
one scheme of `schemes` on pre-sampled Brownian increments, or by torchsde on the same or its own paths.

Execution modes:

- ``mean``: the action is the policy's mean and costs what it costs: the deterministic, deployed control;
- ``averaged``: the relaxed dynamics of the exploratory problem: drift and cost are averaged over the policy, and where
  the control enters the noise the covariance $\sigma\sigma'$ is (independent columns $D_j F$ are added);
- ``sampled``: actions are drawn at the grid times, independent across time.

With a ``temperature`` $\tau$ the running cost includes the entropy, $\tau \log \pi(A)$ for a sampled action and
$\tau\, E \log \pi$ otherwise.  Milstein and torchsde differentiate or re-evaluate a feedback within the step, so that
in the modes ``mean`` and ``averaged`` they integrate the closed loop, not the held action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from .increments import Increments
from .motion import Engine, Mode, Motion, Solver
from .policy import GaussianPolicy
from .problem import ControlProblem

__all__ = ["Engine", "Mode", "Solver", "Trajectory", "rollout"]

Noise = Callable[[Sequence[int], torch.dtype], Tensor]

@dataclass
class Trajectory:
    """What happened; lists over the K steps (states: K + 1), every entry with a leading batch dimension.

    Attributes:
        times: (K + 1,) grid.
        context: xi.
        target: what Psi used.
        discount: rho.
        states: X_k, (B, ...) each; the last one alone if ``keep`` is ``"last"``.
        probes: what the frozen system answered at (t_k, X_k); none if ``keep`` is ``"last"``.
        means: m_k, (B, ...) each; none unless ``keep`` is ``"all"``.
        actions: A_k, (B, ...) each; empty tensors unless ``keep`` is ``"all"``.
        costs: (f + control cost + entropy cost) Dt, (B,) each, not discounted.
        terminal: Psi(X_K), (B,), or ``None`` if no target was given.
        calls: number of drift evaluations.
    """

    times: Tensor
    context: Any = None
    target: Any = None
    discount: float = 0.0
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
        """Number, time and length of every step, (k, t_k, Dt)."""
        for k in range(len(self)):
            yield k, self.times[k], self.times[k + 1] - self.times[k]

    def discounts(self) -> Tensor:
        """exp(-rho (t_k - t_0)), (K + 1,)."""
        return torch.exp(-self.discount * (self.times - self.times[0]))

    def total_cost(self) -> Tensor:
        """Discounted running plus terminal cost, (B,)."""
        weights = self.discounts().to(self.costs[0]).unsqueeze(1)
        total = (weights[:-1] * torch.stack(self.costs)).sum(0)
        return total if self.terminal is None else total + weights[-1] * self.terminal


def rollout(
    problem: ControlProblem,
    policy: GaussianPolicy,
    x: Tensor,
    grid: Tensor,
    context: Any = None,
    target: Any = None,
    mode: Mode = "mean",
    solver: Solver = "euler",
    noise: torch.Generator | Noise | None = None,
    entropy: int | tuple[int, ...] = 0,
    increments: Increments | None = None,
    engine: Engine = "own",
    temperature: float = 0.0,
    keep: Literal["all", "path", "last"] = "all",
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
        solver: ``"euler"``, ``"heun"`` (no noise), ``"milstein"``; with torchsde its scheme's name.
        noise: generator of the sampled actions, or a function (shape, dtype) -> standard normal noise.
        entropy: key of the Brownian paths of a diffusing problem, where no increments are given.
        increments: Brownian increments on this grid; trailing columns beyond the problem's own drive the
            spread of the averaged mode.
        engine: ``"own"`` or ``"torchsde"`` (slower; the general engine and cross-check).
        temperature: tau of the entropy in the running cost.
        keep: ``"all"``; ``"path"``: states and probes, no means and actions; ``"last"``: the last state and costs.
        callback: called as callback(k, x) after every step, e.g. for a progress bar.

    Returns:
        What happened, as much of it as ``keep`` says.

    Raises:
        ValueError: for an unknown mode, solver or engine, Heun on a diffusing problem, a negative temperature,
            a temperature without a policy variance, or increments of another grid or shape.
    """
    if mode not in get_args(Mode) or solver not in get_args(Solver) or engine not in get_args(Engine):
        raise ValueError(
            f"mode {mode!r}, solver {solver!r}, engine {engine!r}: expected one of {get_args(Mode)}, "
            f"{get_args(Solver)}, {get_args(Engine)}"
        )
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}; expected tau >= 0")
    if temperature and not policy.covariance(grid[0]).any():
        raise ValueError(f"temperature is {temperature} but the policy has no variance; expected tau = 0 or a spread")
    motion = Motion(problem, policy, x, grid, context, mode, solver, engine, increments, entropy)
    out = Trajectory(times=grid, context=context, target=target, discount=problem.discount, states=[x])
    for k in range(len(grid) - 1):
        t, dt = grid[k], grid[k + 1] - grid[k]
        probe = problem.probe(t, x, context)
        mean = policy.mean(t, x, context, probe)
        action = mean
        if mode == "sampled":
            if callable(noise):
                eps = noise(mean.shape, x.dtype).to(x.device)
            else:
                eps = torch.randn(mean.shape, generator=noise, dtype=x.dtype).to(x.device)
            action = policy.sample(t, mean, eps)
        cost = problem.stage_cost(t, x, action, context)
        if mode == "averaged":
            spread = problem.exploration_cost(t, policy.covariance(t).to(x), mean[0].numel())
            cost = cost + (spread if spread.dim() == 0 else _for_rows(spread, cost))
        if temperature:
            log = policy.log_prob(t, action, mean) if mode == "sampled" else -policy.entropy(t, mean)
            cost = cost + temperature * log

        x, calls = motion.step(k, x, action, probe)
        out.calls += calls
        out.actions.append(action if keep == "all" else action.new_empty(0))
        out.costs.append(cost * dt)
        if keep == "all":
            out.means.append(mean)
        if keep == "last":
            out.states[0] = x
        else:
            out.probes.append(probe)
            out.states.append(x)
        if callback is not None:
            callback(k, x)
    if target is not None:
        out.terminal = problem.terminal_cost(x, target)
    return out


def _for_rows(per_group: Tensor, rows: Tensor) -> Tensor:
    return per_group.repeat_interleave(rows.shape[0] // per_group.shape[0])
