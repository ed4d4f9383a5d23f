"""Palette: the conditional network's start and files, the sampler on a Gaussian posterior, training and its restart."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from aid_control.checkpoint import load_state, load_tensors, save_state
from aid_control.errors import Diverged, InputError
from aid_control.images.backbones.conditional import (
    ConditionalDenoiser,
    Given,
    load_conditional,
    network_arguments,
    observed,
    save_conditional,
)
from aid_control.images.backbones.precond import Denoiser, EDMPrecond, VEPrecond
from aid_control.images.backbones.registry import load_backbone, save_backbone
from aid_control.images.backbones.wrappers import Counted, OneByOne
from aid_control.images.clock import KarrasClock
from aid_control.images.data import write_png
from aid_control.images.methods.palette import load_palette, palette, palette_loss
from aid_control.images.methods.palette_training import PaletteTrainer
from aid_control.images.training import InpaintingData
from aid_control.noise import normal, per_image_normal

TINY = dict(
    img_resolution=16, img_channels=3, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[],
    dropout=0.0,
)  # fmt: skip
KINDS = {
    "ddpm": {},
    "ncsn": dict(embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=[1, 3, 3, 1]),
    "skip": dict(encoder_type="skip", decoder_type="skip"),
    "classes": dict(label_dim=4),
    "adm": dict(model_type="DhariwalUNet"),
}


def backbone(**kwargs) -> tuple[Denoiser, dict]:
    """A network with weights that are no one's start: zero-initialised layers would hide what flows through them."""
    kwargs = TINY | kwargs
    torch.manual_seed(0)
    net = EDMPrecond(**kwargs)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(p + 0.1 * normal(p.shape, 7, i))
    net.fingerprint = "0123456789abcdef"
    return net.eval().requires_grad_(False), kwargs


def images(n=4, size=16, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def halves(n=4, size=16):
    mask = torch.ones(n, 1, size, size)
    mask[..., : size // 2] = 0
    return mask


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_backbone(kind):
    net, kwargs = backbone(**KINDS[kind])
    wide = ConditionalDenoiser.from_backbone(net, kwargs).eval()
    x, sigma = 2 * images(), torch.tensor([0.05, 0.5, 3.0, 80.0])
    labels = torch.eye(4)[[0, 2, 1, 3]] if net.label_dim else None
    for y, mask in ((images(seed=1), halves()), (images(seed=2), 1 - halves())):
        torch.testing.assert_close(
            wide(observed(x, y, mask), sigma, labels), net(x, sigma, labels), rtol=1e-5, atol=2e-5
        )
    assert (wide.shape, wide.backbone) == (net.shape, net.fingerprint)


def test_new_channels_learn():
    """The zeros are weights: the loss has a gradient in them, and a step makes the network see what it is given."""
    net, kwargs = backbone()
    wide = ConditionalDenoiser.from_backbone(net, kwargs)
    x, y, mask = images(), images(seed=1), halves()
    palette_loss(wide, x, mask, torch.full((4,), 2.0), normal(x.shape, 1)).mean().backward()
    weight = wide.model.enc["16x16_conv"].weight
    assert not weight[:, 3:].any() and (weight.grad[:, 3:].flatten(2).abs().amax((0, 2)) > 0).all()
    with torch.no_grad():
        weight -= 0.1 * weight.grad
        seen, other = (wide(observed(x, z, mask), 1.0) for z in (y, images(seed=3)))
    assert (seen - other).abs().max() > 1e-4


def test_the_hole_of_the_observation_is_not_seen():
    y, mask = images(), halves()
    spoilt = torch.where(mask.bool(), y, float("nan"))
    assert torch.equal(observed(images(seed=1), y, mask), observed(images(seed=1), spoilt, mask))


def test_wrappers_and_binding():
    net, kwargs = backbone()
    wide = ConditionalDenoiser.from_backbone(net, kwargs).eval().requires_grad_(False)
    x, y, mask = images(), images(seed=1), halves()
    counted = Counted(OneByOne(wide))
    bound = Given(counted, y, mask)
    assert bound.shape == (3, 16, 16) and counted.shape == (3, 16, 16)
    together, alone = bound(x, 0.7), Given(counted, y[2:3], mask[2:3])(x[2:3], 0.7)
    assert torch.equal(together[2:3], alone) and counted.forward_calls == 5
    with pytest.raises(InputError, match="3 channels; expected 7"):
        wide(x, 1.0)


def test_refuses_other_networks(tmp_path):
    kwargs = {k: v for k, v in TINY.items()}
    with pytest.raises(InputError, match="VEPrecond; expected EDMPrecond"):
        ConditionalDenoiser.from_backbone(VEPrecond(**kwargs), kwargs)
    with pytest.raises(InputError, match="do not describe this backbone"):
        ConditionalDenoiser.from_backbone(EDMPrecond(**kwargs), kwargs | {"model_channels": 32})
    save_backbone(tmp_path / "ve.safetensors", "VEPrecond", kwargs, VEPrecond(**kwargs).state_dict())
    with pytest.raises(InputError, match="is a VEPrecond; expected EDMPrecond"):
        network_arguments(tmp_path / "ve.safetensors")


def test_file_round_trip(tmp_path):
    net, kwargs = backbone(sigma_min=0.01, sigma_data=0.4)
    wide = ConditionalDenoiser.from_backbone(net, kwargs)
    wide.facts = {"iteration": 3}
    path = tmp_path / "p.safetensors"
    save_conditional(path, "palette", wide)
    again = load_palette(path)
    assert (again.backbone, again.facts, again.sigma_min, again.sigma_data) == (net.fingerprint, wide.facts, 0.01, 0.4)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in wide.state_dict().items())
    assert not any(p.requires_grad for p in again.parameters())
    with pytest.raises(InputError, match="not a davi file"):
        load_conditional(path, "davi", "davi-faces64-mini")
    tensors, _ = load_tensors(path)
    save_conditional(path, "palette", wide, {k: v for k, v in tensors.items() if "map_layer0" not in k})
    with pytest.raises(InputError, match="do not fit the module"):
        load_palette(path)
    with pytest.raises(InputError, match="no such palette; expected palette-faces64-mini"):
        load_palette("palette-of-nothing")


class Posterior(Denoiser):
    """The exact E[x0 | x, y, M] of Gaussian pixel pairs: left and right pixels correlated, the right ones known."""

    def __init__(self, mean: float, variance: float, correlation: float) -> None:
        torch.nn.Module.__init__(self)
        self.shape, self.fingerprint, self.label_dim = (3, 16, 16), "", 0
        self.mean, self.gain = mean, correlation
        self.left = variance * (1 - correlation**2)
        self.seen = []

    def hole_mean(self, y):
        return self.mean + self.gain * (y[..., 8:] - self.mean)

    def forward(self, x, sigma, class_labels=None, augment_labels=None):
        s, y = float(torch.as_tensor(sigma).flatten()[0]), x[:, 3:6]
        self.seen.append((s, x[:, :3].clone()))
        mu = self.hole_mean(y)
        hole = mu + self.left / (self.left + s**2) * (x[:, :3, :, :8] - mu)
        return torch.cat([hole, torch.full_like(hole, 7.0)], dim=-1)  # a wrong known part must not matter


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_sampler_solves_the_posterior_flow(solver):
    """x(0) = m + (l / (l + s_max^2))^(1/2) (x(s_max) - m) in the hole, and y + s n (less the start's y) elsewhere."""
    net = Posterior(0.2, 0.3, 0.8)
    y, mask, seeds = images(3).double(), halves(3), [5, 6, 9]
    out = palette(net, y, mask, 300 if solver == "euler" else 60, module=net, solver=solver, seeds=seeds)
    start = 80.0 * per_image_normal(seeds, (3, 16, 16)).double()
    m = net.hole_mean(y)
    expected = m + (net.left / (net.left + 80.0**2)) ** 0.5 * (start[..., :8] - m)
    torch.testing.assert_close(out[..., :8], expected, rtol=0, atol=2e-2)
    assert torch.equal(out[..., 8:], y[..., 8:])
    for s, x in net.seen:
        known = (1 - s / 80) * y + s / 80 * start
        torch.testing.assert_close(x[..., 8:], known[..., 8:], rtol=1e-6, atol=1e-6)


def test_evaluations():
    net, kwargs = backbone()
    module = Counted(ConditionalDenoiser.from_backbone(net, kwargs).eval())
    frozen = Counted(net)
    palette(frozen, images(2), halves(2), 8, module=module)
    assert (module.forward_calls, frozen.forward_calls) == (2 * 15, 0)
    with pytest.raises(InputError, match="expected \\(B, 3, 16, 16\\)"):
        palette(frozen, images(2, size=8), halves(2, size=8), 8, module=module)


def test_loss_is_the_mean_over_the_hole():
    class Zero(Denoiser):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.shape = (3, 16, 16)

        def forward(self, x, sigma, class_labels=None, augment_labels=None):
            return 1e3 * x[:, 6:]  # wrong by 1000 where known, zero in the hole

    x, mask = images(), halves()
    mask[1, ..., 2:, :] = 1  # a smaller hole
    sigma = torch.tensor([0.1, 0.5, 2.0, 50.0])
    hole = (1 - mask).expand_as(x)
    expected = torch.stack([a[h > 0].square().mean() for a, h in zip(x, hole, strict=True)])
    expected = expected * (sigma**2 + 0.16) / (sigma * 0.4) ** 2
    torch.testing.assert_close(palette_loss(Zero(), x, mask, sigma, normal(x.shape, 3), 0.4), expected)


def trainer(seed=0, **kwargs):
    net, arguments = backbone()
    data = InpaintingData(((images(12, seed=4) + 1) * 127.5).to(torch.uint8), "mixed", seed)
    return PaletteTrainer(ConditionalDenoiser.from_backbone(net, arguments), data, batch=4, seed=seed, **kwargs)


def test_training_restarts_bit_for_bit(tmp_path):
    whole, first = trainer(), trainer()
    for _ in range(4):
        whole.step()
    for _ in range(2):
        first.step()
    save_state(tmp_path / "c.safetensors", first.state())
    second = trainer()
    second.restore(load_state(tmp_path / "c.safetensors"))
    for _ in range(2):
        second.step()
    assert (second.iteration, second.images_seen) == (4, 16)
    for a, b in ((whole.average, second.average), (whole.net.state_dict(), second.net.state_dict())):
        assert all(torch.equal(v, b[k]) for k, v in a.items())
    second.save(tmp_path / "p.safetensors")
    assert torch.equal(load_palette(tmp_path / "p.safetensors").state_dict()["model.map_layer0.bias"],
                       whole.average["model.map_layer0.bias"])  # fmt: skip
    other = trainer(seed=1)
    other.step()
    assert not torch.equal(other.average["model.map_layer0.bias"], whole.average["model.map_layer0.bias"])


def test_training_learns_from_the_observation():
    """Images of one colour each, an independent draw: only the known half tells it."""
    colours = torch.randint(60, 200, (32, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    data = InpaintingData(colours.expand(-1, -1, 16, 16).to(torch.uint8), "half", 0)
    net, kwargs = backbone()
    learner = PaletteTrainer(ConditionalDenoiser.from_backbone(net, kwargs), data, batch=8, lr=3e-3, P_mean=2.0)
    losses = [learner.step()["loss"] for _ in range(40)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def broken(learner):
    learner.descend("net", sum(p.sum() for p in learner.net.parameters()) * float("nan"))


def test_broken_gradients_are_skipped_and_counted():
    learner = trainer()
    before = {k: v.clone() for k, v in learner.net.state_dict().items()}
    assert learner.skipped == 0
    broken(learner)
    assert all(torch.equal(v, before[k]) for k, v in learner.net.state_dict().items())
    assert learner.skipped == 1
    learner.step()
    assert learner.skipped == 1 and not all(torch.equal(v, before[k]) for k, v in learner.net.state_dict().items())


def test_too_many_in_a_row_end_the_training(tmp_path):
    """The row goes on over a restart; a good step ends it."""
    learner = trainer(max_skipped=3)
    broken(learner)
    broken(learner)
    learner.step()
    broken(learner)
    save_state(tmp_path / "c.safetensors", learner.state())
    again = trainer(max_skipped=3)
    again.restore(load_state(tmp_path / "c.safetensors"))
    broken(again)
    assert again.skipped == 4
    with pytest.raises(Diverged, match="3 steps in a row without a finite gradient"):
        broken(again)
    old = learner.state()
    del old["skipped"]  # as earlier versions wrote it
    again.restore(old)
    assert again.skipped == 0 and again.iteration == 1


def test_a_broken_batch_changes_nothing_but_the_counts(monkeypatch):
    """NaN pixels in one batch: the weights after it are those before it, and the run goes on."""
    learner, draw = trainer(), InpaintingData.clean_and_mask
    learner.step()
    before = {k: v.clone() for k, v in learner.net.state_dict().items()}
    moments = {k: v["exp_avg"].clone() for k, v in learner.optimizers["net"].state_dict()["state"].items()}

    def poisoned(self, batch, iteration):
        x0, mask = draw(self, batch, iteration)
        x0[0, 0, 0, 0] = float("nan")
        return x0, mask

    with monkeypatch.context() as patch:
        patch.setattr(InpaintingData, "clean_and_mask", poisoned)
        assert math.isnan(learner.step()["loss"])
    assert (learner.iteration, learner.skipped) == (2, 1)
    after = learner.optimizers["net"].state_dict()["state"]
    assert all(torch.equal(v, before[k]) for k, v in learner.net.state_dict().items())
    assert all(torch.equal(v, after[k]["exp_avg"]) for k, v in moments.items())
    assert math.isfinite(learner.step()["loss"])
    assert all(torch.isfinite(v).all() for v in learner.average.values())


@pytest.fixture
def program(tmp_path):
    """examples/train_baseline.py on a tiny backbone and data set."""
    examples = Path(__file__).parents[2] / "examples"
    if not examples.is_dir():
        pytest.skip("examples are absent")
    spec = importlib.util.spec_from_file_location("train_baseline_program", examples / "train_baseline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    net, kwargs = backbone()
    save_backbone(tmp_path / "tiny.safetensors", "EDMPrecond", kwargs, net.state_dict())
    for i, image in enumerate(images(6)):
        write_png(tmp_path / "data" / f"{i}.png", ((image + 1) * 127.5).to(torch.uint8))
    conf = OmegaConf.load(examples / "conf" / "train_baseline.yaml")

    def run(out, **options):
        own = {"data": str(tmp_path / "data"), "backbone": str(tmp_path / "tiny.safetensors"), "out": str(out)}
        module.main(OmegaConf.merge(conf, own, options))

    return run


@pytest.mark.parametrize("method", ["palette", "davi"])
def test_program_goes_on_where_it_was_killed(method, program, tmp_path):
    options = {"method": method, "every": 1, method: {"batch": 2}}
    program(tmp_path / "whole", iterations=3, **options)
    program(tmp_path / "parts", iterations=2, **options)
    program(tmp_path / "parts", iterations=3, **options)
    files = [tmp_path / part / f"{method}.safetensors" for part in ("whole", "parts")]
    (whole, metadata), (parts, _) = (load_tensors(file) for file in files)
    assert whole.keys() == parts.keys() and all(torch.equal(v, parts[k]) for k, v in whole.items())
    facts = json.loads(metadata["facts"])
    assert facts["images_seen"] == 6 and facts["iteration"] == 3 and facts["seed"] == 0 and facts["data"] == "data"
    assert metadata["backbone"] == load_backbone(tmp_path / "tiny.safetensors").fingerprint
    other = "davi" if method == "palette" else "palette"
    with pytest.raises(InputError, match=f'method="{method}" then, method="{other}" now'):
        program(tmp_path / "parts", method=other)
    with pytest.raises(InputError, match="expected one of palette, davi"):
        program(tmp_path / "none", method="gan")


def same_weights(one, other):
    (whole, _), (parts, _) = (load_tensors(out / "palette.safetensors") for out in (one, other))
    return whole.keys() == parts.keys() and all(torch.equal(v, parts[k]) for k, v in whole.items())


SMALL = {"method": "palette", "every": 1, "palette": {"batch": 2}}


def test_program_goes_back_from_damaged_checkpoints(program, tmp_path, capsys):
    """The two newest are broken: it goes on from the one before, and ends as a run that was never stopped."""
    program(tmp_path / "whole", iterations=5, **SMALL)
    program(tmp_path / "parts", iterations=4, **SMALL)
    folder = tmp_path / "parts" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == [f"0000000{i}.safetensors" for i in (2, 3, 4)]
    capsys.readouterr()
    for i in (3, 4):
        path = folder / f"0000000{i}.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    program(tmp_path / "parts", iterations=5, **SMALL)
    told = capsys.readouterr()
    assert all(f"warning: passed over a checkpoint: {folder}/0000000{i}" in told.err for i in (3, 4))
    assert f"continuing from {folder}/00000002.safetensors: iteration 2" in told.out
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    # written again, whole; the one that was still ahead at the first save is set aside
    names = [f"0000000{i}.safetensors" for i in (3, 4, 5)]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*names, "00000004.safetensors.damaged"])
    assert all(load_state(folder / name)["state"]["method"] == "palette" for name in names)


def test_program_refuses_other_options_and_data(program, tmp_path):
    out = tmp_path / "out"
    program(out, iterations=1, **SMALL)
    for change, words in [
        (("clip", 2.0), "clip=1.0 then, clip=2.0 now"),
        (("palette", {"batch": 2, "lr": 0.5}), "palette.lr=0.001 then, palette.lr=0.5 now"),
        (("limit", 5), "data=.* then, .*limit=null then, limit=5 now"),
        (("seed", 1), "seed=0 then, seed=1 now"),
    ]:
        with pytest.raises(InputError, match=words):
            program(out, **{**SMALL, "iterations": 2, change[0]: change[1]})
    with pytest.raises(InputError, match="every is 0"):
        program(out, **{**SMALL, "every": 0})
    # what changes no weight may change: the place of the data, the number of iterations, options of other methods
    (tmp_path / "data").rename(tmp_path / "moved")
    free = {"iterations": 2, "data": str(tmp_path / "moved"), "keep": 1, "every": 5, "davi": {"lr": 1.0}}
    program(out, **{**SMALL, **free})
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["00000002.safetensors"]


def test_program_goes_on_from_the_single_file_of_earlier_versions(program, tmp_path):
    program(tmp_path / "whole", iterations=3, **SMALL)
    program(tmp_path / "parts", iterations=2, **SMALL)
    folder = tmp_path / "parts" / "checkpoints"
    old = load_state(folder / "00000002.safetensors")["state"]
    del old["trainer"]["skipped"]
    shutil.rmtree(folder)
    save_state(tmp_path / "parts" / "checkpoint.safetensors", old)
    program(tmp_path / "parts", iterations=3, **SMALL)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(folder)
    save_state(tmp_path / "parts" / "checkpoint.safetensors", {"something": "else"})
    with pytest.raises(InputError, match="of a run of None on backbone None; expected palette on"):
        program(tmp_path / "parts", iterations=3, **SMALL)


def test_program_ends_a_training_without_finite_gradients(program, tmp_path, monkeypatch):
    draw = InpaintingData.clean_and_mask

    def poisoned(self, batch, iteration):
        x0, mask = draw(self, batch, iteration)
        return x0 * (float("nan") if iteration >= 2 else 1), mask

    monkeypatch.setattr(InpaintingData, "clean_and_mask", poisoned)
    with pytest.raises(Diverged):
        program(tmp_path / "out", iterations=20, max_skipped=4, **{**SMALL, "keep": 2})
    # the step that gives up is not saved: a restart finds the same
    assert [p.name for p in sorted((tmp_path / "out/checkpoints").iterdir())][-1] == "00000005.safetensors"
    with pytest.raises(Diverged):
        program(tmp_path / "out", iterations=20, max_skipped=4, **SMALL)


def test_clock_is_the_samplers():
    net = Posterior(0.0, 0.3, 0.5)
    palette(net, images(1), halves(1), 3, module=net, solver="euler", clock=KarrasClock(0.1, 10.0))
    assert [s for s, _ in net.seen] == pytest.approx(KarrasClock(0.1, 10.0).sigmas(3)[:-1].tolist())


def test_shipped_network():
    try:
        net = load_palette()
    except InputError:
        pytest.skip("palette-faces64-mini is not shipped yet")
    frozen = load_backbone()
    assert net.backbone == frozen.fingerprint and net.shape == frozen.shape
