"""Memory runs out while pictures are filled: smaller micro-batches, down to one picture at a time.

The address space of the child is limited to what it has plus a few megabytes (``RLIMIT_AS``), a series of limits from
roomy to tight.  Survived: the program either ends with the pictures of a run without a limit (up to one grey level: a
kernel's last bits depend on the batch), or says one sentence and exits with 2; and at least one of the limits made it
fall back and finish.
"""

from __future__ import annotations

import re
import resource
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from .programs import Inpaint
from .table import Tally
from .world import World

__all__ = ["memory"]

LIMITS = (400, 200, 150, 140)  # MB on top of what the child has at its start
BATCH = 6


def limit(megabytes: int) -> None:
    """Injected: limit the address space to what it is now and ``megabytes`` more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize() + megabytes * 1_000_000
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


def _distance(a: Path, b: Path) -> int:
    """Largest difference between the pictures of two runs, in grey levels; 255 where they are not the same files."""
    files = {file.relative_to(a) for file in a.glob("*/*.png")}
    if not files or files != {file.relative_to(b) for file in b.glob("*/*.png")}:
        return 255
    pairs = ([np.asarray(Image.open(folder / file), dtype=int) for folder in (a, b)] for file in files)
    return max(int(np.abs(x - y).max()) for x, y in pairs)


def memory(world: World) -> Tally:
    """Inpaint under every limit.

    Args:
        world: what to work on.
    """
    # the shipped network at 64x64: a batch takes more than the allocator's pools hide
    tally = Tally("out of memory, inpainting")
    own = ("data=null", "backbone=edm-faces64-mini", f"batch={BATCH}", f"n={BATCH}", "steps=2", "rows=1")
    program = Inpaint(world, *own)
    whole = world.fresh("memory-whole")
    undisturbed = program.again(whole)
    fell = 0
    for megabytes in LIMITS:
        out = world.fresh("memory")
        ended = program.again(out, partial(limit, megabytes))
        sizes = re.findall(r"going on with (\d+)", ended.err)
        refused = ended.code == 2 and ended.sentence
        good = ended.code == 0 and _distance(whole, out) <= 1
        fell += bool(good and sizes)
        how = "refused" if refused else f"batch {sizes[-1] if sizes else 'whole'}"
        tally.notes.append(f"{megabytes} MB: {how}")
        tally.judge("" if good or refused else f"{megabytes} MB: exit code {ended.code}: {ended.err[-400:]}")
    if undisturbed.code or not fell:
        tally.wrong.append(f"no limit made it fall back and finish ({undisturbed.code})")
        tally.survived = 0
    return tally
