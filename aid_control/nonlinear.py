r"""Two small problems that are not linear-quadratic, to be solved on a grid or learned.

**Double well**, one dimension: the frozen drift falls into the nearer of two wells of $U = \kappa (x^2-1)^2$,

$$
dX = \big(-U'(X) + u\big) dt + \sigma\, dW , \quad U' = 4 \kappa x (x^2 - 1), \qquad
J = E\Big[\tfrac R2 \int_0^T u^2 dt + \nu (X_T^2 - 1)^2\Big] .
$$

As noise and control act on the same coordinate, $V = -\lambda \log \psi$ with $\lambda = \sigma^2 R$ makes
the quadratic terms of the HJB equation cancel (Hopf 1950, Cole 1951; Kappen 2005), and
$\psi = e^{U/\sigma^2} \varphi$ makes what is left self-adjoint: a Schroedinger equation in imaginary time,

$$
\varphi_t + \tfrac{\sigma^2}2 \varphi_{xx} - W \varphi = 0, \quad
W = \frac{U'^2}{2\sigma^2} - \frac{U''}2, \qquad
\varphi(T) = e^{-U/\sigma^2 - \Psi/\lambda} .
$$

`DoubleWell` solves it by sinc collocation and the matrix exponential: $\varphi$ is entire and decays like
$e^{-U/\sigma^2}$, so the error is at rounding level.

**Van der Pol**, two dimensions: the oscillator
$b(x) = (x_2,\ \mu(1 - x_1^2)\,x_2 - x_1)$, driven through a constant gain matrix B by m controls,

$$
dX = (b(X) + B u)\, dt + \mathrm{diag}(\sigma_1, \sigma_2)\, dW , \qquad
J = E\Big[\int_0^T \tfrac q2 |X|^2 + \tfrac R2 |u|^2 dt + \tfrac g2 |X_T|^2\Big] .
$$
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .problem import ControlProblem

__all__ = ["DoubleWell", "VanDerPol"]

Array = NDArray[np.float64]


class DoubleWell(ControlProblem):
    """The double well, states (B, 1), control (B, 1).

    Args:
        kappa: depth of the wells, > 0.
        nu: weight of the terminal cost, >= 0.
        sigma: constant diffusion, >= 0.
        weight: R > 0.
        horizon: T > 0.

    Raises:
        ValueError: for a parameter outside its range.
    """

    def __init__(
        self, kappa: float = 0.25, nu: float = 0.5, sigma: float = 0.7, weight: float = 1.0, horizon: float = 1.0
    ) -> None:
        for name, number in (("kappa", kappa), ("weight", weight), ("horizon", horizon)):
            if not number > 0:
                raise ValueError(f"{name} is {number}; expected > 0")
        for name, number in (("nu", nu), ("sigma", sigma)):
            if not number >= 0:
                raise ValueError(f"{name} is {number}; expected >= 0")
        self.kappa, self.nu, self.sigma, self.weight, self.horizon = kappa, nu, sigma, weight, horizon
        self.noise = "diagonal" if sigma else "none"

    def drift(self, t: Tensor, x: Tensor, context: Any, probe: Any) -> Tensor:
        return -4 * self.kappa * x * (x.square() - 1)

    def control_weight(self, t: Tensor) -> float:
        return self.weight

    def terminal_cost(self, x: Tensor, target: Any) -> Tensor:
        return self.nu * (x.square() - 1).square().flatten(1).sum(1)

    def diffusion(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor | None:
        return torch.full_like(x, self.sigma) if self.sigma else None

    @cached_property
    def _modes(self) -> tuple[Array, Array, Array, Array]:
        """Nodes (n,), energies (n,), eigenvectors (n, n), and the terminal condition in eigenvectors (n,)."""
        if not self.sigma:
            raise ValueError("sigma is 0; expected > 0 for the exact solution by the Hopf-Cole transform")
        s2 = self.sigma**2
        # phi(T) is below 1e-20 of its top outside (-end, end)
        end = 1.1 * math.sqrt(1 + math.sqrt(46 * s2 / self.kappa))
        x = np.linspace(-end, end, 301)
        h, gap = x[1] - x[0], np.subtract.outer(np.arange(301), np.arange(301))
        with np.errstate(divide="ignore"):
            kinetic = np.where(gap == 0, math.pi**2 / 3, 2 * (-1.0) ** gap / gap.astype(float) ** 2)
        slope, bend = 4 * self.kappa * x * (x**2 - 1), 4 * self.kappa * (3 * x**2 - 1)
        energies, vectors = np.linalg.eigh(s2 / (2 * h**2) * kinetic + np.diag(slope**2 / (2 * s2) - bend / 2))
        terminal = np.exp(-(self.kappa / s2 + self.nu / (s2 * self.weight)) * (x**2 - 1) ** 2)
        return x, energies, vectors, vectors.T @ terminal

    def _phi(self, t: float, x: Array) -> tuple[Array, Array]:
        """phi and its derivative at (t, x), by the sinc series of the collocation."""
        nodes, energies, vectors, coefficients = self._modes
        phi = vectors @ (np.exp(-energies * (self.horizon - t)) * coefficients)
        h = nodes[1] - nodes[0]
        z = np.subtract.outer(x, nodes) / h
        near = np.abs(z) < 1e-5  # there the quotient cancels; the derivative of sinc is -pi^2 z/3
        safe = np.where(near, 1.0, z)
        derivative = np.where(near, -(math.pi**2) * z / 3, (np.cos(math.pi * safe) - np.sinc(safe)) / safe)
        return np.sinc(z) @ phi, derivative @ phi / h

    def value(self, t: Tensor | float, x: Tensor) -> Tensor:
        """V(t, x): (), (B, 1) -> (B,), for sigma > 0; accurate where exp(-V/lambda) is not small against rounding.

        Raises:
            ValueError: if sigma is 0.
        """
        phi, _ = self._phi(float(t), x[:, 0].detach().double().numpy())
        s2 = self.sigma**2
        return -s2 * self.weight * (torch.as_tensor(np.log(phi)) + self.kappa * (x[:, 0].square() - 1).square() / s2)

    def optimal_control(self, t: Tensor | float, x: Tensor) -> Tensor:
        """The optimal control -V_x(t, x) / R: (), (B, 1) -> (B, 1), for sigma > 0.

        Raises:
            ValueError: if sigma is 0.
        """
        phi, slope = self._phi(float(t), x[:, 0].detach().double().numpy())
        return self.sigma**2 * torch.as_tensor(slope / phi).unsqueeze(1) - self.drift(torch.zeros(()), x, None, None)


class VanDerPol(ControlProblem):
    """The controlled oscillator, states (B, 2), control (B, m).

    Args:
        mu: damping; its sign turns at |x_1| = 1.
        gain: B, two rows of m numbers; default: the force alone, m = 1.
        sigma: diffusion of the two coordinates, both 0 or both > 0.
        weight: R > 0.
        running: q >= 0.
        terminal: g >= 0.
        horizon: T > 0.

    Raises:
        ValueError: for a parameter outside its range.
    """

    def __init__(
        self,
        mu: float = 1.0,
        gain: Sequence[Sequence[float]] = ((0.0,), (1.0,)),
        sigma: tuple[float, float] = (0.5, 0.5),
        weight: float = 1.0,
        running: float = 1.0,
        terminal: float = 1.0,
        horizon: float = 1.0,
    ) -> None:
        for name, number in (("weight", weight), ("horizon", horizon)):
            if not number > 0:
                raise ValueError(f"{name} is {number}; expected > 0")
        for name, number in (("running", running), ("terminal", terminal)):
            if not number >= 0:
                raise ValueError(f"{name} is {number}; expected >= 0")
        if len(gain) != 2 or len(gain[0]) < 1 or len(gain[0]) != len(gain[1]):
            raise ValueError(f"gain is {gain}; expected two rows of m >= 1 numbers")
        if len(sigma) != 2 or not (min(sigma) > 0 or sigma[0] == sigma[1] == 0):
            raise ValueError(f"sigma is {sigma}; expected two numbers, both 0 or both > 0")
        self.mu, self.weight, self.running, self.terminal, self.horizon = mu, weight, running, terminal, horizon
        self.matrix = torch.tensor(gain, dtype=torch.float64)
        self.sigma = torch.tensor(sigma, dtype=torch.float64)
        self.noise = "diagonal" if sigma[0] else "none"

    @property
    def control_dim(self) -> int:
        """m."""
        return self.matrix.shape[1]

    def drift(self, t: Tensor, x: Tensor, context: Any, probe: Any) -> Tensor:
        x1, x2 = x.unbind(1)
        return torch.stack([x2, self.mu * (1 - x1.square()) * x2 - x1], dim=1)

    def push(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return u @ self.matrix.to(u).T

    def pull(self, t: Tensor, x: Tensor, p: Tensor) -> Tensor:
        return p @ self.matrix.to(p)

    def control_weight(self, t: Tensor) -> float:
        return self.weight

    def running_cost(self, t: Tensor, x: Tensor, context: Any) -> Tensor:
        return 0.5 * self.running * x.square().sum(1)

    def terminal_cost(self, x: Tensor, target: Any) -> Tensor:
        return 0.5 * self.terminal * x.square().sum(1)

    def diffusion(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor | None:
        return None if self.noise == "none" else self.sigma.to(x).expand_as(x)
