r"""The generalised Riccati equation on a finite horizon, and the exploratory optimum at any temperature.

With $S = R + \sum_j D_j'PD_j$, $L = B'P + N' + \sum_j D_j'PC_j$,
$\ell = B'p + r + \sum_j D_j'Ps_j$ (sums over the columns of the noise), putting
$V = \tfrac12 x'Px + p'x + k$ into the exploratory HJB equation and comparing powers of x gives

$$
\begin{aligned}
-\dot P &= -\rho P + A'P + PA + \sum_j C_j'PC_j + Q - L'S^{-1}L, & P(T) &= G, \\
-\dot p &= -\rho p + A'p + Pb + \sum_j C_j'Ps_j + q - L'S^{-1}\ell, & p(T) &= g, \\
-\dot k &= -\rho k + p'b + \tfrac12\sum_j s_j'Ps_j - \tfrac12 \ell'S^{-1}\ell
- \tfrac\tau2 \log\frac{(2\pi\tau)^m}{\det S}, & k(T) &= 0,
\end{aligned}
$$

and the policy $N(-S^{-1}(Lx + \ell),\, \tau S^{-1})$.  The temperature enters k alone: the recovery theorem.  At
$\tau = 0$ it is the equation of Wonham (1968) and, for indefinite R, of Chen, Li & Zhou (1998).  The problem is
feasible on $[t, T]$ while S stays positive definite (R itself may be indefinite) and P finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .dense import DenseSolution, solve_backward
from .problem import LQProblem, infinite
from .quadratic import AffineGaussian, QuadraticValue

__all__ = ["LQSolution", "check_temperature", "optimal_law", "riccati", "shift_rate", "stage_terms"]

Arrays = dict[str, np.ndarray]
_ESCAPE = 1e12


@dataclass(frozen=True)
class LQSolution:
    """An optimum in closed form.

    Attributes:
        problem: what was solved.
        temperature: tau; 0 = the deterministic problem.
        value: V^tau.
        policy: the optimal Gaussian policy (deterministic at tau = 0).
        average: the average cost per unit time of an ergodic problem (S,), otherwise ``None``.
    """

    problem: LQProblem
    temperature: float
    value: QuadraticValue
    policy: AffineGaussian
    average: Tensor | None = None


def check_temperature(temperature: float) -> float:
    """Refuse what is no temperature.

    Args:
        temperature: tau.

    Returns:
        tau.

    Raises:
        ValueError: for a negative or not finite tau.
    """
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature} (a number); expected tau >= 0")
    return float(temperature)


def numpy_at(problem: LQProblem, t: float) -> Arrays:
    """All coefficients at t as arrays with a leading S."""
    return {k: v.numpy() for k, v in problem.coefficients(t).items()}


def arrays_of(problem: LQProblem) -> Callable[[float], Arrays]:
    """`numpy_at` as a function of time, made once where nothing moves."""
    if problem.time_varying:
        return lambda t: numpy_at(problem, t)
    fixed = numpy_at(problem, 0.0)
    return lambda t: fixed


def stage_terms(c: Arrays, big: np.ndarray, small: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices S and L and the vector l of the module's equations, at one time, for a batch of S problems.

    Args:
        c: coefficients with a leading S, as `LQProblem.coefficients` but arrays.
        big: P (S, d, d).
        small: p (S, d).

    Returns:
        (S, m, m), (S, m, d) and (S, m).
    """
    d_p = np.einsum("snim,sij->snmj", c["D"], big)  # D_j' P
    s = c["R"] + np.einsum("snmi,snik->smk", d_p, c["D"])
    cross = c["B"].mT @ big + c["N"].mT + np.einsum("snmi,snij->smj", d_p, c["C"])
    linear = np.einsum("sim,si->sm", c["B"], small) + c["r"] + np.einsum("snmi,sni->sm", d_p, c["s"])
    return s, cross, linear


def shift_rate(s: np.ndarray, temperature: float) -> np.ndarray:
    r"""What a unit of time of exploration is worth: (S, m, m), tau -> (S,).

    It is $\tfrac\tau2 \log\big((2\pi\tau)^m / \det S\big)$.
    """
    if temperature == 0:
        return np.zeros(s.shape[0])
    m = s.shape[-1]
    return 0.5 * temperature * (m * math.log(2 * math.pi * temperature) - np.linalg.slogdet(s)[1])


def drift_terms(c: Arrays, big: np.ndarray, small: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What P, p, k receive from the dynamics and the cost at u = 0, without the discount."""
    pa = big @ c["A"]
    square = pa + pa.mT + np.einsum("snki,skl,snlj->sij", c["C"], big, c["C"]) + c["Q"]
    ps = np.einsum("sij,snj->sni", big, c["s"])
    line = (
        np.einsum("sji,sj->si", c["A"], small)
        + np.einsum("sij,sj->si", big, c["b"])
        + np.einsum("snji,snj->si", c["C"], ps)
        + c["q"]
    )
    constant = (small * c["b"]).sum(-1) + 0.5 * (c["s"] * ps).sum((-1, -2))
    return square, line, constant


def pack(big: np.ndarray, small: np.ndarray, constant: np.ndarray) -> np.ndarray:
    """P, p, k of every problem in one vector."""
    n = big.shape[0]
    return np.concatenate([big.reshape(n, -1), small, constant[:, None]], axis=1).ravel()


def unpack(y: np.ndarray, groups: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The inverse of `pack`, with P made symmetric."""
    rows = y.reshape(groups, d * d + d + 1)
    big = rows[:, : d * d].reshape(groups, d, d)
    return (big + big.mT) / 2, rows[:, d * d : -1], rows[:, -1]


def optimal_law(
    problem: LQProblem, value: QuadraticValue, temperature: float, t: Tensor | float
) -> tuple[Tensor, Tensor, Tensor]:
    """The optimal policy at one time, from P and p.

    Args:
        problem: gives the coefficients.
        value: gives P and p.
        temperature: tau.
        t: scalar time.

    Returns:
        K (m, d), kappa (m,) and Sigma (m, m), or the scalar 0 at tau = 0; with a leading S for a batch of problems.
    """
    big, small, _ = value._terms(t)
    s, cross, linear = stage_terms(numpy_at(problem, float(t)), big.detach().numpy(), small.detach().numpy())
    gain, offset = -np.linalg.solve(s, cross), -np.linalg.solve(s, linear[..., None])[..., 0]
    law = [torch.from_numpy(a) for a in (gain, offset, temperature * np.linalg.inv(s))]
    if not value.batched:
        law = [a[0] for a in law]
    return law[0], law[1], law[2] if temperature else torch.zeros((), dtype=torch.float64)


def riccati(problem: LQProblem, temperature: float = 0.0, rtol: float = 1e-12) -> LQSolution:
    """Solve a finite-horizon problem, or every problem of a batch.

    Args:
        problem: with a finite horizon.
        temperature: tau.
        rtol: relative tolerance of the ODE solver.

    Raises:
        ValueError: for an infinite horizon, a negative temperature, or an infeasible problem; the message
            names the first time, going back from T, at which S(t) > 0 fails or P escapes, and the problem.
    """
    tau = check_temperature(temperature)
    if infinite(problem):
        raise ValueError("horizon is infinite; expected a finite one (see lq.algebraic for stationary problems)")
    groups, d = problem.batch or 1, problem.state_dim
    at = arrays_of(problem)

    def rhs(t: float, y: np.ndarray) -> np.ndarray:
        c, (big, small, constant) = at(t), unpack(y, groups, d)
        s, cross, linear = stage_terms(c, big, small)
        square, line, level = drift_terms(c, big, small)
        solved = np.linalg.solve(s, np.concatenate([cross, linear[..., None]], axis=-1))
        square = square - cross.mT @ solved[..., :d]
        line = line - np.einsum("smi,sm->si", cross, solved[..., d])
        level = level - 0.5 * (linear * solved[..., d]).sum(-1) - shift_rate(s, tau)
        rho = problem.discount
        return -pack(square - rho * big, line - rho * small, level - rho * constant)

    weights = at(problem.horizon)
    unit = max(float(np.abs(weights[k]).max()) for k in "QRG") or 1.0  # of the cost
    escape = _ESCAPE * unit

    def margins(t: float, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Per problem: the smallest eigenvalue of S, and how far |P| is from what counts as infinite."""
        big, small, _ = unpack(y, groups, d)
        s = stage_terms(at(t), big, small)[0]
        return np.linalg.eigvalsh((s + s.mT) / 2)[:, 0], 1 - np.abs(big).max((1, 2)) / escape

    c = at(problem.horizon)
    end = pack(c["G"], c["g"], np.zeros(groups))
    at_end = margins(problem.horizon, end)
    if min(m.min() for m in at_end) <= 0:
        raise ValueError(_infeasible(problem, problem.horizon, *at_end))

    def stop(t: float, y: np.ndarray) -> float:
        return float(min(m.min() for m in margins(t, y)))

    with np.errstate(all="ignore"):  # near an escape; what happened is said below
        dense, failed = solve_backward(rhs, end, problem.horizon, rtol, stop, pieces=48, unit=unit)
    if failed is not None:
        raise ValueError(_infeasible(problem, failed, *margins(failed, dense(failed).numpy())))
    return finite_solution(problem, dense, tau)


def finite_solution(problem: LQProblem, dense: DenseSolution, temperature: float) -> LQSolution:
    """Value and policy from the Riccati equation's solution."""
    value = QuadraticValue.from_dense(dense, problem.batch or 1, problem.state_dim, problem.batch is not None)
    policy = AffineGaussian(lambda t: optimal_law(problem, value, temperature, t))
    return LQSolution(problem, temperature, value, policy)


def _infeasible(problem: LQProblem, time: float, convex: np.ndarray, room: np.ndarray) -> str:
    which = int(np.minimum(convex, room).argmin())
    who = "" if problem.batch is None else f" in problem {which} of the batch"
    shape = (problem.control_dim, problem.control_dim)
    if room[which] < 0.5:
        what = "P escapes to infinity"
    else:
        what = f"S(t) = R + sum D'PD, shape {shape}, stops being positive definite"
    return (
        f"infeasible{who}: going back from T = {problem.horizon:g}, the first failure is at t = {time:.6g}, where "
        f"{what}; expected S(t) > 0 and finite P on [0, T]"
    )
