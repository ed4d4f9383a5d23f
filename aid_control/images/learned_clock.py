r"""Learned clocks: a positive density over log sigma that is cut into equal parts, for any number of steps; their file.

A clock is given by noise levels $\sigma_0 > \dots > \sigma_n > 0$ (knots) and by the density $w_i > 0$ there: how
densely levels are to lie, per unit of $\log\sigma$.  Between the knots $\log w$ is linear in $\log\sigma$; below
$\sigma_n$ the density per unit of $\sigma$ is constant, so that the rest of the way to 0 has the mass $w_n$.  With the
mass above a level

$$
m(\sigma) = \int_{\log\sigma}^{\log\sigma_0} w\, d\log\sigma' \quad (\sigma \ge \sigma_n), \qquad
m(\sigma) = m(\sigma_n) + w_n (1 - \sigma/\sigma_n) \quad (\sigma < \sigma_n),
$$

a grid of $K$ steps visits the levels of $m = k\, m(0)/K$, $k = 0, \dots, K$: the last positive one depends on K.  For a
density that equals the $(p+1)$-th root of a method's local error (order p) this is the optimum of
``docs/explanation/art.md``; how densities are learned is in `aid_control.experiments.art`.  Only ratios of the w count.
In every cell the mass is that of an exponential and is inverted in closed form: levels decrease strictly, whatever the
density.

The file is JSON, ``{"levels": [...], "density": [...], "about": {...}}``; ``about`` says what the clock was learned for
(backbone, solver, number of evaluations, method).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoint import atomic_write
from ..errors import InputError
from .backbones.registry import asset
from .clock import Clock

__all__ = ["LearnedClock", "load_clock", "save_clock"]

MOST = 1 << 20  # bytes of a file that is read at all


def _good(values: tuple[float, ...]) -> bool:
    return all(isinstance(v, float | int) and math.isfinite(v) and v > 0 for v in values)


@dataclass(frozen=True)
class LearnedClock(Clock):
    """Equal parts of a density over log sigma; see the module.

    Args:
        levels: the knots, decreasing positive noise levels, at least two.
        density: w there, positive, of the same number.
        about: what the clock was learned for, by name.

    Raises:
        ValueError: for other numbers.
    """

    levels: tuple[float, ...]
    density: tuple[float, ...]
    about: Mapping[str, str | float] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        falls = all(a > b for a, b in zip(self.levels, self.levels[1:], strict=False))
        if len(self.levels) < 2 or not _good(self.levels) or not falls:
            raise ValueError(f"levels are {self.levels}; expected at least two, decreasing, positive")
        if len(self.density) != len(self.levels) or not _good(self.density):
            raise ValueError(f"density is {self.density}; expected {len(self.levels)} positive numbers")

    @property
    def sigma_min(self) -> float:  # type: ignore[override]
        """The last knot; a grid's last positive level may be above or below it."""
        return self.levels[-1]

    @property
    def sigma_max(self) -> float:  # type: ignore[override]
        """The first knot."""
        return self.levels[0]

    def _cells(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of every cell: width in log sigma, rise of log w, and the mass above its upper end (the tail's too)."""
        width = -torch.tensor(self.levels, dtype=torch.float64).log().diff()
        w = torch.tensor(self.density, dtype=torch.float64)
        rise = w.log().diff()
        flat = rise.abs() < 1e-6
        safe = torch.where(flat, 1.0, rise)
        mass = width * torch.where(flat, (w[1:] + w[:-1]) / 2, w.diff() / safe)
        return width, rise, torch.cat([mass.new_zeros(1), mass.cumsum(0)])

    def _at(self, mass: Tensor) -> Tensor:
        """The level with this mass above it, below m(0), of any shape."""
        width, rise, above = self._cells()
        levels, w = (torch.tensor(v, dtype=torch.float64) for v in (self.levels, self.density))
        i = (torch.searchsorted(above, mass.contiguous(), right=True) - 1).clamp(0, len(width) - 1)
        part = (mass - above[i]).clamp(min=0) / (w[i] * width[i])  # of the cell, if the density were constant
        slope = rise[i]
        flat = slope.abs() < 1e-6
        bent = torch.log1p((part * slope).clamp(min=-1 + 1e-12)) / torch.where(flat, 1.0, slope)
        part = torch.where(flat, part, bent).clamp(max=1.0)
        inside = levels[i] * (-part * width[i]).exp()
        below = levels[-1] * (1 - (mass - above[-1]) / w[-1])
        return torch.where(mass > above[-1], below, inside)

    def level(self, s: Tensor) -> Tensor:
        """Noise level at a part s of the mass between the first and the last knot: any shape -> the same shape."""
        return self._at(s * self._cells()[2][-1])

    def sigmas(self, steps: int, rounding: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The float64 levels of a grid: ``steps`` positive ones, then 0; equal parts of the whole mass down to 0.

        Args:
            steps: number of solver steps, at least 1.
            rounding: maps levels to those a network knows.

        Returns:
            (steps + 1,) decreasing levels.

        Raises:
            ValueError: if ``steps`` is below 1.
        """
        if steps < 1:
            raise ValueError(f"steps is {steps}; a sampler needs at least 1")
        whole = self._cells()[2][-1] + self.density[-1]
        levels = self._at(torch.arange(steps, dtype=torch.float64) / steps * whole)
        if rounding is not None:
            levels = rounding(levels)
        return torch.cat([levels, levels.new_zeros(1)])


def save_clock(path: str | os.PathLike[str], clock: LearnedClock) -> None:
    """Write a clock as JSON, atomically.

    Args:
        path: target, ``.json``.
        clock: what to write; numbers keep seven digits.
    """
    numbers = {name: [float(f"{v:.7g}") for v in getattr(clock, name)] for name in ("levels", "density")}
    atomic_write(path, (json.dumps({**numbers, "about": dict(clock.about)}) + "\n").encode())


def load_clock(name_or_path: str | os.PathLike[str]) -> LearnedClock:
    """Read a clock.

    Args:
        name_or_path: a shipped name (``"clock-edm-faces64-mini"``) or a ``.json`` file of `save_clock`.

    Returns:
        The clock, for ``clock=`` of `inpaint.inpaint` and of every method.

    Raises:
        InputError: if the file is missing or holds no clock.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = asset(f"{name_or_path}.json")
    if not path.is_file():
        raise InputError(f"{name_or_path}: no such clock; expected a shipped name or a .json file")
    try:
        if path.stat().st_size > MOST:
            raise ValueError(f"{path.stat().st_size} bytes")
        found = json.loads(path.read_bytes())
        about = dict(found["about"])
        if not all(isinstance(v, str | int | float) for v in about.values()):
            raise ValueError("about holds more than texts and numbers")
        levels, density = (tuple(float(v) for v in found[name]) for name in ("levels", "density"))
        return LearnedClock(levels, density, about)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{path}: holds no clock ({error}); expected a file written by save_clock") from error
