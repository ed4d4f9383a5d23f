r"""Exact simulation of linear equations with additive noise, on given Brownian increments.

$$
\begin{aligned}
dX &= (A X + b)\,dt + \sum_{j=1}^n s_j\, dW^j, \qquad X_{t+h} = e^{Ah} X_t + \Phi_h b + Z, \\
\Phi_h &= \int_0^h e^{Au} du, \qquad Z = \int_t^{t+h} e^{A(t+h-v)} s'\, dW_v .
\end{aligned}
$$

Z and $\Delta W = W_{t+h} - W_t$ are jointly Gaussian with mean zero and

$$
\mathrm{Cov}(Z) = \int_0^h e^{Au} s's\, e^{A'u} du, \qquad
\mathrm{Cov}(Z, \Delta W) = \Phi_h s', \qquad \mathrm{Cov}(\Delta W) = h I,
$$

so that given $\Delta W$ it is the known $\Phi_h s' \Delta W / h$ plus an independent Gaussian of
covariance $\mathrm{Cov}(Z) - \Phi_h s's\, \Phi_h'/h$, of size $h^3$: a scheme and the exact solution run on the
*same* Brownian path.  Over two steps $Z = e^{A h_2} Z_1 + Z_2$: a path observed less often stays that path.

All this is one linear equation for $Y = (X, W, 1)$, $dY = L Y dt + g\, dW$, and Van Loan's (1978) block exponential

$$
\exp\begin{pmatrix} -L & gg' \\ 0 & L' \end{pmatrix} h
= \begin{pmatrix} * & E^{-1} V \\ 0 & E' \end{pmatrix}, \qquad
E = e^{Lh}, \quad V = \int_0^h e^{Lu} gg' e^{L'u} du .
$$

It is taken over a short time and doubled, $V \leftarrow V + E V E'$, $E \leftarrow E^2$, because
$e^{-Lh}$ would swamp a strongly contracting system.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..increments import Increments
from ..noise import normal
from .problem import LQProblem
from .quadratic import AffineGaussian

__all__ = ["OrnsteinUhlenbeck", "Transition"]

_STREAM = 0x0511  # keeps the extra normals apart from increments drawn with the same key


class Transition(NamedTuple):
    """One step, X -> flow X + shift + Z with Z ~ N(0, covariance), and Z = weight dW + root (standard normals).

    Attributes:
        flow: (d, d).
        shift: (d,).
        covariance: (d, d).
        weight: (d, n).
        root: (d, d).
    """

    flow: Tensor
    shift: Tensor
    covariance: Tensor
    weight: Tensor
    root: Tensor


class OrnsteinUhlenbeck:
    """dX = (A X + b) dt + s' dW, exactly.

    Args:
        A: (d, d), stable, unstable or singular.
        b: (d,); ``None`` = zero.
        s: (n, d), one row a Brownian motion.

    Raises:
        ValueError: for a shape that does not fit or an entry that is not finite.
    """

    def __init__(self, A: Tensor, b: Tensor | None, s: Tensor) -> None:  # noqa: N803 - the field's letters
        self.A, self.s = torch.as_tensor(A, dtype=torch.float64), torch.as_tensor(s, dtype=torch.float64)
        self._expect("A", self.A, self.A.dim() == 2 and self.A.shape[0] == self.A.shape[-1], "(d, d)")
        d = self.A.shape[0]
        self.b = self.A.new_zeros(d) if b is None else torch.as_tensor(b, dtype=torch.float64)
        self._expect("b", self.b, self.b.shape == (d,), f"({d},)")
        self._expect("s", self.s, self.s.dim() == 2 and self.s.shape[-1] == d, f"(n, {d})")
        for name, value in (("A", self.A), ("b", self.b), ("s", self.s)):
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} has shape {tuple(value.shape)} and an entry that is not finite")
        self.d, self.n = d, self.s.shape[0]

    @classmethod
    def from_closed_loop(cls, problem: LQProblem, policy: AffineGaussian) -> OrnsteinUhlenbeck:
        """A problem under the mean of a policy, which is also its averaged dynamics: the noise is free of the control.

        Args:
            problem: single, with constant coefficients, without C and D.
            policy: with a mean that does not change with time; its covariance is not looked at.

        Raises:
            ValueError: unless the problem is a single one with constant coefficients and additive noise and the
                policy's mean is the same at all times.
        """
        if problem.batch is not None or problem.time_varying or problem.used & {"C", "D"}:
            raise ValueError(
                f"problem has batch {problem.batch}, time_varying {problem.time_varying} and uses "
                f"{sorted(problem.used)}; expected a single one, constant, without C and D"
            )
        end = 1.0 if math.isinf(problem.horizon) else problem.horizon
        times = torch.linspace(0, end, 5, dtype=torch.float64)
        laws = [[a.detach().to(torch.float64) for a in policy.law(t)[:2]] for t in times]
        gain, offset = laws[0]
        cls._expect("gain", gain, gain.shape == (problem.control_dim, problem.state_dim), "(m, d) of the problem")
        cls._expect("offset", offset, offset.shape == (problem.control_dim,), "(m,) of the problem")
        if not all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for law in laws for a, b in zip(law, laws[0])):  # noqa: B905
            raise ValueError("policy has a mean that changes with time; expected a constant gain and offset")
        big = problem.at("B", 0.0)
        return cls(problem.at("A", 0.0) + big @ gain, problem.at("b", 0.0) + big @ offset, problem.at("s", 0.0))

    def _moments(self, h: float) -> tuple[Tensor, Tensor]:
        """E and V of Y = (X, W, 1)."""
        if not 0 <= h < math.inf:
            raise ValueError(f"time is {h} (a number); expected a finite one >= 0")
        d, n = self.d, self.n
        size = d + n + 1
        block = self.A.new_zeros(2 * size, 2 * size)
        block[size : size + d, size : size + d] = self.A.mT
        block[-1, size : size + d] = self.b
        block[:size, :size] = -block[size:, size:].mT
        g = torch.cat([self.s.mT, torch.eye(n, dtype=torch.float64), self.s.new_zeros(1, n)])
        block[:size, size:] = g @ g.mT
        doublings = max(0, math.ceil(math.log2(max(1.0, h * float(torch.linalg.matrix_norm(self.A, 1))))))
        exponential = torch.linalg.matrix_exp(block * (h / 2**doublings))
        flow = exponential[size:, size:].mT
        spread = flow @ exponential[:size, size:]
        for _ in range(doublings):
            flow, spread = flow @ flow, spread + flow @ spread @ flow.mT
        return flow, (spread + spread.mT) / 2

    def transition(self, h: float) -> Transition:
        """The law of one step, alone and given dW.

        Args:
            h: length of the step, > 0.

        Raises:
            ValueError: unless h is positive and finite.
        """
        if not h > 0:
            raise ValueError(f"h is {h} (a number); expected h > 0")
        d, n = self.d, self.n
        flow, spread = self._moments(h)
        covariance, cross = spread[:d, :d], spread[:d, d : d + n]
        # in units of the coordinates, what is below the rounding of the difference is zero: Z is then a function of dW
        unit = covariance.diagonal().where(covariance.diagonal() > 0, 1.0).sqrt()
        values, vectors = torch.linalg.eigh((covariance - cross @ cross.mT / h) / torch.outer(unit, unit))
        root = unit.unsqueeze(1) * vectors * values.where(values > 64 * torch.finfo(values.dtype).eps, 0.0).sqrt()
        return Transition(flow[:d, :d], flow[:d, -1], covariance, cross / h, root)

    def _transitions(self, grid: Tensor) -> list[Transition]:
        """One a step; equal steps (to the rounding of the grid) share theirs."""
        unit = 1e-13 * float(grid.abs().max())
        known: dict[int, Transition] = {}
        steps = [(round(h / unit), h) for h in grid.to(torch.float64).diff().tolist()]
        for key, h in steps:
            known[key] = known.get(key) or self.transition(h)
        return [known[key] for key, _ in steps]

    def convolutions(self, increments: Increments, *key: int) -> Tensor:
        """Z_k given dW_k, (K, B, d).

        Args:
            increments: dw (K, B, n).
            *key: integers, of the part of Z that dW does not determine.
        """
        dw = increments.dw.to(torch.float64)
        self._expect("increments", dw, dw.dim() == 3 and dw.shape[-1] == self.n, f"(K, B, {self.n})")
        extra = normal((*dw.shape[:2], self.d), *key, _STREAM, like=dw)
        moves = self._transitions(increments.grid)
        return torch.stack([dw[k] @ move.weight.mT + extra[k] @ move.root.mT for k, move in enumerate(moves)])

    def coarsen(self, z: Tensor, grid: Tensor, every: int) -> Tensor:
        """Z of the same paths on ``grid[::every]``.

        Args:
            z: (K, B, d) on ``grid``.
            grid: times (K + 1,).
            every: a divisor of K.

        Returns:
            (K / every, B, d).

        Raises:
            ValueError: unless ``every`` divides K and z fits the grid.
        """
        self._check_z(z, grid)
        if every < 1 or len(z) % every:
            raise ValueError(f"every is {every}; expected a divisor of the {len(z)} steps")
        out: list[Tensor] = []
        for k, (now, move) in enumerate(zip(z, self._transitions(grid), strict=True)):
            if k % every:
                out[-1] = out[-1] @ move.flow.mT + now
            else:
                out.append(now)
        return torch.stack(out)

    def follow(self, x0: Tensor, grid: Tensor, z: Tensor) -> Tensor:
        """X at the grid times driven by given Z, (K + 1, B, d).

        Args:
            x0: (d,) or (B, d).
            grid: times (K + 1,).
            z: of `convolutions` on this grid, (K, B, d).
        """
        self._check_z(z, grid)
        x = self._check_x(x0)
        self._expect("x0", x, x.dim() == 1 or x.shape[0] in (1, z.shape[1]), f"({z.shape[1]}, {self.d})")
        out = [x.expand(z.shape[1], self.d)]
        for now, move in zip(z, self._transitions(grid), strict=True):
            out.append(out[-1] @ move.flow.mT + move.shift + now)
        return torch.stack(out)

    def paths(self, x0: Tensor, increments: Increments, *key: int) -> Tensor:
        """The exact solution on the grid of the increments, (K + 1, B, d).

        Coarse increments know less of the path, and what they leave open would be drawn anew: for the same process
        on a coarser grid take every k-th state, or `coarsen` its `convolutions`.

        Args:
            x0: (d,) or (B, d).
            increments: dw (K, B, n).
            *key: integers, of the part of Z that dW does not determine.
        """
        return self.follow(x0, increments.grid, self.convolutions(increments, *key))

    def mean(self, t: float, x0: Tensor) -> Tensor:
        """E X_t from x0 at time 0: t, (d,) or (B, d) -> like x0."""
        x, (flow, _) = self._check_x(x0), self._moments(t)
        return x @ flow[: self.d, : self.d].mT + flow[: self.d, -1]

    def covariance(self, t: float) -> Tensor:
        """Cov X_t from a fixed x0 at time 0: t -> (d, d)."""
        return self._moments(t)[1][: self.d, : self.d]

    @staticmethod
    def _expect(name: str, value: Tensor, fits: bool, wanted: str) -> None:
        if not fits:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {wanted}")

    def _check_x(self, x0: Tensor) -> Tensor:
        x = torch.as_tensor(x0, dtype=torch.float64)
        self._expect("x0", x, x.dim() in (1, 2) and x.shape[-1] == self.d, f"({self.d},) or (B, {self.d})")
        return x

    def _check_z(self, z: Tensor, grid: Tensor) -> None:
        fits = z.dim() == 3 and z.shape[0] == len(grid) - 1 and z.shape[2] == self.d
        self._expect("z", z, fits, f"({len(grid) - 1}, B, {self.d})")
