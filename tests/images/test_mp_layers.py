"""Magnitude-preserving layers: unit variance in, unit variance out; weights of unit length; cosine attention."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from aid_control.images.backbones.mp_layers import (
    MPBlock,
    MPConv,
    MPFourier,
    mp_cat,
    mp_silu,
    mp_sum,
    normalise,
    resample,
)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


@settings(max_examples=25, deadline=None)
@given(st.floats(0, 1), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99))
def test_sum_and_concatenation_preserve_magnitude(t, wide_a, wide_b, seed):
    a, b = randn(4000, wide_a, seed=seed), randn(4000, wide_b, seed=seed + 1000)
    assert rms(mp_sum(a[:, :1], b[:, :1], t)) == pytest.approx(1, abs=0.06)
    both = mp_cat(a, b, t)
    assert both.shape == (4000, wide_a + wide_b)
    assert rms(both) == pytest.approx(1, abs=0.06)
    # the shares are those of the norms, whatever the widths
    share_a, share_b = both[:, :wide_a].norm(), both[:, wide_a:].norm()
    assert float(share_b * (1 - t)) == pytest.approx(float(share_a * t), rel=0.05, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(), (1, 1), (3, 3)]), st.integers(1, 24), st.floats(0.1, 50), st.integers(0, 99))
def test_convolution_preserves_magnitude(kernel, channels, scale, seed):
    """Whatever the length of the weights."""
    torch.manual_seed(seed)
    conv = MPConv(channels, 64, kernel).eval()
    with torch.no_grad():
        conv.weight.mul_(scale)
        x = randn(2048, channels, seed=seed) if not kernel else randn(8, channels, 34, 34, seed=seed)
        y = conv(x)
        y = y if not kernel else y[:, :, 1:-1, 1:-1]  # zeros are padded
        assert rms(y) == pytest.approx(1, abs=0.1)
        torch.testing.assert_close(conv(x, gain=2.0), 2 * conv(x))


def test_activation_and_fourier_preserve_magnitude():
    assert rms(mp_silu(randn(200_000))) == pytest.approx(1, abs=0.01)
    torch.manual_seed(0)
    features = MPFourier(256)(torch.linspace(-3, 3, 500))
    assert features.shape == (500, 256)
    assert rms(features) == pytest.approx(1, abs=0.05)


def test_fourier_features():
    torch.manual_seed(0)
    net = MPFourier(4, bandwidth=0.5)
    x = torch.tensor([0.0, 1.0, -2.5])
    expected = torch.tensor([[math.sqrt(2) * math.cos(v * f + p) for f, p in zip(net.freqs, net.phases, strict=True)]
                             for v in x.tolist()])  # fmt: skip
    torch.testing.assert_close(net(x), expected)
    assert net(x.half()).dtype == torch.half
    torch.testing.assert_close(net(x.half()), net(x).half())  # angles are computed in float32
    wide = MPFourier(20_000, bandwidth=3.0)
    assert float(wide.freqs.std()) == pytest.approx(6 * math.pi, rel=0.03)
    assert ((wide.phases >= 0) & (wide.phases <= 2 * math.pi)).all()
    assert float(wide.phases.mean()) == pytest.approx(math.pi, rel=0.03)


def test_normalise():
    x = 7 * randn(3, 5, 4)
    assert torch.allclose(normalise(x).square().mean((1, 2)), torch.ones(3), atol=1e-3)
    assert torch.allclose(normalise(x, dim=1).square().mean(1), torch.ones(3, 4), atol=1e-3)
    assert torch.equal(normalise(torch.zeros(2, 3)), torch.zeros(2, 3))
    big = torch.full((1, 4096), 250.0, dtype=torch.half)
    assert torch.allclose(normalise(big), torch.ones_like(big))  # the sum of squares is no half-precision number


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_resampling(taps):
    x = randn(2, 3, 8, 8)
    assert resample(x, "keep", taps) is x
    down, up = resample(x, "down", taps), resample(x, "up", taps)
    assert (down.shape, up.shape) == ((2, 3, 4, 4), (2, 3, 16, 16))
    # filters sum to one: constants stay (away from the padded zeros)
    one = torch.ones(1, 1, 8, 8)
    for y in (resample(one, "down", taps), resample(one, "up", taps)):
        torch.testing.assert_close(y[..., 1:-1, 1:-1], torch.ones_like(y[..., 1:-1, 1:-1]))


def test_fast_resampling_is_the_filter():
    x = randn(2, 3, 8, 8)
    for mode in ("down", "up"):
        torch.testing.assert_close(resample(x, mode, (1, 1)), resample(x, mode, (2, 2)))


def test_weights_are_normalised_in_training_only():
    conv = MPConv(5, 7, (3, 3))
    with torch.no_grad():
        conv.weight.mul_(torch.linspace(0.1, 30, 7).reshape(-1, 1, 1, 1))
    before, x = conv.weight.detach().clone(), randn(2, 5, 6, 6)
    direction = torch.nn.functional.normalize(before.flatten(1))

    y = conv.eval()(x)
    assert torch.equal(conv.weight, before)
    trained = conv.train()(x)
    after = conv.weight.detach().flatten(1)
    torch.testing.assert_close(after.square().mean(1).sqrt(), torch.ones(7), atol=2e-3, rtol=0)
    torch.testing.assert_close(torch.nn.functional.normalize(after), direction)
    torch.testing.assert_close(trained, y, atol=5e-3, rtol=1e-3)  # the published eps makes the difference

    # and the gradient has no component along the weights, which is why they would grow without it
    trained.square().sum().backward()
    grad = conv.weight.grad.flatten(1)
    cosine = (grad * after).sum(1) / (grad.norm(dim=1) * after.norm(dim=1))
    assert float(cosine.abs().max()) < 2e-3


@pytest.mark.parametrize(("flavor", "mode"), [("enc", "keep"), ("enc", "down"), ("dec", "keep"), ("dec", "up")])
def test_block(flavor, mode):
    torch.manual_seed(0)
    block = MPBlock(8, 16, 12, flavor, mode, attention=True, channels_per_head=8, clip_act=None).eval()
    x, emb = randn(4, 8, 16, 16), randn(4, 12)
    with torch.no_grad():
        y = block(x, emb)
        side = {"keep": 16, "down": 8, "up": 32}[mode]
        assert y.shape == (4, 16, side, side)
        assert rms(y) == pytest.approx(1, abs=0.1)
        assert torch.equal(y, block(x, -emb))  # the gain of the embedding starts at 0
        block.emb_gain.fill_(0.5)
        assert relative(block(x, -emb), y) > 1e-2
        block.clip_act = 0.5
        assert float(block(x, emb).abs().max()) == 0.5


def test_attention_is_cosine_attention():
    """Against the formula, head by head."""
    torch.manual_seed(0)
    block = MPBlock(8, 8, 4, attention=True, channels_per_head=4).eval()
    x = randn(2, 8, 3, 3)
    with torch.no_grad():
        qkv = block.attn_qkv(x).reshape(2, 2, 4, 3, 9)
        unit = qkv / qkv.square().mean(2, keepdim=True).sqrt()
        q, k, v = unit.unbind(3)
        weights = torch.einsum("nhcq,nhck->nhqk", q, k / 2).softmax(3)
        expected = block.attn_proj(torch.einsum("nhqk,nhck->nhcq", weights, v).reshape(2, 8, 3, 3))
        torch.testing.assert_close(block._attend(x), expected, atol=2e-3, rtol=0)


def test_no_attention_in_blocks_narrower_than_a_head():
    block = MPBlock(8, 8, 4, attention=True, channels_per_head=16)
    assert block.num_heads == 0 and not any("attn" in k for k in block.state_dict())


@pytest.mark.parametrize(("option", "value"), [("flavor", "mid"), ("resample_mode", "sideways")])
def test_hostile_blocks_are_named(option, value):
    with pytest.raises(ValueError, match=value):
        MPBlock(8, 8, 8, **{option: value})
