"""Bad input: the harness sees an escape of every kind, the fuzzers find none, and nothing reaches for the network."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from aid_control.errors import InputError
from aid_control.images.described import build_described, read_arguments
from aid_control.images.perceptual import Lpips

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of memory are set the Linux way")

from hostile.harness import ESCAPES, Fuzzer, generator, run  # noqa: E402 - after the path is set
from hostile.images import Images  # noqa: E402
from hostile.labels import Labels  # noqa: E402
from hostile.latents import Latents  # noqa: E402
from hostile.masks import Masks  # noqa: E402
from hostile.official import Official  # noqa: E402
from hostile.options import Options  # noqa: E402
from hostile.tensors import Tensors  # noqa: E402
from hostile.zips import Zips  # noqa: E402


def refuse():
    raise InputError("x is y; expected z")


def whisper():
    raise InputError(" \n ")


def swallow():
    try:
        bytearray(1 << 40)
    except MemoryError as error:
        raise InputError(f"x is too large ({type(error).__name__})") from error


def linked(folder):
    (folder / "link").symlink_to("..")
    (folder / "link" / "x").touch()


PLANTED = {
    "nothing": (lambda fuzzer: None, "accepted"),
    "a sentence": (lambda fuzzer: refuse(), "refused"),
    "no sentence": (lambda fuzzer: whisper(), "exception"),
    "another exception": (lambda fuzzer: {}["x"], "exception"),
    "exit": (lambda fuzzer: sys.exit(0), "exception"),
    "a file in the output folder": (lambda fuzzer: (fuzzer.out / "x").write_text("x"), "accepted"),
    "a file beside it": (lambda fuzzer: (fuzzer.folder / "x").write_text("x"), "write"),
    "a file by a link": (lambda fuzzer: linked(fuzzer.out), "write"),
    "a folder": (lambda fuzzer: os.mkdir("new"), "write"),
    "a file removed": (lambda fuzzer: os.remove(fuzzer.outside / "precious.txt"), "write"),
    "a file of C": (lambda fuzzer: torch.from_file("made", shared=True, size=4), "write"),
    "memory": (lambda fuzzer: bytearray(1 << 40), "memory"),
    "memory, put into a sentence": (lambda fuzzer: swallow(), "memory"),
    "a process": (lambda fuzzer: subprocess.run(["true"]), "exec"),
    "a shell": (lambda fuzzer: os.system("true"), "exec"),
    "a name of a pickle": (lambda fuzzer: __import__("pickle").loads(b"cos\ngetpid\n."), "exec"),
    "a socket": (lambda fuzzer: socket.socket().close(), "socket"),
    "a host": (lambda fuzzer: socket.getaddrinfo("127.0.0.1", 9), "socket"),
    "a hang": (lambda fuzzer: time.sleep(60), "hang"),
    "a crash": (lambda fuzzer: os.kill(os.getpid(), signal.SIGSEGV), "crash"),
    "an end": (lambda fuzzer: os._exit(0), "crash"),
}  # fmt: skip


class Plant(Fuzzer):
    """Input i does the i-th of what is planted."""

    name, seconds = "plant", 3.0

    def make(self, rng):
        return self.what

    def attempt(self, made):
        PLANTED[made][0](self)


@pytest.mark.parametrize("what", PLANTED)
def test_the_harness_sees(tmp_path, what):
    plant = Plant(tmp_path)
    plant.what = what
    tally = run(plant, 1, kept=tmp_path / "kept")
    expected = PLANTED[what][1]
    if expected in ESCAPES:
        assert [e.kind for e in tally.escapes] == [expected], tally
        assert (tmp_path / "kept" / "plant-0" / "escape.txt").is_file()
        assert tally.counts == {"escape": 1}
    else:
        assert tally.counts == {expected: 1} and not tally.escapes


def test_what_comes_after_an_escape_is_tried_too(tmp_path):
    class Mixed(Plant):
        def make(self, rng):
            return rng.choice(["nothing", "a sentence", "a crash", "another exception"])

    tally = run(Mixed(tmp_path), 40, seed=3)
    expected = [generator("plant", 3, i).choice(["accepted", "refused", "crash", "exception"]) for i in range(40)]
    assert {e.index: e.kind for e in tally.escapes} == {i: k for i, k in enumerate(expected) if k in ESCAPES}
    assert tally.counts["accepted"] == expected.count("accepted") and tally.tried == 40
    again = run(Mixed(tmp_path), 1, seed=3, first=tally.escapes[0].index)
    assert [e.kind for e in again.escapes] == [tally.escapes[0].kind]


KINDS = {Images: 250, Masks: 250, Zips: 150, Labels: 150, Latents: 150, Tensors: 80, Official: 200, Options: 6}


@pytest.mark.parametrize("kind", KINDS)
def test_no_input_escapes(tmp_path, kind):
    fuzzer = kind(tmp_path)
    fuzzer.prepare()
    tally = run(fuzzer, KINDS[kind], seed=7)
    assert not tally.escapes, tally.escapes[0]
    assert tally.tried == KINDS[kind] and tally.counts["refused"] > 0
    # Hydra takes a tenth of a second, and few hostile options are good ones
    assert kind is Options or tally.counts["accepted"] > 0


@pytest.mark.parametrize("kind", [Images, Zips, Tensors])
def test_an_input_depends_on_its_seed_and_index_only(tmp_path, kind):
    made = []
    for name in ("a", "b"):
        fuzzer = kind(tmp_path / name)
        fuzzer.prepare()
        for path in fuzzer.inputs.iterdir():
            path.unlink()
        if name == "b":
            fuzzer.make(random.Random(1))  # another input before it
            for path in fuzzer.inputs.iterdir():
                path.unlink()
        fuzzer.make(generator(kind.name, 5, 11))
        made.append({p.name: p.read_bytes() for p in fuzzer.inputs.iterdir() if p.is_file()})
    assert made[0] == made[1] and made[0]


@pytest.mark.slow
def test_the_program(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "verify_hostile.py"), f"out={tmp_path}", "n=2000", "seed=2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    report = json.loads((tmp_path / "report.json").read_text())
    assert all(row["ok"] for row in report["rows"]) and not (tmp_path / "escapes").exists()


# --- networks built from what a file says ---------------------------------------------------------------------------


class Layers(nn.Module):
    """So many layers of some width."""

    def __init__(self, width: int, count: int = 1, ratio: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        self.ratio = 1 / ratio


WHOLE = Layers(4, 2).state_dict()


def test_a_description_that_fits():
    net = build_described(Layers, {"width": 4, "count": 2}, WHOLE)
    net.load_state_dict(WHOLE)
    assert not any(p.is_meta for p in net.parameters())
    assert all(p.is_meta for p in build_described(Layers, {"width": 4, "count": 2}, WHOLE, meta=True).parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 5, "count": 2}, r"size mismatch for layers\.0\.weight: shape \(4, 4\); expected \(5, 5\)"),
        ({"width": 4, "count": 3}, r"no tensor layers\.2\.weight"),
        ({"width": 4, "count": 1}, r"tensor layers\.1\.weight belongs to no layer"),
        ({"width": 4, "count": 10**6}, "more than 72 parameters"),  # stops after the 73rd of two million
        ({"width": 10**6, "count": 2}, "size mismatch"),  # eight terabytes
        ({"width": 10**10}, "width is too large"),
        ({"width": 4, "count": -1}, "belongs to no layer"),
        ({"width": 4, "ratio": 0}, "describe no network .ZeroDivisionError"),
        ({"width": 4, "ratio": float("nan")}, "ratio is NaN"),
        ({"width": "4"}, "describe no network .TypeError"),
        ({"width": [4] * 100}, "width holds too much"),
        ({"height": 4}, "describe no network .TypeError"),
        ({}, "describe no network .TypeError"),
    ],
)
def test_a_description_that_lies(arguments, message):
    with pytest.raises(InputError, match=message):
        build_described(Layers, arguments, WHOLE)


@pytest.mark.parametrize("text", ["", "[1]", "null", "{", "[" * 50_000, '{"a": 1' + "0" * 5000 + "}", "x" * (1 << 17)])
def test_descriptions_that_are_none(text):
    with pytest.raises(InputError, match="description"):
        read_arguments(text)


# --- the network ----------------------------------------------------------------------------------------------------

OFFLINE = """
import sys
tried = []
def hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request"):
        tried.append(event)
        raise OSError("no network")
sys.addaudithook(hook)
import torch
from aid_control.errors import InputError
torch.set_num_threads(1)
def refused(make, words):
    try:
        make()
    except InputError as error:
        assert words in str(error) and "\\n" not in str(error), error
    else:
        raise AssertionError(words)
"""
PICTURES = """
from aid_control.images import inpaint, load_backbone, load_guidance, realism
from aid_control.images.backbones.registry import asset
from aid_control.images.data import ImageSource, to_float
from aid_control.images.masks import make_mask
from aid_control.images.perceptual import Lpips
net, guidance = load_backbone(), load_guidance()
y, mask = to_float(ImageSource(asset("faces"), 64, 3).stack([0])), make_mask("box", 64, 0)[None]
assert inpaint(net, guidance, y * mask, mask, 1, "euler", seeds=[0]).shape == y.shape
refused(Lpips, "alexnet-owt-7be5be79.pth")
realism.PACKAGE = "no_such_package_here"
refused(realism.InceptionFeatures, "download=True")
refused(lambda: load_backbone("edm-ffhq-64x64-uncond-vp"), "obtain https://")
print("tried", len(tried))
"""
WEIGHTS = """
from aid_control.images.perceptual import Lpips
try:
    Lpips(download=True)
except OSError:
    pass
print("tried", len(tried))
"""
VAE = """
from aid_control.images.latents import StabilityCodec
refused(lambda: StabilityCodec("no-one/no-such-vae").vae(), "VAE")
refused(lambda: StabilityCodec("no-such-vae").vae(), "VAE")
refused(lambda: StabilityCodec("../no such vae").vae(), "VAE")
print("tried", len(tried))
"""


def attempts(script, folder):
    """How often a script that follows ``OFFLINE`` reached for the network; caches are empty."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= dict.fromkeys(("TORCH_HOME", "HF_HOME"), str(folder))
    command = [sys.executable, "-W", "ignore", "-c", OFFLINE + script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.split()[-1])


def test_pictures_do_not_reach_for_the_network(tmp_path):
    assert attempts(PICTURES, tmp_path) == 0


@pytest.mark.slow
def test_networks_of_others_do_not_either_unless_told_to(tmp_path):
    pytest.importorskip("diffusers")
    pytest.importorskip("lpips")
    assert attempts(VAE, tmp_path) == 0
    assert attempts(WEIGHTS, tmp_path) > 0  # the hook does see what the flag allows


def test_lpips_says_what_to_pass():
    with pytest.raises(InputError, match=r"expected torchvision's file alexnet-owt-7be5be79\.pth .*download=True"):
        Lpips()
