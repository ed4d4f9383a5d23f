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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import InputError
from .storages import array_of, is_call, tensor_of
from .unpickler import LIMITS, Limits, Record, interpret

__all__ = ["Official", "backbone_arguments", "read_official"]

MAX_DEPTH = 32
MAX_ENTRIES = 100_000  # of a state dict, and settings; the largest published network has fewer than 2,000 entries
MAX_NAME = 300  # characters of an entry's dotted name; the longest published one has fewer than 60
MAX_TEXT = 1_000_000  # characters of all settings together
EDM_CLASSES = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")


@dataclass
class Official:
    """A network file, read.

    Attributes:
        class_name: of the network, e.g. ``EDMPrecond`` or ``Precond``.
        kwargs: of its constructor.
        state_dict: name -> tensor; names, shapes and precisions are those of the original's ``state_dict()``.
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

    def named(prefix: str, entries: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
        """The entries under their dotted names.  Absent ones count too: a module can be named many times."""
        nonlocal count
        for name, entry in entries.items():
            count += 1
            if count > MAX_ENTRIES:
                raise InputError(f"network has more than {MAX_ENTRIES} entries")
            if not isinstance(name, str) or len(prefix) + len(name) > MAX_NAME:
                raise InputError(f"network has an entry without a name, or one longer than {MAX_NAME}")
            if entry is not None:
                yield f"{prefix}{name}", entry

    while pending:
        prefix, value, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise InputError(f"modules nest more than {MAX_DEPTH} deep")
        state = _state(value, prefix or "the network")
        hidden = state.get("_non_persistent_buffers_set") or set()
        if not isinstance(hidden, set):
            raise InputError(f"{prefix or 'the network'}: expected a set of hidden buffers")
        for kind in ("_parameters", "_buffers"):
            for name, tensor in named(prefix, _entries(state.get(kind))):
                if not (kind == "_buffers" and name[len(prefix) :] in hidden):
                    yield name, tensor_of(tensor, limits, charge)
        children = [(f"{name}.", child, depth + 1) for name, child in named(prefix, _entries(state.get("_modules")))]
        pending += reversed(children)


def _simplifier() -> Callable[[Any], Any]:
    """A function that gives plain settings; what is not plain becomes ``None``.

    A pickle can name one list, or one long text, ten times in another, and so on: what is unfolded is counted, over
    all calls.  The function raises ``InputError`` for more than ``MAX_ENTRIES`` values or ``MAX_TEXT`` characters.
    """
    left, text = MAX_ENTRIES, MAX_TEXT

    def unfold(value: Any, depth: int = 0) -> Any:
        nonlocal left, text
        left -= 1
        text -= len(value) if isinstance(value, str) else 0
        if left < 0 or text < 0:
            raise InputError(f"settings hold more than {MAX_ENTRIES} values or {MAX_TEXT} characters")
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
            return {str(unfold(k, depth + 1)): unfold(v, depth + 1) for k, v in value.items()}
        if is_call(value, "_reconstruct", "scalar"):
            array = array_of(value, Limits(tensor=2**20))  # no setting is larger
            return unfold(array.tolist(), depth) if array.size <= left else None
        return None

    return unfold


def _encoder(value: Any, simple: Callable[[Any], Any]) -> tuple[str, dict[str, Any]] | None:
    if value is None:
        return None
    name, state = _persistent(value, "the encoder")
    return name, simple({k: v for k, v in state.items() if k != "_vae"})


def read_official(path: str | os.PathLike[str], key: str = "ema", limits: Limits = LIMITS) -> Official:
    """Read a network file of EDM or EDM2; nothing in it is executed or imported.

    Args:
        path: a ``.pkl`` file.
        key: which network of the file.
        limits: bounds of what is read.

    Returns:
        Class name, constructor arguments, state dict, encoder and settings.

    Raises:
        InputError: for anything that is no such file, naming what was found.
    """
    file, expected = Path(path), "a network file of EDM or EDM2"
    try:
        size = file.stat().st_size
        if not file.is_file():  # a device or a pipe has no end
            raise InputError(f"{file}: is no file; expected {expected}")
        if size > limits.file:
            raise InputError(f"{file}: {size} bytes; expected at most {limits.file}")
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); expected {expected}") from error
    except MemoryError as error:
        raise InputError(f"{file}: is larger than the memory") from error
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
    simple = _simplifier()
    kwargs = simple(arguments)
    lost = [str(k)[:40] for k, v in arguments.items() if v is not None and kwargs[str(k)] is None]
    if lost:  # a network without them would be another one
        raise InputError(f"argument {', '.join(lost)} of the network is no plain value; expected numbers and names")
    tensors = dict(_tensors(content[key], limits, len(data)))
    others = simple({k: v for k, v in content.items() if k not in (key, "encoder")})
    return Official(class_name, kwargs, tensors, _encoder(content.get("encoder"), simple), others)


def backbone_arguments(official: Official) -> tuple[str, dict[str, Any]]:
    """What `backbones.registry` builds the network from.

    Args:
        official: what `read_official` gave.

    Returns:
        The name of a class and its constructor's arguments.

    Raises:
        InputError: for a network of another class.
    """
    if official.class_name in EDM_CLASSES:
        return official.class_name, dict(official.kwargs)
    if official.class_name == "Precond":
        return "EDM2Precond", dict(official.kwargs)
    known = ", ".join((*EDM_CLASSES, "Precond"))
    raise InputError(f"network is a {official.class_name[:80]}; expected one of {known}")
