"""Output that cannot be written: a full disk, a limit of the file size, a read-only folder, a path below a file.

A disk of a few kilobytes or megabytes (a ``tmpfs``) fills up in the middle of a run.  Survived: the program says one
sentence and ends with another exit code than 0; what was finished is whole; after making room the same command ends
with the results of an undisturbed run.  Mounting needs root: where it is not allowed the limit of the file size
(``ulimit -f``) is all that is tried.
"""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from .programs import Benchmark, Inpaint, Prepare, Program, TrainBackbone, TrainGuidance
from .table import Tally
from .world import World

__all__ = ["full_disk", "read_only", "size_limit"]

Remount = Callable[[str], None]
# parts of the largest file of a run (training), or of all its files (the others), that there is room for
FILE_PARTS, ALL_PARTS = (0.5, 2.7, 3.6), (0.1, 0.5, 0.8)


class NoDisk(Exception):
    """Mounting is not allowed; the message says so."""


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[Remount]:
    """A disk of ``size`` bytes at ``folder``; gives a function that mounts it again with other options.

    Raises:
        NoDisk: where that is not allowed.
    """
    folder.mkdir(parents=True)
    try:
        _run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        raise NoDisk("mounting a tmpfs is not allowed here") from error
    try:
        yield lambda options: _run("mount", "-o", f"remount,{options}", str(folder))
    finally:
        _run("umount", str(folder))


def _sizes(program: Program) -> list[int]:
    """Bytes of the files that a run leaves, in whole pages."""
    out = program.world.fresh("size")
    program.again(out)
    return [-(-path.stat().st_size // 4096) * 4096 for path in out.rglob("*") if path.is_file()]


def _one(program: Program, out: Path, tally: Tally, room: Callable[[], None], limit: Callable[[], None] | None) -> int:
    """A run that must fail, room, and a run that must end well; returns how many results the first had finished."""
    failed = program.again(out, limit)
    left = program.finished(out)
    tally.lost += program.lost(left, left, out)  # what is there is whole
    said = "" if failed.code > 0 and failed.sentence else f"{out}: exit code {failed.code}: {failed.err[-400:]}"
    room()
    ended = program.again(out)
    tally.repeated += program.repeated(left, program.finished(out), ended.out)
    tally.judge(said, program.differs(ended, out))
    return len(left)


def full_disk(world: World) -> Tally:
    """Fill the disk under every program, at several moments.

    Args:
        world: what to work on.
    """
    tally = Tally("full disk (tmpfs)")
    for program in (kind(world) for kind in (TrainGuidance, TrainBackbone, Benchmark, Prepare, Inpaint)):
        training, sizes = isinstance(program, TrainGuidance | TrainBackbone), _sizes(program)
        had: list[str] = []
        parts, size = (FILE_PARTS, max(sizes)) if training else (ALL_PARTS, sum(sizes))
        for part in parts:
            folder = world.fresh("disk")
            try:
                with _disk(folder, int(part * size)) as remount:
                    had.append(str(_one(program, folder / "o", tally, partial(remount, "size=1g"), None)))
            except NoDisk as error:
                tally.skipped = str(error)
                return tally
        if set(had) != {"0"}:
            tally.notes.append(f"{program.name}: {', '.join(had)} finished files when it was full")
    return tally


def size_limit(world: World) -> Tally:
    """Limit the size of files (``ulimit -f``) to half of the largest that each program writes.

    Args:
        world: what to work on.
    """
    tally = Tally("limit of the file size")
    for program in (kind(world) for kind in (TrainGuidance, TrainBackbone, Prepare)):
        size = max(_sizes(program)) // 2
        limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
        _one(program, world.fresh("limit"), tally, lambda: None, limit)
    return tally


def read_only(world: World) -> Tally:
    """Output below a file, and a run that goes on in a folder that has become read-only: exit code 2, one sentence.

    Args:
        world: what to work on.
    """
    tally = Tally("output that cannot be written")
    (world.folder / "file").write_text("no folder")
    programs = [kind(world) for kind in (TrainGuidance, TrainBackbone, Benchmark, Prepare, Inpaint)]
    for program in programs:
        ended = program.again(world.folder / "file" / "o")
        right = ended.code == 2 and ended.sentence
        tally.judge("" if right else f"below a file, {program.name}: {ended.code}: {ended.err[-400:]}")
    for program in programs:
        folder = world.fresh("readonly")
        try:
            with _disk(folder, 1 << 30) as remount:
                out = folder / "o"
                program.interrupted(out, 2)
                out.mkdir(exist_ok=True)
                before = program.finished(out)
                remount("ro")
                refused = program.again(out)
                kept = program.finished(out)
                tally.lost += program.lost(before, kept, out)
                right = refused.code == 2 and refused.sentence or program.done(refused, out)
                said = "" if right else f"read-only, {program.name}: {refused.code}: {refused.err[-400:]}"
                remount("rw")
                ended = program.again(out)
                tally.repeated += program.repeated(kept, program.finished(out), ended.out)
                tally.judge(said, program.differs(ended, out))
        except NoDisk as error:
            tally.notes.append(f"below a file only: {error}")
            break
    return tally
