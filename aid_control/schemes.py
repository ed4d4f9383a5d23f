r"""One step of a stochastic differential equation, from t to s: pure functions.

$$
dX = f(t, X)\,dt + \sigma(t, X)\,dW .
$$

A field is given by its velocity f and by the *action* of its diffusion, $g(t, x, dW) = \sigma(t, x)\, dW$,
which costs less than $\sigma$ itself.  Strong orders: Euler-Maruyama 1/2 (1 for additive noise), Milstein 1 for
commutative noise (diagonal, scalar, or one column; Kloeden & Platen 1992, section 10.3).  Heun is of order 2
and for deterministic fields.  `torchsde_step` hands the same step to torchsde.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchsde
from torch import Tensor, nn

from .increments import Increments
from .problem import NoiseKind

__all__ = ["SCHEMES", "Field", "PathBrownian", "euler", "heun", "milstein", "torchsde_step"]


@dataclass(frozen=True)
class Field:
    """The right-hand side of an SDE for one step.

    Attributes:
        velocity: f(t, x), like x.
        noise: the layout of sigma and of dW, as in `problem.ControlProblem`.
        diffuse: g(t, x, dW) = sigma(t, x) dW, like x; ``None`` without noise.
        sigma: sigma(t, x) itself; only torchsde asks for it.
    """

    velocity: Callable[[Tensor, Tensor], Tensor]
    noise: NoiseKind = "none"
    diffuse: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
    sigma: Callable[[Tensor, Tensor], Tensor] | None = None


def euler(field: Field, t: Tensor, s: Tensor, x: Tensor, dw: Tensor | None) -> Tensor:
    r"""Euler-Maruyama: $X + f \Delta t + \sigma \Delta W$.

    Args:
        field: the equation.
        t: scalar time at the start of the step.
        s: scalar time at its end.
        x: states (B, ...) at t.
        dw: W_s - W_t, (B, n) for ``"columns"``, like x for ``"diagonal"`` noise; ``None`` without noise.

    Returns:
        States at s, like x.
    """
    x_next = x + (s - t) * field.velocity(t, x)
    return x_next if field.diffuse is None or dw is None else x_next + field.diffuse(t, x, dw)


def heun(field: Field, t: Tensor, s: Tensor, x: Tensor, dw: Tensor | None) -> Tensor:
    """Heun for ordinary differential equations: the mean of the slopes at both ends.

    Arguments as `euler`, ``dw`` not looked at; like x -> like x.

    Raises:
        ValueError: for a diffusing field.
    """
    if field.diffuse is not None:
        raise ValueError("Heun is for deterministic problems; expected euler or milstein for a diffusing one")
    dt, slope = s - t, field.velocity(t, x)
    return x + dt * (slope + field.velocity(s, x + dt * slope)) / 2


def milstein(field: Field, t: Tensor, s: Tensor, x: Tensor, dw: Tensor | None) -> Tensor:
    r"""Milstein for commutative noise; arguments as `euler`, (B, ...) -> (B, ...).

    $$
    X + f \Delta t + \sigma \Delta W
    + \tfrac12 \sum_{j,l} (D\sigma_j)\,\sigma_l\, (\Delta W_j \Delta W_l - \delta_{jl} \Delta t).
    $$

    The double sum is one Jacobian-vector product of x -> sigma(x) dW along sigma(x) dW; its diagonal is one
    product for diagonal noise (sigma_i a function of x_i) and one a column otherwise.
    """
    diffuse = field.diffuse
    if diffuse is None or dw is None:
        return euler(field, t, s, x, dw)

    dt, x = s - t, x.contiguous()  # forward mode wants memory of its own

    def along(increment: Tensor) -> tuple[Tensor, Tensor]:
        at_x = diffuse(t, x, increment)
        return at_x, torch.func.jvp(lambda y: diffuse(t, y, increment), (x,), (at_x,))[1]

    shift, double = along(dw)
    if field.noise == "diagonal":
        diagonal = along(torch.ones_like(dw))[1]
    else:
        diagonal = torch.zeros_like(x)
        for j in range(dw.shape[-1]):
            unit = torch.zeros_like(dw)
            unit[..., j] = 1
            diagonal = diagonal + along(unit)[1]
    return x + dt * field.velocity(t, x) + shift + 0.5 * (double - dt * diagonal)


SCHEMES = {"euler": euler, "heun": heun, "milstein": milstein}


class PathBrownian(torchsde.BaseBrownian):  # type: ignore[misc]
    """Pre-sampled increments in the form torchsde asks for.

    A call with two times ta, tb of the grid gives W(tb) - W(ta), (B, n); a time off the grid, or the question for a
    Levy area, is a ValueError.

    Args:
        increments: the paths; the trailing dimensions are flattened.
    """

    def __init__(self, increments: Increments) -> None:
        super().__init__()
        self._grid = increments.grid
        self._path = increments.path().flatten(2)

    def _at(self, t: Tensor | float) -> Tensor:
        k = int(torch.argmin((self._grid - float(t)).abs()))
        if abs(float(self._grid[k]) - float(t)) > 1e-9 * max(1.0, float(self._grid[-1])):
            raise ValueError(f"time {float(t)} is not on the grid of the increments")
        return self._path[k]

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Tensor:  # noqa: N803
        if return_U or return_A:
            raise ValueError("pre-sampled increments know no Levy area; expected method euler or milstein")
        return self._at(tb) - self._at(ta)

    def __repr__(self) -> str:
        return f"PathBrownian(shape={tuple(self.shape)})"

    @property
    def dtype(self) -> torch.dtype:
        """Of the paths."""
        return self._path.dtype

    @property
    def device(self) -> torch.device:
        """Of the paths."""
        return self._path.device

    @property
    def shape(self) -> torch.Size:
        """(B, n), of W at one time."""
        return self._path.shape[1:]

    @property
    def levy_area_approximation(self) -> str:
        """``"none"``: increments alone know no Levy area."""
        return "none"


class _Torchsde(nn.Module):
    """A field as torchsde wants it, on flattened states."""

    sde_type = "ito"

    def __init__(self, field: Field, shape: torch.Size) -> None:
        super().__init__()
        self.field, self.state = field, shape
        self.noise_type = "general" if field.noise == "columns" else "diagonal"

    def f(self, t: Tensor, y: Tensor) -> Tensor:
        return self.field.velocity(t, y.reshape(self.state)).flatten(1)

    def g(self, t: Tensor, y: Tensor) -> Tensor:
        assert self.field.sigma is not None
        sigma = self.field.sigma(t, y.reshape(self.state))
        return sigma if self.field.noise == "columns" else sigma.expand(self.state).flatten(1)


def torchsde_step(field: Field, t: Tensor, s: Tensor, x: Tensor, path: Any, method: str) -> Tensor:
    """One step from t to s through ``torchsde.sdeint``.

    Its ``ts`` is the step itself, because torchsde interpolates linearly between its own steps, which would destroy
    the quadratic variation that every martingale statistic lives on; ``dt`` is always given.

    Args:
        field: a diffusing field, with its ``sigma``.
        t: scalar time at the start of the step.
        s: scalar time at its end.
        x: states (B, ...) at t.
        path: a Brownian object of torchsde, or `PathBrownian`.
        method: torchsde's name of a scheme: euler, milstein, srk ...

    Returns:
        States at s, like x.
    """
    ts = torch.stack([t, s]).to(x)
    y = torchsde.sdeint(_Torchsde(field, x.shape), x.flatten(1), ts, bm=path, method=method, dt=float(s - t))
    return y[-1].reshape(x.shape)
