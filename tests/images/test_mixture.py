"""Mixtures of factor analysers against brute force with dense matrices, their samples, files and the shipped one."""

from __future__ import annotations

import math

import pytest
import torch

from aid_control.checkpoint import save_tensors
from aid_control.errors import InputError
from aid_control.images import inpaint, load_backbone
from aid_control.images.backbones.mixture import MixtureBackbone
from aid_control.images.backbones.registry import asset, save_backbone
from aid_control.images.masks import make_mask
from aid_control.images.methods.replacement import replacement

SHAPE, K, RANK = (1, 4, 4), 3, 2


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(shape=SHAPE, components=K, rank=RANK, spread=0.5, dtype=torch.float64):
    d = math.prod(shape)
    noise = 0.05 + 0.2 * torch.rand(components, d, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    net = MixtureBackbone(shape, components, rank).to(dtype)
    return net.assign(
        spread * randn(components, d), 0.5 * randn(components, rank, d, seed=1), noise, randn(components, seed=3)
    )


def dense(net):
    """(weights, means, covariances) of the mixture."""
    w = net.factor.double()
    return (
        net.log_weights.double().softmax(0),
        net.mean.double(),
        w.transpose(1, 2) @ w + torch.diag_embed(net.noise.double()),
    )


def brute_posterior(net, y, mask):
    """Posterior (weights, means, covariances) of all pixels of one image given its known ones, by dense algebra."""
    pi, mu, c = dense(net)
    y, o = y.flatten().double(), mask.flatten().bool()
    logs, means, covariances = [], [], []
    for k in range(len(pi)):
        log = pi[k].log()
        mean, cov = mu[k].clone(), c[k].clone()
        if o.any():
            law = torch.distributions.MultivariateNormal(mu[k][o], c[k][o][:, o])
            log = log + law.log_prob(y[o])
            gain = torch.linalg.solve(c[k][o][:, o], c[k][o]).T
            mean, cov = mu[k] + gain @ (y - mu[k])[o], c[k] - gain @ c[k][o]
        logs.append(log)
        means.append(mean)
        covariances.append(cov)
    return torch.stack(logs), torch.stack(means), torch.stack(covariances)


def moments(logs, means, covariances):
    w = logs.softmax(0)
    mean = w @ means
    centred = means - mean
    return mean, torch.einsum("k,kij->ij", w, covariances) + torch.einsum("k,ki,kj->ij", w, centred, centred)


def masks(n, seed=0):
    return (torch.rand(n, 1, *SHAPE[1:], generator=torch.Generator().manual_seed(seed)) > 0.5).double()


@pytest.mark.parametrize("sigma", [0.05, 0.5, 2.0, 40.0])
def test_tweedie(sigma):
    """D = x + s^2 grad log p: the denoiser and the likelihood know each other only through this identity."""
    net = mixture()
    x = (randn(6, *SHAPE, seed=9) * (0.7 + sigma)).requires_grad_()
    (score,) = torch.autograd.grad(net.log_likelihood(x, sigma).sum(), x)
    torch.testing.assert_close(net(x, sigma), x + sigma**2 * score, rtol=0, atol=1e-8)


def test_tweedie_in_float32_with_finite_differences():
    net, sigma, h = mixture(dtype=torch.float32), 0.6, 1e-4
    x = randn(1, *SHAPE, seed=4)
    steps = h * torch.eye(16, dtype=torch.float64).reshape(16, *SHAPE)
    score = (net.log_likelihood(x + steps, sigma) - net.log_likelihood(x - steps, sigma)) / (2 * h)
    torch.testing.assert_close(net(x, sigma).double(), x + sigma**2 * score.reshape(1, *SHAPE), rtol=0, atol=1e-5)


def test_second_order_tweedie():
    """s^2 dD/dx is the posterior covariance: the derivative that adjoint methods use."""
    net, sigma = mixture(), 0.6
    x = randn(1, *SHAPE, seed=4)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v, sigma), x).reshape(16, 16)
    pi, mu, c = dense(net)
    noisy = c + sigma**2 * torch.eye(16)
    logs = pi.log() + torch.distributions.MultivariateNormal(mu, noisy).log_prob(x.flatten())
    gain = c @ torch.linalg.inv(noisy)
    means = mu + torch.einsum("kij,kj->ki", gain, x.flatten() - mu)
    _, covariance = moments(logs, means, c - gain @ c)
    torch.testing.assert_close(sigma**2 * jacobian, covariance)


def test_likelihood_and_posterior_mean_are_the_brute_ones():
    net, y, mask = mixture(), randn(5, *SHAPE, seed=5), masks(5)
    m, responsibilities = net.posterior_mean(y, mask), net.responsibilities(y, mask=mask)
    evidence = net.log_likelihood(y, mask=mask)
    for i in range(5):
        logs, means, covariances = brute_posterior(net, y[i], mask[i])
        torch.testing.assert_close(m[i].flatten(), moments(logs, means, covariances)[0])
        torch.testing.assert_close(evidence[i], logs.logsumexp(0))
        torch.testing.assert_close(responsibilities[i], logs.softmax(0))


def test_noisy_known_pixels():
    """All of them known is the denoiser; some, with little noise, is nearly the exact posterior."""
    net, y, mask = mixture(), randn(3, *SHAPE, seed=5), masks(3)
    torch.testing.assert_close(net.posterior_mean(y, torch.ones_like(mask), 0.4), net(y, 0.4))
    torch.testing.assert_close(net.posterior_mean(y, mask, 1e-6), net.posterior_mean(y, mask), rtol=0, atol=1e-6)
    levels = torch.tensor([0.0, 0.3, 2.0])
    rows = [net.posterior_mean(y[i : i + 1], mask[i : i + 1], levels[i]) for i in range(3)]
    torch.testing.assert_close(net.posterior_mean(y, mask, levels), torch.cat(rows))


def agree(samples, mean, covariance, z=4.5):
    """Sample moments within z standard errors of the exact ones."""
    n = len(samples)
    centred = samples - mean
    assert ((samples.mean(0) - mean).abs() <= z * (covariance.diagonal().clamp_min(0) / n).sqrt() + 1e-9).all()
    products = centred[:, :, None] * centred[:, None, :]
    error = products.std(0) / n**0.5
    assert ((products.mean(0) - covariance).abs() <= z * error + 1e-9).all()


def test_posterior_samples_have_the_brute_moments():
    net, n = mixture(spread=0.3), 4000
    y, mask = randn(1, *SHAPE, seed=5), masks(1, seed=1)
    logs, means, covariances = brute_posterior(net, y[0], mask[0])
    assert logs.softmax(0).max() < 0.95  # more than one component matters
    samples = net.posterior_sample(y.expand(n, -1, -1, -1), mask.expand(n, -1, -1, -1), range(n)).flatten(1)
    agree(samples, *moments(logs, means, covariances))


def test_posterior_variances_are_the_brute_ones():
    net, y, mask = mixture(spread=0.3), randn(5, *SHAPE, seed=5), masks(5)
    variances = net.posterior_variance(y, mask)
    for i in range(5):
        exact = moments(*brute_posterior(net, y[i], mask[i]))[1].diagonal()
        torch.testing.assert_close(variances[i].flatten(), exact, rtol=1e-6, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v, 0.5), y[:1]).reshape(16, 16)
    seen = net.posterior_variance(y[:1], torch.ones_like(mask[:1]), 0.5)
    torch.testing.assert_close(seen.flatten(), 0.25 * jacobian.diagonal().double(), rtol=1e-5, atol=1e-7)


def test_samples_have_the_moments_and_law_of_the_model():
    net, n = mixture(), 4000
    pi, mu, c = dense(net)
    samples = net.sample(range(n)).flatten(1)
    agree(samples, *moments(pi.log(), mu, c))
    # each component in its share
    share = net.responsibilities(samples.reshape(n, *SHAPE)).mean(0)
    assert ((share - pi).abs() < 4 * (pi * (1 - pi) / n).sqrt()).all()


def test_noisy_posterior_samples():
    net, n, sigma = mixture(), 3000, 0.5
    y = randn(1, *SHAPE, seed=5)
    ones = torch.ones(1, *SHAPE)
    samples = net.posterior_sample(y.expand(n, -1, -1, -1), ones.expand(n, -1, -1, -1), range(n), sigma)
    jacobian = torch.autograd.functional.jacobian(lambda v: net(v, sigma), y).reshape(16, 16)
    agree(samples.flatten(1), net(y, sigma).flatten(), sigma**2 * jacobian)


def test_all_known_and_all_unknown():
    net, y = mixture(), randn(3, *SHAPE, seed=5)
    ones, zeros = torch.ones(3, 1, 4, 4), torch.zeros(3, 1, 4, 4)
    assert torch.equal(net.posterior_mean(y, ones), y)
    assert torch.equal(net.posterior_sample(y, ones, range(3)), y)
    pi, mu, _ = dense(net)
    torch.testing.assert_close(net.posterior_mean(y, zeros).flatten(1), (pi @ mu).expand(3, -1))
    torch.testing.assert_close(net.log_likelihood(y, mask=zeros), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(net.posterior_sample(y, zeros, range(3)), net.sample(range(3)))


def test_hole_content_is_ignored_and_known_pixels_kept():
    net, y, mask = mixture(dtype=torch.float32), randn(3, *SHAPE, seed=5).float(), masks(3)
    other = torch.where(mask.bool(), y, float("nan"))
    for result in (net.posterior_mean(other, mask), net.posterior_sample(other, mask, range(3))):
        assert result.dtype == y.dtype and torch.equal(result[mask.bool()], y[mask.bool()])
    assert torch.equal(net.posterior_mean(other, mask), net.posterior_mean(y, mask))


def test_an_image_does_not_depend_on_its_batch():
    net = mixture((3, 16, 16), 4, 5, dtype=torch.float32)
    x = randn(7, 3, 16, 16).float()
    mask = torch.stack([make_mask("mixed", 16, i) for i in range(7)])
    sigma = torch.tensor([0.002, 0.1, 0.1, 1.0, 5.0, 80.0, 0.1])
    whole = [net(x, 0.3), net(x, sigma), net.posterior_mean(x, mask), net.posterior_sample(x, mask, range(10, 17))]
    for i in range(7):
        one, m = x[i : i + 1], mask[i : i + 1]
        parts = [net(one, 0.3), net(one, sigma[i]), net.posterior_mean(one, m), net.posterior_sample(one, m, [10 + i])]
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a[i : i + 1], b, rtol=0, atol=1e-6)


def test_many_images_are_cut_into_blocks(monkeypatch):
    net, y, mask = mixture(), randn(9, *SHAPE), masks(1).expand(9, 1, 4, 4)
    whole = net(y, 0.5), net.posterior_mean(y, mask), net.posterior_sample(y, mask, range(9)), net.log_likelihood(y)
    monkeypatch.setattr("aid_control.images.backbones.exact.BLOCK", 100)
    cut = net(y, 0.5), net.posterior_mean(y, mask), net.posterior_sample(y, mask, range(9)), net.log_likelihood(y)
    torch.testing.assert_close(whole, cut)
    assert net(y[:0], 0.5).shape == (0, *SHAPE) and net.log_likelihood(y[:0]).shape == (0,)


def test_limits():
    net, x = mixture(), randn(4, *SHAPE, seed=3)
    torch.testing.assert_close(net(x, 0.0), x)
    torch.testing.assert_close(net(x, 1e-5), x, rtol=0, atol=1e-7)
    pi, mu, _ = dense(net)
    torch.testing.assert_close(net(x * 1e7, 1e7).flatten(1), (pi @ mu).expand(4, -1), rtol=0, atol=1e-5)


def test_factorisations_are_cached_and_dropped_with_the_weights():
    net, x = mixture(), randn(2, *SHAPE)
    for i in range(100):
        net(x, 0.1 + i)
    assert len(net._cache) == 64
    before = net(x, 0.5)
    net.load_state_dict(mixture(spread=1.0).state_dict())
    assert not net._cache and not torch.equal(net(x, 0.5), before)
    net.float()
    assert not net._cache and net(x, 0.5).dtype == torch.float32
    with torch.inference_mode():
        net(x, 0.7)
    y = x.clone().requires_grad_()
    net(y, 0.7).sum().backward()  # a level first met in inference mode can be differentiated later
    assert y.grad is not None


@pytest.mark.parametrize(
    "call",
    [
        lambda net, x, m: net(x[0], 1.0),
        lambda net, x, m: net(x[..., :3], 1.0),
        lambda net, x, m: net(x, torch.ones(3)),
        lambda net, x, m: net(x, -1.0),
        lambda net, x, m: net(x, float("nan")),
        lambda net, x, m: net.log_likelihood(x * float("nan")),
        lambda net, x, m: net.posterior_mean(x, m[:1]),
        lambda net, x, m: net.posterior_mean(x, 0.5 * m),
        lambda net, x, m: net.posterior_mean(x, m * float("nan")),
        lambda net, x, m: net.posterior_mean(x + float("inf"), m),
        lambda net, x, m: net.posterior_sample(x, m, [1]),
        lambda net, x, m: net.assign(net.mean[:1], net.factor, net.noise),
        lambda net, x, m: net.assign(net.mean, net.factor, -net.noise),
        lambda net, x, m: net.assign(net.mean, net.factor * float("nan"), net.noise),
        lambda net, x, m: MixtureBackbone((3, 4), 1, 1),
        lambda net, x, m: MixtureBackbone(SHAPE, 0, 1),
    ],
)
def test_unusable_arguments_are_refused(call):
    with pytest.raises(ValueError, match="expected|holds"):
        call(mixture(), torch.zeros(2, *SHAPE), torch.ones(2, 1, 4, 4))


def test_file_round_trip(tmp_path):
    net, x = mixture(dtype=torch.float32), randn(2, *SHAPE).float()
    save_backbone(tmp_path / "full.safetensors", "Mixture", net.kwargs, net.state_dict())
    save_backbone(tmp_path / "half.safetensors", "Mixture", net.kwargs, net.compact())
    full, half = load_backbone(tmp_path / "full.safetensors"), load_backbone(str(tmp_path / "half.safetensors"))
    assert isinstance(full, MixtureBackbone) and isinstance(half, MixtureBackbone)
    assert torch.equal(full(x, 0.3), net(x, 0.3))
    torch.testing.assert_close(half(x, 0.3), net(x, 0.3), rtol=0, atol=2e-3)
    assert half.factor.dtype == torch.float32
    assert full.fingerprint != half.fingerprint and len(full.fingerprint) == 16
    assert load_backbone(tmp_path / "full.safetensors").fingerprint == full.fingerprint


def hostile(net):
    state = net.state_dict()
    return {
        "missing": {k: v for k, v in state.items() if k != "noise"},
        "shape": {**state, "mean": state["mean"][:, :-1].clone()},
        "nan": {**state, "factor": state["factor"] * float("nan")},
        "infinite": {**state, "log_weights": state["log_weights"] - float("inf")},
        "noise": {**state, "noise": state["noise"] * 0},
        "underflow": {**state, "noise": (state["noise"] * 1e-9).half()},
    }


@pytest.mark.parametrize("case", ["missing", "shape", "nan", "infinite", "noise", "underflow", "truncated", "unknown"])
def test_hostile_files(case, tmp_path):
    net, path = mixture(dtype=torch.float32), tmp_path / "bad.safetensors"
    save_backbone(path, "Mixture", net.kwargs, net.state_dict())
    if case == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif case == "unknown":
        save_tensors(path, net.state_dict(), {"precond": "Mixtures", "kwargs": "{}"})
    else:
        save_backbone(path, "Mixture", net.kwargs, hostile(net)[case])
    with pytest.raises(InputError, match=r"bad\.safetensors"):
        load_backbone(path)


# --- the shipped file -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces():
    return load_backbone("mixture")


def test_shipped_file(faces):
    assert asset("mixture-faces64.safetensors").stat().st_size <= 15_000_000
    assert load_backbone("mixture-faces64").fingerprint == faces.fingerprint
    assert isinstance(faces, MixtureBackbone) and faces.shape == (3, 64, 64)
    # faces look into the camera: the mean image is smooth and bright in the middle, samples stay in range
    samples = faces.sample(range(4))
    assert samples.std() < 1 and samples.abs().max() < 4


def test_shipped_denoiser_in_float32_is_that_of_float64(faces):
    clean, noise = faces.sample([1, 2]), randn(2, 3, 64, 64, seed=3).float()
    double = load_backbone("mixture").double()
    for sigma in (0.002, 0.05, 1.0, 80.0):
        x = clean + sigma * noise
        torch.testing.assert_close(faces(x, sigma).double(), double(x, sigma), rtol=0, atol=1e-5)


def test_shipped_mixture_inpaints(faces):
    """Through the functions users call, and never better in the mean than the exact posterior mean."""
    x = faces.sample(range(6))
    mask = make_mask("box", 64, 0).expand(6, 1, 64, 64)
    best = faces.posterior_mean(x, mask)
    results = [inpaint(faces, None, x, mask, steps=6), replacement(faces, x, mask, steps=6)]
    results.append(faces.posterior_sample(x, mask, range(100, 106)))
    for result in results:
        assert torch.equal(result[mask.expand_as(x) == 1], x[mask.expand_as(x) == 1])
        assert (result - x).square().mean() > (best - x).square().mean()
