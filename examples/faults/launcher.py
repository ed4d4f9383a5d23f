"""Real programs as processes that can be killed: forked from a server that has torch loaded, so that a start is quick.

What runs is the program's own file, as ``__main__``, with its own command line, in a process of its own; the start by
the interpreter is the same but for the time of the imports.  Reference runs (`run`) are started by the interpreter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["ROOT", "Ended", "Running", "command", "environment", "members", "preload", "run", "session", "start"]

ROOT = Path(__file__).resolve().parents[2]
PRELOAD = [
    "torch", "hydra", "matplotlib.backends.backend_agg", "matplotlib.pyplot", "torch.utils.tensorboard",
    "aid_control.program", "aid_control.images", "aid_control.images.benchmark.run", "aid_control.images.prepare",
    "aid_control.trainer",
]  # fmt: skip
PATIENCE = 300.0  # seconds that a program of these sizes may take; more is a hang


@dataclasses.dataclass
class Ended:
    """How a program ended.

    Attributes:
        code: exit code; -9 after a SIGKILL.
        out: its standard output.
        err: its standard error.
        seconds: it took.
    """

    code: int
    out: str
    err: str
    seconds: float

    @property
    def sentence(self) -> bool:
        """Whether it said what is wrong in one sentence: no traceback, one line that starts with ``error: ``."""
        said = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return "Traceback" not in self.err and len(said) == 1


def environment() -> dict[str, str]:
    """One thread, and the repository's package."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def command(program: str, options: Sequence[str]) -> list[str]:
    """The command line: ``examples/NAME.py``, or ``-m MODULE`` for a program without the ending."""
    own = [str(ROOT / "examples" / program)] if program.endswith(".py") else ["-m", program]
    return [sys.executable, *own, *options]


def run(program: str, options: Sequence[str], launcher: Sequence[str] = ()) -> Ended:
    """Run a program to its end, started by the interpreter.

    Args:
        program: file in ``examples``, or a module.
        options: of the program.
        launcher: between the interpreter and the program, such as ``-m torch.distributed.run``.
    """
    line = command(program, options)
    begin = time.monotonic()
    done = subprocess.run(
        [line[0], *launcher, *line[1:]], env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    return Ended(done.returncode, done.stdout, done.stderr, time.monotonic() - begin)


def preload() -> None:
    """Start the server that forks, and wait for its imports; its processes have one thread."""
    os.environ.update(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    # killed programs leave semaphores to the server, whose tracker would tell of each of them in the end
    os.environ["PYTHONWARNINGS"] = "ignore::UserWarning:multiprocessing.resource_tracker"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    first = context.Process(target=os.getpid)
    first.start()
    first.join()


def _main(program: str, options: Sequence[str], log: str, before: Callable[[], None] | None) -> None:
    """In the child, in a session of its own: the streams to files, the injection, then the program as ``__main__``."""
    os.setsid()
    for stream, name in ((1, "out"), (2, "err")):
        file = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    for text in (sys.stdout, sys.stderr):
        text.reconfigure(line_buffering=True)  # type: ignore[union-attr] # what is said before a kill is kept
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if before is not None:
        before()
    line = command(program, options)
    sys.argv = [line[1] if program.endswith(".py") else program, *options]
    try:
        if program.endswith(".py"):
            sys.path[0] = str(ROOT / "examples")
            runpy.run_path(line[1], run_name="__main__")
        else:
            sys.modules.pop(program, None)  # it is preloaded; runpy wants to be the first
            runpy.run_module(program, run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def members(pid: int) -> list[int]:
    """Processes of the session that a program started, without those that have ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session_id = entry.read_text().rpartition(")")[2].split()[:4]
            if int(session_id) == pid and state not in "ZX":
                found.append(int(entry.parent.name))
    return found


def session(pid: int, patience: float) -> bool:
    """Wait until nothing is left of a program and what it started.

    Args:
        pid: of the program.
        patience: seconds.

    Returns:
        Whether all have ended.
    """
    deadline = time.monotonic() + patience
    while members(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Running:
    """A program at work, forked; ends are collected by `end`.

    Args:
        program: file in ``examples``, or a module.
        options: of the program.
        log: where its streams go, with ``.out`` and ``.err``.
        before: called in the child before the program starts: injects a fault.
    """

    def __init__(
        self, program: str, options: Sequence[str], log: Path, before: Callable[[], None] | None = None
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.begin = log, time.monotonic()
        context = multiprocessing.get_context("forkserver")
        self._process = context.Process(target=_main, args=(program, list(options), str(log), before))
        self._process.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def end(self, patience: float = PATIENCE) -> Ended:
        """Wait for the end.

        Args:
            patience: seconds.

        Raises:
            TimeoutError: if it does not come; the program is killed.
        """
        self._process.join(patience)
        if self.alive:
            self._process.kill()
            self._process.join()
            raise TimeoutError(f"{self.log}: did not end within {patience:g} s")
        code = self._process.exitcode
        assert code is not None
        out, err = (Path(f"{self.log}.{name}") for name in ("out", "err"))
        texts = [file.read_text(errors="replace") if file.exists() else "" for file in (out, err)]
        return Ended(code, *texts, time.monotonic() - self.begin)


def start(program: str, options: Sequence[str], log: Path, before: Callable[[], None] | None = None) -> Ended:
    """Run a program to its end, forked; arguments as `Running`."""
    return Running(program, options, log, before).end()
