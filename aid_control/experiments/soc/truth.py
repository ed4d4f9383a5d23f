r"""Exact controls and values, at any time and independent of every grid a solver uses.

*Quadratic costs*, $b = ax$, $f = w|x|^2$, $g = q|x|^2$: $V = F|x|^2 + d\int F$ with, in the time to go
$\tau = 1 - t$, $F' = 2aF - 2F^2 + w$; its fixed points are $r_\pm = \tfrac12(a \pm \sqrt{a^2 + 2w})$ and with
$\delta = r_+ - r_-$, $D(\tau) = (q - r_-) - (q - r_+) e^{-2\delta\tau}$

$$
F = \frac{r_+ (q - r_-) - r_- (q - r_+) e^{-2\delta\tau}}{D(\tau)}, \qquad
\int_0^\tau F = r_+ \tau + \tfrac12 \log\frac{D(\tau)}{\delta}, \qquad u^* = -2 F x .
$$

*Linear cost* $g = c'x$, $b = Ax$: $u^* = -\sigma' e^{A'\tau} c$, $V = c'e^{A\tau}x - \tfrac12\int_0^\tau
|\sigma' e^{A's} c|^2 ds$ (Gauss-Legendre, 40 nodes, of an entire function).

*Double wells*: one dimension each, by the Hopf-Cole transform and spectral collocation (`aid_control.nonlinear`); the
control at a time is a cubic spline through 501 exact values.

*Log cost* of a Brownian motion $\sqrt2 B$: $V = -\log\psi$, $\psi = E\,[2 / (1 + |x + \sqrt{2\tau} Z|^2)]$, and
$1/y = \int_0^\infty e^{-sy} ds$ makes of the noncentral $\chi^2$ expectation one integral,

$$
\psi(\tau, x) = 2\int_0^\infty e^{-s} (1 + 4\tau s)^{-d/2} \exp\Big(-\frac{s|x|^2}{1 + 4\tau s}\Big)\, ds, \qquad
u^* = \sqrt2\, \frac{\nabla\psi}\psi = -\,c(\tau, |x|^2)\, x .
$$
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor

from ...nonlinear import DoubleWell

__all__ = ["LinearTruth", "LogTruth", "QuadraticTruth", "Truth", "WellsTruth"]

Array = NDArray[np.float64]


class Truth(Protocol):
    """What is known exactly."""

    @property
    def value(self) -> float:
        """V(0, x0) = J*."""
        ...

    def control(self, t: float, x: Tensor) -> Tensor:
        """u*(t, x): a number, (B, d) -> (B, m)."""
        ...


class QuadraticTruth:
    """Isotropic linear drift, quadratic costs.

    Args:
        a: drift.
        w: weight of the running cost.
        q: weight of the terminal cost.
        x0: the start, (d,).
    """

    def __init__(self, a: float, w: float, q: float, x0: Tensor) -> None:
        root = math.sqrt(a * a + 2 * w)
        self.up, self.down, self.q, self.x0 = (a + root) / 2, (a - root) / 2, q, x0

    def _decay(self, tau: float) -> float:
        return (self.q - self.up) * math.exp(-2 * (self.up - self.down) * tau)

    def coefficient(self, t: float) -> float:
        """F: t -> F(t), numbers."""
        part = self._decay(1 - t)
        return (self.up * (self.q - self.down) - self.down * part) / (self.q - self.down - part)

    @property
    def value(self) -> float:
        """V(0, x0) = J*."""
        area = self.up + 0.5 * math.log((self.q - self.down - self._decay(1.0)) / (self.up - self.down))
        return self.coefficient(0.0) * float(self.x0 @ self.x0) + len(self.x0) * area

    def law(self, t: float) -> tuple[Tensor, Tensor]:
        """Gain and offset of u*: a number -> (d, d), (d,)."""
        eye = torch.eye(len(self.x0), dtype=torch.float64)
        return -2 * self.coefficient(t) * eye, torch.zeros_like(self.x0)

    def control(self, t: float, x: Tensor) -> Tensor:
        """u*(t, x): a number, (B, d) -> (B, d)."""
        return -2 * self.coefficient(t) * x


class LinearTruth:
    """Linear drift and terminal cost.

    Args:
        A: drift, (d, d).
        sigma: noise and gain, (d, m).
        c: terminal weight, (d,).
        x0: the start, (d,).
    """

    def __init__(self, A: Tensor, sigma: Tensor, c: Tensor, x0: Tensor) -> None:  # noqa: N803 - the field's letter
        self.A, self.sigma, self.c, self.x0 = A, sigma, c, x0

    def _offset(self, t: float) -> Tensor:
        return -self.sigma.mT @ torch.linalg.matrix_exp(self.A.mT * (1 - t)) @ self.c

    @property
    def value(self) -> float:
        """V(0, x0) = J*."""
        nodes, weights = np.polynomial.legendre.leggauss(40)
        spent = sum(
            w / 4 * float(self._offset((1 + s) / 2).square().sum()) for s, w in zip(nodes, weights, strict=True)
        )
        return float(self.c @ torch.linalg.matrix_exp(self.A) @ self.x0) - spent

    def law(self, t: float) -> tuple[Tensor, Tensor]:
        """Gain and offset of u*: a number -> (m, d), (m,)."""
        return torch.zeros_like(self.sigma.mT), self._offset(t)

    def control(self, t: float, x: Tensor) -> Tensor:
        """u*(t, x): a number, (B, d) -> (B, m)."""
        return self._offset(t).expand(len(x), -1)


class WellsTruth:
    r"""Independent double wells.

    The collocation gives the logarithmic derivative of $\varphi$ where it stands well above rounding; outside, at
    $|x| >$ `edge`, the control keeps its last value.  At the benchmark's weights the stationary density
    of the uncontrolled state there is below $10^{-9}$ of its top.

    Args:
        kappa: depths, (d,).
        nu: terminal weights, (d,).
        x0: the start, (d,).
    """

    def __init__(self, kappa: Tensor, nu: Tensor, x0: Tensor) -> None:
        pairs = list(zip(kappa.tolist(), nu.tolist(), strict=True))
        self.x0 = x0
        self.kinds = [(DoubleWell(*p, 1.0), [i for i, q in enumerate(pairs) if q == p]) for p in sorted(set(pairs))]
        self._tables: dict[float, list[CubicSpline]] = {}

    @staticmethod
    def edge(well: DoubleWell) -> float:
        """Where phi at the end is 1e-10 of its top: well -> a number."""
        return math.sqrt(1 + math.sqrt(math.log(1e10) / (well.kappa + well.nu)))

    @property
    def value(self) -> float:
        """V(0, x0) = J*."""
        return sum(float(well.value(0.0, self.x0[at, None]).sum()) for well, at in self.kinds)

    def _table(self, well: DoubleWell, t: float) -> CubicSpline:
        nodes = np.linspace(-self.edge(well), self.edge(well), 501)
        return CubicSpline(nodes, well.optimal_control(t, torch.from_numpy(nodes)[:, None])[:, 0].numpy())

    def control(self, t: float, x: Tensor) -> Tensor:
        """u*(t, x): a number, (B, d) -> (B, d)."""
        if t not in self._tables:
            self._tables[t] = [self._table(well, t) for well, _ in self.kinds]
        out = torch.empty_like(x)
        for (well, at), spline in zip(self.kinds, self._tables[t], strict=True):
            edge = self.edge(well)
            out[:, at] = torch.from_numpy(spline(x[:, at].clamp(-edge, edge).numpy()))
        return out


class LogTruth:
    """The log terminal cost of a Brownian motion.

    Args:
        x0: the start, (d,).
        nodes: of the quadrature in $s = e^y$, whose integrand is analytic and decays at both ends.
    """

    def __init__(self, x0: Tensor, nodes: int = 400) -> None:
        self.x0 = x0
        y = np.linspace(-40.0, 4.0, nodes)
        self.s, self.weight = np.exp(y), (y[1] - y[0]) * np.exp(y)

    def _integrals(self, t: float, square: Array) -> tuple[Array, Array]:
        """psi and minus its derivative in |x|^2, at (B,) values of |x|^2."""
        grown = 1 + 4 * (1 - t) * self.s
        log = -self.s - 0.5 * len(self.x0) * np.log(grown)
        terms = 2 * self.weight * np.exp(log - np.multiply.outer(square, self.s / grown))
        return terms.sum(-1), terms @ (self.s / grown)

    @property
    def value(self) -> float:
        """V(0, x0) = J*."""
        return -math.log(self._integrals(0.0, np.array([float(self.x0 @ self.x0)]))[0][0])

    def control(self, t: float, x: Tensor) -> Tensor:
        """u*(t, x): a number, (B, d) -> (B, d)."""
        psi, slope = self._integrals(t, x.square().sum(1).numpy())
        return torch.from_numpy(-2 * math.sqrt(2) * slope / psi)[:, None] * x
