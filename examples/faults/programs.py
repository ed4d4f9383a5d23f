"""The programs under test: how each is started, which of its results are finished, and what it ends with.

Finished results are whole iterations up to the newest checkpoint (training), shards (benchmark) and the archive
(data sets).  Of one run after a kill are counted

* *lost*: results that were seen finished before the kill and are not there, or not readable, after it;
* *repeated*: results that were there after the kill and were computed again by the restart.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from aid_control.checkpoint import load_state, load_tensors
from aid_control.errors import InputError

from .launcher import Ended, Running, run, session, start
from .world import SIDE, World

__all__ = [
    "PROGRAMS", "Benchmark", "Finished", "Inpaint", "Prepare", "Program", "TrainBackbone", "TrainGuidance",
    "temporaries",
]  # fmt: skip

Finished = dict[str, tuple[int, int]]  # name -> (inode, time of the last change)


def temporaries(out: Path) -> list[Path]:
    """Files that are being written (or were, by a process that is no more) in ``out`` and beside it."""
    inside = out.rglob(".*.tmp") if out.is_dir() else ()
    return [*inside, *out.parent.glob(f".{out.name}*.tmp")]


def _hash(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {k: hashlib.sha256(v.contiguous().numpy().tobytes()).hexdigest() for k, v in tensors.items()}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, dict | list):
        for k, v in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(v, f"{path}/{k}")


class Program:
    """What all have in common.

    Args:
        world: what it works on.
        more: further options, that do not change `result`.
    """

    name = ""
    file = ""
    folders = ("",)  # of ``out``, where files are written

    def __init__(self, world: World, *more: str) -> None:
        self.world, self.more = world, more

    def options(self, out: Path) -> list[str]:
        """Its command line for a run into ``out``."""
        raise NotImplementedError

    def finished(self, out: Path) -> Finished:
        """Results that are there; their names and stamps, without reading them."""
        raise NotImplementedError

    def result(self, out: Path) -> dict[str, str]:
        """Hashes of all that must be the same in the end, bit for bit."""
        raise NotImplementedError

    def lost(self, seen: Finished, left: Finished, out: Path) -> int:
        """How many of the results ``seen`` before a kill are not among those ``left``, or are not whole."""
        raise NotImplementedError

    def repeated(self, left: Finished, now: Finished, log: str) -> int:
        """How many of the results ``left`` by a kill were computed again: by their stamps ``now``, and by the log."""
        raise NotImplementedError

    def done(self, ended: Ended, out: Path) -> bool:
        """Whether a run that ended by itself ended well."""
        return ended.code == 0

    def whole(self) -> dict[str, str]:
        """`result` of an undisturbed run, started by the interpreter, without further options; computed once.

        Raises:
            RuntimeError: if that does not work.
        """
        key = self.name
        if key not in self.world.whole:
            out = self.world.fresh("whole")
            ended = run(self.file, type(self)(self.world).options(out))
            if ended.code:
                raise RuntimeError(f"{self.name}: the undisturbed run ended with {ended.code}: {ended.err[-2000:]}")
            self.world.whole[key] = self.result(out)
        return self.world.whole[key]

    def differs(self, ended: Ended, out: Path) -> str:
        """What is wrong with a run that should have ended like the undisturbed one; "" = nothing."""
        if not self.done(ended, out):
            return f"{out.name}: exit code {ended.code}: {ended.err[-300:]}"
        try:
            return "" if self.result(out) == self.whole() else f"{out.name}: other results than undisturbed"
        except (OSError, ValueError) as error:
            return f"{out.name}: no whole result: {error}"

    def log(self, out: Path) -> Path:
        """Where the streams of a run into ``out`` go."""
        return self.world.folder / "logs" / f"{out.name}-{self.world.number()}"

    def interrupted(self, out: Path, results: int, before: Callable[[], None] | None = None) -> Ended:
        """A run that is killed once it has so many finished results."""
        running = Running(self.file, self.options(out), self.log(out), before)
        while running.alive and len(self.finished(out)) < results:
            time.sleep(0.002)
        running.kill()
        ended = running.end()
        session(running.pid, 20.0)
        return ended

    def again(self, out: Path, before: Callable[[], None] | None = None) -> Ended:
        """A run to the end, forked."""
        return start(self.file, self.options(out), self.log(out), before)


def _stamps(folder: Path, pattern: str) -> Finished:
    found = {}
    for path in folder.glob(pattern):
        try:
            about = path.stat()
        except FileNotFoundError:  # one of the older ones, just removed
            continue
        found[path.name] = (about.st_ino, about.st_mtime_ns)
    return found


class _Training(Program):
    """Iterations, by numbered checkpoints."""

    folders = ("checkpoints", "")
    weights = ""

    def finished(self, out: Path) -> Finished:
        return _stamps(out / "checkpoints", "[0-9]*.safetensors")

    @staticmethod
    def _newest(found: Finished) -> int:
        return max((int(Path(name).stem) for name in found), default=0)

    def result(self, out: Path) -> dict[str, str]:
        newest = max((out / "checkpoints").glob("[0-9]*.safetensors"), key=lambda path: int(path.stem))
        state = dict(_leaves(load_state(newest)))
        return {"iteration": newest.stem, **_hash(state), **_hash(load_tensors(out / self.weights)[0])}

    def lost(self, seen: Finished, left: Finished, out: Path) -> int:
        whole: Finished = {}
        for name in sorted(left, key=lambda name: -int(Path(name).stem)):
            try:
                load_state(out / "checkpoints" / name)
                whole[name] = left[name]
                break
            except InputError:
                continue
        return max(self._newest(seen) - self._newest(whole), 0)

    def repeated(self, left: Finished, now: Finished, log: str) -> int:
        newest = self._newest(left)
        # written again, or for the first time though there was a later one; the newest itself may be saved once more
        again = sum(left.get(name) != stamp for name, stamp in now.items() if int(Path(name).stem) < newest)
        source = re.search(r"continuing from (\S+?)(\d+)\.safetensors", log)
        return max(again, newest - int(source[2]) if source else 0)


class TrainGuidance(_Training):
    """12 iterations of the encoder, 8 of the guidance."""

    name, file, weights = "guidance training", "train_guidance.py", "guidance.safetensors"

    def options(self, out: Path) -> list[str]:
        return [
            f"data={self.world.pictures}", f"backbone={self.world.backbone}", f"out={out}", "encoder_iterations=12",
            "encoder_batch=4", "iterations=8", "batch=2", "steps=3", "every=2", f"seed={self.world.seed}", *self.more,
        ]  # fmt: skip


class TrainBackbone(_Training):
    """20 iterations of a U-Net of 16x16; samples are drawn with every checkpoint."""

    name, file, weights = "backbone training", "train_backbone.py", "backbone.safetensors"

    def options(self, out: Path) -> list[str]:
        side = SIDE // 2
        return [
            f"data={self.world.small}", f"out={out}", "kimg=0.08", "batch=4", "every=16",
            f"network.img_resolution={side}", "network.model_channels=8", "network.channel_mult=[1]",
            "network.attn_resolutions=[]", f"seed={self.world.seed}", *self.more,
        ]  # fmt: skip


class Benchmark(Program):
    """Shards of one image each, computed by two workers."""

    name, file, folders = "benchmark, two workers", "benchmark.py", ("shards", "")

    def options(self, out: Path) -> list[str]:
        return [
            f"data={self.world.pictures}", f"backbone={self.world.backbone}", f"out={out}", "n=8", "chunk=1",
            "steps=[12]", "methods=[paste,ddnm]", "masks=[box,random]", "reference=ddnm", "figures=false",
            "workers=2", f"seed={self.world.seed}", *self.more,
        ]  # fmt: skip

    def finished(self, out: Path) -> Finished:
        return _stamps(out / "shards", "[!.]*.safetensors")

    def result(self, out: Path) -> dict[str, str]:
        names = ("results.csv", "tables.md")
        return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}

    def lost(self, seen: Finished, left: Finished, out: Path) -> int:
        missing = set(seen) - set(left)
        for name in left:
            try:
                load_tensors(out / "shards" / name)
            except InputError:
                missing.add(name)
        return len(missing)

    def repeated(self, left: Finished, now: Finished, log: str) -> int:
        return sum(now.get(name) != stamp for name, stamp in left.items())


class Prepare(Program):
    """An archive of 1000 pictures; it is there whole or not at all, and a finished one is refused."""

    name, file = "dataset writing", "aid_control.images.prepare"

    def options(self, out: Path) -> list[str]:
        return [str(self.world.many), str(out / "data.zip"), f"resolution={SIDE // 2}", *self.more]

    def finished(self, out: Path) -> Finished:
        return _stamps(out, "data.zip")

    def result(self, out: Path) -> dict[str, str]:
        return {"data.zip": hashlib.sha256((out / "data.zip").read_bytes()).hexdigest()}

    def lost(self, seen: Finished, left: Finished, out: Path) -> int:
        return len(set(seen) - set(left))

    def repeated(self, left: Finished, now: Finished, log: str) -> int:
        return sum(now.get(name) != stamp for name, stamp in left.items())

    def done(self, ended: Ended, out: Path) -> bool:
        there = ended.code == 2 and "exists already" in ended.err and bool(self.finished(out))
        return ended.code == 0 or there


class Inpaint(Program):
    """Four pictures; it computes all, then writes: nothing goes on after a fault, but the next run does it all."""

    name, file = "inpainting", "inpaint_ffhq.py"

    def options(self, out: Path) -> list[str]:
        return [
            f"data={self.world.pictures}", f"backbone={self.world.backbone}", f"out={out}", "n=4", "steps=3",
            "threads=1", *self.more,
        ]  # fmt: skip

    def finished(self, out: Path) -> Finished:
        return {}

    def result(self, out: Path) -> dict[str, str]:
        files = sorted(out.glob("*/*.png"))
        return {str(file.relative_to(out)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    def lost(self, seen: Finished, left: Finished, out: Path) -> int:
        return 0

    def repeated(self, left: Finished, now: Finished, log: str) -> int:
        return 0


PROGRAMS: tuple[type[Program], ...] = (TrainGuidance, TrainBackbone, Benchmark, Prepare)
