"""The fault program: a small run of it, all of it (slow), and that it would see what it looks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aid_control.checkpoint import save_state
from aid_control.report import Report

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from faults import damage, launcher, programs  # noqa: E402 - of the programs' folder
from faults.kills import kills  # noqa: E402
from faults.table import Tally, table  # noqa: E402
from faults.world import World  # noqa: E402

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sessions are read the Linux way")


def verify(cwd, *options, timeout=300):
    command = [sys.executable, str(ROOT / "examples/verify_faults.py"), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout)


def rows(folder):
    return {row["name"]: row for row in json.loads((folder / "report.json").read_text())["rows"]}


def test_kills_of_data_set_writing(tmp_path):
    done = verify(tmp_path, "only=[kill]", "programs=[prepare]", "kills=2", "out=o")
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(tmp_path / "o")
    assert found["SIGKILL, dataset writing: survived"]["value"] == 2
    assert found["SIGKILL, dataset writing: results lost"]["value"] == 0
    assert "| SIGKILL, dataset writing | 2 | 2 | 0 | 0 |" in (tmp_path / "o/faults.md").read_text()
    assert not (tmp_path / "o/work").exists()  # where all is well


@pytest.mark.parametrize(
    "option, words",
    [("only=[kill,magic]", "magic"), ("programs=[magic]", "magic")],
)
def test_refusals(tmp_path, option, words):
    done = verify(tmp_path, option, "out=o")
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_all_faults(tmp_path):
    done = verify(tmp_path, "kills=6", "workers=2", "rounds=1", "out=o", timeout=7200)
    assert done.returncode == 0, done.stdout + done.stderr
    found = rows(tmp_path / "o")
    assert found["SIGKILL, guidance training: survived"]["value"] >= 6
    assert all(row["value"] == 0 for name, row in found.items() if name.endswith(("results lost", "results repeated")))


# A program as they should not be: the steps' results under their final names from the first byte on, all of them anew.
CARELESS = """
import sys, time
from pathlib import Path

out = Path(sys.argv[1])
(out / "shards").mkdir(parents=True, exist_ok=True)
for i in range(6):
    with open(out / "shards" / f"{i}.safetensors", "w") as file:
        file.write("half")
        file.flush()
        time.sleep(0.05)
        file.write(" and half")
(out / "results.csv").write_text("done")
(out / "tables.md").write_text(RESULT)
"""


class Careless(programs.Benchmark):
    name = "careless"

    def options(self, out):
        return [str(out)]


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.setattr(launcher, "PRELOAD", [])
    return World(tmp_path / "world", many=3)


def careless(world, tmp_path, result):
    (tmp_path / "careless.py").write_text(CARELESS.replace("RESULT", result))
    program = Careless(world)
    program.file = str(tmp_path / "careless.py")
    return kills(program, 3)


def test_a_careless_program_is_found_out(world, tmp_path):
    tally = careless(world, tmp_path, "'same'")
    assert tally.injected == 3 == tally.survived  # in the end the same results, but
    assert tally.lost > 0 and tally.repeated > 0
    report = Report()
    tally.rows(report)
    assert report.failed == 2


def test_other_results_are_found_out(world, tmp_path):
    # a forked run that differs from the one by the interpreter is already refused
    with pytest.raises(RuntimeError, match="other results than undisturbed"):
        careless(world, tmp_path, "str(time.time())")


def stamps(*iterations, inode=1):
    return {f"{i:08d}.safetensors": (inode, i) for i in iterations}


def test_what_counts_as_lost_and_as_repeated(world, tmp_path):
    training, out = programs.TrainGuidance(world), tmp_path / "run"
    for i in (2, 4):
        save_state(out / f"checkpoints/{i:08d}.safetensors", {"weights": torch.ones(3)})
    assert training.lost(stamps(2, 4), stamps(2, 4), out) == 0
    assert training.lost(stamps(2, 4, 6), stamps(2, 4), out) == 2  # the newest has gone
    (out / "checkpoints/00000004.safetensors").write_bytes(b"half")
    assert training.lost(stamps(2, 4), stamps(2, 4), out) == 2  # it is there, but not whole
    log = "continuing from o/checkpoints/00000004.safetensors: encoder iteration 4"
    assert training.repeated(stamps(2, 4), stamps(4, 6), log) == 0
    assert training.repeated(stamps(2, 4, 6), stamps(4, 6), log) == 2  # from 4, where 6 was there
    assert training.repeated(stamps(2, 4), stamps(2, 4, inode=7), "") == 1  # 2 was written again; 4 is the newest
    bench = programs.Benchmark(world)
    assert bench.repeated(stamps(1, 2), stamps(1, 2, 3), "") == 0
    assert bench.repeated(stamps(1, 2), stamps(1), "") == 1


def test_a_report_fails_with_its_tally():
    good, bad, never = Tally("good", 3, 3), Tally("bad", 3, 2, lost=1), Tally("never")
    skipped = Tally("skipped", skipped="not allowed here")
    report = Report()
    for tally in (good, bad, never, skipped):
        tally.rows(report)
    assert [row["name"] for row in report.rows if not row["ok"]] == [
        "bad: survived", "bad: results lost", "never: survived",
    ]  # fmt: skip
    text = table([good, bad, skipped])
    assert "| bad | 3 | 2 | 1 | 0 |" in text and "| **all** | **6** | **5** | **1** | **0** |" in text
    assert "skipped: not allowed here" in text


@pytest.mark.parametrize("name", damage.KINDS)
def test_damage_changes_the_file(name, world, tmp_path):
    save_state(tmp_path / "whole.safetensors", {"weights": torch.arange(4000.0)})
    whole = (tmp_path / "whole.safetensors").read_bytes()
    damaged = damage.KINDS[name](whole, world.rng(name))
    assert damaged != whole and len(damaged) <= len(whole)
    if name.startswith("a bit"):
        assert sum((a ^ b).bit_count() for a, b in zip(whole, damaged, strict=True)) == 1
