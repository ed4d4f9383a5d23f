"""DAVI: its objective on Gaussians against closed forms, one evaluation, training and its restart."""

from __future__ import annotations

import pytest
import torch

from aid_control.checkpoint import load_state, save_state
from aid_control.errors import InputError
from aid_control.images.backbones.conditional import ConditionalDenoiser, save_conditional
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.precond import EDMPrecond
from aid_control.images.backbones.registry import load_backbone
from aid_control.images.backbones.wrappers import Counted
from aid_control.images.clock import DDPMClock
from aid_control.images.methods.davi import SIGMA_MAX, bridge, bridge_weight, davi, generate, kl_direction, load_davi
from aid_control.images.methods.davi_training import DaviLoss, DaviTrainer, generator_loss
from aid_control.images.training import InpaintingData
from aid_control.noise import normal, per_image_normal

TINY = dict(
    img_resolution=16, img_channels=3, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[],
    dropout=0.0,
)  # fmt: skip
D = 4


def networks():
    """A tiny prior and a generator that starts from it."""
    torch.manual_seed(0)
    prior = EDMPrecond(**TINY)
    with torch.no_grad():
        for i, p in enumerate(prior.parameters()):
            p.copy_(p + 0.1 * normal(p.shape, 11, i))
    prior.eval().requires_grad_(False)
    return prior, ConditionalDenoiser.from_backbone(prior, TINY).eval()


def images(n=3, seed=0):
    return torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def box(n=3):
    mask = torch.ones(n, 1, 16, 16)
    mask[..., 4:12, 4:12] = 0
    return mask


def law(seed: int) -> tuple[torch.Tensor, torch.Tensor, GaussianBackbone]:
    """Mean, covariance and exact denoiser of a Gaussian signal."""
    root = normal((D, D), seed).double()
    mean, c = 0.3 * normal((D,), seed, 1).double(), 0.1 * root @ root.T + 0.05 * torch.eye(D)
    return mean, c, GaussianBackbone.from_covariance(mean, c, (1, 1, D), dtype=torch.float64)


def kl(m: torch.Tensor, c: torch.Tensor, mu: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """KL(N(m, c) || N(mu, p))."""
    shift = m - mu
    quadratic = shift @ torch.linalg.solve(p, shift)
    return 0.5 * (torch.trace(torch.linalg.solve(p, c)) + quadratic - D + torch.logdet(p) - torch.logdet(c))


def test_no_divergence_from_itself():
    _, _, net = law(1)
    x = normal((8, 1, 1, D), 2).double()
    sigma = torch.linspace(0.1, 9, 8, dtype=torch.float64)
    assert not kl_direction(net, net, x, sigma, normal(x.shape, 3).double()).any()


@pytest.mark.parametrize("sigma", [0.05, 0.5, 4.0])
def test_direction_is_the_gradient_of_the_divergence(sigma):
    """Same covariance, another mean: s^-2 (D_psi - D_theta) is the gradient of KL(q_s || p_s) in q's mean."""
    mu, c, prior = law(1)
    m = (mu + torch.tensor([0.5, -0.2, 0.1, 0.4])).requires_grad_()
    learned = GaussianBackbone.from_covariance(m.detach(), c, (1, 1, D), dtype=torch.float64)
    noisy = c + sigma**2 * torch.eye(D)
    (expected,) = torch.autograd.grad(kl(m, noisy, mu, noisy), m)
    x = normal((5, 1, 1, D), 4).double()
    found = kl_direction(prior, learned, x, torch.full((5,), sigma), normal(x.shape, 5).double()) / sigma**2
    torch.testing.assert_close(found.reshape(5, D), expected.expand(5, D), rtol=1e-6, atol=1e-9)


def test_objective_is_the_gradient_of_the_divergence_in_the_generator():
    """x = m + A z: the loss's gradient in (m, A), w = 1/s^2, is KL's, over whitened pairs +-z."""
    mu, c, prior = law(1)
    m, a, sigma, n = torch.randn(D, generator=torch.Generator().manual_seed(1)).double() * 0.3, law(2)[1], 0.4, 2000
    m.requires_grad_(), a.requires_grad_()
    learned = GaussianBackbone.from_covariance(m.detach(), (a @ a.T).detach(), (1, 1, D), dtype=torch.float64)
    zn = normal((n, 2 * D), 6).double()
    zn = torch.cat([zn, -zn])
    zn = zn @ torch.linalg.inv(torch.linalg.cholesky(zn.T @ zn / len(zn))).T  # first two moments are exact
    z, noise = zn[:, :D], zn[:, D:].reshape(-1, 1, 1, D)
    x = (m + z @ a.T).reshape(-1, 1, 1, D)
    s = torch.full((len(x),), sigma, dtype=torch.float64)
    direction = kl_direction(prior, learned, x.detach(), s, noise)
    ones = torch.ones(len(x), 1, 1, D, dtype=torch.float64)
    loss = generator_loss(x, x.detach(), x.detach(), ones, direction, s, DaviLoss(1, 0, 0, 0), lambda t: t**-2)
    found = torch.autograd.grad(loss * D, (m, a))  # the loss is a mean over pixels
    eye = sigma**2 * torch.eye(D)
    exact = torch.autograd.grad(kl(m, a @ a.T + eye, mu, c + eye), (m, a))
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)
        assert one.abs().max() > 1e-2


def test_descent_finds_the_posterior():
    """A Gaussian generator with exact scores, moved down the objective, ends at the prior given the known pixels.

    With w = 1/s^2 and a data term of weight a, the stationary mean at small s solves
    C^-1 (m - mu) = 2 a M (y - m): a posterior with noise variance 1/(2 a).
    """
    mu, c, prior = law(1)
    mask = torch.tensor([1.0, 0, 1, 0]).double().reshape(1, 1, 1, D)
    y, a, sigma = torch.tensor([0.4, 0.0, -0.3, 0.0]).double(), 50.0, 1e-3
    m = mu.clone().requires_grad_()
    for _ in range(1000):
        learned_at = m.detach()
        # D_psi - D_theta of two Gaussians of one covariance, from the exact denoisers
        learned = GaussianBackbone.from_covariance(learned_at, c, (1, 1, D), dtype=torch.float64)
        x = m.reshape(1, 1, 1, D)
        s = torch.tensor([sigma]).double()
        direction = kl_direction(prior, learned, x.detach(), s, torch.zeros_like(x))
        y4 = y.reshape(1, 1, 1, D)
        loss = generator_loss(x, y4, y4, mask, direction, s, DaviLoss(1, a, 0, 0), lambda t: t**-2)
        (gradient,) = torch.autograd.grad(loss * D, m)
        with torch.no_grad():
            m -= 4e-3 * gradient
        if float(gradient.abs().max()) < 1e-7:
            break
    weights = torch.diag(2 * a * mask.flatten())
    p = torch.linalg.inv(c)
    expected = torch.linalg.solve(p + weights, p @ mu + weights @ y)
    torch.testing.assert_close(m.detach(), expected, rtol=0, atol=2e-3)


def test_data_terms():
    x0, y, mask = images(), images() * box(), box()
    x = images(seed=5).requires_grad_()
    nothing, s = torch.zeros_like(x0), torch.ones(3)
    loss = generator_loss(x, x0, y, mask, nothing, s, DaviLoss(1.0, 0.5, 1.0, 0.1))
    known, whole = (mask * (x0 - x)).square().mean(), (x0 - x).square().mean()
    torch.testing.assert_close(loss, 1.5 * known + 0.1 * whole)
    direction = normal(x0.shape, 8)
    (gradient,) = torch.autograd.grad(
        generator_loss(x, x0, y, mask, direction, torch.tensor([0.5, 1.0, 4.0]), DaviLoss(2.0, 0, 0, 0)), x
    )
    torch.testing.assert_close(gradient, 2 * direction / torch.tensor([0.5, 1.0, 4.0]).reshape(3, 1, 1, 1) / x.numel())


def test_bridge():
    x0, y, z = images(), images(seed=1), normal((3, 3, 16, 16), 1)
    tau = torch.tensor([0.0, 0.5, 1.0])
    u = bridge(x0, y, tau, torch.tensor([0.0, 1.0, SIGMA_MAX]), z, 0.1)
    assert torch.equal(u[0], x0[0])
    torch.testing.assert_close(u[1], (x0[1] + y[1]) / 2 + 0.05 * z[1])
    torch.testing.assert_close(u[2], y[2] + 0.1 * z[2], rtol=0, atol=1e-4)
    grid = torch.linspace(0, 1, 101)
    assert (bridge_weight(grid).diff() > 0).all()
    torch.testing.assert_close(bridge_weight(grid) + bridge_weight(1 - grid), torch.ones(101))


def test_bridge_weight_is_the_mirrored_schedules():
    """Rates rising, then falling, along time: m = (variance before) / (variance before + variance after)."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[:500]
    rates = torch.cat([beta, beta.flip(0)])
    share = rates.cumsum(0) / rates.sum()
    tau = (torch.arange(1000, dtype=torch.float64) + 1) / 1000
    torch.testing.assert_close(bridge_weight(tau), share, rtol=0, atol=6e-3)


def test_start_is_the_backbone_at_the_first_level():
    """Before training I(y + h z) = D(sqrt(1 + s^2) (y + h z); s)."""
    prior, net = networks()
    y, mask, z = images() * box(), box(), normal((3, 3, 16, 16), 2)
    level = torch.tensor([80.0, 3.0, 0.2])
    u = y + 0.1 * z
    expected = prior((1 + level**2).sqrt().reshape(-1, 1, 1, 1) * u, level)
    torch.testing.assert_close(generate(net, u, y, mask, level), expected, rtol=1e-5, atol=2e-5)


def test_one_evaluation_known_pixels_and_seeds():
    prior, net = networks()
    frozen, module = Counted(prior), Counted(net)
    x, mask, calls = images(), box(), []
    spoilt = torch.where(mask.bool(), x, float("nan"))
    out = davi(frozen, spoilt, mask, 50, module=module, seeds=[3, 4, 5], callback=lambda k, x: calls.append(k))
    assert (module.forward_calls, frozen.forward_calls, calls) == (3, 0, [0])
    assert torch.equal(out[mask.bool().expand_as(out)], x[mask.bool().expand_as(x)])
    again = davi(prior, x, mask, 1, module=net, seeds=[7, 4, 5])
    assert torch.equal(again[1:], out[1:]) and not torch.equal(again[0], out[0])
    z = per_image_normal([3, 4, 5], (3, 16, 16))
    level = torch.full((3,), SIGMA_MAX)
    u = bridge(x, x * mask, torch.ones(3), level, z)
    expected = generate(net, u, x, mask, level)
    torch.testing.assert_close(out[:, :, 4:12, 4:12], expected[:, :, 4:12, 4:12], rtol=1e-4, atol=1e-4)
    still = davi(prior, x, mask, module=net, seeds=[7, 4, 5], perturbation=0.0)
    torch.testing.assert_close(still, davi(prior, x, mask, module=net, seeds=[0, 1, 2], perturbation=0.0))
    with pytest.raises(InputError, match="expected \\(B, 3, 16, 16\\)"):
        davi(prior, x[..., :8], mask, module=net)


def trainer(seed=0, **kwargs):
    prior, net = networks()
    data = InpaintingData(((images(12, seed=4) + 1) * 127.5).to(torch.uint8), "mixed", seed)
    return DaviTrainer(net, data, prior, batch=4, seed=seed, **kwargs)


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
    pairs = [(whole.average, second.average)]
    pairs += [(whole.networks[k].state_dict(), second.networks[k].state_dict()) for k in ("net", "score")]
    for a, b in pairs:
        assert all(torch.equal(v, b[k]) for k, v in a.items())
    second.save(tmp_path / "d.safetensors")
    again = load_davi(tmp_path / "d.safetensors").state_dict()
    assert all(torch.equal(v, again[k]) for k, v in whole.average.items())


def test_three_networks():
    """An iteration moves generator and learned score, and leaves the prior as it is."""
    learner = trainer()
    frozen = {k: v.clone() for k, v in learner.prior.state_dict().items()}
    score = {k: v.clone() for k, v in learner.learned.state_dict().items()}
    scalars = learner.step()
    assert set(scalars) == {"hole_mse", "score", "kl"} and all(v == v for v in scalars.values())
    assert all(torch.equal(v, frozen[k]) for k, v in learner.prior.state_dict().items())
    assert any(not torch.equal(v, score[k]) for k, v in learner.learned.state_dict().items())
    assert not any(p.requires_grad for p in learner.prior.parameters())
    assert all(p.grad is not None for p in learner.net.model.enc["16x16_conv"].parameters())


def test_pasting_leaves_the_known_terms_without_effect():
    def after(paste, **weights):
        learner = trainer(loss=DaviLoss(**weights), paste=paste)
        learner.step(), learner.step()
        return learner.net.state_dict()

    def same(a, b):
        return all(torch.equal(v, b[k]) for k, v in a.items())

    assert same(after(True), after(True, consistency=7.0, known=9.0))
    assert not same(after(False), after(False, consistency=7.0, known=9.0))
    assert not same(after(True), after(True, regression=3.0))


def test_levels_are_the_schedules_within_the_range():
    levels = trainer().levels
    known = torch.tensor(DDPMClock().levels).flip(0)
    assert len(levels) == 1000 and float(levels.max()) == SIGMA_MAX and torch.equal(levels[:900], known[:900])


def test_training_lowers_the_hole_error():
    colours = torch.randint(60, 200, (32, 3, 1, 1), generator=torch.Generator().manual_seed(0))
    data = InpaintingData(colours.expand(-1, -1, 16, 16).to(torch.uint8), "half", 0)
    prior, net = networks()
    # the random prior knows nothing of these images: its pull is kept small
    learner = DaviTrainer(net, data, prior, batch=8, lr=3e-3, loss=DaviLoss(0.01, 0.5, 1.0, 1.0))
    errors = [learner.step()["hole_mse"] for _ in range(40)]
    assert sum(errors[-8:]) < 0.6 * sum(errors[:8])


def test_files_are_told_apart(tmp_path):
    _, net = networks()
    save_conditional(tmp_path / "p.safetensors", "palette", net)
    with pytest.raises(InputError, match="not a davi file"):
        load_davi(tmp_path / "p.safetensors")


def test_shipped_generator():
    try:
        net = load_davi()
    except InputError:
        pytest.skip("davi-faces64-mini is not shipped yet")
    frozen = load_backbone()
    assert net.backbone == frozen.fingerprint and net.shape == frozen.shape
