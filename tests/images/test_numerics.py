"""Precision, extreme schedules and extreme masks; the bars are those of ``examples/verify_numerics.py``."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch

from aid_control.errors import InputError
from aid_control.images import inpaint
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.clock import KarrasClock, check_clock
from aid_control.images.masks import make_mask
from aid_control.images.methods.registry import METHODS, bind
from aid_control.images.sampler import ablation_sampler, edm_sampler

ROOT = Path(__file__).parents[2]
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{path.stem}_of_numerics", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


program = load(ROOT / "examples" / "verify_numerics.py")
small = load(Path(__file__).with_name("test_determinism.py"))  # small networks, and what each method needs

# --- precision --------------------------------------------------------------------------------------------------


def test_every_row_has_bars():
    assert list(program.BARS) == list(program.ROWS)
    assert all(name in program.ROWS for name in METHODS)
    for row, bars in program.BARS.items():
        # float32 is told from bfloat16 by each bar (Adam's division makes RED-diff the exception, see the page)
        assert 1000 * bars.max32 < bars.max16 or row == "red_diff"


@pytest.mark.parametrize("row", ["denoiser at 0.002", "denoiser at 80", "ablation_sampler, ve, euler", "aid, euler"])
def test_precision_of_the_shipped_networks(row):
    got = program.differences(row)
    assert all(0 < value <= bar for value, bar in zip(got, program.BARS[row], strict=True)), got


@pytest.mark.parametrize("name", METHODS)
def test_every_method_computes_in_the_precision_of_its_images(name):
    y, mask, seeds = small.inputs()
    results = [small.bound(name, dtype=dtype)(y[:2].to(dtype), mask[:2], 3, seeds[:2]) for dtype in DTYPES]
    assert [out.dtype for out in results] == list(DTYPES)
    known = mask[:2].bool().expand_as(y[:2])
    for out, dtype in zip(results, DTYPES, strict=True):
        assert torch.isfinite(out).all() and torch.equal(out[known], y[:2].to(dtype)[known])
    # bfloat16 inputs are rounded, so that the known parts alone differ by 2^-9
    errors = [float((out.double() - results[0]).norm() / results[0].norm()) for out in results[1:]]
    assert 0 < errors[0] < 1e-4 and 1e-4 < errors[1] < 0.3, errors


def linear(f, size: float) -> float:
    """|f(2 e) - 2 f(e) + f(0)| / |f(e) - f(0)|: near 0 for a smooth f, near or above 1 where f rounds to float32."""
    zero, one, two = (f(k * size) for k in range(3))
    assert zero.dtype == torch.float64 and not torch.equal(zero, one)
    return float((two - 2 * one + zero).norm() / (one - zero).norm())


@pytest.mark.parametrize("name", METHODS)
def test_no_float32_hides_in_float64(name):
    """Steps of 1e-8 in the images and the first noise level are seen, and in proportion: float32 resolves 6e-8."""
    y, mask, seeds = small.inputs()
    method = small.bound(name, dtype=torch.float64)
    move = torch.randn(3, small.SIDE, small.SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def f(e: float) -> torch.Tensor:
        return method(y[:1].double() + e * move, mask[:1], 3, seeds[:1], clock=KarrasClock(0.02, 20 * (1 + e)))

    assert linear(f, 1e-8) < 1e-3


SAMPLERS = {
    "edm": edm_sampler,
    "churn": partial(edm_sampler, S_churn=2.0, noise=torch.ones(6, 1, 3, small.SIDE, small.SIDE)),
    **{
        f"{d} {solver}": partial(ablation_sampler, discretization=d, schedule=s, scaling=c, solver=solver)
        for d, s, c in program.ABLATIONS
        for solver in ("euler", "heun")
    },
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_float32_hides_in_the_samplers(name):
    net, x = small.backbone().double(), small.inputs()[0][:1].double()
    assert linear(lambda e: SAMPLERS[name](net, (1 + e) * x, num_steps=6), 1e-8) < 1e-3


def test_guidance_of_another_precision_is_refused():
    net = small.backbone()
    y, mask, seeds = small.inputs()
    guidance = small.module("aid", net)
    with pytest.raises(InputError, match="guidance is in torch.float32, images in torch.bfloat16; expected the same"):
        inpaint(net.bfloat16(), guidance, y.bfloat16(), mask, 2, seeds=seeds)
    # a backbone in bfloat16 under images in float32 is fine: the state keeps its precision
    out = inpaint(net, guidance, y, mask, 2, seeds=seeds)
    assert out.dtype == torch.float32 and torch.isfinite(out).all()


# --- schedules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("low", "high"), [(0.002, 80.0), (0.002, 800.0), (1e-6, 800.0)])
def test_extreme_schedules_of_the_shipped_networks(low, high):
    x, mask = program.face()
    for name, steps, solver in (("aid", 2, "heun"), ("aid", 7, "euler"), ("paste", 7, "heun")):
        method = bind(name, program.backbone(torch.float32), options={"solver": solver})
        out = method(x, mask, steps, [0], clock=KarrasClock(low, high))
        assert out.abs().max() <= program.RANGE[solver]  # NaN is refused, too


def cheap() -> GaussianBackbone:
    net = GaussianBackbone((1, 8, 8), 0)
    return net.assign(torch.full((64,), 0.1), torch.zeros(0, 64), torch.full((64,), 0.25))


@pytest.mark.parametrize("steps", [1, 2, 3, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if entry.load is None])
def test_every_method_is_stable_with_extreme_schedules(name, steps):
    """Pixels of mean 0.1 and deviation 0.5, noise from 80 and 800: finite, and within ten deviations."""
    y, mask = torch.full((1, 1, 8, 8), 0.5), make_mask("box", 8, 0)[None]
    for low, high in ((0.002, 80.0), (0.002, 800.0), (1e-6, 800.0)):
        if name == "daps":  # anneals to 0.1; further down it may refuse its rate, in a sentence
            low = 0.1
        method = bind(name, cheap(), options=small.FAST.get(name))
        out = method(y, mask, steps, [0], clock=KarrasClock(low, high))
        assert (out - 0.1).abs().max() < 5, (low, high)  # NaN fails, too


@pytest.mark.parametrize(
    ("low", "high"),
    [(80.0, 80.0), (80.0, 0.002), (0.0, 80.0), (-1.0, 80.0), (0.002, math.inf), (math.nan, 80.0), (1e-12, 800.0)],
)
def test_senseless_noise_levels_are_refused(low, high):
    clock, net = KarrasClock(low, high), cheap()
    y, mask, x = torch.zeros(1, 1, 8, 8), make_mask("box", 8, 0)[None], torch.ones(1, 1, 8, 8)
    attempts = [
        partial(check_clock, clock), partial(inpaint, net, None, y, mask, clock=clock),
        partial(bind("ddnm", net), y, mask, 3, [0], clock=clock),
    ]  # fmt: skip
    if high < math.inf and low > 0:  # elsewhere the network's own range takes over
        attempts += [partial(f, net, x, sigma_min=low, sigma_max=high) for f in (edm_sampler, ablation_sampler)]
    for attempt in attempts:
        assert program.refused(attempt)


@pytest.mark.parametrize("name", METHODS)
def test_no_steps_and_nothing_to_fill_are_refused(name):
    y, mask, seeds = small.inputs()
    method = small.bound(name)
    assert program.refused(partial(method, y, mask, 0, seeds))
    assert program.refused(partial(method, y, torch.ones_like(mask), 2, seeds))
    assert not program.refused(partial(method, y[:1], mask[:1], 1, seeds[:1]))


# --- masks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_masks_of_any_coverage(name, dtype):
    masks = program.extreme_masks(small.SIDE)
    shares = {word: float(mask.mean()) * small.SIDE**2 for word, mask in masks.items()}
    assert shares == {
        "no known pixel": 0, "one known pixel": 1, "one hole pixel": 255, "checkerboard": 128,
        "one known row": 16, "one hole row": 240,
    }  # fmt: skip
    mask = torch.stack(list(masks.values()))
    y = small.inputs()[0][:1].expand(len(mask), -1, -1, -1).to(dtype)
    out = small.bound(name, one_by_one=False, dtype=dtype)(y, mask, 2, range(len(mask)))
    assert torch.isfinite(out).all()
    assert torch.equal(torch.where(mask.bool(), out, 0.0), torch.where(mask.bool(), y, 0.0))


# --- the program ------------------------------------------------------------------------------------------------


def run(*options: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "examples" / "verify_numerics.py"), "out=o", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=1800)


def test_program_refuses_what_it_does_not_know(tmp_path):
    done = run("parts=[magic]", cwd=tmp_path)
    assert done.returncode == 2 and "expected some of precision" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
def test_all_bars_hold(tmp_path):
    done = run(cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "o" / "report.json").read_text())["rows"]
    assert len(rows) == 4 * len(program.ROWS) + 39 + 2 * len(METHODS) + 2
    assert "aid, euler" in (tmp_path / "o" / "numerics.md").read_text()
