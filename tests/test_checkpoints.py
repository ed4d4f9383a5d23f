"""Folders of checkpoints: what is kept, what is refused, and that no kill and no damage loses a whole one."""

from __future__ import annotations

import builtins
import json
import math
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid_control import __version__, checkpoint, checkpoints
from aid_control.checkpoint import load_state, read_metadata, save_state
from aid_control.checkpoints import Checkpoints, read_checkpoint
from aid_control.errors import InputError

CONFIG = {"lr": 0.1, "net": {"width": 8, "blocks": [1, 2]}, "out": Path("a"), "minutes": None}


def state(iteration: int) -> dict:
    return {"n": iteration, "x": torch.full((3,), float(iteration))}


def assert_state(found, iteration: int) -> None:
    assert found["n"] == iteration and torch.equal(found["x"], torch.full((3,), float(iteration)))


def numbers(folder: Path) -> list[int]:
    """Of the checkpoints, by a look at the folder."""
    return sorted(int(p.name[:-12]) for p in folder.glob("*.safetensors") if p.name[0] != ".")


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_saved_and_found_again(tmp_path: Path):
    folder = tmp_path / "run" / "checkpoints"
    first = Checkpoints(folder, CONFIG)
    assert first.latest() is None and first.source is None and first.best() is None
    assert not folder.parent.exists()  # nothing is made before there is something to save
    assert first.save(state(1230), 1230) == folder / "00001230.safetensors"
    second = Checkpoints(folder, CONFIG)
    assert_state(second.latest(), 1230)
    assert second.source == folder / "00001230.safetensors"


def test_a_file_tells_its_run(tmp_path: Path):
    path = Checkpoints(tmp_path, CONFIG).save(state(7), 7, 0.5)
    content = load_state(path)
    assert (content["iteration"], content["score"]) == (7, 0.5)
    flat = {"lr": 0.1, "net.width": 8, "net.blocks": [1, 2], "out": "a", "minutes": None}
    assert json.loads(content["config"]) == flat
    assert content["versions"] == {"aid_control": __version__, "torch": str(torch.__version__)}
    assert_state(read_checkpoint(path), 7)
    save_state(tmp_path / "single", state(3))
    assert_state(read_checkpoint(tmp_path / "single"), 3)


def expected(scores: list[float | None], keep: int) -> list[int]:
    """What must be left of checkpoints 0, 1, 2, ..., by the definition, followed step by step."""
    left: list[int] = []
    for new in range(len(scores)):
        left.append(new)
        finite = [(scores[i], -i) for i in left if scores[i] is not None and math.isfinite(scores[i])]
        best = {-min(finite)[1]} if finite else set()
        left = [i for i in left if i in left[-keep:] or i in best]
    return left


SCORES = st.one_of(st.sampled_from([None, math.nan, math.inf, -math.inf]), st.floats(), st.integers(-3, 3).map(float))


@settings(max_examples=40, deadline=None)
@given(scores=st.lists(SCORES, min_size=1, max_size=7), keep=st.integers(1, 3))
def test_the_last_and_the_best_are_kept(tmp_path_factory, scores, keep):
    folder = tmp_path_factory.mktemp("kept")
    for i, score in enumerate(scores):
        Checkpoints(folder, {}, keep).save(state(i), i, score)
    assert numbers(folder) == expected(scores, keep)
    assert_state(Checkpoints(folder, {}).latest(), len(scores) - 1)
    # over all scores there ever were: the best is never removed
    finite = [s for s in scores if s is not None and math.isfinite(s)]
    best = Checkpoints(folder, {}).best()
    assert (best is None) == (not finite)
    if best is not None:
        assert load_state(best)["score"] == min(finite)


@pytest.mark.parametrize("score", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_finite_number_is_never_the_best(score, tmp_path: Path):
    folder = Checkpoints(tmp_path, {}, keep=1)
    folder.save(state(0), 0, score)
    assert folder.best() is None
    folder.save(state(1), 1, 5.0)
    for i in (2, 3):
        folder.save(state(i), i, score)
    assert numbers(tmp_path) == [1, 3] and folder.best() == tmp_path / "00000001.safetensors"


def test_scores_are_read_without_tensors(tmp_path: Path, monkeypatch):
    folder = Checkpoints(tmp_path, {}, keep=2)
    folder.save(state(1), 1, 0.1)
    monkeypatch.setattr(checkpoints, "load_state", lambda path: pytest.fail("read a whole file"))
    monkeypatch.setattr(checkpoint, "load", lambda data: pytest.fail("read tensors"))
    for i in range(2, 6):
        folder.save(state(i), i, 0.2)
    assert numbers(tmp_path) == [1, 4, 5] and folder.best() == tmp_path / "00000001.safetensors"


def test_order_is_that_of_the_numbers(tmp_path: Path):
    """Clocks may jump, and 9 digits come after 8."""
    folder = Checkpoints(tmp_path, {}, keep=3)
    for iteration in (99_999_998, 99_999_999, 100_000_000):
        folder.save(state(iteration), iteration)
    for age, path in enumerate(reversed(folder.files())):
        os.utime(path, (10**9 + age, 10**9 + age))  # the newest looks the oldest
    assert_state(folder.latest(), 100_000_000)
    folder.save(state(100_000_001), 100_000_001)
    assert numbers(tmp_path) == [99_999_999, 100_000_000, 100_000_001]


FOREIGN = [
    "notes.txt", "0000001.safetensors", "best.safetensors", "00000001.safetensors.bak", "x00000001.safetensors",
    "00000001.safetensors.damaged", ".00000001.safetensors.x.tmp", ".guidance.safetensors.1.tmp",
    "00000001.safetensorss",
]  # fmt: skip


def test_other_files_are_left_alone(tmp_path: Path):
    for name in FOREIGN:
        (tmp_path / name).write_text("mine")
    (tmp_path / "00000000.safetensors").mkdir()
    folder = Checkpoints(tmp_path, {}, keep=1)
    for i in range(1, 4):
        folder.save(state(i), i)
    assert_state(Checkpoints(tmp_path, {}).latest(), 3)
    assert sorted(os.listdir(tmp_path)) == sorted([*FOREIGN, "00000000.safetensors", "00000003.safetensors"])


def finished_process() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_leftovers_of_dead_writers_are_removed(tmp_path: Path):
    dead = tmp_path / f".00000005.safetensors.{finished_process()}.tmp"
    alive = tmp_path / f".00000005.safetensors.{os.getpid()}.tmp"
    nobody = tmp_path / f".00000005.safetensors.{10**30}.tmp"
    for path in (dead, alive, nobody):
        path.write_bytes(b"half")
    Checkpoints(tmp_path, {})
    assert set(os.listdir(tmp_path)) == {alive.name, nobody.name}


DAMAGES = {
    "a bit": damage,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "empty": lambda path: path.write_bytes(b""),
    "no checkpoint": lambda path: save_state(path, state(0)),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newest_is_passed_over_and_named(how, tmp_path: Path, capsys):
    folder = Checkpoints(tmp_path, CONFIG)
    for i in (10, 20, 30):
        folder.save(state(i), i, float(i))
    DAMAGES[how](tmp_path / "00000030.safetensors")
    again = Checkpoints(tmp_path, CONFIG)
    assert_state(again.latest(), 20)
    assert again.source == tmp_path / "00000020.safetensors"
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith("warning: ") and str(tmp_path / "00000030.safetensors") in told[0]
    # reading changes nothing: the next reader sees, and says, the same
    assert_state(Checkpoints(tmp_path, CONFIG).latest(), 20)
    assert "00000030" in capsys.readouterr().err


def test_a_damaged_one_is_overwritten(tmp_path: Path, capsys):
    Checkpoints(tmp_path, {}).save(state(10), 10)
    damage(Checkpoints(tmp_path, {}).save(state(20), 20))
    again = Checkpoints(tmp_path, {})
    assert_state(again.latest(), 10)
    again.save(state(20), 20)
    capsys.readouterr()
    assert_state(Checkpoints(tmp_path, {}).latest(), 20)
    assert sorted(os.listdir(tmp_path)) == ["00000010.safetensors", "00000020.safetensors"]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_damaged_ones_ahead_are_set_aside(keep, tmp_path: Path, capsys):
    """They would count as the newest for ever, and push the whole ones out."""
    folder = Checkpoints(tmp_path, {}, keep=3)
    for i in (10, 33, 35):
        folder.save(state(i), i)
    for i in (33, 35):
        damage(tmp_path / f"{i:08d}.safetensors")
    again = Checkpoints(tmp_path, {}, keep)
    assert_state(again.latest(), 10)
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert numbers(tmp_path) == [10, 33, 35]  # nothing is moved before there is a whole one after them
    for i in (20, 30):
        again.save(state(i), i)
    assert numbers(tmp_path) == [10, 20, 30][-keep:]
    assert {p.name for p in tmp_path.glob("*.damaged")} == {f"000000{i}.safetensors.damaged" for i in (33, 35)}
    assert_state(Checkpoints(tmp_path, {}).latest(), 30)
    assert not capsys.readouterr().err


def test_none_whole_is_an_error(tmp_path: Path):
    folder = Checkpoints(tmp_path / "c", {})
    for i in (1, 2):
        damage(folder.save(state(i), i))
    save_state(tmp_path / "old", state(0))
    with pytest.raises(InputError, match="none of its 2 checkpoints is whole; expected"):
        Checkpoints(tmp_path / "c", {}, legacy=tmp_path / "old").latest()
    assert numbers(tmp_path / "c") == [1, 2]


def test_a_newer_format_is_not_passed_over(tmp_path: Path, monkeypatch):
    """It is whole: going back from it would lose work without need."""
    folder = Checkpoints(tmp_path, {})
    folder.save(state(1), 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
        folder.save(state(2), 2)
    with pytest.raises(InputError, match="newer aid_control"):
        folder.latest()


@pytest.mark.parametrize(
    ("now", "words"),
    [
        ({**CONFIG, "lr": 0.2}, ["lr=0.1 then, lr=0.2 now", "expected the same options, or another out="]),
        ({**CONFIG, "net": {"width": 8, "blocks": [1, 3]}}, ["net.blocks=[1, 2] then, net.blocks=[1, 3] now"]),
        ({k: v for k, v in CONFIG.items() if k != "lr"}, ["lr=0.1 then, lr=null now"]),
        ({**CONFIG, "extra": "x"}, ['extra=null then, extra="x" now']),
        ({**CONFIG, "lr": "0.1"}, ['lr=0.1 then, lr="0.1" now']),
        ({**CONFIG, "lr": math.nan, "net": 1}, ["lr=0.1 then, lr=NaN now", "net.width=8 then, net.width=null now"]),
    ],
)
def test_other_options_are_refused_and_named(now, words, tmp_path: Path):
    Checkpoints(tmp_path, CONFIG).save(state(1), 1)
    with pytest.raises(InputError) as error:
        Checkpoints(tmp_path, now, free=["minutes", "out"]).latest()
    assert all(word in str(error.value) for word in [*words, str(tmp_path / "00000001.safetensors")])
    assert "minutes" not in str(error.value)


@pytest.mark.parametrize(
    "now",
    [
        CONFIG,
        dict(reversed(CONFIG.items())),
        {**CONFIG, "minutes": 3},
        {**CONFIG, "added": None},  # an option that a later version has, left alone
        {**CONFIG, "net": {"width": 8.0, "blocks": (1, 2)}},
        {**CONFIG, "free": {"a": {"b": 1}, "c/d": [{"__e": 1}], "int:1": {}}},
    ],
)
def test_the_same_options_are_taken(now, tmp_path: Path):
    Checkpoints(tmp_path, CONFIG).save(state(1), 1)
    assert_state(Checkpoints(tmp_path, now, free=["minutes", "out", "free"]).latest(), 1)
    Checkpoints(tmp_path, now).save(state(2), 2)
    assert_state(Checkpoints(tmp_path, now).latest(), 2)


def test_not_a_number_is_itself(tmp_path: Path):
    Checkpoints(tmp_path, {"a": math.nan}).save(state(1), 1)
    assert_state(Checkpoints(tmp_path, {"a": math.nan}).latest(), 1)


def test_a_single_file_of_earlier_versions(tmp_path: Path):
    old = tmp_path / "checkpoint.safetensors"
    folder = Checkpoints(tmp_path / "checkpoints", {}, legacy=old)
    assert folder.latest() is None
    save_state(old, state(5))
    assert_state(folder.latest(), 5)
    assert folder.source == old
    folder.save(state(6), 6)
    again = Checkpoints(tmp_path / "checkpoints", {}, legacy=old)
    assert_state(again.latest(), 6)
    assert_state(load_state(old), 5)  # left as it was


def test_bad_arguments(tmp_path: Path):
    for keep in (0, -1, 1.5):
        with pytest.raises(InputError, match="keep is"):
            Checkpoints(tmp_path, {}, keep)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        Checkpoints(tmp_path / "file", {})
    with pytest.raises(ValueError, match="iteration is -1"):
        Checkpoints(tmp_path, {}).save({}, -1)


class Killed(BaseException):
    """Stands for SIGKILL: nothing that follows it is done."""


class Killer:
    """Kills before or after the n-th system call that changes the disk; afterwards every such call fails.

    A writer that tidies up in ``finally`` would do more than a killed one can; so it is dead for good.
    """

    def __init__(self, monkeypatch, at: int, after: bool) -> None:
        self.at, self.after, self.calls, self.dead = at, after, 0, False
        monkeypatch.setattr(builtins, "open", self.guard(builtins.open))
        for name in ("replace", "unlink", "fsync", "mkdir"):
            monkeypatch.setattr(os, name, self.guard(getattr(os, name)))

    def guard(self, call):
        def guarded(*args, **kwargs):
            if self.dead:
                raise Killed
            self.calls += 1
            self.dead = self.calls == self.at
            if self.dead and not self.after:
                raise Killed
            try:
                return call(*args, **kwargs)
            finally:
                if self.dead:
                    raise Killed

        return guarded


def test_a_kill_between_any_two_calls_loses_nothing(tmp_path: Path, monkeypatch, capsys):
    """The run before has a damaged newest file, an old best, and one too many: every branch of `save` is run."""
    dead, steps = finished_process(), {False: 0, True: 0}
    for after in (False, True):
        at, killed = 1, True
        while killed:
            folder = tmp_path / f"{at}-{after}"
            run = Checkpoints(folder, {}, keep=2)
            for i, score in enumerate([0.5, 0.1, 0.7, 0.6, 0.8]):
                run.save(state(10 * i), 10 * i, score)
            damage(folder / "00000040.safetensors")
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: dead)
                run = Checkpoints(folder, {}, keep=2)
                assert_state(run.latest(), 30)
                killer = Killer(patch, at, after)
                try:
                    run.save(state(35), 35, 0.9)
                    killed = False
                except Killed:
                    assert killer.dead
            steps[after] += killed
            again = Checkpoints(folder, {}, keep=2)
            found = again.latest()
            assert found["n"] in (30, 35)
            assert_state(found, found["n"])
            assert load_state(again.best())["score"] == 0.1
            for i in (35, 40):  # as the run that goes on would
                again.save(state(i), i, 0.9)
            left = {"00000010.safetensors", "00000035.safetensors", "00000040.safetensors"}
            assert left <= set(os.listdir(folder)) <= left | {"00000040.safetensors.damaged"}
            capsys.readouterr()
            assert_state(Checkpoints(folder, {}).latest(), 40)
            assert not capsys.readouterr().err
            at += 1
    # make the folder and the file, flush it, rename it; flush the folder; set aside; read scores; remove
    assert steps[False] == steps[True] >= 8


def work(folder: str) -> None:
    """Go on from the newest for ever, with scores of which every seventh is a new best."""
    run = Checkpoints(folder, {}, keep=2)
    before = run.latest()
    iteration = 0 if before is None else before["n"]
    while True:
        iteration += 1
        run.save(state(iteration), iteration, 1 / iteration if iteration % 7 == 0 else 2.0)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_writers_killed_at_random_moments(tmp_path: Path):
    """SIGKILL of a real process: the newest is always whole, never older than before, and the best is there."""
    context, chance = multiprocessing.get_context("fork"), random.Random(0)
    reached, kills = 0, 25
    for _ in range(kills):
        writer = context.Process(target=work, args=(str(tmp_path),))
        writer.start()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and max(numbers(tmp_path), default=0) <= reached:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        writer.kill()
        writer.join()
        run = Checkpoints(tmp_path, {}, keep=2)
        found = run.latest()
        assert found["n"] > reached, "no progress within a minute"
        assert_state(found, found["n"])
        reached = found["n"]
        assert not list(tmp_path.glob(".*.tmp"))
        if reached >= 7:
            assert load_state(run.best())["iteration"] >= reached // 7 * 7 - 7
    assert reached >= kills
    run.save(state(reached + 1), reached + 1)  # removes what killed writers did not come to remove
    assert len(numbers(tmp_path)) <= 3


def test_the_header_holds_the_score(tmp_path: Path):
    path = Checkpoints(tmp_path, {}).save(state(1), 1, 2.5)
    assert json.loads(read_metadata(path)["state"])["score"] == 2.5
