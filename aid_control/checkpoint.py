"""Files of tensors and plain values, written atomically, hashed, and read without executing anything.

A state is a nested dictionary (or list) whose leaves are tensors or JSON values.  Tensors go into a
safetensors file under their path (``optimizer/state/3/exp_avg``); the rest is JSON in its metadata.  Writing
goes to a temporary file beside the target, is flushed to the disk and renamed: a reader, or a killed
writer, never leaves half a file under the final name.

Two more notes in the metadata belong to this module: the number of the format, and a SHA-256 of the content (see
`content_hash`), which is verified on reading.  Files without them, of other writers and of earlier versions, are read
as they are.  The same content gives the same bytes, in every process.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .errors import InputError

__all__ = [
    "FORMAT", "NewerFormatError", "atomic_write", "clear_temporaries", "content_hash", "load_state", "load_tensors",
    "read_metadata", "save_state", "save_tensors",
]  # fmt: skip

FORMAT = 1  # raised when files change so that older versions would misread them; the hash stays what it is
_TENSOR = "__tensor__"
_FORMAT, _HASH = "aid_format", "aid_sha256"  # no other writer's names: others have a "format" of their own
_LARGEST_HEADER = 100_000_000  # bytes; the bound of safetensors itself


class NewerFormatError(InputError):
    """A whole file of a later version of this package."""


def atomic_write(path: str | os.PathLike[str], *data: bytes | memoryview) -> None:
    """Write ``data`` to ``path`` so that it is there whole or not at all.

    Args:
        path: target file; its folder is made where it is missing, an older file replaced.
        *data: the whole content, in one or several parts.

    Raises:
        OSError: if it cannot be written (a full disk, no permission); its ``filename`` is the target, and what stood
            there before still does.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None:
            raise
        # a failed write names no file, the other calls name the temporary one
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system can flush a folder; the file is whole either way
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def clear_temporaries(folder: str | os.PathLike[str], name: str | None = None) -> None:
    """Remove what killed writers left in a folder: ``.NAME.PID.tmp`` of processes of this machine that are no more.

    Args:
        folder: looked at, not those below it; it may be missing.
        name: of the file that was being written; ``None`` = any.
    """
    for path in Path(folder).glob(f".{'*' if name is None else glob.escape(name)}.*.tmp"):
        number = path.name.split(".")[-2]
        if number.isdecimal() and not _alive(int(number)):
            with contextlib.suppress(OSError):  # harmless, and the next run tries again
                path.unlink()


def _alive(pid: int) -> bool:
    """Whether a process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's process; or no number of a process
        return True
    return True


def content_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """SHA-256 of tensors and notes, whatever their order.

    It covers the notes, sorted, and of every tensor, sorted by name, its name, precision, shape and bytes.

    Args:
        tensors: by name, of any shape.
        metadata: strings by name.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(sorted((metadata or {}).items())).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _split(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON skeleton of ``value``; its tensors are added to ``tensors`` under their paths."""
    if isinstance(value, Tensor):
        tensors[path] = value.detach().cpu().contiguous().clone()
        return {_TENSOR: path}
    if isinstance(value, dict):
        # JSON keys are strings; integer keys (optimiser states) are marked to come back as integers.
        for k in value:
            plain = type(k) is int or (isinstance(k, str) and "/" not in k and not k.startswith(("int:", "__")))
            if not plain or (type(k) is int and str(k) in value):
                raise TypeError(f"cannot store the key {k!r} at {path!r}: expected an integer or a plain string")
        return {
            f"int:{k}" if isinstance(k, int) else str(k): _split(v, f"{path}/{k}" if path else str(k), tensors)
            for k, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_split(v, f"{path}/{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"cannot store a {type(value).__name__} at {path!r}")


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if set(value) == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {int(k[4:]) if k.startswith("int:") else k: _join(v, tensors) for k, v in value.items()}
    if isinstance(value, list):
        return [_join(v, tensors) for v in value]
    return value


def save_state(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a nested state atomically.

    Args:
        path: target file.
        state: nested dicts and lists of tensors and JSON values; tuples come back as lists, tensors on the CPU.

    Raises:
        TypeError: for a leaf that is neither, or a key that is neither an integer nor a plain string (without a
            slash, not starting with ``int:`` or two underscores).
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _split(state, "", tensors)
    save_tensors(path, tensors, {"state": json.dumps(skeleton)})


def save_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically, with its hash; the inverse of `load_tensors`.

    Args:
        path: target file.
        tensors: by name, of any shape; written from the CPU.
        metadata: strings by name, for the file's header.

    Raises:
        OSError: as `atomic_write`.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    notes = {**metadata, _FORMAT: str(FORMAT)}
    notes[_HASH] = content_hash(plain, notes)
    data = save(plain, metadata=notes)
    # safetensors writes the notes in an order that changes from process to process: write the header again
    size = int.from_bytes(data[:8], "little")
    header = {**json.loads(data[8 : 8 + size]), "__metadata__": dict(sorted(notes.items()))}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    atomic_write(path, len(text).to_bytes(8, "little"), text, memoryview(data)[8 + size :])


def _notes(header: bytes) -> dict[str, str]:
    """The metadata in a header, the notes of this module included."""
    return dict(json.loads(header).get("__metadata__") or {})


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a safetensors file, without its tensors; nothing is verified.

    Args:
        path: a file of `save_tensors`, `save_state` or of any other writer of the format.

    Returns:
        Strings by name.

    Raises:
        InputError: if the file is missing or has no readable header.
    """
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            notes = _notes(file.read(min(size, _LARGEST_HEADER)))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: no readable header ({error}); expected a safetensors file") from error
    return {name: note for name, note in notes.items() if name not in (_FORMAT, _HASH)}


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file; its hash is verified where it has one.

    Args:
        path: a file of `save_tensors` or of any other writer of the format.

    Returns:
        The tensors by name, of any shape, on the CPU; and the metadata that was given to the writer (empty where
        there is none).

    Raises:
        InputError: if the file is missing, truncated, damaged or not a safetensors file.
        NewerFormatError: if it is whole, and of a later version of this package.
    """
    tensors, metadata, _ = _load(path)
    return tensors, metadata


def _load(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    """Tensors, metadata, and whether there was a hash."""
    if not os.path.isfile(path):  # pathlib raises for a name that is too long
        raise InputError(f"{path}: no such file; expected a safetensors file")
    try:
        # One read, then parse: a lazy reader opens the file twice, and between the two a running writer may
        # have renamed the next checkpoint over it.
        data = Path(path).read_bytes()
        tensors = load(data)
        metadata = _notes(data[8 : 8 + int.from_bytes(data[:8], "little")])
        version, known = metadata.pop(_FORMAT, None), metadata.pop(_HASH, None)
        marked = version is not None or known is not None
        notes = metadata if version is None else {**metadata, _FORMAT: version}
        if marked and known != content_hash(tensors, notes):
            raise InputError(f"{path}: damaged, its content does not fit its hash; expected the file as it was written")
        if version is not None and int(version) > FORMAT:
            raise NewerFormatError(f"{path}: of format {version}; expected at most {FORMAT}, or a newer aid_control")
    # the library's words for a damaged header are of many kinds
    except (
        SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError,
        RecursionError,
    ) as error:  # fmt: skip
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); expected one written by this package"
        ) from error
    return tensors, metadata, marked


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_state` wrote, and verify its hash (states written before there were hashes have none).

    Args:
        path: a file of `save_state`.

    Returns:
        The nested state, its tensors on the CPU.

    Raises:
        InputError: if the file is missing, truncated, damaged, or of another kind.
        NewerFormatError: if it is whole, and of a later version of this package.
    """
    tensors, metadata, marked = _load(path)
    # a state without a hash has one note alone: what has others lost its hash to damage
    if "state" not in metadata or (not marked and len(metadata) > 1):
        raise InputError(f"{path}: holds no saved state; expected a file written by this package")
    try:
        state = _join(json.loads(metadata["state"]), tensors)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: its description does not fit its tensors ({error})") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds no saved state; expected a file written by this package")
    return state
