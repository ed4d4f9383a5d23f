r"""Tensors and arrays out of records: offset, size and strides, every number checked against the bytes there are.

A network pickle holds a tensor as ``_rebuild_tensor_v2(storage, offset, size, stride, ...)`` and the storage as
``_load_from_bytes(blob)``, where the blob is a small ``torch.save`` file of its own, in one of two layouts:

- *old*: pickles one after another (magic number, protocol, system, the storage as a persistent id, the list of keys),
  then for every key a 64-bit count and the raw numbers;
- *new*: a zip archive with ``data.pkl`` (a persistent id again) and the raw numbers in ``data/KEY``.

A numpy array is ``_reconstruct(ndarray, (0,), b"b")`` with the state (version, shape, dtype, Fortran order, bytes).
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InputError
from .unpickler import LIMITS, Global, Limits, Persistent, Record, interpret

__all__ = ["array_of", "bytes_of", "is_call", "storage_of", "tensor_of"]

MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
ARRAYS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
MAX_DIMS = 8
MAX_MEMBERS = 64  # of a storage's archive; torch writes fewer than 10


def is_call(value: Any, *names: str) -> bool:
    """Whether a value records a call of one of the allowed names.

    Args:
        value: anything `unpickler.interpret` gives.
        *names: last parts of the names, without the module.
    """
    return isinstance(value, Record) and value.maker.name in names


def _refuse(what: str) -> InputError:
    return InputError(f"tensor in the pickle: {what}")


def bytes_of(value: Any) -> bytes:
    """Bytes, also in the spelling of protocol 2 (``_codecs.encode(text, "latin1")``).

    Args:
        value: bytes, or the record of that call.

    Raises:
        InputError: for anything else.
    """
    if isinstance(value, bytes):
        return value
    if is_call(value, "encode") and len(value.args) == 2 and value.args[1] == "latin1":
        text = value.args[0]
        if isinstance(text, str):
            try:
                return text.encode("latin1")
            except UnicodeEncodeError:
                pass
    raise _refuse(f"{type(value).__name__} where bytes are expected")


def _numbers(values: Any, what: str) -> tuple[int, ...]:
    plain = isinstance(values, tuple) and len(values) <= MAX_DIMS
    if not plain or not all(type(v) is int and 0 <= v < 2**40 for v in values):
        raise _refuse(f"a bad {what}; expected at most {MAX_DIMS} numbers, none negative")
    return values


def _storage_id(value: Any) -> tuple[torch.dtype, Any, int]:
    """(dtype, key, count) of a persistent id ("storage", type, key, location, count[, view])."""
    key = value.key if isinstance(value, Persistent) else None
    if not isinstance(key, tuple) or len(key) not in (5, 6) or key[0] != "storage" or not isinstance(key[1], Global):
        raise _refuse("no storage where one is expected")
    if len(key) == 6 and key[5] is not None:
        raise _refuse("a view of a storage; expected a whole one")
    if key[1].name not in DTYPES or not isinstance(key[2], str) or type(key[4]) is not int:
        raise _refuse("an unknown kind of storage")
    return DTYPES[key[1].name], key[2], key[4]


def _raw(dtype: torch.dtype, count: int, data: bytes) -> Tensor:
    if count < 0 or count * dtype.itemsize != len(data):
        raise _refuse(f"{len(data)} bytes for {count} numbers of {dtype}")
    if count == 0:
        return torch.empty(0, dtype=dtype)
    if dtype == torch.bool:  # any byte but 0 and 1 would be an undefined bool
        return torch.frombuffer(bytearray(data), dtype=torch.uint8) != 0
    return torch.frombuffer(bytearray(data), dtype=dtype)


def _old(blob: bytes, limits: Limits) -> Tensor:
    stream = io.BytesIO(blob)
    if interpret(stream, limits) != MAGIC:
        raise _refuse("no storage file inside")
    interpret(stream, limits)  # protocol
    interpret(stream, limits)  # system
    dtype, key, count = _storage_id(interpret(stream, limits))
    if interpret(stream, limits) != [key]:
        raise _refuse("another list of storages than the one that is used")
    head = stream.read(8)
    if len(head) != 8 or struct.unpack("<q", head)[0] != count:
        raise _refuse("another count of numbers than announced")
    return _raw(dtype, count, stream.read())


def _new(blob: bytes, limits: Limits) -> Tensor:
    # Counted before it is opened: an archive's directory is ten times as large in memory as in the file.
    if blob.count(b"PK\x01\x02") > MAX_MEMBERS:
        raise _refuse(f"an archive of more than {MAX_MEMBERS} members")
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            files = {name.split("/", 1)[-1]: name for name in archive.namelist()}
            order = archive.read(files["byteorder"]) if "byteorder" in files else b"little"
            if order != b"little":
                raise _refuse("big-endian numbers")
            sizes = {name: archive.getinfo(name) for name in files.values()}
            if any(i.compress_type != zipfile.ZIP_STORED or i.file_size > len(blob) for i in sizes.values()):
                raise _refuse("a compressed archive; expected a stored one")
            dtype, key, count = _storage_id(interpret(io.BytesIO(archive.read(files["data.pkl"])), limits))
            return _raw(dtype, count, archive.read(files[f"data/{key}"]))
    except InputError:
        raise
    except Exception as error:
        raise _refuse(f"an unreadable archive ({str(error)[:80]})") from error


def storage_of(blob: bytes, limits: Limits = LIMITS) -> Tensor:
    """The numbers of a ``torch.save`` file that holds one storage.

    Args:
        blob: the file's bytes, in the old or the new layout.
        limits: bounds.

    Returns:
        (n,), in the storage's precision; owns its memory.

    Raises:
        InputError: for anything else, or more bytes than allowed.
    """
    if len(blob) > limits.tensor:
        raise _refuse(f"{len(blob)} bytes; expected at most {limits.tensor}")
    return _new(blob, limits) if blob[:4] == b"PK\x03\x04" else _old(blob, limits)


def tensor_of(value: Any, limits: Limits = LIMITS, charge: Callable[[int], None] = lambda size: None) -> Tensor:
    """A tensor from its record (a parameter's record is looked through).

    Args:
        value: the record.
        limits: bounds.
        charge: called with the size of the storage before it is read (one storage may be named many times).

    Returns:
        Of the recorded shape, at most 8 dimensions; owns its memory, contiguous.

    Raises:
        InputError: for another record, or numbers that do not fit the storage.
    """
    if is_call(value, "_rebuild_parameter") and value.args:
        value = value.args[0]
    if not is_call(value, "_rebuild_tensor_v2") or len(value.args) < 4:
        raise _refuse(f"{type(value).__name__} where a tensor is expected")
    holder, offset, size, stride = value.args[:4]
    if not is_call(holder, "_load_from_bytes") or len(holder.args) != 1:
        raise _refuse("no bytes of a storage")
    blob = bytes_of(holder.args[0])
    charge(len(blob))
    flat = storage_of(blob, limits)
    size, stride = _numbers(size, "size"), _numbers(stride, "stride")
    (offset,) = _numbers((offset,), "offset")
    if len(size) != len(stride):
        raise _refuse("a size and a stride of different lengths")
    reach = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
    if 0 in size:
        return flat.new_empty(size)
    # an expanded tensor (stride 0) would be larger than what the file holds of it
    if reach > len(flat) or math.prod(size) > len(flat):
        raise _refuse(f"size {size}, stride {stride}, offset {offset} in a storage of {len(flat)}")
    return flat.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


def _dtype_of(value: Any) -> np.dtype[Any]:
    name = value.args[0] if is_call(value, "dtype") and value.args else None
    if name not in ARRAYS:
        raise _refuse("an array of another type than numbers")
    state = value.state
    order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
    if order not in ("<", "|", "=", ">"):
        raise _refuse("an array with another byte order")
    if isinstance(state, tuple) and any(part is not None for part in state[2:5]):
        raise _refuse("an array with fields")
    return np.dtype(name).newbyteorder(order)


def array_of(value: Any, limits: Limits = LIMITS) -> np.ndarray[Any, Any]:
    """A numpy array from its record.

    Args:
        value: the record of an array or a scalar.
        limits: bounds.

    Returns:
        Of the recorded shape, () for a scalar; owns its memory.

    Raises:
        InputError: for another record, an object array, or a shape that does not fit the bytes.
    """
    shape: Any
    if is_call(value, "scalar") and len(value.args) == 2:
        kind, data = value.args
        shape, fortran = (), False
    elif is_call(value, "_reconstruct") and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, kind, fortran, data = value.state
    else:
        raise _refuse(f"{type(value).__name__} where an array is expected")
    shape, dtype, raw = _numbers(shape, "shape"), _dtype_of(kind), bytes_of(data)
    if math.prod(shape) * dtype.itemsize != len(raw) or len(raw) > limits.tensor:
        raise _refuse(f"{len(raw)} bytes for an array of shape {shape}")
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran is True else "C").copy()
