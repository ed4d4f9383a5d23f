"""PSNR against its closed form, SSIM against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from aid_control.errors import InputError
from aid_control.images.metrics import psnr, ssim, ssim_map, summary


def images(seed, shape=(3, 3, 24, 24), noise=0.3):
    """Smooth pictures and noisy copies, float32 in [-1, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[2], : shape[3]] / shape[2]
    phase = rng.uniform(0, 6, shape[:2])[..., None, None]
    a = np.sin(5 * x + 3 * y + phase)
    b = np.clip(a + noise * rng.standard_normal(shape), -1, 1)
    return torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)


def reference(a, b):
    return structural_similarity(
        a.double().numpy(),
        b.double().numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=2,
        channel_axis=0,
        full=True,
    )


@given(st.floats(1e-3, 2), st.floats(-1, 1))
def test_psnr_of_a_constant_difference(gap, level):
    a = torch.full((2, 3, 8, 8), level, dtype=torch.float64)
    assert psnr(a, a + gap).tolist() == pytest.approx([20 * math.log10(2 / gap)] * 2, abs=1e-6)


def test_psnr_matches_scikit_image_row_by_row():
    a, b = images(0)
    expected = [
        peak_signal_noise_ratio(x.double().numpy(), y.double().numpy(), data_range=2) for x, y in zip(a, b, strict=True)
    ]
    assert psnr(a, b).tolist() == pytest.approx(expected, abs=1e-9)


def test_psnr_over_a_region_sees_that_region_only():
    a = torch.zeros(2, 3, 8, 8)
    b = a.clone()
    b[:, :, :, 4:] = 0.2
    b[1, :, :, :4] = 1.0
    right = torch.zeros(2, 1, 8, 8)
    right[..., 4:] = 1
    assert psnr(a, b, right).tolist() == pytest.approx([20.0, 20.0], abs=1e-5)
    assert psnr(a, b, 1 - right)[0] == math.inf
    assert psnr(a, b, 1 - right)[1].item() == pytest.approx(20 * math.log10(2))
    assert torch.equal(psnr(a, b, 3 * right), psnr(a, b, right))
    assert torch.equal(psnr(a, b, right[:1]), psnr(a, b, right))
    assert psnr(a, b, 0 * right).isnan().all()
    weights = right + 0.5 * (1 - right)
    assert psnr(a, b, weights)[0].item() == pytest.approx(10 * math.log10(4 / (0.04 * 2 / 3)), abs=1e-5)


def test_equal_images():
    a, _ = images(1)
    assert (psnr(a, a) == math.inf).all()
    assert torch.allclose(ssim_map(a, a), torch.ones(3, 24, 24, dtype=torch.float64), atol=1e-12)


@given(
    st.integers(0, 10**6), st.sampled_from([1, 3]), st.sampled_from([(11, 11), (24, 17), (32, 32)]), st.floats(0.01, 1)
)
@settings(deadline=None, max_examples=25)
def test_ssim_matches_scikit_image(seed, channels, side, noise):
    a, b = images(seed, (2, channels, *side), noise)
    for i, value in enumerate(ssim(a, b).tolist()):
        mean, full = reference(a[i], b[i])
        assert value == pytest.approx(mean, abs=1e-6)
        assert np.abs(ssim_map(a, b)[i].numpy() - full.mean(0)).max() < 1e-6


def test_ssim_stays_exact_on_flat_images():
    a = torch.full((1, 3, 16, 16), 0.999)
    b = a + 1e-4
    assert ssim(a, b).item() == pytest.approx(reference(a[0], b[0])[0], abs=1e-9)


def test_ssim_over_a_region_is_the_mean_of_the_map_there():
    a, b = images(2)
    region = (torch.rand(3, 1, 24, 24, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    values = ssim_map(a, b)
    expected = [values[i][region[i, 0] == 1].mean().item() for i in range(3)]
    assert ssim(a, b, region).tolist() == pytest.approx(expected, abs=1e-12)


def test_every_image_is_measured_alone():
    a, b = images(3)
    for measure in (psnr, ssim):
        whole = measure(a, b)
        assert torch.allclose(torch.cat([measure(a[i : i + 1], b[i : i + 1]) for i in range(3)]), whole, atol=1e-12)
        assert whole.dtype == torch.float64 and len(set(whole.tolist())) == 3


def test_bad_shapes():
    a = torch.zeros(2, 3, 16, 16)
    with pytest.raises(InputError, match="expected two equal"):
        psnr(a, a[:1])
    with pytest.raises(InputError, match="expected two equal"):
        ssim(a[0], a[0])
    with pytest.raises(InputError, match=r"region of shape \(2, 3, 16, 16\)"):
        psnr(a, a, torch.ones_like(a))
    with pytest.raises(InputError, match="at least 11"):
        ssim(a[..., :10], a[..., :10])


def test_summary():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    out = summary(values)
    assert out["mean"] == pytest.approx(2.5) and out["n"] == 4
    assert out["ci95"] == pytest.approx(1.96 * np.std([1, 2, 3, 4], ddof=1) / 2)
    assert summary(torch.cat([values, torch.tensor([math.inf, math.nan])])) == out
    one, none = summary(values[:1]), summary(values[:0])
    assert one["mean"] == 1 and math.isnan(one["ci95"]) and one["n"] == 1
    assert math.isnan(none["mean"]) and none["n"] == 0
