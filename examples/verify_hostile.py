"""Bad inputs of every kind, tens of thousands of them: ``python examples/verify_hostile.py out=DIR``.

Fuzzers (``examples/hostile``, one kind of input a file) damage pictures, masks, archives, tables of labels, arrays,
files of weights, official checkpoints and options, and hand them to this package's readers and programs.  Every input
must be accepted, with a valid result, or refused, by an ``InputError`` of one sentence.  Anything else is an escape:
another exception, a crash, a hang, memory beyond the limit, a file written outside the output folder, a process, a
socket.  Prints a table, writes ``report.json``, keeps the inputs that escaped; the exit code is 1 if there are any.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from hostile.harness import Fuzzer, Tally, run
from hostile.images import Images
from hostile.labels import Labels
from hostile.latents import Latents
from hostile.masks import Masks
from hostile.official import Official
from hostile.options import Options, Programs
from hostile.tensors import Tensors
from hostile.zips import Zips
from omegaconf import OmegaConf
from tqdm import tqdm

from aid_control.errors import InputError
from aid_control.program import program
from aid_control.report import Report

FUZZERS: dict[str, type[Fuzzer]] = {
    kind.name: kind for kind in (Images, Masks, Zips, Labels, Latents, Tensors, Official, Options, Programs)
}
WANTED = 50_000  # inputs over all fuzzers


def shares(names: Iterable[str], n: int) -> dict[str, int]:
    """How many of n inputs each fuzzer tries, at least one; they add up to n or a few more."""
    total = sum(FUZZERS[name].share for name in names)
    return {name: max(math.ceil(n * FUZZERS[name].share / total), 1) for name in names}


def table(tallies: dict[str, Tally], seconds: dict[str, float]) -> str:
    """The counts as a Markdown table."""
    lines = ["| fuzzer | inputs tried | accepted | refused | escapes | seconds |", "|---|---|---|---|---|---|"]
    for name, tally in tallies.items():
        counts = [tally.tried, tally.counts["accepted"], tally.counts["refused"], len(tally.escapes)]
        lines.append(f"| {name} | {' | '.join(f'{c:,}' for c in counts)} | {seconds[name]:.0f} |")
    tried, escapes = sum(t.tried for t in tallies.values()), sum(len(t.escapes) for t in tallies.values())
    both = [sum(t.counts[kind] for t in tallies.values()) for kind in ("accepted", "refused")]
    lines.append(f"| all | {tried:,} | {both[0]:,} | {both[1]:,} | {escapes:,} | {sum(seconds.values()):.0f} |")
    return "\n".join(lines)


def main(config: Any) -> int:
    cfg: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    if not sys.platform.startswith("linux"):
        raise InputError(f"platform is {sys.platform}; expected linux, for its limits of memory")
    only = [cfg["only"]] if isinstance(cfg["only"], str) else cfg["only"] or list(FUZZERS)
    for name in only:
        if name not in FUZZERS:
            raise InputError(f"only is {name!r}; expected some of {', '.join(FUZZERS)}")
    if cfg["first"] < 0:
        raise InputError(f"first is {cfg['first']}; expected 0 or more")
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True  # what a reader imports late would be written beside it, and counted
    out = Path(cfg["out"]).resolve()
    tallies, seconds = {}, {}
    counts = shares(only, cfg["n"])
    with tqdm(total=sum(counts.values()), unit="input", smoothing=0.05) as bar, TemporaryDirectory() as work:
        for name, count in counts.items():
            bar.set_description(name)
            start = time.monotonic()
            fuzzer = FUZZERS[name](Path(work).resolve() / name)
            fuzzer.prepare()
            tallies[name] = run(fuzzer, count, cfg["seed"], cfg["first"], out / "escapes", bar.update)
            seconds[name] = time.monotonic() - start
    report = Report(settings=cfg, counts={name: dict(tally.counts) for name, tally in tallies.items()})
    for name, tally in tallies.items():
        for escape in tally.escapes:
            print(f"{name} {escape.index}: {escape.kind}: {' '.join(escape.text.split())[:300]}")
            again = f"only={name} first={escape.index} n=1 seed={cfg['seed']}"
            print(f"  kept in {out / 'escapes' / f'{name}-{escape.index}'}; again: python {sys.argv[0]} {again}")
        report.below(f"{name}: escapes", len(tally.escapes), 0)
        if tally.tried >= 100:  # a reader that refuses everything, or nothing, is no reader
            report.above(f"{name}: accepted", tally.counts["accepted"], 1)
            report.above(f"{name}: refused", tally.counts["refused"], 1)
    tried = sum(tally.tried for tally in tallies.values())
    report.above("inputs tried", tried, WANTED if cfg["n"] == WANTED and cfg["only"] is None else 1)
    print(table(tallies, seconds))
    return report.finish(out)


if __name__ == "__main__":
    program("conf/verify_hostile", main)
