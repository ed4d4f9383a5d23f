r"""The affine control $u = K(t)x + \kappa(t)$, Chebyshev polynomials in time, by regression on the lean adjoint.

A round simulates paths of the present control and regresses the targets of adjoint matching on
$T_j(2t - 1) \otimes (x, 1)$.  With $\Phi = I + \Delta t\,A$ the adjoint's noise given $X_k$ is a martingale sum,

$$
e_k = \Phi' e_{k+1} + S_{k+1}\, s'\Delta B_k, \qquad
S_k = \Phi' P_k + \Delta t\, Q, \quad S_K = G, \quad e_K = 0, \qquad P_k = -B'^{-1} R\, K(t_k) ,
$$

where $P_k$ is the slope in $X_k$ of the expected $p_{k+1}$ once the control is a fixed point.  It has mean zero for
any K, so subtracting it moves nothing; at the fixed point the targets lose their noise altogether and a
few paths determine the control of the discretised problem to rounding.  That control is $O(\Delta t)$
away from the continuous one: two grids and Richardson's $2u_{\Delta t/2} - u_{\Delta t}$ leave $O(\Delta t^2)$.

The model (A, B, Q, G) is used, as it is by every loss here; the Riccati equation and the truth are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...improvement import adjoint_targets
from ...increments import Increments, time_grid
from ...lq.problem import LQProblem
from ...lq.quadratic import AffineGaussian
from ...noise import normal
from ...rollout import rollout
from .losses import end_cost

__all__ = ["ChebyshevAffine", "fit", "fit_extrapolated"]


@dataclass(frozen=True)
class ChebyshevAffine:
    """Coefficients of the control in time.

    Attributes:
        coefficients: (p, d + 1, m); the last row of the middle is kappa.
        horizon: T.
    """

    coefficients: Tensor
    horizon: float = 1.0

    @classmethod
    def through(cls, times: Tensor, values: list[Tensor]) -> ChebyshevAffine:
        """The polynomials of degree K - 1 through values at K times of [0, 1], well spread.

        Args:
            times: (K,).
            values: K of (d + 1, m).
        """
        degree = len(times) - 1
        empty = cls(torch.zeros(degree + 1, *values[0].shape, dtype=torch.float64))
        flat = torch.stack(values).flatten(1)
        return cls(torch.linalg.solve(empty.basis(times), flat).reshape(empty.coefficients.shape))

    def basis(self, times: Tensor) -> Tensor:
        """T_j at times: (K,) -> (K, p)."""
        degree = len(self.coefficients) - 1
        scaled = (2 * times.double() / self.horizon - 1).numpy()
        return torch.from_numpy(np.polynomial.chebyshev.chebvander(scaled, degree))

    def law(self, t: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """t () -> K (m, d), kappa (m,) and the covariance 0."""
        now = torch.tensordot(self.basis(torch.as_tensor(t).reshape(1))[0], self.coefficients, dims=1)
        return now[:-1].mT, now[-1], torch.zeros((), dtype=torch.float64)

    @property
    def policy(self) -> AffineGaussian:
        """As a policy of the package."""
        return AffineGaussian(self.law)


def _martingale(problem: LQProblem, control: ChebyshevAffine, noise: Increments) -> list[Tensor]:
    """e_k of every step, (B, d) each."""
    at = {name: problem.at(name, 0.0) for name in "ABQRGs"}
    steps = len(noise.grid) - 1
    slope, out = at["G"], []
    e = noise.dw.new_zeros(noise.dw.shape[1], problem.state_dim)
    for k in range(steps - 1, -1, -1):
        dt = noise.grid[k + 1] - noise.grid[k]
        move = torch.eye(problem.state_dim, dtype=torch.float64) + dt * at["A"]
        # rows: e' = e_{k+1}' Phi + dB' s S'
        e = (e @ move if k < steps - 1 else e) + noise.dw[k] @ at["s"] @ slope.mT
        out.append(e)
        p = -torch.linalg.solve(at["B"].mT, at["R"] @ control.law(noise.grid[k])[0])
        slope = move.mT @ p + dt * at["Q"]
    return out[::-1]


def fit(
    problem: LQProblem, x0: Tensor, steps: int, paths: int, rounds: int, degree: int, *key: int
) -> tuple[ChebyshevAffine, list[float]]:
    """Adjoint matching of an affine control on one grid, from the zero control.

    Args:
        problem: constant coefficients, B square and invertible, no C, D, N, r.
        x0: the start, (d,).
        steps: K.
        paths: a round, even.
        rounds: simulate and regress so often.
        degree: of the polynomials.
        key: integers of the noise.

    Returns:
        The control, and how far each round moved its coefficients (largest entry).
    """
    d, m = problem.state_dim, problem.control_dim
    grid = time_grid(problem.horizon, steps=steps)
    control = ChebyshevAffine(torch.zeros(degree + 1, d + 1, m, dtype=torch.float64), problem.horizon)
    basis, moves = control.basis(grid[:-1]), []
    for n in range(rounds):
        # spread starts: at a fixed x0 the first times would not tell K x0 from kappa
        x = x0 + normal((paths, d), *key, n, like=x0)
        noise = Increments.sample(grid, paths // 2, (problem.columns,), *key, n).antithetic()
        with torch.no_grad():
            path = rollout(problem, control.policy, x, grid, increments=noise)
        targets = torch.stack(adjoint_targets(problem, control.policy, end_cost(problem), path))
        weight = torch.linalg.solve(problem.at("R", 0.0), problem.at("B", 0.0).mT)
        targets = targets + torch.stack(_martingale(problem, control, noise)) @ weight.mT
        states = torch.stack(path.states[:-1])
        rows = torch.cat([states, torch.ones_like(states[..., :1])], dim=2)
        design = torch.einsum("kp,kbi->kbpi", basis, rows).reshape(-1, (degree + 1) * (d + 1))
        found = torch.linalg.lstsq(design, targets.reshape(-1, m)).solution.reshape(control.coefficients.shape)
        moves.append(float((found - control.coefficients).abs().max()))
        control = ChebyshevAffine(found, problem.horizon)
    return control, moves


def fit_extrapolated(
    problem: LQProblem, x0: Tensor, steps: int, paths: int, rounds: int, degree: int, *key: int
) -> tuple[ChebyshevAffine, ChebyshevAffine, list[float]]:
    """`fit` on K and 2 K steps and Richardson's extrapolation to no step.

    Args:
        problem: as in `fit`.
        x0: the start, (d,).
        steps: K.
        paths: a round, even.
        rounds: of either fit.
        degree: of the polynomials.
        key: integers of the noise.

    Returns:
        The extrapolated control, that of K steps, and the moves of the finer fit.
    """
    coarse, _ = fit(problem, x0, steps, paths, rounds, degree, *key, 0)
    fine, moves = fit(problem, x0, 2 * steps, paths, rounds, degree, *key, 1)
    both = ChebyshevAffine(2 * fine.coefficients - coarse.coefficients, problem.horizon)
    return both, coarse, moves
