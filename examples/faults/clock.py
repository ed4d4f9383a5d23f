"""The wall clock jumps: what is newest, and when to stop, must not depend on it.

In the child ``time.time`` is replaced (the monotonic clock is not), and files get times of the past and the future.
"""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from .programs import Benchmark, Prepare, Program, TrainBackbone, TrainGuidance
from .table import Tally
from .world import World

__all__ = ["clock"]

DAY, YEAR = 86_400.0, 365 * 86_400.0


def jump(*offsets: float) -> None:
    """Injected: every further call of ``time.time`` gets the next of the offsets (seconds), round and round."""
    true, count = time.time, [0]

    def jumping() -> float:
        count[0] += 1
        return max(true() + offsets[count[0] % len(offsets)], 0.0)

    time.time = jumping


def freeze() -> None:
    """Injected: the clock stands still, in 1970."""
    time.time = lambda: 0.0


def scramble(folder: Path) -> None:
    """Give the newest file the oldest time, and so on; the oldest is of the year 2100."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for age, path in enumerate(reversed(files)):
        stamp = 4_102_444_800.0 * (age / max(len(files) - 1, 1))
        os.utime(path, (stamp, stamp))


def clock(world: World) -> Tally:
    """All jumps, for all programs that go on.

    Args:
        world: what to work on.
    """
    tally = Tally("clock jumps, times of files")
    jumps = {
        "back and forth by a day": partial(jump, 0.0, -DAY, DAY), "back by a year": partial(jump, 0.0, -YEAR),
        "ten years ahead": partial(jump, 0.0, 10 * YEAR),
    }  # fmt: skip
    for before in jumps.values():
        # nobody has waited for a thousand minutes, whatever the clock says
        program: Program = TrainGuidance(world, "minutes=1000")
        out = world.fresh("jump")
        tally.judge(TrainGuidance(world).differs(program.again(out, before), out))
    for program in (Prepare(world), TrainBackbone(world)):  # an archive has no times: also before 1980
        out = world.fresh("freeze")
        tally.judge(program.differs(program.again(out, freeze), out))
    # a limit of the time ends a run also where the clock stands still
    program, short = TrainGuidance(world), TrainGuidance(world, "minutes=0.005")
    out = world.fresh("minutes")
    stopped = short.again(out, freeze)
    left = program.finished(out)
    early = stopped.code == 0 and len(left) > 0 and int(max(left).split(".")[0]) < 20
    ended = program.again(out)
    tally.repeated += program.repeated(left, program.finished(out), ended.out)
    tally.judge("" if early else f"minutes=: {stopped.code}, {sorted(left)}", program.differs(ended, out))
    for program, folder in ((TrainGuidance(world), "checkpoints"), (Benchmark(world), "shards")):
        out = world.fresh("times")
        program.interrupted(out, 3)
        scramble(out / folder)
        left = program.finished(out)
        tally.lost += program.lost(left, left, out)
        ended = program.again(out)
        tally.repeated += program.repeated(left, program.finished(out), ended.out)
        tally.judge(program.differs(ended, out))
    return tally
