"""FID against Gaussians' closed form, KID against its population value, resizing against numbers by hand."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import linalg
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from aid_control.errors import InputError
from aid_control.images import realism
from aid_control.images.realism import FEATURES, InceptionFeatures, fid, kid, rank_deficient, resize_tf1

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def torchmetrics():
    return pytest.importorskip("torchmetrics", reason="needs the package torchmetrics (extra 'metrics')")


def exactly(n, mean, cov, seed):
    """(n, d) numbers whose sample mean and covariance are the given ones."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x = x - x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / (n - 1))).T
    return torch.tensor(x @ np.linalg.cholesky(cov).T + mean)


def normals(shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- resizing


def test_resizing_reads_at_i_times_scale():
    row = torch.tensor([[0.0, 10.0], [0.0, 10.0]])
    assert resize_tf1(row, 4).tolist() == [[0, 5, 10, 10]] * 4  # at 0, 0.5, 1, 1.5: the last pixel is repeated
    assert resize_tf1(row.T, 4).T.tolist() == [[0, 5, 10, 10]] * 4
    three = torch.tensor([[3.0, 8.0, 10.0]] * 3)
    assert resize_tf1(three, 2).tolist() == [[3, 9]] * 2  # at 0, 1.5
    corner = torch.tensor([[0.0, 4.0], [8.0, 20.0]])
    assert resize_tf1(corner, 4)[1, 1] == 8  # the mean of the four


def test_resizing_differs_from_half_pixel_centres():
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    ours = resize_tf1(x)
    plain = interpolate(x, (299, 299), mode="bilinear", align_corners=False)
    assert ours.shape == plain.shape and (ours - plain).abs().mean() > 0.05
    # the same picture, read (0.5 - scale / 2) input pixels apart: a ramp shows the distance
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    shift = (interpolate(ramp, (299, 299), mode="bilinear", align_corners=False) - resize_tf1(ramp))[..., 50:200]
    assert torch.allclose(shift, torch.tensor(0.5 * 16 / 299 - 0.5), atol=1e-5)


def test_resizing_to_its_own_size_and_of_constants():
    x = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(1))
    assert torch.equal(resize_tf1(x), x)
    assert torch.equal(resize_tf1(torch.full((1, 3, 64, 48), 7.0)), torch.full((1, 3, 299, 299), 7.0))
    with pytest.raises(InputError, match="floating point"):
        resize_tf1(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


# --- FID


def test_fid_of_gaussians(torchmetrics):
    rng = np.random.default_rng(0)
    (a, b), mean = rng.standard_normal((2, 6, 9)), rng.standard_normal(6)
    cov_a, cov_b = a @ a.T, b @ b.T  # they do not commute
    expected = mean @ mean + np.trace(cov_a + cov_b - 2 * linalg.sqrtm(cov_a @ cov_b).real)
    x, y = exactly(50, np.zeros(6), cov_a, 1), exactly(70, mean, cov_b, 2)
    assert fid(x, y) == pytest.approx(expected, rel=1e-9)
    assert fid(y, x) == pytest.approx(expected, rel=1e-9)
    assert fid(x + 100, y + 100) == pytest.approx(expected, rel=1e-8)


def test_fid_of_equal_spreads_is_the_distance_of_the_means(torchmetrics):
    x = normals((40, 5), 3)
    assert fid(x, x + 2) == pytest.approx(5 * 4, rel=1e-9)
    assert fid(x, x) == pytest.approx(0, abs=1e-9)
    assert fid(x, 3 * (x - x.mean(0)) + x.mean(0)) == pytest.approx(4 * x.var(0).sum().item(), rel=1e-9)


def test_fid_of_few_images_is_flagged_and_right(torchmetrics):
    a, b = normals((20, 80), 4), 1.5 * normals((30, 80), 5) + 0.2
    assert rank_deficient(a, b) and not rank_deficient(normals((81, 80), 0), normals((81, 80), 1))
    with pytest.warns(RuntimeWarning, match="20 and 30 images with 80 features"):
        value = fid(a, b)
    # tr (Sa Sb)^(1/2) is the nuclear norm of the centred sets' products
    x, y = ((f - f.mean(0)) / math.sqrt(len(f) - 1) for f in (a, b))
    means = (a.mean(0) - b.mean(0)).square().sum()
    expected = means + x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    assert value == pytest.approx(expected.item(), rel=1e-6)


def test_fid_is_biased_upwards_less_with_more_images(torchmetrics):
    values = [np.mean([fid(normals((n, 8), 2 * k), normals((n, 8), 2 * k + 1)) for k in range(20)]) for n in (20, 80)]
    assert values[0] > 2 * values[1] > 0  # about a constant over n


# --- KID


def test_kid_is_unbiased(torchmetrics):
    # one feature: k = (xy + 1)^3 has the features sqrt3 x, sqrt3 x^2, x^3, so the population value is that of moments
    def moments(mean, s):
        return np.array([mean, mean**2 + s**2, mean**3 + 3 * mean * s**2])

    for mean, s in ((0.0, 1.0), (0.3, 1.2)):
        gap = moments(0, 1) - moments(mean, s)
        population = float(np.array([3, 3, 1]) @ gap**2)
        values = np.array(
            [kid(normals((40, 1), k), mean + s * normals((40, 1), 5000 + k), 1, 40)[0] for k in range(400)]
        )
        error = values.std(ddof=1) / math.sqrt(len(values))
        assert abs(values.mean() - population) < 4 * error, (values.mean(), population, error)
        assert mean == 0 or population > 6 * error  # the test sees what it looks for


def test_kid_of_two_halves_is_about_zero_and_negative_as_often(torchmetrics):
    whole = normals((120, 16), 0)
    orders = [torch.randperm(120, generator=torch.Generator().manual_seed(k)) for k in range(60)]
    values = np.array([kid(whole[p[:60]], whole[p[60:]], 1, 60)[0] for p in orders])
    assert abs(values.mean()) < 0.5 * values.std() and 10 < (values < 0).sum() < 50
    assert kid(whole[:60], whole[60:] + 1, 1, 60)[0] > 10 * values.std()


def test_kid_by_its_formula(torchmetrics):
    a, b = normals((7, 3), 0), normals((7, 3), 1) + 0.5

    def k(x, y):
        return (x @ y / 3 + 1) ** 3

    within = sum(k(f[i], f[j]) for f in (a, b) for i in range(7) for j in range(7) if i != j) / 42
    between = sum(k(x, y) for x in a for y in b) / 49
    mean, deviation = kid(a, b, 3, 7)
    assert mean == pytest.approx(float(within - 2 * between), rel=1e-12) and deviation == pytest.approx(0, abs=1e-12)


def test_kid_depends_on_its_seed_only(torchmetrics):
    a, b = normals((40, 8), 0), normals((50, 8), 1)
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = kid(a, b, 5, 20, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert kid(a, b, 5, 20, seed=3) == first != kid(a, b, 5, 20, seed=4) and first[1] > 0


# --- what is refused


def test_bad_sets(torchmetrics):
    a = normals((5, 4), 0)
    for measure in (fid, lambda x, y: kid(x, y, 1, 2)):
        with pytest.raises(InputError, match=r"features_b of shape \(1, 4\); expected \(N, D\), N >= 2"):
            measure(a, a[:1])
        with pytest.raises(InputError, match="one D for both"):
            measure(a, a[:, :3])
        with pytest.raises(InputError, match="NaN or infinity"):
            measure(a, a / 0)
    with pytest.raises(InputError, match="subset_size 1000 for sets of 5 and 5 images; expected 2 to 5"):
        kid(a, a)
    with pytest.raises(InputError, match="subsets"):
        kid(a, a, 0, 2)


def test_without_torchmetrics(monkeypatch):
    for name in ("torchmetrics.image.fid", "torchmetrics.image.kid"):
        monkeypatch.setitem(sys.modules, name, None)
    for measure in (fid, lambda x, y: kid(x, y, 1, 2)):
        with pytest.raises(InputError, match=r"pip install 'aid-control\[metrics\]'"):
            measure(normals((9, 4), 0), normals((9, 4), 1))


# --- the feature network


class Pooled(torch.nn.Module):
    """Stands in for Inception where the network itself is not tested: 2048 local means of what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return adaptive_avg_pool2d(x.mean(1), (32, 64)).flatten(1)


class Other(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


def saved(module, path):
    torch.jit.script(module).save(path)
    return path


def pictures(n, side=16, seed=0):
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_features_are_of_the_resized_and_scaled_images(tmp_path):
    network = InceptionFeatures(saved(Pooled(), tmp_path / "net.pt"), unverified=True)
    x = pictures(5)
    out = network(x, batch=2)
    assert out.shape == (5, FEATURES) and out.dtype == torch.float32 and not out.requires_grad
    torch.testing.assert_close(out, Pooled()((resize_tf1(x.float()) - 128) / 128))
    torch.testing.assert_close(network(x), out)
    assert torch.equal(network(torch.full((1, 3, 8, 8), 128, dtype=torch.uint8)), torch.zeros(1, FEATURES))


def test_only_the_published_file_is_loaded_unasked(tmp_path, monkeypatch):
    path = saved(Pooled(), tmp_path / "net.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: pytest.fail("was loaded"))
    with pytest.raises(InputError, match="another SHA-256"):
        InceptionFeatures(path)
    package = tmp_path / realism.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('was imported')")
    path.rename(package / realism.FILE)
    monkeypatch.syspath_prepend(tmp_path)
    for unverified in (False, True):  # nobody named the package's file
        with pytest.raises(InputError, match="another SHA-256"):
            InceptionFeatures(unverified=unverified)


def test_a_missing_or_wrong_network(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such file"):
        InceptionFeatures(tmp_path / "none.pt")
    (tmp_path / "noise.pt").write_bytes(b"not a network")
    with pytest.raises(InputError, match="not readable as TorchScript"):
        InceptionFeatures(tmp_path / "noise.pt", unverified=True)
    other = InceptionFeatures(saved(Other(), tmp_path / "other.pt"), unverified=True)
    with pytest.raises(InputError, match=r"gives \(2, 3\); expected \(2, 2048\)"):
        other(pictures(2))
    monkeypatch.setattr(realism, "PACKAGE", "no_such_package_here")
    with pytest.raises(InputError, match="installed package no_such_package_here, or download=True"):
        InceptionFeatures()


def test_the_download_is_asked_for_and_may_fail(torchmetrics, monkeypatch):
    import torchmetrics.image.fid as module

    def unreachable(*_, **__):
        raise OSError("no network")

    class Downloaded(torch.nn.Module):
        def __init__(self, name, features, antialias):
            super().__init__()
            assert features == ["2048"] and antialias is False

        def forward(self, x):
            assert x.dtype == torch.uint8  # it resizes by itself
            return x.float().mean((1, 2, 3))[:, None].expand(-1, FEATURES)

    monkeypatch.setattr(realism, "PACKAGE", "no_such_package_here")
    monkeypatch.setattr(module, "NoTrainInceptionV3", unreachable)
    with pytest.raises(InputError, match="no network"):
        InceptionFeatures(download=True)
    monkeypatch.setattr(module, "NoTrainInceptionV3", Downloaded)
    x = pictures(3)
    assert torch.equal(InceptionFeatures(download=True)(x)[:, 7], x.float().mean((1, 2, 3)))


def test_bad_images(tmp_path):
    network = InceptionFeatures(saved(Pooled(), tmp_path / "net.pt"), unverified=True)
    for x in (pictures(2).float(), pictures(2)[:, :1], pictures(2)[0], pictures(0)):
        with pytest.raises(InputError, match="expected uint8"):
            network(x)
    with pytest.raises(InputError, match="batch 0"):
        network(pictures(2), batch=0)


def test_the_published_network(torchmetrics):
    """Faces are not noise; FID_INCEPTION names the file where the package is not installed."""
    path = os.environ.get("FID_INCEPTION")
    if path is None and realism._packaged() is None:
        pytest.skip(f"needs the package {realism.PACKAGE}, or FID_INCEPTION=its {realism.FILE}")
    network = InceptionFeatures(path and Path(path))
    ramp = torch.linspace(0, 255, 64).expand(3, 64, 64)
    ramps = torch.stack([ramp / k for k in (1, 2, 3, 4)]).to(torch.uint8)
    noise = pictures(4, 64)
    smooth, rough = network(ramps), network(noise)
    assert (smooth >= 0).all() and smooth.isfinite().all()  # after a ReLU and a mean
    torch.testing.assert_close(network(noise, batch=1), rough, rtol=1e-4, atol=1e-5)
    within, between = kid(rough[:2], rough[2:], 1, 2)[0], kid(smooth, rough, 1, 4)[0]
    assert between > 10 * abs(within)
