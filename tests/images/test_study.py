"""Exact image models for trainers: samples, examinations, and short runs whose success is not luck."""

import copy
import math

import pytest
import torch

from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.mixture import MixtureBackbone
from aid_control.images.optimum import GaussianOptimum
from aid_control.images.problem import Observation
from aid_control.images.signals import MatrixCritic, gap_masks, squared_exponential
from aid_control.images.study import TRAINERS, Examination, Recipe, faces, fit_guess, signals, train
from aid_control.noise import generator
from aid_control.policy import GaussianPolicy
from aid_control.rollout import rollout


def small_mixture():
    rng = generator(3)
    net = MixtureBackbone((1, 8, 8), 2, 3)
    return net.assign(
        0.3 * torch.randn(2, 64, generator=rng), 0.3 * torch.randn(2, 3, 64, generator=rng),
        torch.full((2, 64), 0.02), torch.tensor([0.0, 1.0]),
    )  # fmt: skip


def test_samples_have_the_moments_of_the_backbone():
    net = small_mixture()
    study = faces(net, steps=3)
    x, mask, noise = study.draw(20_000, 5)
    assert mask.shape == (20_000, 1, 8, 8) and noise.shape == x.shape
    weights = net.log_weights.softmax(0)
    mean = weights @ net.mean
    torch.testing.assert_close(x.flatten(1).mean(0), mean, rtol=0, atol=0.03)
    spread = net.mean - mean
    second = sum(w * (f.T @ f + n.diag() + s.outer(s)) for w, f, n, s in zip(weights, net.factor, net.noise, spread))  # noqa: B905
    torch.testing.assert_close(x.flatten(1).T.cov(), second, rtol=0, atol=0.04)
    again = study.draw(10, 5)
    assert torch.equal(again[0], study.draw(10, 5)[0]) and not torch.equal(again[0], study.draw(10, 6)[0])


def test_gaussian_of_a_mixture_has_its_mean_and_covariance():
    net = small_mixture()
    gauss = GaussianBackbone.matching(net, 8).double()
    weights = net.log_weights.double().softmax(0)
    mean = weights @ net.mean.double()
    spread = net.mean.double() - mean
    parts = zip(weights, net.factor.double(), net.noise.double(), spread, strict=True)
    covariance = sum(w * (f.T @ f + n.diag() + s.outer(s)) for w, f, n, s in parts)
    torch.testing.assert_close(gauss.mean[0], mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(gauss.covariance(), covariance, rtol=0, atol=1e-5)
    half = GaussianBackbone.matching(net, 4).double()
    pool = torch.zeros(16, 64, dtype=torch.float64)
    for i in range(64):
        pool[(i // 8) // 2 * 4 + (i % 8) // 2, i] = 0.25
    torch.testing.assert_close(half.mean[0], pool @ mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(half.covariance(), pool @ covariance @ pool.T, rtol=0, atol=1e-5)


def test_gaps_are_one_run_of_zeros():
    masks = gap_masks(200, 32, 1)
    holes = (1 - masks).flatten(1).sum(1)
    assert masks.shape == (200, 1, 1, 32) and holes.min() >= 8 and holes.max() <= 24 and len(holes.unique()) > 10
    edges = torch.nn.functional.pad(masks.flatten(1), (1, 1), value=1.0).diff().abs().sum(1)
    assert (edges == 2).all()


def test_matrix_critic_is_the_value_of_white_signals_as_the_grid_is_refined():
    n = 4
    study = signals(n, beta=0.5)
    net = squared_exponential(n, length=1e-3)  # white
    torch.testing.assert_close(net.covariance(), torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-5)
    problem = study.problem
    problem.backbone = net
    critic = MatrixCritic(torch.nn.Identity(), n, problem.clock, 0.5)
    m, x = torch.randn(5, 1, 1, n, generator=generator(1)), torch.randn(5, 1, 1, n, generator=generator(2)) * 80
    gaps = []
    for steps in (80, 160, 320):
        optimum = GaussianOptimum(problem, problem.clock.grid(steps), m)
        have = critic(torch.tensor(0.0), x, Observation(m, torch.ones_like(m), m)).detach().double()
        gaps.append(float((have / optimum.value(torch.tensor(0.0), x) - 1).abs().max()))
    assert gaps[2] < 0.02 and gaps[0] / gaps[1] == pytest.approx(2, rel=0.2)


class Oracle(torch.nn.Module):
    """The optimum for whatever observation, by the exact posterior mean."""

    def __init__(self, study):
        super().__init__()
        self.study = study

    def observe(self, y, mask):
        return Observation(y, mask, self.study.backbone.posterior_mean(y, mask))

    def forward(self, t, x, context, probe):
        return GaussianOptimum(self.study.problem, self.study.grid, context.guess)(t, x)


def test_the_examination_gives_one_to_the_optimum_and_zero_to_nothing():
    study = signals(8, steps=6)
    exam = Examination(study, 40)
    best = exam.judge(Oracle(study))
    assert best["captured"] == pytest.approx(1, abs=1e-5) and best["error"] < 1e-5
    nothing = Oracle(study)
    nothing.forward = lambda t, x, context, probe: torch.zeros_like(x)
    idle = exam.judge(nothing)
    assert idle["captured"] == pytest.approx(0, abs=1e-6) and idle["error"] == pytest.approx(1, abs=1e-6)
    assert exam.optimal < exam.unguided and best["psnr"] > idle["psnr"]


def test_the_examination_of_a_mixture_searches_its_optimum():
    study = faces(small_mixture(), beta=0.3, steps=5, mask="half")
    exam = Examination(study, 6, search=40)
    assert exam.optimal < 0.7 * exam.unguided
    # a Gaussian policy cannot do better than each image's own optimum
    assert exam.judge(study.networks()[0])["captured"] < 1
    again = Examination(study, 6, optimal=exam.optimal)
    assert again.best is None and again.unguided == exam.unguided
    assert math.isnan(exam.judge(study.networks()[0])["error"])


@pytest.fixture(scope="module")
def prepared():
    torch.manual_seed(0)
    study = signals(8, steps=10)
    actor, critic = study.networks()
    fit_guess(study, actor, critic, 400, 256, 2e-3)
    return study, Examination(study, 200), actor, critic


def test_the_guess_is_learned_by_the_terminal_condition(prepared):
    study, exam, actor, _ = prepared
    fresh = study.networks()[0]
    assert exam.guess_error(actor) < 0.25 * exam.guess_error(fresh)


BARS = {"score": 0.3, "antithetic": 0.8, "stein": 0.85, "adjoint": 0.85, "backprop": 0.85}


@pytest.mark.parametrize("name", BARS)
def test_every_trainer_captures_most_of_the_improvement(prepared, name):
    study, exam, actor, critic = prepared
    actor, critic = copy.deepcopy(actor), copy.deepcopy(critic)
    recipe = Recipe(150, 64, 1e-2, 3e-5, temperature=1.0 if name == "score" else 1e-4)
    progress = train(study, exam, actor, critic, name, recipe, looks=3)
    last = exam.judge(actor)
    assert last["captured"] > BARS[name]
    assert len(progress.curve) == 3 and progress.curve[-1]["captured"] == pytest.approx(last["captured"])
    # calls of the backbone: one a step and path; the adjoint and backprop see it twice
    assert progress.calls == 150 * 64 * 10 * (2 if name in ("adjoint", "backprop") else 1)
    assert progress.skipped == 0


def test_replay_calls_the_backbone_once_a_rollout(prepared):
    study, exam, actor, critic = prepared
    calls = []
    for updates in (1, 4):
        recipe = Recipe(3, 8, updates=updates)
        calls.append(train(study, exam, copy.deepcopy(actor), copy.deepcopy(critic), "stein", recipe).calls)
    assert calls == [3 * 8 * 10, 3 * 8 * 10]


def test_the_proxy_denoises_and_does_not_mind_the_price(prepared):
    """At its optimum D + v = E[x0 | X_k, xi] for any beta, so it pays far more than the optimum does."""
    study, exam, actor, critic = prepared
    actor = copy.deepcopy(actor)
    train(study, exam, actor, copy.deepcopy(critic), "proxy", Recipe(150, 64, 1e-2), looks=1)
    context = actor.observe(exam.y, exam.mask)
    path = rollout(study.problem, GaussianPolicy(actor), exam.x, study.grid, context, exam.target)
    proxy = [study.problem.control_weight(t) * dt * m.square().sum() for (_, t, dt), m in zip(path.steps(), path.means)]  # noqa: B905
    best = exam.run(exam.optimum, context)
    price = [study.problem.control_weight(t) * dt * m.square().sum() for (_, t, dt), m in zip(best.steps(), best.means)]  # noqa: B905
    assert sum(proxy) > 2 * sum(price)
    guided = path.probes[0] + path.means[0]  # the first step: X_0 is noise, so E[x0 | X_0, xi] is m(xi)
    before = (path.probes[0] - exam.target).square().mean()
    assert float((guided - exam.target).square().mean()) < 0.3 * float(before)


def test_the_names_of_the_trainers():
    assert set(TRAINERS) == {"score", "antithetic", "stein", "adjoint", "backprop", "proxy"}
