"""Parts of a batch and processes: the same training, up to the order of summation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from aid_control.batch import Batch
from aid_control.checkpoint import read_metadata
from aid_control.checkpoints import read_checkpoint
from aid_control.descent import Descent
from aid_control.errors import Diverged, InputError
from aid_control.features import LinearMean, LinearValue
from aid_control.images.backbones.precond import EDMPrecond
from aid_control.images.backbones.registry import asset
from aid_control.images.backbones.training import BackboneTrainer
from aid_control.lq.problem import LQProblem
from aid_control.noise import generator
from aid_control.parallel import Place, Rows, Team, team
from aid_control.trainer import ActorCritic

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def of(index: int, count: int, accumulate: int = 1) -> Team:
    return Team(Place(index, count, "cpu", lambda: None), accumulate)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 40))
def test_parts_cut_a_batch(count, accumulate, more):
    batch = count * accumulate + more
    parts = [rows for index in range(count) for rows in of(index, count, accumulate).parts(batch)]
    covered = [i for rows in parts for i in range(rows.start, rows.stop)]
    assert covered == list(range(batch)) and sum(rows.weight for rows in parts) == pytest.approx(1)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 <= min(map(len, parts))


def test_too_few_rows_are_refused():
    with pytest.raises(InputError, match="batch is 5 for 2 processes of 3 parts; expected at least 6"):
        of(0, 2, 3).parts(5)


def test_a_part_takes_its_rows_of_the_noise():
    whole = Rows(0, 7, 7).normal((3, 2), generator(1, 2), torch.float64)
    parts = [Rows(a, b, 7).normal((3, 2), generator(1, 2), torch.float64) for a, b in ((0, 3), (3, 5), (5, 7))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(whole, torch.randn(7, 3, 2, generator=generator(1, 2), dtype=torch.float64))


def test_a_program_that_does_not_share_refuses_to_be_one_of_several(tmp_path):
    options = ("method=palette", f"data={asset('faces')}", "out=o")
    command = [sys.executable, str(ROOT / "examples/train_baseline.py"), *options]
    done = subprocess.run(command, env={**ENV, "WORLD_SIZE": "3"}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "launched as 3 processes" in done.stderr and not (tmp_path / "o").exists()


def test_settings_of_a_team(monkeypatch):
    with pytest.raises(InputError, match="precision is fp16; expected one of no, bf16"):
        team("cpu", precision="fp16")
    with pytest.raises(InputError, match="accumulate is 0"):
        team("cpu", accumulate=0)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    told = team("cpu")
    assert (told.precision, told.accumulate) == ("bf16", 4)
    assert (team("cpu", 2, "no").precision, team("cpu", 2, "no").accumulate) == ("no", 2)
    with told.autocast():
        assert nn.Linear(3, 3)(torch.ones(2, 3)).dtype == torch.bfloat16


def backbone_trainer(accumulate: int = 1, dropout: float = 0.0, precision: str = "no") -> BackboneTrainer:
    torch.manual_seed(0)
    net = EDMPrecond(
        img_resolution=8, img_channels=1, model_type="SongUNet", model_channels=8, channel_mult=[1, 2], num_blocks=1,
        attn_resolutions=[], dropout=dropout,
    )  # fmt: skip
    images = torch.randint(0, 256, (20, 1, 8, 8), generator=generator(5), dtype=torch.uint8)
    return BackboneTrainer(net, images, batch=6, team=Team(None, accumulate, precision))


def distance(a: dict, b: dict) -> float:
    """Largest difference over the largest weight."""
    return max(float((a[k] - b[k]).abs().max()) for k in a) / max(1e-30, *(float(v.abs().max()) for v in a.values()))


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_accumulated_backbone_training_is_that_of_the_whole_batch(accumulate):
    whole, parts = backbone_trainer(), backbone_trainer(accumulate)
    losses = [(whole.step(), parts.step()) for _ in range(4)]
    assert all(a == pytest.approx(b, rel=1e-5) for a, b in losses)
    # Adam divides gradients by their size: a weight whose gradient is rounding alone may move by lr either way
    assert distance(whole.net.state_dict(), parts.net.state_dict()) < 2e-3
    assert distance(whole.optimizer.state_dict()["state"][0], parts.optimizer.state_dict()["state"][0]) < 1e-4


def test_dropout_is_keyed_and_resumes():
    whole = backbone_trainer(dropout=0.5)
    torch.manual_seed(1)
    losses = [whole.step() for _ in range(3)]
    cut = backbone_trainer(dropout=0.5)
    torch.manual_seed(2)
    cut.step()
    again = backbone_trainer(dropout=0.5)
    again.restore(cut.state())
    torch.manual_seed(3)
    assert [again.step() for _ in range(2)] == losses[1:]
    assert losses != [(t := backbone_trainer()).step() for _ in range(3)], t  # and it is there at all


def test_bfloat16_trains_near_float32():
    exact, half = backbone_trainer(), backbone_trainer(precision="bf16")
    losses = [(exact.step(), half.step()) for _ in range(3)]
    print(losses)
    assert all(a == pytest.approx(b, rel=0.05) for a, b in losses)
    assert losses[-1][0] != losses[-1][1]  # the first is that of a network whose last layer is zero
    assert all(v.dtype == torch.float32 for v in half.net.state_dict().values())


def lq_trainer(noise: bool, estimator: str, **more) -> ActorCritic:
    eye = torch.eye(2, dtype=torch.float64)
    problem = LQProblem(-0.5 * eye, eye, Q=eye, R=eye, G=eye, **({"s": 0.4 * eye} if noise else {}))
    return ActorCritic(
        problem, LinearMean(2, 2), LinearValue(2), estimator=estimator, temperature=0.3, seed=4, **more
    )  # fmt: skip


CASES = [
    (False, "score", "ctd"), (False, "stein", "martingale"), (False, "adjoint", "ctd"), (False, "backprop", "ctd"),
    (True, "score", "ctd"), (True, "stein", "mstde"),
]  # fmt: skip


@pytest.mark.parametrize(("noise", "estimator", "evaluation"), CASES)
def test_actor_critic_in_parts_is_that_of_the_whole_batch(noise, estimator, evaluation):
    grid = torch.linspace(0, 1, 6, dtype=torch.float64)
    whole, parts = (lq_trainer(noise, estimator, evaluation=evaluation, updates=2) for _ in range(2))
    cuts = of(0, 1, 3).parts(8)
    for i in range(3):
        x = torch.randn(8, 2, generator=generator(i), dtype=torch.float64)
        a = whole.iterate(Batch(x, grid, None, torch.zeros_like(x)))
        b = parts.iterate([Batch(r.take(x), grid, None, r.take(torch.zeros_like(x)), r) for r in cuts])
        assert {k: a[k] for k in b} == pytest.approx(b, rel=1e-9)
    for name in ("actor", "critic"):
        assert distance(whole.state()[name], parts.state()[name]) < 1e-9, name


@pytest.mark.parametrize("pair", ["antithetic ctd", "score clstd", "score gtd0", "score gtd2"])
def test_what_looks_at_a_whole_batch_is_refused_in_parts(pair):
    estimator, evaluation = pair.split()
    word = estimator if evaluation == "ctd" else evaluation
    x = torch.zeros(4, 2, dtype=torch.float64)
    grid = torch.linspace(0, 1, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"{word} looks at a whole batch"):
        lq_trainer(False, estimator, evaluation=evaluation).iterate([Batch(x, grid, None, x, Rows(0, 4, 8))])


def test_broken_steps_are_skipped_counted_and_end_the_training():
    weight = nn.Parameter(torch.ones(3))
    optimizer, descent = torch.optim.Adam([weight], lr=0.1), Descent(max_skipped=3)

    def step(factor: float) -> None:
        descent.step(optimizer, [weight], [(1.0, [(factor * weight).sum()])])

    for factor in (float("nan"), float("inf")):
        step(factor)
    assert torch.equal(weight.detach(), torch.ones(3)) and descent.state() == {"skipped": 2, "in_a_row": 2}
    step(1.0)
    assert weight[0] < 1 and descent.state() == {"skipped": 2, "in_a_row": 0}
    restored = Descent(max_skipped=3)
    restored.restore({"skipped": 4, "in_a_row": 2})
    with pytest.raises(Diverged, match="3 steps in a row"):
        restored.step(optimizer, [weight], [(1.0, [(float("nan") * weight).sum()])])
    assert restored.skipped == 5 and bool(torch.isfinite(weight).all())


def launch(script: str, *options: str, cwd: Path, launcher: tuple[str, ...] = ()) -> None:
    command = [sys.executable, *launcher, str(ROOT / "examples" / script), *options]
    done = subprocess.run(command, env=ENV, cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
@pytest.mark.parametrize("estimator", ["backprop", "stein"])
def test_two_processes_train_the_guidance_of_one(estimator, launcher, tmp_path):
    pytest.importorskip("accelerate", reason="needs the package accelerate (extra 'train')")
    options = (
        f"data={asset('faces')}", "limit=16", "encoder_iterations=4", "encoder_batch=4", "iterations=3", "batch=4",
        "steps=3", f"estimator={estimator}",
    )  # fmt: skip
    launch("train_guidance.py", *options, "out=one", cwd=tmp_path)
    launch("train_guidance.py", *options, "out=parts", "accumulate=2", cwd=tmp_path)
    launch("train_guidance.py", *options, "out=two", cwd=tmp_path, launcher=launcher)
    one, parts, two = (
        read_checkpoint(tmp_path / name / "checkpoints/00000007.safetensors")["trainer"]
        for name in ("one", "parts", "two")
    )
    for other in (parts, two):
        assert other["iteration"] == 3
        for name in ("actor", "critic", "average"):
            assert distance(one[name], other[name]) < 1e-3, name


@pytest.mark.slow
def test_two_processes_train_the_backbone_of_one(tmp_path):
    pytest.importorskip("accelerate", reason="needs the package accelerate (extra 'train')")
    options = (
        f"data={asset('faces')}", "kimg=0.016", "batch=4", "every=100", "network.model_channels=8",
        "network.channel_mult=[1,2]", "network.attn_resolutions=[]",
    )  # fmt: skip
    launch("train_backbone.py", *options, "out=one", cwd=tmp_path)
    launch("train_backbone.py", *options, "out=two", cwd=tmp_path, launcher=TORCHRUN)
    one, two = (read_checkpoint(tmp_path / f"{name}/checkpoints/00000016.safetensors") for name in ("one", "two"))
    assert one["images_seen"] == two["images_seen"] == 16
    assert distance(one["net"], two["net"]) < 2e-3 and distance(one["ema"], two["ema"]) < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["backprop", "stein", "adjoint"])
def test_guidance_trains_in_bfloat16(estimator, tmp_path):
    """Weights stay float32, and the cost of the rollouts near that of float32."""
    options = (
        f"data={asset('faces')}", "limit=16", "encoder_iterations=3", "encoder_batch=4", "iterations=3", "batch=4",
        "steps=3", f"estimator={estimator}",
    )  # fmt: skip
    costs = {}
    for precision in ("no", "bf16"):
        launch("train_guidance.py", *options, f"precision={precision}", f"out={precision}", cwd=tmp_path)
        path = tmp_path / precision / "checkpoints/00000006.safetensors"
        weights = read_checkpoint(path)["trainer"]["actor"]
        assert all(w.dtype == torch.float32 for w in weights.values() if w.is_floating_point())
        costs[precision] = json.loads(read_metadata(path)["state"])["score"]
    assert costs["no"] != costs["bf16"] and costs["bf16"] == pytest.approx(costs["no"], rel=0.05)
