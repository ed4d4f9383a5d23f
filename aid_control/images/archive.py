"""Data sets in EDM's layout: a zip archive of stored members and their labels.

An archive of images holds

    00000/img00000000.png        a thousand members a folder, numbered from 0
    00000/img00000001.png
    dataset.json                 {"labels": [["00000/img00000000.png", 3], ...]}   or   {"labels": null}

A label is an integer (a class) or a list of numbers (a vector); all are of one kind.  Members carry one fixed date, so
that the same data give the same bytes.
"""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import clear_temporaries
from ..errors import InputError

__all__ = [
    "EXTENSIONS",
    "DatasetWriter",
    "Label",
    "is_file",
    "is_folder",
    "label_table",
    "open_zip",
    "read_file",
    "read_labels",
    "read_member",
]

Label = int | list[float]
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
LABELS = "dataset.json"
MAX_MEMBER = 1 << 28  # bytes of a file or an unpacked member; an uncompressed picture of 8192 x 8192 has 3/4 of it
MAX_MEMBERS = 1 << 24  # of an archive; the largest public sets of images have fewer
MAX_LABELS = 1 << 26  # bytes of dataset.json; ImageNet's has 40 million
MAX_VALUES = 1 << 24  # in dataset.json, about: as objects of Python they take up to 60 bytes each
MAX_NUMBER = 3e38
# bzip2 and lzma unpack a few bytes to gigabytes, or claim them before they unpack; deflate has at most 1032 for one
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
READ_ERRORS = (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, EOFError, KeyError, ValueError)


class DatasetWriter:
    """Writes an archive; use as ``with``: the file is there whole at the end, or not at all after an error.

    Leaving the ``with`` raises ``InputError`` if nothing was added, or only some members have a label.

    Args:
        path: target, ending in ``.zip``.
        pattern: name of member i, as a format string, e.g. ``"img{:08d}.png"``.

    Attributes:
        names: of the members so far.

    Raises:
        InputError: for another ending, an existing file, or a folder that cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], pattern: str) -> None:
        self.path, self.pattern, self.names = Path(path), pattern, list[str]()
        if self.path.suffix.lower() != ".zip":
            raise InputError(f"{path}: expected a name ending in .zip")
        if self.path.exists():
            raise InputError(f"{path}: exists already; expected a new file")
        clear_temporaries(self.path.parent, self.path.name)
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._labels: list[tuple[str, Label | None]] = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._temporary, "wb")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); expected a writable folder") from error
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> DatasetWriter:
        return self

    def add(self, data: bytes, label: Label | None = None) -> str:
        """Append a member.

        Args:
            data: its bytes.
            label: a class, a vector, or ``None``.

        Returns:
            Its name in the archive.
        """
        index = len(self._labels)
        name = f"{index // 1000:05d}/{self.pattern.format(index)}"
        self._zip.writestr(zipfile.ZipInfo(name), data)
        self._labels.append((name, label))
        self.names.append(name)
        return name

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                if not self._labels:
                    raise InputError(f"{self.path}: nothing was added; expected at least one member")
                labelled = [label for _, label in self._labels if label is not None]
                if labelled and len(labelled) < len(self._labels):
                    count = f"{len(labelled)} of {len(self._labels)} members"
                    raise InputError(f"{self.path}: {count} have a label; expected all or none")
                table = {"labels": self._labels if labelled else None}
                self._zip.writestr(zipfile.ZipInfo(LABELS), json.dumps(table))
            self._zip.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if kind is None:
                os.replace(self._temporary, self.path)
        finally:
            # closed even where writing failed, or its finaliser would try again later; a full disk fails twice
            with suppress(OSError, ValueError):
                self._zip.close()
            with suppress(OSError):
                self._file.close()
            self._temporary.unlink(missing_ok=True)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether it is a file that can be read to an end; never raises.

    Args:
        path: anything; `pathlib` would raise for a name that is too long.
    """
    return os.path.isfile(path)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether it is a folder; never raises.

    Args:
        path: anything.
    """
    return os.path.isdir(path)


def read_file(path: str | os.PathLike[str], limit: int = MAX_MEMBER) -> bytes:
    """The bytes of a file.

    Args:
        path: the file.
        limit: most bytes it may have.

    Raises:
        InputError: if it is missing, no file (a pipe would never end), too large, or cannot be read.
    """
    if not is_file(path):
        raise InputError(f"{path}: no such file, or none that ends")
    try:
        size = os.path.getsize(path)
        if size > limit:
            raise InputError(f"{path}: {size} bytes; expected at most {limit}")
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def open_zip(path: str | os.PathLike[str]) -> zipfile.ZipFile:
    """An archive for reading.  Its members are only ever read into memory: their names lead nowhere.

    Args:
        path: the file.

    Raises:
        InputError: if it is missing or damaged, or has too many members, or some that share their bytes.
    """
    if not is_file(path):
        raise InputError(f"{path}: no such file; expected a zip archive")
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # on lying directories zipfile raises whatever Python raises
        raise InputError(f"{path}: not a whole zip archive ({error})") from error
    members = sorted((m.header_offset, m.compress_size) for m in archive.infolist())
    if len(members) > MAX_MEMBERS:
        archive.close()
        raise InputError(f"{path}: {len(members)} members; expected at most {MAX_MEMBERS}")
    # thousands of members that unpack the same bytes are the way to petabytes; and zipfile claims the memory for as
    # many bytes as a member says it has
    if any(here + size > after for (here, size), (after, _) in pairwise([*members, (archive.start_dir, 0)])):
        archive.close()
        raise InputError(f"{path}: members overlap, or are cut off; expected one after another")
    return archive


def read_member(archive: zipfile.ZipFile, name: str, limit: int = MAX_MEMBER) -> bytes:
    """The bytes of a member.

    Args:
        archive: from `open_zip`.
        name: of the member.
        limit: most bytes it may have unpacked.

    Raises:
        InputError: if it is missing, damaged, compressed in another way, or claims more than ``limit`` bytes.
    """
    label = f"{archive.filename}:{name}"
    try:
        # an archive can claim anything: look before unpacking; it never gives more than it claims
        member = archive.getinfo(name)
        if member.file_size > limit:
            raise InputError(f"{label}: {member.file_size} bytes; expected at most {limit}")
        if member.compress_type not in METHODS:
            raise InputError(f"{label}: compressed by method {member.compress_type}; expected stored or deflated")
        return archive.read(name)
    except InputError:
        raise
    except READ_ERRORS as error:
        raise InputError(f"{label}: cannot be read ({error})") from error


def label_table(path: str | os.PathLike[str]) -> dict[str, Label] | None:
    """Labels by name as they stand in ``dataset.json``; ``None`` where there are none.

    Args:
        path: archive or folder.

    Raises:
        InputError: if ``dataset.json`` is damaged, or its labels are of different kinds.
    """
    if is_folder(path):
        file = Path(path) / LABELS
        if not file.exists():
            return None
        data = read_file(file, MAX_LABELS)
    else:
        with open_zip(path) as archive:
            if LABELS not in archive.namelist():
                return None
            data = read_member(archive, LABELS, MAX_LABELS)
    where = f"{path}:{LABELS}"
    values = data.count(b",") + data.count(b"[") + data.count(b"{")
    if values > MAX_VALUES:
        raise InputError(f"{where}: about {values} values; expected at most {MAX_VALUES}")
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise InputError(f"{where}: not JSON (nested too deeply); expected rows [name, class or vector]") from error
    except ValueError as error:
        raise InputError(f"{where}: not JSON ({error})") from error
    rows = content.get("labels") if isinstance(content, dict) else content
    if rows is None:
        return None
    table: dict[str, Label] = {}
    kinds: set[int | None] = set()
    for row in rows if isinstance(rows, list) else [rows]:
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and _is_label(row[1])):
            raise InputError(f"{where}: holds {str(row)[:60]!r}; expected rows [name, class or vector]")
        table[row[0].replace("\\", "/")] = row[1]
        kinds.add(len(row[1]) if isinstance(row[1], list) else None)
    if len(kinds) > 1:
        raise InputError(f"{where}: labels of different kinds; expected all classes, or all vectors of one length")
    return table


def _is_label(value: Any) -> bool:
    if isinstance(value, list):
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        # written so that NaN fails; float32 must hold them
        return bool(value) and numbers and all(abs(v) < MAX_NUMBER for v in value)
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def read_labels(path: str | os.PathLike[str], names: Sequence[str] | None = None) -> Tensor | None:
    """The labels of a data set in the order of its members.

    Args:
        path: archive or folder.
        names: members wanted; default all images, or all arrays, sorted by name: the order in which
            `data.ImageSource` and `latents.dataset.LatentSource` count.

    Returns:
        (N,) int64 classes, (N, n) float32 vectors, or ``None`` for a data set without labels.

    Raises:
        InputError: if the labels are damaged, or one is missing.
    """
    table = label_table(path)
    if table is None:
        return None
    wanted = _members(path) if names is None else names
    for name in wanted:
        if name not in table:
            raise InputError(f"{path}:{LABELS}: no label for {name}; expected one for every member")
    if not wanted:
        raise InputError(f"{path}: holds labels but no data")
    values = [table[name] for name in wanted]
    return torch.tensor(values, dtype=torch.float32 if isinstance(values[0], list) else torch.int64)


def _members(path: str | os.PathLike[str]) -> list[str]:
    found: Iterable[str]
    if is_folder(path):
        found = (p.relative_to(path).as_posix() for p in Path(path).rglob("*") if p.is_file())
    else:
        with open_zip(path) as archive:
            found = archive.namelist()
    return sorted(n for n in found if PurePosixPath(n).suffix.lower() in (*EXTENSIONS, ".npy"))
