r"""The semi-discrete HJB equation: what a grid function's slope in time is, and how fast a step may be.

The mathematics is in `solver`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..hjb import QuadraticHamiltonian, in_control, quadrature
from ..problem import ControlProblem
from .grid import Box, Grid

__all__ = ["Equation", "Policy", "Scheme", "equation_of"]

Scheme = Literal["central", "upwind"]
Policy = tuple[Tensor, Tensor]  # mean (N, m) and covariance (N, m, m)


@dataclass(frozen=True)
class Equation:
    """The semi-discrete equation of one problem on one grid.

    In its methods t is a scalar tensor (), N the number of nodes, d that of dimensions, m that of controls; a grid
    function v has the grid's shape, its differences p, y are (N, d), (N, d, d), and u is (N, m).

    Attributes:
        problem: the problem.
        grid: the nodes.
        upwind: whether the scheme is ``"upwind"``.
        temperature: tau.
        control_dim: m.
        context: xi.
        rule: quadrature nodes (A, m) and weights (A,) over actions; ``None`` = the closed form of the minimum.
    """

    problem: ControlProblem
    grid: Grid
    upwind: bool
    temperature: float
    control_dim: int
    context: Any
    rule: tuple[Tensor, Tensor] | None = None  # quadrature over actions; None = closed form

    def quadratic(self, t: Tensor, p: Tensor, y: Tensor) -> QuadraticHamiltonian:
        """The Hamiltonian in u: (), (N, d), (N, d, d) -> coefficients, N rows."""
        x = self.grid.states
        probe = self.problem.probe(t, x, self.context)
        return in_control(self.problem, t, x, p, y, self.control_dim, self.context, probe)

    def integrate(self, t: Tensor, p: Tensor, y: Tensor, rule: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Soft minimum and mean policy by quadrature: (), (N, d), (N, d, d), rule -> (N,), (N, m)."""
        return quadrature(self.problem, t, self.grid.states, p, y, self.temperature, *rule, context=self.context)

    def velocity(self, t: Tensor, u: Tensor) -> Tensor:
        """b + B u: (), (N, m) -> (N, d)."""
        x = self.grid.states
        return self.problem.velocity(t, x, u, self.context, self.problem.probe(t, x, self.context))

    def variance(self, t: Tensor, u: Tensor) -> Tensor:
        """The diagonal of sigma sigma': (), (N, m) -> (N, d)."""
        sigma = self.problem.diffusion(t, self.grid.states, u)
        if sigma is None:
            return torch.zeros_like(self.grid.states)
        if self.problem.noise == "columns":
            return sigma.square().sum(-1)
        return sigma.expand_as(self.grid.states).square()

    def viscosity(self, t: Tensor, y: Tensor, h: QuadraticHamiltonian) -> Tensor:
        """alpha of the upwind scheme: (), (N, d, d), the Hamiltonian in u -> (N, d)."""
        x = self.grid.states
        pulled = [self.problem.pull(t, x, e.expand_as(x)) for e in torch.eye(x.shape[1], dtype=x.dtype)]
        b = torch.stack(pulled, dim=-1)  # B', (N, m, d)
        authority = (b.mT @ torch.cholesky_solve(b, h.factor())).abs()
        jump = 0.5 * self.grid.spacing * y.diagonal(dim1=-2, dim2=-1).abs()
        return self.velocity(t, h.minimiser()).abs() + (authority @ jump.unsqueeze(-1)).squeeze(-1)

    def slope(self, t: Tensor, v: Tensor) -> Tensor:
        """-V_t of the HJB equation: (), v -> like v."""
        p, y = self.grid.differences(v)
        h = self.quadratic(t, p, y)
        minimum = h.soft_minimum(self.temperature) if self.rule is None else self.integrate(t, p, y, self.rule)[0]
        if self.upwind:
            minimum = minimum + 0.5 * (self.viscosity(t, y, h) * self.grid.spacing * y.diagonal(dim1=1, dim2=2)).sum(1)
        return minimum.reshape_as(v) - self.problem.discount * v

    def mean(self, t: Tensor, v: Tensor) -> Tensor:
        """Mean of the policy that attains the (soft) minimum: (), v -> (N, m)."""
        p, y = self.grid.differences(v)
        return self.quadratic(t, p, y).minimiser() if self.rule is None else self.integrate(t, p, y, self.rule)[1]

    def rate(self, t: Tensor, policy: Policy, alpha: Tensor | None = None) -> float:
        """1 / the largest stable Euler step under a policy.

        Args:
            t: scalar time.
            policy: mean (N, m) and covariance (N, m, m).
            alpha: of the upwind scheme, (N, d); ``None`` = central differences.
        """
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
        """`rate` under the minimising policy: (), v -> a number."""
        p, y = self.grid.differences(v)
        h = self.quadratic(t, p, y)
        return self.rate(t, h.gibbs(self.temperature), self.viscosity(t, y, h) if self.upwind else None)

    def averaged(self, h: QuadraticHamiltonian, policy: Policy) -> Tensor:
        """int H dpi + tau int log pi dpi.

        Args:
            h: the Hamiltonian in u, N rows.
            policy: Gaussian, mean (N, m) and covariance (N, m, m).

        Returns:
            (N,), one number a node.
        """
        mean, covariance = policy
        u = mean.unsqueeze(-1)
        energy = h.constant + (h.linear * mean).sum(-1) + 0.5 * (u.mT @ h.hessian @ u).flatten()
        if self.temperature == 0:
            return energy
        spread = 0.5 * (h.hessian * covariance).sum((-2, -1))
        entropy = 0.5 * (torch.logdet(covariance) + self.control_dim * math.log(2 * math.pi * math.e))
        return energy + spread - self.temperature * entropy


def equation_of(
    problem: ControlProblem,
    box: Box,
    points: Sequence[int],
    scheme: Scheme,
    temperature: float,
    context: Any,
) -> Equation:
    """Check a problem against a grid and a scheme; arguments as `solver.solve`.

    Raises:
        ValueError: for an unknown scheme, a temperature that is negative or not finite, an unusable box or number of
            points, a problem that is singular at T or does not take states of the box's dimension, and for the
            central scheme without noise.
    """
    if scheme not in ("central", "upwind"):
        raise ValueError(f"scheme is {scheme!r}; expected 'central' or 'upwind'")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}; expected a finite number >= 0")
    end = torch.tensor(problem.horizon)
    if problem.singular(end, end):
        raise ValueError("problem is singular at T; expected a drift that is defined up to T")
    if scheme == "central" and problem.noise == "none":
        raise ValueError("scheme is 'central' for a problem without noise, where it is unstable; expected 'upwind'")
    grid = Grid.uniform(box, points)
    t, x = torch.tensor(problem.horizon, dtype=torch.float64), grid.states
    try:
        m = problem.pull(t, x, x).shape[1]
        problem.drift(t, x, context, problem.probe(t, x, context))
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"box has {len(box)} dimensions, but the problem refuses such states: {error}") from error
    return Equation(problem, grid, scheme == "upwind", temperature, m, context)
