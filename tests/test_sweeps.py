"""Sweeps by Hydra's launchers, exit codes that come back from other processes, signals, disks that are full."""

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from aid_control import program
from aid_control.images.backbones.registry import asset

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

# A program with one job of every kind; what it does is recorded as a file.
PROGRAM = '''
import errno, os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from aid_control.errors import Diverged, InputError
from aid_control.program import program


def work(seconds):
    time.sleep(seconds)
    return os.getpid()


def main(cfg):
    Path(cfg.out).mkdir(parents=True)
    Path(cfg.out, str(os.getpid())).touch()
    if cfg.kind == "input":
        raise InputError("number is -1; expected\\n a number above 0")
    if cfg.kind == "check":
        return 1
    if cfg.kind == "diverged":
        raise Diverged("training gave up: 10 batches without finite gradients")
    if cfg.kind == "full":
        Path("/dev/full").write_bytes(b"x" * 10_000)
    if cfg.kind == "read-only":
        raise OSError(errno.EROFS, "anything", f"{cfg.out}/file")
    if cfg.kind == "crash":
        raise OSError(errno.EBADF, "a mistake of the program")
    if cfg.kind in ("pool", "sleep"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            future = pool.submit(work, 600 if cfg.kind == "sleep" else 0)
            Path(cfg.out, "started").touch()
            assert future.result() != os.getpid()
    if cfg.kind == "killed":
        os.kill(os.getpid(), 9)


if __name__ == "__main__":
    program("conf", main)
'''
CONFIG = """
out: one
kind: ok
hydra:
  run: {dir: .}
  sweep: {dir: outputs, subdir: .}
  output_subdir: null
  job: {chdir: false}
defaults:
  - _self_
  - override hydra/job_logging: disabled
  - override hydra/hydra_logging: disabled
"""
SENTENCES = {
    "input": "error: number is -1; expected a number above 0",
    "diverged": "error: training gave up: 10 batches without finite gradients",
    "full": "error: output o/full: no space left on device; expected room for the output",
    "read-only": "error: o/read-only/file: read-only file system; expected an output folder that can be written to",
}


@pytest.fixture
def start(tmp_path):
    (tmp_path / "many_kinds.py").write_text(PROGRAM)
    (tmp_path / "conf.yaml").write_text(CONFIG)

    def begin(*options):
        command = [sys.executable, "many_kinds.py", *options]
        return subprocess.Popen(
            command, env=ENV, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored, if these tests run behind an &
        )  # fmt: skip

    return begin


def finish(process):
    try:
        _, errors = process.communicate(timeout=600)  # on a busy machine submitit takes its time
    finally:
        process.kill()
    return process.returncode, errors.strip().splitlines()


def workers(tmp_path, kinds):
    """Process ids, one a job."""
    return [next(int(f.name) for f in (tmp_path / "o" / kind).iterdir() if f.name.isdigit()) for kind in kinds]


def test_a_sweep_runs_every_job_and_exits_with_the_largest_code(start, tmp_path):
    kinds = ["input", "ok", "check", "diverged", "full", "read-only", "pool"]
    code, errors = finish(start("-m", f"kind={','.join(kinds)}", "out=o/${kind}"))
    assert code == 2 and errors == list(SENTENCES.values())
    assert len(set(workers(tmp_path, kinds))) == 1
    # what Hydra writes is under outputs
    assert {p.name for p in tmp_path.iterdir()} == {"many_kinds.py", "conf.yaml", "o", "outputs"}
    assert [p.name for p in (tmp_path / "outputs").iterdir()] == ["multirun.yaml"]


def test_an_outcome_arrives_where_it_is_read():
    """What any launcher does with the value of a job: pickle it there, read it here."""
    program._arrived.clear()
    there = pickle.dumps(program._Outcome(2, "because"))
    assert program._arrived == []
    pickle.loads(there)
    assert [(outcome.code, outcome.reason) for outcome in program._arrived] == [(2, "because")]
    program._arrived.clear()


@pytest.mark.slow
def test_codes_come_back_from_other_processes(start, tmp_path):
    kinds = ["input", "ok", "check", "full", "pool"]
    parallel = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    code, errors = finish(start(*parallel, f"kind={','.join(kinds)}", "out=o/${kind}"))
    assert code == 2 and errors == [SENTENCES["input"], SENTENCES["full"]]
    assert len(workers(tmp_path, kinds)) == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_stop_ends_the_sweep_and_its_workers(start, tmp_path, number):
    process = start("-m", "kind=sleep,ok", "out=o/${kind}")
    while not (tmp_path / "o/sleep/started").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    code, errors = finish(process)
    assert code == 128 + number and errors[-1] == "interrupted" and not any("Traceback" in e for e in errors)
    assert not (tmp_path / "o/ok").exists()  # the job after it was not begun


def test_two_jobs_never_share_a_folder(start, tmp_path):
    """The default ``out`` for both: the second training would go on from the first one's checkpoint."""
    code, errors = finish(start("-m", "kind=ok,check"))
    assert code == 2 and len(errors) == 1 and "one for every job" in errors[0] and "${kind}" in errors[0]
    assert not (tmp_path / "one").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
@pytest.mark.parametrize(
    "kinds, want",
    [(["ok", "pool"], 0), (["check", "ok", "diverged"], 1), (["read-only", "ok", "input", "check"], 2)],
)
def test_exit_codes_by_launcher(start, tmp_path, launcher, kinds, want):
    code, errors = finish(start("-m", f"hydra/launcher={launcher}", f"kind={','.join(kinds)}", "out=o/${kind}"))
    assert code == want and errors == [SENTENCES[k] for k in kinds if k in SENTENCES]
    processes = workers(tmp_path, kinds)
    assert launcher != "submitit_local" or len(set(processes)) == len(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
def test_a_crash_shows_its_traceback_and_hides_no_reason(start, tmp_path, launcher):
    """A mistake of the program is no sentence; the other jobs run, and what they had to say is said."""
    kinds = ["crash", "input"]
    code, errors = finish(start("-m", f"hydra/launcher={launcher}", f"kind={','.join(kinds)}", "out=o/${kind}"))
    assert code == 1 and any("a mistake of the program" in e for e in errors) and SENTENCES["input"] in errors
    assert len(workers(tmp_path, kinds)) == 2


@pytest.mark.slow
def test_a_killed_worker_of_a_sweep_is_one_sentence(start):
    code, errors = finish(start("-m", "hydra/launcher=joblib", "kind=killed,ok", "out=o/${kind}"))
    assert code == 1 and "died" in errors[-1] and not any("Traceback" in e for e in errors), errors


FACES = f"data={asset('faces')}"
STUDY = (
    "studies=[signals]", "memory=[]", "workers=1", "signals.count=40", "signals.guess.iterations=20",
    "signals.trainers.stein.iterations=12", "signals.trainers.backprop.iterations=12",
    *(f"~signals.trainers.{name}" for name in ("score", "antithetic", "adjoint", "proxy")),
)  # fmt: skip
# Every example program at its smallest: options, and the file each job leaves in its folder.
PROGRAMS = {
    "benchmark": (("methods=[paste]", "masks=[box]", "steps=[2]", "n=2", "workers=2", "solver=euler", "figures=false"),
                  "results.csv"),
    "compare_guidance": ((FACES, "n=2", "workers=1", "steps=[1]", "masks=[box]", "beta_steps=1", "mask=half"),
                         "report.json"),
    "fit_mixture": ((FACES, "components=1", "rank=1", "iterations=1"), ""),
    "inpaint_ffhq": (("n=1", "steps=1", "solver=euler", "threads=1"), "metrics.json"),
    "inpaint_latent": (("data=images", "resolution=128", "test=1", "codec_iterations=2", "rank=2", "minutes=0.01",
                        "batch=2", "steps=2"), "metrics.json"),
    "run_experiment": (("name=regret", "seeds=2", "episodes=400", "every=20", "window=[40,400]", "learners=[published]",
                        "workers=1", "bars={}"), "results.json"),
    "train_backbone": ((FACES, "kimg=0.004", "batch=2"), "backbone.safetensors"),
    "train_baseline": ((FACES, "method=palette", "palette.batch=2", "iterations=1"), "palette.safetensors"),
    "train_guidance": ((FACES, "encoder_iterations=1", "encoder_batch=2", "iterations=1", "batch=1", "steps=2"),
                       "guidance.safetensors"),
    "verify_guidance": (STUDY, "report.json"),
    "verify_methods": (("images=1", "samples=4", "methods=[paste]", "runs.paste=[[1,{}]]", "workers=1", "batch=4"),
                       "report.json"),
    "verify_recovery": (("parts=[evaluation]", "evaluation.paths=2", "threads=1"), "report.json"),
}  # fmt: skip
BARS = {"compare_guidance", "run_experiment", "verify_guidance", "verify_methods", "verify_recovery"}  # so little fails


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "joblib", "submitit_local"])
@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_every_program_sweeps_with_every_launcher(tmp_path, name, launcher, request):
    options, file = PROGRAMS[name]
    if name == "compare_guidance":
        pytest.importorskip("lpips", reason="needs the package lpips (extra 'metrics')")
        options += (f"lpips={request.getfixturevalue('shared') / 'weights' / 'alexnet_features.pth'}",)
    if name == "inpaint_latent":
        (tmp_path / "images").mkdir()
        for i in range(10):
            Image.new("RGB", (128, 128), (20 * i, 90, 200 - 15 * i)).save(tmp_path / "images" / f"{i}.png")
    ending = ".safetensors" if name == "fit_mixture" else ""
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "-m", f"hydra/launcher={launcher}", *options]
    command += ["seed=0,1", "out=o/${seed}" + ending]
    done = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode in ((0, 1) if name in BARS else (0,)), done.stdout[-2000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    for seed in (0, 1):
        assert (tmp_path / f"o/{seed}{ending}" / file).stat().st_size > 20
    made = {p.name for p in tmp_path.iterdir()} - {"images"}
    assert made == {"o", "outputs"}, made
    assert not [p for p in (tmp_path / "outputs").iterdir() if p.name not in ("multirun.yaml", ".submitit")]


@pytest.mark.slow
def test_the_benchmark_of_a_sweep_notes_the_command(tmp_path):
    """Also where another process runs it, whose own command line means nothing."""
    options, _ = PROGRAMS["benchmark"]
    command = [sys.executable, str(ROOT / "examples/benchmark.py"), "-m", "hydra/launcher=joblib", *options, "seed=0,1"]
    done = subprocess.run(
        [*command, "out=o/${seed}"], env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "o/1/manifest.json").read_text())["command"][-2:] == ["seed=0,1", "out=o/${seed}"]
