"""The benchmark: one table whatever computed it, restarts, refusals."""

from __future__ import annotations

import csv
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
from omegaconf import OmegaConf
from PIL import Image

from aid_control.errors import InputError
from aid_control.images.backbones.conditional import ConditionalDenoiser, save_conditional
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.precond import EDMPrecond
from aid_control.images.backbones.registry import load_backbone, save_backbone, save_exact
from aid_control.images.benchmark import sets
from aid_control.images.benchmark.inputs import DRAW
from aid_control.images.benchmark.run import run
from aid_control.images.benchmark.settings import Settings
from aid_control.images.benchmark.summary import interval
from aid_control.images.data import ImageSource, to_float
from aid_control.images.diversity import hole_deviation
from aid_control.images.masks import make_mask
from aid_control.images.methods.dps import dps
from aid_control.images.methods.palette import load_palette, palette
from aid_control.images.methods.registry import METHODS, Entry
from aid_control.images.metrics import psnr, ssim
from aid_control.images.realism import fid, kid
from aid_control.parallel import place

ROOT = Path(__file__).resolve().parents[2]
SIDE = 16
STABLE = ("results.csv", "tables.md", "results.parquet")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small Gaussian backbone and six pictures of its size."""
    folder = tmp_path_factory.mktemp("world")
    i = torch.arange(SIDE, dtype=torch.float64)
    row = torch.exp(-0.5 * ((i[:, None] - i) / 3) ** 2)
    covariance = 0.25 * torch.kron(torch.eye(3, dtype=torch.float64), torch.kron(row, row))
    for name, floor in (("net", 1e-4), ("guide", 1e-2)):
        net = GaussianBackbone.from_covariance(torch.zeros(3, SIDE, SIDE), covariance, floor=floor)
        save_exact(folder / f"{name}.safetensors", net)
    rng = np.random.default_rng(0)
    (folder / "data").mkdir()
    for k in range(6):
        small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / "data" / f"{k}.png")
    return folder


def settings(world, out, **changes):
    conf = OmegaConf.to_container(OmegaConf.load(ROOT / "examples/conf/benchmark.yaml"))
    for name in ("hydra", "defaults"):
        del conf[name]
    own = dict(
        out=str(out), data=str(world / "data"), backbone=str(world / "net.safetensors"), n=3, steps=[3], chunk=2,
        methods=["paste", "ddnm", "dps"], reference="ddnm", masks=["box", "random"],
        figures=False,
    )  # fmt: skip
    return Settings.read({**conf, **own, **changes})


def benchmark(world, out, **changes):
    run(settings(world, out, **changes))
    return rows(out)


def rows(out):
    with open(out / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


def stable(out):
    return {name: (out / name).read_bytes() for name in STABLE if (out / name).exists()}


def stamps(out):
    return {file.name: file.stat().st_mtime_ns for file in (out / "shards").iterdir()}


def test_the_table_holds_what_the_method_gives(world, tmp_path):
    table = benchmark(world, tmp_path, seed=5, options={"dps": {"zeta": 0.7}}, figures=True)
    assert len(table) == 3 * 2 * 3
    assert [row["method"] for row in table] == ["paste"] * 6 + ["ddnm"] * 6 + ["dps"] * 6
    net = load_backbone(world / "net.safetensors")
    row = next(r for r in table if (r["method"], r["mask"], r["image"]) == ("dps", "random", "2"))
    x = to_float(torch.from_numpy(np.array(Image.open(world / "data/2.png"))).permute(2, 0, 1))[None]
    mask = make_mask("random", SIDE, 7)[None]
    out = dps(net, x * mask, mask, 3, seeds=[7], zeta=0.7)
    assert row["seed"] == "7" and (row["nfe_forward"], row["nfe_backward"]) == ("3", "3")
    for column, value in (
        ("psnr_hole", psnr(out, x, 1 - mask)), ("psnr_image", psnr(out, x)),
        ("ssim_hole", ssim(out, x, 1 - mask)), ("ssim_image", ssim(out, x)), ("known_error", torch.zeros(1)),
    ):  # fmt: skip
        assert float(row[column]) == pytest.approx(float(value), rel=1e-6, abs=1e-12), column
    assert row["lpips_hole"] == ""  # not measured
    # the summary is that of the table
    values = torch.tensor([float(r["psnr_hole"]) for r in table if (r["method"], r["mask"]) == ("dps", "random")])
    assert interval(values.double(), 2) in (tmp_path / "tables.md").read_text()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["seeds"] == [5, 6, 7] and manifest["backbone"] == net.fingerprint
    assert manifest["methods"]["dps"]["options"] == {"zeta": 0.7}
    assert manifest["images"] == {"0": "0", "1": "1", "2": "2"}
    for name in ("frontier-time", "frontier-nfe", "pictures"):
        with Image.open(tmp_path / f"{name}.png") as figure:
            assert figure.width > 200
    with open(tmp_path / "timing.csv") as file:
        times = list(csv.DictReader(file))
    assert len(times) == len(table) and all(float(t["seconds"]) > 0 and float(t["peak_mb"]) > 1 for t in times)


def test_bytes_do_not_depend_on_chunks_or_processes(world, tmp_path):
    benchmark(world, tmp_path / "one")
    benchmark(world, tmp_path / "chunks", chunk=3)
    benchmark(world, tmp_path / "two", workers=2)
    one = stable(tmp_path / "one")
    assert one["tables.md"] and one == stable(tmp_path / "two") == stable(tmp_path / "chunks")


def test_finished_shards_are_kept_and_changed_options_are_new(world, tmp_path):
    first = benchmark(world, tmp_path)
    before, written = stamps(tmp_path), stable(tmp_path)
    assert len(before) == 3 * 2 * 2
    benchmark(world, tmp_path)
    assert stamps(tmp_path) == before and stable(tmp_path) == written
    changed = benchmark(world, tmp_path, options={"dps": {"zeta": 2.0}})
    new = stamps(tmp_path)
    assert before.items() <= new.items()
    assert len(new) == len(before) + 4 and all(name.startswith("dps-") for name in set(new) - set(before))
    differ = [a["method"] for a, b in zip(first, changed, strict=True) if a != b]
    assert differ == ["dps"] * 6
    # more images: what is there is taken
    more = benchmark(world, tmp_path, n=4)
    assert len(set(stamps(tmp_path)) - set(new)) == 6 and len(more) == 24
    # an option that is written out but the default is the same work
    count = len(stamps(tmp_path))
    benchmark(world, tmp_path, options={"dps": {"zeta": 0.5}})
    assert len(stamps(tmp_path)) == count


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1}, {"steps": [4]}, {"solver": "euler"}, {"masks": ["half", "freeform"]}, {"backbone": "guide"},
        {"one_by_one": False}, {"guide": "guide"}, {"threads": 2},
    ],
    ids=lambda c: next(iter(c)),
)  # fmt: skip
def test_what_determines_a_result_names_its_file(world, tmp_path, changes):
    own = dict(methods=["paste"], n=1)
    benchmark(world, tmp_path, **own)
    before = set(stamps(tmp_path))
    changes = {k: str(world / f"{v}.safetensors") if k in ("backbone", "guide") else v for k, v in changes.items()}
    try:
        benchmark(world, tmp_path, **own, **changes)
    finally:
        torch.set_num_threads(1)
    assert len(set(stamps(tmp_path)) - before) == len(before)


def test_steps_of_single_methods_and_pairs_with_the_nearest(world, tmp_path):
    table = benchmark(world, tmp_path, method_steps={"dps": [2, 5], "ddnm": [3, 4]}, masks="box")
    steps = {m: sorted({int(r["steps"]) for r in table if r["method"] == m}) for m in ("paste", "ddnm", "dps")}
    assert steps == {"paste": [3], "ddnm": [3, 4], "dps": [2, 5]}
    text = (tmp_path / "tables.md").read_text().split("### Paired differences, method - DDNM, mask box")[1]
    pairs = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("| DPS") or "pasted" in line]
    assert [[cell.strip() for cell in row] for row in pairs] == [
        ["pretrained flow, pasted", "3", "3"], ["DPS", "2", "4"], ["DPS", "5", "4"],
    ]  # fmt: skip
    # the difference is that of the table, image by image
    numbers = {(r["method"], r["steps"], r["image"]): float(r["psnr_hole"]) for r in table}
    mean = np.mean([numbers["dps", "5", i] - numbers["ddnm", "4", i] for i in "012"])
    assert f"{mean:+.2f} [" in next(line for line in text.splitlines() if line.startswith("| DPS | 5"))


def test_every_method_runs_or_is_left_out_with_a_sentence(world, tmp_path, capsys):
    table = benchmark(world, tmp_path, methods=None, n=1, steps=2, masks="box")
    said = capsys.readouterr().out
    ran = list(dict.fromkeys(row["method"] for row in table))
    assert ran == [name for name in METHODS if name in ran]
    assert {"paste", "replacement", "repaint", "dps", "mcg", "ddnm", "optimal_control"} <= set(ran)
    for name in set(METHODS) - set(ran):
        assert METHODS[name].load is not None and said.count(f"{name} is left out: ") == 1
    assert "aid is left out" in said
    with pytest.raises(InputError, match="^aid: "):
        benchmark(world, tmp_path, methods=["paste", "aid"])
    assert "was not run" not in (tmp_path / "tables.md").read_text()
    benchmark(world, tmp_path, reference="aid", methods=["paste"])
    assert "the reference, AID, was not run" in (tmp_path / "tables.md").read_text()


def small_unet(folder, **more):
    """A file of a small U-Net without structure; what training starts at zero is not."""
    kwargs = dict(
        img_resolution=SIDE, img_channels=3, model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[],
        **more,
    )  # fmt: skip
    torch.manual_seed(0)
    net = EDMPrecond(**kwargs)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    save_backbone(folder / "unet.safetensors", "EDMPrecond", kwargs, net.state_dict())
    return str(folder / "unet.safetensors"), kwargs


def test_trained_networks_are_counted_hashed_and_belong_to_a_backbone(world, tmp_path, monkeypatch, capsys):
    file, kwargs = small_unet(tmp_path)
    for name in ("a", "b"):
        net = ConditionalDenoiser.from_backbone(load_backbone(file), kwargs)
        if name == "b":
            for p in net.parameters():
                torch.nn.init.normal_(p, std=0.1)
        save_conditional(tmp_path / f"{name}.safetensors", "palette", net)
    monkeypatch.setitem(METHODS, "palette", Entry("Palette", palette, load_palette, str(tmp_path / "a.safetensors")))
    own = dict(backbone=file, methods=["palette"], n=1, masks="box", solver="euler")
    table = benchmark(world, tmp_path / "o", **own)
    assert (table[0]["nfe_forward"], table[0]["nfe_backward"]) == ("3", "0")  # its own network, not the backbone
    before = stamps(tmp_path / "o")
    benchmark(world, tmp_path / "o", weights={"palette": str(tmp_path / "a.safetensors")}, **own)
    assert stamps(tmp_path / "o") == before  # the same weights by another name
    other = benchmark(world, tmp_path / "o", weights={"palette": str(tmp_path / "b.safetensors")}, **own)
    assert len(stamps(tmp_path / "o")) == 2 and other[0]["psnr_hole"] != table[0]["psnr_hole"]
    # of another backbone: left out, refused where it was asked for
    capsys.readouterr()
    benchmark(world, tmp_path / "p", methods=None, steps=1, n=1, masks="box", method_steps={"palette": [2]})
    assert "palette is left out: its module was trained for backbone" in capsys.readouterr().out
    with pytest.raises(InputError, match="^palette: its module was trained for backbone"):
        benchmark(world, tmp_path / "q", methods=["palette"])


def test_a_method_of_one_step_takes_one(world, tmp_path, monkeypatch):
    def once(backbone, y, mask, steps=1, *, seeds=None, class_labels=None, clock=None, callback=None):
        assert steps == 1
        return y

    monkeypatch.setitem(METHODS, "once", Entry("once", once))
    table = benchmark(world, tmp_path, methods=["once", "paste"], steps=[3, 5], n=1, masks="box")
    assert [(row["method"], row["steps"]) for row in table] == [("once", "1"), ("paste", "3"), ("paste", "5")]
    assert table[0]["nfe_forward"] == "0"


def test_both_networks_of_a_guided_backbone_count(world, tmp_path):
    table = benchmark(world, tmp_path, guide=str(world / "guide.safetensors"), guide_weight=1.5, solver="euler")
    calls = {row["method"]: (row["nfe_forward"], row["nfe_backward"]) for row in table}
    assert calls == {"paste": ("6", "0"), "ddnm": ("6", "0"), "dps": ("6", "6")}


def test_classes_and_classifier_free_guidance(world, tmp_path):
    file, _ = small_unet(tmp_path, label_dim=3)
    own = dict(backbone=file, methods=["paste"], masks="box", n=2, solver="euler")
    plain = benchmark(world, tmp_path / "null", **own)
    two = benchmark(world, tmp_path / "two", labels=2, **own)
    guided = benchmark(world, tmp_path / "cfg", labels=2, cfg=2.0, **own)
    assert (plain[0]["nfe_forward"], guided[0]["nfe_forward"]) == ("3", "6")
    assert len({table[0]["psnr_hole"] for table in (plain, two, guided)}) == 3
    data = tmp_path / "data"
    data.mkdir()
    for k in range(2):
        (data / f"{k}.png").write_bytes((world / "data" / f"{k}.png").read_bytes())
    (data / "dataset.json").write_text(json.dumps({"labels": [["0.png", 2], ["1.png", 0]]}))
    mixed = benchmark(world, tmp_path / "data-labels", labels="data", **{**own, "data": str(data)})
    assert mixed[0] == two[0] and mixed[1] != two[1]
    for changes, words in (
        ({"labels": 3}, "expected 0 to 2"), ({"cfg": 2.0}, "without labels"), ({"labels": "data"}, "holds no labels"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words):
            benchmark(world, tmp_path / "o", **own, **changes)


def test_batches_give_the_same_numbers_up_to_rounding(world, tmp_path):
    one = benchmark(world, tmp_path / "one")
    many = benchmark(world, tmp_path / "many", one_by_one=False, batch=2)
    for a, b in zip(one, many, strict=True):
        assert a["nfe_forward"] == b["nfe_forward"]
        assert float(a["psnr_hole"]) == pytest.approx(float(b["psnr_hole"]), abs=1e-3)


def test_fid_kid_and_diversity(world, tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics", reason="FID and KID need torchmetrics (extra 'metrics')")
    seen = []

    def network(path, device="cpu"):
        project = torch.randn(3 * SIDE * SIDE, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

        def features(images):
            seen.append(images)
            return (images.double().flatten(1) / 2550 @ project).float()

        return features

    monkeypatch.setattr(sets, "InceptionFeatures", network)
    options = dict(methods=["paste", "dps"], masks="box", n=4, diversity_seeds=2, diversity_images=3)
    benchmark(world, tmp_path, inception="package", **options)
    assert all(x.dtype == torch.uint8 and x.shape == (1, 3, SIDE, SIDE) for x in seen)
    assert len(seen) == 4 * 3  # originals and two methods; further draws are not measured
    text = (tmp_path / "tables.md").read_text().split("### Distributions, mask box")[1]
    heads, _, *body = [line.strip("| ").split(" | ") for line in text.strip().splitlines()[:4]]
    assert heads == ["method", "steps", "FID", "KID", "deviation between seeds"]
    features = network("")
    originals, results = features(torch.cat(seen[:4])), features(torch.cat(seen[8:12]))
    row = dict(zip(heads, body[1], strict=True))
    with pytest.warns(RuntimeWarning, match="rank-deficient"):
        assert float(row["FID"]) == pytest.approx(fid(originals, results), abs=1e-3)
    assert float(row["KID"]) == pytest.approx(kid(originals, results, 1, 4)[0], abs=1e-3)
    # three draws of three images, kept in eight bits
    net, mask = load_backbone(world / "net.safetensors"), make_mask("box", SIDE, 0).expand(3, 1, SIDE, SIDE)
    x = to_float(ImageSource(world / "data").stack(range(3)))
    draws = [dps(net, x * mask, mask, 3, seeds=[i + d * DRAW for i in range(3)]) for d in range(3)]
    assert float(row["deviation between seeds"]) == pytest.approx(
        float(hole_deviation(torch.stack(draws).clip(-1, 1), mask).mean()), abs=1e-3
    )


def test_a_killed_run_ends_with_the_same_bytes(world, tmp_path):
    """SIGKILL of the program while its workers compute; they end too; a restart computes the rest only."""
    options = dict(n=6, chunk=1, steps=[80], methods=["ddnm"])
    benchmark(world, tmp_path / "whole", **options)
    command = [
        sys.executable, str(ROOT / "examples/benchmark.py"), f"data={world / 'data'}", "out=cut", "n=6", "chunk=1",
        f"backbone={world / 'net.safetensors'}", "steps=80", "masks=[box,random]", "methods=[ddnm]", "reference=ddnm",
        "workers=2",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder, deadline = tmp_path / "cut/shards", time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if folder.exists() and len(list(folder.glob("[!.]*"))) >= 2:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    time.sleep(0.5)  # the workers' end
    before = {k: v for k, v in stamps(tmp_path / "cut").items() if not k.startswith(".")}
    assert 2 <= len(before) < 12 and not (tmp_path / "cut/results.csv").exists()
    benchmark(world, tmp_path / "cut", **options)
    assert before.items() <= stamps(tmp_path / "cut").items()
    assert stable(tmp_path / "cut") == stable(tmp_path / "whole")


BAD = {
    "methods": (["paste", "magic"], "magic"),
    "masks": (["box", "no-such-kind"], "no-such-kind"),
    "steps": ([3, 0], "steps is 0"),
    "n": (0, "n is 0"),
    "chunk": (0, "chunk is 0"),
    "workers": (0, "workers is 0"),
    "seed": ("one", "seed is 'one'"),
    "options": ({"dps": {"zetaa": 1}}, "no option 'zetaa'"),
    "weights": ({"dps": "some.safetensors"}, "no trained module"),
    "method_steps": ({"magic": [1]}, "magic"),
    "reference": ("magic", "magic"),
    "solver": ("rk45", "rk45"),
    "data": ("nowhere.zip", "nowhere.zip"),
    "backbone": ("nothing.safetensors", "nothing.safetensors"),
    "guide": ("nothing.safetensors", "nothing.safetensors"),
    "cfg": (2.0, "no classes"),
    "labels": (3, "no classes"),
    "lpips": ("none.pth", "none.pth"),
    "inception": ("none.pt", "none.pt"),
    "device": ("nowhere", "nowhere"),
    "interval": ([1], "interval"),
    "one_by_one": ("perhaps", "one_by_one"),
}


@pytest.mark.parametrize("option", BAD)
def test_bad_input_is_refused_before_anything_is_written(world, tmp_path, option):
    value, words = BAD[option]
    if option == "lpips":
        pytest.importorskip("lpips", reason="needs the package lpips (extra 'metrics')")
    with pytest.raises(InputError) as caught:
        benchmark(world, tmp_path / "o", **{option: value})
    assert words in str(caught.value) and not (tmp_path / "o").exists()


def test_one_bad_picture_and_a_mask_without_a_hole_are_refused(world, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for k in range(2):
        (data / f"{k}.png").write_bytes((world / "data" / f"{k}.png").read_bytes())
    Image.new("RGB", (SIDE, 2 * SIDE)).save(data / "2.png")
    with pytest.raises(InputError, match="2.png: is 16x32 pixels"):
        benchmark(world, tmp_path / "o", data=str(data))
    Image.new("L", (SIDE, SIDE), 255).save(tmp_path / "known.png")
    with pytest.raises(InputError, match="every pixel is known"):
        benchmark(world, tmp_path / "o", masks=[str(tmp_path / "known.png")], methods=None)
    assert not (tmp_path / "o").exists()


def test_a_mask_from_a_file(world, tmp_path):
    hole = Image.new("L", (SIDE, SIDE), 255)
    hole.paste(0, (4, 4, 12, 12))
    hole.save(tmp_path / "hole.png")
    drawn = benchmark(world, tmp_path / "a", masks=[str(tmp_path / "hole.png")])
    kind = benchmark(world, tmp_path / "b", masks=["box"])  # the central square of half the side
    assert [r["psnr_hole"] for r in drawn] == [r["psnr_hole"] for r in kind]


def test_several_processes_need_accelerate(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match="2 processes, which needs the package accelerate"):
        place("cpu")


def program(world, tmp_path, *options, launcher=()):
    command = [
        sys.executable, *launcher, str(ROOT / "examples/benchmark.py"), *options, f"data={world / 'data'}", "n=3",
        f"backbone={world / 'net.safetensors'}", "steps=3", "methods=[paste,ddnm,dps]", "reference=ddnm", "chunk=2",
    ]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)


def test_a_refusal_is_one_sentence_and_exit_code_2(world, tmp_path):
    done = program(world, tmp_path, "masks=[box,circle]", "out=o")
    assert done.returncode == 2 and "circle" in done.stderr and not (tmp_path / "o").exists()
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_launched_processes_share_the_work(world, tmp_path):
    pytest.importorskip("accelerate", reason="needs the package accelerate (extra 'benchmark')")
    benchmark(world, tmp_path / "one")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    done = program(world, tmp_path, "out=two", "masks=[box,random]", launcher=launcher)
    assert done.returncode == 0, done.stderr
    assert stable(tmp_path / "one") == stable(tmp_path / "two")


@pytest.mark.slow
def test_a_sweep_over_seeds(world, tmp_path):
    done = program(world, tmp_path, "-m", "seed=0,7", "out=runs/${seed}")
    assert done.returncode == 0, done.stderr
    assert [[row["seed"] for row in rows(tmp_path / f"runs/{seed}")][:3] for seed in (0, 7)] == [
        ["0", "1", "2"], ["7", "8", "9"],
    ]  # fmt: skip
