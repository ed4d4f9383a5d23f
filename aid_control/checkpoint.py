"""Files of tensors and plain values, written atomically and read without executing anything.

A state is a nested dictionary (or list) whose leaves are tensors or JSON values.  Tensors go into a
safetensors file under their path (``optimizer/state/3/exp_avg``); the rest is JSON in its metadata.  Writing
goes to a temporary file beside the target, is flushed to the disk and renamed: a reader, or a killed
writer, never leaves half a file under the final name.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .errors import InputError

__all__ = ["atomic_write", "load_state", "load_tensors", "save_state", "save_tensors"]

_TENSOR = "__tensor__"


def atomic_write(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path`` so that it is there whole or not at all.

    Args:
        path: target file; its folder is made where it is missing, an older file replaced.
        data: the whole content.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
    """Write a safetensors file atomically; the inverse of `load_tensors`.

    Args:
        path: target file.
        tensors: by name, of any shape; written from the CPU.
        metadata: strings by name, for the file's header.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, save(plain, metadata=metadata))


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file.

    Args:
        path: a file of `save_tensors` or of any other writer of the format.

    Returns:
        The tensors by name, of any shape, on the CPU; and the metadata of the header (empty where it has none).

    Raises:
        InputError: if the file is missing, truncated or not a safetensors file.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected a safetensors file")
    try:
        # One read, then parse: a lazy reader opens the file twice, and between the two a running writer may
        # have renamed the next checkpoint over it.
        data = Path(path).read_bytes()
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, dict(header.get("__metadata__") or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); expected one written by this package"
        ) from error


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Args:
        path: a file of `save_state`.

    Returns:
        The nested state, its tensors on the CPU.

    Raises:
        InputError: if the file is missing, truncated, or of another kind.
    """
    tensors, metadata = load_tensors(path)
    try:
        skeleton = json.loads(metadata["state"])
    except (KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: holds no saved state; expected a file written by this package") from error
    try:
        state = _join(skeleton, tensors)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path}: its description does not fit its tensors ({error})") from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds no saved state; expected a file written by this package")
    return state
