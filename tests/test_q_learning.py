"""q-learning: the normalised advantage, the fixed point on and off the policy, least squares, and the loop."""

import math

import pytest
import torch
from torch import nn

from aid_control import GaussianPolicy, rollout
from aid_control.features import LinearMean, LinearValue
from aid_control.improvement import GaussianAdvantage, least_squares_q, q_learning_loss
from aid_control.increments import time_grid
from aid_control.lq import AffineGaussian, LQProblem, riccati, scheme_value
from aid_control.noise import generator
from aid_control.q_learner import QLearner
from aid_control.schedules import box, constant, power
from aid_control.value import Shifted

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, 0x9), dtype=F64)


def set_weights(module, values):
    with torch.no_grad():
        module.weights.copy_(torch.as_tensor(values, dtype=F64).expand_as(module.weights))
    return module


# --- The advantage ---------------------------------------------------------------------------------------------------


def advantage_2d(groups=None):
    """Random factor and mean, two controls."""
    q = GaussianAdvantage(LinearMean(3, 2, 1, groups=groups), 0.35, 2, groups)
    with torch.no_grad():
        q.mean.weights.copy_(0.3 * randn(*q.mean.weights.shape))
        q.factor.copy_(0.4 * randn(*q.factor.shape, seed=1))
    return q


@pytest.mark.parametrize("groups", [None, 2])
def test_the_advantage_is_normalised(groups):
    """int exp(-q/tau) da = 1 for every state and group, by quadrature on a wide grid."""
    q, x, t = advantage_2d(groups), randn(2, 3, seed=2), torch.tensor(0.3, dtype=F64)
    side = torch.linspace(-9, 9, 361, dtype=F64)
    actions = torch.cartesian_prod(side, side)
    for row in range(2):
        # rows of one state, in the group that the state belongs to
        many = torch.zeros(2 * len(actions), 3, dtype=F64) + x[row]
        both = torch.cat([actions, actions])
        with torch.no_grad():
            values = q(t, many, both)
        half = values[row * len(actions) : (row + 1) * len(actions)]
        assert float((-half / 0.35).exp().sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("groups", [None, 2])
def test_its_policy_is_the_gibbs_measure(groups):
    """log pi = -q/tau; the covariance is tau S^{-1}, positive definite for any factor."""
    q, x, a, t = advantage_2d(groups), randn(6, 3, seed=2), randn(6, 2, seed=3), torch.tensor(0.3, dtype=F64)
    policy = q.policy()
    mean = policy.mean(t, x, None, None)
    assert torch.allclose(policy.log_prob(t, a, mean), -q(t, x, a) / 0.35)
    root = q.cholesky()
    assert torch.allclose(policy.covariance(t) @ root @ root.mT, 0.35 * torch.eye(2, dtype=F64).expand_as(root))
    assert (root == root.tril()).all() and (root.diagonal(dim1=-2, dim2=-1) > 0).all()


@pytest.mark.parametrize("tau", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(tau):
    with pytest.raises(ValueError, match="expected tau > 0"):
        GaussianAdvantage(nn.Identity(), tau, 1)


# --- The fixed point -------------------------------------------------------------------------------------------------

TAU, STEPS = 0.6, 10


def soft_optimum(discount, steps=STEPS, a=-0.4, b=1.0, c=0.3, d=0.4, r=0.7, p=0.9):
    """A scalar problem whose soft-optimal (J, q) *on the grid* does not depend on time, found by hand.

    One step of the discrete problem,
    J(x) = softmin_a Dt (Qx^2 + Ra^2)/2 + e^{-rho Dt} E J(x + Dt (ax + bu) + (cx + du) dW_1 + s dW_2), keeps
    J = p x^2/2 for the Q that balances x^2 and the s that balances the constant, the price of the softmin.
    """
    dt = 1 / steps
    gamma = math.exp(-discount * dt)
    curvature = r + gamma * p * (dt * b**2 + d**2)
    cross = gamma * p * ((1 + dt * a) * b + c * d)
    q = (p - gamma * p * ((1 + dt * a) ** 2 + dt * c**2)) / dt + cross**2 / curvature
    s = math.sqrt(TAU * math.log(2 * math.pi * TAU / curvature) / (gamma * p))
    noise = {"C": [[[c]], [[0.0]]], "D": [[[d]], [[0.0]]], "s": [[0.0], [s]]}
    lq = LQProblem(a, b, Q=q, R=r, G=p, discount=discount, **noise)
    return lq, p, -cross / curvature, curvature


def learned(p, gain, curvature, groups):
    """J and q at given values, every weight a parameter."""
    critic = set_weights(LinearValue(1, 0, groups=groups), [0.0, 0.0, p / 2])
    q = GaussianAdvantage(set_weights(LinearMean(1, 1, 0, groups=groups), [0.0, gain]), TAU, 1, groups)
    with torch.no_grad():
        q.factor.fill_(0.5 * math.log(curvature))
    return critic, q


def updates(lq, critic, q, behaviour, groups, paths=1000):
    """The joint update of every weight in every group, (S, 6)."""
    x = 0.5 + 1.2 * randn(groups * paths, 1, seed=4)
    grid = time_grid(1.0, steps=STEPS)
    with torch.no_grad():
        path = rollout(lq, behaviour, x, grid, target=(), mode="sampled", noise=generator(5), entropy=6)
    loss = q_learning_loss(Shifted(critic).along(path), q, path) * groups
    found = torch.autograd.grad(loss, [critic.weights, q.mean.weights, q.factor])
    return torch.cat([g.reshape(groups, -1) for g in found], dim=1)


def z_scores(found):
    return found.mean(0) / (found.std(0) / len(found) ** 0.5)


@pytest.mark.parametrize("discount", [0.0, 0.9])
def test_the_hand_made_optimum_is_one(discount):
    """The same numbers by the package: the value of the Gibbs policy is stationary, and no other gain is cheaper."""
    lq, p, gain, curvature = soft_optimum(discount)
    grid = time_grid(1.0, steps=STEPS)

    def terms(gain, variance):
        policy = AffineGaussian.constant([[gain]], None, torch.tensor(variance, dtype=F64))
        return [float(a.squeeze()) for a in scheme_value(lq, policy, grid, "sampled", TAU).terms(0)]

    v = TAU / curvature
    assert terms(gain, v) == pytest.approx([p, 0, 0], abs=1e-12)
    for other in (terms(gain + 0.05, v), terms(gain - 0.05, v)):
        assert other[0] > p + 1e-4
    for other in (terms(gain, 1.1 * v), terms(gain, 0.9 * v)):
        assert other[2] > 1e-4


OFF = {
    "on": None,
    "wide": AffineGaussian.constant([[0.3]], [0.2], 1.5),
    "narrow": AffineGaussian.constant([[-1.5]], [-0.5], 0.2),
}


@pytest.mark.parametrize("discount", [0.0, 0.9])
@pytest.mark.parametrize("who", list(OFF))
def test_updates_vanish_at_the_optimum_on_and_off_the_policy(discount, who):
    groups = 100
    lq, p, gain, curvature = soft_optimum(discount)

    def at(p=p, gain=gain, curvature=curvature):
        critic, q = learned(p, gain, curvature, groups)
        return z_scores(updates(lq, critic, q, OFF[who] or q.policy(), groups))

    assert (at().abs() < 4).all(), at()
    # a gain, a curvature and a value that are off are seen in their own update
    assert abs(at(gain=gain + 0.15)[4]) > 8
    assert abs(at(curvature=1.2 * curvature)[5]) > 8
    assert abs(at(p=1.1 * p)[2]) > 8


def test_the_update_is_the_sum_by_hand():
    lq, p, gain, curvature = soft_optimum(0.9)
    critic, q = learned(1.3 * p, gain + 0.2, 1.1 * curvature, 1)
    x, grid = randn(7, 1), time_grid(1.0, steps=STEPS)
    path = rollout(lq, OFF["wide"], x, grid, target=(), mode="sampled", noise=generator(5), entropy=6)
    values = Shifted(critic).along(path)
    loss = q_learning_loss(values, q, path, average=0.2)
    found = torch.autograd.grad(loss, [critic.weights, q.mean.weights])
    total_j, total_q, dt = torch.zeros(3, dtype=F64), torch.zeros(2, dtype=F64), 1 / STEPS
    s = 1.1 * curvature
    for b in range(7):
        for k in range(STEPS):
            y, e = float(path.states[k][b]), float(path.actions[k][b] - (gain + 0.2) * path.states[k][b])
            rate = 0.5 * s * e**2 + 0.5 * TAU * math.log(2 * math.pi * TAU / s)
            ahead = float(path.terminal[b]) if k == STEPS - 1 else 0.65 * p * float(path.states[k + 1][b]) ** 2
            delta = math.exp(-0.9 * dt) * ahead - 0.65 * p * y**2 + float(path.costs[k][b]) - (rate + 0.2) * dt
            delta *= math.exp(-0.9 * k * dt)
            total_j += torch.tensor([1.0, y, y**2], dtype=F64) * delta
            total_q += torch.tensor([-s * e, -s * e * y], dtype=F64) * delta
    assert torch.allclose(found[0].flatten(), -total_j / 7, rtol=1e-10)
    assert torch.allclose(found[1].flatten(), -total_q / 7, rtol=1e-10)


# --- Least squares ---------------------------------------------------------------------------------------------------


def stationary_2d(discount, seed=40):
    """A random 2-d problem and a linear feedback whose deterministic value on the grid is x'Gx/2 at all times.

    Returns the problem, the feedback, and S and the matrix of g of its advantage rate on the grid,
    q = g.e + e'Se/2 for the action K x + e: the derivatives in e of one discrete step, by hand.
    """
    dt = 1 / STEPS
    big = randn(2, 2, seed=seed)
    a, b = -0.8 * torch.eye(2, dtype=F64) + 0.4 * randn(2, 2, seed=seed + 1), randn(2, 2, seed=seed + 2)
    c, d = 0.1 * randn(2, 2, 2, seed=seed + 3), 0.2 * randn(2, 2, 2, seed=seed + 4)
    r = torch.tensor([[1.0, 0.2], [0.2, 0.7]], dtype=F64)
    n, gain = 0.3 * randn(2, 2, seed=seed + 5), 0.4 * randn(2, 2, seed=seed + 6)
    p = big @ big.mT / 2 + 0.3 * torch.eye(2, dtype=F64)
    gamma = math.exp(-discount * dt)
    move, loop = torch.eye(2, dtype=F64) + dt * (a + b @ gain), c + d @ gain
    ahead = gamma * (move.mT @ p @ move + dt * torch.einsum("nki,kl,nlj->ij", loop, p, loop))
    q = (p - ahead) / dt - (n @ gain + gain.mT @ n.mT + gain.mT @ r @ gain)
    curvature = r + gamma * (dt * b.mT @ p @ b + torch.einsum("nki,kl,nlj->ij", d, p, d))
    slope = r @ gain + n.mT + gamma * (b.mT @ p @ move + torch.einsum("nki,kl,nlj->ij", d, p, loop))
    lq = LQProblem(a, b, Q=(q + q.mT) / 2, R=r, C=c, D=d, N=n, G=p, discount=discount)
    grid = time_grid(1.0, steps=STEPS)
    check = scheme_value(lq, AffineGaussian.constant(gain), grid, "mean").terms(0)
    assert torch.allclose(check[0], p) and abs(float(check[2])) < 1e-12
    return lq, gain, p, curvature, slope


@pytest.mark.parametrize("discount", [0.0, 0.9])
@pytest.mark.parametrize("behaviour", ["around", "elsewhere"])
def test_least_squares_finds_the_exact_advantage(discount, behaviour):
    """J, g and S of a feedback from data of another policy, within sampling error of 16 groups."""
    lq, gain, p, curvature, slope = stationary_2d(discount)
    groups, paths = 16, 3000
    critic = LinearValue(2, 0, groups=groups)
    mean = set_weights(LinearMean(2, 2, 0, groups=groups), torch.cat([torch.zeros(2, 1), gain], dim=1))
    cloud = torch.tensor([[0.8, 0.2], [0.2, 0.5]], dtype=F64)
    acting = {
        "around": AffineGaussian.constant(gain, None, 1.0),
        "elsewhere": AffineGaussian.constant(gain.mT - 0.2, [0.5, -0.4], cloud),
    }[behaviour]
    x = 0.5 + 1.5 * randn(groups * paths, 2, seed=4)
    with torch.no_grad():
        path = rollout(
            lq, acting, x, time_grid(1.0, steps=STEPS), target=(), mode="sampled", noise=generator(5), entropy=6
        )
    found = least_squares_q(critic, mean, path)
    assert found.slope.shape == (groups, 2, 3) and found.curvature.shape == (groups, 1, 2, 2)
    assert torch.equal(critic.weights, found.value)
    half = torch.stack([p[0, 0] / 2, p[0, 1], p[1, 1] / 2])
    i, j = torch.triu_indices(2, 2)
    for name, got, wanted, bar in (
        ("J", found.value, torch.cat([torch.zeros(3), half]), 0.03),
        ("g", found.slope.flatten(1), torch.cat([torch.zeros(2, 1), slope], dim=1).flatten(), 0.08),
        ("S", found.curvature[:, 0, i, j], curvature[i, j], 0.08),
    ):
        error = got.std(0) / groups**0.5
        assert (error < bar).all(), (name, error)
        assert ((got.mean(0) - wanted).abs() < 4 * error).all(), (name, got.mean(0), wanted, error)
    # and the new mean is the improved policy's
    step = -torch.linalg.solve(curvature, slope)
    new = -torch.linalg.solve(found.curvature[:, 0].mean(0), found.slope.mean(0))[:, 1:]
    assert (new - step).norm() < 0.05 * step.norm()


def test_its_answer_at_a_time():
    """g and S polynomial in time: the answer at t is the sum of Legendre terms."""
    lq, gain, *_ = stationary_2d(0.0)
    critic, mean = LinearValue(2, 1), set_weights(LinearMean(2, 2, 1), torch.zeros(2, 6))
    acting = AffineGaussian.constant(gain, None, 1.0)
    grid = time_grid(1.0, steps=STEPS)
    path = rollout(lq, acting, randn(500, 2), grid, target=(), mode="sampled", noise=generator(5), entropy=6)
    found = least_squares_q(critic, mean, path, curvature_degree=2)
    assert found.slope.shape == (1, 2, 6) and found.curvature.shape == (1, 3, 2, 2)
    g, s = found.at(0.25, mean)
    z = -0.5
    assert torch.allclose(g, found.slope[..., :3] + z * found.slope[..., 3:])
    c = found.curvature
    assert torch.allclose(s, c[:, 0] + z * c[:, 1] + (1.5 * z**2 - 0.5) * c[:, 2])


def test_least_squares_of_groups_are_separate():
    lq, gain, *_ = stationary_2d(0.9)
    acting, grid = AffineGaussian.constant(gain, None, 1.0), time_grid(1.0, steps=STEPS)
    path = rollout(lq, acting, randn(400, 2), grid, target=(), mode="sampled", noise=generator(5), entropy=6)
    start = torch.cat([torch.zeros(2, 1), gain], dim=1)
    both = least_squares_q(LinearValue(2, 0, groups=2), set_weights(LinearMean(2, 2, 0, groups=2), start), path)
    path.states = [x[200:] for x in path.states]
    path.actions = [a[200:] for a in path.actions]
    path.costs, path.terminal = [c[200:] for c in path.costs], path.terminal[200:]
    one = least_squares_q(LinearValue(2, 0), set_weights(LinearMean(2, 2, 0), start), path)
    for name in ("value", "slope", "curvature"):
        assert torch.allclose(getattr(both, name)[1], getattr(one, name)[0], rtol=1e-6, atol=1e-9)


# --- The loop --------------------------------------------------------------------------------------------------------


def loop(groups, behaviour=None, steps=STEPS, *rates, **more):
    lq, p, gain, curvature = soft_optimum(0.9, steps)
    critic, q = LinearValue(1, 0, groups=groups), GaussianAdvantage(LinearMean(1, 1, 0, groups=groups), TAU, 1, groups)
    learner = QLearner(lq, critic, q, behaviour, *rates, **more)
    return learner, p, gain, curvature


@pytest.mark.parametrize("who", ["on", "off"])
def test_the_loop_finds_the_optimum(who):
    """From zero: gain, precision and value on eight seeds at once, on and off the policy."""
    groups, paths, iterations = 8, 64, 450
    behaviour = None if who == "on" else AffineGaussian.constant([[-0.3]], [0.2], 1.0)
    rates = [power(a, 0.8, 100) for a in (0.06, 0.12, 0.03)]
    learner, p, gain, curvature = loop(groups, behaviour, 5, *rates)
    grid = time_grid(1.0, steps=5)
    for i in range(iterations):
        x = torch.rand(groups * paths, 1, dtype=F64, generator=generator(i))
        learner.iterate(3 * x - 1.5, grid)
    assert learner.iteration == iterations
    gains = learner.advantage.mean.weights.detach()[:, 0, 1]
    precision = (2 * learner.advantage.factor.detach()[:, 0, 0]).exp()
    value = 2 * learner.critic.weights.detach()[:, 2]
    for found, wanted, bar in ((gains, gain, 0.06), (precision, curvature, 0.05), (value, p, 0.05)):
        error = ((found - wanted) / wanted).abs()
        assert error.median() < bar and error.max() < 4 * bar, (found, wanted)


def test_the_loop_repeats_bit_by_bit_and_depends_on_the_seed():
    grid = time_grid(1.0, steps=STEPS)

    def run(seed):
        learner, *_ = loop(2, seed=seed)
        costs = [learner.iterate(randn(20, 1), grid) for _ in range(5)]
        return learner.advantage.mean.weights.detach().clone(), costs

    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first[0], again[0]) and first[1] == again[1]
    assert not torch.equal(first[0], other[0])
    assert len(set(first[1])) == 5  # fresh noise each iteration


def test_actions_and_paths_are_fresh_each_iteration():
    """Both depend on the iteration; the Brownian part is what a step leaves over drift and control."""
    x, grid = torch.ones(6, 1, dtype=F64), time_grid(1.0, steps=STEPS)

    def noise(iteration):
        learner, *_ = loop(1)
        learner.iteration = iteration
        path = learner.collect(x, grid)
        a, dt = path.actions[0], 1 / STEPS
        return a, path.states[1] - x - dt * learner.problem.velocity(grid[0], x, a, None, None)

    for first, again, later in zip(noise(0), noise(0), noise(1), strict=True):
        assert torch.equal(first, again) and (first != later).all()
    # the Brownian part alone, under one action
    silent, *_ = loop(1, AffineGaussian.constant([[0.0]], [0.0], 1e-20))
    before = silent.collect(x, grid).states[1]
    silent.iteration = 1
    assert (before - silent.collect(x, grid).states[1]).abs().min() > 1e-4


def test_rates_and_projection_are_obeyed():
    grid = time_grid(1.0, steps=STEPS)
    learner, *_ = loop(2, critic_rate=constant(0.0), mean_rate=constant(0.0), precision_rate=constant(0.0))
    learner.iterate(randn(20, 1), grid)
    assert not learner.critic.weights.any() and not learner.advantage.mean.weights.any()
    assert not learner.advantage.factor.any()
    learner, *_ = loop(2)
    learner.iterate(randn(20, 1), grid)
    assert learner.critic.weights.any() and learner.advantage.mean.weights.any()
    assert not learner.advantage.factor.any()  # the default keeps the precision
    learner, *_ = loop(2, mean_rate=constant(1e3), projection=box(-0.01, 0.02))
    learner.iterate(randn(20, 1), grid)
    weights = learner.advantage.mean.weights
    assert weights.min() >= -0.01 and weights.max() <= 0.02
    assert (weights.abs() >= 0.01).all()


def test_a_network_learns_by_the_same_loop():
    """A critic that is not linear and a behaviour that is given."""
    lq = LQProblem(-0.4, 1.0, Q=1.0, R=0.7, s=[[0.3]], G=0.9)
    gain = float(riccati(lq).policy.law(torch.tensor(0.0))[0])
    critic = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1)).double()

    class Value(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = critic

        def forward(self, t, x, context=None, probe=None):
            return self.net(x)[:, 0]

    q = GaussianAdvantage(LinearMean(1, 1, 0), 0.3, 1)
    policy = GaussianPolicy(LinearMean(1, 1, 0), lambda t: 0.5)
    learner = QLearner(lq, Value(), q, policy)
    before = [w.detach().clone() for w in learner.critic.parameters()]
    grid = time_grid(1.0, steps=STEPS)
    for i in range(150):
        learner.iterate(1.5 * randn(64, 1, seed=i), grid)
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.critic.parameters(), strict=True))
    assert not policy.mean.weights.any()  # the behaviour is not touched
    # in the right direction, most of the way: the critic is crude
    assert 0.5 < float(q.mean.weights.detach()[0, 1]) / gain < 1.5
