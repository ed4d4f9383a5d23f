"""The programs as a person runs them: exit codes, one-sentence errors, kills and restarts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aid_control.checkpoints import read_checkpoint
from aid_control.images.backbones.registry import asset

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(script, *options, cwd):
    command = [sys.executable, str(ROOT / "examples" / script), *options]
    return subprocess.run(command, env=ENV, cwd=cwd, capture_output=True, text=True, timeout=300)


def pixels(path):
    with Image.open(path) as image:
        return np.array(image).reshape(64, 64, -1)


def test_inpaint_bundled_images(tmp_path):
    done = run("inpaint_ffhq.py", "steps=2", "n=2", "batch=1", "threads=1", "out=o", "mask=freeform", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "AID" in done.stdout and "hole PSNR" in done.stdout
    report = json.loads((tmp_path / "o/metrics.json").read_text())
    assert set(report["methods"]) == {"pretrained", "replacement", "projection", "aid"} and report["images"] == 2
    assert report["methods"]["aid"]["nfe"] == 2  # both steps are too steep for Heun
    with Image.open(tmp_path / "o/grid.png") as grid:
        assert grid.width > 500
    # known pixels of every PNG equal the input
    for folder in ("aid", "pretrained", "replacement"):
        for file in sorted((tmp_path / "o" / folder).iterdir()):
            result, original, mask = (
                pixels(tmp_path / "o" / name / file.name) for name in (folder, "original", "mask")
            )
            assert ((result == original) | (mask == 0)).all() and (result != original).any()


def test_one_image_and_one_mask(tmp_path):
    Image.open(asset("faces/astronaut.png")).save(tmp_path / "me.png")
    mask = Image.new("L", (64, 64), 255)
    mask.paste(0, (20, 20, 40, 40))
    mask.save(tmp_path / "hole.png")
    options = ("image=me.png", "mask=hole.png", "steps=1", "out=o", "threads=1", "solver=euler")
    done = run("inpaint_ffhq.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "o/metrics.json").read_text())
    assert report["hole_fraction"] == pytest.approx(400 / 4096)
    assert report["methods"]["aid"]["psnr_hole"]["ci95"] is None  # one image has no interval


def bad_inputs(tmp_path):
    Image.new("RGB", (32, 64)).save(tmp_path / "small.png")
    Image.new("L", (64, 64), 128).save(tmp_path / "grey.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "known.png")
    Image.new("L", (32, 32), 0).save(tmp_path / "other.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    whole = asset("aid-faces64-mini.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:5000])
    from aid_control.images.guidance import Guidance, save_guidance

    foreign = Guidance(64)
    foreign.backbone = "0123456789abcdef"
    save_guidance(tmp_path / "foreign.safetensors", foreign)
    return {
        "image=small.png": "small.png",
        "image=text.png": "text.png",
        "image=none.png": "none.png",
        "data=empty": "empty",
        "mask=grey.png": "grey.png",
        "mask=known.png": "known",
        "mask=other.png": "other.png",
        "mask=no-such-kind": "no-such-kind",
        "guidance=cut.safetensors": "cut.safetensors",
        "guidance=none.safetensors": "none.safetensors",
        "guidance=foreign.safetensors": "0123456789abcdef",
        "backbone=cut.safetensors": "cut.safetensors",
        "solver=rk45": "rk45",
        "steps=0": "steps",
        "n=0": "n is 0",
        "batch=0": "batch",
        "device=nowhere": "nowhere",
        "no_such_option=1": "no_such_option",
    }


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path):
    failures = []
    for option, word in bad_inputs(tmp_path).items():
        done = run(
            "inpaint_ffhq.py", option, "out=o", "n=1" if option != "n=0" else "seed=0", "threads=1", cwd=tmp_path
        )
        errors = done.stderr.strip().splitlines()
        if done.returncode != 2 or word not in done.stderr or "Traceback" in done.stderr or len(errors) != 1:
            failures.append((option, done.returncode, done.stderr[-300:]))
        if (tmp_path / "o").exists():
            failures.append((option, "left output behind"))
    assert not failures, failures


@pytest.mark.parametrize("script", ["train_guidance.py", "train_backbone.py", "train_baseline.py"])
def test_trainers_refuse_a_device_that_is_not_there(script, tmp_path):
    done = run(script, f"data={asset('faces')}", "device=nowhere", "out=o", cwd=tmp_path)
    assert done.returncode == 2 and "nowhere" in done.stderr and len(done.stderr.strip().splitlines()) == 1


TRAIN = (
    "limit=16", "encoder_iterations=6", "encoder_batch=2", "iterations=4", "batch=1", "steps=3", "updates=1", "every=1",
)  # fmt: skip


def test_killed_guidance_training_ends_with_the_same_weights(tmp_path):
    """SIGKILL in either phase, restart: bit-equal to the uninterrupted run."""
    data = f"data={asset('faces')}"
    done = run("train_guidance.py", data, "out=whole", *TRAIN, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    command = [sys.executable, str(ROOT / "examples/train_guidance.py"), data, "out=cut", *TRAIN]
    kills = 0
    for phase, iteration in (("encoder", 2), ("guidance", 1)):
        process = subprocess.Popen(command, env=ENV, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        number = iteration + (6 if phase == "guidance" else 0)
        folder, deadline = tmp_path / "cut/checkpoints", time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            if any(int(path.stem) >= number for path in folder.glob("0*.safetensors")):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 1, "the run ended before it could be killed"
    done = run("train_guidance.py", data, "out=cut", *TRAIN, cwd=tmp_path)
    assert done.returncode == 0 and "continuing" in done.stdout, done.stderr
    last = "checkpoints/00000010.safetensors"
    whole, cut = (read_checkpoint(tmp_path / name / last)["trainer"] for name in ("whole", "cut"))
    assert whole["iteration"] == cut["iteration"] == 4
    for part in ("actor", "critic", "average"):
        assert all(torch.equal(v, cut[part][k]) for k, v in whole[part].items()), part


def test_backbone_training_continues_a_torch_state(tmp_path, shared):
    """The published training state: same images seen, lower loss than from scratch, checkpoint goes on."""
    state = shared / "models/edm-faces64-mini.train.pt"
    options = (f"data={asset('faces')}", f"resume={state}", "kimg=122.2", "batch=4", "every=1000", "out=b")
    done = run("train_backbone.py", *options, cwd=tmp_path)
    assert done.returncode == 0 and "at 122192 images" in done.stdout, done.stderr
    facts = json.loads((tmp_path / "b/backbone.json").read_text())
    assert facts["images_seen"] == 122200
    again = run("train_backbone.py", *options, "kimg=122.204", cwd=tmp_path)
    assert again.returncode == 0 and "at 122200 images" in again.stdout, again.stderr


def test_backbone_training_resumes_a_network_of_another_size(tmp_path):
    """The state says what network it is of; the pictures are read for that one, and other pictures are refused."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    small = ("network.img_resolution=16", "network.model_channels=8", "network.channel_mult=[1,2]")
    short = ("batch=2", "every=1000")
    first = run("train_backbone.py", "data=a", *small, *short, "kimg=0.004", "out=first", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    more = ("resume=first/checkpoints/00000004.safetensors", *short, "out=second")
    for data, kimg in (("b", "0.006"), ("b", "0.008")):
        done = run("train_backbone.py", f"data={data}", *more, f"kimg={kimg}", cwd=tmp_path)
        assert done.returncode == 0 and "continuing from" in done.stdout, done.stderr
    other = run("train_backbone.py", "data=a", *more, "kimg=0.010", cwd=tmp_path)
    assert other.returncode == 2 and "of a run on other images" in other.stderr


def test_verify_recovery_reports_rows_and_a_figure(tmp_path):
    options = ("parts=[exact,aid,bias,evaluation,refusals]", "exact.dims=[1,2]", "exact.temperatures=[0.1]")
    small = ("bias.paths=20000", "threads=1", "out=o")
    done = run("verify_recovery.py", *options, *small, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "o/report.json").read_text())
    assert len(report["rows"]) > 20 and all(row["ok"] for row in report["rows"])
    assert all(set(row) == {"name", "value", "bar", "ok"} for row in report["rows"])
    assert report["rows"][0]["name"] in done.stdout and "torch" in report["about"]
    with Image.open(tmp_path / "o/recovery.png") as figure:
        assert figure.width > 1000


def test_verify_recovery_fails_where_a_row_fails(tmp_path):
    # two paths cannot show a theta within 0.01
    done = run("verify_recovery.py", "parts=[evaluation]", "evaluation.paths=2", "threads=1", "out=o", cwd=tmp_path)
    assert done.returncode == 1 and "FAIL" in done.stdout
    refused = run("verify_recovery.py", "parts=[everything]", "out=o", cwd=tmp_path)
    assert refused.returncode == 2 and "parts" in refused.stderr and refused.stderr.count("\n") == 1


def test_inpaint_with_the_mixture_shows_the_exact_posterior(tmp_path):
    options = ("backbone=mixture", "steps=2", "threads=1", "out=o")
    done = run("inpaint_ffhq.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    methods = json.loads((tmp_path / "o/metrics.json").read_text())["methods"]
    assert {"pretrained", "projection", "posterior_mean", "posterior_sample"} <= set(methods)
    mean, sample = (methods[f"posterior_{kind}"]["psnr_hole"]["mean"] for kind in ("mean", "sample"))
    assert mean > sample and mean > methods["pretrained"]["psnr_hole"]["mean"]


TINY_STUDY = (
    "studies=[signals]", "memory=[]", "workers=1", "out=o", "signals.count=40", "signals.guess.iterations=60",
    "signals.trainers.stein.iterations=24", "signals.trainers.backprop.iterations=24",
    *(f"~signals.trainers.{name}" for name in ("score", "antithetic", "adjoint", "proxy")),
)  # fmt: skip


def test_verify_guidance_reports_fails_where_a_bar_fails_and_goes_on(tmp_path):
    done = run("verify_guidance.py", *TINY_STUDY, cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads((tmp_path / "o/report.json").read_text())["rows"]}
    assert done.returncode == 1, done.stderr  # a guess after 60 iterations captures no 97 %
    captured = rows["signals, backprop: captured improvement"]
    assert 0 < captured["value"] < 0.97 and not captured["ok"]
    assert rows["signals, stein: denoised images"]["value"] == 24 * 256 * 40
    for name in ("curves.png", "pictures-signals.png", "signals-stein.safetensors"):
        assert (tmp_path / "o" / name).stat().st_size > 1000
    # a restart takes what is done, and does again what changed
    files = {name: tmp_path / "o" / f"signals-{name}.json" for name in ("stein", "backprop", "guess")}
    before = {name: file.stat().st_mtime_ns for name, file in files.items()}
    run("verify_guidance.py", *TINY_STUDY, "signals.trainers.stein.iterations=12", cwd=tmp_path)
    after = {name: file.stat().st_mtime_ns for name, file in files.items()}
    assert {name for name in files if after[name] != before[name]} == {"stein"}


def test_compare_guidance_reports_paired_differences(tmp_path, shared):
    pytest.importorskip("lpips", reason="needs the package lpips (extra 'metrics')")
    options = (
        f"data={asset('faces')}", f"lpips={shared / 'weights' / 'alexnet_features.pth'}", "n=3", "workers=1", "out=o",
        "steps=[1]", "masks=[box,half]", "beta_steps=1", "mask=half",
    )  # fmt: skip
    done = run("compare_guidance.py", *options, cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads((tmp_path / "o/report.json").read_text())
    assert len(report["rows"]) == 2 * 3 + 2 * 3 * 3
    row = report["rows"][0]
    means = report["about"]["means"]
    want = means["aid on projection 1"]["psnr"] - means["projection 1"]["psnr"]
    assert row["value"] == pytest.approx(want, abs=1e-9) and row["bar"].startswith("above 0: 95 % interval")
    assert (tmp_path / "o/curve.png").stat().st_size > 1000 and (tmp_path / "o/pictures.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "script, options, words",
    [
        ("verify_guidance.py", ("studies=[faces7]",), "faces7"),
        ("verify_guidance.py", ("studies=[signals]", "+signals.trainers.sgd={}"), "sgd"),
        ("verify_guidance.py", ("studies=[mixture]", "backbone=edm-faces64-mini"), "expected a mixture"),
        ("compare_guidance.py", ("data=nowhere.zip", "lpips=no.pth"), "no.pth"),
        ("compare_guidance.py", ("data=nowhere.zip", "n=0"), "at least 1"),
    ],
)
def test_the_verifying_programs_refuse_bad_input(tmp_path, script, options, words):
    done = run(script, *options, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_verify_methods_reports_distances_to_the_known_posterior(tmp_path):
    options = (
        "out=o",
        "images=1",
        "samples=12",
        "methods=[paste,ddnm]",
        "runs.ddnm=[[20,{}]]",
        "workers=1",
        "batch=12",
    )
    done = run("verify_methods.py", *options, cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads((tmp_path / "o/report.json").read_text())["rows"]}
    distance = {name.split(",")[0]: row["value"] for name, row in rows.items() if "error of the mean" in name}
    assert distance["ddnm"] < 0.8 * distance["paste"]
    exact = [row for name, row in rows.items() if "largest difference" in name]
    assert len(exact) == 5 and all(row["ok"] for row in exact), done.stderr
    assert "| DDNM | 20 |" in (tmp_path / "o/posterior.md").read_text()
    with Image.open(tmp_path / "o/posterior.png") as picture:
        assert picture.width > 300
    assert run("verify_methods.py", "methods=[magic]", cwd=tmp_path).returncode == 2


def test_latent_pipeline_from_images_to_metrics(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(24):  # smooth coloured blobs
        small = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
        small.resize((128, 128), Image.Resampling.BICUBIC).save(tmp_path / "images" / f"{i:02d}.png")
    options = (
        "data=images", "resolution=128", "out=o", "test=3", "codec_iterations=60", "rank=8", "minutes=0.1", "batch=4",
        "steps=4",
    )  # fmt: skip
    done = run("inpaint_latent.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "o/metrics.json").read_text())
    assert report["latents"] == [4, 16, 16] and set(report["methods"]) == {"flow", "projection", "AID"}
    assert all(iterations > 0 for iterations in report["guidance"]["iterations"])
    with Image.open(tmp_path / "o/grid.png") as grid:
        assert grid.width > 300
    # what was fitted is loaded again
    files = [f"{name}=o/{name}.safetensors" for name in ("codec", "backbone")]
    again = run("inpaint_latent.py", *options, *files, "out=p", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    refused = run("inpaint_latent.py", "data=images", "resolution=100", cwd=tmp_path)
    assert refused.returncode == 2 and "multiple of 64" in refused.stderr
