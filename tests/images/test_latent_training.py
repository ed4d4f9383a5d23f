"""Guidance in latent space through the classes of pixels, and backbones from samples."""

import pytest
import torch

from aid_control.errors import InputError
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.guidance import Guidance, PyramidCritic
from aid_control.images.latents import TinyCodec
from aid_control.images.latents.training import LatentInpaintingData
from aid_control.images.problem import GuidanceProblem
from aid_control.images.training import band_variances
from aid_control.noise import generator
from aid_control.trainer import ActorCritic


def test_probabilistic_pca_finds_the_model_that_made_the_samples():
    rng = generator(1)
    net = GaussianBackbone((1, 4, 4), 2).double()
    net.assign(torch.randn(16, generator=rng), torch.randn(2, 16, generator=rng), torch.full((16,), 0.1))
    samples = net.sample(range(20_000))
    found = GaussianBackbone.from_samples(samples, 2).double()
    torch.testing.assert_close(found.mean, net.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(found.covariance(), net.covariance(), rtol=0, atol=0.15)  # deviation 0.04
    # it is the likeliest of its kind: above the truth on its own samples
    assert float(found.log_likelihood(samples).mean()) > float(net.log_likelihood(samples).mean())


@pytest.mark.parametrize("rank", [0, 5, 99])
def test_probabilistic_pca_refuses_too_few_samples(rank):
    with pytest.raises(InputError, match=f"rank is {rank}"):
        GaussianBackbone.from_samples(torch.randn(5, 1, 4, 4), rank)


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(0)
    codec = TinyCodec(8).eval().requires_grad_(False)
    images = torch.rand(40, 3, 64, 64, generator=generator(2)) * 2 - 1
    moments = codec.moments(images)
    codec.calibrate(moments[:, :4].mean((0, 2, 3)).tolist(), moments[:, :4].std((0, 2, 3)).tolist())
    return LatentInpaintingData(moments, codec, "box", seed=3)


def test_batches_are_a_function_of_seed_and_iteration(data):
    z, mask = data.clean_and_mask(6, 4)
    assert z.shape == (6, 4, 8, 8) and mask.shape == (6, 1, 8, 8)
    again = data.clean_and_mask(6, 4)
    assert torch.equal(z, again[0]) and torch.equal(mask, again[1])
    assert not torch.equal(z, data.clean_and_mask(6, 5)[0])
    # the 32x32 box of a 64x64 picture is 4x4 cells of 8 pixels
    assert (mask == mask[:1]).all() and float((1 - mask[0]).sum()) == 16


def test_latents_are_drawn_anew(data):
    first, later = data.clean_and_mask(40, 0)[0], data.clean_and_mask(40, 1)[0]
    order = [data.clean_and_mask(40, i)[0].flatten(1) for i in (0, 1)]
    nearest = torch.cdist(order[0], order[1]).amin(1)
    assert (nearest > 0).all() and float(nearest.mean()) < 0.5 * float(torch.cdist(order[0], order[1]).mean())
    assert first.shape == later.shape


def test_guidance_learns_in_latent_space(data):
    z = data.codec.draw(data.images, range(40))
    net = GaussianBackbone.from_samples(z, 12)
    problem = GuidanceProblem(net, beta=1.0, base="projected")
    guidance = Guidance(8, 4, bands=3, coarse=2, base="projected")
    critic = PyramidCritic(guidance.encoder, 1.0, problem.pixels, band_variances(z, 3))
    trainer = ActorCritic(problem, guidance, critic, estimator="backprop", actor_lr=1e-2, value_scale=0.1, seed=1)
    costs = [trainer.iterate(data.rollout_batch(problem, guidance, 16, i, 8))["cost"] for i in range(25)]
    assert sum(costs[-5:]) < 0.9 * sum(costs[:5])
