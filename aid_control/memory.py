"""The largest resident memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

__all__ = ["peak_memory"]


def peak_memory() -> int:
    """Bytes, so far (on Linux since ``5`` was last written to ``/proc/self/clear_refs``)."""
    try:  # on Linux ru_maxrss starts at the parent's size, even in a new program
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 2**10
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 2**10)
