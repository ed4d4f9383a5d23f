"""The ergodic experiment: closed forms against the LQ layer, learners against the package's own, steps and tails."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from aid_control.errors import InputError
from aid_control.experiments.ergodic.actor_critic import ActorCritic
from aid_control.experiments.ergodic.big_q import BigQ, action_share, optimal_weights
from aid_control.experiments.ergodic.mean_field import mean_direction, mean_path
from aid_control.experiments.ergodic.problem import PUBLISHED_REWARD, ErgodicProblem
from aid_control.experiments.ergodic.q_learning import QLearning
from aid_control.experiments.ergodic.results import average_rewards, learned, scan_table
from aid_control.experiments.ergodic.run import run
from aid_control.experiments.ergodic.summary import median
from aid_control.experiments.ergodic.tasks import Scanned, learn, scan
from aid_control.experiments.ergodic.train import Trained, train
from aid_control.features import LinearMean, LinearValue
from aid_control.improvement import GaussianAdvantage, q_learning_loss
from aid_control.lq.algebraic import algebraic, evaluate_stationary
from aid_control.lq.quadratic import AffineGaussian
from aid_control.lq.zoo import ergodic_jia_zhou
from aid_control.noise import generator
from aid_control.online import LogVariance, OnlineActorCritic
from aid_control.rollout import Trajectory
from aid_control.schedules import constant, power

ROOT = Path(__file__).resolve().parents[2]
F64 = torch.float64
OFF = (1.0, 1.0, 1.0)  # the published behaviour


def normals(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def optimal(problem):
    """The actor-critic's weights at the optimum, (6, 1)."""
    o = problem.optimum()
    return np.array([[-o.k2], [-o.k1], [-o.average], [o.slope], [o.intercept], [math.log(o.variance)]])


# --- The truth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dt", [1e-5, 0.01, 0.1, 1.0])
def test_held_actions_have_the_optimum_of_continuous_time_at_every_step(dt):
    exact, found = algebraic(ergodic_jia_zhou(), 0.1), ErgodicProblem(dt=dt).optimum()
    slope, intercept, variance = (float(a) for a in exact.policy.law(torch.tensor(0.0)))
    assert (found.slope, found.intercept) == pytest.approx((slope, intercept), rel=1e-9)
    assert found.variance == pytest.approx(variance, rel=1e-9)
    assert found.average == pytest.approx(-float(exact.average), rel=1e-9)
    assert found.average == pytest.approx(0.6333742, abs=1e-7)
    assert found.reward == pytest.approx(PUBLISHED_REWARD, abs=1e-7)
    if dt == 1e-5:  # the value is the agent's own: of continuous time in the limit only
        big, small, _ = (float(a) for a in exact.value.terms(torch.tensor(0.0)))
        assert (-found.k2, -found.k1) == pytest.approx((big, small), rel=1e-4)


def test_eulers_grid_moves_the_optimum_to_first_order():
    truth = ErgodicProblem().optimum()
    gaps = [truth.slope - ErgodicProblem(dt=dt, transition="euler").optimum().slope for dt in (0.02, 0.01, 0.005)]
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.02) and gaps[1] / gaps[2] == pytest.approx(2, rel=0.02)
    assert ErgodicProblem(transition="euler").optimum().reward == pytest.approx(0.6573915, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(-1.3, 1.3), st.floats(-2, 2), st.floats(0.01, 2), st.floats(0.01, 2))
def test_the_average_reward_is_that_of_the_lq_layer(slope, intercept, variance, dt):
    """Whatever the step: exact transitions keep the stationary second moment."""
    one = torch.ones(1, 1, dtype=F64)
    policy = AffineGaussian.constant(slope * one, torch.tensor([intercept], dtype=F64), variance * one)
    exact = -float(evaluate_stationary(ergodic_jia_zhou(), policy)[1])
    found = ErgodicProblem(dt=dt).reward(*(np.array([v]) for v in (slope, intercept, variance)))
    assert float(found[0]) == pytest.approx(exact, rel=1e-9, abs=1e-10)


def test_an_unstable_policy_earns_minus_infinity():
    for slope in (-1.5, 1.5):
        assert ErgodicProblem().reward(*(np.array([v]) for v in (slope, 0.0, 1.0)))[0] == -np.inf


@pytest.mark.parametrize("transition", ["exact", "euler"])
def test_the_optimum_is_the_best_policy_of_its_grid(transition):
    """Entropy included, no neighbour earns more."""
    problem = ErgodicProblem(dt=0.2, transition=transition, M=1.3, N=1.7, R=-0.4, P=0.2, Q=0.9, A=-0.8, D=0.7)
    o = problem.optimum()
    steps = np.stack(np.meshgrid(*3 * [[-0.02, 0.0, 0.02]], indexing="ij")).reshape(3, -1)
    f, c, v = o.slope + steps[0], o.intercept + steps[1], o.variance * np.exp(steps[2])
    total = problem.reward(f, c, v) + 0.5 * problem.temperature * np.log(2 * np.pi * np.e * v)
    assert total.argmax() == 13 and total[13] == pytest.approx(o.average, rel=1e-9)


def test_moments_against_simulation():
    problem, policy = ErgodicProblem(dt=0.5), (-0.5, 0.8, 0.3)
    rng, x = np.random.default_rng(0), np.zeros(400_000)
    for _ in range(20):
        a = policy[0] * x + policy[1] + policy[2] ** 0.5 * rng.standard_normal(x.size)
        x = problem.alpha * x + problem.beta2**0.5 * a * rng.standard_normal(x.size)
    for j, exact in enumerate(problem.moments(*(np.array([v]) for v in policy)), start=2):
        powers = x**j
        assert powers.mean() == pytest.approx(float(exact[0]), abs=5 * powers.std() / x.size**0.5)


def test_moments_are_kept_by_a_step():
    """E[x'^j given x] is a polynomial in x, found by quadrature over both noises; its mean is m_j again."""
    problem, (slope, intercept, variance) = ErgodicProblem(dt=0.5, A=-0.8, D=0.7), (-0.6, 1.1, 0.4)
    nodes, w = np.polynomial.hermite_e.hermegauss(12)
    xi, z = np.meshgrid(nodes, nodes)
    weights = np.outer(w, w) / w.sum() ** 2
    m2, m3, m4 = (float(m[0]) for m in problem.moments(*(np.array([v]) for v in (slope, intercept, variance))))
    moments, spots = np.array([1.0, 0.0, m2, m3, m4]), np.linspace(-2, 2, 5)
    for j in range(1, 5):
        ahead = []
        for x in spots:
            a = slope * x + intercept + variance**0.5 * xi
            ahead.append((weights * (problem.alpha * x + problem.beta2**0.5 * a * z) ** j).sum())
        assert np.polynomial.polynomial.polyfit(spots, ahead, 4) @ moments == pytest.approx(moments[j], abs=1e-10)
    assert abs(m3) > 0.01


def test_the_published_behaviour_has_no_third_moment():
    assert ErgodicProblem(dt=1e-4).tail_exponent(1.0) == pytest.approx(3.0, abs=1e-3)
    assert ErgodicProblem().moments(*(np.array([v]) for v in OFF))[2][0] == np.inf
    assert ErgodicProblem(dt=1e-4).tail_exponent(-0.5) == pytest.approx(9.0, abs=1e-2)
    # at which slope is it 4?  alpha^4 + 6 alpha^2 w + 3 w^2 = 1
    problem = ErgodicProblem(dt=0.3)
    al = problem.alpha
    w = (-6 * al**2 + math.sqrt(36 * al**4 + 12 * (1 - al**4))) / 6
    assert problem.tail_exponent(math.sqrt(w / problem.beta2)) == pytest.approx(4.0, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"A": 0.5}, "A is 0.5"),
        ({"dt": 0.0}, "dt 0.0"),
        ({"transition": "milstein"}, "transition is milstein"),
        ({"transition": "euler", "dt": 2.5}, "dt 2.5"),
    ],
)
def test_a_wrong_problem_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ErgodicProblem(**options)


@pytest.mark.parametrize("slope", [0.0, 1.5])
def test_a_tail_exponent_needs_a_stable_slope(slope):
    with pytest.raises(ValueError, match="slope is"):
        ErgodicProblem().tail_exponent(slope)


# --- The actor-critic ------------------------------------------------------------------------------------------------


def test_the_actor_critic_is_the_packages_number_by_number():
    """OnlineActorCritic draws eps, then dW: the same draws give the same weights after 40 learning steps."""
    streams, steps, seed = 5, 40, 3
    rates = (0.2, 0.3, 0.1)  # critic, actor, average
    mean, spread = LinearMean(1, 1, 0), LogVariance()
    critic = LinearValue(1, 0)
    theirs = OnlineActorCritic(
        ergodic_jia_zhou(), critic, mean, spread, lambda g, n: torch.zeros(n, 1, dtype=F64), dt=0.01, streams=streams,
        critic_rate=constant(rates[0]), actor_rate=constant(rates[1]), average_rate=constant(rates[2]), seed=seed,
    )  # fmt: skip
    # its critic has the features 1, x, x^2 (ours x^2/2, x): scale the rates to one another
    features = critic.features(torch.tensor(0.0), torch.tensor([[2.0]], dtype=F64))[0].tolist()
    assert features == [1.0, 2.0, 4.0]
    ours = ActorCritic(
        ErgodicProblem(transition="euler"), 1, streams,
        [4 * rates[0], rates[0], rates[2], rates[1], rates[1], rates[1]], constant(1.0),
    )  # fmt: skip
    draws = generator(seed, 1)
    costs = []
    for _ in range(steps):
        xi = torch.randn(streams, 1, generator=draws, dtype=F64)
        z = torch.randn(1, streams, 1, generator=draws, dtype=F64)
        costs.append(ours.step(xi.numpy().T, z.numpy()[0].T)[0])
    theirs.run(steps)
    kappa, gain = mean.weights.detach().flatten().tolist()
    theta = critic.weights.detach().tolist()
    found = [2 * theta[2], theta[1], float(theirs.average), gain, kappa]
    found.append(float(spread.weight.detach()))
    np.testing.assert_allclose(ours.weights[:, 0], found, rtol=1e-9)
    np.testing.assert_allclose(ours.x[0], theirs.x[:, 0].numpy(), rtol=1e-9)
    assert np.isfinite(costs).all() and abs(ours.weights).min() > 1e-4


@pytest.mark.parametrize("transition", ["exact", "euler"])
def test_the_mean_direction_is_zero_at_the_optimum_and_nowhere_near(transition):
    problem = ErgodicProblem(dt=0.3, transition=transition, M=1.3, N=1.7, R=-0.4, P=0.2, Q=0.9, A=-0.8, D=0.7)
    best = optimal(problem)
    assert abs(mean_direction(problem, best)).max() < 1e-12
    for shift in 0.1 * np.eye(6):
        assert abs(mean_direction(problem, best + shift[:, None])).max() > 1e-4


def test_the_mean_direction_is_the_learners_on_average():
    problem, n = ErgodicProblem(dt=0.5), 400_000
    weights = np.array([[0.5], [0.3], [-0.4], [-0.5], [-0.4], [-1.0]])
    learner = ActorCritic(problem, 1, n, np.full(6, 1e-12), constant(1.0))
    learner.weights = weights
    for k in range(20):
        learner.step(normals([k, 0], 1, n), normals([k, 1], 1, n))
    xi, z = normals(1, 1, n), normals(2, 1, n)
    x = learner.x.copy()
    parts = []
    for i in range(20):  # batches, for an error bar
        one = ActorCritic(problem, 1, n // 20, np.ones(6), constant(1.0))
        part = slice(i * n // 20, (i + 1) * n // 20)
        one.weights, one.x = weights, x[:, part]
        one.step(xi[:, part], z[:, part])
        parts.append((one.weights - weights)[:, 0])
    found, error = np.mean(parts, 0), np.std(parts, 0) / 20**0.5
    assert (abs(found - mean_direction(problem, weights)[:, 0]) < 5 * error).all()
    assert error.max() < 0.005 and (abs(found) > 10 * error).sum() >= 4


def test_learning_follows_the_mean_equation_and_arrives():
    problem, rates, steps = ErgodicProblem(dt=0.05), np.array([0.2, 0.2, 0.1, 0.03, 0.015, 0.5]), 12_000
    schedule = power(1.0, 0.75, 0.1 * steps)
    learner = ActorCritic(problem, 6, 96, rates, schedule)
    done = train(learner, list(range(6)), 96, steps, 12)
    path = mean_path(problem, rates, schedule, done.steps, 60)
    middle = np.median(done.trace, 2)
    assert abs(middle - path)[:, 2:].max() < 0.12 and abs(path[0] - path[-1]).max() > 0.2
    np.testing.assert_allclose(path[-1], optimal(problem)[:, 0], rtol=0.05)
    own = learned(done)
    truth = problem.optimum()
    assert np.median(own["slope"]) == pytest.approx(truth.slope, rel=0.15)
    assert np.median(own["intercept"]) == pytest.approx(truth.intercept, rel=0.04)
    assert np.median(own["variance"]) == pytest.approx(truth.variance, rel=0.1)
    rewards = average_rewards(done, problem, True)
    assert rewards["policy"].value == pytest.approx(truth.reward, abs=0.006)
    assert rewards["last_tenth"].value == pytest.approx(truth.reward, abs=0.03)
    assert rewards["from_the_start"].value < rewards["policy"].value


# --- q-learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [None, OFF])
def test_an_update_is_the_gradient_of_the_packages_loss(behaviour):
    problem, streams = ErgodicProblem(transition="euler"), 7
    learner = QLearning(problem, 1, streams, np.ones(6), constant(1.0), behaviour)
    weights = np.array([0.4, -0.2, -0.3, -0.5, 0.6, -0.7])
    learner.weights, learner.x = weights[:, None].copy(), normals(0, 1, streams)
    x, xi, z = learner.x[0].copy(), normals(1, 1, streams), normals(2, 1, streams)
    a = learner.act(xi)[0]
    learner.step(xi, z)

    critic, mean = LinearValue(1, 0), LinearMean(1, 1, 0)
    q = GaussianAdvantage(mean, 0.1, 1)
    with torch.no_grad():
        critic.weights.copy_(torch.tensor([0.0, weights[1], 0.5 * weights[0]], dtype=F64))
        mean.weights.copy_(torch.tensor([[weights[4], weights[3]]], dtype=F64))
        q.factor.fill_(-0.5 * weights[5])
    states = [torch.from_numpy(v)[:, None] for v in (x, learner.x[0])]
    path = Trajectory(torch.tensor([0.0, 0.01], dtype=F64), states=states, actions=[torch.from_numpy(a)[:, None]])
    path.costs = [torch.from_numpy(problem.cost(x, a)) * 0.01]
    values = [critic(t, s) for t, s in zip(path.times, states, strict=True)]
    loss = q_learning_loss(values, q, path, float(weights[2]))
    critics, means, factor = torch.autograd.grad(loss, [critic.weights, mean.weights, q.factor])
    wanted = [0.5 * critics[2], critics[1], critics[0], means[0, 1], means[0, 0], -0.5 * factor[0, 0]]
    np.testing.assert_allclose(learner.weights[:, 0] - weights, [-float(w) for w in wanted], rtol=1e-9)


def test_on_the_policy_it_is_the_actor_critic_at_rate_a_tau():
    problem, tau = ErgodicProblem(), 0.1
    rates = np.array([0.2, 0.2, 0.1, 0.03, 0.015, 0.5])
    ac = ActorCritic(problem, 3, 8, rates, power(1.0, 0.7, 5))
    q = QLearning(problem, 3, 8, np.concatenate([rates[:3], rates[3:] / tau]), power(1.0, 0.7, 5))
    ac.weights[5] = math.log(tau)  # psi_3 = 0
    for k in range(60):
        xi, z = normals([k, 3], 3, 8), normals([k, 4], 3, 8)
        np.testing.assert_allclose(ac.step(xi, z), q.step(xi, z), rtol=1e-9)
    shift = np.array([0, 0, 0, 0, 0, math.log(tau)])[:, None]
    np.testing.assert_allclose(ac.weights, q.weights + shift, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, math.inf])
def test_updates_vanish_at_the_optimum_off_the_policy_with_any_weights(scale):
    """A behaviour with moments; the same with a wrong value does not vanish."""
    problem, n = ErgodicProblem(dt=0.5), 200_000
    best = optimal(problem)
    best[5] -= math.log(0.1)

    def updates(weights):
        parts = []
        for i in range(20):
            learner = QLearning(problem, 1, n // 20, np.ones(6), constant(1.0), (0.3, 0.5, 0.5), scale)
            learner.x, learner.weights = normals([i, 0], 1, n // 20), weights
            learner.step(normals([i, 1], 1, n // 20), normals([i, 2], 1, n // 20))
            parts.append((learner.weights - weights)[:, 0])
        return np.mean(parts, 0), np.std(parts, 0) / 20**0.5

    found, error = updates(best)
    assert (abs(found) < 4.5 * error).all()
    wrong = best.copy()
    wrong[0] += 0.5
    found, error = updates(wrong)
    assert (abs(found) > 6 * error).any()


def test_weights_bound_the_update_of_an_extreme_state():
    def size(x, scale):
        learner = QLearning(ErgodicProblem(), 1, 1, np.ones(6), constant(1.0), OFF, scale)
        learner.weights, learner.x = np.ones((6, 1)), np.array([[x]])
        learner.step(np.ones((1, 1)), np.ones((1, 1)))
        return abs(learner.weights - 1).max()

    assert size(1e6, 1.0) == pytest.approx(size(1e4, 1.0), rel=1e-2) and size(1e6, 1.0) < 1
    assert size(1e6, math.inf) == pytest.approx(1e8 * size(1e4, math.inf), rel=1e-2)


def test_off_the_policy_weighted_updates_arrive_and_plain_ones_are_lost():
    problem, steps, seeds = ErgodicProblem(dt=0.05), 8000, list(range(6))
    truth = problem.optimum()

    def run(factor, scale):
        rates = factor * np.array([3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
        learner = QLearning(problem, 6, 64, rates, power(1.0, 0.6, 800), OFF, scale)
        return train(learner, seeds, 64, steps, 8)

    good, bad = learned(run(0.5, 1.0)), run(0.1, math.inf)
    assert np.median(good["slope"]) == pytest.approx(truth.slope, rel=0.1)
    assert np.median(good["intercept"]) == pytest.approx(truth.intercept, rel=0.05)
    assert 0.1 * np.median(good["variance"]) == pytest.approx(truth.variance, rel=0.05)
    wrong = abs(bad.trace[-1][3] / truth.slope - 1)
    assert (~(wrong < 1)).mean() >= 0.5


# --- Small steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "power_of_dt"), [("Q", -1), ("Q_scaled", 1)])
def test_the_forms_are_one_algorithm_up_to_the_rate_of_the_action_part(form, power_of_dt):
    problem, dt = ErgodicProblem(dt=0.2), 0.2
    a = np.full((6, 3), 0.02)
    other = BigQ(problem, 3, 8, a, (0.0, 0.0, 1.0), form)
    a = a.copy()
    a[3:] *= dt**power_of_dt
    q = BigQ(problem, 3, 8, a, (0.0, 0.0, 1.0), "q")
    for k in range(60):
        xi, z = normals([k, 5], 3, 8), normals([k, 6], 3, 8)
        other.step(xi, z), q.step(xi, z)
    np.testing.assert_allclose(other.in_units_of_q(other.weights), q.in_units_of_q(q.weights), rtol=1e-9)
    assert abs(q.weights[3] - 1).min() > 1e-3


def test_at_step_one_there_is_one_algorithm():
    forms, problem = ("Q", "Q_scaled", "q"), ErgodicProblem(dt=1.0)
    learners = [BigQ(problem, 2, 4, np.full(2, 0.05), (0.0, 0.0, 1.0), f) for f in forms]
    for k in range(30):
        for learner in learners:
            learner.step(normals([k, 7], 2, 4), normals([k, 8], 2, 4))
    for learner in learners[1:]:
        np.testing.assert_array_equal(learner.weights, learners[0].weights)


@pytest.mark.parametrize("dt", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("form", ["Q", "q"])
def test_the_optimal_q_has_no_temporal_difference(form, dt):
    """E delta = 0 at every state and action: by quadrature over the Brownian step."""
    problem = ErgodicProblem(dt=dt)
    z, w = np.polynomial.hermite_e.hermegauss(20)
    learner = BigQ(problem, 1, 20, np.zeros(1), OFF, form)
    weights = optimal_weights(problem)[:, None]
    weights[3:] *= dt / learner.unit
    for x, xi in ((0.7, -1.3), (-2.0, 0.4)):
        # the update of eta is the mean of delta: streams with the weights of the rule
        changes = []
        for node in z:
            one = BigQ(problem, 1, 1, np.ones(1), OFF, form)
            one.weights, one.x = weights, np.array([[x]])
            one.step(np.array([[xi]]), np.array([[node]]))
            changes.append(one.weights[2, 0] - weights[2, 0])
        assert abs(np.dot(w, changes) / w.sum()) < 1e-10
        assert np.abs(changes).max() > 1e-3


def test_the_actions_share_falls_like_the_square_of_the_step():
    behaviour = (0.0, 0.0, 1.0)
    shares = [
        float(action_share(ErgodicProblem(dt=dt), behaviour, optimal_weights(ErgodicProblem(dt=dt))[:, None])[0])
        for dt in (0.002, 0.001, 0.0005)
    ]
    assert shares[0] / shares[1] == pytest.approx(4, rel=0.05) and shares[1] / shares[2] == pytest.approx(4, rel=0.05)
    # against a sample
    problem, policy = ErgodicProblem(dt=0.3), (-0.4, 0.5, 0.6)
    weights = np.array([0.9, 0.4, 0.0, 2.5, 1.2, -0.8])
    rng, x = np.random.default_rng(3), np.zeros(200_000)
    for _ in range(30):
        a = policy[0] * x + policy[1] + policy[2] ** 0.5 * rng.standard_normal(x.size)
        x = problem.alpha * x + problem.beta2**0.5 * a * rng.standard_normal(x.size)

    def q(x, a):
        return 0.45 * x * x + 0.4 * x + 0.3 * (1.25 * a * a + 1.2 * x * a - 0.8 * a)

    mean = policy[0] * x + policy[1]
    a = mean + policy[2] ** 0.5 * rng.standard_normal(x.size)
    inside = (q(x, a) - q(x, mean) - 0.3 * 1.25 * policy[2]).var()
    share = float(action_share(problem, policy, weights[:, None])[0])
    assert inside / q(x, a).var() == pytest.approx(share, rel=0.03)
    with pytest.raises(ValueError, match="fourth moment"):
        action_share(problem, OFF, weights[:, None])


def test_a_fixed_rate_keeps_q_and_spoils_q_times_the_step():
    """Same simulated time, same rate: q's error does not depend on the step, the plain Q's grows."""
    options = {"rates": [0.1], "streams": 8, "time": 400.0, "behaviour": [0.0, 0.0, 1.0]}
    seeds = list(range(12))
    found = {(f, dt): scan(f, dt, options, {}, seeds) for f in ("Q", "q") for dt in (1.0, 0.05)}
    errors = {k: min(float(np.median(v.gain)), 1.0) for k, v in found.items()}
    assert errors["Q", 1.0] == errors["q", 1.0]
    assert errors["q", 0.05] < 2 * errors["q", 1.0] < 0.5
    assert errors["Q", 0.05] > 2 * errors["q", 0.05]
    assert np.median(found["q", 0.05].value) < 0.3
    with pytest.raises(ValueError, match="form is"):
        BigQ(ErgodicProblem(), 1, 1, np.ones(1), OFF, "sarsa")


# --- Running, counting, writing --------------------------------------------------------------------------------------


def test_a_repeat_depends_on_its_seed_alone():
    settings_ = {"streams": 4, "steps": 60, "rates": [0.1] * 6, "exponent": 0.7, "delay": 0.2, "average_from": 0.5}
    whole = learn("actor_critic", settings_, {}, [3, 4, 5], 6)
    for part in ([3], [4, 5]):
        some = learn("actor_critic", settings_, {}, part, 6)
        np.testing.assert_allclose(some.trace, whole.trace[..., [s - 3 for s in part]], rtol=1e-12)
        np.testing.assert_allclose(some.cost, whole.cost[[s - 3 for s in part]], rtol=1e-12)
    assert whole.trace.shape == (6, 6, 3) and whole.steps.tolist() == [10, 20, 30, 40, 50, 60]


def test_rates_and_units_reach_the_learners():
    still = {"streams": 2, "steps": 20, "rates": [1e-12] * 6, "exponent": 0.7, "delay": 0.2, "average_from": 0.5}
    for name, start in (("actor_critic", 0.0), ("q_on", math.log(0.1))):  # log-variance at the start
        done = learn(name, still, {}, [1, 2], 10)
        np.testing.assert_allclose(done.average[5], start, atol=1e-9)
        np.testing.assert_allclose(done.trace[:, 5], start, atol=1e-9)
    options = {"rates": [1e-12, 0.1], "streams": 4, "time": 100.0, "behaviour": [0.0, 0.0, 1.0]}
    found = scan("q", 0.5, options, {}, [1, 2, 3])
    np.testing.assert_allclose(found.gain[0], 1.0, atol=1e-6)  # a slope of 0
    assert (found.gain[1] < 0.9).all() and (abs(found.averaged[1] - 1) > 0.1).all()


def test_groups_share_their_noise_and_averages_are_averages():
    class Recorder:
        def __init__(self):
            self.weights, self.seen = np.zeros((1, 4)), []

        def step(self, xi, z):
            self.seen.append((xi.copy(), z.copy()))
            self.weights = self.weights + 1.0
            return xi[:, 0]

    recorder = Recorder()
    done = train(recorder, [1, 2], 3, 8, 4, average_from=0.5, groups=2)
    for xi, z in recorder.seen:
        np.testing.assert_array_equal(xi[:2], xi[2:])
        np.testing.assert_array_equal(z[:2], z[2:])
        assert (xi[0] != xi[1]).all() and (xi != z).all()
    assert done.average[0].tolist() == [6.5] * 4  # of 5, 6, 7, 8
    firsts = np.array([xi[:, 0] for xi, _ in recorder.seen])
    np.testing.assert_allclose(done.cost, firsts[4:].mean(0))
    np.testing.assert_allclose(done.costs, firsts.reshape(4, 2, 4).mean(1))


def test_medians_with_lost_repeats():
    found = median(np.array([1.0, 2.0, 3.0, np.inf, np.inf]))
    assert found.value == 3.0 and found.high == np.inf and found.quartiles == (2.0, np.inf) and found.repeats == 5
    many = median(np.random.default_rng(0).normal(5, 1, 400))
    assert many.low < 5 < many.high and many.half_width == pytest.approx(1.96 * 1.2533 / 20, rel=0.4)
    assert str(median(np.array([1.0, 1.0]))) == "1 [1, 1]"
    for bad in (np.array([]), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="expected some"):
            median(bad)


def test_the_table_takes_the_best_rate_and_the_common_one():
    def scanned(*errors):
        gain = np.array([[e, e] for e in errors])
        return Scanned(gain, 2 * gain, 3 * gain, np.full_like(gain, 0.5))

    scans = {(f, 1.0): scanned(0.3, 0.1) for f in ("Q", "Q_scaled", "q")}
    scans |= {("Q", 0.1): scanned(0.4, np.inf), ("Q_scaled", 0.1): scanned(0.9, 0.2), ("q", 0.1): scanned(0.3, 0.1)}
    options = {"steps": [1.0, 0.1], "rates": [0.01, 0.1], "behaviour": [0.0, 0.0, 1.0]}
    table, rate = scan_table(scans, options, {})
    assert rate == 0.1
    assert [m.value for m in table["Q"]["common"]] == [0.1, np.inf]
    assert [m.value for m in table["Q"]["best"]] == [0.1, 0.4] and table["Q"]["best_rate"] == [0.1, 0.01]
    assert [m.value for m in table["q"]["best_averaged"]] == [0.2, 0.2]
    assert table["exact"]["share"][0] > 10 * table["exact"]["share"][1] / 5


def test_a_diverged_repeat_counts_as_infinitely_wrong():
    trace = np.zeros((10, 6, 2))
    average = np.array([[0, 0, 0, -0.3542487, -0.7084974, math.log(0.03542487)], [0, 0, 0, np.nan, 1, 800.0]]).T
    found = Trained(np.arange(10.0), trace, np.zeros((10, 2)), average, np.zeros(2))
    own = learned(found)
    assert own["slope"].tolist() == [-0.3542487, np.inf] and own["variance"][1] == np.inf
    assert average_rewards(found, ErgodicProblem(), False)["policy"].low == -np.inf


TINY = [
    "repeats=4", "blocks=2", "records=10", "workers=1", "actor_critic={streams: 4, steps: 200}",
    "q_on={streams: 4, steps: 200}", "q_off={streams: 4, steps: 200}", "q_plain={streams: 4, steps: 200}",
    "scan={repeats: 3, streams: 2, time: 5.0, rates: [0.01, 0.03]}",
]  # fmt: skip


def test_the_program(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "run_experiment.py"), "name=ergodic", *TINY, "out=o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    # 200 steps learn nothing, and the report says so
    assert done.returncode == 1 and "FAIL" in done.stdout, done.stderr
    found = json.loads((tmp_path / "o" / "results.json").read_text())
    assert found["truth"]["slope"] == pytest.approx(-0.3542487, abs=1e-7)
    assert set(found["learners"]) == {"actor_critic", "q_on", "q_off", "q_plain"}
    assert found["learners"]["actor_critic"]["environment_steps_a_repeat"] == 800
    assert found["tail_exponent_of_the_behaviour"] == pytest.approx(3.0, abs=0.02)
    assert len(found["scan"]["q"]["common"]) == 3 and found["scan"]["one_rate"] in (0.01, 0.03)
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert len(report["rows"]) == 16
    assert (tmp_path / "o" / "figure.png").is_file()
    assert (tmp_path / "o" / "results.csv").read_text().count("\n") == 1 + 4 * 10 * 7


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["repeats=1"], "repeats 1"),
        (["actor_critic.rates=[1,2]"], "actor_critic.rates is [1, 2]"),
        (["q_off.average_from=1"], "average_from 1"),
        (["scan.steps=[0.1,1.0]"], "scan.steps is [0.1, 1.0]"),
        (["problem.transition=milstein"], "transition is milstein"),
    ],
)
def test_bad_input_is_one_sentence(options, words, tmp_path):
    cfg = OmegaConf.load(ROOT / "examples" / "conf" / "experiment" / "ergodic.yaml")
    cfg.merge_with_dotlist([*options, f"out={tmp_path}"])
    with pytest.raises(InputError) as raised:
        run(cfg)
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
