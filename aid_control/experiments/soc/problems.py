r"""The benchmarks, $dX = (b(X) + \sigma u)\,dt + \sigma\,dB$, cost $\int_0^1 \tfrac12|u|^2 + f(X)\,dt + g(X_1)$.

| name | d | b | sigma | f | g | start | steps |
|---|---|---|---|---|---|---|---|
| ``ou_quadratic_easy`` | 20 | 0.2 x | I | 0.2 x'x | 0.1 x'x | 0.5 N(0, I), one draw | 50 |
| ``ou_quadratic_hard`` | 20 | x | I | x'x | 0.5 x'x | as above | 50 |
| ``ou_linear`` | 10 | (-I + xi) x | I + xi | 0 | sum of x | 0 | 100 |
| ``double_well`` | 10 | -4 kappa x (x^2 - 1) | I | 0 | sum of nu (x^2 - 1)^2 | 0 | 200 |
| ``hjb_log`` | 100 | 0 | sqrt(2) I | 0 | log((1 + x'x)/2) | 0 | 20 |

The first four are those of Domingo-Enrich, Han, Amos, Bruna and Chen (2024, "Stochastic optimal control matching"),
with $\lambda = 1$, $\xi = 0.1\, N(0, 1)$ entrywise (one matrix for b and sigma), $\kappa = (5, 5, 5, 1, \dots)$ and
$\nu = (3, 3, 3, 1, \dots)$; the last is the HJB equation of Han, Jentzen and E (2018),
$V_t + \Delta V - |\nabla V|^2 = 0$, in control form.  The random start and matrix are torch's normals of seed 0, as
there.  Noise and control enter through the same sigma, so $u^* = -\sigma'\nabla V$, and by Ito's formula the quantity

$$
\int \tfrac12|u^*|^2 + f\, dt + g(X_1) + \int u^*\cdot dB = V(0, x_0)
$$

is the same on every path.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...increments import time_grid
from ...lq.problem import LQProblem
from ...lq.zoo import ou_quadratic
from ...problem import ControlProblem
from .truth import LinearTruth, LogTruth, QuadraticTruth, Truth, WellsTruth

__all__ = ["PROBLEMS", "LogCost", "Setting", "Wells", "make"]


@dataclass(frozen=True)
class Setting:
    """A problem, its start, the solver's grid and the exact answer.

    Attributes:
        name: key of `PROBLEMS`.
        problem: dynamics and costs.
        x0: the start, (d,).
        steps: K of the solver's grid.
        truth: the exact control and value.
    """

    name: str
    problem: ControlProblem
    x0: Tensor
    steps: int
    truth: Truth

    @property
    def grid(self) -> Tensor:
        """The solver's times, (K + 1,)."""
        return time_grid(self.problem.horizon, steps=self.steps)


class Wells(ControlProblem):
    """Independent double wells, one a coordinate, states and controls (B, d), sigma = I.

    Args:
        kappa: depths, (d,).
        nu: terminal weights, (d,).
    """

    noise = "diagonal"

    def __init__(self, kappa: Tensor, nu: Tensor) -> None:
        self.kappa, self.nu = kappa, nu

    def drift(self, t: Tensor, x: Tensor, context: Any, probe: Any) -> Tensor:
        return -4 * self.kappa * x * (x.square() - 1)

    def terminal_cost(self, x: Tensor, target: Any) -> Tensor:
        return (self.nu * (x.square() - 1).square()).sum(1)

    def diffusion(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor | None:
        return torch.ones_like(x)


class LogCost(ControlProblem):
    """No drift, sigma = sqrt(2) I, terminal cost log((1 + x'x)/2); states and controls (B, d)."""

    noise = "diagonal"

    def gain(self, t: Tensor) -> Tensor | float:
        return math.sqrt(2)

    def terminal_cost(self, x: Tensor, target: Any) -> Tensor:
        return torch.log(0.5 + 0.5 * x.square().sum(1))

    def diffusion(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor | None:
        return torch.full_like(x, math.sqrt(2))


def _seed_zero(*shape: int) -> Tensor:
    """The source's draws: single precision, torch's stream of seed 0."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).double()


def _quadratic(name: str, hard: bool) -> Setting:
    x0 = 0.5 * _seed_zero(20)
    a, w, g = (1.0, 1.0, 0.5) if hard else (0.2, 0.2, 0.1)
    return Setting(name, ou_quadratic(hard), x0, 50, QuadraticTruth(a, w, g, x0))


def _linear(name: str) -> Setting:
    eye, xi = torch.eye(10, dtype=torch.float64), 0.1 * _seed_zero(10, 10)
    ones, sigma = torch.ones(10, dtype=torch.float64), eye + xi
    problem = LQProblem(xi - eye, sigma, R=eye, s=sigma.mT, g=ones)
    x0 = torch.zeros(10, dtype=torch.float64)
    return Setting(name, problem, x0, 100, LinearTruth(xi - eye, sigma, ones, x0))


def _wells(name: str) -> Setting:
    kappa, nu = torch.ones(10, dtype=torch.float64), torch.ones(10, dtype=torch.float64)
    kappa[:3], nu[:3] = 5.0, 3.0
    x0 = torch.zeros(10, dtype=torch.float64)
    return Setting(name, Wells(kappa, nu), x0, 200, WellsTruth(kappa, nu, x0))


def _log(name: str) -> Setting:
    x0 = torch.zeros(100, dtype=torch.float64)
    return Setting(name, LogCost(), x0, 20, LogTruth(x0))


PROBLEMS: dict[str, Callable[[str], Setting]] = {
    "ou_quadratic_easy": lambda name: _quadratic(name, False),
    "ou_quadratic_hard": lambda name: _quadratic(name, True),
    "ou_linear": _linear,
    "double_well": _wells,
    "hjb_log": _log,
}


def make(name: str) -> Setting:
    """A setting by name.

    Args:
        name: a key of `PROBLEMS`.

    Raises:
        InputError: for another name.
    """
    if name not in PROBLEMS:
        raise InputError(f"problem is {name}; expected one of {', '.join(PROBLEMS)}")
    return PROBLEMS[name](name)
