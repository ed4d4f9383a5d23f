"""Guided denoisers: golden samples, exact answers on Gaussians, intervals, and their place in the samplers."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor, nn

from aid_control.checkpoint import load_tensors
from aid_control.errors import InputError
from aid_control.images.backbones.edm2 import EDM2Precond
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.precond import Denoiser
from aid_control.images.backbones.registry import load_backbone
from aid_control.images.guided import GuidedDenoiser, autoguidance, classifier_free
from aid_control.images.inpaint import inpaint
from aid_control.images.sampler import ablation_sampler, edm_sampler


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


class Classes(Denoiser):
    """Exact denoisers of N(m_c, l); without a label, of N(m_0, l). Remembers what it was asked."""

    def __init__(self, means=(0.0, 1.0, -2.0), l=0.5, shape=(1, 2, 2), label_dim=2, fingerprint="") -> None:
        nn.Module.__init__(self)
        self.means, self.l, self.shape, self.label_dim = torch.tensor(means).double(), l, shape, label_dim
        self.img_channels, self.img_resolution, self.use_fp16 = shape[0], shape[1], False
        self.fingerprint = fingerprint
        self.calls: list[tuple[int, bool]] = []

    def forward(self, x, sigma, class_labels=None, augment_labels=None):
        self.calls.append((len(x), class_labels is not None))
        mean = self.means[0] if class_labels is None else (class_labels.double() @ self.means[1:]).reshape(-1, 1, 1, 1)
        s2 = torch.as_tensor(sigma).double().reshape(-1, 1, 1, 1) ** 2
        return mean + (x - mean) * self.l / (self.l + s2)


X = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.eye(2)[[0, 1, 0]].double()


def case(name, shared):
    """(main, guide, golden tensors)."""
    path = shared / "reference" / "edm2" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    tensors, metadata = load_tensors(path)
    kwargs = json.loads(metadata["kwargs"])
    nets = []
    for prefix, label_dim in (("param/", kwargs["label_dim"]), ("gparam/", 0)):
        net = EDM2Precond(**(kwargs | {"label_dim": label_dim}))
        net.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        nets.append(net.eval().requires_grad_(False))
    return *nets, tensors


@pytest.mark.parametrize("name", ["pixel_cond", "latent_cond", "latent_uncond"])
def test_golden_guided_sampler(name, shared):
    main, guide, t = case(name, shared)
    labels = t["in/class_labels"][:2] if main.label_dim else None
    net = classifier_free(main, 1.7, unconditional=guide)
    x = edm_sampler(net, t["sampler/latents"], labels, num_steps=16)
    assert relative(x, t["sampler/guided16_1.7"]) <= 1e-5
    # and the golden tells guided from plain
    assert relative(t["sampler/heun16"], t["sampler/guided16_1.7"]) > 0.1
    if not main.label_dim:
        again = edm_sampler(autoguidance(main, guide, 1.7), t["sampler/latents"], num_steps=16)
        assert torch.equal(again, x)


@pytest.mark.parametrize("g", [-0.5, 0.0, 1.0, 1.7, 4.0])
def test_formula(g):
    net, sigma = Classes(), torch.tensor([0.1, 1.0, 20.0])
    main, null = net(X, sigma, LABELS), net(X, sigma)
    torch.testing.assert_close(classifier_free(net, g)(X, sigma, LABELS), g * main + (1 - g) * null)
    other = Classes((0, 0.3, 0.2), l=2.0)
    torch.testing.assert_close(
        autoguidance(net, other, g)(X, sigma, LABELS), g * main + (1 - g) * other(X, sigma, LABELS)
    )
    free = classifier_free(net, g, unconditional=other)(X, sigma, LABELS)
    torch.testing.assert_close(free, g * main + (1 - g) * other(X, sigma))


@pytest.mark.parametrize("g", [1.0, 2.5])
def test_guided_flow_of_gaussians_is_exact(g):
    """Equal variances: D = m_g + (x - m_g) l/(l + s^2), m_g = g m_c + (1 - g) m_0, so samples are N(m_g, l)'s."""
    net = Classes()
    latents = torch.randn(500, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([[0.0, 1.0]]).expand(500, 2)
    x = edm_sampler(classifier_free(net, g), latents, labels, num_steps=64)
    shifted = Classes((-2 * g, 0, 0))
    torch.testing.assert_close(x, edm_sampler(shifted, latents, num_steps=64))
    assert float(x.mean()) == pytest.approx(-2 * g, abs=0.06)


def test_interval_is_per_image_and_half_open():
    main, guide = Classes(), Classes((5.0, 5.0, 5.0))
    net = autoguidance(main, guide, 2.0, interval=(0.5, 3.0))
    always = autoguidance(main, guide, 2.0)
    sigma = torch.tensor([0.5, 3.0, 3.1])
    out = net(X, sigma, LABELS)
    assert guide.calls == [(1, True)]  # the images outside cost nothing
    assert torch.equal(out[[0, 2]], main(X, sigma, LABELS)[[0, 2]])
    torch.testing.assert_close(out[1], always(X, sigma, LABELS)[1])
    # labels for all images at once
    one = LABELS[0]
    torch.testing.assert_close(net(X, sigma, one[None]), net(X, sigma, one.expand(3, 2)))
    for level, guided in ((0.4, False), (1.0, True), (4.0, False)):
        for sigma in (level, torch.tensor(level), torch.full((3,), level)):
            expected = (always if guided else main)(X, sigma, LABELS)
            torch.testing.assert_close(net(X, sigma, LABELS), expected)


def test_guide_is_called_only_where_it_matters():
    net, guide = Classes(), Classes()
    classifier_free(net, 1.0)(X, 1.0, LABELS)
    assert net.calls == [(3, True)]
    net.calls.clear()
    classifier_free(net, 3.0)(X, 1.0)  # no label: both would be the null class
    assert net.calls == [(3, False)]
    classifier_free(net, 3.0, unconditional=guide)(X, 1.0)
    autoguidance(net, guide, 3.0)(X, 1.0, LABELS)
    assert guide.calls == [(3, False), (3, True)]


def test_it_is_a_denoiser():
    main, guide = Classes(fingerprint="a"), Classes(fingerprint="b")
    main.sigma_min, main.sigma_max, guide.sigma_min, guide.sigma_max = 0.01, 70.0, 0.02, 100.0
    main.round_sigma = lambda sigma: torch.as_tensor(sigma).clip(0.05)
    net = autoguidance(main, guide, 2.0)
    assert isinstance(net, Denoiser)
    assert (net.shape, net.img_channels, net.img_resolution, net.label_dim) == ((1, 2, 2), 1, 2, 2)
    assert (net.sigma_min, net.sigma_max) == (0.02, 70)
    assert float(net.round_sigma(torch.tensor(0.01))) == pytest.approx(0.05)


def test_fingerprint_tells_networks_and_settings():
    a, b = Classes(fingerprint="a"), Classes(fingerprint="b")
    nets = [
        classifier_free(a, 2.0),
        classifier_free(a, 2.1),
        classifier_free(a, 2.0, (0.0, 3.0)),
        classifier_free(b, 2.0),
        classifier_free(a, 2.0, unconditional=b),
        autoguidance(a, b, 2.0),
        autoguidance(b, a, 2.0),
    ]
    marks = [net.fingerprint for net in nets]
    assert len(set(marks)) == len(marks) and all(len(m) == 16 for m in marks)
    assert classifier_free(a, 2.0).fingerprint == marks[0]
    assert autoguidance(a, Classes(), 2.0).fingerprint == ""


def test_given_networks_are_left_as_they_are():
    main, guide = Classes().eval(), Classes().train()
    net = autoguidance(main, guide, 2.0)
    assert (net.training, main.training, guide.training) == (False, False, True)
    assert net.eval().guide.training is False


def test_guided_denoiser_is_differentiable_in_the_image():
    net = autoguidance(Classes(), Classes(l=2.0), 2.0, interval=(0.5, 3.0))
    x = X.clone().requires_grad_()
    sigma = torch.tensor([0.1, 1.0, 9.0]).double()
    (grad,) = torch.autograd.grad(net(x, sigma, LABELS).sum(), x)
    plain, other = 0.5 / (0.5 + sigma**2), 2 / (2 + sigma**2)
    expected = torch.where(torch.tensor([False, True, False]), 2 * plain - other, plain)
    torch.testing.assert_close(grad, expected.reshape(-1, 1, 1, 1).expand_as(x))


def test_autoguidance_of_a_network_by_itself_is_the_network():
    torch.manual_seed(0)
    net = load_backbone()
    x = 3 * torch.randn(2, *net.shape)
    torch.testing.assert_close(autoguidance(net, net, 3.0)(x, 2.0), net(x, 2.0))


def test_wherever_a_denoiser_may_stand():
    """Samplers and inpainting: on Gaussians with one covariance, guidance is the Gaussian of the moved mean."""
    shape, eye = (1, 4, 4), torch.eye(16)

    def gaussian(mean: float) -> GaussianBackbone:
        return GaussianBackbone.from_covariance(torch.full((16,), mean), 0.3 * eye, shape, dtype=torch.float64)

    net, moved = autoguidance(gaussian(0.2), gaussian(0.1), 3.0), gaussian(0.4)
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    for sampler in (edm_sampler, ablation_sampler):
        torch.testing.assert_close(sampler(net, latents, num_steps=6), sampler(moved, latents, num_steps=6))
    mask = torch.ones(2, 1, 4, 4)
    mask[..., 1:3] = 0
    y = torch.full((2, *shape), 0.5)
    for solver in ("euler", "heun"):
        kwargs = {"steps": 6, "solver": solver, "seeds": [0, 1]}
        torch.testing.assert_close(inpaint(net, None, y, mask, **kwargs), inpaint(moved, None, y, mask, **kwargs))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guidance": math.nan}, "guidance is nan"),
        ({"guidance": math.inf}, "guidance is inf"),
        ({"interval": (3.0, 3.0)}, "interval is"),
        ({"interval": (-1.0, 3.0)}, "interval is"),
        ({"interval": (math.nan, 3.0)}, "interval is"),
        ({"main": Classes(label_dim=0)}, "no classes to leave out"),
        ({"guide": Classes(shape=(3, 2, 2))}, "guide of images"),
        ({"guide": Classes(label_dim=0), "guide_labels": True}, "guide of 0 classes"),
        ({"guide_labels": True}, "guide of none classes"),
    ],
)
def test_hostile_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        GuidedDenoiser(**({"main": Classes(), "guide": None, "guidance": 2.0} | arguments))


def test_networks_without_a_common_level_are_refused():
    low, high = Classes(), Classes()
    low.sigma_max, high.sigma_min = 1.0, 2.0
    with pytest.raises(InputError, match="no noise level in common"):
        autoguidance(low, high, 2.0)
