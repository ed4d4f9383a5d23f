"""Micro-batches: halved where memory runs out, finished rows kept; tried in earnest under a limit on memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aid_control.errors import InputError
from aid_control.images import inpaint, micro_batch
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.masks import make_mask
from aid_control.images.micro_batch import MicroBatch, out_of_memory

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    MemoryError("Unable to allocate 1. GiB for an array"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
    RuntimeError("could not create a primitive"),
    RuntimeError("MPS backend out of memory"),
]


@pytest.fixture(autouse=True, scope="module")
def _nothing_to_free():
    """These machines hold no memory, and looking for garbage takes long; the child process does it in earnest."""
    with mock.patch.object(micro_batch, "_free"):
        yield


class Machine:
    """Takes so many rows at a time; remembers what it was asked, and what it finished."""

    def __init__(self, fits: int, error: BaseException = SHORT[0]) -> None:
        self.fits, self.error, self.asked, self.finished = fits, error, [], []

    def __call__(self, rows: slice) -> list[int]:
        n = rows.stop - rows.start
        self.asked.append(n)
        if n > self.fits:
            raise self.error
        self.finished += range(rows.start, rows.stop)
        return list(range(rows.start, rows.stop))


@given(rows=st.integers(0, 70), size=st.integers(1, 80), fits=st.integers(1, 80))
def test_every_row_is_finished_once_and_in_order(rows, size, fits):
    machine, batch = Machine(fits), MicroBatch(size)
    out = batch(machine, rows)
    assert sum(out, []) == machine.finished == list(range(rows))
    failures = [n for n in machine.asked if n > fits]
    assert all(b <= a // 2 for a, b in zip(failures, failures[1:], strict=False))  # no size is tried again
    assert failures == machine.asked[: len(failures)]  # nor after one that fitted
    assert batch.size <= fits or rows <= fits


@pytest.mark.parametrize("error", SHORT, ids=lambda e: f"{type(e).__name__} {str(e)[:12]}")
def test_the_fallback_is_told_once(error, capsys):
    machine, batch = Machine(3, error), MicroBatch(16)
    batch(machine, 20)
    assert batch.size == 2 and machine.asked[:4] == [16, 8, 4, 2]
    assert capsys.readouterr().err == "out of memory with 16 images at a time: going on with 2\n"
    batch(machine, 5)  # the size that did not fit is not tried again
    assert machine.asked[-3:] == [2, 2, 1] and capsys.readouterr().err == ""


@pytest.mark.parametrize("error", SHORT, ids=lambda e: f"{type(e).__name__} {str(e)[:12]}")
def test_one_row_that_does_not_fit_is_one_sentence(error, capsys):
    with pytest.raises(InputError, match="out of memory with one image at a time.*expected more memory") as caught:
        MicroBatch(4)(Machine(0, error), 4)
    assert "\n" not in str(caught.value) and caught.value.__cause__ is error
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), InputError("mask"), KeyboardInterrupt()]
)
def test_other_failures_pass_through(error):
    machine = Machine(0, error)
    with pytest.raises(type(error)) as caught:
        MicroBatch(8)(machine, 8)
    assert caught.value is error and machine.asked == [8] and not out_of_memory(error)


def test_memory_that_gets_scarce_later_keeps_what_is_done(capsys):
    machine = Machine(8)

    def run(rows: slice) -> list[int]:
        machine.fits = 8 if rows.start < 16 else 2
        return machine(rows)

    assert sum(MicroBatch(8)(run, 24), []) == machine.finished == list(range(24))
    assert machine.asked == [8, 8, 8, 4, 2, 2, 2, 2]
    assert capsys.readouterr().err == "out of memory with 8 images at a time: going on with 2\n"


def test_the_failed_attempt_is_freed_before_the_next():
    """Its tensors hang on the error's traceback, and must be gone when the next size is tried."""
    import weakref

    alive: list[weakref.ref] = []

    def run(rows: slice) -> int:
        assert all(ref() is None for ref in alive)
        held = torch.zeros(4)
        alive.append(weakref.ref(held))
        if rows.stop - rows.start > 1:
            raise MemoryError
        return 1

    assert MicroBatch(4)(run, 2) == [1, 1] and len(alive) == 3


@pytest.mark.parametrize("size", [0, -1])
def test_no_images_at_a_time_is_refused(size):
    with pytest.raises(InputError, match="expected at least 1"):
        MicroBatch(size)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
def test_inpaint_in_micro_batches(size):
    net = GaussianBackbone((1, 8, 8), 0).double()
    net.assign(torch.full((64,), 0.1), torch.zeros(0, 64), torch.full((64,), 0.3))
    y, seeds = torch.full((5, 1, 8, 8), 0.5).double(), [7, 3, 9, 3, 1]
    mask = torch.stack([make_mask("random", 8, i) for i in range(5)])
    sizes: list[int] = []
    out = inpaint(net, None, y, mask, 3, "euler", seeds, callback=lambda k, x: sizes.append(len(x)),
                  micro_batch=size)  # fmt: skip
    assert torch.equal(out, inpaint(net, None, y, mask, 3, "euler", seeds))
    full, rest = divmod(5, size)
    assert sizes == [size] * 3 * full + [rest] * 3 * (rest > 0)
    with pytest.raises(InputError, match="expected at least 1"):
        inpaint(net, None, y, mask, 3, micro_batch=0)


CHILD = """
import json, resource, sys
import torch
torch.set_num_threads(1)
from aid_control.images import inpaint, load_backbone, load_guidance
from aid_control.images.masks import make_mask
from aid_control.images.micro_batch import out_of_memory

def size(what):
    return int(open("/proc/self/status").read().split(what)[1].split()[0]) * 1024

limit, out, n = int(sys.argv[1]), sys.argv[2], 64
net, guidance = load_backbone(), load_guidance()
x = torch.stack([torch.full((3, 64, 64), i / n) for i in range(n)])
masks = torch.stack([make_mask("mixed", 64, i) for i in range(n)])

def run(rows=slice(0, n), micro_batch=None):
    return inpaint(net, guidance, x[rows], masks[rows], 1, "euler", list(range(n))[rows], micro_batch=micro_batch)

run(slice(0, 1))
before, found = size("VmSize:"), {}
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (before + limit, resource.RLIM_INFINITY))
    try:
        run()
        found["all at once"] = "fits"
    except Exception as error:
        found["all at once"] = "out of memory" if out_of_memory(error) else repr(error)
    result = run(micro_batch=n)
else:
    result = run(micro_batch=4)
    found["few"] = size("VmPeak:") - before
    run()
    found["all"] = size("VmPeak:") - before
torch.save(result, out)
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory the Linux way")
def test_under_a_limit_on_memory_the_fallback_finishes(tmp_path):
    """64 images at once do not fit, fewer do; the pictures are those of an unlimited run in batches of 4."""

    def child(limit: int) -> tuple[dict, str, torch.Tensor]:
        # with a fixed threshold glibc gives back what is freed, and the limit counts what is in use
        environment = os.environ | {
            "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1048576",
        }  # fmt: skip
        out = tmp_path / f"{limit}.pt"
        done = subprocess.run([sys.executable, "-c", CHILD, str(limit), str(out)], env=environment,
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout), done.stderr, torch.load(out)

    free, silent, four = child(0)
    assert silent == "" and free["few"] < 0.7 * free["all"]
    found, told, result = child((free["few"] + free["all"]) // 2)
    assert found == {"all at once": "out of memory"}
    assert told.startswith("out of memory with 64 images at a time: going on with ") and told.count("\n") == 1
    torch.testing.assert_close(result, four, rtol=0, atol=5e-5)  # kernels order their sums by the batch
