r"""The exact value of *any* affine Gaussian policy, and exact policy iteration.

Under $N(K x + \kappa, \Sigma)$ the closed loop is $A_K = A + BK$, $b_K = b + B\kappa$, $C_{K,j} = C_j + D_j K$,
$s_{K,j} = s_j + D_j\kappa$, the averaged noise has the further columns $D_j \Sigma^{1/2}$, and with the entropy
$\mathcal H(\Sigma) = \tfrac12 \log\det(2\pi e\Sigma)$

$$
\begin{aligned}
-\dot P &= -\rho P + A_K'P + PA_K + \sum_j C_{K,j}'PC_{K,j} + Q + NK + K'N' + K'RK, \\
-\dot p &= -\rho p + A_K'p + Pb_K + \sum_j C_{K,j}'Ps_{K,j} + q + N\kappa + K'(R\kappa + r), \\
-\dot k &= -\rho k + p'b_K + \tfrac12\sum_j s_{K,j}'Ps_{K,j} + \tfrac12\kappa'R\kappa + r'\kappa
+ \tfrac12 \mathrm{tr}(S\Sigma) - \tau\, \mathcal{H}(\Sigma),
\end{aligned}
$$

a *linear* equation: it shares nothing with the Riccati equation but the problem.  Improving by the Gibbs policy
of the resulting Hamiltonian (found by `hjb`, by automatic differentiation) and repeating is Newton's method
on the Riccati equation (Kleinman 1968; Tang & Zhou 2024 for the exploratory form); its fixed point is an
exploratory optimum that never saw a Riccati equation.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..hjb import in_control
from .dense import solve_backward
from .problem import LQProblem, infinite
from .quadratic import AffineGaussian, QuadraticValue
from .riccati import Arrays, arrays_of, check_temperature, drift_terms, pack, stage_terms, unpack

__all__ = ["closed_loop", "evaluate", "improve", "policy_iteration", "spread_rate"]


def closed_loop(c: Arrays, gain: np.ndarray, offset: np.ndarray) -> Arrays:
    """The uncontrolled problem that an affine feedback makes of a controlled one.

    Args:
        c: coefficients with a leading S, as `LQProblem.coefficients` but arrays.
        gain: K (S, m, d).
        offset: kappa (S, m).

    Returns:
        The coefficients with A, b, C, s, Q, q changed, and the running cost's ``constant``, (S,).
    """
    out = dict(c)
    out["A"] = c["A"] + c["B"] @ gain
    out["b"] = c["b"] + np.einsum("sdm,sm->sd", c["B"], offset)
    out["C"] = c["C"] + np.einsum("sndm,smk->sndk", c["D"], gain)
    out["s"] = c["s"] + np.einsum("sndm,sm->snd", c["D"], offset)
    cross = c["N"] @ gain
    weighted = np.einsum("smk,sk->sm", c["R"], offset)
    out["Q"] = c["Q"] + cross + cross.mT + gain.mT @ c["R"] @ gain
    out["q"] = c["q"] + np.einsum("sdm,sm->sd", c["N"], offset) + np.einsum("smd,sm->sd", gain, weighted + c["r"])
    out["constant"] = 0.5 * (offset * weighted).sum(-1) + (c["r"] * offset).sum(-1)
    return out


def spread_rate(s: np.ndarray, sigma: np.ndarray, temperature: float) -> np.ndarray:
    r"""What the spread costs a unit of time: $\tfrac12 \mathrm{tr}(S\Sigma) - \tau \mathcal H(\Sigma)$.

    (S, m, m), (S, m, m), tau -> (S,), for the S of the Hamiltonian and the covariance of the policy.
    """
    cost = 0.5 * np.einsum("sij,sji->s", s, sigma)
    if temperature == 0:
        return cost
    m = sigma.shape[-1]
    entropy = 0.5 * (m * np.log(2 * np.pi * np.e) + np.linalg.slogdet(sigma)[1])
    return cost - temperature * entropy


def law_at(policy: AffineGaussian, t: float, groups: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K (S, m, d), kappa (S, m), Sigma (S, m, m) at a time."""
    gain, offset, sigma = (a.detach().to(torch.float64) for a in policy.law(torch.tensor(t, dtype=torch.float64)))
    sigma = sigma * torch.eye(m, dtype=torch.float64) if sigma.dim() == 0 else sigma
    return (
        gain.expand(groups, *gain.shape[-2:]).numpy(),
        offset.expand(groups, m).numpy(),
        sigma.expand(groups, m, m).numpy(),
    )


def check_policy(problem: LQProblem, policy: AffineGaussian, temperature: float) -> None:
    """Refuse a policy of other dimensions, or an entropy without a spread.

    Raises:
        ValueError: naming gain, offset or covariance, its shape and what was expected.
    """
    m, d, groups = problem.control_dim, problem.state_dim, problem.batch or 1
    law = policy.law(torch.tensor(problem.horizon if not infinite(problem) else 0.0, dtype=torch.float64))
    wanted = (("gain", (m, d)), ("offset", (m,)), ("covariance", (m, m)))
    for (name, shape), value in zip(wanted, law, strict=True):
        have = tuple(value.shape)
        if name == "covariance" and have == ():
            continue
        if have not in (shape, (groups, *shape), (1, *shape)):
            raise ValueError(f"{name} of the policy has shape {have}; expected {shape} or {(groups, *shape)}")
    if temperature and not bool((law[2] != 0).any()):
        raise ValueError(
            f"temperature is {temperature} and the covariance zero; expected a spread: its entropy is infinite"
        )


def evaluate(
    problem: LQProblem, policy: AffineGaussian, temperature: float = 0.0, rtol: float = 1e-12
) -> QuadraticValue:
    """The cost-to-go of a policy in the averaged dynamics.

    Args:
        problem: with a finite horizon.
        policy: any affine Gaussian policy; a batch of S policies needs a batch of S problems.
        temperature: tau of the entropy in the cost; 0 leaves the entropy out but not the spread.
        rtol: relative tolerance of the ODE solver.

    Raises:
        ValueError: for an infinite horizon, a negative temperature, a policy of other dimensions or whose value escapes
            to infinity, or an entropy in the cost of a policy without spread.
    """
    tau = check_temperature(temperature)
    if infinite(problem):
        raise ValueError("horizon is infinite; expected a finite one")
    check_policy(problem, policy, tau)
    groups, d, m = problem.batch or 1, problem.state_dim, problem.control_dim
    at = arrays_of(problem)

    def rhs(t: float, y: np.ndarray) -> np.ndarray:
        c, (big, small, constant) = at(t), unpack(y, groups, d)
        gain, offset, sigma = law_at(policy, t, groups, m)
        loop = closed_loop(c, gain, offset)
        square, line, level = drift_terms(loop, big, small)
        level = level + loop["constant"] + spread_rate(stage_terms(c, big, small)[0], sigma, tau)
        rho = problem.discount
        return -pack(square - rho * big, line - rho * small, level - rho * constant)

    c = at(problem.horizon)
    dense, reached = solve_backward(rhs, pack(c["G"], c["g"], np.zeros(groups)), problem.horizon, rtol)
    if reached is not None:
        raise ValueError(f"the policy's value escapes at t = {reached:.6g}; expected a policy with finite cost")
    return QuadraticValue.from_dense(dense, groups, d, problem.batch is not None)


def improve(problem: LQProblem, value: QuadraticValue, temperature: float) -> AffineGaussian:
    """The Gibbs policy of the Hamiltonian of a value, from the generic HJB layer alone.

    Args:
        problem: a single problem.
        value: of the policy that is improved.
        temperature: tau >= 0; at 0 the policy is deterministic.

    Raises:
        ValueError: for a batch of problems or a negative temperature.
    """
    check_temperature(temperature)
    if problem.batch is not None:
        raise ValueError(f"problem is a batch of {problem.batch}; expected a single one")
    d, m = problem.state_dim, problem.control_dim

    def law(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # an affine function is known from its values at 0 and the unit vectors
        x = torch.cat([torch.zeros(1, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)])
        big, small, _ = (a.detach() for a in value.terms(t))
        h = in_control(problem, torch.as_tensor(t), x, x @ big + small, big.expand(d + 1, d, d), m)
        mean, sigma = h.gibbs(temperature)
        zero = torch.zeros((), dtype=torch.float64)
        return (mean[1:] - mean[0]).mT, mean[0], sigma[0] if temperature else zero

    return AffineGaussian(law)


def policy_iteration(
    problem: LQProblem, start: AffineGaussian, temperature: float = 0.0, steps: int = 8, rtol: float = 1e-12
) -> Iterator[tuple[AffineGaussian, QuadraticValue]]:
    """Yield (policy, its value), starting from ``start``, each policy the Gibbs policy of the value before.

    Args:
        problem: a single problem with a finite horizon.
        start: the first policy; at a positive temperature it needs a positive covariance.
        temperature: tau.
        steps: policies to yield.
        rtol: relative tolerance of the ODE solver.
    """
    check_temperature(temperature)
    policy = start
    for _ in range(steps):
        value = evaluate(problem, policy, temperature, rtol)
        yield policy, value
        policy = improve(problem, value, temperature)
