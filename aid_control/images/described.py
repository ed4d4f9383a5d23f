"""Networks built from what a file says of them, without believing it: no claim on time or memory beyond the file's own.

A file of weights describes its network by a constructor's arguments.  They are checked first; then the network is built
on torch's ``meta`` device, where tensors have shapes and no memory, and building stops when it has more parameters than
the file has tensors; only where every name and shape is in the file it is built in earnest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.modules.module import register_module_parameter_registration_hook

from ..errors import InputError

__all__ = ["build_described", "read_arguments"]

T = TypeVar("T")

MAX_TEXT = 1 << 16  # characters of the description; the longest of ours has fewer than 600
MAX_ITEMS = 64  # of a list or dictionary
MAX_DEPTH = 3
MAX_WHOLE = 1 << 20  # no width, resolution or number of classes is larger
MAX_LEVELS = 10_000  # of ``M``, a table that is made level by level; the published ones have 1000
SPARE = 64  # parameters made and given up again: some constructors build an inner network twice


def read_arguments(text: str) -> dict[str, Any]:
    """A constructor's arguments from JSON.

    Args:
        text: an object of names, numbers, texts and short lists.

    Returns:
        The arguments by name.

    Raises:
        InputError: for anything else, numbers that are not finite, or far too large ones.
    """
    if len(text) > MAX_TEXT:
        raise InputError(f"a description of {len(text)} characters; expected at most {MAX_TEXT}")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"description is not JSON ({type(error).__name__}); expected arguments by name") from error
    if not isinstance(found, dict):
        raise InputError(f"description is a {type(found).__name__}; expected arguments by name")
    return found


def _check(value: Any, name: str, depth: int = 0) -> None:
    if isinstance(value, dict | list | tuple):
        if len(value) > MAX_ITEMS or depth == MAX_DEPTH:
            limits = f"{MAX_ITEMS} items, {MAX_DEPTH} deep"
            raise InputError(f"argument {name[:40]} holds too much; expected at most {limits}")
        for key, item in value.items() if isinstance(value, dict) else ((name, item) for item in value):
            _check(item, str(key), depth + 1)
    elif isinstance(value, int):
        most = MAX_LEVELS if name == "M" else MAX_WHOLE
        if abs(value) > most:
            raise InputError(f"argument {name[:40]} is too large; expected at most {most}")
    elif isinstance(value, float) and math.isnan(value):
        raise InputError(f"argument {name[:40]} is NaN; expected a number")


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Building a module within raises ``InputError`` once it has registered more parameters than that."""
    count = 0

    def registered(module: torch.nn.Module, name: str, value: Any) -> None:
        nonlocal count
        count += 1
        if count > parameters:
            raise InputError(f"describes a network of more than {parameters} parameters, the file holds fewer")

    handle = register_module_parameter_registration_hook(registered)
    try:
        yield
    finally:
        handle.remove()


def build_described(
    make: Callable[..., T], arguments: Mapping[str, Any], tensors: Mapping[str, Tensor], meta: bool = False
) -> T:
    """A module of a file's arguments, once they are known to fit the file's tensors.

    Args:
        make: the constructor of an ``nn.Module``.
        arguments: as the file says.
        tensors: by name, as the file holds them, of any shape.
        meta: give the module on torch's ``meta`` device, for weights that are assigned and not copied.

    Returns:
        The module, its weights not loaded yet.

    Raises:
        InputError: for arguments that are none, or tensors of other names or shapes than the arguments make.
    """
    _check(dict(arguments), "list")
    try:
        with torch.device("meta"), _at_most(2 * len(tensors) + SPARE):
            outline: Any = make(**arguments)
    except InputError:
        raise
    except Exception as error:  # on arguments that nobody foresaw constructors raise whatever Python raises
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"arguments describe no network ({type(error).__name__}: {reason})") from error
    own = {name: tuple(value.shape) for name, value in outline.state_dict().items()}
    for name, shape in own.items():
        if name not in tensors:
            raise InputError(f"no tensor {name}; expected one of shape {shape}")
        if tuple(tensors[name].shape) != shape:
            raise InputError(f"size mismatch for {name}: shape {tuple(tensors[name].shape)}; expected {shape}")
    extra = [name for name in tensors if name not in own]
    if extra:
        raise InputError(f"tensor {extra[0][:80]} belongs to no layer; expected {len(own)} tensors")
    return outline if meta else make(**arguments)
