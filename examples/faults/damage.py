"""Damaged files: the newest checkpoint cut, emptied, overwritten, with a flipped bit; a damaged shard.

Survived, training: a warning names the file, the run goes on from the one before, and ends with the result of an
undisturbed run.  What the damage itself destroys is not counted as lost; that more than it has to be computed again
would be.  Survived, benchmark: one sentence names the shard; without it, the run computes that one again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .programs import Benchmark, Program, TrainBackbone, TrainGuidance
from .table import Tally
from .world import World

__all__ = ["damage"]

Damage = Callable[[bytes, np.random.Generator], bytes]


def _flip(data: bytes, low: int, high: int, rng: np.random.Generator) -> bytes:
    at = int(rng.integers(low, high))
    return data[:at] + bytes([data[at] ^ (1 << int(rng.integers(8)))]) + data[at + 1 :]


def _header(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


KINDS: dict[str, Damage] = {
    "cut": lambda data, rng: data[: int(rng.integers(1, len(data)))],
    "cut in the header": lambda data, rng: data[: int(rng.integers(1, _header(data)))],
    "empty": lambda data, rng: b"",
    "a bit of a tensor": lambda data, rng: _flip(data, _header(data), len(data), rng),
    "a bit of the header": lambda data, rng: _flip(data, 8, _header(data), rng),
    "a bit of its length": lambda data, rng: _flip(data, 0, 8, rng),
    "noise": lambda data, rng: rng.bytes(len(data)),
    "a page of zeros": lambda data, rng: data[:-4096] + bytes(4096),
}


def _checkpoints(program: Program, tally: Tally, rounds: int) -> None:
    rng, start = program.world.rng(f"damage {program.name}"), program.world.fresh("whole-before")
    program.interrupted(start, 3)
    files = sorted((start / "checkpoints").glob("[0-9]*.safetensors"))
    for name, kind in list(KINDS.items()) * rounds:
        out = program.world.fresh("damaged")
        shutil.copytree(start, out)
        newest, before = (out / "checkpoints" / files[-k].name for k in (1, 2))
        newest.write_bytes(kind(newest.read_bytes(), rng))
        ended = program.again(out)
        named = any("warning" in line and newest.name in line for line in ended.err.splitlines())
        source = f"continuing from {before}" in ended.out
        tally.repeated += 0 if source else 1
        told = "" if named else f"{program.name}, {name}: no warning names {newest.name}: {ended.err[-300:]}"
        where = "" if source else f"{program.name}, {name}: did not go on from {before.name}: {ended.out[-200:]}"
        tally.judge(told, where, program.differs(ended, out))
        shutil.rmtree(out)


def _shards(program: Program, tally: Tally) -> None:
    rng, out = program.world.rng("damage shards"), program.world.fresh("damaged")
    program.again(out)
    for name in ("cut", "a bit of a tensor", "a bit of the header", "empty"):
        left = program.finished(out)
        # the last kind of shards has no tensors but those of pictures
        shard: Path = out / "shards" / max(left, key=lambda n: (out / "shards" / n).stat().st_size)
        shard.write_bytes(KINDS[name](shard.read_bytes(), rng))
        refused = program.again(out)
        right = refused.code == 2 and refused.sentence and shard.name in refused.err
        shard.unlink()
        ended = program.again(out)
        del left[shard.name]
        tally.repeated += program.repeated(left, program.finished(out), ended.out)
        said = "" if right else f"shard, {name}: exit code {refused.code}: {refused.err[-300:]}"
        tally.judge(said, program.differs(ended, out))


def damage(world: World, rounds: int = 1) -> Tally:
    """Every kind of damage.

    Args:
        world: what to work on.
        rounds: of all kinds, at other places of the file.
    """
    tally = Tally("damaged files")
    for kind in (TrainGuidance, TrainBackbone):
        _checkpoints(kind(world), tally, rounds)
    _shards(Benchmark(world, "workers=1"), tally)
    return tally
