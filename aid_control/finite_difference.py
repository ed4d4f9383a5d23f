r"""The HJB equation on a box in one or two dimensions by finite differences, plain and exploratory.

Method of lines, backwards from :math:`V(T, x) = \Psi(x)`: with the differences :math:`p_h, Y_h` of a grid function V,

.. math::
    -V_t = -\rho V + \min\nolimits^\tau_u H(t, x, u, p_h, Y_h) + \tfrac12 \sum_i \alpha_i h_i (Y_h)_{ii} ,

where :math:`\min^\tau` is the soft minimum of :mod:`~aid_control.hjb` (the minimum at tau = 0).

*Schemes.*  p_h and Y_h are central.  ``"central"`` has :math:`\alpha = 0`, is of second order and needs noise; it is
monotone where :math:`|v_i| h_i \le \sigma_i^2` and sigma sigma' is diagonal.  ``"upwind"`` is the local Lax-Friedrichs
scheme (Osher & Shu 1991), of first order, right without noise and at kinks of V:

.. math::  \alpha_i = |v_i(u^*)| + \tfrac12 \sum_j |B S^{-1} B'|_{ij}\, h_j |Y_{jj}| ,

the largest :math:`|\partial H / \partial p_i|` between the one-sided differences :math:`p_j \pm \tfrac12 h_j Y_{jj}`
(exact: the minimiser is affine in p).  Godunov's flux is sharper, but its direction depends on u, so that H would not
stay quadratic.  Here it does, and V enters through differences only: *the recovery theorem holds for the discrete
equations*.  With S free of x the means agree at every tau, and
:math:`V^\tau - V^0 = -\tfrac\tau2 \int_t^T e^{-\rho(r-t)} \log((2\pi\tau)^m / \det S)\, dr` up to the error in time.

*Boundary.*  A ghost beyond each face, :math:`V_n = 3V_{n-1} - 3V_{n-2} + V_{n-3}`, is exact for quadratic V.  A linear
ghost sets the second derivative to zero: where paths leave the box it does not converge for values that grow (a
test).  Still, nothing tells the solver about the world outside: keep the region of interest away from the faces.

*Time.*  The s-stage second-order strong-stability-preserving Runge-Kutta method (Spiteri & Ruuth 2002, s = 5), a mean
of Euler steps, each stable where :math:`\Delta t \sum_i (\sigma_i^2 / h_i^2 + w_i / h_i) \le 1`.  Upwind,
:math:`w = \alpha`.  Central, :math:`w_i = |v_i| \max(1, |v_i| h_i / \sigma_i^2)^{1/3}`: beyond the cell Peclet number 1
an Euler step would need Pe in place of its cube root, but the five-stage polynomial does not (von Neumann analysis at
the safety factor used).  The step is chosen anew each time, for the policy at that time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from .hjb import QuadraticHamiltonian, in_control, quadrature
from .problem import ControlProblem

__all__ = ["Grid", "GridSolution", "Scheme", "policy_iteration", "solve", "trapezoid"]

Scheme = Literal["central", "upwind"]
How = Literal["closed", "quadrature"]
Box = Sequence[tuple[float, float]]
Policy = tuple[Tensor, Tensor]  # mean (N, m) and covariance (N, m, m)
Feedback = Callable[[Tensor, Tensor], Tensor]

STAGES = 5
SAFETY = 0.8  # of the largest stable step: the control changes within a step


def trapezoid(box: Box, nodes: int) -> tuple[Tensor, Tensor]:
    """The product trapezoid rule.

    For a Gaussian of standard deviation s well inside the box, spacing h, the relative error is 2 exp(-2 (pi s/h)^2).

    Args:
        box: (low, high) of every coordinate.
        nodes: a coordinate, at least 2.

    Returns:
        Nodes (A, m) and weights (A,), A = nodes^m.

    Raises:
        ValueError: for an empty box, low >= high, or fewer than 2 nodes.
    """
    _check_box("box", box)
    if nodes < 2:
        raise ValueError(f"nodes is {nodes}; expected at least 2")
    axes = [torch.linspace(low, high, nodes, dtype=torch.float64) for low, high in box]
    rule = torch.ones(nodes, dtype=torch.float64)
    rule[[0, -1]] = 0.5
    weights = torch.ones((), dtype=torch.float64)
    for axis in axes:
        weights = weights.unsqueeze(-1) * (rule * (axis[1] - axis[0]))
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2), weights.flatten()


@dataclass(frozen=True)
class Grid:
    """A uniform grid.

    Attributes:
        axes: coordinates (n_i,) along every dimension, float64.
    """

    axes: tuple[Tensor, ...]

    @classmethod
    def uniform(cls, box: Box, points: Sequence[int]) -> Grid:
        """The grid with ``points[i]`` nodes on ``box[i]``, ends included.

        Raises:
            ValueError: for other than 1 or 2 dimensions, low >= high, or fewer than 5 points.
        """
        _check_box("box", box)
        if len(box) > 2:
            raise ValueError(f"box has {len(box)} dimensions ({box}); expected 1 or 2")
        if len(points) != len(box) or any(int(n) != n or n < 5 for n in points):
            raise ValueError(f"points is {tuple(points)}; expected {len(box)} whole numbers, each at least 5")
        return cls(
            tuple(torch.linspace(lo, hi, n, dtype=torch.float64) for (lo, hi), n in zip(box, points, strict=True))
        )

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """(n_1[, n_2])."""
        return tuple(len(axis) for axis in self.axes)

    @cached_property
    def spacing(self) -> Tensor:
        """h, (d,)."""
        return torch.stack([axis[1] - axis[0] for axis in self.axes])

    @cached_property
    def states(self) -> Tensor:
        """All nodes (N, d); the last coordinate runs fastest."""
        return torch.stack(torch.meshgrid(*self.axes, indexing="ij"), dim=-1).flatten(0, -2)

    def _neighbours(self, v: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """V one node below and one above along an axis, with the quadratic ghosts at the faces."""
        n = self.shape[axis]

        def ghost(i: int, j: int, k: int) -> Tensor:
            return 3 * v.narrow(axis, i, 1) - 3 * v.narrow(axis, j, 1) + v.narrow(axis, k, 1)

        below = torch.cat([ghost(0, 1, 2), v.narrow(axis, 0, n - 1)], dim=axis)
        return below, torch.cat([v.narrow(axis, 1, n - 1), ghost(n - 1, n - 2, n - 3)], dim=axis)

    def differences(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Central gradient (N, d) and Hessian (N, d, d) of a grid function (n_1[, n_2])."""
        h, d = self.spacing, len(self.axes)
        p, second = [], []
        for i in range(d):
            below, above = self._neighbours(v, i)
            p.append((above - below) / (2 * h[i]))
            second.append((above - 2 * v + below) / h[i] ** 2)
        hessian = torch.diag_embed(torch.stack([y.flatten() for y in second], dim=-1))
        if d == 2:
            below, above = self._neighbours(p[0], 1)
            hessian[:, 0, 1] = hessian[:, 1, 0] = ((above - below) / (2 * h[1])).flatten()
        return torch.stack([q.flatten() for q in p], dim=-1), hessian


@dataclass(frozen=True)
class _Equation:
    """The semi-discrete equation of one problem on one grid."""

    problem: ControlProblem
    grid: Grid
    upwind: bool
    temperature: float
    control_dim: int
    context: Any
    rule: tuple[Tensor, Tensor] | None = None  # quadrature over actions; None = closed form

    def quadratic(self, t: Tensor, p: Tensor, y: Tensor) -> QuadraticHamiltonian:
        x = self.grid.states
        probe = self.problem.probe(t, x, self.context)
        return in_control(self.problem, t, x, p, y, self.control_dim, self.context, probe)

    def integrate(self, t: Tensor, p: Tensor, y: Tensor, rule: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Soft minimum (N,) and mean policy (N, m) by quadrature."""
        return quadrature(self.problem, t, self.grid.states, p, y, self.temperature, *rule, context=self.context)

    def velocity(self, t: Tensor, u: Tensor) -> Tensor:
        x = self.grid.states
        return self.problem.velocity(t, x, u, self.context, self.problem.probe(t, x, self.context))

    def variance(self, t: Tensor, u: Tensor) -> Tensor:
        """The diagonal of sigma sigma', (N, d)."""
        sigma = self.problem.diffusion(t, self.grid.states, u)
        if sigma is None:
            return torch.zeros_like(self.grid.states)
        if self.problem.noise == "columns":
            return sigma.square().sum(-1)
        return sigma.expand_as(self.grid.states).square()

    def viscosity(self, t: Tensor, y: Tensor, h: QuadraticHamiltonian) -> Tensor:
        """alpha, (N, d)."""
        x = self.grid.states
        pulled = [self.problem.pull(t, x, e.expand_as(x)) for e in torch.eye(x.shape[1], dtype=x.dtype)]
        b = torch.stack(pulled, dim=-1)  # B', (N, m, d)
        authority = (b.mT @ torch.cholesky_solve(b, h.factor())).abs()
        jump = 0.5 * self.grid.spacing * y.diagonal(dim1=-2, dim2=-1).abs()
        return self.velocity(t, h.minimiser()).abs() + (authority @ jump.unsqueeze(-1)).squeeze(-1)

    def slope(self, t: Tensor, v: Tensor) -> Tensor:
        """-V_t of the HJB equation, like v."""
        p, y = self.grid.differences(v)
        h = self.quadratic(t, p, y)
        minimum = h.soft_minimum(self.temperature) if self.rule is None else self.integrate(t, p, y, self.rule)[0]
        if self.upwind:
            minimum = minimum + 0.5 * (self.viscosity(t, y, h) * self.grid.spacing * y.diagonal(dim1=1, dim2=2)).sum(1)
        return minimum.reshape_as(v) - self.problem.discount * v

    def mean(self, t: Tensor, v: Tensor) -> Tensor:
        """Mean (N, m) of the policy that attains the (soft) minimum."""
        p, y = self.grid.differences(v)
        return self.quadratic(t, p, y).minimiser() if self.rule is None else self.integrate(t, p, y, self.rule)[1]

    def rate(self, t: Tensor, policy: Policy, alpha: Tensor | None = None) -> float:
        """1 / the largest stable Euler step under a policy; central differences without alpha."""
        mean, covariance = policy
        a = self.variance(t, mean)
        if self.temperature > 0:
            # sigma sigma' is quadratic in u: these 2 m points integrate it exactly
            columns = (math.sqrt(self.control_dim) * torch.linalg.cholesky(covariance)).unbind(-1)
            a = torch.stack([self.variance(t, mean + s * c) for c in columns for s in (-1, 1)]).mean(0)
        h = self.grid.spacing
        if alpha is None:
            speed = self.velocity(t, mean).abs()
            alpha = torch.where(speed == 0, 0.0, speed * (speed * h / a).clamp(min=1) ** (1 / 3))
        return float((a / h**2 + alpha / h).sum(-1).max()) + self.problem.discount

    def greedy_rate(self, t: Tensor, v: Tensor) -> float:
        """The rate under the minimising policy."""
        p, y = self.grid.differences(v)
        h = self.quadratic(t, p, y)
        return self.rate(t, h.gibbs(self.temperature), self.viscosity(t, y, h) if self.upwind else None)

    def averaged(self, h: QuadraticHamiltonian, policy: Policy) -> Tensor:
        """int H dpi + tau int log pi dpi of a Gaussian policy, (N,)."""
        mean, covariance = policy
        u = mean.unsqueeze(-1)
        energy = h.constant + (h.linear * mean).sum(-1) + 0.5 * (u.mT @ h.hessian @ u).flatten()
        if self.temperature == 0:
            return energy
        spread = 0.5 * (h.hessian * covariance).sum((-2, -1))
        entropy = 0.5 * (torch.logdet(covariance) + self.control_dim * math.log(2 * math.pi * math.e))
        return energy + spread - self.temperature * entropy


@dataclass(frozen=True)
class GridSolution:
    """V at K + 1 output times on a grid.

    Attributes:
        times: 0 = t_0 < ... < t_K = T, (K + 1,).
        axes: grid coordinates, one tensor (n_i,) a dimension.
        values: (K + 1, n_1[, n_2]).
        steps: Runge-Kutta steps taken.
    """

    times: Tensor
    axes: tuple[Tensor, ...]
    values: Tensor
    steps: int
    _equation: _Equation = field(repr=False)

    def policy(self, k: int) -> Tensor:
        """Mean control on the grid at output time k, (n_1[, n_2], m), from the differences that the solver uses."""
        return self._equation.mean(self.times[k], self.values[k]).reshape(*self.values.shape[1:], -1)

    def value(self, t: float, x: Tensor) -> Tensor:
        """V(t, x) by multilinear interpolation, (B,).

        Args:
            t: time in [0, T].
            x: states (B, d) in the box.

        Raises:
            ValueError: outside the times or the box, where nothing is known.
        """
        if x.dim() != 2 or x.shape[1] != len(self.axes):
            raise ValueError(f"x has shape {tuple(x.shape)}; expected (B, {len(self.axes)})")
        axes = (self.times, *self.axes)
        where = torch.cat([torch.full_like(x[:, :1], t), x], dim=1)
        for i, (axis, found) in enumerate(zip(axes, where.T, strict=True)):
            if not bool(((found >= axis[0]) & (found <= axis[-1])).all()):
                name = f"x[:, {i - 1}]" if i else "t"
                raise ValueError(f"{name} is {found.tolist()}; expected numbers from {axis[0]:g} to {axis[-1]:g}")
        table = RegularGridInterpolator([axis.numpy() for axis in axes], self.values.numpy())
        return torch.as_tensor(table(where.numpy()))


def solve(
    problem: ControlProblem,
    box: Box,
    points: Sequence[int],
    *,
    temperature: float = 0.0,
    scheme: Scheme = "central",
    how: How = "closed",
    action_box: Box | None = None,
    action_nodes: int = 65,
    context: Any = None,
    target: Any = None,
    outputs: int = 1,
    max_steps: int = 100_000,
) -> GridSolution:
    """Solve the (exploratory) HJB equation on a box.

    Args:
        problem: flat states (B, d), d = 1 or 2; drift affine in u, cost quadratic in u; defined up to T.
        box: (low, high) of every coordinate of the state.
        points: grid points along every coordinate, at least 5.
        temperature: tau; 0 = the deterministic-control equation.
        scheme: ``"central"`` (second order, needs noise) or ``"upwind"`` (first order).
        how: ``"closed"`` minimises the quadratic H; ``"quadrature"`` integrates exp(-H/tau) over ``action_box`` by the
            trapezoid rule, knowing nothing about H (tau > 0).
        action_box: (low, high) of every action, wide enough for the policies at every grid point.
        action_nodes: nodes a coordinate; a spacing of 0.8 standard deviations of the policy gives 1e-12.
        context: xi, one for all grid points or (N, ...).
        target: the terminal cost's target, likewise.
        outputs: K, the number of equal intervals between output times.
        max_steps: more steps than this are refused.

    Raises:
        ValueError: for unusable arguments, for a problem that is not convex in the control, and for a scheme that is
            unstable or would need more than ``max_steps`` steps.
    """
    if how not in ("closed", "quadrature"):
        raise ValueError(f"how is {how!r}; expected 'closed' or 'quadrature'")
    equation = _equation_of(problem, box, points, scheme, temperature, context)
    if how == "quadrature":
        if temperature == 0:
            raise ValueError("temperature is 0 with how='quadrature'; expected > 0: there is no density to integrate")
        if action_box is None or len(action_box) != equation.control_dim:
            raise ValueError(
                f"action_box is {action_box}; expected {equation.control_dim} intervals for how='quadrature'"
            )
        if action_nodes < 2:
            raise ValueError(f"action_nodes is {action_nodes}; expected at least 2")
        _check_box("action_box", action_box)
        equation = replace(equation, rule=trapezoid(action_box, action_nodes))
    return _march(equation, target, outputs, max_steps, equation.slope, equation.greedy_rate)


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

    Evaluation is the central scheme of :func:`solve`, and the policy is improved at *every Runge-Kutta stage*.  As a
    stage is a mean of Euler steps, each monotone in V for a fixed policy (within the step bound, where
    :math:`|v_i| h_i \le \sigma_i^2` and away from the ghosts), discrete values decrease, and they stop at the solution
    of the discrete HJB equation itself.  All sweeps share the time grid of the first.

    Args:
        problem: as in :func:`solve`, with noise.
        box: likewise.
        points: likewise.
        iterations: number of evaluations.
        initial: mean (N, m) of the first policy at (t, x); default 0.  Its covariance is tau I.
        temperature: tau; at 0 policies are deterministic.
        context: xi.
        target: the terminal cost's target.
        outputs: K.
        max_steps: as in :func:`solve`.

    Returns:
        One solution an iteration: the value of that iteration's policy; ``.policy(k)`` is the improved one.

    Raises:
        ValueError: as :func:`solve`.
    """
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; expected at least 1")
    equation = _equation_of(problem, box, points, "central", temperature, context)
    last: _Sweep | None = None
    solutions = []
    for _ in range(iterations):
        sweep = _Sweep(equation, initial, last)
        solutions.append(_march(equation, target, outputs, max_steps, sweep.slope, sweep.rate))
        sweep.previous, last = None, sweep  # policies at every stage are large: keep one set
    return solutions


class _Sweep:
    """One evaluation: the policies that the previous sweep found at each stage, and the improved ones for the next."""

    def __init__(self, equation: _Equation, initial: Feedback | None, previous: _Sweep | None) -> None:
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


def _equation_of(
    problem: ControlProblem,
    box: Box,
    points: Sequence[int],
    scheme: Scheme,
    temperature: float,
    context: Any,
) -> _Equation:
    if scheme not in ("central", "upwind"):
        raise ValueError(f"scheme is {scheme!r}; expected 'central' or 'upwind'")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}; expected a finite number >= 0")
    if problem.singular_end:
        raise ValueError("problem.singular_end is True; expected a drift that is defined up to T")
    if scheme == "central" and problem.noise == "none":
        raise ValueError("scheme is 'central' for a problem without noise, where it is unstable; expected 'upwind'")
    grid = Grid.uniform(box, points)
    t, x = torch.tensor(problem.horizon, dtype=torch.float64), grid.states
    try:
        m = problem.pull(t, x, x).shape[1]
        problem.drift(t, x, context, problem.probe(t, x, context))
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"box has {len(box)} dimensions, but the problem refuses such states: {error}") from error
    return _Equation(problem, grid, scheme == "upwind", temperature, m, context)


def _march(
    equation: _Equation,
    target: Any,
    outputs: int,
    max_steps: int,
    slope: Callable[[Tensor, Tensor], Tensor],
    rate: Callable[[Tensor, Tensor], float],
) -> GridSolution:
    """From T down to 0 with steps adapted to ``rate``."""
    if outputs < 1:
        raise ValueError(f"outputs is {outputs}; expected at least 1")
    grid, problem = equation.grid, equation.problem
    times = torch.linspace(0, problem.horizon, outputs + 1, dtype=torch.float64)
    v = problem.terminal_cost(grid.states, target).reshape(grid.shape)
    kept, steps = [v], 0
    for k in reversed(range(outputs)):
        t, goal = times[k + 1], times[k]
        while t > goal:
            fastest = rate(t, v) / (SAFETY * (STAGES - 1))
            needed = steps + float(t) * fastest
            if not needed <= max_steps:  # also where it is no number
                raise ValueError(
                    f"points is {grid.shape}: at t = {float(t):.6g} about {needed:.4g} steps would be needed, more "
                    f"than max_steps = {max_steps}; expected a coarser grid, a smaller box, or, where there "
                    f"is too little noise, scheme='upwind'"
                )
            left = max(1, math.ceil(float(t - goal) * fastest))
            dt = (t - goal) / left
            v = _runge_kutta(slope, t, dt, v)
            t, steps = (goal if left == 1 else t - dt), steps + 1
        kept.append(v)
    if not bool(v.isfinite().all()):
        raise ValueError(f"points is {grid.shape}: V is not finite at t = 0; expected scheme='upwind' or another box")
    return GridSolution(times, grid.axes, torch.stack(kept[::-1]), steps, equation)


def _runge_kutta(slope: Callable[[Tensor, Tensor], Tensor], t: Tensor, dt: Tensor, v: Tensor) -> Tensor:
    """V(t - dt) from V(t): a mean of ``STAGES`` Euler steps of dt/(STAGES - 1) and v."""
    euler, stage = dt / (STAGES - 1), v
    for i in range(STAGES):
        stage = stage + euler * slope(t - i * euler, stage)
    return (v + (STAGES - 1) * stage) / STAGES


def _check_box(name: str, box: Box) -> None:
    if len(box) == 0 or any(len(side) != 2 or not side[0] < side[1] for side in box):
        raise ValueError(f"{name} is {box}; expected (low, high) with low < high for every coordinate")
