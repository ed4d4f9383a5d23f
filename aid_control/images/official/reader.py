r"""What a network file says: class, constructor arguments, state dict, encoder, data set.

EDM and EDM2 files are a dictionary (``ema`` and some settings) whose networks are *persistent objects*: a record of
``_reconstruct_persistent_obj(meta)`` with ``meta = {type, version, module_src, class_name, state}``.  The original
program executes ``module_src`` to make the class; here it is not even looked at.  ``state`` is the object's dictionary:
for a torch module its ``_parameters``, ``_buffers`` and ``_modules``, and its constructor's ``_init_args`` and
``_init_kwargs``.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import InputError
from .storages import array_of, is_call, tensor_of
from .unpickler import LIMITS, Limits, Record, interpret

__all__ = ["Official", "backbone_arguments", "read_official"]

MAX_DEPTH = 32
MAX_ENTRIES = 100_000  # of a state dict; the largest published network has fewer than 2,000
EDM_CLASSES = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")


@dataclass
class Official:
    """A network file, read.

    Attributes:
        class_name: of the network, e.g. ``EDMPrecond`` or ``Precond``.
        kwargs: of its constructor.
        state_dict: name -> tensor, as the original's ``state_dict()``.
        encoder: class name and state of the latent encoder, ``None`` where there is none (EDM).
        facts: plain settings beside the network (data set, loss).
    """

    class_name: str
    kwargs: dict[str, Any]
    state_dict: dict[str, Tensor]
    encoder: tuple[str, dict[str, Any]] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def _persistent(value: Any, what: str) -> tuple[str, dict[str, Any]]:
    """(class name, state) of a persistent object."""
    meta = value.args[0] if is_call(value, "_reconstruct_persistent_obj") and len(value.args) == 1 else None
    meta = meta.items if isinstance(meta, Record) else meta
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise InputError(f"{what} is no persistent object; expected a network file of EDM or EDM2")
    state = meta.get("state")
    if not isinstance(state, dict):
        raise InputError(f"{what} has no state; expected a network file of EDM or EDM2")
    return meta["class_name"], state


def _state(value: Any, what: str) -> dict[str, Any]:
    """The dictionary of a module: a persistent object, or one of torch's containers."""
    if is_call(value, "ModuleDict", "ModuleList", "Sequential"):
        if not isinstance(value.state, dict):
            raise InputError(f"{what} has no state; expected a module")
        return value.state
    return _persistent(value, what)[1]


def _entries(value: Any) -> dict[Any, Any]:
    """A dictionary or the record of an ``OrderedDict``; empty for ``None``."""
    if value is None:
        return {}
    if is_call(value, "OrderedDict"):
        return value.items
    if isinstance(value, dict):
        return value
    raise InputError(f"{type(value).__name__} where a dictionary is expected")


def _tensors(module: Any, limits: Limits, size: int) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and persistent buffer under its dotted name, in the order of ``state_dict()``.

    A file of ``size`` bytes may name a storage more than once, but not make more than twice its size of tensors.
    """
    left = 2 * size

    def charge(cost: int) -> None:
        nonlocal left
        left -= cost
        if left < 0:
            raise InputError("tensors are more than twice the file; expected a storage to be used once")

    pending: list[tuple[str, Any, int]] = [("", module, 0)]
    count = 0
    while pending:
        prefix, value, depth = pending.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_ENTRIES:
            raise InputError(f"modules nest more than {MAX_DEPTH} deep or are more than {MAX_ENTRIES}")
        state = _state(value, prefix or "the network")
        hidden = state.get("_non_persistent_buffers_set") or set()
        if not isinstance(hidden, set):
            raise InputError(f"{prefix or 'the network'}: expected a set of hidden buffers")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in _entries(state.get(kind)).items():
                if tensor is not None and not (kind == "_buffers" and name in hidden):
                    count += 1
                    yield f"{prefix}{name}", tensor_of(tensor, limits, charge)
        children = [(f"{prefix}{name}.", child, depth + 1) for name, child in _entries(state.get("_modules")).items()]
        pending += [child for child in reversed(children) if child[1] is not None]


def _simple(value: Any) -> Any:
    """Plain settings; what is not plain becomes ``None``.

    A pickle can name one list ten times in another, and so on: what is unfolded is counted.

    Raises:
        InputError: for more than ``MAX_ENTRIES`` values.
    """
    left = MAX_ENTRIES

    def unfold(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise InputError(f"settings hold more than {MAX_ENTRIES} values; expected a network file")
        if isinstance(value, (str, bool, int, type(None))):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if depth > 8:
            return None
        if isinstance(value, Record) and value.maker.name in ("OrderedDict", "EasyDict"):
            value = value.items
        if isinstance(value, (list, tuple)):
            return [unfold(v, depth + 1) for v in value]
        if isinstance(value, dict):
            return {str(k): unfold(v, depth + 1) for k, v in value.items()}
        if is_call(value, "_reconstruct", "scalar"):
            array = array_of(value, Limits(tensor=2**20))  # no setting is larger
            return unfold(array.tolist(), depth) if array.size <= left else None
        return None

    return unfold(value, 0)


def _encoder(value: Any) -> tuple[str, dict[str, Any]] | None:
    if value is None:
        return None
    name, state = _persistent(value, "the encoder")
    kept = {k: v for k, v in state.items() if isinstance(k, str) and k != "_vae"}
    return name, {k: _simple(v) for k, v in kept.items()}


def read_official(path: str | os.PathLike[str], key: str = "ema", limits: Limits = LIMITS) -> Official:
    """Read a network file of EDM or EDM2; nothing in it is executed or imported.

    Args:
        path: a ``.pkl`` file.
        key: which network of the file.
        limits: bounds of what is read.

    Returns:
        Class name, constructor arguments, state dict.

    Raises:
        InputError: for anything that is no such file, naming what was found.
    """
    file, expected = Path(path), "a network file of EDM or EDM2"
    try:
        size = file.stat().st_size
        if size > limits.file:
            raise InputError(f"{file}: {size} bytes; expected at most {limits.file}")
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); expected {expected}") from error
    try:
        return _read(data, key, limits)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except Exception as error:
        raise InputError(f"{file}: is damaged ({type(error).__name__}: {str(error)[:100]})") from error


def _read(data: bytes, key: str, limits: Limits) -> Official:
    content = interpret(io.BytesIO(data), limits)
    content = content.items if is_call(content, "EasyDict", "OrderedDict") else content
    if not isinstance(content, dict) or key not in content:
        found = ", ".join(str(k)[:40] for k in list(content)[:8]) if isinstance(content, dict) else "no dictionary"
        raise InputError(f"holds {found}; expected a network under {key!r}")
    class_name, state = _persistent(content[key], f"{key!r}")
    arguments = _entries(state.get("_init_kwargs"))
    if state.get("_init_args"):
        raise InputError("network was made with positional arguments; expected named ones")
    kwargs = _simple(arguments)
    tensors = dict(_tensors(content[key], limits, len(data)))
    others = {k: _simple(v) for k, v in content.items() if isinstance(k, str) and k not in (key, "encoder")}
    return Official(class_name, kwargs, tensors, _encoder(content.get("encoder")), others)


def backbone_arguments(official: Official) -> tuple[str, dict[str, Any]]:
    """(class of :mod:`..backbones.registry`, its constructor's arguments).

    Raises:
        InputError: for a network of another class.
    """
    if official.class_name in EDM_CLASSES:
        return official.class_name, dict(official.kwargs)
    if official.class_name == "Precond":
        return "EDM2Precond", dict(official.kwargs)
    known = ", ".join((*EDM_CLASSES, "Precond"))
    raise InputError(f"network is a {official.class_name[:80]}; expected one of {known}")

