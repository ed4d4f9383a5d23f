"""One of several processes is killed: the others end in bounded time, and the same command completes the run.

Three ways to be several: the benchmark's own workers; two ranks under ``torchrun``, which watches them; two ranks
started by hand, as on two machines, where nobody does and the one that is left must notice by itself.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import time
from functools import partial
from pathlib import Path

from .launcher import PATIENCE, Running, command, environment, members, run, session
from .programs import Benchmark, Program, TrainGuidance
from .table import Tally
from .world import World

__all__ = ["ranks", "torchrun", "workers"]

BOUND = 120.0  # seconds that the others may live on
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def _cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _children(pid: int) -> list[int]:
    try:
        return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _until(program: Program, out: Path, results: int, alive: subprocess.Popen[bytes] | Running) -> None:
    """Wait for so many finished results, or the end."""
    deadline = time.monotonic() + PATIENCE
    while len(program.finished(out)) < results and time.monotonic() < deadline:
        if not (alive.alive if isinstance(alive, Running) else alive.poll() is None):
            return
        time.sleep(0.005)


def workers(world: World, count: int) -> Tally:
    """SIGKILL of one of the benchmark's two workers: one sentence that says what is kept, exit code 1.

    Args:
        world: what to work on.
        count: how often.
    """
    program, rng = Benchmark(world), world.rng("workers")
    tally = Tally("a worker of the benchmark killed")
    for _ in range(count):
        out = world.fresh("worker")
        running = Running(program.file, program.options(out), program.log(out))
        _until(program, out, int(rng.integers(1, 16)), running)
        seen = program.finished(out)
        found = [pid for pid in members(running.pid) if "spawn_main" in _cmdline(pid)]
        if found:
            os.kill(found[int(rng.integers(len(found)))], signal.SIGKILL)
        ended = running.end(BOUND)
        right = found and ended.code == 1 and ended.sentence and "is kept" in ended.err
        said = "" if right else f"{out.name}: {len(found)} workers, exit code {ended.code}: {ended.err[-400:]}"
        alone = "" if session(running.pid, 20.0) else f"{out.name}: the other worker lives on"
        left = program.finished(out)
        tally.lost += program.lost(seen, left, out)
        again = program.again(out)
        tally.repeated += program.repeated(left, program.finished(out), again.out)
        tally.judge(said, alone, program.differs(again, out))
    return tally


def torchrun(world: World, program: Program) -> Tally:
    """SIGKILL of one of two ranks under torchrun: it ends the other, and itself with an exit code other than 0.

    Args:
        world: what to work on.
        program: one that runs on several processes.
    """
    tally = Tally(f"a rank killed under torchrun, {program.file}")
    if importlib.util.find_spec("accelerate") is None:
        tally.skipped = "accelerate is not installed"
        return tally
    whole, out = world.fresh("two-whole"), world.fresh("two")
    first = run(program.file, program.options(whole), TORCHRUN)
    line = command(program.file, program.options(out))
    with open(f"{program.log(out)}.err", "wb") as log:
        process = subprocess.Popen(
            [line[0], *TORCHRUN, *line[1:]], env=environment(), stdout=log, stderr=log, start_new_session=True
        )
        _until(program, out, 2, process)
        seen = program.finished(out)
        ranks = _children(process.pid)  # in sessions of their own
        if ranks:
            os.kill(ranks[-1], signal.SIGKILL)
        try:
            code = process.wait(BOUND)
        except subprocess.TimeoutExpired:
            code = 0
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    said = "" if len(ranks) == 2 and code else f"{out.name}: {len(ranks)} ranks, or no end within {BOUND:g} s"
    living = [pid for pid in ranks if program.file in _cmdline(pid)]
    alone = f"{out.name}: the other rank lives on" if living else ""
    left = program.finished(out)
    tally.lost += program.lost(seen, left, out)
    again = run(program.file, program.options(out), TORCHRUN)
    tally.repeated += program.repeated(left, program.finished(out), again.out)
    same = first.code == again.code == 0 and program.result(whole) == program.result(out)
    tally.judge(said, alone, "" if same else f"{out.name}: exit codes {first.code}, {again.code}: {again.err[-400:]}")
    return tally


def _rank(number: int, port: int) -> None:
    """Injected: the environment of one of two ranks."""
    os.environ.update(
        WORLD_SIZE="2", RANK=str(number), LOCAL_RANK=str(number), LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )  # fmt: skip


def _pair(program: Program, out: Path) -> list[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        Running(program.file, program.options(out), program.log(out), partial(_rank, number, port))
        for number in (0, 1)
    ]  # fmt: skip


def ranks(world: World) -> Tally:
    """SIGKILL of either of two ranks that nobody watches: the other ends by itself, with an exit code other than 0.

    Args:
        world: what to work on.
    """
    tally = Tally("a rank killed, two ranks without a supervisor")
    if importlib.util.find_spec("accelerate") is None:
        tally.skipped = "accelerate is not installed"
        return tally
    for program in (TrainGuidance(world), Benchmark(world, "workers=1")):
        whole = world.fresh("pair-whole")
        codes = [running.end().code for running in _pair(program, whole)]
        for victim in (1, 0):
            out = world.fresh("pair")
            pair = _pair(program, out)
            _until(program, out, 2, pair[0])
            seen = program.finished(out)
            pair[victim].kill()
            begin = time.monotonic()
            other = pair[1 - victim].end(BOUND)
            tally.notes.append(f"{time.monotonic() - begin:.0f} s")
            pair[victim].end()
            said = "" if other.code > 0 else f"{out.name}: the other rank ended with {other.code}"
            left = program.finished(out)
            tally.lost += program.lost(seen, left, out)
            again = [running.end() for running in _pair(program, out)]
            tally.repeated += program.repeated(left, program.finished(out), again[0].out)
            same = [e.code for e in again] == codes == [0, 0] and program.result(out) == program.result(whole)
            tally.judge(said, "" if same else f"{out.name}: the restart: {again[0].err[-300:]}{again[1].err[-300:]}")
    tally.notes = ["the other ended after " + ", ".join(tally.notes)]
    return tally
