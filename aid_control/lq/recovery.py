r"""The recovery theorem as numbers: measurements on linear-quadratic problems.

Theorem.  For every temperature the optimal policy of the entropy-regularised problem is Gaussian, its mean is the
optimal deterministic control, and

$$
V^\tau(t, x) = V^0(t, x) - \frac\tau2 \int_t^T e^{-\rho(r-t)} \log\frac{(2\pi\tau)^m}{\det S(r)}\, dr .
$$

Two sides that share nothing but the problem are compared: the Riccati equation on one, and on the other exact
policy iteration through the generic HJB layer or quadrature of the shift (simulation and learning from data:
`experiments`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hjb import derivatives, in_control
from ..noise import generator
from .evaluate import evaluate, policy_iteration
from .problem import LQProblem
from .quadratic import AffineGaussian
from .riccati import LQSolution, numpy_at, riccati, stage_terms

__all__ = [
    "KINDS",
    "aid_form_gap",
    "mean_gap",
    "random_problem",
    "relative_residual",
    "shift_gap",
]

KINDS = ("standard", "unstable", "indefinite", "time_varying")


def random_problem(
    seed: int, dim: int, kind: str = "standard", groups: int | None = None, discount: float = 0.2
) -> LQProblem:
    """A feasible random problem with every term present: control- and state-dependent noise, cross and linear costs.

    Args:
        seed: of the coefficients.
        dim: d; the control has (d + 1) // 2 coordinates, the noise 2.
        kind: ``"standard"``; ``"unstable"`` (drift with growing modes); ``"indefinite"`` (R has a negative eigenvalue,
            and S = R + D'PD is positive); ``"time_varying"`` (A, Q and R move with time; a single problem only).
        groups: S problems at once, or ``None``.
        discount: rho.

    Raises:
        ValueError: for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
    gen, batch = generator(seed, dim, KINDS.index(kind), 7), () if groups is None else (groups,)
    m, n = (dim + 1) // 2, 2

    def normal(*shape: int) -> Tensor:
        return torch.randn(*batch, *shape, generator=gen, dtype=torch.float64)

    def weight(k: int) -> Tensor:
        root = normal(k, k)
        return 0.5 * root @ root.mT / k + 0.5 * torch.eye(k, dtype=torch.float64)

    a = 0.5 * normal(dim, dim) / math.sqrt(dim) - 0.5 * torch.eye(dim, dtype=torch.float64)
    if kind == "unstable":
        a = a + 1.5 * torch.eye(dim, dtype=torch.float64)
    control, noise = normal(dim, m) / math.sqrt(m), 0.3 * normal(n, dim, m) / math.sqrt(m)
    q, r, end = weight(dim), weight(m), weight(dim)
    if kind == "indefinite":
        noise = noise + torch.eye(dim, m, dtype=torch.float64)
        r = 0.2 * r
        vector = torch.linalg.eigh(r)[1][..., :, :1]
        r = r - (0.2 * r.diagonal(dim1=-2, dim2=-1).sum(-1) / m + 0.1)[..., None, None] * (vector @ vector.mT)
        end = end + torch.eye(dim, dtype=torch.float64)
        q = q + 2 * torch.eye(dim, dtype=torch.float64)
    terms: dict[str, Any] = {
        "C": 0.2 * normal(n, dim, dim) / math.sqrt(dim), "D": noise, "s": 0.3 * normal(n, dim),
        "N": 0.1 * normal(dim, m), "b": 0.3 * normal(dim), "q": 0.3 * normal(dim), "r": 0.3 * normal(m),
        "G": end, "g": 0.3 * normal(dim),
    }  # fmt: skip
    if kind == "time_varying":
        wave, swing = 0.4 * normal(dim, dim) / math.sqrt(dim), 0.5
        return LQProblem(
            lambda t: a + math.sin(5 * t) * wave, control, lambda t: q * (1 + swing * math.cos(4 * t)),
            lambda t: r * (1 + swing * math.sin(3 * t)), **terms, discount=discount,
        )  # fmt: skip
    return LQProblem(a, control, q, r, **terms, discount=discount)


def mean_gap(solution: LQSolution, times: Sequence[float] = (0.0, 0.3, 0.7, 0.95), steps: int = 10) -> float:
    """Relative distance between the Riccati control and the mean that exploratory policy iteration ends with.

    Policy iteration starts from the zero mean with unit covariance at the solution's temperature and uses the
    Hamiltonian's automatic derivatives, never a Riccati equation.  Compared are gain and offset.

    Args:
        solution: of a single problem at a positive temperature.
        times: where to compare.
        steps: policies.
    """
    problem, tau = solution.problem, solution.temperature
    zero = torch.zeros(problem.control_dim, problem.state_dim, dtype=torch.float64)
    start = AffineGaussian.constant(zero, covariance=torch.eye(problem.control_dim))
    for policy, _ in policy_iteration(problem, start, tau, steps, rtol=1e-11):
        last = policy
    worst = 0.0
    for t in times:
        at = torch.tensor(t, dtype=torch.float64)
        found, wanted = (torch.cat([p.law(at)[0], p.law(at)[1][:, None]], 1) for p in (last, solution.policy))
        worst = max(worst, float((found - wanted).norm() / wanted.norm()))
    return worst


def shift_gap(solution: LQSolution, t: float = 0.0, nodes: int = 200) -> float:
    """Relative error of V^tau - V^0 against Gauss-Legendre quadrature of the formula, along V^0's own S.

    Args:
        solution: of a single problem at a positive temperature.
        t: time.
        nodes: of the quadrature.
    """
    problem, tau = solution.problem, solution.temperature
    cold = riccati(problem)
    x = torch.ones(1, problem.state_dim, dtype=torch.float64)
    z, w = np.polynomial.legendre.leggauss(nodes)
    half = (problem.horizon - t) / 2
    total = 0.0
    for r, weight in zip(t + half * (1 + z), half * w, strict=True):
        big, small, _ = cold.value._terms(float(r))
        s = stage_terms(numpy_at(problem, float(r)), big.numpy(), small.numpy())[0][0]
        rate = problem.control_dim * math.log(2 * math.pi * tau) - np.linalg.slogdet(s)[1]
        total -= weight * math.exp(-problem.discount * (r - t)) * tau / 2 * rate
    found = float(solution.value(t, x) - cold.value(t, x))
    # the two values are what is subtracted: their size is what can be resolved
    scale = max(abs(total), 1e-3 * abs(float(cold.value(t, x))))
    return abs(found - total) / scale


def relative_residual(
    solution: LQSolution, times: Sequence[float] = (0.0, 0.21, 0.5, 0.83, 1.0), seed: int = 0
) -> float:
    """Largest HJB residual over random states, relative to the sizes of the equation's terms.

    Args:
        solution: of a single problem with a finite horizon.
        times: where to look, as shares of the horizon.
        seed: of the 16 states, standard normal.
    """
    problem = solution.problem
    x = torch.randn(16, problem.state_dim, generator=generator(seed, 3), dtype=torch.float64)
    worst = 0.0
    for share in times:
        t = torch.tensor(share * problem.horizon, dtype=torch.float64)
        v, v_t, p, y = derivatives(solution.value, t, x)
        h = in_control(problem, t, x, p, y, problem.control_dim).soft_minimum(solution.temperature)
        size = v_t.abs() + problem.discount * v.abs() + h.abs()
        worst = max(worst, float(((v_t - problem.discount * v + h).abs() / size).max()))
    return worst


def aid_form_gap(seed: int, dim: int, beta: float, lam: float) -> tuple[float, float, float]:
    r"""AID's form on a random noise-free problem with R = beta I and m = d.

    Args:
        seed: of the problem.
        dim: d.
        beta: weight of the control.
        lam: lambda.

    Returns:
        Three relative gaps: $V^{(\lambda)} = V - \lambda t$ against the exact value of
        $N(u^*, \tfrac{2\lambda}{\beta d} I)$ with terminal cost $\Psi - \lambda T$; that variance against the
        entropy-regularised optimum's at $\tau = 2\lambda/d$; and the advantage rate
        $q(a) = \tfrac\beta2 |a - u^*|^2 - \lambda$.
    """
    gen = generator(seed, dim, 11)
    a, root = (torch.randn(dim, dim, generator=gen, dtype=torch.float64) / math.sqrt(dim) for _ in range(2))
    end = root @ root.mT + 0.2 * torch.eye(dim, dtype=torch.float64)
    goal = torch.randn(dim, generator=gen, dtype=torch.float64)
    eye = torch.eye(dim, dtype=torch.float64)
    problem = LQProblem(a, eye, R=beta * eye, G=end, g=goal)
    best = riccati(problem)
    v = 2 * lam / (beta * dim)
    spread = AffineGaussian(lambda t: (*best.policy.law(t)[:2], torch.tensor(v, dtype=torch.float64)))
    running = evaluate(problem, spread)
    x = torch.randn(8, dim, generator=gen, dtype=torch.float64)
    gap = 0.0
    for at in (0.0, 0.4, 0.9):
        shifted = running(at, x) - lam * problem.horizon  # terminal Psi - lambda T moves the value by its constant
        wanted = best.value(at, x) - lam * at
        gap = max(gap, float(((shifted - wanted).abs() / (wanted.abs() + lam)).max()))
    warm = riccati(problem, 2 * lam / dim)
    variance = float((warm.policy.law(torch.zeros(()))[2] - v * eye).norm() / (v * dim**0.5))
    # q = V^(lambda)_t + grad V . (b + a) + beta/2 |a|^2, by automatic differentiation of V^(lambda)
    t = torch.tensor(0.3, dtype=torch.float64)
    _, v_t, p, y = derivatives(lambda s, z: best.value(s, z) - lam * s, t, x)
    action = torch.randn(8, dim, generator=gen, dtype=torch.float64)
    drift = problem.velocity(t, x, action, None, None)
    q = v_t + (p * drift).sum(1) + problem.stage_cost(t, x, action, None)
    wanted = 0.5 * beta * (action - best.policy.mean(t, x, None, None)).square().sum(1) - lam
    advantage = float(((q - wanted).abs() / (wanted.abs() + v_t.abs())).max())
    return gap, variance, advantage
