"""EDM2 against golden tensors of the published implementation, its interface, and its loss."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from aid_control.checkpoint import load_tensors
from aid_control.errors import InputError
from aid_control.images.backbones.edm2 import PRESETS, EDM2Precond, edm2_preset
from aid_control.images.backbones.edm2_loss import edm2_loss
from aid_control.images.backbones.mp_layers import MPConv
from aid_control.images.sampler import edm_sampler

NAMES = ["pixel_cond", "latent_cond", "latent_uncond"]
TINY = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 8}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def tiny(label_dim=3, **kwargs) -> EDM2Precond:
    """A small network whose gains, zero at the start, are set, so that its output depends on everything."""
    torch.manual_seed(0)
    net = EDM2Precond(8, 3, label_dim, **(TINY | kwargs))
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("gain"):
                p.fill_(0.7)
    return net.eval()


@pytest.fixture(scope="module", params=NAMES)
def case(request, shared):
    """(network, golden tensors)."""
    path = shared / "reference" / "edm2" / f"{request.param}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    tensors, metadata = load_tensors(path)
    net = EDM2Precond(**json.loads(metadata["kwargs"]))
    weights = {k.removeprefix("param/"): v for k, v in tensors.items() if k.startswith("param/")}
    net.load_state_dict(weights, strict=True)
    return net.eval().requires_grad_(False), tensors


def test_golden_denoiser(case):
    net, t = case
    x, sigma, labels = t["in/x"], t["in/sigma"], t.get("in/class_labels")
    assert {k for k in t if k.startswith("out/")} == {"out/denoised", "out/logvar"}
    assert relative(net(x, sigma, labels), t["out/denoised"]) <= 1e-5
    assert net.logvar(sigma).shape == t["out/logvar"].shape
    assert relative(net.logvar(sigma), t["out/logvar"]) <= 1e-5


def test_golden_sampler(case):
    """The published EDM2 sampler is EDM's."""
    net, t = case
    labels = t.get("in/class_labels")
    x = edm_sampler(net, t["sampler/latents"], None if labels is None else labels[:2], num_steps=16)
    assert relative(x, t["sampler/heun16"]) <= 1e-5


def test_golden_is_told_apart_by_its_labels(case):
    net, t = case
    if net.label_dim:
        assert relative(net(t["in/x"], t["in/sigma"]), t["out/denoised"]) > 1e-3


@pytest.mark.parametrize(
    ("name", "millions"),
    [("xxs", 31.3), ("xs", 124.7), ("s", 280.2), ("m", 497.8), ("l", 777.5), ("xl", 1119.3), ("xxl", 1523.2)],
)
def test_published_sizes(name, millions):
    with torch.device("meta"):
        net = edm2_preset(name, img_resolution=64, img_channels=4, label_dim=1000)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == millions
    assert len(net.state_dict()) == 203


def test_every_preset_is_tested():
    assert list(PRESETS) == ["xxs", "xs", "s", "m", "l", "xl", "xxl"]


def test_preset_arguments():
    net = edm2_preset("xs", 8, 3, 5, **TINY, dropout=0.25)
    assert (net.shape, net.label_dim, net.unet.enc["4x4_block0"].dropout) == ((3, 8, 8), 5, 0.25)
    assert PRESETS["xs"] == {"model_channels": 128, "dropout": 0.0}
    with pytest.raises(ValueError, match="huge.*xs"):
        edm2_preset("huge")


# --- network ----------------------------------------------------------------------------------------------------


def test_untrained_network_is_the_skip_connection():
    net = EDM2Precond(8, 3, **TINY).eval()
    x = randn(2, 3, 8, 8)
    torch.testing.assert_close(net(x, 1.0), x * 0.2)  # 0.5^2 / (1 + 0.5^2)


def test_untrained_network_preserves_magnitude():
    """The target of F has unit variance; so have its features, from the first step on."""
    net = tiny(0, model_channels=32)
    with torch.no_grad():
        net.unet.out_gain.fill_(1)
        rows = [rms(net.unet(randn(8, 3, 8, 8), torch.full((8,), c))) for c in (-1.0, 0.0, 1.0)]
    assert rows == pytest.approx([1, 1, 1], abs=0.35)


def test_interface():
    net = tiny()
    x = randn(2, 3, 8, 8)
    assert (net.img_resolution, net.img_channels, net.shape, net.label_dim) == (8, 3, (3, 8, 8), 3)
    assert (net.sigma_min, net.sigma_max, net.fingerprint) == (0, math.inf, "")
    assert float(net.round_sigma(torch.tensor(0.3))) == pytest.approx(0.3)
    per_image = net(x, torch.full((2,), 1.5))
    for sigma in (1.5, torch.tensor(1.5), torch.tensor([1.5])):
        torch.testing.assert_close(net(x, sigma), per_image)
    assert torch.equal(net(x, 1.5, torch.zeros(2, 3)), per_image)  # no label is the null class
    one = torch.eye(3)[1]
    torch.testing.assert_close(net(x, 1.5, one), net(x, 1.5, one.expand(2, 3).long()))
    assert net(x.double(), 1.5).dtype == torch.float32
    assert net(x[:0], 1.5).shape == (0, 3, 8, 8)
    torch.testing.assert_close(net.double()(x, 1.5).float(), per_image, atol=1e-5, rtol=1e-5)


def test_images_of_a_batch_do_not_see_one_another():
    net = tiny()
    x, sigma, labels = randn(3, 3, 8, 8), torch.tensor([0.1, 1.0, 30.0]), torch.eye(3)
    whole = net(x, sigma, labels)
    for i in range(3):
        torch.testing.assert_close(net(x[i : i + 1], sigma[i], labels[i]), whole[i : i + 1], atol=1e-5, rtol=1e-5)


def test_unconditional_network_ignores_labels():
    net, x = tiny(0), randn(2, 3, 8, 8)
    assert torch.equal(net(x, 1.0, torch.eye(2)), net(x, 1.0))
    assert not any("label" in k for k in net.state_dict())


def test_denoiser_is_differentiable_in_the_image():
    net = tiny().double().requires_grad_(False)
    x = randn(1, 3, 8, 8).double().requires_grad_()
    direction = randn(1, 3, 8, 8, seed=1).double()
    (slope,) = torch.autograd.grad((net(x, 0.8) * direction).sum(), x)
    h, kick = 1e-5, randn(1, 3, 8, 8, seed=2).double()
    with torch.no_grad():
        finite = ((net(x + h * kick, 0.8) - net(x - h * kick, 0.8)) * direction).sum() / (2 * h)
    assert float((slope * kick).sum()) == pytest.approx(float(finite), rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "sigma", "labels", "message"),
    [
        ((2, 3, 8), 1.0, None, "images of shape"),
        ((2, 4, 8, 8), 1.0, None, "images of shape"),
        ((2, 3, 16, 16), 1.0, None, "images of shape"),
        ((2, 3, 8, 8), torch.ones(3), None, "3 levels for 2 images"),
        ((2, 3, 8, 8), 1.0, torch.eye(3), "class_labels"),
        ((2, 3, 8, 8), 1.0, torch.zeros(2, 4), "class_labels"),
        ((6, 3, 8, 8), 1.0, torch.tensor([0, 1, 2, 0, 1, 2]), "class_labels"),
    ],
)
def test_hostile_arguments_are_named(shape, sigma, labels, message):
    with pytest.raises(InputError, match=message):
        tiny()(torch.zeros(shape), sigma, labels)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"img_resolution": 9}, "img_resolution is 9"),
        ({"img_resolution": 0}, "img_resolution is 0"),
        ({"channel_mult": []}, "img_resolution|channel_mult"),
        ({"channel_mult": [1, 0]}, "channel_mult"),
        ({"label_dim": -1}, "label_dim"),
        ({"model_channels": 0}, "model_channels"),
        ({"resample_filter": [1, 2, 1]}, "resample_filter"),
        ({"resample_filter": [1, -1]}, "resample_filter"),
        ({"channels_per_head": 0}, "channels_per_head"),
        ({"channels_per_head": 5}, "heads do not divide"),
    ],
)
def test_hostile_networks_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        EDM2Precond(**({"img_resolution": 8, "img_channels": 3} | TINY | kwargs))


# --- loss -------------------------------------------------------------------------------------------------------


def test_loss_is_least_at_the_logarithm_of_the_error():
    """dL/du = 1 - e^{log error - u}: the best head is the logarithm of the weighted error."""
    net = tiny()
    x, noise, log_sigma = 0.5 * randn(4, 3, 8, 8), randn(4, 3, 8, 8, seed=1), torch.tensor([-2.0, -0.5, 0.0, 1.5])
    with torch.no_grad():
        sigma = log_sigma.exp()
        error = net(x + sigma[:, None, None, None] * noise, sigma, torch.eye(3)[[0, 1, 2, 0]]) - x
        weighted = (sigma**-2 + 4) * error.square().mean((1, 2, 3))
        u = net.logvar(sigma)[:, 0, 0, 0]
        loss = edm2_loss(net, x, log_sigma, noise, torch.eye(3)[[0, 1, 2, 0]])
        torch.testing.assert_close(loss, weighted / u.exp() + u)
        net.logvar = lambda sigma: weighted.log()
        best = edm2_loss(net, x, log_sigma, noise, torch.eye(3)[[0, 1, 2, 0]])
        torch.testing.assert_close(best, 1 + weighted.log())
        assert (best <= loss).all()


def test_training_reduces_the_loss_and_keeps_the_weights_normal():
    net = tiny().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2, betas=(0.9, 0.99))
    x, noise = 0.5 * randn(8, 1, 1, 1).expand(8, 3, 8, 8), randn(8, 3, 8, 8, seed=1)
    log_sigma = torch.linspace(-2, 1, 8)
    losses = []
    for _ in range(30):
        loss = edm2_loss(net, x, log_sigma, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    with torch.no_grad():
        net(x, log_sigma.exp())
    for module in net.unet.modules():
        if isinstance(module, MPConv):
            assert torch.allclose(module.weight.flatten(1).square().mean(1), torch.ones(()), atol=1e-3)


# --- files and half precision ---------------------------------------------------------------------------------


def test_layers_follow_the_precision_of_the_image():
    """What CUDA runs (use_fp16): half-precision features, the embedding in that of the weights."""
    net = tiny()
    x, c_noise, labels = randn(2, 3, 8, 8), torch.tensor([-1.0, 0.5]), torch.eye(3)[:2]
    with torch.no_grad():
        half = net.unet(x.half(), c_noise, labels)
        assert half.dtype == torch.half
        assert relative(half.float(), net.unet(x, c_noise, labels)) < 5e-3


def test_round_trip_of_the_constructor_arguments():
    """kwargs survive JSON, and the state dict loads strictly."""
    net = tiny(resample_filter=[1, 3, 3, 1], clip_act=None, channel_mult_noise=2, channel_mult_emb=3)
    kwargs = TINY | {"resample_filter": [1, 3, 3, 1], "clip_act": None, "channel_mult_noise": 2, "channel_mult_emb": 3}
    again = EDM2Precond(**json.loads(json.dumps({"img_resolution": 8, "img_channels": 3, "label_dim": 3} | kwargs)))
    again.load_state_dict(net.state_dict(), strict=True)
    assert (again.unet.emb_noise.in_channels, again.unet.emb_noise.out_channels) == (16, 24)
    x = randn(2, 3, 8, 8)
    assert torch.equal(again.eval()(x, 1.0), net(x, 1.0))
