"""Faults injected into the real programs, and what became of their results: ``python examples/verify_faults.py``.

Kills at random moments, full disks, read-only folders, dead workers, NaN, a lack of memory, jumps of the clock, damaged
files: training, benchmark, data sets and inpainting run at tiny sizes as processes of their own, are disturbed and
started again.  Printed are the faults injected and survived, and the finished results that were lost or computed
twice; the exit code is 1 where one fault was not survived, or one result lost or repeated.  See
``conf/verify_faults.yaml`` for the options, and ``faults`` for what each fault is.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from faults.clock import clock
from faults.damage import damage
from faults.disk import full_disk, read_only, size_limit
from faults.kills import kills
from faults.launcher import preload
from faults.memory import memory
from faults.nans import isolated, persistent
from faults.programs import Benchmark, Prepare, Program, TrainBackbone, TrainGuidance
from faults.table import Tally, table
from faults.workers import ranks, torchrun, workers
from faults.world import World
from omegaconf import OmegaConf

from aid_control.checkpoint import atomic_write
from aid_control.errors import InputError
from aid_control.program import program
from aid_control.report import Report

KILLED: dict[str, type[Program]] = {
    "guidance": TrainGuidance, "backbone": TrainBackbone, "benchmark": Benchmark, "prepare": Prepare,
}  # fmt: skip


def injections(cfg: dict[str, Any], world: World) -> dict[str, list[Callable[[], Tally]]]:
    """What is done, by the names of the option ``only``."""
    several: list[Callable[[], Tally]] = []
    if cfg["launched"]:
        several.append(lambda: torchrun(world, Benchmark(world, "workers=1")))
        several.append(lambda: torchrun(world, TrainGuidance(world)))
        several.append(partial(ranks, world))
    return {
        "kill": [partial(kills, KILLED[name](world), cfg["kills"]) for name in cfg["programs"] if cfg["kills"]],
        "disk": [partial(full_disk, world), partial(size_limit, world)],
        "readonly": [partial(read_only, world)],
        "worker": [*([partial(workers, world, cfg["workers"])] if cfg["workers"] else []), *several],
        "nans": [partial(isolated, world), partial(persistent, world)],
        "memory": [partial(memory, world)],
        "clock": [partial(clock, world)],
        "damage": [partial(damage, world, cfg["rounds"])] if cfg["rounds"] else [],
    }


def tallies(chosen: list[Callable[[], Tally]]) -> Iterator[Tally]:
    for inject in chosen:
        start = time.monotonic()
        tally = inject()
        took = time.monotonic() - start
        print(f"{tally.fault}: {tally.survived} of {tally.injected} survived, {took:.0f} s", flush=True)
        for line in tally.wrong:
            print(f"  wrong: {line}", flush=True)
        yield tally


def main(config: Any) -> int:
    cfg: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    counts = [cfg[name] for name in ("kills", "workers", "rounds")]
    if not all(isinstance(n, int) and n >= 0 for n in counts) or not isinstance(cfg["seed"], int) or cfg["seed"] < 0:
        raise InputError("expected whole numbers of at least 0 for kills, workers, rounds and seed")
    unknown = set(cfg["programs"]) - set(KILLED)
    if unknown:
        raise InputError(f"programs holds {sorted(unknown)[0]!r}; expected some of {', '.join(KILLED)}")
    torch.set_num_threads(1)
    out = Path(cfg["out"])
    names = list(injections(cfg, None))  # type: ignore[arg-type]
    only = names if cfg["only"] is None else [cfg["only"]] if isinstance(cfg["only"], str) else cfg["only"]
    if not only or set(only) - set(names):
        raise InputError(f"only is {cfg['only']}; expected some of {', '.join(names)}")
    preload()
    begin = time.monotonic()
    world = World(out / "work", cfg["seed"])
    done = list(tallies([inject for name in names if name in only for inject in injections(cfg, world)[name]]))
    report = Report(settings=cfg, skipped={t.fault: t.skipped for t in done if t.skipped},
                    notes={t.fault: t.notes for t in done}, wrong={t.fault: t.wrong for t in done if t.wrong},
                    seconds=round(time.monotonic() - begin))  # fmt: skip
    for tally in done:
        tally.rows(report)
    print(table(done))
    atomic_write(out / "faults.md", (table(done) + "\n").encode())
    code = report.finish(out)
    if not code:
        shutil.rmtree(world.folder)
    return code


if __name__ == "__main__":
    program("conf/verify_faults", main)
