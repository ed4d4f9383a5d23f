"""Thousands of damaged network files: each is read or refused in a sentence; nothing runs, nothing grows.

A mutation flips bits, cuts, doubles and inserts bytes, or exchanges names, numbers and opcodes such that the file stays
a pickle (also within the pickles of the tensors).  ``official_watch.py`` reads them in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

MEGABYTE = 1 << 20
GROWN = 64 * MEGABYTE  # of the process over all mutations; the files have a few thousand bytes


class Leaf(nn.Module):
    """A layer with a bias and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
        self.bias = nn.Parameter(torch.zeros(2, dtype=torch.float16))
        self.register_buffer("taps", torch.ones(1, 1, 2))


class EDMPrecond(nn.Module):
    """The shape of a published network: a model with a container of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"enc": Leaf()})


KWARGS = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "channel_mult": [1, 2], "sigma_data": 0.5}


@pytest.fixture
def folder(official_file, tmp_path):
    for name, options in {"old": {}, "zip": {"new_layout": True}, "latent": {"latent": True}}.items():
        data = official_file(EDMPrecond(), KWARGS, **options)
        (tmp_path / f"{name}.pkl").write_bytes(data)
        (tmp_path / f"{name}.warm").write_bytes(data)
    return tmp_path


def check(found: dict, mutations: int) -> None:
    assert not found["bad"], found["bad"][0]
    assert sum(found["counts"].values()) == mutations
    assert set(found["counts"]) == {"read", "InputError"}
    # the mutations are neither all fatal nor all harmless
    assert min(found["counts"].values()) > mutations / 100
    assert found["slowest"] < 5
    assert found["grown"] < GROWN, f"{found['grown'] / MEGABYTE:.0f} MB"


def test_unharmed_files_are_read(folder, watched):
    files = watched(folder)["files"]
    assert {name: one["kind"] for name, one in files.items()} == dict.fromkeys(("old", "zip", "latent"), "read")
    assert not any(one["events"] for one in files.values())


def test_two_thousand_mutations(folder, watched):
    check(watched(folder, 2_000, 0), 2_000)


@pytest.mark.slow
def test_twenty_thousand_mutations(folder, watched):
    check(watched(folder, 20_000, 1, timeout=600), 20_000)


TRAPS = {
    "evaluates": ("eval('1 + 1')", "exec"),
    "runs a program": ("os.system('true')", "os.system"),
    "unpickles": ("pickle.loads(b'cos\\ngetpid\\n.')", "pickle.find_class"),
    "imports": ("__import__('this_is_absent')", "import"),
    "imports by function": ("importlib.import_module('colorsys')", "exec"),
    "reads another file": ("open(os.devnull)", "open"),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_the_watch_notices(trap):
    """What the other tests find absent is noticed where it happens."""
    code, event = TRAPS[trap]
    script = (
        "import importlib, os, pickle, official_watch\nfrom pathlib import Path\nwatch = official_watch.Watch()\n"
        f"watch.read = lambda path: {code}\nprint(watch.outcome(Path('a'))['events'])"
    )
    folder, root = Path(__file__).parent, Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(folder)])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert f"'{event} " in done.stdout or f'"{event} ' in done.stdout, done.stdout + done.stderr
