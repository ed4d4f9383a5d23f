"""Runs a fuzzer in child processes, so that whatever an input does is seen, counted and survived.

An input is a function of (seed, fuzzer, index) and of nothing else.  A child makes it, hands it to the reader under the
watch, and reports a verdict:

- ``accepted``: the reader returned, and what it returned is valid;
- ``refused``: an ``InputError`` with a message of one line;
- an escape: ``exception`` (any other), ``memory`` (the limit of the child was reached), ``write`` (a file outside the
  output folder), ``exec`` (a process, or a name unpickled), ``socket``, ``hang`` (no verdict in time), ``crash``.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import random
import resource
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aid_control.errors import InputError

from .watch import Watch, tree

__all__ = ["ESCAPES", "Escape", "Fuzzer", "Tally", "generator", "run"]

ESCAPES = ("exception", "memory", "write", "exec", "socket", "hang", "crash")
# an InputError that only puts a sentence around one of these is no refusal: the damage was done
SWALLOWED = ("allocate memory", "MemoryError", "Cannot allocate", "recursion depth")
IDLE = 0.05  # seconds of work; a child that did less in a whole time limit is asleep
CHUNK = 1_000  # inputs a child: what libraries keep does not add up


class Fuzzer:
    """One kind of input.  Subclasses set the attributes and write ``make`` and ``attempt``.

    Attributes:
        name: of the fuzzer.
        share: of all inputs that are tried, relative to the other fuzzers'.
        seconds: of processor time, after which an input has hung; one that sleeps as long has, too.
        memory: bytes that a reader may claim beyond what the process has at the start.
        chunk: inputs a child.
        outside: the working folder of the child; nothing in it may change.
        out: the only folder in which anything may be written.
    """

    name = ""
    share = 1.0
    seconds = 20.0
    memory = 1 << 30
    chunk = CHUNK

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs, self.out, self.outside = folder / "in", folder / "out", folder / "outside"
        for place in (self.inputs, self.out, self.outside):
            place.mkdir(parents=True, exist_ok=True)
        (self.outside / "precious.txt").write_text("not to be touched")

    def prepare(self) -> None:
        """Make what every input starts from, and use the readers once: libraries import parts of themselves late."""

    def make(self, rng: random.Random) -> Any:
        """Make an input (files go into ``self.inputs``) from the generator alone."""
        raise NotImplementedError

    def attempt(self, made: Any) -> None:
        """Hand the input to the reader; check what it returns."""
        raise NotImplementedError


@dataclass
class Escape:
    """An input that got through: its index, the kind of escape, and what was seen."""

    index: int
    kind: str
    text: str


@dataclass
class Tally:
    """Counts of one fuzzer's verdicts, refusals by their first words, and the escapes."""

    counts: Counter[str] = field(default_factory=Counter)
    escapes: list[Escape] = field(default_factory=list)

    @property
    def tried(self) -> int:
        """How many inputs were tried."""
        return sum(self.counts.values())


def generator(fuzzer: str, seed: int, index: int) -> random.Random:
    """The randomness of one input."""
    return random.Random(f"{seed}/{fuzzer}/{index}")


def run(
    fuzzer: Fuzzer,
    n: int,
    seed: int = 0,
    first: int = 0,
    kept: Path | None = None,
    tick: Callable[[], Any] = lambda: None,
) -> Tally:
    """Try n inputs.

    Args:
        fuzzer: prepared.
        n: how many.
        seed: of the inputs.
        first: index of the first.
        kept: folder for inputs that escape.
        tick: called after every input.
    """
    tally, index, context = Tally(), first, multiprocessing.get_context("fork")
    while index < first + n:
        ours, theirs = context.Pipe(duplex=False)
        upto = min(index + fuzzer.chunk, first + n)
        child = context.Process(target=_child, args=(fuzzer, seed, index, upto, theirs), daemon=True)
        child.start()
        theirs.close()
        while index < upto:
            verdict = _verdict(ours, child, fuzzer.seconds)
            kind, text = verdict
            if kind == "broken":
                raise RuntimeError(f"the fuzzer cannot make this input: {text}")
            tally.counts[kind if kind in ("accepted", "refused") else "escape"] += 1
            if kind in ESCAPES:
                tally.escapes.append(Escape(index, kind, text))
                if kept is not None:
                    _keep(fuzzer, kept / f"{fuzzer.name}-{index}", text)
            tick()
            index += 1
            if kind in ("hang", "crash"):
                break  # the child is gone
        child.join(fuzzer.seconds)
        if child.is_alive():
            child.kill()
            child.join()
        ours.close()
    return tally


def _verdict(ours: Connection, child: Any, seconds: float) -> tuple[str, str]:
    start = before = _spent(child.pid)
    try:
        while not ours.poll(seconds):
            # on a loaded machine a child gets little of the processor: waiting for that is no hang
            spent = _spent(child.pid)
            if spent - start > seconds or spent - before < IDLE:
                break
            before = spent
        else:
            return ours.recv()
    except (EOFError, ConnectionError):
        child.join()
        code = child.exitcode or 0
        return "crash", f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    child.kill()
    child.join()
    return "hang", f"no verdict within {seconds:g} s of work, or asleep"


def _spent(pid: int) -> float:
    """Seconds of processor time of a child so far."""
    with suppress(OSError), open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _keep(fuzzer: Fuzzer, target: Path, text: str) -> None:
    shutil.rmtree(target, ignore_errors=True)
    with suppress(OSError, shutil.Error):  # a pipe or a broken link among the inputs cannot be copied
        shutil.copytree(fuzzer.inputs, target, symlinks=True, ignore=lambda place, names: _special(place, names))
    target.mkdir(parents=True, exist_ok=True)
    (target / "escape.txt").write_text(text, errors="replace")


def _special(place: str, names: list[str]) -> list[str]:
    paths = [os.path.join(place, name) for name in names]
    return [n for n, p in zip(names, paths, strict=True) if os.path.exists(p) and not os.path.isfile(p)]


def _claimed() -> int:
    """Bytes of this process's address space."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _clean(folder: Path) -> None:
    """Empty a folder; what an input puts there is a handful of files."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)


def _child(fuzzer: Fuzzer, seed: int, first: int, upto: int, pipe: Connection) -> None:
    os.chdir(fuzzer.outside)
    faulthandler.disable()  # a crash is the parent's to tell
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)  # nothing to read, nobody to read warnings
    watch = Watch()
    watch.allowed = os.path.realpath(fuzzer.out)
    limit = _claimed() + fuzzer.memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for index in range(first, upto):
        _clean(fuzzer.inputs)
        _clean(fuzzer.out)
        try:
            made = fuzzer.make(generator(fuzzer.name, seed, index))
        except Exception as error:  # a fault of the fuzzer, to be seen as such
            pipe.send(("broken", f"{fuzzer.name} {index}: {error!r} {_where(error)}"))
            return
        pipe.send(_outcome(fuzzer, made, watch))


def _outcome(fuzzer: Fuzzer, made: Any, watch: Watch) -> tuple[str, str]:
    watch.seen, before = [], tree(fuzzer.outside)
    kind, text = "accepted", ""
    watch.armed = True
    try:
        fuzzer.attempt(made)
    except InputError as error:
        kind, text = "refused", " ".join(str(error).split())
        if not text:
            kind, text = "exception", "a refusal without a message"
    except MemoryError as error:
        kind, text = "memory", f"MemoryError {error} {_where(error)}"
    except BaseException as error:  # noqa: BLE001 - whatever escapes is the finding
        kind, text = "exception", f"{type(error).__name__}: {str(error)[:300]} {_where(error)}"
    finally:
        watch.armed = False
    if any(word in text for word in SWALLOWED):
        kind = "memory"
    if tree(fuzzer.outside) != before:
        watch.seen.append(("write", "a file of the working folder changed"))
    if watch.seen:
        kind, text = watch.seen[0][0], "; ".join(f"{what}" for _, what in watch.seen[:5])
    return kind, text[:2_000]


def _where(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__)[-4:])
