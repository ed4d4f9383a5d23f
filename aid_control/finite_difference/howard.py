"""Exact policy iteration on a grid (Howard 1960), plain and exploratory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..problem import ControlProblem
from .equation import Equation, Policy, equation_of
from .grid import Box
from .solver import GridSolution, march

__all__ = ["policy_iteration"]

Feedback = Callable[[Tensor, Tensor], Tensor]


def policy_iteration(
    problem: ControlProblem,
    box: Box,
    points: Sequence[int],
    *,
    iterations: int = 6,
    initial: Feedback | None = None,
    temperature: float = 0.0,
    context: Any = None,
    target: Any = None,
    outputs: int = 1,
    max_steps: int = 100_000,
) -> list[GridSolution]:
    r"""Howard's algorithm: evaluate a feedback policy (a linear equation), improve it to the (Gibbs) minimiser, repeat.

    Evaluation is the central scheme of `solve`, and the policy is improved at *every Runge-Kutta stage*.  As a
    stage is a mean of Euler steps, each monotone in V for a fixed policy (within the step bound, where
    $|v_i| h_i \le \sigma_i^2$ and away from the ghosts), discrete values decrease, and they stop at the solution
    of the discrete HJB equation itself.  All sweeps share the time grid of the first.

    Args:
        problem: as in `solve`, with noise.
        box: (low, high) of every coordinate of the state.
        points: grid points along every coordinate, at least 5.
        iterations: number of evaluations.
        initial: mean (N, m) of the first policy at (t, x); default 0.  Its covariance is tau I.
        temperature: tau; at 0 policies are deterministic.
        context: xi.
        target: the terminal cost's target.
        outputs: K, the number of equal intervals between output times.
        max_steps: a sweep of more steps is refused.

    Returns:
        One solution an iteration: the value of that iteration's policy; ``.policy(k)`` is the improved one.

    Raises:
        ValueError: as `solve`; for less than one iteration, or an ``initial`` mean of another shape.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; expected at least 1")
    equation = equation_of(problem, box, points, "central", temperature, context)
    last: _Sweep | None = None
    solutions = []
    for _ in range(iterations):
        sweep = _Sweep(equation, initial, last)
        solutions.append(march(equation, target, outputs, max_steps, sweep.slope, sweep.rate))
        sweep.previous, last = None, sweep  # policies at every stage are large: keep one set
    return solutions


class _Sweep:
    """One evaluation: the policies that the previous sweep found at each stage, and the improved ones for the next."""

    def __init__(self, equation: Equation, initial: Feedback | None, previous: _Sweep | None) -> None:
        self.equation, self.initial, self.previous = equation, initial, previous
        self.improved: list[Policy] = []
        self.rates: list[float] = []

    def policy(self, t: Tensor) -> Policy:
        """What is to be evaluated at the coming stage."""
        if self.previous is not None:
            return self.previous.improved[len(self.improved)]
        x, m, tau = self.equation.grid.states, self.equation.control_dim, self.equation.temperature
        mean = torch.zeros(len(x), m, dtype=x.dtype) if self.initial is None else self.initial(t, x)
        if mean.shape != (len(x), m):
            raise ValueError(f"initial returned a mean of shape {tuple(mean.shape)}; expected {(len(x), m)}")
        return mean, (tau * torch.eye(m, dtype=x.dtype)).expand(len(x), m, m)

    def slope(self, t: Tensor, v: Tensor) -> Tensor:
        policy = self.policy(t)
        h = self.equation.quadratic(t, *self.equation.grid.differences(v))
        self.improved.append(h.gibbs(self.equation.temperature))
        return self.equation.averaged(h, policy).reshape_as(v) - self.equation.problem.discount * v

    def rate(self, t: Tensor, v: Tensor) -> float:
        """The first sweep's choice, for its policy and the first improvement (Newton's later steps are small)."""
        if self.previous is None:
            rate = max(self.equation.rate(t, self.policy(t)), self.equation.greedy_rate(t, v))
        else:
            rate = self.previous.rates[len(self.rates)]
        self.rates.append(rate)
        return rate
