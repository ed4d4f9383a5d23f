"""NaN in a batch: a step without a finite gradient is left out and counted; after too many in a row training gives up.

The data are poisoned in the child by wrapping what makes a batch.  Survived, for single batches: the run ends with
finite weights, says what it left out, and ends with the same bits when it is killed and started again between two of
them.  For a poisoned tail: exit code 1, one sentence, and the last good checkpoint goes on with healthy data to the
result of an undisturbed run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aid_control.checkpoints import read_checkpoint

from .programs import Program, TrainBackbone, TrainGuidance
from .table import Tally
from .world import World

__all__ = ["isolated", "persistent"]


def poison_guidance(first: int, every: int, phases: int = 2) -> None:
    """Injected: NaN in the clean images of iterations ``first``, ``first + every``, ... (0 = all later ones).

    Args:
        first: iteration of a phase.
        every: distance of the poisoned ones; 0 = 1.
        phases: 2 = of both phases, 1 = of the second only.
    """
    from aid_control.images.training import InpaintingData

    clean, rollouts = InpaintingData.clean_and_mask, InpaintingData.rollout_batch
    inside: list[bool] = []

    def poisoned(self: Any, batch: int, iteration: int, *rest: Any) -> Any:
        x0, mask = clean(self, batch, iteration, *rest)
        if _hit(iteration, first, every) and (inside or phases == 2):
            x0 = torch.full_like(x0, math.nan)
        return x0, mask

    def second(*arguments: Any, **named: Any) -> Any:
        inside.append(True)
        try:
            return rollouts(*arguments, **named)
        finally:
            inside.clear()

    InpaintingData.clean_and_mask, InpaintingData.rollout_batch = poisoned, second  # type: ignore[method-assign]


def poison_backbone(first: int, every: int) -> None:
    """Injected: the same, in the images of the backbone's training."""
    from aid_control.images.backbones import training

    step, healthy = training.BackboneTrainer.step, training.to_float

    def poisoned(self: Any) -> float:
        hit = _hit(self.images_seen // self.batch, first, every)
        training.to_float = (lambda image: healthy(image) * math.nan) if hit else healthy
        return step(self)

    training.BackboneTrainer.step = poisoned  # type: ignore[method-assign]


def _hit(iteration: int, first: int, every: int) -> bool:
    return iteration >= first and (iteration - first) % (every or 1) == 0


def _newest(out: Path) -> Any:
    return read_checkpoint(max((out / "checkpoints").glob("[0-9]*.safetensors"), key=lambda path: int(path.stem)))


def _finite(state: Any) -> bool:
    if isinstance(state, torch.Tensor):
        return bool(torch.isfinite(state).all())
    values = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    return all(_finite(value) for value in values)


def _skipped(state: Any) -> int:
    """Sum of the counts in a state."""
    if isinstance(state, dict):
        return sum(int(v) if k == "skipped" and isinstance(v, int) else _skipped(v) for k, v in state.items())
    return 0


# program, its injection, the iterations poisoned at the end of which at least so many were counted in the last phase
ISOLATED: list[tuple[type[Program], Callable[..., None], int, int, int]] = [
    (TrainGuidance, poison_guidance, 1, 3, 3),  # 1, 4, 7 of 8 iterations of the second phase
    (TrainBackbone, poison_backbone, 2, 5, 4),  # 2, 7, 12, 17 of 20
]


def isolated(world: World) -> Tally:
    """Single poisoned batches, with and without a kill and a restart between them.

    Args:
        world: what to work on.
    """
    tally = Tally("NaN in single batches")
    for kind, poison, first, every, count in ISOLATED:
        program, before = kind(world), partial(poison, first, every)
        whole, cut = world.fresh("nan"), world.fresh("nan-cut")
        ended = program.again(whole, before)
        told = "skipped" in ended.err
        state = _newest(whole)
        counted = _skipped(state)
        good = ended.code == 0 and told and counted == count and _finite(state)
        wrong = f"{program.name}: {ended.code}, {counted} counted, told {told}, finite {_finite(state)}"
        program.interrupted(cut, 2, before)
        left = program.finished(cut)
        again = program.again(cut, before)
        tally.repeated += program.repeated(left, program.finished(cut), again.out)
        same = again.code == 0 and program.result(cut) == program.result(whole)
        other = program.result(whole) != program.whole()  # or nothing was poisoned
        for _ in range(count):  # the batches; each of them is survived if the run is
            tally.judge()
        tally.survived -= 0 if good and same and other else count
        tally.wrong += [] if good else [wrong]
        tally.wrong += [] if same and other else [f"{program.name}: restart the same {same}, poisoned {other}"]
    return tally


def persistent(world: World) -> Tally:
    """Every batch poisoned from one on: the training gives up, and its last good checkpoint goes on.

    Args:
        world: what to work on.
    """
    tally = Tally("NaN in all further batches")
    for program, before in (
        (TrainGuidance(world, "max_skipped=2"), partial(poison_guidance, 4, 0, 1)),
        (TrainBackbone(world, "max_skipped=3"), partial(poison_backbone, 8, 0)),
    ):
        out = world.fresh("nan-all")
        ended = program.again(out, before)
        gave_up = ended.code == 1 and ended.sentence and "gave up" in ended.err
        left = program.finished(out)
        finite = _finite(_newest(out))
        tally.lost += program.lost(left, left, out)
        again = program.again(out)
        tally.repeated += program.repeated(left, program.finished(out), again.out)
        tally.judge(
            "" if gave_up else f"{program.name}: exit code {ended.code}: {ended.err[-400:]}",
            "" if finite else f"{program.name}: a checkpoint is not finite",
            program.differs(again, out),
        )
    return tally
