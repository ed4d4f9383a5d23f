"""Codecs, latent masks, latent data sets, and inpainting through them."""

import io
import json
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aid_control.checkpoint import load_tensors, save_tensors
from aid_control.errors import InputError
from aid_control.images.archive import DatasetWriter, read_labels
from aid_control.images.backbones.edm2 import EDM2Precond
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.data import ImageSource, to_float, to_uint8
from aid_control.images.guidance import Guidance
from aid_control.images.inpaint import inpaint
from aid_control.images.latents import StabilityCodec, TinyCodec, inpaint_latent, load_codec
from aid_control.images.latents.dataset import LatentSource, encode_dataset, write_latents
from aid_control.images.latents.masks import fill, latent_mask, paste
from aid_control.images.latents.pipeline import observe_latent
from aid_control.images.latents.tiny import fit_codec, save_codec
from aid_control.images.masks import make_mask
from aid_control.noise import generator, normal

SIDE = 64


def scenes(n, side=SIDE, seed=0):
    """Smooth pictures: sums of a few cosines, in [-1, 1]."""
    rng = generator(seed)
    at = torch.linspace(0, 1, side)
    frequency, phase = torch.rand(n, 3, 2, 1, generator=rng) * 6, torch.rand(n, 3, 2, 1, generator=rng) * 6
    waves = torch.cos(frequency * at + phase)
    return waves[:, :, 0, :, None] * waves[:, :, 1, None, :]


def seeds_of(n):
    return list(range(n))


@pytest.fixture(scope="module")
def codec():
    return fit_codec(to_uint8(scenes(256)), iterations=250, width=16, batch=16)


@pytest.fixture(scope="module")
def held_out():
    return scenes(12, seed=1)


@pytest.fixture(scope="module")
def backbone(codec):
    """The exact denoiser of Gaussian latents with the moments of this codec's."""
    latents = codec.encode(scenes(512, seed=2)).flatten(1).double()
    return GaussianBackbone.from_covariance(latents.mean(0), latents.T.cov(), (4, SIDE // 8, SIDE // 8), floor=1e-4)


@pytest.fixture(scope="module")
def box():
    return make_mask("box", SIDE, 0)


# codecs


def test_a_trained_codec_reconstructs_and_its_latents_have_the_scale(codec, held_out):
    latents = codec.encode(scenes(256), seeds_of(256))
    assert latents.shape == (256, 4, 8, 8)
    assert latents.mean((0, 2, 3)).abs().max() < 0.05 and (latents.std((0, 2, 3)) - 0.5).abs().max() < 0.05
    mean, std = codec.moments(scenes(256)).chunk(2, dim=1)
    spread = codec.scale**2 * (mean.var((0, 2, 3)) + std.square().mean((0, 2, 3)))
    assert torch.allclose(spread, torch.tensor(0.25), rtol=1e-3)
    back = codec.decode(codec.encode(held_out))
    assert back.shape == held_out.shape and back.abs().max() <= 1
    assert (back - held_out).square().mean() < 0.15 * held_out.var()


def test_training_is_a_pure_function_and_leaves_the_global_state_alone():
    images = to_uint8(scenes(8, 16))
    torch.manual_seed(1)
    first, after = fit_codec(images, 3, 4, width=4), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), after)
    again, other = fit_codec(images, 3, 4, width=4), fit_codec(images, 3, 4, width=4, seed=1)
    one = to_float(images[:1])
    assert torch.equal(first.moments(one), again.moments(one))
    assert not torch.equal(first.moments(one), other.moments(one))


def test_draws_belong_to_seeds_and_not_to_batches(codec, held_out):
    moments = codec.moments(held_out)
    whole = codec.draw(moments, [5, 6, 5, *range(9)])
    assert torch.equal(whole[1], codec.draw(moments[1:2], [6])[0])
    assert not torch.equal(whole[1], codec.draw(moments[1:2], [7])[0])
    same = codec.draw(moments[:1].expand(2, -1, -1, -1), [5, 5])
    assert torch.equal(same[0], same[1])
    noise = (whole - codec.draw(moments)) / codec.scale.reshape(-1, 1, 1) / moments[:, 4:]
    assert torch.allclose(noise[0], noise[2], atol=1e-4)
    # not the noise that the sampler starts from with this seed
    assert not torch.allclose(noise[1], normal((4, 8, 8), 6), atol=0.1)


@settings(deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 5))
def test_draws_have_the_moments_they_are_drawn_from(seed, std):
    codec = TinyCodec(4, raw_mean=[1.0, -2.0, 0.0, 3.0], raw_std=[2.0, 0.5, 1.0, 4.0])
    moments = torch.cat([torch.full((1, 4, 30, 30), 1.5), torch.full((1, 4, 30, 30), std)], 1)
    drawn = (codec.draw(moments, [seed]) - codec.bias.reshape(-1, 1, 1)) / codec.scale.reshape(-1, 1, 1)
    assert (drawn.mean((0, 2, 3)) - 1.5).abs().max() < 6 * std / 30
    assert (drawn.std((0, 2, 3)) / std - 1).abs().max() < 0.2


def test_save_and_load(tmp_path, codec, held_out):
    path = tmp_path / "codec.safetensors"
    save_codec(path, codec)
    loaded = load_codec(path)
    assert torch.equal(loaded.moments(held_out), codec.moments(held_out))
    assert torch.allclose(loaded.encode(held_out, seeds_of(12)), codec.encode(held_out, seeds_of(12)), atol=1e-6)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(InputError, match="not a whole safetensors"):
        load_codec(path)
    for metadata, message in (({}, "not a codec"), ({"kind": "aid-tiny-codec", "config": "{}"}, "do not fit")):
        save_tensors(path, {"a": torch.zeros(1)}, metadata)
        with pytest.raises(InputError, match=message):
            load_codec(path)


def test_codecs_refuse_what_does_not_fit(codec, held_out):
    for shape in ((1, 3, 12, 16), (1, 1, 16, 16), (3, 16, 16), (0, 3, 16, 16)):
        with pytest.raises(InputError, match=r"expected \(B, 3, H, W\) with multiples of 8"):
            codec.encode(torch.zeros(shape))
    with pytest.raises(InputError, match="NaN"):
        codec.encode(held_out * torch.nan)
    with pytest.raises(InputError, match="NaN"):
        codec.decode(torch.full((1, 4, 2, 2), torch.inf))
    with pytest.raises(InputError, match=r"expected \(B, 4"):
        codec.decode(torch.zeros(1, 8, 2, 2))
    with pytest.raises(InputError, match=r"expected \(B, 8"):
        codec.draw(torch.zeros(1, 4, 2, 2))
    with pytest.raises(InputError, match="1 seeds for 12"):
        codec.encode(held_out, [0])
    for images in (torch.zeros(2, 3, 12, 12, dtype=torch.uint8), torch.zeros(2, 3, 16, 16)):
        with pytest.raises(InputError, match="expected"):
            fit_codec(images)
    with pytest.raises(InputError, match="diverged"):
        fit_codec(to_uint8(scenes(4, 16)), iterations=4, batch=2, width=4, lr=1e30)
    for mean, std in (([0.0] * 4, [0.0] * 4), ([0.0] * 4, [1.0] * 3), ([0.0], [float("nan")])):
        with pytest.raises(ValueError, match="a mean and a deviation > 0"):
            TinyCodec(4, raw_mean=mean, raw_std=std)


def tiny_vae(**kwargs):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    levels = 4
    config = dict(
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=(4,) * levels, layers_per_block=1, norm_num_groups=2, latent_channels=4, sample_size=SIDE,
    )  # fmt: skip
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(**{**config, **kwargs})


def test_stability_constants():
    """EDM2's, as measured."""
    codec = StabilityCodec()
    assert torch.allclose(codec.scale, torch.tensor([0.1199, 0.1082, 0.1348, 0.1524]), atol=5e-5)
    assert torch.allclose(codec.bias, torch.tensor([-0.6966, -0.3517, -0.0162, 0.3277]), atol=5e-5)
    assert (codec.channels, codec.factor) == (4, 8)


def test_stability_codec_hands_the_vae_pixels_from_zero_to_one(held_out):
    vae = tiny_vae()
    codec = StabilityCodec(vae, batch=5)
    assert not list(codec.parameters()) and not any(p.requires_grad for p in vae.parameters())
    moments = codec.moments(held_out)
    with torch.no_grad():
        want = vae.encode((held_out + 1) / 2).latent_dist
        other = vae.encode(held_out).latent_dist
    assert torch.allclose(moments, torch.cat([want.mean, want.std], 1), atol=1e-5)
    assert not torch.allclose(moments[:, :4], other.mean, atol=1e-3)
    # diffusers' scaling factor plays no part: raw mean times the scale, plus the bias
    row = codec.scale.reshape(-1, 1, 1), codec.bias.reshape(-1, 1, 1)
    assert torch.allclose(codec.encode(held_out), want.mean * row[0] + row[1], atol=1e-5)
    latents = codec.encode(held_out, seeds_of(12))
    with torch.no_grad():
        pixels = vae.decode((latents - row[1]) / row[0]).sample
    assert torch.allclose(codec.decode(latents), pixels.clip(0, 1) * 2 - 1, atol=1e-5)
    assert torch.allclose(codec.encode(held_out[3:4], [3]), latents[3:4], atol=1e-5)


def test_stability_codec_from_a_folder(tmp_path, held_out):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "vae")
    first = StabilityCodec(vae).moments(held_out[:1])
    assert torch.equal(StabilityCodec(tmp_path / "vae").moments(held_out[:1]), first)
    weights = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (tmp_path / "empty").mkdir()
    for name in (tmp_path / "vae", tmp_path / "empty", "nobody/such-vae-here"):
        with pytest.raises(InputError, match="no Stability VAE on this machine") as error:
            StabilityCodec(name).moments(held_out[:1])
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="factor 8 with 3 latent"):
        StabilityCodec(tiny_vae(latent_channels=3))


def test_without_diffusers_it_says_so(monkeypatch, held_out):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match="pip install diffusers"):
        StabilityCodec().encode(held_out)


# masks

MASKS = st.tuples(st.sampled_from(["box", "random_box", "half", "random", "freeform"]), st.integers(0, 1000))


@settings(deadline=None)
@given(MASKS, st.sampled_from([2, 4, 8]), st.integers(0, 2))
def test_a_cell_is_known_only_if_all_its_pixels_are(mask, factor, grow):
    mask = make_mask(mask[0], SIDE, mask[1])
    cells = latent_mask(mask[None], factor, grow)
    n = SIDE // factor
    blocks = mask.reshape(n, factor, n, factor).amin((1, 3))
    want = torch.ones(n, n)
    for i, j in (blocks == 0).nonzero().tolist():
        want[max(i - grow, 0) : i + grow + 1, max(j - grow, 0) : j + grow + 1] = 0
    assert torch.equal(cells, want[None, None])
    assert torch.equal(latent_mask(mask, factor, grow), want[None])
    assert float(cells.min()) == 0


def test_latent_masks_refuse(box):
    with pytest.raises(InputError, match="that 8 divides"):
        latent_mask(torch.ones(1, 1, 12, 16), 8)
    with pytest.raises(InputError, match="grow is -1"):
        latent_mask(box[None], 8, -1)


@settings(deadline=None)
@given(MASKS, st.integers(0, 9), st.integers(0, 2**31))
def test_known_pixels_are_pasted_bit_by_bit_and_the_far_hole_is_left_alone(mask, blend, seed):
    mask = make_mask(mask[0], SIDE, mask[1])[None]
    y, decoded = normal((2, 1, 3, SIDE, SIDE), seed).clip(-1, 1)
    y = torch.where(mask.bool(), y, torch.nan)
    out = paste(decoded, y, mask, blend)
    known = mask.bool().expand_as(y)
    assert torch.equal(out[known], y[known]) and torch.isfinite(out).all() and out.abs().max() <= 1
    window = torch.nn.functional.max_pool2d(mask, 2 * blend + 1, stride=1, padding=blend)
    far = (window == 0).expand_as(y)
    assert torch.equal(out[far], decoded[far])
    if not blend:
        assert torch.equal(out[~known], decoded[~known])


def test_blending_carries_a_constant_error_and_fades_it():
    """If the decoder is off by c on all known pixels, the hole at distance k is moved by (1 - k/(n + 1)) c."""
    mask = torch.ones(1, 1, 16, 16)
    mask[..., 8:] = 0
    y, decoded = torch.full((1, 3, 16, 16), 0.5), torch.full((1, 3, 16, 16), 0.1)
    row = paste(decoded, y, mask, 3)[0, 0, 4]
    assert torch.allclose(row[8:13], torch.tensor([0.4, 0.3, 0.2, 0.1, 0.1]), atol=1e-6)
    one = paste(torch.full((1, 3, 16, 16), -1.0), y, mask * 0, 3)
    assert torch.equal(one, torch.full((1, 3, 16, 16), -1.0))


def test_paste_refuses(box):
    y = torch.zeros(1, 3, SIDE, SIDE)
    for decoded, mask in ((y[..., :16], box[None]), (y, box), (y, box.expand(1, 3, SIDE, SIDE))):
        with pytest.raises(InputError, match="expected two of one shape"):
            paste(decoded, y, mask)
    with pytest.raises(InputError, match="blend is -1"):
        paste(y, y, box[None], -1)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**31))
def test_filling_stays_within_what_is_known(height, width, coverage, seed):
    mask = (torch.rand(2, 1, height, width, generator=generator(seed)) < coverage).float()
    y = normal((2, 3, height, width), seed, 1)
    filled = fill(torch.where(mask.bool(), y, torch.nan), mask)
    known = mask.bool().expand_as(y)
    assert torch.equal(filled[known], y[known]) and torch.isfinite(filled).all()
    assert filled.abs().max() <= max(float((y * mask).abs().max()), 0.0) + 1e-4
    assert torch.equal(fill(y[:1], mask[:1]), filled[:1])
    flat = fill(0.7 * mask, mask)
    assert torch.allclose(flat, 0.7 * mask.amax((1, 2, 3), keepdim=True).expand_as(flat), atol=1e-5)


def test_filling_calms_the_known_cells(codec, held_out, box):
    """Latents of known cells are nearer to the whole picture's than with a grey hole."""
    mask = box.expand(12, 1, SIDE, SIDE)
    cells, whole = latent_mask(mask, 8), codec.encode(held_out)
    errors = [((codec.encode(x) - whole) * cells).square().sum() for x in (fill(held_out, mask), held_out * mask)]
    assert errors[0] < 0.7 * errors[1]


# data sets


def test_latent_data_set_round_trip_with_labels(tmp_path, codec, held_out):
    pictures = tmp_path / "pictures.zip"
    with DatasetWriter(pictures, "img{:08d}.png") as writer:
        for i, image in enumerate(to_uint8(held_out)):
            buffer = io.BytesIO()
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
            writer.add(buffer.getvalue(), i % 3)
    path = tmp_path / "latents.zip"
    assert encode_dataset(ImageSource(pictures, SIDE), codec, path, batch=5) == 12
    source = LatentSource(path, 4)
    want = codec.moments(to_float(ImageSource(pictures).stack()))
    assert len(source) == 12 and torch.allclose(source.moments(), want, atol=1e-5)
    assert source.labels().tolist() == read_labels(path).tolist() == [i % 3 for i in range(12)]
    with zipfile.ZipFile(path) as archive:  # EDM2's names and arrays
        assert archive.namelist()[0] == "00000/img-mean-std-00000000.npy"
        array = np.load(io.BytesIO(archive.read(source.names[11])), allow_pickle=False)
    assert array.dtype == np.float32 and array.shape == (8, 8, 8)
    drawn = source.draw(codec, [3, 7], [1, 2])
    assert torch.allclose(drawn[1], source.draw(codec, [7], [2])[0], atol=1e-6)
    assert not torch.equal(drawn, source.draw(codec, [3, 7], [1, 3]))
    assert torch.equal(source.draw(codec, [3]), codec.draw(source.moments([3])))


def test_writing_refuses_and_leaves_nothing(tmp_path):
    good = torch.ones(8, 2, 2)
    bad_std = good.clone()
    bad_std[5] = -1
    for moments, labels, message in (
        ([], None, "nothing was added"),
        ([good, torch.ones(8, 2, 3)], None, "like the others"),
        ([good * torch.nan], None, "NaN"),
        ([bad_std], None, "negative deviation"),
        ([torch.ones(7, 2, 2)], None, "expected floats"),
        ([good, good], [1], "expected one a picture"),
        ([good], [1, 2], "expected one a picture"),
    ):
        with pytest.raises(InputError, match=message):
            write_latents(tmp_path / "x.zip", moments, labels)
        assert not list(tmp_path.iterdir())


def npy(array, **kwargs):
    buffer = io.BytesIO()
    np.save(buffer, array, **kwargs)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a readable array"),
        (b"text", "not a readable array"),
        (npy(np.zeros((8, 2, 2), np.float32))[:-5], "not a readable array"),
        (npy(np.array([{}, print], dtype=object), allow_pickle=True), "not a readable array"),
        (npy(np.zeros((8, 2, 2), np.float32)).replace(b"(8, 2, 2), ", b"(8, 2, 1 << "), "not a readable array"),
        (npy(np.zeros((8, 2, 2), np.float32)).replace(b"(8, 2, 2), }", b"(8, 9**9)  }"), "not a readable array"),
        (npy(np.zeros((8, 2, 2), np.float32)).replace(b"8, 2, 2), } ", b"9999999,99)}"), "not a readable array"),
        (npy(np.zeros((8, 2, 2), np.int64)), "expected floats"),
        (npy(np.zeros((8, 2), np.float32)), "expected floats"),
        (npy(np.zeros((7, 2, 2), np.float32)), "expected floats"),
        (npy(np.full((8, 2, 2), np.nan, np.float32)), "holds NaN"),
        (npy(np.full((8, 2, 2), -1, np.float32)), "negative deviation"),
        (npy(np.zeros((6, 2, 2), np.float32)), "6 channels; expected 8"),
    ],
)
def test_hostile_latent_members(tmp_path, data, message):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", data)
    with pytest.raises(InputError, match=message) as error:
        LatentSource(path, 4)[0]
    assert "a.npy" in str(error.value)


def test_hostile_latent_archives(tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 not really")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("a.png", b"")
    for name, message in (
        ("bad.zip", "not a whole zip"),
        ("none.zip", "holds no latents"),
        ("gone.zip", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            LatentSource(tmp_path / name)
    write_latents(tmp_path / "x.zip", [torch.ones(8, 2, 2)] * 2)
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[data.index(b"NUMPY") + 130] ^= 0xFF
    (tmp_path / "hurt.zip").write_bytes(data)
    with pytest.raises(InputError, match="cannot be read"):
        LatentSource(tmp_path / "hurt.zip")[0]


# inpainting


@pytest.fixture(scope="module")
def guidance():
    """Guidance that does something: what starts at zero is set at random."""
    module = Guidance(SIDE // 8, channels=4, bands=3, width=8)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.add_(0.05 * normal(parameter.shape, 3, i))
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("solver", "blend"), [("euler", 0), ("heun", 2)])
def test_known_pixels_are_exact_and_the_batch_does_not_matter(
    codec, backbone, guidance, held_out, box, guided, solver, blend
):
    mask = torch.stack([box, make_mask("half", SIDE, 0), make_mask("freeform", SIDE, 1)])
    y, known = held_out[:3], mask.bool().expand(3, 3, SIDE, SIDE)
    parts = (backbone, codec, guidance if guided else None)
    options = dict(steps=6, solver=solver, blend=blend, base="projected")
    whole = inpaint_latent(*parts, y, mask, seeds=[5, 6, 7], **options)
    assert torch.equal(whole[known], y[known]) and torch.isfinite(whole).all() and whole.abs().max() <= 1
    single = inpaint_latent(*parts, y[1:2], mask[1:2], seeds=[6], **options)
    assert (whole[1:2] - single).abs().max() < 1e-4
    other = inpaint_latent(*parts, y[1:2], mask[1:2], seeds=[8], **options)
    assert (other - single).abs().max() > 0.01
    again = inpaint_latent(*parts, torch.where(known, y, torch.nan), mask, seeds=[5, 6, 7], **options)
    assert torch.equal(again, whole)


def test_a_conditional_edm2_network_is_a_latent_backbone_too(codec, shared):
    path = shared / "reference" / "edm2" / "latent_cond.safetensors"
    tensors, metadata = load_tensors(path)
    net = EDM2Precond(**json.loads(metadata["kwargs"])).eval().requires_grad_(False)
    net.load_state_dict({k.removeprefix("param/"): v for k, v in tensors.items() if k.startswith("param/")})
    side = 8 * net.img_resolution
    y, mask = scenes(2, side), make_mask("box", side, 0).expand(2, 1, side, side)
    labels = torch.eye(net.label_dim)
    first, second = (inpaint_latent(net, codec, None, y, mask, 2, class_labels=labels[[0, k]]) for k in (1, 2))
    assert torch.equal(first * mask, y * mask) and torch.isfinite(first).all()
    assert torch.equal(first[0], second[0]) and (first[1] - second[1]).abs().max() > 1e-3


def test_guidance_acts_in_the_latents(codec, backbone, guidance, held_out, box):
    arguments = (held_out[:1], box[None])
    plain, guided = (inpaint_latent(backbone, codec, g, *arguments, steps=4) for g in (None, guidance))
    assert (plain - guided).abs().max() > 0.01


def test_it_is_what_its_parts_give(codec, backbone, guidance, held_out, box):
    y, mask = held_out[:2], box.expand(2, 1, SIDE, SIDE)
    known, cells = observe_latent(codec, y, mask, [3, 4], grow=1)
    assert torch.equal(cells, latent_mask(mask, 8, 1)) and not (known * (1 - cells)).any()
    assert torch.equal(known, codec.encode(fill(y, mask), [3, 4]) * cells)
    seen = []
    whole = inpaint_latent(
        backbone, codec, guidance, y, mask, 4, "euler", [3, 4], 2, 1, callback=lambda k, x: seen.append((k, x.shape))
    )
    latents = inpaint(backbone, guidance, known, cells, 4, "euler", [3, 4])
    assert torch.equal(whole, paste(codec.decode(latents), y, mask, 2))
    assert seen == [(k, (2, 4, SIDE // 8, SIDE // 8)) for k in range(4)]


def test_the_projected_flow_sees_the_known_cells(codec, backbone, held_out):
    mask = make_mask("half", SIDE, 0).expand(12, 1, SIDE, SIDE)
    errors = []
    for base in ("flow", "projected"):
        out = inpaint_latent(backbone, codec, None, held_out, mask, base=base, steps=8)
        errors.append(float(((out - held_out) * (1 - mask)).square().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_scattered_pixels_leave_no_cell_known_and_are_still_pasted(codec, backbone, held_out):
    mask = make_mask("random", SIDE, 0, 0.5)[None]
    known, cells = observe_latent(codec, held_out[:1], mask, [0])
    assert not cells.any() and not known.any()
    out = inpaint_latent(backbone, codec, None, held_out[:1], mask, steps=2)
    assert torch.equal(out * mask, held_out[:1] * mask)


def test_inpainting_refuses_what_does_not_fit(codec, backbone, held_out, box):
    y, mask = held_out[:1], box[None]
    for arguments, message in (
        ((y[..., :32], mask), r"expected \(B, 3, 64, 64\)"),
        ((y, mask[..., :32]), "mask of image: shape"),
        ((y, torch.ones_like(mask)), "nothing to inpaint"),
        ((y, 0.5 * mask), "holds the value 0.5"),
        ((y * torch.nan, mask), "known pixels hold NaN"),
    ):
        with pytest.raises(InputError, match=message):
            inpaint_latent(backbone, codec, None, *arguments)
    for options, message in (
        ({"seeds": [1, 2]}, "2 seeds for 1"),
        ({"steps": 0}, "steps is 0"),
        ({"grow": -1}, "grow"),
    ):
        with pytest.raises(InputError, match=message):
            inpaint_latent(backbone, codec, None, y, mask, **options)
    three = GaussianBackbone((3, 8, 8), 1)
    with pytest.raises(InputError, match="backbone of 3 channels, codec of 4"):
        inpaint_latent(three, codec, None, y, mask)
