"""The registry of published networks: facts that our own networks and the golden files confirm."""

import hashlib
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from aid_control.errors import InputError
from aid_control.images.backbones.edm2 import EDM2Precond
from aid_control.images.backbones.precond import PRECONDITIONERS
from aid_control.images.backbones.registry import load_backbone, save_backbone
from aid_control.images.published import CHANNELS, LICENCE, check_hash, names, published

EDM = [name for name in names() if name.startswith("edm-")]

# as measured on the original networks, in millions to one digit, and in entries of the state
MILLIONS = {"xxs": 31.3, "xs": 124.7, "s": 280.2, "m": 497.8, "l": 777.5, "xl": 1119.3, "xxl": 1523.2}
ENTRIES = {"edm-ffhq-64x64-uncond-vp": 553, "edm-ffhq-64x64-uncond-ve": 563}


def test_names_are_distinct_and_known():
    assert len(names()) == len(set(names())) == 9 + 3 + 51 and len(EDM) == 9
    for name in names():
        one = published(name)
        assert one == published(one.file) and one.name == name and one.file == name + ".pkl"
        assert one.licence == LICENCE and "NC" in one.licence and one.page.endswith(f"NVlabs/{one.family}")
        assert one.size is None and one.sha256 is None  # nobody told us
        assert one.label_dim in (0, 10, 1000) and (one.label_dim == 0) == ("uncond" in name)


@pytest.mark.parametrize("name", EDM)
def test_edm_architecture_has_the_parameters_that_are_claimed(name):
    one = published(name)
    with torch.device("meta"):
        net = PRECONDITIONERS[one.class_name](**one.kwargs)
    assert sum(p.numel() for p in net.parameters()) == one.parameters
    assert len(net.state_dict()) == ENTRIES.get(name, len(net.state_dict()))
    assert tuple(net.shape) == one.shape and net.label_dim == one.label_dim


def test_baselines_say_only_what_is_known():
    one = published("baseline-imagenet-64x64-cond-adm")
    assert one.class_name in PRECONDITIONERS and one.kwargs is None and one.parameters is None
    assert one.folder == "edm/pretrained/baseline"


@pytest.mark.parametrize("size", CHANNELS)
def test_edm2_sizes_agree_with_the_measured_ones(size):
    one = published(f"edm2-img512-{size}-2147483-0.100")
    assert round(one.parameters / 1e6, 1) == MILLIONS[size]
    assert one.kwargs["model_channels"] == CHANNELS[size] and one.shape == (4, 64, 64) and one.codec == "stability"
    pixels = published(f"edm2-img64-{size}-2147483-0.100")
    assert pixels.shape == (3, 64, 64) and pixels.image_resolution == 64 and pixels.codec is None
    uncond = published(f"edm2-img512-{size}-uncond-2147483-0.100")
    assert uncond.label_dim == 0 and uncond.kwargs["label_dim"] == 0


@pytest.mark.parametrize("name", ["img512-xxs", "img512-m", "img512-xxl", "img64-s", "img64-xl", "img512-s-uncond"])
def test_edm2_architecture_has_the_parameters_that_are_claimed(name):
    one = published(f"edm2-{name}-2147483-0.100")
    with torch.device("meta"):
        net = EDM2Precond(**one.kwargs)
    assert sum(p.numel() for p in net.parameters()) == one.parameters
    assert tuple(net.shape) == one.shape and net.label_dim == one.label_dim


def test_differences_of_edm2_networks_are_those_of_the_golden_ones(shared):
    """Labels cost label_dim * 4 width weights, a colour 9 width at either end."""
    shapes = {}
    for name in ("latent_cond", "pixel_cond"):
        with safe_open(shared / "reference" / "edm2" / f"{name}.safetensors", "pt") as file:
            shapes[name] = {k: tuple(file.get_slice(k).get_shape()) for k in file.keys()}  # noqa: SIM118
    first = {k: s["param/unet.enc.16x16_conv.weight"] for k, s in shapes.items()}
    last = {k: s["param/unet.out_conv.weight"] for k, s in shapes.items()}
    assert first["latent_cond"][1:] == (5, 3, 3) and first["pixel_cond"][1:] == (4, 3, 3)
    assert last["latent_cond"][0] == 4 and last["pixel_cond"][0] == 3
    width = CHANNELS["s"]
    latent, pixel = (published(f"edm2-{kind}-s-1-0.100").parameters for kind in ("img512", "img64"))
    assert latent - pixel == 9 * width * 2
    # the small one has two levels, so its embedding is 2 width wide; the published ones have four
    label = [s for k, s in shapes["latent_cond"].items() if k.endswith("emb_label.weight") and k.startswith("param/")]
    assert label == [(2 * first["latent_cond"][0], 10)]
    uncond = published("edm2-img512-s-uncond-1-0.100").parameters
    assert latent - uncond == 1000 * 4 * width


@pytest.mark.parametrize(
    "name",
    ["", "edm", "edm-ffhq-64x64-uncond", "edm-ffhq-64x64-cond-vp", "edm2-img512-xs", "edm2-img512-xs-1-0.289",
     "edm2-img512-xs-1-0.000", "edm2-img256-xs-1-0.100", "edm2-img512-huge-1-0.100", "edm2-img512-xs-1-0.1000",
     "../edm2-img512-xs-1-0.100", "edm2-img512-xs-1-0.100\n", "edm2-img512-xs-١-0.100"],
)  # fmt: skip
def test_other_names_are_refused_in_one_sentence(name):
    with pytest.raises(InputError, match="no published network") as error:
        published(name)
    assert "\n" not in str(error.value)


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text_is_a_network_or_an_input_error(name):
    try:
        one = published(name)
    except InputError:
        return
    assert re.fullmatch(r"[a-z0-9.-]+", one.name)


def test_check_hash(tmp_path):
    path = tmp_path / "net.pkl"
    path.write_bytes(b"weights")
    good = hashlib.sha256(b"weights").hexdigest()
    check_hash(path, good)
    check_hash(path, f" {good.upper()}\n")
    with pytest.raises(InputError, match="damaged, or another one"):
        check_hash(path, good[:-1] + ("0" if good[-1] != "0" else "1"))
    for bad in ("", good[:-1], "g" * 64):
        with pytest.raises(InputError, match="64 hexadecimal"):
            check_hash(path, bad)
    with pytest.raises(InputError, match="no such file"):
        check_hash(tmp_path / "gone", good)


def test_a_published_name_needs_a_file_of_that_network(tmp_path, shared):
    with pytest.raises(InputError, match="not shipped; obtain https://.*/edm/pretrained/edm-ffhq-64x64-uncond-vp.pkl"):
        load_backbone("edm-ffhq-64x64-uncond-vp")
    with pytest.raises(InputError, match="no published network"):
        load_backbone("edm-faces-unheard-of", path=tmp_path / "x.pkl")
    small = shared / "reference" / "edm" / "song_vp.pkl"
    with pytest.raises(InputError, match="260,899 parameters; expected edm-ffhq-64x64-uncond-vp.*61,805,571"):
        load_backbone("edm-ffhq-64x64-uncond-vp", path=small)
    with pytest.raises(InputError, match="sha256"):
        load_backbone(small, sha256="0" * 64)
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    assert load_backbone(small, sha256=digest).shape == (3, 16, 16)


def test_a_converted_published_network_loads_by_its_name(tmp_path):
    known = published("edm2-img64-xxs-0000001-0.100")
    assert known.kwargs is not None
    torch.manual_seed(0)
    net = EDM2Precond(**known.kwargs)
    save_backbone(tmp_path / "net.safetensors", "EDM2Precond", known.kwargs, net.state_dict())
    loaded = load_backbone(known.name, path=tmp_path / "net.safetensors")
    assert loaded.label_dim == 1000 and sum(p.numel() for p in loaded.parameters()) == known.parameters
