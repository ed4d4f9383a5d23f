r"""How the state moves over one step of a rollout, for every mode, scheme and engine.

The closed loop is put together here: the problem's velocity and noise under a held action, or under the
feedback itself where a scheme looks at it within the step; and, in the averaged mode, the columns $D_j F$,
$FF' = \Sigma$, that the policy's spread adds to the noise where the control enters it as $\sigma_j = \dots + D_j u$.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from .increments import Increments
from .noise import brownian, generator
from .policy import GaussianPolicy
from .problem import ControlProblem
from .schemes import SCHEMES, Field, PathBrownian, torchsde_step

__all__ = ["Engine", "Mode", "Motion", "Solver"]

Mode = Literal["mean", "averaged", "sampled"]
Solver = Literal["euler", "heun", "milstein", "srk"]
Engine = Literal["own", "torchsde"]


class Motion:
    """The steps of one rollout; the arguments are those of `rollout.rollout`.

    Raises:
        ValueError: for a scheme that does not fit the noise, or increments that do not fit grid and problem.
    """

    def __init__(
        self,
        problem: ControlProblem,
        policy: GaussianPolicy,
        x: Tensor,
        grid: Tensor,
        context: Any,
        mode: Mode,
        solver: Solver,
        engine: Engine,
        increments: Increments | None,
        entropy: int | tuple[int, ...],
    ) -> None:
        self.problem, self.policy, self.grid, self.context, self.mode = problem, policy, grid, context, mode
        self.solver, self.engine = solver, engine
        # within the step only these two look at the feedback again
        self.closed = mode != "sampled" and (solver == "milstein" or engine == "torchsde")
        self.columns = self._exploration(grid[0], x) if mode == "averaged" else None
        self.increments = increments
        self.path: Any = None
        if engine == "own" and solver == "srk":
            raise ValueError("solver 'srk' belongs to engine 'torchsde'; expected euler or milstein")
        if problem.noise == "none" and self.columns is None:
            if engine == "torchsde":
                raise ValueError("engine 'torchsde' is for diffusing problems; expected 'own' for one without noise")
            return
        if solver == "heun":
            raise ValueError("Heun is for deterministic problems; expected euler or milstein for a diffusing one")
        self.own = math.prod(problem.noise_dim(x)) if problem.noise != "none" else 0
        wanted: tuple[int, ...] = problem.noise_dim(x)
        if self.columns is not None:
            wanted = (self.own + self.columns.shape[-1],)
        if increments is not None:
            self._check(increments, (x.shape[0], *wanted))
            if engine == "torchsde":
                used = increments.dw[..., : wanted[-1]]
                self.path = PathBrownian(Increments(increments.grid, used))
        elif engine == "torchsde":
            flat = (x.shape[0], math.prod(wanted))
            step, area = float(grid.diff().min()), solver == "srk"
            self.path = brownian(float(grid[0]), float(grid[-1]), step, flat, _number(entropy), x, area)
        else:
            key = entropy if isinstance(entropy, tuple) else (entropy,)
            self.increments = Increments.sample(grid, x.shape[0], wanted, *key, dtype=x.dtype)

    def _check(self, increments: Increments, wanted: tuple[int, ...]) -> None:
        have = tuple(increments.dw.shape[1:])
        same = len(increments.grid) == len(self.grid) and torch.allclose(increments.grid.to(self.grid), self.grid)
        more = self.problem.noise == "columns" and have[:-1] == wanted[:-1] and have[-1] >= wanted[-1]
        fits = have == wanted or more
        if not (same and fits):
            raise ValueError(
                f"increments have {len(increments.grid)} times and shape {have}; expected the grid's "
                f"{len(self.grid)} times and {wanted} (or more columns)"
            )

    def _exploration(self, t: Tensor, x: Tensor) -> Tensor | None:
        return self.problem.exploration_columns(t, x, self.policy.std(t).to(x))

    def _control(self, held: Tensor, probe: Any) -> Callable[[Tensor, Tensor], Tensor]:
        if not self.closed:
            return lambda t, y: held
        return lambda t, y: self.policy.mean(t, y, self.context, self.problem.probe(t, y, self.context))

    def _field(self, t0: Tensor, action: Tensor, probe: Any) -> Field:
        problem, context, control = self.problem, self.context, self._control(action, probe)

        def velocity(t: Tensor, y: Tensor) -> Tensor:
            # the probe at the step's start is already known
            at = probe if t is t0 else problem.probe(t, y, context)
            return problem.velocity(t, y, control(t, y), context, at)

        if problem.noise == "none" and self.columns is None:
            return Field(velocity)
        if self.columns is None:
            return Field(
                velocity,
                problem.noise,
                lambda t, y, dw: problem.diffuse(t, y, control(t, y), dw),
                lambda t, y: problem.diffusion(t, y, control(t, y)),  # type: ignore[arg-type,return-value]
            )
        own = self.own

        def diffuse(t: Tensor, y: Tensor, dw: Tensor) -> Tensor:
            columns = self._exploration(t, y)
            assert columns is not None
            extra = torch.einsum("bdn,bn->bd", columns, dw[..., own : own + columns.shape[-1]])
            return problem.diffuse(t, y, control(t, y), dw[..., :own]) + extra

        def sigma(t: Tensor, y: Tensor) -> Tensor:
            main, columns = problem.diffusion(t, y, control(t, y)), self._exploration(t, y)
            assert main is not None and columns is not None
            return torch.cat([main, columns.expand(y.shape[0], -1, -1)], dim=-1)

        return Field(velocity, "columns", diffuse, sigma)

    def step(self, k: int, x: Tensor, action: Tensor, probe: Any) -> tuple[Tensor, int]:
        """One step from a time of the grid to the next.

        Args:
            k: number of the step.
            x: X_k, (B, ...).
            action: the action held over the step, (B, m) or like x.
            probe: what the frozen system answers at (t_k, X_k).

        Returns:
            The next state, like x, and the number of drift evaluations (2 for Heun; a step of torchsde counts as 1).
        """
        t, s = self.grid[k], self.grid[k + 1]
        motion = self._field(t, action, probe)
        if self.path is not None:
            return torchsde_step(motion, t, s, x, self.path, self.solver), 1
        dw = None
        if motion.diffuse is not None:
            assert self.increments is not None
            dw = self.increments.dw[k]
            if self.columns is None and self.problem.noise == "columns":
                dw = dw[..., : self.own]
        name = "euler" if self.solver == "heun" and self.problem.singular(t, s) else self.solver
        return SCHEMES[name](motion, t, s, x, dw), 2 if name == "heun" else 1


def _number(key: int | tuple[int, ...]) -> int:
    """One seed from a key."""
    return key if isinstance(key, int) else generator(*key).initial_seed()
