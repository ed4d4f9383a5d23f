"""State files: what goes in comes out, and a bad or interrupted file never passes for a good one."""

from __future__ import annotations

import errno
import json
import os
import resource
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from aid_control import checkpoint
from aid_control.checkpoint import (
    NewerFormatError,
    atomic_write,
    content_hash,
    load_state,
    load_tensors,
    read_metadata,
    save_state,
    save_tensors,
)
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


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit of a file's size here")
def test_a_write_cut_off_half_way_names_its_target(tmp_path: Path):
    """The system stops the write in the middle, as a full disk does."""
    path = tmp_path / "state.safetensors"
    save_state(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError) as error:
            save_state(path, {"x": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(path))
    assert load_state(path) == {"step": 1}
    assert os.listdir(tmp_path) == [path.name]


def test_missing_permission_names_the_target(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError) as error:
        atomic_write(tmp_path / "file" / "state", b"x")
    assert str(tmp_path / "file") in str(error.value)


def test_the_folder_is_flushed_after_the_rename(tmp_path: Path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def flush(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("rename"), replace(*names)))
    atomic_write(tmp_path / "a", b"x")
    assert calls == ["file", "rename", "folder"]


def test_a_folder_that_cannot_be_flushed_is_no_failure(tmp_path: Path, monkeypatch):
    fsync = os.fsync

    def flush(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not supported")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flush)
    atomic_write(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


SMALL = {
    "net": {"weight": torch.tensor([[1.5, -2.0]]), "bias": torch.tensor([0.25]), "on": torch.tensor([True, False])},
    "steps": {0: torch.tensor(7, dtype=torch.int16)},
    "lr": 0.1,
}


def whole_or_refused(path: Path, data: bytes) -> bool:
    """Whether the file is refused; fails where it is read as another state."""
    path.write_bytes(data)
    try:
        state = load_state(path)
    except InputError as error:
        assert str(path) in str(error)
        return True
    assert_same(state, SMALL)
    return False


@pytest.mark.parametrize("bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_found(bits, tmp_path: Path):
    """One at a time: one bit of every byte of the file, or all of them."""
    path = tmp_path / "s"
    save_state(path, SMALL)
    whole, let_through = path.read_bytes(), []
    for position in range(len(whole)):
        for bit in range(8) if bits == 8 else [position * 5 % 8]:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            if not whole_or_refused(path, bytes(damaged)):
                let_through.append(position)
    assert not let_through
    assert not whole_or_refused(path, whole)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_damage_passes_for_another_state(tmp_path_factory, data):
    """Several bits, cuts, repeated, swapped and foreign pieces: the state as it was written, or refused."""
    path = tmp_path_factory.mktemp("damage") / "s"
    save_state(path, SMALL)
    damaged = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["flip", "set", "cut", "repeat", "swap", "insert"]))
        i, j = sorted(data.draw(st.tuples(*[st.integers(0, max(len(damaged) - 1, 0))] * 2)))
        if kind == "flip" and damaged:
            damaged[i] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "set" and damaged:
            damaged[i] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del damaged[i:j]
        elif kind == "repeat":
            damaged[i:i] = damaged[i:j]
        elif kind == "swap" and damaged:
            damaged[i], damaged[j] = damaged[j], damaged[i]
        elif kind == "insert":
            damaged[i:i] = data.draw(st.binary(max_size=9))
    whole_or_refused(path, bytes(damaged))


def edited(path: Path, change) -> None:
    """The file with another header, its tensors as they are."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def rename_a_note(old: str, new: str):
    return lambda header: header["__metadata__"].__setitem__(new, header["__metadata__"].pop(old))


def exchange(header):
    header["net/bias"]["data_offsets"], header["extra"]["data_offsets"] = (
        header["extra"]["data_offsets"], header["net/bias"]["data_offsets"],
    )  # fmt: skip


def other_shape(header):
    header["net/weight"]["shape"] = [2, 1]


def without_hash(header):
    del header["__metadata__"]["aid_sha256"]


def hash_out_of_sight(header):
    """Both notes under other names, as if the file were older than hashes."""
    rename_a_note("aid_sha256", "aid_sha257")(header)
    rename_a_note("aid_format", "aid_formau")(header)


@pytest.mark.parametrize("change", [exchange, other_shape, without_hash, hash_out_of_sight])
def test_a_well_formed_file_of_other_content_is_refused(change, tmp_path: Path):
    path = tmp_path / "s"
    save_state(path, {**SMALL, "extra": torch.tensor([0.5])})
    edited(path, lambda header: None)  # other spaces, the same content
    assert load_state(path)["lr"] == 0.1
    edited(path, change)
    with pytest.raises(InputError, match="damaged|no saved state"):
        load_state(path)


def test_files_without_a_hash_are_read(tmp_path: Path):
    """Of earlier versions, and of other writers, whose notes may have the same names."""
    tensors = {"a/b": torch.arange(3.0)}
    save_file(tensors, tmp_path / "old", metadata={"state": json.dumps({"a": {"b": {"__tensor__": "a/b"}}, "n": 1})})
    assert_same(load_state(tmp_path / "old"), {"a": {"b": torch.arange(3.0)}, "n": 1})
    notes = {"format": "pt", "sha256": "of something else"}
    save_file(tensors, tmp_path / "foreign", metadata=notes)
    assert load_tensors(tmp_path / "foreign")[1] == read_metadata(tmp_path / "foreign") == notes


def test_a_newer_format_is_refused_and_named(tmp_path: Path, monkeypatch):
    path = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        save_state(path, SMALL)
    with pytest.raises(NewerFormatError, match=f"format {checkpoint.FORMAT + 1}; expected at most {checkpoint.FORMAT}"):
        load_state(path)
    with pytest.raises(NewerFormatError):
        load_tensors(path)


def test_the_same_content_is_the_same_bytes(tmp_path: Path):
    """safetensors itself orders the notes differently at every call; every reader of the format reads the file."""
    tensors, notes = {f"t{i}": torch.full((i,), float(i)) for i in range(5)}, {f"note {i}é": str(i) for i in range(12)}
    for name in "ab":
        save_tensors(tmp_path / name, tensors, notes)
        tensors, notes = (dict(reversed(d.items())) for d in (tensors, notes))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again, metadata = load_tensors(tmp_path / "a")
    assert metadata == read_metadata(tmp_path / "a") == notes
    for found in (again, load_file(tmp_path / "a")):
        assert found.keys() == tensors.keys() and all(torch.equal(v, tensors[k]) for k, v in found.items())


def test_the_hash_tells_name_precision_shape_bytes_and_notes():
    x = torch.tensor([1.0, 2.0])
    variants = [
        ({"x": x}, {}), ({"y": x}, {}), ({"x": x.view(torch.int32)}, {}), ({"x": x.reshape(2, 1)}, {}),
        ({"x": x.flip(0)}, {}), ({"x": x[:1], "x2": x[1:]}, {}), ({"x": x}, {"a": "b"}), ({"x": x}, {"a": "c"}),
        ({}, {}), ({"x": x[:0]}, {}), ({"x": x[0]}, {}), ({"x": x[:1]}, {}),
    ]  # fmt: skip
    assert len({content_hash(*variant) for variant in variants}) == len(variants)
    assert content_hash({"x": torch.ones(2, 2).tril().T}) == content_hash({"x": torch.tensor([[1.0, 1], [0, 1]])})
    assert content_hash({"a": x, "b": x}, {"c": "", "d": ""}) == content_hash({"b": x, "a": x}, {"d": "", "c": ""})


@pytest.mark.parametrize("content", [b"", b"\xff" * 20, b"\x02" + 7 * b"\0" + b"[]", 8 * b"\0" + b"{" * 90])
def test_a_header_that_cannot_be_read_is_named(content, tmp_path: Path):
    (tmp_path / "s").write_bytes(content)
    for read in (read_metadata, load_tensors, load_state):
        with pytest.raises(InputError, match=str(tmp_path / "s")):
            read(tmp_path / "s")
    with pytest.raises(InputError, match="no readable header"):
        read_metadata(tmp_path / "missing")


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
