"""State files: what goes in comes out, and a bad or interrupted file never passes for a good one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aid_control.checkpoint import atomic_write, load_state, save_state
from aid_control.errors import InputError

STATE = {
    "optimizer": {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(6.0).reshape(2, 3)}, 12: {"step": 4}},
        "param_groups": [{"lr": 1e-3, "betas": [0.9, 0.999], "params": [0, 12], "amsgrad": False, "foreach": None}],
    },
    "rng": torch.arange(5, dtype=torch.uint8),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "name": "Zoë's run",
    "floats": [0.1, -1e-300, 1.5e300],
    "whole": 2**53,
    "flags": [True, False],
    "empty": {},
    "empty_list": [],
}


def assert_same(a, b, path="state"):
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, path
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}/{i}")
    else:
        assert a == b, path


def test_nested_round_trip(tmp_path: Path):
    path = tmp_path / "new" / "folder" / "state.safetensors"
    save_state(path, STATE)
    assert_same(load_state(path), STATE)
    assert os.listdir(path.parent) == [path.name]


def test_state_without_tensors(tmp_path: Path):
    save_state(tmp_path / "s", {"step": 3})
    assert load_state(tmp_path / "s") == {"step": 3}


def test_tensors_sharing_memory(tmp_path: Path):
    weight = torch.randn(4)
    state = {"a": weight, "b": weight, "c": weight[:2]}
    save_state(tmp_path / "s", state)
    assert_same(load_state(tmp_path / "s"), state)


def test_optimizer_resumes(tmp_path: Path):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    (weight**2).sum().backward()
    optimizer.step()
    save_state(tmp_path / "s", {"weight": weight, "optimizer": optimizer.state_dict()})

    state = load_state(tmp_path / "s")
    again = torch.nn.Parameter(state["weight"])
    resumed = torch.optim.Adam([again], lr=0.5)
    resumed.load_state_dict(state["optimizer"])
    for w, o in ((weight, optimizer), (again, resumed)):
        o.zero_grad()
        (w**2).sum().backward()
        o.step()
    assert torch.equal(weight, again)


@pytest.mark.parametrize("damage", ["missing", "empty", "header", "truncated", "text", "folder", "other kind"])
def test_bad_files_are_named(damage, tmp_path: Path):
    path = tmp_path / "state.safetensors"
    save_state(path, STATE)
    whole = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "other kind":
        save_file({"a": torch.zeros(1)}, path)
    elif damage != "missing":
        path.write_bytes({"empty": b"", "header": whole[:20], "truncated": whole[:-1], "text": b"x" * 500}[damage])
    with pytest.raises(InputError) as error:
        load_state(path)
    assert str(path) in str(error.value)


def test_unserialisable_leaf_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "state.safetensors"
    save_state(path, {"step": 1})
    with pytest.raises(TypeError, match="set at 'a/b'"):
        save_state(path, {"a": {"b": {1, 2}}})
    assert load_state(path) == {"step": 1}
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_failing_write_keeps_the_old_file(call, tmp_path: Path, monkeypatch):
    path = tmp_path / "state.safetensors"
    save_state(path, {"step": 1})

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="disk full"):
            save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}
    assert os.listdir(tmp_path) == [path.name]


def test_overwrite_is_whole(tmp_path: Path):
    path = tmp_path / "file"
    atomic_write(path, b"a long first version")
    atomic_write(path, b"short")
    assert path.read_bytes() == b"short"


WRITER = """
import sys, torch
from aid_control.checkpoint import save_state
while True:
    for n in (10, 10_000, 300):
        save_state(sys.argv[1], {"n": n, "x": torch.full((n,), float(n))})
"""


def test_a_reader_beside_a_writer_sees_whole_states(tmp_path):
    """States of changing size are renamed over one file while it is read: every read is one of them, whole.

    With a reader that opens the file twice about one read in a hundred fails.
    """
    path = tmp_path / "state.safetensors"
    save_state(path, {"n": 1, "x": torch.ones(1)})
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    sizes = set()
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (len(sizes) < 4 or time.monotonic() < deadline - 55):
            state = load_state(path)
            assert torch.equal(state["x"], torch.full((state["n"],), float(state["n"])))
            sizes.add(state["n"])
    finally:
        writer.kill()
        writer.wait()
    assert sizes == {1, 10, 300, 10_000}
