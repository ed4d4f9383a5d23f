r"""Pre-sampled Brownian increments on a grid: common random numbers made explicit.

$\Delta W_k = W_{t_{k+1}} - W_{t_k}$ are drawn once and handed to whatever runs on them, so that two
policies, two schemes or two step sizes can be compared *on the same paths*: the difference of two costs then
has a far smaller variance than either.  Coarsening sums neighbours, i.e. it observes the same paths less
often; an antithetic set adds the reflected paths -W.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .noise import normal

__all__ = ["Increments", "time_grid"]


def time_grid(horizon: float, *, steps: int | None = None, dt: float | None = None) -> Tensor:
    """A uniform grid (K + 1,) on [0, T] in float64, exact at both ends.

    Args:
        horizon: T > 0.
        steps: K; or
        dt: the step, which must divide T.

    Raises:
        ValueError: for an infinite horizon, a step that does not divide T, or not exactly one of ``steps`` and ``dt``.
    """
    if (steps is None) == (dt is None):
        raise ValueError("expected exactly one of steps and dt")
    if not 0 < horizon < math.inf:
        raise ValueError(f"horizon is {horizon}; expected T > 0, finite")
    if dt is not None:
        if not dt > 0:
            raise ValueError(f"dt is {dt}; expected dt > 0")
        steps = round(horizon / dt)
        if steps < 1 or abs(steps * dt - horizon) > 1e-9 * horizon:
            raise ValueError(f"dt is {dt}, which does not divide the horizon {horizon}; expected T/dt to be an integer")
    assert steps is not None
    if steps < 1:
        raise ValueError(f"steps is {steps}; expected at least 1")
    return torch.linspace(0, horizon, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class Increments:
    """Brownian increments along a grid.

    Attributes:
        grid: increasing times (K + 1,).
        dw: (K, B, ...), one Brownian motion of the trailing shape a path.

    Raises:
        ValueError: if ``dw`` has no row for every step of the grid or no dimension of paths, or the grid does not
            increase.
    """

    grid: Tensor
    dw: Tensor

    def __post_init__(self) -> None:
        if self.dw.dim() < 2 or self.dw.shape[0] != len(self.grid) - 1:
            raise ValueError(
                f"dw has shape {tuple(self.dw.shape)}; expected ({len(self.grid) - 1}, paths, ...) for a grid of "
                f"{len(self.grid)} times"
            )
        if not bool((self.grid.diff() > 0).all()):
            raise ValueError("grid must increase")

    @staticmethod
    def _scale(grid: Tensor, noise: Tensor) -> Tensor:
        root = grid.diff().to(noise).sqrt()
        return noise.mul_(root.reshape(-1, *(1,) * (noise.dim() - 1)))

    @classmethod
    def sample(
        cls, grid: Tensor, paths: int, shape: Sequence[int], *key: int, dtype: torch.dtype = torch.float64
    ) -> Increments:
        """Fresh increments, a pure function of the key.

        Args:
            grid: times (K + 1,).
            paths: B.
            shape: of one path's Brownian motion, e.g. (n,).
            *key: integers.
            dtype: of the increments.
        """
        # numpy's SFC64 draws float64 normals about twice as fast as torch; most of a simulation's time is here
        bits = np.random.SFC64(np.random.SeedSequence([len(key), *(k % 2**32 for k in key)]))
        kind = np.float32 if dtype == torch.float32 else np.float64
        noise = np.random.Generator(bits).standard_normal((len(grid) - 1, paths, *shape), dtype=kind)
        return cls(grid, cls._scale(grid, torch.from_numpy(noise).to(dtype)))

    @classmethod
    def per_path(
        cls, grid: Tensor, seeds: Sequence[int], shape: Sequence[int], *key: int, dtype: torch.dtype = torch.float64
    ) -> Increments:
        """Increments whose path i depends on ``seeds[i]`` and ``key`` only, not on the number of paths.

        Args:
            grid: times (K + 1,).
            seeds: one integer a path.
            shape: of one path's Brownian motion, e.g. (n,).
            *key: integers.
            dtype: of the increments.
        """
        like = torch.empty(0, dtype=dtype)
        noise = torch.stack([normal((len(grid) - 1, *shape), seed, *key, like=like) for seed in seeds], dim=1)
        return cls(grid, cls._scale(grid, noise))

    def antithetic(self) -> Increments:
        """2 B paths: these, then their reflections -W."""
        return Increments(self.grid, torch.cat([self.dw, -self.dw], dim=1))

    def coarsen(self, every: int) -> Increments:
        """The same paths on every ``every``-th time of the grid.

        Args:
            every: how many steps become one.

        Raises:
            ValueError: if ``every`` does not divide the number of steps.
        """
        steps = self.dw.shape[0]
        if every < 1 or steps % every:
            raise ValueError(f"every is {every}; expected a divisor of the {steps} steps")
        return Increments(self.grid[::every], self.dw.reshape(-1, every, *self.dw.shape[1:]).sum(1))

    def path(self) -> Tensor:
        """W at the grid times, (K + 1, B, ...), W_0 = 0."""
        return torch.cat([torch.zeros_like(self.dw[:1]), self.dw.cumsum(0)])
