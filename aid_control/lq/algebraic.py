r"""Stationary problems: the algebraic Riccati equation, discounted or ergodic, with control-dependent noise.

$$
0 = -\rho P + A'P + PA + \sum_j C_j'PC_j + Q - L'S^{-1}L, \qquad S > 0,
$$

with S, L and the linear and constant parts as in `riccati` at $\dot p = \dot k = 0$.  For $\rho = 0$ the constant
does not exist; what the equation for k then gives is the *average cost* per unit time, and V is known up to a
constant ($k = 0$ here).

Without state- and control-dependent noise it is a continuous algebraic Riccati equation of
$A - \tfrac\rho2 I$, solved by scipy.  Otherwise: the Riccati *differential* equation is run over doubling
horizons until its first gain is mean-square stabilising, and Newton's method (Kleinman: evaluate a gain by one
linear solve, take the minimiser) polishes it; it converges quadratically and monotonically from any stabilising
gain (Damm & Hinrichsen 2001).  A gain is stabilising if the operator
$P \mapsto A_K'P + PA_K + \sum_j C_{K,j}'PC_{K,j} - \rho P$ has its spectrum in the left half-plane.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.linalg import solve_continuous_are
from torch import Tensor

from .evaluate import closed_loop, law_at, spread_rate
from .problem import LQProblem
from .quadratic import AffineGaussian, QuadraticValue
from .riccati import (
    Arrays,
    LQSolution,
    check_temperature,
    drift_terms,
    numpy_at,
    optimal_law,
    riccati,
    shift_rate,
    stage_terms,
)

__all__ = ["algebraic", "evaluate_stationary", "exploration_cost", "mean_square_abscissa"]


def _operator(loop: Arrays, rho: float) -> np.ndarray:
    """The matrix of P -> A'P + PA + sum C'PC - rho P on vec(P), rows stacked."""
    a, eye = loop["A"][0], np.eye(loop["A"].shape[-1])
    out = np.kron(a.T, eye) + np.kron(eye, a.T) - rho * np.kron(eye, eye)
    return out + sum(np.kron(c.T, c.T) for c in loop["C"][0])


def _constant(problem: LQProblem) -> Arrays:
    if problem.time_varying:
        raise ValueError("coefficients vary in time; expected constant ones")
    return numpy_at(problem, 0.0)


def _one(c: Arrays, i: int) -> Arrays:
    return {k: v[i : i + 1] for k, v in c.items()}


def mean_square_abscissa(problem: LQProblem, gain: Tensor) -> Tensor:
    """The largest real part of the closed loop's second-moment operator, per unit of time; negative = stable.

    Args:
        problem: with constant coefficients.
        gain: K (m, d) or (S, m, d).

    Returns:
        One number a problem, (S,).

    Raises:
        ValueError: for coefficients that vary in time.
    """
    c = _constant(problem)
    groups = problem.batch or 1
    k = np.broadcast_to(gain.numpy(), (groups, problem.control_dim, problem.state_dim))
    offset = np.zeros((1, problem.control_dim))
    loops = [closed_loop(_one(c, i), k[i : i + 1], offset) for i in range(groups)]
    return torch.tensor([np.linalg.eigvals(_operator(loop, problem.discount)).real.max() for loop in loops])


def _evaluate_gain(c: Arrays, gain: np.ndarray, rho: float) -> np.ndarray:
    """P (1, d, d) of a linear feedback."""
    loop = closed_loop(c, gain, np.zeros((1, gain.shape[1])))
    d = gain.shape[-1]
    big = np.linalg.solve(_operator(loop, rho), -loop["Q"].reshape(-1)).reshape(1, d, d)
    return (big + big.mT) / 2


def _stabilising(problem: LQProblem, c: Arrays, which: int) -> np.ndarray:
    """A stabilising gain of one problem, from the finite-horizon equation."""
    rho, d = problem.discount, problem.state_dim
    trouble = "no finite horizon gave one"
    for weight in (None, np.eye(d), 10 * np.eye(d)):
        single = {k: torch.from_numpy(v[0].copy()) for k, v in c.items()}
        if weight is not None:
            single["G"] = torch.from_numpy(weight)
        single["g"] = torch.zeros_like(single["g"])
        for horizon in (1.0, 4.0, 16.0, 64.0, 256.0):
            finite = LQProblem(**single, discount=rho, horizon=horizon)
            try:
                gain = riccati(finite, rtol=1e-6).policy.law(torch.zeros(()))[0].numpy()[None]
            except ValueError as error:
                trouble = str(error)
                break
            loop = closed_loop(c, gain, np.zeros((1, problem.control_dim)))
            if np.linalg.eigvals(_operator(loop, rho)).real.max() < 0:
                return gain
    who = "" if problem.batch is None else f" of problem {which} of the batch"
    raise ValueError(f"no mean-square stabilising gain{who} was found ({trouble}); expected a stabilisable problem")


def _newton(problem: LQProblem, c: Arrays, which: int) -> np.ndarray:
    """P (1, d, d)."""
    rho = problem.discount
    if not problem.used & {"C", "D"}:
        a = c["A"][0] - 0.5 * rho * np.eye(problem.state_dim)
        try:
            big = solve_continuous_are(a, c["B"][0], c["Q"][0], c["R"][0], s=c["N"][0])[None]
        except (np.linalg.LinAlgError, ValueError) as error:
            raise ValueError(f"no stabilising solution: {error}; expected a stabilisable, detectable problem") from None
        gain = -np.linalg.solve(*stage_terms(c, big, np.zeros_like(c["q"]))[:2])
    else:
        gain = _stabilising(problem, c, which)
        big = np.full_like(c["Q"], np.inf)
    for _ in range(60):
        before, big = big, _evaluate_gain(c, gain, rho)
        s, cross, _ = stage_terms(c, big, np.zeros_like(c["q"]))
        if np.linalg.eigvalsh(s)[0, 0] <= 0:
            raise ValueError(
                f"infeasible: S = R + sum D'PD, shape {s.shape[1:]}, has the eigenvalue "
                f"{np.linalg.eigvalsh(s)[0, 0]:.3g}; expected S > 0"
            )
        gain = -np.linalg.solve(s, cross)
        if np.abs(big - before).max() <= 1e-14 * max(1.0, np.abs(big).max()):
            break
    return big


def algebraic(problem: LQProblem, temperature: float = 0.0) -> LQSolution:
    """Solve a problem with constant coefficients over an infinite horizon (rho > 0, or ergodic with rho = 0).

    Args:
        problem: constant coefficients; its horizon, G and g are ignored.
        temperature: tau >= 0.

    Returns:
        Value and policy; for rho = 0 the value up to a constant, and the average cost.

    Raises:
        ValueError: for coefficients that vary in time, a negative temperature, or a problem that is not
            mean-square stabilisable or not feasible.
    """
    tau = check_temperature(temperature)
    rho, d, c = problem.discount, problem.state_dim, _constant(problem)
    parts = []
    for i in range(problem.batch or 1):
        one = _one(c, i)
        big = _newton(problem, one, i)
        s, cross, _ = stage_terms(one, big, np.zeros((1, d)))
        gain = -np.linalg.solve(s, cross)
        # p enters linearly: p = M^{-1} rhs with M = rho I - A_K'
        ps = np.einsum("sij,snj->sni", big, one["s"])
        base = one["r"] + np.einsum("snim,sni->sm", one["D"], ps)
        known = drift_terms(one, big, np.zeros((1, d)))[1] + np.einsum("smd,sm->sd", gain, base)
        loop = one["A"] + one["B"] @ gain
        small = np.linalg.solve(rho * np.eye(d) - loop.mT, known[..., None])[..., 0]
        linear = base + np.einsum("sdm,sd->sm", one["B"], small)
        level = drift_terms(one, big, small)[2] - 0.5 * np.einsum("sm,sm->s", linear, _solve(s, linear))
        parts.append((big, small, level - shift_rate(s, tau)))
    return _stationary(problem, tau, parts)


def _solve(s: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.linalg.solve(s, v[..., None])[..., 0]


def _value(problem: LQProblem, parts: Sequence[tuple[np.ndarray, ...]]) -> tuple[QuadraticValue, Tensor | None]:
    big, small, level = (torch.from_numpy(np.concatenate(a)) for a in zip(*parts, strict=True))
    ergodic = problem.discount == 0
    constant = torch.zeros_like(level) if ergodic else level / problem.discount
    value = QuadraticValue(lambda t: (big, small, constant), problem.batch is not None)
    average = level if problem.batch is not None else level[0]
    return value, average if ergodic else None


def _stationary(problem: LQProblem, tau: float, parts: Sequence[tuple[np.ndarray, ...]]) -> LQSolution:
    value, average = _value(problem, parts)
    law = optimal_law(problem, value, tau, 0.0)
    return LQSolution(problem, tau, value, AffineGaussian(lambda t: law), average)


def evaluate_stationary(
    problem: LQProblem, policy: AffineGaussian, temperature: float = 0.0
) -> tuple[QuadraticValue, Tensor | None]:
    """Value of a stationary policy over an infinite horizon, and its average cost if rho = 0.

    Args:
        problem: constant coefficients.
        policy: a stationary affine Gaussian policy.
        temperature: tau of the entropy in the cost.

    Returns:
        The value (up to a constant if ergodic) and the average cost (S,) or ``None``.

    Raises:
        ValueError: if the policy is not mean-square stabilising: its cost is infinite or not defined.
    """
    tau = check_temperature(temperature)
    rho, d, c = problem.discount, problem.state_dim, _constant(problem)
    groups = problem.batch or 1
    gains, offsets, sigmas = law_at(policy, 0.0, groups, problem.control_dim)
    parts = []
    for i in range(groups):
        one = _one(c, i)
        loop = closed_loop(one, gains[i : i + 1], offsets[i : i + 1])
        operator = _operator(loop, rho)
        worst = np.linalg.eigvals(operator).real.max()
        if worst >= 0:
            raise ValueError(
                f"policy has gain of shape {gains.shape[1:]} and second moments that grow at rate {worst:.3g}; "
                "expected a mean-square stabilising one"
            )
        big = np.linalg.solve(operator, -loop["Q"].reshape(-1)).reshape(1, d, d)
        known = drift_terms(loop, big, np.zeros((1, d)))[1]
        small = np.linalg.solve(rho * np.eye(d) - loop["A"].mT, known[..., None])[..., 0]
        level = drift_terms(loop, big, small)[2] + loop["constant"]
        level = level + spread_rate(stage_terms(one, big, small)[0], sigmas[i : i + 1], tau)
        parts.append((big, small, level))
    return _value(problem, parts)


def exploration_cost(problem: LQProblem, temperature: float) -> float:
    """tau m / 2 per unit time, discounted over the horizon: the price of exploring, entropy left out.

    Source: Wang, Zariphopoulou & Zhou 2020, theorem 8 (tau / (2 rho) for m = 1 and an infinite horizon).

    Args:
        problem: gives m, rho and T; infinite without a discount over an infinite horizon.
        temperature: tau >= 0.
    """
    rate, rho, horizon = 0.5 * check_temperature(temperature) * problem.control_dim, problem.discount, problem.horizon
    if math.isinf(horizon):
        return rate / rho if rho else math.inf
    return rate * (-math.expm1(-rho * horizon) / rho if rho else horizon)
