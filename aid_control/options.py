"""What a program's options may be: of the kind of their defaults, finite, and within the bounds that their names have.

Hydra takes any value for any option.  `check_options` compares what came together with the program's own configuration,
once, before the program runs: afterwards a number is a number, and a program only checks what is its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .errors import InputError

__all__ = ["check_options"]

MAX_WHOLE = 2**63 - 1
MAX_TEXT = 4096  # characters; the longest path of Linux
MAX_ITEMS = 10_000
# What stands behind a default of null, by name; every program means the same.  Others are the program's to check.
NULLABLE: dict[str, type] = {
    "data": str, "image": str, "path": str, "sha256": str, "guidance": str, "validation": str, "resume": str,
    "start": str, "encoder": str, "codec": str, "backbone": str, "lpips": str, "inception": str, "guide": str,
    "n": int, "limit": int, "validation_n": int, "threads": int, "resolution": int,
    "minutes": float, "cfg": float,
}  # fmt: skip
# Least and largest value of a whole option, by name; also of every entry of a list of that name.
BOUNDS: dict[str, tuple[float, float]] = {
    "n": (1, 10**8), "limit": (1, 10**8), "validation_n": (1, 10**8), "test": (1, 10**6), "images": (1, 10**6),
    "batch": (1, 10**6), "encoder_batch": (1, 10**6), "chunk": (1, 10**6), "rows": (1, 100), "samples": (2, 10**6),
    "steps": (1, 100_000), "beta_steps": (1, 100_000), "updates": (1, 10**6), "every": (1, 10**12),
    "iterations": (0, 10**12), "encoder_iterations": (0, 10**12), "codec_iterations": (1, 10**9),
    # more threads than that are no machine, and starting them kills the process
    "threads": (1, 1024), "workers": (1, 1024),
    "seed": (0, MAX_WHOLE), "resolution": (1, 8192), "channels": (1, 3), "components": (1, 10**4), "rank": (0, 10**5),
    "blend": (0, 8192), "pictures": (0, 100), "diversity_seeds": (0, 10**6), "diversity_images": (1, 10**6),
    "beta": (1e-12, 1e12), "temperature": (0, 1e12), "minutes": (0, 1e7), "kimg": (0, 1e9),
    "lr": (1e-12, 1e3), "actor_lr": (1e-12, 1e3), "critic_lr": (1e-12, 1e3), "encoder_lr": (1e-12, 1e3),
    "ema": (0, 1), "ema_halflife": (0, 1e12), "ema_rampup": (0, 1e6), "clip": (1e-12, 1e12), "floor": (1e-12, 1e6),
}  # fmt: skip
FRACTIONS = ("kimg",)  # written as whole numbers in a configuration, but they need not be
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a group of options"}


def check_options(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Options that may be used.

    Args:
        given: the options as they came together: plain dictionaries, lists, texts, numbers, ``None``.
        defaults: the program's own, which set the kinds; ``"???"`` stands for a text that has to be given.

    Returns:
        ``given``; whole numbers where a text is expected are texts, and one value where a list is expected is a list.

    Raises:
        InputError: for an option that is unknown, missing, of another kind, not finite, or out of bounds.
    """
    unknown = [str(name) for name in given if name not in defaults]
    if unknown:
        raise InputError(f"{unknown[0][:80]}: no such option; expected one of {', '.join(map(str, defaults))}")
    missing = [str(name) for name in defaults if name not in given]
    if missing:
        raise InputError(f"option {missing[0]} is missing; expected all that the program has")
    found = {}
    for name, value in given.items():
        found[name] = _checked(str(name), value, defaults[name])
        _bounded(str(name), found[name])
    return found


def _say(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of more than 30 digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _checked(name: str, value: Any, default: Any) -> Any:
    if default is None:
        kind = NULLABLE.get(name)
        if value is None or kind is None:
            _finite(name, value)
            return value
    else:
        kind = type(default)
    if kind is dict:
        if not isinstance(value, dict):
            raise _wrong(name, value, dict)
        return {key: _checked(f"{name}.{key}", v, default.get(key)) for key, v in value.items()}
    if kind is list:
        values = value if isinstance(value, list) else [value]
        if len(values) > MAX_ITEMS:
            raise InputError(f"{name} has {len(values)} entries; expected at most {MAX_ITEMS}")
        kinds = {type(one) for one in default}
        # entries are of the one kind that the defaults have; mixed or empty ones leave it open
        entry = default[0] if len(kinds) == 1 and not isinstance(default[0], list | dict) else None
        return [_checked(f"{name}[{i}]", one, entry) for i, one in enumerate(values)]
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # a folder may be called 2024
    if kind is float or (kind is int and name in FRACTIONS):
        good = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        good = isinstance(value, kind) and not (kind is int and isinstance(value, bool))
    if not good:
        raise _wrong(name, value, kind)
    _finite(name, value)
    return value


def _wrong(name: str, value: Any, kind: type) -> InputError:
    return InputError(f"{name} is {_say(value)}; expected {WORDS.get(kind, kind.__name__)}")


def _finite(name: str, value: Any) -> None:
    """Refuse numbers and texts that nothing can be done with, at any depth."""
    if isinstance(value, list | dict):
        if len(value) > MAX_ITEMS:
            raise InputError(f"{name} has {len(value)} entries; expected at most {MAX_ITEMS}")
        for one in value.values() if isinstance(value, dict) else value:
            _finite(name, one)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} is {value}; expected a finite number")
    elif isinstance(value, int) and abs(value) > MAX_WHOLE:
        raise InputError(f"{name} is {_say(value)}; expected at most 63 bits")
    elif isinstance(value, str) and (len(value) > MAX_TEXT or not value.isprintable()):
        raise InputError(f"{name} is {_say(value)}; expected at most {MAX_TEXT} printable characters")


def _bounded(name: str, value: Any) -> None:
    least, most = BOUNDS.get(name, (-math.inf, math.inf))
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, int | float) and not isinstance(one, bool) and not least <= one <= most:
            at_most = f" and at most {most:.12g}" if most < MAX_WHOLE else ""
            raise InputError(f"{name} is {_say(one)}; expected at least {least:.12g}{at_most}")
