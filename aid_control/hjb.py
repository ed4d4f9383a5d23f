r"""The Hamilton-Jacobi-Bellman equation, plain and exploratory, for any problem.

With $p = \nabla V$ and $Y = \nabla^2 V$ the Hamiltonian of the action u is

$$
H(u) = p \cdot (b + B u) + \tfrac12 \mathrm{tr}(\sigma\sigma' Y) + f + c(t, x, u)
= h_0 + g \cdot u + \tfrac12 u' S u ,
$$

quadratic because the drift and $\sigma$ are affine in u and the control cost c is quadratic; $g$ is its slope and
$S$ its curvature at $u = 0$.  The value solves

$$
V_t - \rho V + \min_u H = 0 ,
\qquad V^\tau_t - \rho V^\tau + \min_\pi \Big\{ \int H\, d\pi + \tau \int \log \pi\, d\pi \Big\} = 0 .
$$

The second minimum is the soft minimum $-\tau \log \int e^{-H(u)/\tau} du$, attained by the Gibbs policy
$\pi \propto e^{-H/\tau}$ (Wang, Zariphopoulou & Zhou 2020).  For quadratic H and m controls

$$
\pi = N\big(-S^{-1} g,\; \tau S^{-1}\big), \qquad
-\tau \log \int e^{-H(u)/\tau} du = \min_u H - \frac\tau2 \log \frac{(2\pi\tau)^m}{\det S} .
$$

Derivatives come from automatic differentiation of the problem's own functions, so nothing here knows how a problem
was solved.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .problem import ControlProblem, inner

__all__ = [
    "QuadraticHamiltonian",
    "derivatives",
    "hamiltonian",
    "in_control",
    "quadrature",
    "residual",
]

ValueFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class QuadraticHamiltonian:
    """H(u) = constant + linear . u + u' hessian u / 2 for every row.

    Its methods raise ValueError as `factor` does.

    Attributes:
        constant: h_0, (B,).
        linear: g, (B, m).
        hessian: S, (B, m, m), positive definite.
    """

    constant: Tensor
    linear: Tensor
    hessian: Tensor

    def factor(self) -> Tensor:
        """The Cholesky factor of S, lower triangular, (B, m, m).

        Raises:
            ValueError: where S is not positive definite: the minimum is -infinity.
        """
        factor, info = torch.linalg.cholesky_ex(self.hessian)
        if bool((info > 0).any()):
            row = int(info.nonzero()[0])
            raise ValueError(
                f"the Hamiltonian is not convex in the control: S has shape {tuple(self.hessian.shape)} and is not "
                f"positive definite in row {row}; expected S > 0"
            )
        return factor

    def minimiser(self) -> Tensor:
        """The minimiser $-S^{-1} g$, (B, m)."""
        return -torch.cholesky_solve(self.linear.unsqueeze(-1), self.factor()).squeeze(-1)

    def minimum(self) -> Tensor:
        """min_u H, (B,)."""
        return self.constant + 0.5 * (self.linear * self.minimiser()).sum(-1)

    def gibbs(self, temperature: float) -> tuple[Tensor, Tensor]:
        r"""Mean (B, m) and covariance (B, m, m) of the policy proportional to $e^{-H/\tau}$.

        Args:
            temperature: tau >= 0; the covariance is $\tau S^{-1}$.
        """
        return self.minimiser(), temperature * torch.cholesky_inverse(self.factor())

    def soft_minimum(self, temperature: float) -> Tensor:
        r"""The soft minimum $-\tau \log \int e^{-H(u)/\tau} du$, (B,).

        Args:
            temperature: tau >= 0; at 0 it is the minimum itself.
        """
        if temperature == 0:
            return self.minimum()
        m = self.linear.shape[-1]
        logdet = 2 * self.factor().diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return self.minimum() - 0.5 * temperature * (m * math.log(2 * math.pi * temperature) - logdet)


def hamiltonian(
    problem: ControlProblem,
    t: Tensor,
    x: Tensor,
    u: Tensor,
    gradient: Tensor,
    hessian: Tensor | None = None,
    context: Any = None,
    probe: Any = None,
) -> Tensor:
    """H(t, x, u, p, Y), (B,).

    Args:
        problem: the problem.
        t: scalar time.
        x: states (B, ...).
        u: actions, (B, m) or like x: what the problem's `push` takes.
        gradient: p, like x.
        hessian: Y, (B, d, d) over the flattened state; may be left out where there is no noise.
        context: xi.
        probe: what the frozen system answers at (t, x), where the drift needs it.
    """
    h = inner(gradient, problem.velocity(t, x, u, context, probe))
    h = h + problem.running_cost(t, x, context) + problem.control_cost(t, x, u)
    if problem.noise == "none":
        return h
    assert hessian is not None, "a diffusing problem needs the Hessian of the value"
    sigma = problem.diffusion(t, x, u)
    assert sigma is not None
    if problem.noise == "diagonal":
        sigma = sigma.expand_as(x).flatten(1)
        return h + 0.5 * (sigma.square() * hessian.diagonal(dim1=-2, dim2=-1)).sum(-1)
    return h + 0.5 * torch.einsum("bin,bij,bjn->b", sigma, hessian, sigma)


def in_control(
    problem: ControlProblem,
    t: Tensor,
    x: Tensor,
    gradient: Tensor,
    hessian: Tensor | None = None,
    control_dim: int | None = None,
    context: Any = None,
    probe: Any = None,
) -> QuadraticHamiltonian:
    """The Hamiltonian's coefficients in u, by automatic differentiation at u = 0.

    Args:
        problem: the problem; flat states.
        t: scalar time.
        x: states (B, d).
        gradient: p, (B, d).
        hessian: Y, (B, d, d).
        control_dim: m; default d.
        context: xi.
        probe: what the frozen system answers at (t, x).

    Returns:
        h_0, g and S of every row; S is zero where H is linear in u.
    """
    m = x.shape[1] if control_dim is None else control_dim
    with torch.enable_grad():
        u = torch.zeros(x.shape[0], m, dtype=x.dtype, device=x.device, requires_grad=True)
        h = hamiltonian(problem, t, x, u, gradient, hessian, context, probe)
        (g,) = torch.autograd.grad(h.sum(), u, create_graph=True)
        if not g.requires_grad:  # linear in u
            return QuadraticHamiltonian(h.detach(), g.detach(), u.new_zeros(len(u), m, m).detach())
        rows = [torch.autograd.grad(g[:, i].sum(), u, retain_graph=True)[0] for i in range(m)]
    return QuadraticHamiltonian(h.detach(), g.detach(), torch.stack(rows, dim=1).detach())


def derivatives(value: ValueFunction, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """V, V_t, grad V and hess V of a differentiable function V(t, x) of flat states.

    Args:
        value: maps (t, x) to (B,), row by row; torch must be able to differentiate it.
        t: scalar time.
        x: states (B, d).

    Returns:
        V (B,), V_t (B,), grad V (B, d) and hess V (B, d, d), detached; zero where V does not depend on t or x.
    """
    with torch.enable_grad():
        t = torch.as_tensor(t).detach().clone().to(x.dtype).requires_grad_()
        x = x.detach().clone().requires_grad_()
        v = value(t, x)
        weights = torch.ones_like(v, requires_grad=True)
        # dV_i/dt for all i at once: differentiate sum_i w_i dV_i/dt in w
        v_t = torch.zeros_like(v)
        (slope,) = torch.autograd.grad((v * weights).sum(), t, create_graph=True, allow_unused=True)
        if slope is not None and slope.requires_grad:
            v_t = torch.autograd.grad(slope, weights, retain_graph=True)[0]
        (p,) = torch.autograd.grad(v.sum(), x, create_graph=True, allow_unused=True)
        p = torch.zeros_like(x) if p is None else p
        rows = []
        for i in range(x.shape[1]):
            row = torch.autograd.grad(p[:, i].sum(), x, retain_graph=True, allow_unused=True)[0] if p.grad_fn else None
            rows.append(torch.zeros_like(x) if row is None else row)
    return v.detach(), v_t.detach(), p.detach(), torch.stack(rows, dim=1).detach()


def residual(
    problem: ControlProblem,
    value: ValueFunction,
    t: Tensor,
    x: Tensor,
    temperature: float = 0.0,
    control_dim: int | None = None,
    context: Any = None,
) -> Tensor:
    r"""$V_t - \rho V + \min^\tau_u H$ at (t, x), (B,); zero where V solves the equation.

    Args:
        problem: the problem; flat states.
        value: V(t, x), twice differentiable in x and once in t.
        t: scalar time.
        x: states (B, d).
        temperature: tau; 0 = the deterministic equation.
        control_dim: m; default d.
        context: xi.

    Raises:
        ValueError: where S is not positive definite.
    """
    v, v_t, p, y = derivatives(value, t, x)
    probe = problem.probe(t, x, context)
    h = in_control(problem, t, x, p, y, control_dim, context, probe)
    return v_t - problem.discount * v + h.soft_minimum(temperature)


def quadrature(
    problem: ControlProblem,
    t: Tensor,
    x: Tensor,
    gradient: Tensor,
    hessian: Tensor | None,
    temperature: float,
    actions: Tensor,
    weights: Tensor,
    context: Any = None,
) -> tuple[Tensor, Tensor]:
    r"""The soft minimum and the mean of the Gibbs policy by numerical integration over actions.

    Nothing about the shape of H is used: this is what the closed forms are checked against.

    Args:
        problem: the problem; flat states.
        t: scalar time.
        x: states (B, d).
        gradient: p, (B, d).
        hessian: Y, (B, d, d), or ``None``.
        temperature: tau > 0.
        actions: quadrature nodes (A, m).
        weights: their weights (A,), positive, e.g. of `finite_difference.trapezoid`.
        context: xi.

    Returns:
        $-\tau \log \sum_a w_a e^{-H(a)/\tau}$, (B,), and the mean (B, m).
    """
    probe = problem.probe(t, x, context)
    energy = torch.stack(
        [hamiltonian(problem, t, x, a.expand(x.shape[0], -1), gradient, hessian, context, probe) for a in actions],
        dim=1,
    )
    logits = weights.log() - energy / temperature
    return -temperature * torch.logsumexp(logits, dim=1), torch.softmax(logits, dim=1) @ actions
