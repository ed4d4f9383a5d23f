"""The generic trainer on LQ problems: policy gradient with a learned covariance, least squares, schedules, restarts."""

import math

import pytest
import torch
from torch import nn

from aid_control import ActorCritic, Batch, ControlProblem, rollout
from aid_control.evaluation import clstd
from aid_control.features import LinearMean, LinearValue
from aid_control.improvement import ESTIMATORS, policy_gradient_loss
from aid_control.increments import time_grid
from aid_control.lq import AffineGaussian, LQProblem, riccati, scheme_value
from aid_control.noise import generator
from aid_control.online import LogVariance
from aid_control.schedules import box, constant, power
from aid_control.value import NeuralValue, Shifted

F64 = torch.float64
TAU = 0.3


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, 0x7A), dtype=F64)


STEPS = 10


def constant_optimum(discount=0.5, a=-0.5, b=1.0, r=1.0, p=0.9, g=0.3, noise=0.4):
    """A scalar problem, its optimal gain and offset, and the curvature S, all on the grid and constant in time.

    Q and q are such that one step of the discrete problem keeps the value's p x^2/2 + g x.
    """
    dt, gamma = 1 / STEPS, math.exp(-discount / STEPS)
    curvature, cross, line = r + gamma * p * dt * b**2, gamma * p * (1 + dt * a) * b, gamma * b * g
    square = (p - gamma * p * (1 + dt * a) ** 2) / dt + cross**2 / curvature
    linear = (g - gamma * g * (1 + dt * a)) / dt + cross * line / curvature
    lq = LQProblem(a, b, Q=square, R=r, q=linear, s=[[noise]], G=p, g=g, discount=discount)
    return lq, -cross / curvature, -line / curvature, curvature


def test_the_constant_optimum_is_one():
    lq, gain, offset, curvature = constant_optimum()
    grid = time_grid(1.0, steps=STEPS)

    def cost(gain, offset, variance):
        policy = AffineGaussian.constant([[gain]], [offset], variance)
        return float(scheme_value(lq, policy, grid, "sampled", TAU)(0.0, torch.tensor([[0.7]], dtype=F64)))

    best = cost(gain, offset, TAU / curvature)
    for i in range(3):
        for shift in (-0.03, 0.03):
            law = [gain, offset, TAU / curvature]
            law[i] += shift
            assert cost(*law) > best + 1e-5


def batch(i, n=200, steps=STEPS):
    return Batch(1.5 * randn(n, 1, seed=i), time_grid(1.0, steps=steps), target=())


def make(estimator="policy_gradient", lq=None, **more):
    """A trainer with linear parts; the covariance is there where it belongs."""
    lq = lq or constant_optimum()[0]
    defaults = {
        "temperature": TAU,
        "evaluation": "clstd",
        "clip": 1e9,
        "covariance": LogVariance(1.0) if estimator == "policy_gradient" else None,
    }
    return ActorCritic(lq, LinearMean(1, 1, 0), LinearValue(1, 2), estimator=estimator, **(defaults | more))


# --- Learning --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluation", ["clstd", "ctd"])
def test_the_policy_gradient_learns_mean_and_covariance(evaluation):
    """From zero and twice the variance to the exploratory optimum, averaged over the last part."""
    lq, gain, offset, curvature = constant_optimum()
    trainer = make(
        lq=lq, evaluation=evaluation, actor_lr=0.03, critic_lr=0.05, rate=power(1.0, 0.6, 60),
        updates=1 if evaluation == "clstd" else 3,
    )  # fmt: skip
    seen = []
    for i in range(200):
        log = trainer.iterate(batch(i))
        weights = trainer.actor.weights.detach()[0]
        seen.append([float(weights[1]), float(weights[0]), float(trainer.covariance(torch.zeros(())).detach())])
    found = torch.tensor(seen[120:]).mean(0).tolist()
    assert found[0] == pytest.approx(gain, abs=0.03)
    assert found[1] == pytest.approx(offset, abs=0.03)
    assert found[2] == pytest.approx(TAU / curvature, rel=0.06)
    assert set(log) == {"cost", "terminal", "critic_loss", "actor_loss"}
    # the critic is the entropy-regularised value, its constant included
    at = torch.tensor([[-1.0], [0.0], [1.0]], dtype=F64)
    optimum = AffineGaussian.constant([[gain]], [offset], TAU / curvature)
    grid = time_grid(1.0, steps=STEPS)
    exact, cold = (scheme_value(lq, optimum, grid, "sampled", tau)(0.0, at) for tau in (TAU, 0.0))
    assert (trainer.critic(0.0, at).detach() - exact).abs().mean() < 0.15
    assert (cold - exact).abs().min() > 0.18


@pytest.mark.parametrize("estimator", ["score", "stein"])
def test_least_squares_evaluation_with_the_other_estimators(estimator):
    """R = 1 and the fixed variance 2 lambda of AID: the critic is V - lambda t, solved for; the mean is the optimum."""
    lq, gain, offset, _ = constant_optimum(discount=0.0)
    trainer = make(estimator, lq, actor_lr=0.03, ema=0.98, temperature=0.15, rate=power(1.0, 0.6, 60))
    for i in range(180):
        log = trainer.iterate(batch(i, 200))
        assert log["critic_loss"] == 0.0
    mean = trainer.average["weights"][0].tolist()
    assert mean[1] == pytest.approx(gain, abs=0.03)
    assert mean[0] == pytest.approx(offset, abs=0.03)


def test_a_network_can_be_the_critic_of_the_policy_gradient():
    lq, gain, *_ = constant_optimum()
    torch.manual_seed(0)
    trainer = ActorCritic(
        lq, LinearMean(1, 1, 0), NeuralValue(1, 16, 1).double(), TAU, "policy_gradient", "martingale",
        actor_lr=0.02, critic_lr=0.03, updates=5, clip=1e9, covariance=LogVariance(0.5), ema=0.95,
    )  # fmt: skip
    for i in range(150):
        trainer.iterate(batch(i))
    assert trainer.average["weights"][0, 1].item() == pytest.approx(gain, abs=0.2)


# --- The parts -------------------------------------------------------------------------------------------------------


def test_one_iteration_is_its_parts():
    """clstd on the collected path, then one step of plain gradient descent along the policy gradient."""
    trainer, twin = (make(optimizer="sgd", actor_lr=0.1) for _ in range(2))
    path = twin.collect(batch(0))
    trainer.iterate(batch(0))
    clstd(twin.value, path, ridge=1e-9)
    assert torch.equal(trainer.critic.weights, twin.critic.weights)
    moved = [twin.actor.weights, twin.covariance.weight]
    gradients = torch.autograd.grad(policy_gradient_loss(twin.policy, twin.value, path), moved)
    for new, old, gradient in zip([trainer.actor.weights, trainer.covariance.weight], moved, gradients, strict=True):
        assert torch.allclose(new, old - 0.1 * gradient) and gradient.any()


@pytest.mark.parametrize("weight", [None, lambda t, dt: 3 * t * dt])
def test_the_mean_is_regressed_on_the_targets(weight):
    """sum_k omega_k E|m - w_k|^2/2 with omega = Dt unless given: its gradient by hand, on an uneven grid."""
    grid = torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=F64)
    start = Batch(randn(7, 1), grid, target=())

    def towards(problem, policy, value, trajectory):
        return [(k + 1) * torch.ones_like(m) for k, m in enumerate(trajectory.means)]

    trainer = make(towards, optimizer="sgd", actor_lr=0.1, step_weight=weight)
    states = trainer.collect(start).states
    log = trainer.iterate(start)
    gradient, loss = torch.zeros(2, dtype=F64), 0.0
    for k in range(3):
        dt = grid[k + 1] - grid[k]
        omega = dt if weight is None else 3 * grid[k] * dt
        x = states[k][:, 0]
        gap = torch.full_like(x, -(k + 1.0))  # m = 0 at the start
        gradient += omega * torch.stack([gap.mean(), (gap * x).mean()])
        loss += 0.5 * omega * (k + 1) ** 2
    assert torch.allclose(trainer.actor.weights[0], -0.1 * gradient)
    assert log["actor_loss"] == pytest.approx(float(loss))


def stage(trainer, x, a):
    """Running cost of the scalar problem."""
    big, line = (float(trainer.problem.at(name, 0.0).squeeze()) for name in "Qq")
    return 0.5 * big * x**2 + 0.5 * a**2 + line * x


def test_costs_carry_the_entropy_for_the_policy_gradient_only():
    trainer = make()
    path = trainer.collect(batch(0, 4000))
    log = trainer.policy.log_prob(path.times[0], path.actions[0], path.means[0]).detach()
    x, a = path.states[0][:, 0], path.actions[0][:, 0]
    assert torch.allclose(path.costs[0], 0.1 * (stage(trainer, x, a) + TAU * log))
    other = make("score")
    path = other.collect(batch(0, 4000))
    x, a = path.states[0][:, 0], path.actions[0][:, 0]
    assert torch.allclose(path.costs[0], 0.1 * stage(other, x, a))
    # and its variance is the fixed one, 2 lambda / (d R)
    assert other.policy.covariance(path.times[0]) == pytest.approx(2 * TAU)
    assert other.value.temperature == TAU and trainer.value.temperature == 0


def test_exploring_costs_lambda_a_unit_of_time_whatever_the_number_of_controls():
    """Two states, one control: the variance counts controls."""
    problem = LQProblem([[0.0, 1.0], [0.0, 0.0]], [[0.0], [1.0]], R=3.0, G=[[1.0, 0.0], [0.0, 1.0]])
    trainer = ActorCritic(problem, LinearMean(2, 1), LinearValue(2), temperature=0.7, estimator="score")
    path = trainer.collect(Batch(torch.zeros(20_000, 2, dtype=F64), time_grid(1.0, steps=4), None, ()))
    assert not path.means[0].any()  # all that costs is the exploration
    assert float(torch.stack(path.costs).mean()) / 0.25 == pytest.approx(0.7, rel=0.03)


def test_the_temperature_may_be_a_schedule():
    trainer = make("stein", temperature=lambda n: 0.4 / (n + 1))
    for n in range(3):
        assert trainer.temperature == pytest.approx(0.4 / (n + 1))
        path = trainer.collect(batch(0, 5))
        assert float(trainer.policy.variance(path.times[0])) == pytest.approx(0.8 / (n + 1))
        assert trainer.value.temperature == pytest.approx(0.4 / (n + 1))
        trainer.iterate(batch(n))
    trainer = make(temperature=lambda n: 0.4 / (n + 1))
    trainer.iteration = 3
    path = trainer.collect(batch(0, 5))
    x, a = path.states[0][:, 0], path.actions[0][:, 0]
    log = trainer.policy.log_prob(path.times[0], path.actions[0], path.means[0]).detach()
    assert torch.allclose(path.costs[0], 0.1 * (stage(trainer, x, a) + 0.1 * log))
    assert make(temperature=0.7).temperature == 0.7


def test_the_rate_multiplies_both_learning_rates():
    """With plain gradient descent the first step is the rate times what it is without."""

    def step(**more):
        trainer = make(optimizer="sgd", evaluation="ctd", actor_lr=0.1, critic_lr=0.2, **more)
        trainer.iterate(batch(0))
        return [w.detach().clone() for w in (trainer.critic.weights, trainer.actor.weights)], trainer

    whole, half, none = step()[0], step(rate=constant(0.5))[0], step(rate=lambda n: 0.0)[0]
    assert torch.allclose(half[0], 0.5 * whole[0])
    assert not none[0].any() and not none[1].any() and whole[1].any()
    # it is asked with the iteration's number
    _, trainer = step(rate=lambda n: 0.0 if n else 1.0)
    before = trainer.actor.weights.detach().clone()
    trainer.iterate(batch(1))
    assert torch.equal(trainer.actor.weights, before)


@pytest.mark.parametrize("estimator", ["policy_gradient", "stein"])
def test_the_projection_is_obeyed(estimator):
    trainer = make(estimator, actor_lr=10.0, projection=box(-0.2, 0.1))
    for i in range(3):
        trainer.iterate(batch(i))
        weights = trainer.actor.weights
        assert weights.min() >= -0.2 and weights.max() <= 0.1
    assert (weights == -0.2).any() or (weights == 0.1).any()
    assert not (trainer.critic.weights.abs() <= 0.2).all()  # the critic is not projected
    if estimator == "policy_gradient":
        assert not -0.2 <= trainer.covariance.weight.detach() <= 0.1  # nor is the covariance


@pytest.mark.parametrize("estimator", ["policy_gradient", "stein", "score"])
@pytest.mark.parametrize("evaluation", ["ctd", "martingale"])
def test_a_step_at_a_time_is_the_same_update(estimator, evaluation):
    """``stepwise`` changes memory, and rounding, but not what is learned."""
    found = []
    for stepwise in (False, True):
        trainer = make(estimator, evaluation=evaluation, optimizer="sgd", stepwise=stepwise, updates=2, actor_lr=0.05)
        logs = [trainer.iterate(batch(i, 20)) for i in range(3)]
        found.append((trainer.actor.weights.detach(), trainer.critic.weights.detach(), logs))
    (actor, critic, logs), (actor_2, critic_2, logs_2) = found
    assert torch.allclose(actor, actor_2, atol=1e-12) and torch.allclose(critic, critic_2, atol=1e-12)
    assert actor.any() and critic.any()
    for log, other in zip(logs, logs_2, strict=True):
        assert log == pytest.approx(other, rel=1e-9)


def test_an_estimator_may_be_a_function():
    """Its targets are what the mean is moved towards."""

    def towards(problem, policy, value, trajectory):
        return [torch.full_like(m, 0.7) for m in trajectory.means]

    trainer = make(towards, actor_lr=0.05)
    for i in range(150):
        trainer.iterate(batch(i, 50))
    assert trainer.actor.weights[0].tolist() == pytest.approx([0.7, 0.0], abs=0.02)


def test_plain_gradient_descent_and_adam():
    sgd, adam = make(optimizer="sgd"), make()
    assert all(isinstance(o, torch.optim.SGD) for o in sgd.optimizers.values())
    assert all(isinstance(o, torch.optim.Adam) for o in adam.optimizers.values())


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimator": "reinforce"}, "estimator is 'reinforce'; expected one of score, .*, policy_gradient"),
        ({"mode": "mean"}, "the policy_gradient estimator needs sampled actions; expected mode 'sampled', not 'mean'"),
        ({"estimator": "score", "mode": "averaged", "covariance": None}, "the score estimator needs sampled actions"),
        ({"covariance": None}, "a covariance belongs to the policy_gradient estimator"),
        ({"estimator": "stein", "covariance": LogVariance()}, "a covariance belongs to the policy_gradient estimator"),
        ({"evaluation": "td"}, "evaluation is 'td'; expected one of ctd, .*, clstd"),
        ({"optimizer": "lbfgs"}, "optimizer is 'lbfgs'; expected adam or sgd"),
    ],
)
def test_options_that_do_not_exist(change, message):
    with pytest.raises(ValueError, match=message):
        make(**({"estimator": "policy_gradient"} | change))


def test_least_squares_refuse_a_network():
    trainer = ActorCritic(
        constant_optimum()[0], LinearMean(1, 1, 0), NeuralValue(1).double(), evaluation="clstd", estimator="stein"
    )
    with pytest.raises(ValueError, match="expected a LinearValue"):
        trainer.iterate(batch(0))


# --- Randomness and restarts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluation", ["clstd", "ctd"])
def test_a_restart_is_bit_equal_with_a_covariance(evaluation):
    def new():
        return make(evaluation=evaluation, rate=power(1.0, 0.7, 2), temperature=lambda n: TAU / (n + 1), ema=0.9)

    whole, first, second = new(), new(), new()
    for i in range(6):
        whole.iterate(batch(i, 40))
    for i in range(3):
        first.iterate(batch(i, 40))
    state = first.state()
    second.restore(state)
    assert second.iteration == 3 and second.temperature == pytest.approx(TAU / 4)
    for i in range(3, 6):
        second.iterate(batch(i, 40))
    for part in ("actor", "critic", "covariance"):
        for name, value in getattr(whole, part).state_dict().items():
            assert torch.equal(value, getattr(second, part).state_dict()[name]), (part, name)
    assert all(torch.equal(v, second.average[k]) for k, v in whole.average.items())
    assert not torch.equal(whole.covariance.weight, LogVariance(1.0).weight)


def test_a_diffusing_problem_gets_fresh_paths_each_iteration():
    """Brownian paths and actions depend on the iteration and the seed, and on nothing else."""
    start = Batch(torch.zeros(4, 1, dtype=F64), time_grid(1.0, steps=5), target=())

    def noise(iteration, seed=0):
        trainer = make(seed=seed)
        trainer.iteration = iteration
        path = trainer.collect(start)
        # the Brownian part of the first step, and the action's
        dw = (path.states[1] - path.states[0] - 0.2 * (path.actions[0] - 0.5 * path.states[0])) / 0.4
        return dw, path.actions[0] - path.means[0]

    first, again, later, other = noise(0), noise(0), noise(1), noise(0, 1)
    for i in range(2):
        assert torch.equal(first[i], again[i])
        assert (first[i] != later[i]).all() and (first[i] != other[i]).all()
    # independent of each other, with the right sizes
    start.x = torch.zeros(4000, 1, dtype=F64)
    dw, eps = (a[:, 0].detach() for a in noise(2))
    assert dw.square().mean().item() == pytest.approx(0.2, rel=0.1) and eps.var().item() == pytest.approx(1, rel=0.1)
    assert abs(torch.corrcoef(torch.stack([dw, eps]))[0, 1].item()) < 0.06


def test_a_problem_without_noise_needs_none():
    class Plain(ControlProblem):
        def terminal_cost(self, x, target):
            return 0.5 * (x[:, 0] - 1) ** 2

    trainer = make(lq=Plain(), actor_lr=0.05)
    costs = [trainer.iterate(batch(0))["cost"] for _ in range(60)]
    assert sum(costs[-10:]) < 0.7 * sum(costs[:10])


# --- What the targets are -------------------------------------------------------------------------------------------


class Exact(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, t, x, context=None, probe=None):
        return self.value(t, x)


def target_gap(name, **coefficients):
    """Distance of an estimator's targets from the optimal control along the optimal path, relative."""
    lq = LQProblem(-0.5, 1.0, **({"R": 1.0, "G": 1.0} | coefficients))
    optimum = riccati(lq)
    x = torch.tensor([[0.5], [1.0]], dtype=F64)
    path = rollout(lq, optimum.policy, x, time_grid(1.0, steps=100), target=())
    found = torch.stack(list(ESTIMATORS[name](lq, optimum.policy, Shifted(Exact(optimum.value)), path)))
    best = torch.stack(path.means)
    return float((found - best).norm() / best.norm())


@pytest.mark.parametrize("name", ["stein", "adjoint"])
def test_the_optimum_is_a_fixed_point(name):
    assert target_gap(name) < 0.01


@pytest.mark.parametrize("name", ["stein", "adjoint"])
@pytest.mark.parametrize(
    "coefficients",
    [{"R": 2.0}, {"Q": 2.0}, {"N": 0.5, "Q": 1.0}, {"r": 1.0, "q": 0.3}, {"discount": 1.5}, {"b": 0.4, "g": -1.0}],
    ids=lambda c: "".join(c),
)
def test_the_optimum_is_a_fixed_point_with_every_coefficient(name, coefficients):
    assert target_gap(name, **coefficients) < 0.03


@pytest.mark.parametrize(
    "coefficients",
    [
        {},
        {"discount": 1.5},
        {"Q": 2.0, "q": 0.3},
        {"R": 2.0},
    ],
    ids=lambda c: "".join(c),
)
def test_score_and_stein_have_the_same_expectation(coefficients):
    """With the exact value on the grid, at every step, far from the optimum."""
    lq = LQProblem(-0.5, 1.0, **({"R": 1.0, "G": 1.0} | coefficients))
    law = (torch.zeros(1, 1).double(), torch.tensor([0.3]).double(), torch.tensor(0.5).double())
    policy, grid, n = AffineGaussian(lambda t: law), time_grid(1.0, steps=5), 100_000
    x = torch.ones(n, 1, dtype=F64)
    path = rollout(lq, policy, x, grid, target=(), mode="sampled", noise=generator(0))
    values = [scheme_value(lq, policy, grid[k:], "sampled") for k in range(5)]
    value = Shifted(Exact(lambda t, x: values[int((grid - t).abs().argmin())](t, x)))
    score, stein = (torch.stack(list(ESTIMATORS[name](lq, policy, value, path))) for name in ("score", "stein"))
    gap = (score - stein)[..., 0]
    assert (gap.mean(1).abs() < 4 * gap.std(1) / n**0.5).all(), gap.mean(1)
    assert (gap.std(1) / n**0.5 < 0.05 * stein.mean(1)[:, 0].abs()).all()


def test_the_fixed_variance_costs_lambda_a_unit_of_time():
    lq, t = LQProblem(-0.5, 1.0, R=2.0, G=1.0), torch.zeros(())
    variance = torch.as_tensor(lq.policy_variance(t, 0.3, 1), dtype=F64)
    assert float(lq.exploration_cost(t, variance, 1)) == pytest.approx(0.3)
