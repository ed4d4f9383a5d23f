"""Options of the programs: unknown, of other kinds, negative, huge, not finite, nested, interpolated, unprintable.

`Options` composes a program's configuration as ``program`` does, with a stand-in for its main function that looks at
what arrives.  `Programs` runs the programs themselves, to the end where the options are good.
"""

from __future__ import annotations

import io
import math
import os
import random
import runpy
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from PIL import Image

from aid_control.errors import InputError
from aid_control.images.backbones.precond import PRECONDITIONERS
from aid_control.images.backbones.registry import save_backbone
from aid_control.program import program

from .harness import Fuzzer

__all__ = ["Options", "Programs"]

EXAMPLES = Path(__file__).resolve().parents[1]
LONGEST = 1_100  # characters of a refusal, with what is around it
VALUES = [
    "-1", "0", "1", "2", "1.5", "-0.0", "nan", "inf", "-inf", "1e400", "1e-400", "9223372036854775807",
    "9223372036854775808", "1" + "0" * 30, "9" * 400, "9" * 5000, "abc", "''", "' '", "null", "true", "false", "[]",
    "[1,2]",
    "[nan]", "[a,b]", "[[1],[2]]", "[" * 50, "{}", "{a:1}", "{a:{b:{c:1}}}", "${oc.env:HOME}", "${oc.env:NOT_THERE}",
    "${nothing}", "${out}", "${seed}", "${.}", "${oc.decode:1}", "${oc.create:{a:1}}", "???", "'a\nb'", "a\nb",
    "'\x1b[2J'", "é", "'\N{SNOWMAN}'", "'\udcff'", "a" * 300, "a" * 5000, "../../x", "/proc/self/mem", "/dev/full",
    "a=b", "a,b", "0x10",
    "1_000", "1,2", "range(3)", "glob(*)", "choice(1,2)", "int(3.7)", "str(4)", "@x", "", "\"", "'", "box", "heun",
]  # fmt: skip
KEYS = [
    "nothing", "+nothing", "++nothing", "~out", "~nothing", "+out", "out.x", "+out.x", "seed.x", "", "=", "a b", "\0",
]  # fmt: skip


def keys(cfg: dict[str, Any], prefix: str = "") -> list[str]:
    """Names of all options, with dots."""
    found = []
    for name, value in cfg.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, dict):
            found += keys(value, f"{prefix}{name}.")
    return found


def configuration(name: str) -> dict[str, Any]:
    """A program's own options."""
    cfg: Any = OmegaConf.to_container(OmegaConf.load(EXAMPLES / "conf" / f"{name}.yaml"))
    return {key: value for key, value in cfg.items() if key not in ("hydra", "defaults")}


def hostile(names: list[str], rng: random.Random) -> list[str]:
    """Words for a command line."""
    found = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        key = rng.choice(KEYS) if rng.random() < 0.1 else rng.choice(names)
        mark = rng.choice(["", "", "", "", "", "", "+", "++", "~"])
        found.append(f"{mark}{key}" if mark == "~" and rng.random() < 0.5 else f"{mark}{key}={rng.choice(VALUES)}")
    return [word.replace("\0", "?") for word in found]  # no operating system passes on a NUL


class Spoken(Fuzzer):
    """A fuzzer whose readers say what they refuse on the standard error."""

    def listen(self) -> None:
        """Point the standard error to an empty file."""
        self.heard = self.folder / "stderr.txt"
        descriptor = os.open(self.heard, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 2)
        os.close(descriptor)
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115

    def judge(self, code: Any, made: Any) -> None:
        """Turn an exit code into a verdict: ``InputError`` for 2 with one line."""
        said = self.heard.read_text(errors="replace")
        if code in (0, None):
            return
        line = said.removesuffix("\n")
        assert code == 2, f"exit code {code} for {made}: {said[-1500:]}"
        assert line.startswith("error: ") and line.isprintable(), f"{made} says {line[-1500:]!r}"
        assert len(line) <= LONGEST, f"{made} says {len(line)} characters"
        raise InputError(line)


class Options(Spoken):
    """Hydra and the checks behind it; what passes has the kinds of the defaults and is finite."""

    name = "options"
    share = 0.8

    def prepare(self) -> None:
        names = ("inpaint_ffhq", "train_guidance", "train_backbone", "train_baseline", "benchmark", "fit_mixture",
                 "compare_guidance", "inpaint_latent", "verify_methods", "verify_recovery")  # fmt: skip
        self.own = {name: configuration(name) for name in names}
        self.names = {name: keys(cfg) for name, cfg in self.own.items()}
        tempfile.gettempdir()  # finds a place at its first call, by writing a file there

    def make(self, rng: random.Random) -> list[str]:
        self.listen()
        name = rng.choice(list(self.own))
        given = [f"{key}=x" for key, value in self.own[name].items() if value == "???"]
        return [name, *given, *([] if rng.random() < 0.02 else hostile(self.names[name], rng))]

    def attempt(self, made: list[str]) -> None:
        sys.argv = [str(EXAMPLES / f"{made[0]}.py"), *made[1:]]
        GlobalHydra.instance().clear()  # this may itself run in a program
        self.current = self.own[made[0]]
        try:
            program(f"conf/{made[0]}", self.look)
        except SystemExit as stopped:
            self.judge(stopped.code, made)

    def look(self, cfg: Any) -> int:
        """The stand-in for a program."""
        given: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        assert set(given) == set(self.current), sorted(set(given) ^ set(self.current))
        for name, default in self.current.items():
            kind = type(None if default == "???" else default)
            if kind in (bool, int, str, list, dict) and name != "kimg":
                assert type(given[name]) is kind, f"{name} is {given[name]!r}"
            if kind is float:
                assert type(given[name]) in (int, float), f"{name} is {given[name]!r}"
            self.finite(given[name])
        return 0

    def finite(self, value: Any) -> None:
        """Fail on numbers and texts that no program can use, at any depth."""
        if isinstance(value, dict | list):
            for one in value.values() if isinstance(value, dict) else value:
                self.finite(one)
        assert not isinstance(value, float) or math.isfinite(value)
        assert not isinstance(value, int) or abs(value) < 2**63
        assert not isinstance(value, str) or (len(value) <= 4096 and value.isprintable())


class Programs(Spoken):
    """The programs in processes of their own, forked where the libraries are imported already."""

    name = "programs"
    share = 0.1
    seconds = 120.0
    memory = 4 << 30
    chunk = 1

    def prepare(self) -> None:
        import matplotlib.pyplot  # noqa: F401 - once, before the forks

        tempfile.gettempdir()  # finds a place at its first call, by writing a file there
        os.environ["TQDM_DISABLE"] = "1"
        torch.manual_seed(0)
        rng = np.random.default_rng(0)
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        for i in range(10):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(data / f"{i}.png")
        small: dict[str, Any] = dict(
            img_resolution=32, img_channels=3, model_type="SongUNet", model_channels=8, channel_mult=[1], num_blocks=1,
            attn_resolutions=[],
        )  # fmt: skip
        net = self.folder / "net.safetensors"
        save_backbone(net, "EDMPrecond", small, PRECONDITIONERS["EDMPrecond"](**small).state_dict())
        network = [f"network.{k}={v}".replace(" ", "") for k, v in small.items()]
        once = ["steps=1", "batch=2", "threads=1"]
        use, of = [f"backbone={net}"], [f"data={data}"]
        self.base: dict[str, list[str]] = {
            "inpaint_ffhq": [*of, *use, *once, "n=1", "rows=1", "solver=euler"],
            "train_guidance": [*of, *use, *once, "iterations=1", "encoder_iterations=1"],
            "train_backbone": [*of, *network, "kimg=0.002", "batch=2", "threads=1"],
            "train_baseline": [*of, *use, "iterations=1", "palette.batch=2", "threads=1"],
            "fit_mixture": [*of, "rank=2", "iterations=1", "refresh=1", "components=1", "batch=10"],
            "benchmark": [
                *of, *use, "steps=[1]", "n=1", "masks=[box]", "figures=false", "methods=[paste]", "reference=paste",
            ],
        }  # fmt: skip
        self.names = {name: keys(configuration(name)) for name in self.base}

    def make(self, rng: random.Random) -> list[str]:
        self.listen()
        name = rng.choice(list(self.base))
        out = self.out / ("run.safetensors" if name == "fit_mixture" else "run")
        words = [] if rng.random() < 0.15 else hostile([k for k in self.names[name] if k != "out"], rng)
        return [name, *self.base[name], f"out={out}", *words]

    def attempt(self, made: list[str]) -> None:
        script = EXAMPLES / f"{made[0]}.py"
        sys.argv = [str(script), *made[1:]]
        code: Any = 0
        GlobalHydra.instance().clear()
        try:
            with redirect_stdout(io.StringIO()):
                runpy.run_path(str(script), run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        if code == 2:
            left = [str(p.relative_to(self.out)) for p in self.out.rglob("*") if p.is_file()]
            assert not left, f"{made} was refused and left {left[:5]}"
        self.judge(code, made)
