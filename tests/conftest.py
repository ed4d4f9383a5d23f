"""One thread, and where the reference files are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)

TESTS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Golden:
    """A reference network with its inputs and outputs, made by the published implementation."""

    precond: str
    kwargs: dict
    bounds: tuple[float, float]
    weights: dict[str, Tensor]
    tensors: dict[str, Tensor]


@pytest.fixture(scope="session")
def shared() -> Path:
    path = TESTS.parents[1] / "shared"
    if not path.is_dir():
        pytest.skip("../shared is absent")
    return path


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Callable[[str], Golden]:
    """Reads a golden file of ``tests/data/edm``, or else of ``../shared`` (skips where that is absent)."""
    from aid_control.checkpoint import load_tensors

    def read(name: str) -> Golden:
        path = TESTS / "data" / "edm" / f"{name}.safetensors"
        if not path.is_file():
            path = request.getfixturevalue("shared") / "reference" / "edm" / path.name
        if not path.is_file():
            pytest.skip(f"{path} is absent")
        tensors, metadata = load_tensors(path)
        return Golden(
            metadata["precond"],
            json.loads(metadata["kwargs"]),
            (float(metadata["sigma_min"]), float(metadata["sigma_max"])),
            {k.removeprefix("param/"): v for k, v in tensors.items() if k.startswith("param/")},
            {k: v for k, v in tensors.items() if not k.startswith("param/")},
        )

    return read
