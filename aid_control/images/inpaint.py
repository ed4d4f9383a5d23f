"""``inpaint``: the one function users call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..noise import per_image_normal
from ..policy import GaussianPolicy, ZeroMean
from ..rollout import Solver, rollout
from .backbones.precond import Denoiser
from .clock import Clock, check_clock, within
from .guidance import Guidance
from .masks import check_mask
from .micro_batch import MicroBatch
from .module_files import check_trained_for
from .problem import GuidanceProblem, Observation, levels_of

__all__ = ["check_images", "check_shape", "function_evaluations", "inpaint", "starting_noise"]


def check_images(backbone: Denoiser, y: Tensor, mask: Tensor, name: str = "image") -> None:
    """Refuse images and masks that do not fit the backbone; arguments and errors as `check_shape`."""
    check_shape(tuple(backbone.shape), y, mask, name)


def check_shape(shape: tuple[int, ...], y: Tensor, mask: Tensor, name: str = "image") -> None:
    """Refuse images of another shape than asked for, and masks that do not fit them.

    Args:
        shape: (C, H, W) of an image.
        y: images, to be (B, C, H, W); what they hold in the hole is not looked at.
        mask: to be (B, 1, H, W), 1 = known, 0 = hole.
        name: how messages call the images, e.g. the file they came from.

    Raises:
        InputError: for another size or number of channels, NaN or infinity in known pixels, or a bad mask, as
            `masks.check_mask`.
    """
    if tuple(y.shape[1:]) != shape:
        raise InputError(f"{name}: shape {tuple(y.shape)}; expected (B, {', '.join(map(str, shape))})")
    if tuple(mask.shape) != (len(y), 1, *shape[1:]):
        raise InputError(f"mask of {name}: shape {tuple(mask.shape)}; expected {(len(y), 1, *shape[1:])}")
    check_mask(mask, f"mask of {name}")
    if not torch.isfinite(torch.where(mask.bool(), y, 0.0)).all():
        raise InputError(f"{name}: known pixels hold NaN or infinity; expected numbers in [-1, 1]")


def starting_noise(backbone: Denoiser, seeds: Sequence[int], n: int, device: Any = "cpu") -> Tensor:
    """Unit noise; a row depends on its seed only, and not on the batch.

    Args:
        backbone: gives (C, H, W).
        seeds: one an image.
        n: number of images.
        device: where to put it; it is drawn on the CPU.

    Returns:
        (n, C, H, W) float32, independent standard normal.

    Raises:
        InputError: if the number of seeds is not n.
    """
    if len(seeds) != n:
        raise InputError(f"{len(seeds)} seeds for {n} images; expected one an image")
    return per_image_normal(seeds, tuple(backbone.shape)).to(device)


def function_evaluations(steps: int, solver: str, backbone: Denoiser, clock: Clock | None = None) -> int:
    """Backbone calls an image of `inpaint`: K for Euler, 2K - 1 for Heun, less where it steps by Euler (few steps).

    Args:
        steps: K, the number of solver steps.
        solver: ``"euler"`` or ``"heun"``.
        backbone: gives the noise range and the rounding of levels.
        clock: noise levels; default as `inpaint`.
    """
    problem = GuidanceProblem(backbone, clock or within(backbone.sigma_min, backbone.sigma_max))
    grid = levels_of(problem, steps)
    singular = sum(problem.singular(t, s) for t, s in zip(grid[:-1], grid[1:], strict=True))
    return steps if solver == "euler" else 2 * steps - singular


@torch.no_grad()
def inpaint(
    backbone: Denoiser,
    guidance: Guidance | None,
    y: Tensor,
    mask: Tensor,
    steps: int = 18,
    solver: Solver = "heun",
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callable[[int, Tensor], None] | None = None,
    base: str | None = None,
    micro_batch: int | None = None,
) -> Tensor:
    """Fill the holes of images.

    The state is kept in the precision of ``y``, noise levels in float64; backbone and guidance compute in the precision
    of their weights: for bfloat16, convert all three.

    Args:
        backbone: frozen denoiser (`aid_control.images.load_backbone`).
        guidance: AID module (`aid_control.images.load_guidance`); ``None`` = the pretrained flow, whose
            known pixels are only pasted at the end.
        y: images (B, C, H, W) in [-1, 1]; what they hold in the hole is ignored.
        mask: (B, 1, H, W), 1 = known, 0 = hole.
        steps: solver steps.
        solver: ``"heun"`` (2 steps - 1 backbone calls; fewer below seven steps) or ``"euler"`` (steps calls).
        seeds: one an image; default 0, 1, 2, ...
        class_labels: one-hot (B, n) for conditional backbones.
        clock: noise levels; default EDM's grid, within the backbone's range.
        callback: called as callback(k, x) after every step (of every micro-batch).
        base: frozen drift, ``"flow"`` or ``"projected"`` (see `problem`); default the one the guidance was
            trained on, the flow without guidance.
        micro_batch: so many images at a time at most, halved where memory runs out (`micro_batch`); ``None`` = all at
            once, and a lack of memory is torch's error.

    Returns:
        Images (B, C, H, W); known pixels equal ``y`` exactly.

    Raises:
        InputError: for inputs that do not fit the backbone, guidance of another backbone or precision, an unknown
            solver, fewer than one step, noise levels as `check_clock` refuses them, a number of seeds that is not that
            of the images, a micro-batch below 1, or memory that does not suffice for one image of a micro-batch.
        ValueError: for an unknown base.
    """
    check_images(backbone, y, mask)
    if solver not in ("euler", "heun"):
        raise InputError(f"solver is {solver!r}; expected euler or heun")
    if steps < 1:
        raise InputError(f"steps is {steps}; expected at least 1")
    if guidance is not None:
        check_trained_for(guidance, backbone, "guidance")
        if (has := next(guidance.parameters()).dtype) != y.dtype:
            raise InputError(f"guidance is in {has}, images in {y.dtype}; expected the same precision")
    clock = clock or within(backbone.sigma_min, backbone.sigma_max)
    check_clock(clock)
    problem = GuidanceProblem(backbone, clock, base=base or (guidance.base if guidance is not None else "flow"))
    grid, policy = levels_of(problem, steps).to(y.device), GaussianPolicy(ZeroMean() if guidance is None else guidance)
    y, mask = torch.where(mask.bool(), y, 0.0), mask.to(y)
    noise = starting_noise(backbone, range(len(y)) if seeds is None else seeds, len(y), y.device)

    def fill(rows: slice) -> Tensor:
        labels = class_labels if class_labels is None or len(class_labels) != len(y) else class_labels[rows]
        known, m = y[rows], mask[rows]
        context = Observation(known, m, class_labels=labels) if guidance is None else guidance.observe(known, m, labels)
        x = (noise[rows] * clock.sigma_max).to(y.dtype)
        path = rollout(problem, policy, x, grid, context, solver=solver, keep="last", callback=callback)
        return torch.where(m.bool(), known, path.states[-1])

    if micro_batch is None:
        return fill(slice(None))
    return torch.cat(MicroBatch(micro_batch)(fill, len(y)))
