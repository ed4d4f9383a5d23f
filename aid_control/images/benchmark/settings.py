"""The options of the benchmark, read from a plain dictionary and checked one by one."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...errors import InputError
from ..methods.registry import METHODS

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The options of ``examples/conf/benchmark.yaml``; the defaults stand there.  Made by `read`, which checks them.

    Attributes:
        out: folder of the results.
        data: zip archive or folder of images; ``None`` = the bundled ones, unless ``image`` is given.
        image: one image file instead of ``data``.
        n: the first so many images; ``None`` = all, at most 64.
        masks: kinds of `aid_control.images.masks`, or image files (white = 1 = known).
        steps: noise levels, for methods that are not made for a single step.
        methods: names; ``None`` = all that can run on the backbone.
        method_steps: name -> its own ``steps``.
        options: name -> options of its own.
        weights: name -> file of its trained module; others use what is shipped.
        reference: the method of the paired differences.
        solver: ``"heun"`` or ``"euler"``, of the methods that have the choice.
        seed: image i has mask and noise ``seed + i``.
        one_by_one: methods get one image at a time, so that no result depends on a batch.
        batch: images at a time without ``one_by_one``.
        chunk: images of a shard.
        workers: local processes, of each launched one.
        threads: CPU threads a process.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:i"``.
        backbone: a name or file, as `load_backbone` takes it.
        path: file of a published backbone.
        sha256: hash the backbone's file should have.
        labels: ``"data"`` (of the data set), the number of a class, or ``None`` = the null class.
        guide: a second backbone for autoguidance; excludes ``cfg``.
        guide_weight: its weight g, 1 = none.
        cfg: weight g of classifier-free guidance; ``None`` = none.
        interval: noise levels (low, high] that are guided; ``None`` = all.
        lpips: file of AlexNet features; ``None`` = without LPIPS.
        inception: file of the FID Inception network, or ``"package"``; ``None`` = without FID and KID.
        diversity_seeds: further seeds of the first images, 0 = none.
        diversity_images: how many images these are.
        pictures: images of each mask in ``pictures.png``.
        figures: draw figures.
    """

    out: str
    data: str | None
    image: str | None
    n: int | None
    masks: tuple[str, ...]
    steps: tuple[int, ...]
    methods: tuple[str, ...] | None
    method_steps: dict[str, tuple[int, ...]]
    options: dict[str, dict[str, Any]]
    weights: dict[str, str]
    reference: str
    solver: str
    seed: int
    one_by_one: bool
    batch: int
    chunk: int
    workers: int
    threads: int
    device: str
    backbone: str
    path: str | None
    sha256: str | None
    labels: str | int | None
    guide: str | None
    guide_weight: float
    cfg: float | None
    interval: tuple[float, float] | None
    lpips: str | None
    inception: str | None
    diversity_seeds: int
    diversity_images: int
    pictures: int
    figures: bool

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Settings:
        """Check a dictionary of options.

        Args:
            values: one value a field; lists may be given as a single value.

        Returns:
            The checked settings.

        Raises:
            InputError: for an option that is missing, of another type or out of range, or a method that is not there.
        """
        missing = [f.name for f in fields(cls) if f.name not in values]
        if missing:
            raise InputError(f"option {missing[0]} is missing; expected all of conf/benchmark.yaml")
        v = dict(values)
        for name in ("out", "backbone", "reference", "solver", "device"):
            v[name] = str(v[name])
        for name in ("data", "image", "path", "sha256", "guide", "lpips", "inception"):
            v[name] = None if v[name] is None else str(v[name])
        for name, least in (("batch", 1), ("chunk", 1), ("workers", 1), ("threads", 1), ("pictures", 0),
                            ("diversity_seeds", 0), ("diversity_images", 1), ("seed", 0)):  # fmt: skip
            v[name] = _integer(name, v[name], least)
        v["n"] = None if v["n"] is None else _integer("n", v["n"], 1)
        for name in ("one_by_one", "figures"):
            v[name] = _boolean(name, v[name])
        v["guide_weight"] = _number("guide_weight", v["guide_weight"])
        v["cfg"] = None if v["cfg"] is None else _number("cfg", v["cfg"])
        v["interval"] = _interval(v["interval"])
        v["masks"] = tuple(str(mask) for mask in _list("masks", v["masks"]))
        v["steps"] = tuple(_integer("steps", k, 1) for k in _list("steps", v["steps"]))
        v["methods"] = None if v["methods"] is None else tuple(_list("methods", v["methods"]))
        v["method_steps"] = {
            name: tuple(_integer(f"method_steps.{name}", k, 1) for k in _list(f"method_steps.{name}", ks))
            for name, ks in _dictionary("method_steps", v["method_steps"]).items()
        }
        v["options"] = {
            name: _dictionary(f"options.{name}", o) for name, o in _dictionary("options", v["options"]).items()
        }
        v["weights"] = {n: str(w) for n, w in _dictionary("weights", v["weights"]).items() if w is not None}
        for option in ("methods", "method_steps", "options", "weights"):
            _known(option, v[option] or ())
        _known("reference", [v["reference"]])
        if v["solver"] not in ("euler", "heun"):
            raise InputError(f"solver is {v['solver']!r}; expected euler or heun")
        if v["guide"] is not None and v["cfg"] is not None:
            raise InputError("guide and cfg are both given; expected one of them")
        return cls(**{f.name: v[f.name] for f in fields(cls)})

    def steps_of(self, method: str) -> tuple[int, ...]:
        """The numbers of steps a method is run with; one that is made for a single step takes one, unless told.

        Args:
            method: name.
        """
        single = inspect.signature(METHODS[method].run).parameters["steps"].default == 1
        return self.method_steps.get(method, (1,) if single else self.steps)


def _known(option: str, methods: Iterable[str]) -> None:
    for name in methods:
        if name not in METHODS:
            raise InputError(f"{option}: no method {name!r}; expected {', '.join(METHODS)}")


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}; expected a whole number, at least {least}")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r}; expected a number")
    return float(value)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; expected true or false")
    return value


def _list(name: str, value: Any) -> list[Any]:
    """The value as a list without repetitions; a single one counts as a list of one."""
    values = list(dict.fromkeys(value)) if isinstance(value, list | tuple) else [value]
    if not values or any(v is None for v in values):
        raise InputError(f"{name} is {value!r}; expected a list of one or more")
    return values


def _dictionary(name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{name} is {value!r}; expected one entry a method, {{name: ...}}")
    return {str(k): v for k, v in value.items()}


def _interval(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    ends = [_number("interval", v) for v in value] if isinstance(value, list | tuple) else []
    if len(ends) != 2:
        raise InputError(f"interval is {value!r}; expected two noise levels [low, high]")
    return ends[0], ends[1]
