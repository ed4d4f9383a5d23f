r"""q-learning (Jia & Zhou 2023): the value and the advantage *rate* together, on- and off-policy.

$$
q(t, x, a) = J_t + H(t, x, a, J_x, J_{xx}) - \rho J, \qquad
\int e^{-q/\tau} da = 1, \qquad \pi \propto e^{-q/\tau} .
$$

For any behaviour policy $e^{-\rho s}J(s, X_s) + \int_0^s e^{-\rho u}(c_u - q_u)\,du$ is a martingale (c without the
entropy), so with $\delta_i = J_{i+1} - J_i + (c_i - q_i - \rho J_i)\Delta t$

$$
\theta \mathrel{+}= a \sum \partial_\theta J\, \delta, \qquad
\psi \mathrel{+}= a \sum \partial_\psi q\, \delta .
$$

`GaussianAdvantage` is the normalised q of a Gaussian policy.  `least_squares_q` solves the same equations
in one go for a value linear in its weights and $q = g(t, x)\cdot e + \tfrac12 e'S(t)e$, $e = a - m(t, x)$
(compatible features): the policy's new mean is $m - S^{-1}g$.  The constant that normalises q is left to J,
whose own constant it shifts; the mean does not see it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..evaluation import temporal_differences
from ..evaluation.clstd import solve_linear
from ..features import LinearMean, LinearValue, monomials, time_powers
from ..linear import matvec, per_row
from ..policy import GaussianPolicy
from ..rollout import Trajectory

__all__ = ["GaussianAdvantage", "QSolution", "least_squares_q", "q_learning_loss"]


class GaussianAdvantage(nn.Module):
    r"""The q of a Gaussian policy, normalised for every mean m and precision S.

    $$
    q(t, x, a) = \tfrac12 (a - m)' S\, (a - m) + \frac\tau2 \log \frac{(2\pi\tau)^{d_a}}{\det S}
    $$

    with $d_a$ controls.

    Args:
        mean: m(t, x), any module.
        temperature: tau > 0.
        control_dim: the number of control coordinates.
        groups: number of independent precision matrices, or ``None`` for one.

    Raises:
        ValueError: unless tau > 0.
    """

    def __init__(self, mean: nn.Module, temperature: float, control_dim: int, groups: int | None = None) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; expected tau > 0")
        self.mean, self.temperature = mean, temperature
        shape = (control_dim, control_dim) if groups is None else (groups, control_dim, control_dim)
        self.factor = nn.Parameter(torch.zeros(shape, dtype=torch.float64))

    def cholesky(self) -> Tensor:
        """Lower triangular L with S = L L', (m, m) or (groups, m, m).

        It is the factor's lower part, with its diagonal through exp.
        """
        return self.factor.tril(-1) + torch.diag_embed(self.factor.diagonal(dim1=-2, dim2=-1).exp())

    def forward(self, t: Tensor, x: Tensor, action: Tensor) -> Tensor:
        """q(t, x, a): (), (B, d), (B, m) -> (B,)."""
        root = self.cholesky()
        scaled = matvec(root.mT, action - self.mean(t, x, None, None))
        logdet = 2 * self.factor.diagonal(dim1=-2, dim2=-1).sum(-1)
        m = action.shape[1]
        level = 0.5 * self.temperature * (m * math.log(2 * math.pi * self.temperature) - logdet)
        return 0.5 * scaled.square().sum(1) + (level if level.dim() == 0 else per_row(level, x, 0))

    def policy(self) -> GaussianPolicy:
        r"""The Gibbs policy $N(m, \tau S^{-1})$, which shares the weights."""
        return GaussianPolicy(self.mean, lambda t: self.temperature * torch.cholesky_inverse(self.cholesky()))


def q_learning_loss(
    values: list[Tensor],
    advantage: Callable[[Tensor, Tensor, Tensor], Tensor],
    trajectory: Trajectory,
    average: Tensor | float = 0.0,
) -> Tensor:
    """A scalar whose gradient is minus the joint CTD(0) direction of J and q, summed over steps, mean over paths.

    Args:
        values: J along the path (`value.Shifted.along`), K + 1 of (B,), differentiable.
        advantage: q(t, x, a), (B,).
        trajectory: made by any policy; its costs without the entropy.
        average: eta of an ergodic problem, a number or (B,).
    """
    q = torch.stack([advantage(t, trajectory.states[k], trajectory.actions[k]) for k, t, _ in trajectory.steps()])
    weights = trajectory.discounts().to(q)[:-1].unsqueeze(1) * trajectory.times.diff().to(q).unsqueeze(1)
    delta = (temporal_differences(values, trajectory, average) - weights * q).detach()
    return -((torch.stack(values[:-1]) + q) * delta).sum(0).mean()


class QSolution:
    """What `least_squares_q` found for every group, in the polynomials of `features.time_powers`.

    Attributes:
        value: weights of J, (groups, p).
        slope: of g, affine in x: (groups, m, n) with n = (time_degree + 1) (1 + d).
        curvature: of S(t), (groups, curvature_degree + 1, m, m).
    """

    def __init__(self, value: Tensor, slope: Tensor, curvature: Tensor) -> None:
        self.value, self.slope, self.curvature = value, slope, curvature

    def at(self, t: Tensor, mean: LinearMean) -> tuple[Tensor, Tensor]:
        """g and S at one time.

        Args:
            t: scalar time.
            mean: the mean that q was expanded around; gives horizon and degree.

        Returns:
            G (groups, m, 1 + d), with g(t, x) = G (1, x); and S(t), (groups, m, m).
        """
        time = time_powers(t, mean.horizon, mean.time_degree)
        slope = self.slope.reshape(*self.slope.shape[:-1], len(time), -1)
        powers = time_powers(t, mean.horizon, self.curvature.shape[1] - 1)
        return torch.einsum("smtj,t->smj", slope, time), torch.einsum("stij,t->sij", self.curvature, powers)


@torch.no_grad()
def least_squares_q(
    critic: LinearValue,
    mean: LinearMean,
    trajectory: Trajectory,
    curvature_degree: int = 0,
    ridge: float = 1e-9,
) -> QSolution:
    """Solve the joint orthogonality conditions of J and q for every group.

    Args:
        critic: J, linear in its weights; they are overwritten.
        mean: m, around which q is expanded (the behaviour may be another policy).
        trajectory: with a terminal cost; costs without the entropy.
        curvature_degree: degree of S(t) in time.
        ridge: relative ridge of the linear system.

    Returns:
        The weights of J and the coefficients of q.
    """
    groups, m = critic.groups, mean.weights.shape[-2]
    weights = trajectory.discounts().tolist()
    i, j = torch.triu_indices(m, m)
    half = torch.where(i == j, 0.5, 1.0).to(torch.float64)

    def basis(k: int, dt: float) -> tuple[Tensor, Tensor]:
        """phi (S, b, p) and Dt times the features of q (S, b, p')."""
        t, x = trajectory.times[k], trajectory.states[k]
        e = trajectory.actions[k] - mean(t, x)
        time = time_powers(t, mean.horizon, mean.time_degree)
        affine = (time[:, None] * monomials(x, 1)[:, None, :]).flatten(1)
        slope = (e[:, :, None] * affine[:, None, :]).flatten(1)
        powers = time_powers(t, mean.horizon, curvature_degree)
        curve = (powers[:, None] * (half * e[:, i] * e[:, j])[:, None, :]).flatten(1)
        q = dt * torch.cat([slope, curve], dim=1)
        phi = critic.features(t, x)
        return phi.reshape(groups, -1, phi.shape[1]), q.reshape(groups, -1, q.shape[1])

    matrix = vector = None
    steps = trajectory.times.diff().tolist()
    phi, q = basis(0, steps[0])
    for k in range(len(steps)):
        last = k == len(steps) - 1
        t, x = trajectory.times[k], trajectory.states[k]
        gain = weights[k] * (trajectory.costs[k] - critic.known(t, x))
        if last:
            assert trajectory.terminal is not None, "least squares q needs a terminal cost"
            gain = gain + weights[k + 1] * trajectory.terminal
            change = weights[k] * phi
        else:
            ahead, q_ahead = basis(k + 1, steps[k + 1])
            gain = gain + weights[k + 1] * critic.known(trajectory.times[k + 1], trajectory.states[k + 1])
            change = weights[k] * phi - weights[k + 1] * ahead
        test = torch.cat([phi, q], dim=2)
        row = torch.cat([change, weights[k] * q], dim=2)
        now, right = test.mT @ row, (test.mT @ gain.reshape(groups, -1, 1)).squeeze(-1)
        matrix, vector = (now, right) if matrix is None else (matrix + now, vector + right)
        if not last:
            phi, q = ahead, q_ahead
    assert matrix is not None and vector is not None
    solution = solve_linear(matrix, vector, ridge)
    p, s = phi.shape[2], m * mean.weights.shape[-1]
    critic.weights.copy_(solution[:, :p].reshape(critic.weights.shape))
    flat = solution[:, p + s :].reshape(groups, curvature_degree + 1, -1)
    curvature = flat.new_zeros(groups, curvature_degree + 1, m, m)
    curvature[..., i, j] = flat
    curvature[..., j, i] = flat
    return QSolution(solution[:, :p], solution[:, p : p + s].reshape(groups, m, -1), curvature)
