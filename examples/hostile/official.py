"""Official checkpoints: pickles whose opcodes, names, numbers and tensors lie; the damage is that of the test suite."""

from __future__ import annotations

import importlib.util
import json
import pickle
import random
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from aid_control.images.official import read_official
from aid_control.images.official.reader import backbone_arguments

from .harness import Fuzzer

__all__ = ["Official"]

TESTS = Path(__file__).resolve().parents[2] / "tests" / "images"


def _module(name: str) -> Any:
    """A file of the test suite as a module."""
    spec = importlib.util.spec_from_file_location(f"hostile_{name}", TESTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class Official(Fuzzer):
    """Read by the interpreter of pickles, which imports and executes nothing."""

    name = "official"
    share = 4.0

    def prepare(self) -> None:
        self.mutate = _module("official_watch").mutate
        self.whole = [written(latent) for latent in (False, True)]
        path = self.inputs / "net.pkl"
        for data in self.whole:
            path.write_bytes(data)
            self.attempt(None)
        for name in ("raw-unicode-escape", "cp437"):  # imported when a member's name first needs them
            b"x".decode(name)

    def make(self, rng: random.Random) -> None:
        data = rng.choice(self.whole)
        for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
            data = self.mutate(data, rng)
        (self.inputs / "net.pkl").write_bytes(data)

    def attempt(self, made: None) -> None:
        found = read_official(self.inputs / "net.pkl")
        json.dumps([found.kwargs, found.encoder, found.facts], allow_nan=False)
        held = sum(t.numel() * t.element_size() for t in found.state_dict.values())
        assert held <= 2 * (self.inputs / "net.pkl").stat().st_size
        backbone_arguments(found)


class _Saved:
    """An object as the published programs pickle theirs: its class as source code, its dictionary as state."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.meta = {
            "type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": class_name, "state": state
        }  # fmt: skip

    def __reduce__(self) -> tuple[Any, ...]:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def written(latent: bool) -> bytes:
    """A small network file in the official format."""

    def _reconstruct_persistent_obj(meta: dict[str, Any]) -> None:
        raise AssertionError("the reader called what it read")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    weight, bias = (torch.nn.Parameter(t) for t in (torch.arange(6.0).reshape(2, 3).T, torch.ones(2)))
    inner = {"_parameters": OrderedDict(weight=weight, bias=bias), "_buffers": {"taps": torch.ones(1, 1, 2)}}
    leaf = _Saved("Leaf", {"training": True, "_modules": {}, **inner})
    arguments = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "channel_mult": [1, 2], "sigma_data": 0.5}
    state = {"_parameters": OrderedDict(), "_buffers": OrderedDict(), "_modules": OrderedDict(enc=leaf)}
    state |= {"_init_args": (), "_init_kwargs": arguments, "skip_scale": np.sqrt(0.5)}
    content: dict[str, Any] = {"ema": _Saved("EDMPrecond", state), "dataset_kwargs": {"path": "data.zip"}}
    if latent:
        scale = np.array([0.12, 0.11, 0.13, 0.15], dtype=np.float32)
        content["encoder"] = _Saved("StabilityVAEEncoder", {"_init_args": (), "scale": scale, "_vae": None})
    names = ("torch_utils", "torch_utils.persistence")
    kept = {name: sys.modules.get(name) for name in names}
    try:
        for name in names:
            sys.modules[name] = ModuleType(name)
        sys.modules[names[1]]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
        return pickle.dumps(content, protocol=4)
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
