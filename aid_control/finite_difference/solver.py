r"""The HJB equation on a box in one or two dimensions by finite differences, plain and exploratory.

Method of lines, backwards from $V(T, x) = \Psi(x)$: with the differences $p_h, Y_h$ of a grid function V,

$$
-V_t = -\rho V + \min\nolimits^\tau_u H(t, x, u, p_h, Y_h) + \tfrac12 \sum_i \alpha_i h_i (Y_h)_{ii} ,
$$

where $\min^\tau$ is the soft minimum of `hjb` (the minimum at $\tau = 0$).

*Schemes.*  $p_h$ and $Y_h$ are central; $v = b + Bu$ is the velocity, $\sigma_i^2 = (\sigma\sigma')_{ii}$.
``"central"`` has $\alpha = 0$, is of second order and needs noise; it is monotone where $|v_i| h_i \le \sigma_i^2$ and
$\sigma\sigma'$ is diagonal.  ``"upwind"`` is the local Lax-Friedrichs scheme (Osher & Shu 1991), of first order, right
without noise and at kinks of V:

$$
\alpha_i = |v_i(u^*)| + \tfrac12 \sum_j |B S^{-1} B'|_{ij}\, h_j |Y_{jj}| ,
$$

the largest $|\partial H / \partial p_i|$ between the one-sided differences $p_j \pm \tfrac12 h_j Y_{jj}$
(exact: the minimiser is affine in p).  Godunov's flux is sharper, but its direction depends on u, so that H would not
stay quadratic.  Here it does, and V enters through differences only: *the recovery theorem holds for the discrete
equations*.  With S free of x the means agree at every $\tau$, and
$V^\tau - V^0 = -\tfrac\tau2 \int_t^T e^{-\rho(r-t)} \log((2\pi\tau)^m / \det S)\, dr$ up to the error in time.

*Boundary.*  A ghost beyond each face, $V_n = 3V_{n-1} - 3V_{n-2} + V_{n-3}$, is exact for quadratic V.  A linear
ghost sets the second derivative to zero: where paths leave the box it does not converge for values that grow (a
test).  Still, nothing tells the solver about the world outside: keep the region of interest away from the faces.

*Time.*  The s-stage second-order strong-stability-preserving Runge-Kutta method (Spiteri & Ruuth 2002, s = 5), a mean
of Euler steps, each stable where $\Delta t \sum_i (\sigma_i^2 / h_i^2 + w_i / h_i) \le 1$.  Upwind,
$w = \alpha$.  Central, $w_i = |v_i| \max(1, |v_i| h_i / \sigma_i^2)^{1/3}$: beyond the cell Peclet number 1
an Euler step would need Pe in place of its cube root, but the five-stage polynomial does not (von Neumann analysis at
the safety factor used).  The step is chosen anew each time, for the policy at that time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from ..problem import ControlProblem
from .equation import Equation, Scheme, equation_of
from .grid import Box, check_box, trapezoid

__all__ = ["GridSolution", "march", "solve"]

How = Literal["closed", "quadrature"]

STAGES = 5
SAFETY = 0.8  # of the largest stable step: the control changes within a step


@dataclass(frozen=True)
class GridSolution:
    """V at K + 1 output times on a grid.

    Attributes:
        times: 0 = t_0 < ... < t_K = T, (K + 1,).
        axes: grid coordinates, one tensor (n_i,) a dimension.
        values: (K + 1, n_1) or (K + 1, n_1, n_2).
        steps: Runge-Kutta steps taken.
    """

    times: Tensor
    axes: tuple[Tensor, ...]
    values: Tensor
    steps: int
    _equation: Equation = field(repr=False)

    def policy(self, k: int) -> Tensor:
        """Mean control on the grid, from the differences that the solver uses.

        Args:
            k: number of the output time, 0 to K.

        Returns:
            (n_1, m) or (n_1, n_2, m).
        """
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
    equation = equation_of(problem, box, points, scheme, temperature, context)
    if how == "quadrature":
        if temperature == 0:
            raise ValueError("temperature is 0 with how='quadrature'; expected > 0: there is no density to integrate")
        if action_box is None or len(action_box) != equation.control_dim:
            raise ValueError(
                f"action_box is {action_box}; expected {equation.control_dim} intervals for how='quadrature'"
            )
        if action_nodes < 2:
            raise ValueError(f"action_nodes is {action_nodes}; expected at least 2")
        check_box("action_box", action_box)
        equation = replace(equation, rule=trapezoid(action_box, action_nodes))
    return march(equation, target, outputs, max_steps, equation.slope, equation.greedy_rate)


def march(
    equation: Equation,
    target: Any,
    outputs: int,
    max_steps: int,
    slope: Callable[[Tensor, Tensor], Tensor],
    rate: Callable[[Tensor, Tensor], float],
) -> GridSolution:
    """From T down to 0 with steps adapted to ``rate``.

    Args:
        equation: what is solved.
        target: the terminal cost's target.
        outputs: K, the number of equal intervals between output times.
        max_steps: more steps than this are refused.
        slope: maps t and V on the grid to -V_t, like V.
        rate: maps t and V on the grid to 1 / the largest stable Euler step.

    Raises:
        ValueError: for less than one output, more than ``max_steps`` steps, or a V that is not finite at t = 0.
    """
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
