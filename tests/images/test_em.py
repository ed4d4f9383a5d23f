"""Fitting mixtures of factor analysers: likelihood, recovery, determinism."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aid_control.errors import InputError
from aid_control.images.backbones.em import _EM, EMSettings, _Statistics, fit_mixture, k_means
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.mixture import MixtureBackbone, held_out
from aid_control.images.backbones.registry import load_backbone
from aid_control.images.data import ImageSource, to_float, to_uint8, write_png

SHAPE = (1, 6, 6)
QUIET = {"progress": False}


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def truth(components=3, rank=2, separation=0.3, seed=0):
    d = math.prod(SHAPE)
    net = MixtureBackbone(SHAPE, components, rank)
    mean = (separation * randn(components, d, seed=seed)).clamp(-0.45, 0.45)  # 8-bit images are clipped at 1
    weights = torch.arange(1.0, components + 1)
    return net.assign(mean, 0.1 * randn(components, rank, d, seed=seed + 1), torch.full((components, d), 0.01),
                      weights.log())  # fmt: skip


def images(net, n, start=0):
    return to_uint8(net.sample(range(start, start + n)))


def settings(**kwargs):
    return EMSettings(**{"components": 3, "rank": 2, "mirror": False, "batch": 100, "floor": 1e-4, **kwargs})


@pytest.mark.parametrize("init", ["kmeans", "random"])
@pytest.mark.parametrize("refresh", [1, 4])
def test_likelihood_never_falls(init, refresh):
    """Overlapping components, so that responsibilities are soft and the sparse steps have something to lose."""
    x = images(truth(separation=0.1), 600)
    fit = fit_mixture(x, settings(init=init, refresh=refresh, iterations=24), **QUIET)
    train = torch.tensor([row["train"] for row in fit.history if "train" in row])
    assert len(train) == 24 // refresh
    assert (train.diff() > -1e-6).all() and train[-1] > train[0] + 0.01


def test_reported_likelihood_is_that_of_the_model():
    x = images(truth(), 200)
    em = _EM(x, settings())
    expected = em.net.log_likelihood(to_float(x)).mean()

    class Bar:
        def update(self, n):
            pass

    assert em.step(True, Bar()) == pytest.approx(float(expected), abs=1e-3)


def test_a_step_matches_the_mean_and_the_variances_of_its_images():
    """A regression with an intercept: mu gets the mean, diag(W W' + psi) the variances, whatever the factors."""
    h, z, r = (
        torch.rand(50, generator=torch.Generator().manual_seed(0)),
        randn(50, 3).double() + 1,
        randn(50, 36, seed=1),
    )
    h = h.double()
    sums = _Statistics(36, 3)
    sums.add(h[:20], z[:20], r[:20].double(), 0.1 * torch.eye(3))
    sums.add(h[20:], z[20:], r[20:].double(), 0.1 * torch.eye(3))
    shift, factor, psi = sums.solve(0.0)
    mean = h @ r.double() / h.sum()
    torch.testing.assert_close(shift, mean)
    torch.testing.assert_close(factor.square().sum(0) + psi, h @ r.double().square() / h.sum() - mean**2)


def test_a_known_mixture_is_recovered():
    net = truth()
    x, test = images(net, 3000), images(net, 500, start=10_000)
    fit = fit_mixture(x, settings(iterations=40, floor=1e-5), test, **QUIET)
    gap = held_out(net, test)["nats_per_dim"] - held_out(fit.net, test)["nats_per_dim"]
    assert abs(gap) < 0.03  # 36 pixels, 3 x (2 + 2) x 36 parameters
    distance = torch.cdist(net.mean, fit.net.mean)
    match = distance.argmin(1)
    assert sorted(match.tolist()) == [0, 1, 2] and distance.amin(1).max() < 0.1
    pi = net.log_weights.softmax(0)
    torch.testing.assert_close(fit.net.log_weights.softmax(0)[match], pi, rtol=0, atol=0.04)
    for k, j in enumerate(match.tolist()):
        a, b = (n.factor[i].T @ n.factor[i] + n.noise[i].diag() for n, i in ((net, k), (fit.net, j)))
        assert (a - b).norm() / a.norm() < 0.15
        torch.testing.assert_close(fit.net.noise[j], net.noise[k], rtol=0.3, atol=0)


def test_one_component_is_probabilistic_pca():
    """Factor analysis of data whose noise is white agrees with the closed form of Tipping and Bishop (1999)."""
    d, rank, n = 36, 3, 4000
    data = 0.3 * randn(n, rank, seed=1) @ randn(rank, d, seed=2) * 0.3 + 0.1 * randn(n, d, seed=3)
    x = to_uint8(data.reshape(n, *SHAPE))
    fit = fit_mixture(x, settings(components=1, rank=rank, iterations=60), **QUIET)
    assert isinstance(fit.net, GaussianBackbone)
    flat = to_float(x).flatten(1).double()
    torch.testing.assert_close(fit.net.mean[0].double(), flat.mean(0), rtol=0, atol=1e-4)
    l, u = torch.linalg.eigh(torch.cov(flat.T, correction=0))
    noise = l[:-rank].mean()
    ppca = (u[:, -rank:] * (l[-rank:] - noise)) @ u[:, -rank:].T + noise * torch.eye(d)
    assert (fit.net.covariance() - ppca).norm() / ppca.norm() < 0.02
    assert float(fit.net.noise.mean()) == pytest.approx(float(noise), rel=0.01)


def test_rank_zero_is_a_diagonal_gaussian():
    x = images(truth(), 300)
    fit = fit_mixture(x, settings(components=1, rank=0, iterations=2, mirror=True), **QUIET)
    both = torch.cat([to_float(x), to_float(x).flip(3)]).flatten(1)
    torch.testing.assert_close(fit.net.mean[0], both.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(fit.net.noise[0], both.var(0, correction=0), rtol=1e-3, atol=1e-5)


def test_mirror_images_are_images():
    x = images(truth(), 150)
    a = fit_mixture(x, settings(components=1, mirror=True, iterations=8, batch=150), **QUIET)
    b = fit_mixture(torch.cat([x, x.flip(3)]), settings(components=1, mirror=False, iterations=8, batch=150), **QUIET)
    torch.testing.assert_close(a.net.covariance(), b.net.covariance(), rtol=1e-4, atol=1e-5)


def test_deterministic_for_a_seed_and_different_for_another():
    x = images(truth(), 300)
    one, two, other = (fit_mixture(x, settings(iterations=4, seed=s), x[:50], **QUIET) for s in (1, 1, 2))
    assert all(
        torch.equal(a, b) for a, b in zip(one.net.state_dict().values(), two.net.state_dict().values(), strict=True)
    )
    assert one.history == two.history
    assert not torch.equal(one.net.factor, other.net.factor)


def test_early_stop_keeps_the_best_model():
    """Forty images for 3 x 12 factors: the fit grows worse on others, stops, and goes back."""
    net = truth()
    x, test = images(net, 40), images(net, 200, start=1000)
    fit = fit_mixture(x, settings(rank=12, iterations=200, refresh=2, patience=2), test, **QUIET)
    values = {row["iteration"]: row["held_out"]["nats_per_dim"] for row in fit.history if "held_out" in row}
    assert max(values) < 200 and fit.best == max(values, key=values.get) < max(values)
    assert held_out(fit.net, test)["nats_per_dim"] == pytest.approx(values[fit.best], abs=1e-6)


def test_floor_and_constant_pixels():
    x = images(truth(), 100)
    x[..., 0] = 255
    fit = fit_mixture(x, settings(iterations=5, floor=0.02), **QUIET)
    assert float(fit.net.noise.min()) == pytest.approx(0.02)
    same = fit_mixture(x[:1].expand(9, -1, -1, -1), settings(iterations=3), **QUIET)
    assert torch.isfinite(same.net(to_float(x[:2]), 0.5)).all()


def test_bits():
    """White noise of one deviation s has a density of -log(s sqrt(2 pi e)) nats; 8-bit levels are 1/127.5 apart."""
    s = 0.2
    net = GaussianBackbone(SHAPE, 0).assign(torch.zeros(36), torch.zeros(0, 36), torch.full((36,), s**2))
    found = held_out(net, to_uint8(s * randn(2000, *SHAPE)))
    nats = -math.log(s) - 0.5 * math.log(2 * math.pi * math.e)
    assert found["nats_per_dim"] == pytest.approx(nats, abs=0.01)
    assert found["bits_per_dim"] == pytest.approx(math.log2(127.5) - nats / math.log(2), abs=0.02)
    assert 0 < found["ci95"] < 0.02


def test_k_means_finds_separate_clusters():
    centres = 10 * torch.eye(4)
    points = centres.repeat_interleave(25, 0) + 0.1 * randn(100, 4)
    labels = k_means(points, 4, torch.Generator().manual_seed(0)).reshape(4, 25)
    assert (labels == labels[:, :1]).all() and len(labels.unique()) == 4
    assert len(k_means(torch.zeros(5, 2), 3, torch.Generator().manual_seed(0))) == 5


def test_from_files(tmp_path):
    x = images(truth(), 12)
    for i, image in enumerate(x):
        write_png(tmp_path / f"{i:02d}.png", image)
    source = ImageSource(tmp_path, channels=1)
    a = fit_mixture(source, settings(components=2, iterations=2), source, **QUIET)
    b = fit_mixture(x, settings(components=2, iterations=2), x, **QUIET)
    assert torch.equal(a.net.factor, b.net.factor)


@pytest.mark.parametrize(
    "kwargs",
    [{"components": 0}, {"rank": -1}, {"iterations": 0}, {"refresh": 0}, {"batch": 0}, {"patience": 0},
     {"floor": 0.0}, {"floor": float("nan")}, {"init": "pca"}, {"components": "two"}, {"rank": None}, {"floor": "low"}],
)  # fmt: skip
def test_bad_settings(kwargs):
    with pytest.raises(InputError, match=next(iter(kwargs))):
        EMSettings(**kwargs)


def test_bad_images():
    x = images(truth(), 10)
    for bad in (x.float(), x[0], x[:0], x[:2]):
        with pytest.raises(InputError, match="expected"):
            fit_mixture(bad, settings(), **QUIET)
    with pytest.raises(InputError, match="held-out"):
        fit_mixture(x, settings(), x[..., :5], **QUIET)


ROOT = Path(__file__).resolve().parents[2]


def program(cwd, *options):
    command = [sys.executable, str(ROOT / "examples" / "fit_mixture.py"), *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_program(tmp_path):
    net = MixtureBackbone((3, 8, 8), 2, 2).assign(
        torch.tensor([-0.4, 0.4])[:, None].expand(2, 192), 0.1 * randn(2, 2, 192), torch.full((2, 192), 0.01)
    )
    for folder, seeds in {"train": range(60), "test": range(100, 120)}.items():
        (tmp_path / folder).mkdir()
        for i, image in zip(seeds, to_uint8(net.sample(seeds)), strict=True):
            write_png(tmp_path / folder / f"{i:03d}.png", image)
    options = ("data=train", "validation=test", "rank=2", "iterations=6", "floor=0.001", "out=o/m.safetensors")
    done = program(tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert "bits/dim" in done.stdout and "hole PSNR" in done.stdout
    fitted = load_backbone(tmp_path / "o/m.safetensors")
    assert fitted.kwargs == {"shape": [3, 8, 8], "components": 2, "rank": 2}
    torch.testing.assert_close(fitted.mean.mean(1).sort().values, torch.tensor([-0.4, 0.4]), rtol=0, atol=0.05)
    picture = ImageSource(tmp_path / "o")
    assert picture.names == ["m.png"]
    done = program(tmp_path, *options, "components=1", "out=o/g.safetensors")
    assert done.returncode == 0 and isinstance(load_backbone(tmp_path / "o/g.safetensors"), GaussianBackbone)


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("data=none.zip", "none.zip"),
        ("components=0", "components"),
        ("out=model.pt", "model.pt"),
        ("channels=2", "channels"),
    ],
)
def test_program_refuses(option, word, tmp_path):
    done = program(tmp_path, "data=.", option)
    assert done.returncode == 2 and word in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
