"""Post-hoc EMA: published numbers, profiles against quadrature, and averages against their definition."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid_control.checkpoint import load_state, save_state
from aid_control.errors import InputError
from aid_control.images.backbones.phema import (
    PowerEMA,
    Snapshot,
    beta_at,
    exp_to_std,
    posthoc_coefficients,
    profile_product,
    reconstruct,
    std_to_exp,
)

WIDEST = 1 / math.sqrt(12)


@pytest.fixture(scope="module")
def reference(shared) -> dict:
    path = shared / "reference" / "edm2" / "phema.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return json.loads(path.read_text())


def test_golden_exponents(reference):
    for std, gamma in reference["std_to_exp"].items():
        assert std_to_exp(float(std)) == pytest.approx(gamma, rel=1e-8)


def test_golden_coefficients(reference):
    c = posthoc_coefficients(*(reference[k] for k in ("in_ofs", "in_std", "out_ofs", "out_std")))
    assert list(c.shape) == reference["shape"]
    np.testing.assert_allclose(c, reference["coefficients"], rtol=0, atol=1e-8)


@given(st.floats(1e-3, WIDEST))
def test_std_and_exponent_are_inverse(std):
    gamma = std_to_exp(std)
    assert gamma >= 0
    assert exp_to_std(gamma) == pytest.approx(std, rel=1e-6)


def profile(gamma, end, t):
    return np.where(t <= end, (gamma + 1) * t**gamma / end ** (gamma + 1), 0)


def test_std_is_that_of_the_profile():
    t = (np.arange(200_000) + 0.5) / 200_000
    for std in (0.03, 0.1, 0.2, WIDEST):
        p = profile(std_to_exp(std), 1.0, t) / len(t)
        mean = (p * t).sum()
        assert p.sum() == pytest.approx(1, rel=1e-6)
        assert math.sqrt((p * (t - mean) ** 2).sum()) == pytest.approx(std, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(*[st.floats(0, 20) for _ in range(2)], *[st.floats(0.3, 3) for _ in range(2)])
def test_inner_products_are_integrals(a, b, end_a, end_b):
    n, upto = 200_000, min(end_a, end_b)
    t = (np.arange(n) + 0.5) / n * upto
    integral = (profile(a, end_a, t) * profile(b, end_b, t)).sum() * upto / n
    assert float(profile_product(a, end_a, b, end_b)) == pytest.approx(integral, rel=1e-5, abs=1e-12)
    assert float(profile_product(b, end_b, a, end_a)) == pytest.approx(integral, rel=1e-5, abs=1e-12)


def test_running_average_follows_the_profile():
    """The weight of step k is the integral of the profile over it: (k^e - (k-1)^e) / n^e, e = gamma + 1."""
    n, delta = 40, 256
    for std in (0.05, 0.1, 0.25):
        ema = PowerEMA({"w": torch.full((n,), 1e9, dtype=torch.float64)}, [std])
        for k in range(n):
            ema.update({"w": torch.eye(n, dtype=torch.float64)[k]}, (k + 1) * delta)
        weights = ema.averages[std]["w"].numpy()
        edges = (np.arange(n + 1) / n) ** (std_to_exp(std) + 1)
        np.testing.assert_allclose(weights, np.diff(edges), atol=1e-6)  # the start (1e9) is forgotten
        assert weights.sum() == pytest.approx(1)


def train(n=2000, every=200, stds=(0.05, 0.10), seed=0):
    """A random walk with snapshots; returns them and the whole path (n, 3)."""
    path = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).cumsum(0) / 30
    start = {"w": torch.zeros(3, dtype=torch.float64), "n": torch.tensor(0)}
    ema, kept = PowerEMA(start, stds), []
    for k in range(n):
        ema.update({"w": path[k], "n": torch.tensor(k)}, k + 1)
        if (k + 1) % every == 0:
            kept += ema.snapshots()
    return kept, path


@pytest.mark.parametrize("std", [0.03, 0.07, 0.13, 0.2])
def test_reconstruction_is_near_the_true_average(std):
    kept, path = train()
    n = len(path)
    exact = torch.from_numpy(np.diff((np.arange(n + 1) / n) ** (std_to_exp(std) + 1))) @ path
    out = reconstruct(kept, std)
    spread = (path - path.mean(0)).std()
    assert float((out["w"] - exact).norm()) < 0.03 * float(spread)
    assert out["n"] == n - 1  # not averaged
    nearest = min((s for s in kept if s.t == n), key=lambda s: abs(s.std - std))
    assert (out["w"] - exact).norm() < 0.3 * (nearest.weights["w"] - exact).norm()


def test_reconstruction_of_a_stored_average_is_that_one():
    kept, _ = train()
    for one in (kept[-1], kept[-2], kept[7]):
        torch.testing.assert_close(reconstruct(kept, one.std, one.t)["w"], one.weights["w"], atol=1e-9, rtol=0)


def test_constants_and_precision_survive():
    stored = [
        Snapshot(t, s, {"a": torch.full((2,), 0.1), "b": torch.full((2,), 0.1, dtype=torch.half)})
        for t in (1e5, 2e5, 4e5)
        for s in (0.05, 0.1)
    ]
    for std in (0.02, 0.045, 0.13, 0.2):
        out = reconstruct(stored, std)
        assert (out["a"].dtype, out["b"].dtype) == (torch.float32, torch.float16)
        torch.testing.assert_close(out["a"], torch.full((2,), 0.1), rtol=1e-6, atol=0)
        assert torch.equal(out["b"], torch.full((2,), 0.1, dtype=torch.half))


def test_a_restarted_run_is_the_uninterrupted_run(tmp_path):
    weights = [{"w": torch.randn(4, generator=torch.Generator().manual_seed(k))} for k in range(6)]
    whole = PowerEMA(weights[0])
    for k in range(6):
        whole.update(weights[k], 10 * (k + 1))
        if k == 2:
            save_state(tmp_path / "ema.safetensors", whole.state())
    again = PowerEMA(weights[5])
    again.restore(load_state(tmp_path / "ema.safetensors"))
    for k in range(3, 6):
        again.update(weights[k], 10 * (k + 1))
    assert list(again.averages) == list(whole.averages) == [0.05, 0.1]
    for std in whole.averages:
        assert torch.equal(again.averages[std]["w"], whole.averages[std]["w"])


def test_nothing_is_shared():
    w = torch.ones(2)
    ema = PowerEMA({"w": w})
    ema.update({"w": w}, 1)
    kept = ema.snapshots()
    w.zero_()
    ema.update({"w": w}, 2)
    assert all(torch.equal(s.weights["w"], torch.ones(2)) for s in kept)
    assert reconstruct(kept, 0.07)["w"] == pytest.approx([1, 1])


@pytest.mark.parametrize("std", [0.0, -0.1, 0.289, 1.0, math.nan, math.inf])
def test_stds_out_of_range_are_named(std):
    with pytest.raises(InputError, match="std is"):
        std_to_exp(std)
    with pytest.raises(InputError, match="std is"):
        PowerEMA({}, [std])


def test_widest_profile_is_the_plain_mean():
    assert std_to_exp(WIDEST) == pytest.approx(0, abs=1e-9)
    assert beta_at(WIDEST, 4, 1) == pytest.approx(3 / 4)
    assert beta_at(0.1, 5, 5) == 0


def snapshot(t=1.0, std=0.1, **weights):
    return Snapshot(t, std, weights or {"w": torch.zeros(2)})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: exp_to_std(-0.5), "gamma is"),
        (lambda: exp_to_std(math.nan), "gamma is"),
        (lambda: beta_at(0.1, 1, 2), "0 < step"),
        (lambda: beta_at(0.1, 1, 0), "0 < step"),
        (lambda: posthoc_coefficients([0.0], [0.1], [1.0], [0.1]), "times are"),
        (lambda: posthoc_coefficients([1.0], [0.1], [math.inf], [0.1]), "times are"),
        (lambda: posthoc_coefficients([], [], [1.0], [0.1]), "times are"),
        (lambda: posthoc_coefficients([1.0, 1.0], [0.1, 0.1], 1.0, 0.1), "no two alike"),
        (lambda: reconstruct([], 0.1), "no snapshots"),
        (lambda: reconstruct([snapshot()], 0.1, t=2.0), "latest snapshot"),
        (lambda: reconstruct([snapshot(), snapshot(2.0, v=torch.zeros(2))], 0.1), "differ in names"),
        (lambda: reconstruct([snapshot(), snapshot(2.0, w=torch.zeros(3))], 0.1), "differ in names"),
        (lambda: PowerEMA({}, []), "stds are"),
        (lambda: PowerEMA({}, [0.1, 0.1]), "stds are"),
        (lambda: PowerEMA({}).update({}, 0), "more images"),
        (lambda: PowerEMA({}).update({}, math.nan), "more images"),
        (lambda: PowerEMA({}).snapshots(), "no update"),
    ],
)
def test_hostile_arguments_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
