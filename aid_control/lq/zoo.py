r"""Named problems of the literature, written as `problem.LQProblem` (a minimisation everywhere).

A source that maximises a reward $-c$ is entered with the cost c.  Defaults are the published values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .problem import LQProblem

__all__ = [
    "aid_toy",
    "ergodic_jia_zhou",
    "gaussian_drift_guidance",
    "mean_variance",
    "ou_quadratic",
    "regret",
    "wang_zariphopoulou_zhou",
]


def wang_zariphopoulou_zhou(
    A: float = -1.0, B: float = 1.0, C: float = 0.3, D: float = 0.5,  # noqa: N803
    M: float = 2.0, N: float = 2.0, R: float = 0.5, P: float = 0.3, Q: float = 0.2,  # noqa: N803
    discount: float = 1.0,
) -> LQProblem:  # fmt: skip
    r"""The scalar stationary problem of Wang, Zariphopoulou & Zhou (JMLR 2020, section 4), infinite horizon.

    $dX = (A X + B u)\, dt + (C X + D u)\, dW$, reward $-(\tfrac M2 x^2 + Rxu + \tfrac N2u^2 + Px + Qu)$.  The
    paper leaves the coefficients general; these are an example.

    Args:
        A: drift.
        B: control in the drift.
        C: state in the noise.
        D: control in the noise.
        M: weight of x^2.
        N: weight of u^2.
        R: weight of x u.
        P: weight of x.
        Q: weight of u.
        discount: rho.
    """
    return LQProblem(A, B, Q=M, R=N, C=[[[C]]], D=[[[D]]], N=R, q=P, r=Q, discount=discount, horizon=math.inf)


def ergodic_jia_zhou() -> LQProblem:
    """Jia & Zhou (JMLR 2022b, section 5.2): A = -1, B = C = 0, D = 1, M = N = Q = 2, R = P = 1, average reward.

    At tau = 0.1: gain -0.3542487, offset -0.7084974, variance 0.03542487, average reward 0.6333742.
    """
    return wang_zariphopoulou_zhou(-1.0, 0.0, 0.0, 1.0, M=2.0, N=2.0, R=1.0, P=1.0, Q=2.0, discount=0.0)


def regret(horizon: float = 1.0) -> LQProblem:
    r"""Huang, Jia & Zhou (SICON 2025): $dX = (X + u)\, dt + (X + u)\, dW$, $x_0 = 1$.

    Cost $\tfrac12\int X^2 dt + \tfrac12X_T^2$: the control costs nothing (R = 0), $S = D'PD$ alone makes the
    problem well posed.  The optimal gain is $-(B + CD)/D^2 = -2$ at all times.

    Args:
        horizon: T.
    """
    return LQProblem(1.0, 1.0, Q=1.0, R=0.0, C=[[[1.0]]], D=[[[1.0]]], G=1.0, horizon=horizon)


def ou_quadratic(hard: bool = False, dim: int = 20) -> LQProblem:
    r"""Ornstein-Uhlenbeck with quadratic costs, of stochastic optimal control matching (Domingo-Enrich et al. 2024).

    $dX = (aX + u)\, dt + dW$, cost $\int_0^T \tfrac12|u|^2 + w|X|^2\, dt + g|X_T|^2$, $T = 1$, their
    noise scale $\lambda = 1$; easy: $a = w = 0.2$, $g = 0.1$; hard: $a = w = 1$, $g = 0.5$.

    Args:
        hard: the hard setting.
        dim: d.
    """
    a, w, g = (1.0, 1.0, 0.5) if hard else (0.2, 0.2, 0.1)
    eye = torch.eye(dim, dtype=torch.float64)
    return LQProblem(a * eye, eye, Q=2 * w * eye, R=eye, s=eye, G=2 * g * eye)


def aid_toy(
    a: float = 1.0, beta: float = 0.5, goal: float | Tensor = 1.0, dim: int = 1, horizon: float = 1.0
) -> LQProblem:
    r"""The AID toy of `toy` with a fixed goal c.

    $\dot x = -ax + u$, cost $\tfrac\beta2\int|u|^2 dt + \tfrac12|x_T - c|^2$; the constant $|c|^2/2$ is
    left out of the value.

    Args:
        a: decay rate of the frozen drift.
        beta: weight of the control.
        goal: c, a number or (d,).
        dim: d.
        horizon: T.
    """
    eye = torch.eye(dim, dtype=torch.float64)
    c = torch.as_tensor(goal, dtype=torch.float64).expand(dim)
    return LQProblem(-a * eye, eye, R=beta * eye, G=eye, g=-c, horizon=horizon)


def gaussian_drift_guidance(
    covariance: Tensor, target: Tensor, mean: Tensor | None = None, beta: float = 1.0,
    sigma_max: float = 10.0, sigma_min: float = 0.01,
) -> LQProblem:  # fmt: skip
    r"""Guidance of a diffusion model whose images are Gaussian, $N(\mu, C)$, in the clock $t = \sigma_{max} - \sigma$.

    The probability flow is affine: $b = (D - x)/\sigma$ with
    $D - x = -\sigma^2 (C + \sigma^2 I)^{-1}(x - \mu)$, so $b = -\sigma (C + \sigma^2 I)^{-1}(x - \mu)$
    with $\sigma = \sigma_{max} - t$, and the flow ends at $\sigma_{min}$.  Cost
    $\tfrac\beta2\int|u|^2 dt + \tfrac12|x_T - m|^2$ with the posterior mean m as target (a constant left out).

    Args:
        covariance: C, (d, d) symmetric positive semidefinite.
        target: m, (d,).
        mean: mu, (d,), default zero.
        beta: weight of the control.
        sigma_max: largest noise level.
        sigma_min: smallest; the horizon is sigma_max - sigma_min.
    """
    big = torch.as_tensor(covariance, dtype=torch.float64)
    d = big.shape[-1]
    mu = torch.zeros(d, dtype=torch.float64) if mean is None else torch.as_tensor(mean, dtype=torch.float64)
    eye = torch.eye(d, dtype=torch.float64)

    def pull(t: float) -> Tensor:
        sigma = sigma_max - t
        return -sigma * torch.linalg.inv(big + sigma**2 * eye)

    return LQProblem(
        pull, eye, R=beta * eye, b=lambda t: -pull(t) @ mu, G=eye, g=-torch.as_tensor(target, dtype=torch.float64),
        horizon=sigma_max - sigma_min,
    )  # fmt: skip


def mean_variance(mu: float = 0.3, sigma: float = 0.2, rate: float = 0.02, horizon: float = 1.0) -> LQProblem:
    r"""Wealth minus the multiplier, $y = x - w$, in the mean-variance problem (Zhou & Li 2000; Wang & Zhou 2020).

    $dy = \sigma u\, (k\, dt + dW)$ with $k = (\mu - r)/\sigma$, terminal cost $y^2$; discounted wealth, u = discounted
    money in the stock.  R = 0: well posed through $S = D'PD$.  $V^\tau - (w - z)^2$ is Wang and Zhou's value.

    Args:
        mu: the stock's drift.
        sigma: its volatility.
        rate: the interest rate.
        horizon: T.
    """
    return LQProblem(0.0, mu - rate, R=0.0, D=[[[sigma]]], G=2.0, horizon=horizon)
