"""LatentPaint: what is mixed, what the module may change, its training, and denoisers without features."""

from __future__ import annotations

import pytest
import torch

from aid_control.checkpoint import load_state, save_state, save_tensors
from aid_control.errors import InputError
from aid_control.images.backbones.edm2 import EDM2Precond
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.precond import EDMPrecond
from aid_control.images.backbones.registry import asset, load_backbone
from aid_control.images.backbones.wrappers import Counted, OneByOne
from aid_control.images.data import ImageSource, to_float
from aid_control.images.guided import autoguidance, classifier_free
from aid_control.images.masks import make_mask
from aid_control.images.methods.latentpaint import KEY, bottleneck_channels, latentpaint, mixed_denoise
from aid_control.images.methods.paste import paste
from aid_control.images.methods.propagation import Propagation, load_propagation, save_propagation
from aid_control.images.methods.propagation_training import PropagationTrainer, hole_loss
from aid_control.images.methods.task import ancestral, prepare
from aid_control.images.training import InpaintingData

SIZES = {"img_resolution": 16, "img_channels": 3, "model_channels": 32, "channel_mult": (1, 2), "num_blocks": 1}
NETS = {
    "song": lambda **k: EDMPrecond(model_type="SongUNet", attn_resolutions=(8,), **SIZES, **k),
    "song_skip": lambda **k: EDMPrecond(model_type="SongUNet", encoder_type="skip", decoder_type="skip", **SIZES, **k),
    "song_residual": lambda **k: EDMPrecond(model_type="SongUNet", encoder_type="residual", **SIZES, **k),
    "adm": lambda **k: EDMPrecond(model_type="DhariwalUNet", **(SIZES | {"model_channels": 64}), **k),
    "edm2": lambda **k: EDM2Precond(**(SIZES | {"model_channels": 64}), **k),
}


def build(name, **kwargs):
    """A small network that is no identity: fresh ones end in zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETS[name](**kwargs).eval().requires_grad_(False)
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    net.fingerprint = name
    return net


def randomised(channels, seed=0):
    """A module that does something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = Propagation(channels, width=16)
        torch.nn.init.normal_(module.conv_out.weight, std=0.1)
    return module.eval().requires_grad_(False)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def mini():
    return load_backbone()


@pytest.fixture(scope="module")
def faces():
    return ImageSource(asset("faces"), 64).stack()


def half(n, size=16):
    return make_mask("half", size, 0).expand(n, 1, size, size)


@pytest.mark.parametrize("name", NETS)
def test_where_all_is_known_the_network_sees_the_known_image_only(name):
    net = build(name)
    module, x, known = randomised(bottleneck_channels(net)), randn(2, 3, 16, 16), randn(2, 3, 16, 16, seed=1)
    sigma = torch.tensor([0.7, 2.0])
    skip = net.coefficients(sigma)[0].reshape(-1, 1, 1, 1)
    ones = torch.ones(2, 1, 16, 16)
    mixed = mixed_denoise(net, x, known, ones, sigma, module=module)
    # the preconditioner's own skip of x is no feature
    torch.testing.assert_close(mixed - skip * x, net(known, sigma) - skip * known, rtol=1e-5, atol=1e-5)
    assert torch.equal(mixed_denoise(net, known, known, ones, sigma, module=module), net(known, sigma))
    assert torch.equal(mixed_denoise(net, x, known, 1 - ones, sigma), net(x, sigma))


@pytest.mark.parametrize("name", NETS)
def test_mixing_and_the_module_change_something(name):
    net, x, known = build(name), randn(1, 3, 16, 16), randn(1, 3, 16, 16, seed=1)
    plain = mixed_denoise(net, x, known, half(1), 1.0)
    moved = mixed_denoise(net, x, known, half(1), 1.0, module=randomised(bottleneck_channels(net)))
    assert (plain - net(x, 1.0)).abs().max() > 1e-3 and (moved - plain).abs().max() > 1e-3
    assert torch.equal(net(x, 1.0), build(name)(x, 1.0))  # no hook stays behind


def test_the_module_leaves_known_cells_and_fits_any_scale():
    module, h = randomised(8), randn(2, 8, 4, 4)
    known = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(2)).round()
    sigma = torch.tensor([0.1, 5.0])
    out = module(h, known, sigma)
    assert torch.equal(out * known, h * known) and bool(((out - h).abs().sum(1, True) * (1 - known)).any())
    torch.testing.assert_close(module(1000 * h, known, sigma), 1000 * out, rtol=1e-4, atol=1e-2)
    assert (module(h, known, sigma.flip(0)) - out).abs().max() > 1e-4  # it knows the noise level
    # a known cell in one corner reaches the opposite one of an 8x8 bottleneck
    wide, far = randn(1, 8, 8, 8), torch.zeros(1, 1, 8, 8)
    other = wide.clone()
    other[..., 0, 0] += torch.linspace(-1, 1, 8)
    ends = [module(z / z.norm(), far, sigma[:1]) - z / z.norm() for z in (wide, other / other.norm() * wide.norm())]
    assert (ends[0] - ends[1])[..., 7, 7].abs().max() > 1e-7


def test_size():
    assert Propagation(256).parameter_count() < 0.01 * 61_805_571  # the published 64x64 backbone
    assert Propagation(1792).parameter_count() < 600_000  # the widest published one


def test_untrained_is_mixing_only_and_known_pixels_are_exact(mini, faces):
    mask = torch.stack([make_mask("freeform", 64, 3), make_mask("box", 64, 0)])
    y = torch.where(mask.bool(), to_float(faces[:2]), torch.nan)  # what the hole holds does not matter
    counted = Counted(mini)
    plain = latentpaint(counted, y, mask, 4, seeds=[3, 4])
    assert torch.equal(plain, latentpaint(mini, y, mask, 4, seeds=[3, 4], module=Propagation(64)))
    assert torch.isfinite(plain).all() and torch.equal(plain[mask.expand_as(y) == 1], y[mask.expand_as(y) == 1])
    assert counted.forward_calls == 2 * 4 * 2 and counted.backward_calls == 0
    assert (latentpaint(mini, y, mask, 4, seeds=[3, 5])[1] - plain[1]).abs().max() > 0.1
    assert (latentpaint(mini, y, mask, 4, seeds=[3, 4], module=randomised(64)) - plain).abs().max() > 1e-3


def test_an_image_does_not_depend_on_its_batch(mini, faces):
    net, module = Counted(OneByOne(mini)), randomised(64)
    y = to_float(faces[:3])
    mask = torch.stack([make_mask("mixed", 64, s) for s in (1, 2, 3)])
    whole = latentpaint(net, y, mask, 3, seeds=[7, 8, 9], module=module)
    single = latentpaint(net, y[1:2], mask[1:2], 3, seeds=[8], module=module)
    assert torch.equal(whole[1:2], single)
    loose = latentpaint(mini, y, mask, 3, seeds=[7, 8, 9], module=module)
    torch.testing.assert_close(loose, whole, rtol=0, atol=1e-3)


@pytest.mark.parametrize("wrap", [lambda n: n, OneByOne, lambda n: Counted(OneByOne(n))])
def test_guided_pairs_mix_row_by_row(wrap):
    net = build("song", label_dim=2)
    labels, x, known = torch.eye(2)[[0, 1, 1]], randn(3, 3, 16, 16), randn(3, 3, 16, 16, seed=1)
    mask = torch.stack([make_mask(kind, 16, 1) for kind in ("box", "half", "random")])
    module = randomised(bottleneck_channels(net))

    def plain(classes):
        rows = [slice(i, i + 1) for i in range(3)]
        parts = [(x[r], known[r], mask[r], 0.8, None if classes is None else classes[r], module) for r in rows]
        return torch.cat([mixed_denoise(net, *p) for p in parts])

    expected = 2.5 * plain(labels) - 1.5 * plain(None)
    for pair in (wrap(classifier_free(net, 2.5)), classifier_free(wrap(net), 2.5)):
        found = mixed_denoise(pair, x, known, mask, 0.8, labels, module)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # a guide of its own is not mixed
    guide = build("adm", label_dim=2)
    found = mixed_denoise(autoguidance(wrap(net), guide, 2.0), x, known, mask, 0.8, labels, module)
    torch.testing.assert_close(found, 2 * plain(labels) - guide(x, 0.8, labels), rtol=1e-4, atol=1e-4)


def test_the_loss_is_the_weighted_error_in_the_hole():
    x0, mask, sigma = randn(2, 3, 16, 16), torch.cat([half(1), make_mask("box", 16, 0)[None]]), torch.tensor([0.5, 3.0])
    error = torch.tensor([0.2, -1.0]).reshape(2, 1, 1, 1)
    off = x0 + torch.where(mask.bool(), 5.0, error)  # errors in known pixels do not count
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    torch.testing.assert_close(hole_loss(off, x0, mask, sigma), weight * torch.tensor([0.04, 1.0]))


def test_only_the_module_learns_and_it_does(mini, faces):
    before = {k: v.clone() for k, v in mini.state_dict().items()}
    trainer = PropagationTrainer(mini, InpaintingData(faces), batch=2, lr=3e-3)
    start = float(trainer.loss(0).detach())
    for _ in range(8):
        trainer.step()
        trainer.iteration = 0  # one batch over and over
    assert float(trainer.loss(0).detach()) < 0.97 * start
    assert all(p.grad is not None and bool(p.grad.any()) for p in trainer.module.parameters())
    assert all(p.grad is None for p in mini.parameters())
    assert all(torch.equal(v, before[k]) for k, v in mini.state_dict().items())


def trainer_of(net, faces, seed):
    return PropagationTrainer(net, InpaintingData(faces, seed=seed), batch=2, seed=seed)


def test_a_restart_changes_no_bit(mini, faces, tmp_path):
    straight, first, second = (trainer_of(mini, faces, 5) for _ in range(3))
    losses = [straight.step() for _ in range(3)]
    assert losses[0] == first.step()
    save_state(tmp_path / "state.safetensors", first.state())
    second.restore(load_state(tmp_path / "state.safetensors"))
    assert losses[1:] == [second.step() for _ in range(2)] and second.iteration == 3
    assert all(torch.equal(v, second.module.state_dict()[k]) for k, v in straight.module.state_dict().items())
    assert all(torch.equal(v, second.average[k]) for k, v in straight.average.items())
    assert trainer_of(mini, faces, 6).step() != losses[0]

    second.save(tmp_path / "module.safetensors")
    loaded = load_propagation(tmp_path / "module.safetensors")
    assert loaded.backbone == mini.fingerprint and loaded.facts["iteration"] == 3
    assert all(torch.equal(v, straight.average[k]) for k, v in loaded.state_dict().items())
    assert not any(p.requires_grad for p in loaded.parameters())


def gaussian():
    d = 3 * 8 * 8
    side = torch.arange(8.0)
    near = torch.exp(-0.5 * ((side[:, None] - side) / 2) ** 2)
    root = torch.linalg.cholesky(torch.kron(torch.eye(3), torch.kron(near, near)) + 1e-3 * torch.eye(d))
    return GaussianBackbone((3, 8, 8), d).assign(torch.zeros(d), 0.5 * root.T, torch.full((d,), 1e-4))


def test_without_features_it_is_a_single_pass_towards_the_posterior():
    net, n = Counted(gaussian()), 64
    y, mask = net.inner.sample([0]).float().expand(n, 3, 8, 8), make_mask("box", 8, 0).expand(n, 1, 8, 8)
    mean = net.inner.posterior_mean(y[:1], mask[:1]).float()
    sampled = latentpaint(net, y, mask, 30)
    assert net.forward_calls == 30 * n
    off = [((found.mean(0) - mean[0]) * (1 - mask[0])).norm() for found in (sampled, paste(net, y, mask, 30))]
    # a single pass keeps a bias: measured 0.5 of what the unguided flow is off
    assert off[0] < 0.6 * off[1]


def test_without_features_the_call_left_out_changes_nothing():
    net = gaussian()
    y, mask = net.sample([0, 1]).float(), half(2, 8)
    task = prepare(net, y, mask, 5)
    x = task.paste(task.start(), task.y + task.start())
    for k, s, s_next in task.levels():
        known = task.y + s * task.noise(KEY, k)
        denoised = task.paste(task.denoise(x, s), task.denoise(known, s))  # the mixture of the only latent
        x = ancestral(x, denoised, s, s_next, task.noise(KEY, k, 1))
        x = task.paste(x, task.y + s_next * task.noise(KEY, k, 2))
    assert torch.equal(task.paste(x), latentpaint(net, y, mask, 5))


def test_refusals(mini, faces, tmp_path):
    y, mask, net = to_float(faces[:1]), make_mask("box", 64, 0)[None], gaussian()
    other = Propagation(64)
    other.backbone = "0123456789abcdef"
    with pytest.raises(InputError, match="was trained for backbone 0123456789abcdef"):
        latentpaint(mini, y, mask, 2, module=other)
    with pytest.raises(InputError, match="of 32 channels; expected 64"):
        latentpaint(mini, y, mask, 2, module=Propagation(32))
    with pytest.raises(InputError, match="expected no module"):
        latentpaint(net, y[..., :8, :8], make_mask("box", 8, 0)[None], 2, module=Propagation(3))
    with pytest.raises(InputError, match="expected a U-Net"):
        PropagationTrainer(net, InpaintingData(faces[..., :8, :8]))
    with pytest.raises(InputError, match="expected a U-Net"):
        mixed_denoise(net, y[..., :8, :8], y[..., :8, :8], mask[..., :8, :8], 1.0)
    with pytest.raises(InputError, match="at least 1"):
        Propagation(0)
    with pytest.raises(InputError, match="no such propagation module"):
        load_propagation("nothing")
    save_tensors(tmp_path / "a.safetensors", {"a": y}, {"kind": "aid-guidance"})
    with pytest.raises(InputError, match="not a propagation module"):
        load_propagation(tmp_path / "a.safetensors")
    other.config = {"channels": 32, "width": 64}
    save_propagation(tmp_path / "b.safetensors", other)
    with pytest.raises(InputError, match="do not fit"):
        load_propagation(tmp_path / "b.safetensors")
