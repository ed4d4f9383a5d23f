"""The guidance module, its critic and the Haar pyramid."""

import pytest
import torch

from aid_control.errors import InputError
from aid_control.images.clock import KarrasClock
from aid_control.images.guidance import Guidance, PyramidCritic, load_guidance, save_guidance
from aid_control.images.problem import GuidanceProblem, Observation, levels_of
from aid_control.images.pyramid import BANDS, LevelTable, band_energies, combine
from aid_control.policy import GaussianPolicy
from aid_control.rollout import rollout

PUBLISHED_64 = 61_805_571  # parameters of the published FFHQ-64 backbone, 61.81 M


class GaussianNet(torch.nn.Module):
    """Denoiser of a Gaussian image model that is diagonal in the Haar bands, mean zero."""

    shape, label_dim, sigma_min, sigma_max, fingerprint = (1, 32, 32), 0, 0.0, float("inf"), "gauss"

    def __init__(self, variances):
        super().__init__()
        self.l = variances

    def round_sigma(self, sigma):
        return torch.as_tensor(sigma)

    def forward(self, x, sigma, class_labels=None):
        return combine(x, self.l / (self.l + torch.as_tensor(sigma) ** 2))


def test_bands_are_orthogonal_and_complete():
    x = torch.randn(3, 2, 32, 32, dtype=torch.float64)
    bands = [combine(x, torch.eye(BANDS, dtype=torch.float64)[j]) for j in range(BANDS)]
    assert torch.allclose(sum(bands), x)
    gram = torch.stack([b.flatten(1) for b in bands], 1)
    gram = gram @ gram.mT
    assert torch.allclose(gram, torch.diag_embed(band_energies(x)), atol=1e-9)
    gains = torch.rand(BANDS, dtype=torch.float64)
    assert torch.allclose(combine(x, gains), sum(g * b for g, b in zip(gains, bands, strict=True)))
    assert torch.allclose(combine(x, torch.ones(BANDS, dtype=torch.float64), smooth=True), x)


def test_level_table_interpolates_in_log_sigma():
    table = LevelTable(1, sigma_min=0.01, sigma_max=100, knots=5)
    table.values.data[:, 0] = torch.arange(5.0)
    for sigma, want in ((0.01, 0), (0.1, 1), (1.0, 2), (10**0.5, 2.5), (100, 4), (1e-9, 0), (1e4, 4)):
        assert table(sigma).item() == pytest.approx(want, abs=1e-6)


def test_module_is_below_one_percent_of_the_published_backbone():
    assert Guidance(64).parameter_count() <= 0.01 * PUBLISHED_64


def test_zero_at_initialisation_and_known_pixels_of_the_guess():
    torch.manual_seed(0)
    guidance = Guidance(32)
    y, mask = torch.randn(2, 3, 32, 32), (torch.rand(2, 1, 32, 32) > 0.5).float()
    context = guidance.observe(y * mask, mask)
    assert torch.equal(context.guess * mask, y * mask)
    for t in (0.0, 40.0, 79.99):
        assert not guidance(torch.tensor(t, dtype=torch.float64), torch.randn_like(y), context, y).any()


def test_the_hole_of_y_is_not_looked_at():
    torch.manual_seed(0)
    guidance = Guidance(32)
    mask = torch.ones(1, 1, 32, 32)
    mask[..., 4:12] = 0
    a, b = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 32, 32)
    b = mask * a + (1 - mask) * b
    assert torch.equal(guidance.encoder(a, mask), guidance.encoder(b, mask))


def test_critic_is_the_value_of_the_gaussian_model_as_the_grid_is_refined():
    """Uncorrected, the critic solves the Hamilton-Jacobi-Bellman equation of its own model."""
    variances = torch.tensor([0.01, 0.03, 0.1, 0.3, 1.0, 2.0], dtype=torch.float64)
    beta = 0.5
    problem = GuidanceProblem(GaussianNet(variances), KarrasClock(0.002, 80.0), beta=beta)
    critic = PyramidCritic(None, beta, problem.pixels, variances).double()
    critic.band_variances = variances
    torch.manual_seed(0)
    goal = torch.randn(4, 1, 32, 32, dtype=torch.float64)
    x = 80 * torch.randn(4, 1, 32, 32, dtype=torch.float64)
    context = Observation(goal, torch.ones(4, 1, 32, 32), goal)

    def best(t, x, context, probe):
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            value = critic(t, x, context).sum()
        return -torch.autograd.grad(value, x)[0] * problem.pixels / beta

    gaps = []
    for steps in (100, 200, 400):
        path = rollout(problem, GaussianPolicy(best), x, levels_of(problem, steps), context, goal)
        value = critic(torch.tensor(0.0, dtype=torch.float64), x, context).detach()
        gaps.append(((path.total_cost() - value).mean() / value.mean()).abs().item())
    assert gaps[2] < 0.05 and gaps[0] > gaps[1] > gaps[2], gaps
    # at the end it is the terminal cost with the guess in place of the clean image
    assert torch.equal(critic(torch.tensor(80.0, dtype=torch.float64), x, context), problem.terminal_cost(x, goal))


@pytest.mark.parametrize("cost", ["levels", "drift"])
def test_control_costs(cost):
    problem = GuidanceProblem(GaussianNet(torch.ones(BANDS)), beta=2.0, cost=cost)
    t = torch.tensor(79.5, dtype=torch.float64)  # sigma = 0.5, r = 2
    assert problem.control_weight(t).item() == pytest.approx(2.0 / 1024 * (2 if cost == "levels" else 4))
    with pytest.raises(ValueError, match="levels or drift"):
        GuidanceProblem(problem.backbone, cost="other")


def test_file_round_trip_and_damage(tmp_path):
    torch.manual_seed(1)
    guidance = Guidance(32)
    guidance.backbone, guidance.facts = "abc", {"beta": 0.3}
    path = tmp_path / "g.safetensors"
    save_guidance(path, guidance)
    again = load_guidance(path)
    assert again.backbone == "abc" and again.facts == {"beta": 0.3}
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in guidance.state_dict().items())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    for bad in (path, tmp_path / "none.safetensors", "no-such-name"):
        with pytest.raises(InputError, match=str(bad)):
            load_guidance(bad)


def test_a_backbone_file_is_not_guidance():
    from aid_control.images.backbones.registry import asset

    with pytest.raises(InputError, match="not a guidance file"):
        load_guidance(asset("edm-faces64-mini.safetensors"))
