r"""Linear-quadratic problems in full generality.

$$
\begin{aligned}
dX &= (A X + B u + b)\,dt + \sum_{j=1}^n (C_j X + D_j u + s_j)\, dW^j, \\
J &= E\Big[\int_0^T e^{-\rho t}\Big(\tfrac12 X'QX + X'N u + \tfrac12 u'Ru + q'X + r'u\Big)dt
+ e^{-\rho T}\Big(\tfrac12 X_T' G X_T + g'X_T\Big)\Big].
\end{aligned}
$$

Every running coefficient may depend on time; Q, R and G may be indefinite (`riccati` decides: feasible while
$S = R + \sum_j D_j' P D_j > 0$); T may be infinite.  A leading dimension on any coefficient makes a *batch of S
problems*: states are then S groups of rows, (S b, d), as in `linear`, and all run through one rollout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..linear import dot, matvec, per_row
from ..problem import ControlProblem

__all__ = ["Coefficient", "LQProblem"]

Coefficient = Tensor | np.ndarray | float | list[Any] | Callable[[float], Any] | None

# name -> its shape in the letters d, m, n
SHAPES: Mapping[str, str] = {
    "A": "dd", "B": "dm", "b": "d", "C": "ndd", "D": "ndm", "s": "nd",
    "Q": "dd", "R": "mm", "N": "dm", "q": "d", "r": "m", "G": "dd", "g": "d",
}  # fmt: skip


class LQProblem(ControlProblem):
    """A linear-quadratic problem, or a batch of S of them.

    Args:
        A: (d, d) drift.
        B: (d, m) control in the drift.
        Q: (d, d) symmetric state cost.
        R: (m, m) symmetric control cost, possibly indefinite.
        C: (n, d, d) state-dependent noise.
        D: (n, d, m) control-dependent noise.
        s: (n, d) additive noise.
        N: (d, m) cross cost.
        b: (d,) constant drift.
        q: (d,) linear state cost.
        r: (m,) linear control cost.
        G: (d, d) symmetric terminal cost.
        g: (d,) linear terminal cost.
        discount: rho >= 0.
        horizon: T > 0, possibly ``math.inf``.

    Each may be given as a tensor, an array, nested lists or a number (for 1 x 1), or but for G and g as a function of
    time; left out means zero; all is float64.  `state_dim`, `control_dim`, `columns`, `batch` are d, m, n, S or None.

    Raises:
        ValueError: for a shape that does not fit, an asymmetric weight, a value that is not finite, a
            negative discount or a horizon that is not positive; it names the argument.
    """

    def __init__(
        self,
        A: Coefficient,  # noqa: N803 - the field's letters
        B: Coefficient,  # noqa: N803
        Q: Coefficient = None,  # noqa: N803
        R: Coefficient = None,  # noqa: N803
        *,
        C: Coefficient = None,  # noqa: N803
        D: Coefficient = None,  # noqa: N803
        s: Coefficient = None,
        N: Coefficient = None,  # noqa: N803
        b: Coefficient = None,
        q: Coefficient = None,
        r: Coefficient = None,
        G: Coefficient = None,  # noqa: N803
        g: Coefficient = None,
        discount: float = 0.0,
        horizon: float = 1.0,
    ) -> None:
        for name, number in (("discount", discount), ("horizon", horizon)):
            if not isinstance(number, (int, float)):
                raise ValueError(f"{name} is {number!r}; expected a number")
        if not 0 <= discount < math.inf:
            raise ValueError(f"discount is {discount}; expected rho >= 0, finite")
        if not horizon > 0:
            raise ValueError(f"horizon is {horizon}; expected T > 0 (math.inf for an infinite horizon)")
        self.discount, self.horizon = float(discount), float(horizon)
        given = {"A": A, "B": B, "b": b, "C": C, "D": D, "s": s, "Q": Q, "R": R, "N": N, "q": q, "r": r, "G": G, "g": g}
        for name in "Gg":
            if callable(given[name]):
                raise ValueError(f"{name} is a function of time; expected a constant terminal weight")
        self._moving = {k: v for k, v in given.items() if callable(v)}
        probe = {k: _tensor(k, v(0.0) if callable(v) else v) for k, v in given.items() if v is not None}
        self.state_dim, self.control_dim, self.columns, self.batch = _dimensions(probe)
        sizes = {"d": self.state_dim, "m": self.control_dim, "n": self.columns}
        self._shapes = {name: tuple(sizes[c] for c in letters) for name, letters in SHAPES.items()}
        self._constant: dict[str, Tensor] = {}
        for name, shape in self._shapes.items():
            value = _check(name, probe[name], shape, self.batch) if name in probe else torch.zeros(shape).double()
            if name not in self._moving:
                self._constant[name] = value
        self.used = frozenset(k for k, v in probe.items() if k in self._moving or bool((v != 0).any()))
        self.noise = "columns" if self.used & {"C", "D", "s"} else "none"
        self._fused: dict[str, Tensor] | None = None

    @property
    def time_varying(self) -> bool:
        """Whether any coefficient is a function of time."""
        return bool(self._moving)

    def at(self, name: str, t: Tensor | float) -> Tensor:
        """The coefficient of that letter at time t: letter, () -> its shape, or (S, ...) in a batch.

        Raises:
            ValueError: if a function of time gives another shape, or numbers that the constructor would refuse.
        """
        if name not in self._moving:
            return self._constant[name]
        return _check(name, _tensor(name, self._moving[name](float(t))), self._shapes[name], self.batch)

    def coefficients(self, t: Tensor | float) -> dict[str, Tensor]:
        """All coefficients at time t, by letter: () -> (S, ...) each, S = 1 for a single problem."""
        out = {}
        for name, letters in SHAPES.items():
            value = self.at(name, t)
            out[name] = value.expand(self.batch or 1, *value.shape[-len(letters) :])
        return out

    # The rollout's view: fused matrices on z = (x, u), because small products are dominated by their number.
    def _at(self, t: Tensor) -> dict[str, Tensor]:
        if self._fused is not None:
            return self._fused
        get = {name: self.at(name, t) for name in SHAPES}
        d, m = self.state_dim, self.control_dim
        rows = _cat([get["C"], get["D"]], -1, 3)
        fused = {
            "velocity": _cat([get["A"], get["B"]], -1, 2),
            "noise": rows.flatten(-3, -2),  # (n d, d + m)
            "weight": _cat([_cat([get["Q"], get["N"]], -1, 2), _cat([get["N"].mT, get["R"]], -1, 2)], -2, 2),
            "linear": _cat([get["q"], get["r"]], -1, 1),
        }
        fused |= {k: get[k] for k in ("b", "s", "A", "B")}
        assert fused["velocity"].shape[-1] == d + m
        if not self._moving:
            self._fused = fused
        return fused

    def drift(self, t: Tensor, x: Tensor, context: Any, probe: Any) -> Tensor:
        now = self._at(t)
        return matvec(now["A"], x) + per_row(now["b"], x, 1)

    def push(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return matvec(self._at(t)["B"], u)

    def pull(self, t: Tensor, x: Tensor, p: Tensor) -> Tensor:
        return matvec(self._at(t)["B"].mT, p)

    def response(self, t: Tensor, x: Tensor, p: Tensor) -> Tensor:
        if "D" in self.used:
            raise ValueError("D is not zero, so that the minimiser needs the value's Hessian; expected D = 0")
        linear = self.pull(t, x, p) + matvec(self.at("N", t).mT, x) + per_row(self.at("r", t), x, 1)
        return -matvec(torch.linalg.inv(self.at("R", t)), linear)

    def velocity(self, t: Tensor, x: Tensor, u: Tensor, context: Any, probe: Any) -> Tensor:
        now = self._at(t)
        out = matvec(now["velocity"], torch.cat([x, u], dim=1))
        return out + per_row(now["b"], x, 1) if "b" in self.used else out

    def stage_cost(self, t: Tensor, x: Tensor, u: Tensor, context: Any) -> Tensor:
        now, z = self._at(t), torch.cat([x, u], dim=1)
        slope = 0.5 * matvec(now["weight"], z)
        if self.used & {"q", "r"}:
            slope = slope + per_row(now["linear"], x, 1)
        return torch.linalg.vecdot(slope, z)

    def running_cost(self, t: Tensor, x: Tensor, context: Any) -> Tensor:
        return self.stage_cost(t, x, x.new_zeros(x.shape[0], self.control_dim), context)

    def control_cost(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return self.stage_cost(t, x, u, None) - self.running_cost(t, x, None)

    def control_weight(self, t: Tensor) -> Tensor:
        """The number r where R = r I at time t: () -> ().

        Raises:
            ValueError: for another R: the estimators with a scalar weight do not fit it.
        """
        weight = self.at("R", t)
        scalar = weight.flatten()[0]
        if weight.dim() != 2 or not torch.allclose(weight, scalar * torch.eye(self.control_dim, dtype=weight.dtype)):
            raise ValueError(f"R has shape {tuple(weight.shape)} and is no multiple of the identity; expected one")
        return scalar

    def exploration_cost(self, t: Tensor, covariance: Tensor, dim: int) -> Tensor:
        weight = self.at("R", t)
        if covariance.dim() == 0:
            covariance = covariance * torch.eye(dim, dtype=weight.dtype)
        return 0.5 * (weight @ covariance).diagonal(dim1=-2, dim2=-1).sum(-1)

    def terminal_cost(self, x: Tensor, target: Any = None) -> Tensor:
        big, small = self._constant["G"], self._constant["g"]
        return 0.5 * torch.linalg.vecdot(matvec(big, x), x) + dot(small, x)

    def noise_dim(self, x: Tensor) -> tuple[int, ...]:
        return (self.columns,)

    def _columns(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """(B, n, d): C_j x + D_j u + s_j."""
        now, z = self._at(t), torch.cat([x, u], dim=1)
        if now["noise"].dim() == now["s"].dim() == 2:
            return torch.addmm(now["s"].flatten(), z, now["noise"].mT).reshape(-1, self.columns, self.state_dim)
        return matvec(now["noise"], z).reshape(-1, self.columns, self.state_dim) + per_row(now["s"], x, 2)

    def diffusion(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor | None:
        return None if self.noise == "none" else self._columns(t, x, u).mT

    def diffuse(self, t: Tensor, x: Tensor, u: Tensor, dw: Tensor) -> Tensor:
        if not self.used & {"C", "D"}:
            return matvec(self._at(t)["s"].mT, dw)
        columns = self._columns(t, x, u)
        if self.columns > 8:
            return torch.einsum("bnd,bn->bd", columns, dw)
        out = columns[:, 0] * dw[:, :1]  # a few fused products beat a batched one
        for j in range(1, self.columns):
            out = torch.addcmul(out, columns[:, j], dw[:, j : j + 1])
        return out

    def exploration_columns(self, t: Tensor, x: Tensor, factor: Tensor) -> Tensor | None:
        if "D" not in self.used:
            return None
        big = self.at("D", t)  # (S?, n, d, m)
        spread = big * factor if factor.dim() == 0 else big @ (factor if factor.dim() == 2 else factor.unsqueeze(1))
        flat = spread.transpose(-3, -2).flatten(-2)  # (S?, d, n m)
        return per_row(flat, x, 2).expand(x.shape[0], -1, -1)


def _cat(parts: list[Tensor], dim: int, event: int) -> Tensor:
    """Concatenate along ``dim`` with a common batch dimension, if any part has one."""
    batches = [p.shape[0] for p in parts if p.dim() > event]
    if batches:
        parts = [p.expand(max(batches), *p.shape[-event:]) for p in parts]
    return torch.cat(parts, dim=dim)


def _tensor(name: str, value: Any) -> Tensor:
    try:
        if torch.as_tensor(value).is_complex():
            raise ValueError(f"{name} is complex; expected real numbers")
        out = torch.as_tensor(value, dtype=torch.float64).detach().clone()  # the caller may change its own
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is not numeric: {error}") from None
    letters = SHAPES[name]
    return out.reshape((1,) * len(letters)) if out.dim() == 0 else out


def _dimensions(given: dict[str, Tensor]) -> tuple[int, int, int, int | None]:
    """d, m, n and the batch size from the shapes of A, B and the noise."""
    for name in ("A", "B"):
        if name not in given:
            raise ValueError(f"{name} is missing; expected its matrix")
        if given[name].dim() not in (2, 3):
            raise ValueError(
                f"{name} has shape {tuple(given[name].shape)}; expected {'(d, d)' if name == 'A' else '(d, m)'}"
            )
    for name in ("A", "B"):
        if 0 in given[name].shape:
            raise ValueError(f"{name} has shape {tuple(given[name].shape)}; expected at least one state and control")
    d, m = given["A"].shape[-1], given["B"].shape[-1]
    n = next((given[k].shape[-len(SHAPES[k])] for k in "CDs" if k in given and given[k].dim() >= len(SHAPES[k])), 1)
    sizes = {v.shape[0] for k, v in given.items() if v.dim() == len(SHAPES[k]) + 1}
    sizes.discard(1)
    if len(sizes) > 1:
        raise ValueError(f"coefficients come in batches of {sorted(sizes)}; expected one batch size")
    stacked = any(v.dim() == len(SHAPES[k]) + 1 for k, v in given.items())
    return d, m, n, (sizes.pop() if sizes else 1) if stacked else None


def _check(name: str, value: Tensor, shape: tuple[int, ...], batch: int | None) -> Tensor:
    if tuple(value.shape) != shape and (batch is None or tuple(value.shape) not in ((batch, *shape), (1, *shape))):
        extra = "" if batch is None else f" or {(batch, *shape)}"
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shape}{extra}")
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{name} has shape {tuple(value.shape)} and an entry that is not finite; expected numbers")
    if name in "QRG" and not torch.allclose(
        value, value.mT, rtol=1e-10, atol=1e-12 * max(1.0, float(value.abs().max()))
    ):
        raise ValueError(f"{name} has shape {tuple(value.shape)} and is not symmetric; expected {name} = {name}'")
    return value


def infinite(problem: ControlProblem) -> bool:
    """Whether T is infinite."""
    return math.isinf(problem.horizon)
