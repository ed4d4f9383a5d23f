"""Backbones against golden tensors of the published implementation, and their files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from aid_control.errors import InputError
from aid_control.images.backbones.precond import PRECONDITIONERS, Denoiser
from aid_control.images.backbones.registry import asset, fingerprint, load_backbone, save_backbone

NAMES = [
    "baseline_ve",
    "baseline_vp",
    "song_vp_cond",
    "adm_cond",
    "baseline_iddpm",
    "song_ve",
    "song_vp",
]


def build(golden) -> Denoiser:
    net = PRECONDITIONERS[golden.precond](**golden.kwargs)
    net.load_state_dict(golden.weights, strict=True)
    return net.eval().requires_grad_(False)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", NAMES)
def test_golden_denoiser(name, golden):
    ref = golden(name)
    net = build(ref)
    assert set(net.state_dict()) == set(ref.weights)
    assert (net.sigma_min, net.sigma_max) == pytest.approx(ref.bounds, rel=1e-6)

    t = ref.tensors
    x, sigma, labels = t["in/x"], t["in/sigma"], t.get("in/class_labels")
    calls = {
        "out/denoised": (labels, None),
        "out/denoised_no_label": (None, None),
        "out/denoised_augmented": (labels, t.get("in/augment_labels")),
    }
    outputs = [k for k in t if k.startswith("out/")]
    assert set(outputs) <= set(calls)  # every golden output is checked
    for key in outputs:
        assert relative(net(x, sigma, *calls[key]), t[key]) <= 1e-5, key


def test_golden_is_told_apart_by_its_inputs(golden):
    """The comparison would notice ignored labels or augmentation."""
    ref = golden("song_vp_cond")
    t = ref.tensors
    out = [t[f"out/{k}"] for k in ("denoised", "denoised_no_label", "denoised_augmented")]
    assert min(relative(out[0], out[1]), relative(out[0], out[2])) > 1e-3


def test_scalar_and_per_image_sigma_agree(golden):
    ref = golden("baseline_vp")
    net, x = build(ref), ref.tensors["in/x"]
    torch.testing.assert_close(net(x, 1.5), net(x, torch.full((len(x),), 1.5)))


VP = {
    "model_type": "SongUNet",
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": [1, 1],
    "model_channels": 128,
    "augment_dim": 9,
}
VE = VP | {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
ADM = {"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": [1, 2, 3, 4], "label_dim": 1000}
FFHQ = {"img_resolution": 64, "channel_mult": [1, 2, 2, 2], "dropout": 0.05}


@pytest.mark.parametrize(
    ("kwargs", "millions", "digits", "entries"),
    [
        pytest.param(VP | FFHQ, 61.81, 2, 553, id="ffhq-vp"),
        pytest.param(VE | FFHQ, 62.76, 2, 563, id="ffhq-ve"),
        pytest.param(VP | {"img_resolution": 32, "channel_mult": [2, 2, 2]}, 55.73, 2, None, id="cifar10-vp"),
        pytest.param(ADM | {"img_resolution": 64}, 295.9, 1, None, id="imagenet64-adm"),
    ],
)
def test_published_sizes(kwargs, millions, digits, entries):
    with torch.device("meta"):
        net = PRECONDITIONERS["EDMPrecond"](img_channels=3, **kwargs)
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, digits) == millions
    assert entries is None or len(net.state_dict()) == entries


def test_unknown_network_is_named():
    with pytest.raises(ValueError, match="Transformer.*SongUNet"):
        PRECONDITIONERS["EDMPrecond"](img_resolution=16, img_channels=3, model_type="Transformer")


def test_default_backbone():
    net = load_backbone()
    assert net.img_resolution == 64
    assert sum(p.numel() for p in net.parameters()) == 1_234_979
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert net.fingerprint == fingerprint(net)


TINY = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
}


@pytest.fixture
def tiny() -> Denoiser:
    torch.manual_seed(0)
    return PRECONDITIONERS["EDMPrecond"](**TINY).eval()


def test_round_trip(tiny, tmp_path: Path):
    path = tmp_path / "net.safetensors"
    save_backbone(path, "EDMPrecond", TINY, tiny.state_dict())
    again = load_backbone(path)
    assert again.fingerprint == fingerprint(tiny)
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x, 1.0), tiny(x, 1.0))
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]


def test_fingerprint_depends_on_every_weight(tiny):
    before = fingerprint(tiny)
    assert fingerprint(tiny) == before
    for parameter in tiny.parameters():
        with torch.no_grad():
            old = parameter.view(-1)[-1].clone()
            parameter.view(-1)[-1] += 1e-3
            assert fingerprint(tiny) != before
            parameter.view(-1)[-1] = old
    assert fingerprint(tiny) == before


@pytest.mark.parametrize(
    "damage", ["missing", "truncated", "text", "no metadata", "precond", "kwargs", "json", "weights"]
)
def test_bad_files_are_named(damage, tiny, tmp_path: Path):
    path = tmp_path / "bad.safetensors"
    weights = tiny.state_dict()
    if damage == "truncated":
        path.write_bytes(asset("edm-faces64-mini.safetensors").read_bytes()[:100_000])
    elif damage == "text":
        path.write_text("not weights")
    elif damage in ("no metadata", "json"):
        from safetensors.torch import save_file

        save_file(weights, path, None if damage == "no metadata" else {"precond": "EDMPrecond", "kwargs": "{"})
    elif damage == "precond":
        save_backbone(path, "NoSuchPrecond", TINY, weights)
    elif damage == "kwargs":
        save_backbone(path, "EDMPrecond", TINY | {"no_such_option": 1}, weights)
    elif damage == "weights":
        save_backbone(path, "EDMPrecond", TINY | {"model_channels": 16}, weights)
    with pytest.raises(InputError) as error:
        load_backbone(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_name_is_named():
    with pytest.raises(InputError, match="no-such-backbone"):
        load_backbone("no-such-backbone")
