"""What a reader did beside reading: an audit hook that notes files written, processes, sockets and unpickled names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

__all__ = ["Watch", "tree"]

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# events of Python's audit hooks whose first one or two arguments are paths that change
CHANGES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "shutil.", "tempfile.",
)  # fmt: skip
RUNS = (
    "subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.startfile", "pty.",
    "ctypes.dlopen", "pickle.find_class", "marshal.loads",
)  # fmt: skip


class Watch:
    """Notes events while ``armed``; an audit hook cannot be taken away, so one watch lives as long as its process.

    Attributes:
        armed: whether events are noted.
        allowed: folder in which anything may be written.
        seen: what was noted: ``(kind, text)`` with kind ``write``, ``exec`` or ``socket``.
    """

    def __init__(self) -> None:
        self.armed, self.allowed, self.seen = False, "", list[tuple[str, str]]()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & WRITES:
                self._path(event, path)
        elif event.startswith("socket.") and event != "socket.gethostname":  # logs carry the name of the machine
            self.seen.append(("socket", f"{event} {str(args)[:100]}"))
        elif event == "os.mkdir" and os.path.isdir(args[0]):
            pass  # asked for, and there already: nothing changes
        elif event.startswith(CHANGES):
            for path in args[:2]:
                self._path(event, path)
        elif event.startswith(RUNS) and not (event == "marshal.loads" and _importing()):
            self.seen.append(("exec", f"{event} {str(args)[:100]}"))

    def _path(self, event: str, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike) or str(path) == os.devnull:
            return  # a descriptor that was open already, a mode, a time
        armed, self.armed = self.armed, False
        try:
            real = os.path.realpath(os.fsdecode(path))
        finally:
            self.armed = armed
        if real == f"/proc/{os.getpid()}/clear_refs":
            return  # how a process measures its own memory
        if real != self.allowed and not real.startswith(self.allowed + os.sep):
            self.seen.append(("write", f"{event} {real[:200]}"))


def _importing() -> bool:
    """Whether Python's own importer is at work: it reads compiled modules with marshal."""
    frame = sys._getframe(2)
    while frame is not None:
        if "importlib" in frame.f_code.co_filename:
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file of a folder: what code outside Python wrote there shows in it."""
    found = {}
    for place, _, files in os.walk(folder):
        for name in (*files, "."):
            state = os.lstat(os.path.join(place, name))
            found[os.path.join(place, name)] = (state.st_size, state.st_mtime_ns)
    return found
