"""SIGKILL at random moments of a run, in chains: kill, start again, kill, ... until the run has ended by itself.

Half of the moments are uniform over the duration of an undisturbed run, start and end included; half wait for such a
moment and then for the next file that is being written.  A kill is survived if the restart goes on, and the chain ends
with the results of the undisturbed run, bit for bit.  Only the program itself is killed, as the kernel does when memory
runs out: its workers must end by themselves.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from .launcher import Ended, Running, session
from .programs import Finished, Program, temporaries
from .table import Tally

__all__ = ["kills"]

WORKERS_END = 20.0  # seconds that workers may outlive the program


def _writing(out: Path, folders: tuple[str, ...]) -> bool:
    """Whether a file is being written in one of these folders of ``out``."""
    for folder in folders:
        try:
            if any(path.name.endswith(".tmp") for path in (out / folder).iterdir()):
                return True
        except OSError:
            continue
    return False


class Chain:
    """Runs of one program into one folder; keeps what each kill left.

    Args:
        program: the program.
        out: the folder.
        tally: where kills are counted.
    """

    def __init__(self, program: Program, out: Path, tally: Tally) -> None:
        self.program, self.out, self.tally = program, out, tally
        self.left: Finished = {}
        self.kills, self.torn, self.orphans = 0, 0, ""

    def run(self, moment: float | None = None, aimed: bool = False) -> Ended:
        """Run until the end or the kill; counts what the run repeated, and what the kill lost.

        Args:
            moment: of the kill, in seconds; ``None`` = no kill.
            aimed: wait, from that moment, for a file that is being written.
        """
        program, out = self.program, self.out
        torn = set(temporaries(out))
        running = Running(program.file, program.options(out), program.log(out))
        seen = dict(self.left)
        while running.alive:
            seen |= program.finished(out)
            due = moment is not None and time.monotonic() - running.begin >= moment
            if due and (not aimed or _writing(out, program.folders)):
                running.kill()
                break
            time.sleep(0.0005 if due else 0.005)
        ended = running.end()
        if not session(running.pid, WORKERS_END):
            self.orphans = f"{out.name}: its workers lived on for more than {WORKERS_END:g} s"
        now = program.finished(out)
        self.tally.repeated += program.repeated(self.left, seen | now, ended.out)
        if ended.code == -9:
            self.kills += 1
            self.torn += not set(temporaries(out)) <= torn
            self.tally.lost += program.lost(seen, now, out)
        self.left = now
        return ended


def kills(program: Program, count: int) -> Tally:
    """Kill a program that often.

    Args:
        program: the program.
        count: kills in all; the chains are as many as it takes.

    Raises:
        RuntimeError: if a forked run does not give what one by the interpreter gives.
    """
    tally, rng = Tally(f"SIGKILL, {program.name}"), program.world.rng(program.name)
    forked = program.world.fresh("forked")
    undisturbed = program.again(forked)
    if program.differs(undisturbed, forked):
        raise RuntimeError(program.differs(undisturbed, forked))

    def moments() -> Iterator[tuple[float, bool]]:
        while True:
            yield float(rng.uniform(0, undisturbed.seconds)), bool(rng.random() < 0.5)

    chains, torn, behind, moment = 0, 0, 0, moments()
    bar = tqdm(total=count, desc=tally.fault, unit="kill")
    while tally.injected < count:
        chain, chains = Chain(program, program.world.fresh("kill"), tally), chains + 1
        ended = chain.run(*next(moment))
        while ended.code == -9:
            bar.update()
            ended = chain.run(*(next(moment) if tally.injected + chain.kills < count else (None, False)))
        wrong = program.differs(ended, chain.out) or chain.orphans
        tally.wrong += [wrong] if wrong else []
        tally.injected += max(chain.kills, bool(wrong))  # a run that fails without a kill counts as one
        tally.survived += 0 if wrong else chain.kills
        torn, behind = torn + chain.torn, behind + len(temporaries(chain.out))
        shutil.rmtree(chain.out, ignore_errors=True)
    bar.close()
    tally.notes += [f"{chains} chains of a run of {undisturbed.seconds:.1f} s", f"{torn} hit a file being written"]
    tally.notes += [f"{behind} temporary files left in the end"] if behind else []
    return tally
