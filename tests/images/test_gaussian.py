"""Gaussian images against dense linear algebra, and the exact denoiser's limits."""

from __future__ import annotations

import json

import pytest
import torch

from aid_control.checkpoint import save_tensors
from aid_control.errors import InputError
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.mixture import MixtureBackbone
from aid_control.images.backbones.registry import load_backbone, save_backbone
from aid_control.images.problem import GuidanceProblem
from aid_control.images.sampler import edm_sampler


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(shape=(1, 4, 4), rank=3, seed=0, dtype=torch.float64):
    d = shape[0] * shape[1] * shape[2]
    noise = 0.05 + 0.2 * torch.rand(d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    net = GaussianBackbone(shape, rank).to(dtype)
    return net.assign(0.3 * randn(d, seed=seed), 0.5 * randn(rank, d, seed=seed + 1), noise)


def exponential_kernel(n=32, length=4.0):
    """Squared-exponential covariance of a signal: singular to rounding."""
    i = torch.arange(n, dtype=torch.float64)
    return torch.exp(-0.5 * ((i[:, None] - i) / length) ** 2)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 3.0, 80.0])
def test_denoiser_is_the_dense_one(sigma):
    net, x = gaussian(), randn(5, 1, 4, 4, seed=7) * (1 + sigma)
    c = net.covariance()
    flat, mu = x.flatten(1), net.mean[0]
    expected = mu + torch.linalg.solve(c + sigma**2 * torch.eye(16), (flat - mu).T).T @ c
    torch.testing.assert_close(net(x, sigma).flatten(1), expected, rtol=1e-9, atol=1e-9)


def test_denoiser_in_the_spectrum():
    net, x, s = gaussian(), randn(3, 1, 4, 4, seed=8), 0.7
    u, l = net.spectrum()
    assert (l.diff() <= 0).all() and l[-1] > 0
    torch.testing.assert_close(u @ u.T, torch.eye(16, dtype=torch.float64))
    torch.testing.assert_close((u * l) @ u.T, net.covariance())
    mu = net.mean[0]
    expected = mu + ((x.flatten(1) - mu) @ u * (l / (l + s**2))) @ u.T
    torch.testing.assert_close(net(x, s).flatten(1), expected)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_likelihood_is_the_dense_one(sigma):
    net, x = gaussian(), randn(5, 1, 4, 4, seed=3)
    law = torch.distributions.MultivariateNormal(
        net.mean[0], net.covariance() + sigma**2 * torch.eye(16, dtype=torch.float64)
    )
    torch.testing.assert_close(net.log_likelihood(x, sigma), law.log_prob(x.flatten(1)))


def test_limits():
    net, x = gaussian(), randn(4, 1, 4, 4, seed=3)
    torch.testing.assert_close(net(x, 0.0), x)
    torch.testing.assert_close(net(x, 1e-5), x, rtol=0, atol=1e-7)
    mean = net.mean.reshape(1, 1, 4, 4).expand_as(x)
    torch.testing.assert_close(net(x * 1e6, 1e6), mean, rtol=0, atol=1e-4)
    torch.testing.assert_close(net(x, float("inf")), mean)


def test_float32_is_close_to_float64_at_every_level():
    net = gaussian((3, 16, 16), 12)
    for sigma in (0.002, 0.05, 1.0, 20.0, 80.0):
        x = 0.5 * randn(4, 3, 16, 16, seed=1) + sigma * randn(4, 3, 16, 16, seed=2)
        single = GaussianBackbone(net.shape, 12).assign(net.mean, net.factor, net.noise)
        torch.testing.assert_close(single(x, sigma).double(), net(x, sigma), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1, 20])
def test_any_rank(rank):
    net, x = gaussian(rank=rank), randn(2, 1, 4, 4)
    c = net.covariance()
    law = torch.distributions.MultivariateNormal(net.mean[0], c)
    torch.testing.assert_close(net.log_likelihood(x), law.log_prob(x.flatten(1)))


def test_from_covariance_of_a_signal():
    c, mean = exponential_kernel(), torch.linspace(-1, 1, 32)
    net = GaussianBackbone.from_covariance(mean, c, dtype=torch.float64)
    assert net.shape == (1, 1, 32) and net.rank < 32
    assert not hasattr(net, "img_resolution")
    largest = torch.linalg.eigvalsh(c)[-1]
    assert torch.linalg.matrix_norm(net.covariance() - c, 2) <= 1.001e-6 * largest
    mask = torch.ones(2, 1, 1, 32)
    mask[0, ..., 8:20], mask[1, ..., 20:] = 0, 0
    y = net.sample([1, 2])
    m = net.posterior_mean(y, mask)
    dense = net.covariance()
    for i in range(2):
        o = mask[i].flatten().bool()
        expected = net.mean[0, ~o] + dense[~o][:, o] @ torch.linalg.solve(
            dense[o][:, o], (y[i].flatten() - net.mean[0])[o]
        )
        torch.testing.assert_close(m[i].flatten()[~o], expected, rtol=1e-5, atol=1e-5)


def test_from_covariance_keeps_a_regular_matrix():
    a = randn(9, 9)
    c = a @ a.T + 0.1 * torch.eye(9)
    net = GaussianBackbone.from_covariance(torch.zeros(1, 3, 3), c)
    assert net.shape == (1, 3, 3) and net.img_resolution == 3 and net.mean.dtype == torch.float32
    torch.testing.assert_close(net.covariance(), c, rtol=1e-5, atol=1e-5)
    white = GaussianBackbone.from_covariance(torch.zeros(4), 2 * torch.eye(4))
    assert white.rank == 0
    torch.testing.assert_close(white.covariance(), 2 * torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("mean", "covariance", "shape"),
    [
        (torch.zeros(4), torch.eye(5), None),
        (torch.zeros(4), torch.eye(4), (1, 2, 3)),
        (torch.zeros(4), -torch.eye(4), None),
        (torch.zeros(4), torch.zeros(4, 4), None),
        (torch.zeros(4), torch.eye(4) * float("nan"), None),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [-0.5, 1.0]]), None),
        (torch.zeros(3001), torch.zeros(1).expand(3001, 3001), None),
    ],
)
def test_from_covariance_refuses(mean, covariance, shape):
    with pytest.raises(InputError):
        GaussianBackbone.from_covariance(mean, covariance, shape)


def test_dense_matrices_of_large_images_are_refused():
    net = GaussianBackbone((3, 64, 64), 1)
    with pytest.raises(InputError, match="12288 pixels"):
        net.spectrum()


def test_one_component_mixture_is_the_gaussian():
    net, x = gaussian(), randn(3, 1, 4, 4, seed=5)
    mixture = MixtureBackbone(net.shape, 1, net.rank).double().assign(net.mean, net.factor, net.noise)
    mask = (randn(3, 1, 4, 4, seed=6) > 0).double()
    torch.testing.assert_close(mixture(x, 0.4), net(x, 0.4), rtol=0, atol=0)
    torch.testing.assert_close(mixture.log_likelihood(x, 0.4), net.log_likelihood(x, 0.4), rtol=0, atol=0)
    torch.testing.assert_close(mixture.posterior_mean(x, mask), net.posterior_mean(x, mask), rtol=0, atol=0)


def test_probability_flow_ends_where_the_formula_says():
    """The flow of a Gaussian maps x around mu to sqrt(l / (l + s^2)) x in every eigen-direction."""
    net = gaussian()
    latents = randn(2, 1, 4, 4, seed=4)
    out = edm_sampler(net, latents, num_steps=400)
    u, l = net.spectrum()
    mu = net.mean[0]
    expected = mu + ((80 * latents.flatten(1) - mu) @ u * (l / (l + 80.0**2)).sqrt()) @ u.T
    torch.testing.assert_close(out.flatten(1), expected, rtol=0, atol=2e-3)


def test_it_is_the_backbone_of_a_control_problem():
    problem = GuidanceProblem(gaussian((3, 8, 8), dtype=torch.float32))
    assert problem.pixels == 192
    x = torch.zeros(2, 3, 8, 8)
    assert problem.probe(torch.tensor(79.0), x, None).shape == x.shape


def test_file(tmp_path):
    net = gaussian((1, 4, 4), 3, dtype=torch.float32)
    save_backbone(tmp_path / "g.safetensors", "Gaussian", net.kwargs, net.compact())
    loaded = load_backbone(tmp_path / "g.safetensors")
    assert isinstance(loaded, GaussianBackbone) and loaded.mean.dtype == torch.float32 and loaded.fingerprint
    torch.testing.assert_close(loaded.covariance(), net.covariance(), rtol=2e-3, atol=1e-3)
    assert (loaded.sigma_min, loaded.sigma_max, loaded.label_dim) == (0.0, float("inf"), 0)
    assert sum(p.numel() for p in loaded.parameters()) == 1 + 16 * 5
    x = randn(2, 1, 4, 4).float().requires_grad_()
    loaded(x, 0.5).sum().backward()
    assert x.grad is not None and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("kwargs", [{}, [1], {"shape": 3, "rank": 1}, {"shape": [1, 4], "rank": 1},
                                    {"shape": [1, 4, 4], "rank": -1}, {"shape": [1, 4, 4], "rank": 2},
                                    {"shape": [1, 4, 4], "rank": 10**12}, {"shape": [1, 4, 4], "rank": 10**30},
                                    {"shape": ["a", 4, 4], "rank": 3}, {"shape": [1, 4, 4], "rank": None}])  # fmt: skip
def test_files_whose_description_does_not_fit(kwargs, tmp_path):
    net = gaussian((1, 4, 4), 3, dtype=torch.float32)
    save_tensors(tmp_path / "g.safetensors", net.state_dict(), {"precond": "Gaussian", "kwargs": json.dumps(kwargs)})
    with pytest.raises(InputError, match="g.safetensors"):
        load_backbone(tmp_path / "g.safetensors")
