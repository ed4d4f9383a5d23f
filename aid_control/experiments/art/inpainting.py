r"""Clocks in inpainting: the one of the unguided flow, used where it was not learned, and one learned for AID itself.

AID and projection are flows with another drift (`aid_control.images.problem`), so the levels that suit the frozen flow
need not suit them: AID's control is paid per unit of $\log\sigma$ and acts down to the lowest levels.  Images: the
bundled faces (one photograph, the others synthetic).  Measured in the hole: the root mean square distance to the same
method's fine solution from the same noise, and the PSNR against the true image.

AID's own clock is refined (`images.refine`) on samples of the backbone, with masks and noise that are not those of the
test, from EDM's grid and the grid uniform in $\log\sigma$.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...images.backbones.precond import Denoiser
from ...images.backbones.registry import asset
from ...images.clock import Clock, KarrasClock
from ...images.data import ImageSource, to_float
from ...images.guidance import Guidance
from ...images.inpaint import inpaint
from ...images.learned_clock import LearnedClock
from ...images.masks import make_mask
from ...images.metrics import psnr
from ...rollout import Solver
from .images import from_density, powers, refine, sample, steps_within

__all__ = ["Filling", "Job", "Measured", "bundled", "learn_own", "measure", "training"]


@dataclass(frozen=True)
class Job:
    """Images to fill, one row an image and a mask.

    Attributes:
        y: (B, C, H, W), masks after masks: rows 0 to n - 1 have the first mask.
        mask: (B, 1, H, W).
        seeds: of the starting noise, one a row.
        masks: how many masks.
    """

    y: Tensor
    mask: Tensor
    seeds: list[int]
    masks: int


@dataclass(frozen=True)
class Measured:
    """One method, solver, budget and clock.

    Attributes:
        steps: of the solver.
        error: root mean square in the hole to the fine solution, (B,).
        psnr: in the hole against the true image, in dB, (B,).
    """

    steps: int
    error: Tensor
    psnr: Tensor


def bundled(net: Denoiser, kinds: Sequence[str], most: int | None = None) -> Job:
    """The bundled faces, each with every mask.

    Args:
        net: gives the size.
        kinds: of masks (`make_mask`).
        most: number of faces; ``None`` = all.
    """
    source = ImageSource(asset("faces"), net.shape[-1], net.shape[0])
    n = len(source) if most is None else min(most, len(source))
    y = to_float(torch.stack([source[i] for i in range(n)]))
    masks = torch.cat([make_mask(kind, net.shape[-1], i)[None] for kind in kinds for i in range(n)])
    return Job(y.repeat(len(kinds), 1, 1, 1), masks, list(range(n)) * len(kinds), len(kinds))


def training(net: Denoiser, kinds: Sequence[str], n: int, first: int) -> Job:
    """Samples of the backbone to learn a clock on, each with every mask.

    Args:
        net: a denoiser.
        kinds: of masks.
        n: number of samples.
        first: seed of the first one; masks and starting noise have others.
    """
    y = sample(net, range(first, first + n), 18, "heun", KarrasClock()).clamp(-1, 1)
    masks = torch.cat([make_mask(kind, net.shape[-1], first + i)[None] for kind in kinds for i in range(n)])
    # a sample's own noise would lead the flow back to it
    seeds = [first + 10_000 + i for i in range(n)]
    return Job(y.repeat(len(kinds), 1, 1, 1), masks, seeds * len(kinds), len(kinds))


class Filling:
    """One method on one job, and its fine solution.

    Args:
        net: a denoiser.
        job: the images.
        guidance: of AID; ``None`` = projection.
        fine: Heun steps of the fine solution, on EDM's grid.

    Attributes:
        truth: the fine solution, (B, C, H, W).
    """

    def __init__(self, net: Denoiser, job: Job, guidance: Guidance | None, fine: int) -> None:
        self.net, self.job, self.guidance, self._hole = net, job, guidance, 1 - job.mask
        self.truth = self.fill(fine, "heun", KarrasClock())

    def fill(self, steps: int, solver: Solver, clock: Clock) -> Tensor:
        """Inpaint.

        Args:
            steps: of the solver.
            solver: ``"euler"`` or ``"heun"``.
            clock: noise levels.

        Returns:
            (B, C, H, W).
        """
        base = "projected" if self.guidance is None else None
        job = self.job
        return inpaint(
            self.net, self.guidance, job.y, job.mask, steps, solver, job.seeds, clock=clock, base=base
        )  # fmt: skip

    def measured(self, x: Tensor, steps: int) -> Measured:
        """Compare images with the fine solution and the truth.

        Args:
            x: what was filled, (B, C, H, W).
            steps: it took.
        """
        square = (x - self.truth).double().square().mean(1, keepdim=True) * self._hole
        error = (square.flatten(1).sum(1) / self._hole.flatten(1).sum(1)).sqrt()
        return Measured(steps, error, psnr(x, self.job.y, self._hole))

    def within(self, budget: int, solver: Solver, clock: Clock) -> Measured:
        """Fill with as many steps as a budget allows, and measure.

        Args:
            budget: calls an image.
            solver: ``"euler"`` or ``"heun"``.
            clock: noise levels.
        """
        steps = steps_within(self.net, budget, solver, clock)
        return self.measured(self.fill(steps, solver, clock), steps)


def learn_own(
    filling: Filling,
    solver: Solver,
    budget: int,
    knots: int,
    evaluations: int,
    about: Mapping[str, str | float],
    progress: Callable[[], object] | None = None,
) -> LearnedClock:
    """The clock of a method, refined on its own error.

    Args:
        filling: the method on training images.
        solver: ``"euler"`` or ``"heun"``.
        budget: calls an image.
        knots: of the clock.
        evaluations: clocks that are measured.
        about: what the clock says of itself.
        progress: called after every clock.
    """
    ends = torch.tensor([80.0, 0.002], dtype=torch.float64)
    starts = [from_density(ends, ends ** (1 / 7), knots, KarrasClock(), about)]
    starts += powers(starts[0], (0.0,))
    return refine(starts, lambda c: float(filling.within(budget, solver, c).error.mean()), evaluations, progress)


def measure(
    filling: Filling,
    clocks: Mapping[str, Mapping[Solver, Clock]],
    budgets: Sequence[int],
    progress: Callable[[], object] | None = None,
) -> dict[tuple[str, int, str], Measured]:
    """Compare clocks for one method.

    Args:
        filling: the method on test images.
        clocks: name to solver to clock.
        budgets: calls an image.
        progress: called after every row.

    Returns:
        (solver, budget, clock's name) to what was measured; and ``("heun", 0, "fine")``, the fine solution itself.
    """
    found = {("heun", 0, "fine"): filling.measured(filling.truth, 0)}
    for name, own in clocks.items():
        for solver, clock in own.items():
            for budget in budgets:
                found[solver, budget, name] = filling.within(budget, solver, clock)
                if progress is not None:
                    progress()
    return found
