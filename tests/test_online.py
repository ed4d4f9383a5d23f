"""Online actor-critic: one step by hand, and learning discounted, episodic and ergodic problems."""

import math

import pytest
import torch

from aid_control import ControlProblem
from aid_control.features import LinearMean, LinearValue
from aid_control.lq import LQProblem, algebraic, riccati, zoo
from aid_control.noise import generator
from aid_control.online import LogVariance, OnlineActorCritic
from aid_control.schedules import constant, power
from aid_control.value import NeuralValue

F64 = torch.float64


def zeros(gen, n):
    return torch.zeros(n, 1, dtype=F64)


def cloud(gen, n):
    return torch.randn(n, 1, generator=gen, dtype=F64)


def make(problem, start=cloud, variance=0.6, time_degree=0, **more):
    critic, actor = LinearValue(1, time_degree, problem.horizon), LinearMean(1, 1, 0)
    if math.isinf(problem.horizon):
        critic = LinearValue(1, 0)
    return OnlineActorCritic(problem, critic, actor, LogVariance(variance), start, **more)


def found(learner):
    """gain, offset, variance, and the weights of J."""
    offset, gain = learner.policy.mean.weights.detach()[0].tolist()
    return gain, offset, float(learner.policy.covariance(torch.zeros(())).detach()), learner.critic.weights.detach()


def averaged(learner, steps, pieces=20):
    """Run, and average (average cost, gain, offset, variance) over the run."""
    rows = []
    for _ in range(pieces):
        learner.run(steps // pieces)
        rows.append([float(learner.average), *found(learner)[:3]])
    return torch.tensor(rows).mean(0).tolist()


# --- Learning --------------------------------------------------------------------------------------------------------


def test_the_ergodic_example_of_jia_and_zhou():
    """Average cost, gain, offset and variance, from zero and one trajectory of each of 1 000 streams.

    Greedy in the running cost alone, the gain would be -0.5 and the offset -1; the average cost without the entropy
    is 0.025 away.
    """
    problem = zoo.ergodic_jia_zhou()
    truth = algebraic(problem, 0.1)
    gain, offset, sigma = (float(a) for a in truth.policy.law(torch.zeros(())))
    assert (float(truth.average), gain, offset, sigma) == pytest.approx(
        (-0.6333742, -0.3542487, -0.7084974, 0.03542487), abs=1e-6
    )
    rates = [power(3, 0.8, 1500), power(2, 0.8, 1500), power(2, 0.8, 1500)]
    learner = make(
        problem, zeros, 0.3, dt=0.01, streams=1000, temperature=0.1,
        critic_rate=rates[0], actor_rate=rates[1], average_rate=rates[2],
    )  # fmt: skip
    assert learner.ergodic
    learner.run(4000)
    average, mean_gain, mean_offset, variance = averaged(learner, 2000)
    assert average == pytest.approx(-0.6334, abs=0.015)
    assert mean_gain == pytest.approx(gain, abs=0.08)
    assert mean_offset == pytest.approx(offset, abs=0.05)
    assert variance == pytest.approx(sigma, rel=0.35)


def test_a_discounted_problem():
    """Infinite horizon, rho = 1: policy and value, the value's constant included; eta stays 0."""
    problem = LQProblem(-0.5, 1.0, Q=2.0, R=1.0, q=0.5, s=[[0.6]], discount=1.0, horizon=math.inf)
    truth = algebraic(problem, 0.3)
    gain, offset, sigma = (float(a) for a in truth.policy.law(torch.zeros(())))
    rates = {"critic_rate": power(3, 0.8, 300), "actor_rate": power(3, 0.8, 300)}
    learner = make(problem, dt=0.02, streams=400, temperature=0.3, **rates)
    learner.run(1000)
    average, mean_gain, mean_offset, variance = averaged(learner, 600)
    assert average == 0 and not learner.ergodic
    assert mean_gain == pytest.approx(gain, abs=0.08)
    assert mean_offset == pytest.approx(offset, abs=0.04)
    assert variance == pytest.approx(sigma, rel=0.1)
    big, small, level = (float(a.squeeze()) for a in truth.value.terms(0))
    weights = found(learner)[3]
    assert weights.tolist() == pytest.approx([level, small, big / 2], abs=0.05)
    # without the entropy in the cost the constant would be further away
    assert abs(level - float(algebraic(problem).value.terms(0)[2])) > 0.09


def test_an_episodic_problem():
    """Streams of length T = 1/2 with a terminal cost that keeps the optimal gain constant."""
    running = {"Q": 2.0, "R": 1.0, "q": 0.5, "s": [[0.6]], "discount": 0.5}
    big, small, _ = algebraic(LQProblem(-0.5, 1.0, **running, horizon=math.inf)).value.terms(0)
    problem = LQProblem(-0.5, 1.0, **running, G=big, g=small, horizon=0.5)
    gain, offset, sigma = (float(a) for a in riccati(problem, 0.3).policy.law(torch.zeros(())))
    assert float(riccati(problem, 0.3).policy.law(torch.tensor(0.4))[0]) == pytest.approx(gain)
    rates = {"critic_rate": power(1, 0.8, 400), "actor_rate": power(2, 0.8, 400)}
    learner = make(problem, time_degree=1, dt=0.02, streams=400, temperature=0.3, **rates)
    learner.run(1000)
    _, mean_gain, mean_offset, variance = averaged(learner, 600)
    assert mean_gain == pytest.approx(gain, abs=0.08)
    assert mean_offset == pytest.approx(offset, abs=0.05)
    assert variance == pytest.approx(sigma, rel=0.12)
    weights = learner.critic.weights.detach()
    assert weights[2].item() == pytest.approx(float(big) / 2, abs=0.08)


# --- One step by hand ------------------------------------------------------------------------------------------------


class Still(ControlProblem):
    """dX = u dt, cost x^2 + u^2/2, no noise: what one step learns can be written down."""

    horizon = math.inf

    def running_cost(self, t, x, context):
        return x[:, 0] ** 2

    def terminal_cost(self, x, target):
        return 3 * x[:, 0] ** 2


@pytest.mark.parametrize(("horizon", "rho"), [(math.inf, 0.7), (math.inf, 0.0), (0.2, 0.7)])
def test_a_step_is_the_docstrings(horizon, rho):
    """delta and the three updates from the action that was taken, for the last step of an episode too."""
    problem = Still()
    problem.horizon, problem.discount = horizon, rho
    dt, tau, v = 0.1, 0.4, 0.6
    learner = make(
        problem, dt=dt, streams=3, temperature=tau, critic_rate=constant(0.5), actor_rate=constant(0.3),
        average_rate=constant(0.2),
    )  # fmt: skip
    for _ in range(2):
        critic, actor = learner.critic.weights.detach().clone(), learner.policy.mean.weights.detach().clone()
        log_v, eta, k = learner.policy.variance.weight.detach().clone(), learner.average.clone(), learner.step_count
        x, state = learner.x[:, 0].clone(), learner._generator.get_state()
        learner.run(1)
        after = torch.Generator()
        after.set_state(state)
        v = log_v.exp()
        mean = actor[0, 0] + actor[0, 1] * x
        a = mean + v.sqrt() * torch.randn(3, 1, generator=after, dtype=F64)[:, 0]
        y = x + dt * a
        log = -0.5 * ((a - mean) ** 2 / v + torch.log(2 * math.pi * v))

        def j(z, w=critic):
            return w[0] + w[1] * z + w[2] * z**2

        ends = horizon == 0.2 and k == 1
        ahead = 3 * y**2 if ends else j(y)
        delta = ahead - j(x) + (x**2 + a**2 / 2 + tau * log - rho * j(x) - eta) * dt
        phi = torch.stack([torch.ones_like(x), x, x**2])
        assert torch.allclose(learner.critic.weights, critic + 0.5 * (phi * delta).mean(1))
        score = (a - mean) / v
        slope = torch.stack([score, score * x])
        assert torch.allclose(learner.policy.mean.weights[0], actor[0] - 0.3 * (slope * delta).mean(1))
        by_log_v = 0.5 * ((a - mean) ** 2 / v - 1)
        assert torch.allclose(learner.policy.variance.weight, log_v - 0.3 * (by_log_v * delta).mean())
        ergodic = math.isinf(horizon) and rho == 0
        assert torch.allclose(learner.average, eta + (0.2 * delta.mean() if ergodic else 0))
        new = cloud(after, 3)[:, 0] if ends else y
        assert torch.allclose(learner.x[:, 0], new)


def test_run_returns_the_mean_cost():
    """At rest (all rates 0) it is the policy's average cost, entropy included."""
    problem = LQProblem(-0.5, 1.0, Q=2.0, R=1.0, s=[[0.6]], horizon=math.inf)
    still = dict.fromkeys(("critic_rate", "actor_rate", "average_rate"), constant(0.0))
    learner = make(problem, variance=0.3, dt=0.02, streams=2000, temperature=0.3, **still)
    learner.run(200)
    # variance s^2/(2 * 0.5) of the state, up to the step; the action's 0.3, and its entropy
    wanted = 0.36 + 0.15 - 0.3 * 0.5 * (math.log(2 * math.pi * 0.3) + 1)
    assert learner.run(100) == pytest.approx(wanted, abs=0.03)
    assert learner.step_count == 300


def test_a_rate_that_is_zero_stands_still():
    problem = LQProblem(-0.5, 1.0, Q=2.0, R=1.0, s=[[0.6]], horizon=math.inf)
    learner = make(problem, actor_rate=constant(0.0))
    learner.run(3)
    gain, offset, variance, weights = found(learner)
    assert (gain, offset) == (0, 0) and variance == pytest.approx(0.6)
    assert weights.all() and learner.average != 0


def test_rates_are_asked_for_every_step():
    asked = []

    def rate(n):
        asked.append(n)
        return 0.1

    learner = make(LQProblem(-0.5, 1.0, Q=2.0, R=1.0, horizon=math.inf), critic_rate=rate)
    learner.run(4)
    assert asked == [0, 1, 2, 3]


def test_it_repeats_bit_by_bit_and_depends_on_the_seed():
    problem = LQProblem(-0.5, 1.0, Q=2.0, R=1.0, s=[[0.6]], G=1.0, horizon=0.1)
    runs = []
    for seed, pieces in ((0, (7,)), (0, (3, 4)), (1, (7,))):
        learner = make(problem, dt=0.02, seed=seed, time_degree=1)
        for n in pieces:
            learner.run(n)
        runs.append((found(learner)[3], learner.x))
    assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
    assert not torch.equal(runs[0][0], runs[2][0])


def test_streams_begin_again_after_an_episode():
    started = []

    def start(gen, n):
        started.append(n)
        return torch.full((n, 1), float(len(started)), dtype=F64)

    still = dict.fromkeys(("critic_rate", "actor_rate"), constant(0.0))
    learner = make(LQProblem(0.0, 1.0, R=1.0, G=1.0, horizon=0.5), start, dt=0.1, streams=4, **still)
    for episode in (1, 2):
        assert (learner.x == episode).all()
        learner.run(4)
        assert len(started) == episode and (learner.x != episode).all()
        learner.run(1)
    assert started == [4, 4, 4]


def test_a_network_learns_online():
    problem = LQProblem(-0.5, 1.0, Q=2.0, R=1.0, s=[[1.0]], discount=1.0, horizon=math.inf)
    torch.manual_seed(0)
    critic, actor, rates = NeuralValue(1, 8, 1).double(), LinearMean(1, 1, 0), (constant(2.0), constant(1.0))
    learner = OnlineActorCritic(problem, critic, actor, LogVariance(0.5), cloud, 0.05, 200, 0.1, *rates)
    gains = []
    for _ in range(10):
        learner.run(60)
        gains.append(actor.weights.detach()[0, 1].item())
    gain = float(algebraic(problem).policy.law(torch.zeros(()))[0])
    assert sum(gains[4:]) / 6 == pytest.approx(gain, abs=0.15)


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dt", [0.3, 2.0])
def test_the_step_must_divide_the_horizon(dt):
    with pytest.raises(ValueError, match=f"dt is {dt}, which does not divide the horizon 1.0"):
        make(LQProblem(0.0, 1.0, R=1.0), dt=dt)
    make(LQProblem(0.0, 1.0, R=1.0, horizon=math.inf), dt=dt)


@pytest.mark.parametrize("tau", [-0.1, math.nan])
def test_a_negative_temperature_is_refused(tau):
    with pytest.raises(ValueError, match="expected tau >= 0"):
        make(LQProblem(0.0, 1.0, R=1.0), temperature=tau)
    make(LQProblem(0.0, 1.0, R=1.0), temperature=0.0)


def test_a_log_variance():
    module = LogVariance(0.3)
    assert module(torch.zeros(())).item() == pytest.approx(0.3)
    module(torch.zeros(())).backward()
    assert module.weight.grad.item() == pytest.approx(0.3)
    for start in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="expected a positive variance"):
            LogVariance(start)


def test_a_generator_is_the_seeds():
    learner = make(LQProblem(0.0, 1.0, R=1.0, horizon=math.inf), seed=5, streams=7)
    assert torch.equal(learner.x, cloud(generator(5, 1), 7))
