"""Diversity over seeds and the error on known pixels, in closed form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid_control.errors import InputError
from aid_control.images.diversity import deviation_map, hole_deviation, known_error, pairwise_distance

FEATURES = Path(__file__).resolve().parents[3] / "shared" / "weights" / "alexnet_features.pth"


def draws(shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def half(n=1, side=8):
    """Left half known."""
    mask = torch.zeros(n, 1, side, side)
    mask[..., : side // 2] = 1
    return mask


def square(a, b, region):
    """Mean squared difference over a region, a distance in closed form."""
    return ((a - b).square().mean(1, keepdim=True) * region).flatten(1).sum(1) / region.flatten(1).sum(1)


@given(st.integers(2, 6), st.integers(1, 3), st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_pairwise_squares_are_twice_the_variance(seeds, images, seed):
    samples = draws((seeds, images, 3, 8, 8), seed)
    variance = samples.double().var(0).mean(1)[..., 4:].mean((1, 2))
    torch.testing.assert_close(pairwise_distance(samples, half(), square).double(), 2 * variance, rtol=1e-5, atol=1e-6)


def test_every_pair_once_and_the_hole_only():
    calls = []

    def record(a, b, region):
        calls.append((float(a[0, 0, 0, 0]), float(b[0, 0, 0, 0]), region))
        return torch.tensor([1.0, 3.0])

    samples = torch.arange(4.0).view(4, 1, 1, 1, 1).expand(4, 2, 3, 8, 8)
    assert pairwise_distance(samples, half(), record).tolist() == [1, 3]
    assert [c[:2] for c in calls] == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert all(torch.equal(c[2], 1 - half(2)) for c in calls)


def test_known_pixels_do_not_count_as_diversity():
    samples = draws((3, 2, 3, 8, 8))
    changed = samples.clone()
    changed[..., :4] += 10 * draws((3, 2, 3, 8, 4), 1)
    for measure in (lambda s: pairwise_distance(s, half(2), square), lambda s: hole_deviation(s, half(2))):
        assert torch.equal(measure(changed), measure(samples))


def test_equal_fillings_have_none():
    samples = draws((1, 2, 3, 8, 8)).expand(4, -1, -1, -1, -1)
    assert pairwise_distance(samples, half(), square).tolist() == [0, 0]
    assert hole_deviation(samples, half()).tolist() == [0, 0]


def test_deviation_of_two_values():
    samples = torch.zeros(2, 1, 3, 8, 8)
    samples[1, :, :, :, 4:] = 0.6  # two values h apart have deviation h / sqrt2
    samples[1, :, 0, 0, 4] = 0.0  # here two channels of three
    deviation = deviation_map(samples)
    assert deviation.shape == (1, 8, 8) and deviation[..., :4].abs().max() == 0
    assert deviation[0, 3, 5].item() == pytest.approx(0.6 / math.sqrt(2))
    assert deviation[0, 0, 4].item() == pytest.approx(0.6 / math.sqrt(2) * math.sqrt(2 / 3))
    expected = 0.6 / math.sqrt(2) * (31 + math.sqrt(2 / 3)) / 32
    assert hole_deviation(samples, half()).item() == pytest.approx(expected)


def test_an_image_without_a_hole_is_nan():
    samples, mask = draws((2, 2, 3, 8, 8)), torch.cat([half(), torch.ones(1, 1, 8, 8)])
    assert hole_deviation(samples, mask).isnan().tolist() == [False, True]
    assert pairwise_distance(samples, mask, square).isnan().tolist() == [False, True]


def test_known_error():
    y = draws((3, 3, 8, 8))
    out = y.clone()
    out[..., 4:] += 5  # the hole does not count
    out[1, 2, 3, 1] -= 0.5
    out[2, :, :, :4] += 0.25
    largest, mean = known_error(out, y, half())
    assert largest.tolist() == pytest.approx([0, 0.5, 0.25], abs=1e-6)
    assert mean.tolist() == pytest.approx([0, 0.5 / 96, 0.25], abs=1e-6)
    y[..., 4:] = torch.nan  # an observation may hold anything in its hole
    assert known_error(out, y, half())[0].tolist() == pytest.approx([0, 0.5, 0.25], abs=1e-6)
    out[0, 0, 0, 0] = torch.nan  # but a broken output is not hidden
    assert known_error(out, y, half())[0].isnan().tolist() == [True, False, False]


def test_nothing_known_is_nan():
    x = draws((2, 3, 8, 8))
    mask = torch.cat([half(), torch.zeros(1, 1, 8, 8)])
    for value in known_error(x, x, mask):
        assert value.isnan().tolist() == [False, True]


def test_bad_shapes():
    samples = draws((2, 2, 3, 8, 8))
    for wrong in (samples[:1], samples[0]):
        with pytest.raises(InputError, match="S >= 2 seeds"):
            hole_deviation(wrong, half())
        with pytest.raises(InputError, match="S >= 2 seeds"):
            pairwise_distance(wrong, half(), square)
    with pytest.raises(InputError, match=r"mask of shape \(3, 1, 8, 8\); expected \(2 or 1, 1, 8, 8\)"):
        hole_deviation(samples, half(3))
    with pytest.raises(InputError, match="mask of shape"):
        known_error(samples[0], samples[0], half(1, 4))
    with pytest.raises(InputError, match="expected two equal"):
        known_error(samples[0], samples[0, :1], half())


def test_lpips_of_fillings():
    pytest.importorskip("lpips", reason="needs the package lpips (extra 'metrics')")
    if not FEATURES.is_file():
        pytest.skip("AlexNet features are not on this machine")
    from aid_control.images.perceptual import Lpips

    picture, mask = torch.tanh(draws((1, 2, 3, 64, 64))), half(2, 64)
    noise = draws((3, 2, 3, 64, 64), 1) * (1 - mask)
    noise[:, 1] *= 4
    distance = pairwise_distance(picture + 0.1 * noise, mask, Lpips(FEATURES))
    assert distance.shape == (2,) and 0 < distance[0] < distance[1]
