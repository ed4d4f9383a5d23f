"""Network files in the official format, written by Python's pickle as the published programs write them.

The published modules (``torch_utils.persistence``, ``dnnlib.util``) are not installed; while a file is written, empty
ones with the two names that matter stand in their place.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn


def _reconstruct_persistent_obj(meta: dict) -> None:
    raise AssertionError("the reader called what it read")


class EasyDict(dict):
    """The published dictionary with attributes."""


NAMES = {"torch_utils.persistence": _reconstruct_persistent_obj, "dnnlib.util": EasyDict}


class Persistent:
    """An object whose class travels as source code."""

    def __init__(self, class_name: str, state: dict, module_src: str = "raise SystemExit") -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": module_src,
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self) -> tuple:
        return _reconstruct_persistent_obj, (self.meta,)


@contextmanager
def pretended(new_layout: bool) -> Iterator[None]:
    """Stand-ins of the published modules; with ``new_layout``, storages as zip archives."""
    kept = {name: sys.modules.get(name) for name in (*NAMES, "torch_utils", "dnnlib")}
    reduce = torch.storage.TypedStorage.__reduce__

    def as_zip(storage: torch.storage.TypedStorage) -> tuple:
        blob = io.BytesIO()
        torch.save(storage, blob, _use_new_zipfile_serialization=True)
        return torch.storage._load_from_bytes, (blob.getvalue(),)

    try:
        for name in kept:
            sys.modules[name] = ModuleType(name)
        for name, thing in NAMES.items():
            thing.__module__, thing.__qualname__ = name, thing.__name__
            setattr(sys.modules[name], thing.__name__, thing)
        if new_layout:
            torch.storage.TypedStorage.__reduce__ = as_zip
        yield
    finally:
        torch.storage.TypedStorage.__reduce__ = reduce
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def persistent(module: nn.Module, kwargs: dict | None = None, **attributes: Any) -> Any:
    """A module of this package as the published programs would write it."""
    children = {name: child and persistent(child) for name, child in module._modules.items()}
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container.__dict__["_modules"] = children
        return container
    state = {name: module.__dict__[name] for name in ("training", "_parameters", "_buffers")}
    state |= {"_non_persistent_buffers_set": module._non_persistent_buffers_set, "_forward_hooks": OrderedDict()}
    state |= {"_modules": children, "skip_scale": np.sqrt(0.5), "_init_args": (), "_init_kwargs": kwargs or {}}
    return Persistent(type(module).__name__, state | attributes)


@dataclass
class OfficialFile:
    """Writes official files; a ``net`` gives the weights, the rest what stands beside them."""

    settings: dict = field(default_factory=lambda: {"path": "data.zip", "use_labels": False, "max_size": 100})

    def __call__(
        self,
        net: nn.Module,
        kwargs: dict,
        class_name: str | None = None,
        new_layout: bool = False,
        latent: bool = False,
        **attributes: Any,
    ) -> bytes:
        network = persistent(net, kwargs, **attributes)
        network.meta["class_name"] = class_name or type(net).__name__
        content: dict = {"ema": network, "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2})}
        content["dataset_kwargs"] = self.settings
        if latent:
            scale = np.array([0.12, 0.11, 0.13, 0.15], dtype=np.float32)
            encoder = {"_init_args": (), "_init_kwargs": {"batch_size": 8}, "scale": scale, "_vae": None}
            content = EasyDict({"encoder": Persistent("StabilityVAEEncoder", encoder), **content})
            content["dataset_kwargs"] = EasyDict(self.settings)
        with pretended(new_layout):
            return pickle.dumps(content, protocol=4)


@pytest.fixture(scope="session")
def official_file() -> Callable[..., bytes]:
    return OfficialFile()


@pytest.fixture(scope="session")
def watched() -> Callable[..., dict]:
    """Runs ``official_watch.py`` (see there) on a folder; a crash of that process fails the test."""
    if not sys.platform.startswith("linux"):
        pytest.skip("limits and peaks of memory are read the Linux way")
    script, root = Path(__file__).with_name("official_watch.py"), Path(__file__).parents[2]

    def run(folder: Path, *numbers: int, timeout: float = 120) -> dict:
        command = [sys.executable, str(script), str(folder), *map(str, numbers)]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)

    return run
