"""The policy gradient against the exact derivative of the exact cost, by mean, covariance and temperature."""

import pytest
import torch
from torch import nn

from aid_control import GaussianPolicy, rollout
from aid_control.evaluation import temporal_differences
from aid_control.features import LinearMean, LinearValue
from aid_control.improvement import policy_gradient_loss
from aid_control.increments import time_grid
from aid_control.lq import AffineGaussian, LQProblem, scheme_value
from aid_control.noise import generator
from aid_control.online import LogVariance
from aid_control.value import Shifted

F64 = torch.float64
GAIN, OFFSET, VARIANCE, TAU = -0.5, 0.3, 0.8, 0.3
X0 = 1.2


def problem(discount=0.8, **more):
    """Scalar, with control and state in the noise."""
    c = {"A": 0.3, "B": 1.0, "Q": 1.0, "R": 0.5, "N": 0.3, "q": 0.2, "r": -0.1, "G": 1.5, "g": 0.4}
    noise = {"C": [[[0.3]], [[0.0]]], "D": [[[0.5]], [[0.0]]], "s": [[0.1], [0.3]]}
    return LQProblem(**(c | noise | more), discount=discount)


GRID = time_grid(1.0, steps=8)


def cost(lq, phi, grid=GRID, tau=TAU):
    """J(phi) in the discrete problem, exactly; phi = gain, offset, log variance."""
    gain, offset, log_variance = phi
    policy = AffineGaussian.constant([[gain]], [offset], torch.tensor(log_variance, dtype=F64).exp())
    return float(scheme_value(lq, policy, grid, "sampled", tau)(0.0, torch.tensor([[X0]], dtype=F64)))


def derivative(lq, phi, tau=TAU, h=1e-5):
    """dJ/dphi by central differences, (3,)."""
    out = []
    for i in range(3):
        up, down = (cost(lq, [p + (s * h if i == j else 0) for j, p in enumerate(phi)], tau=tau) for s in (1, -1))
        out.append((up - down) / (2 * h))
    return torch.tensor(out, dtype=F64)


class OnGrid(nn.Module):
    """The exact value in the discrete problem, at the grid's times."""

    def __init__(self, lq, policy, tau):
        super().__init__()
        self.values = [scheme_value(lq, policy, GRID[k:], "sampled", tau) for k in range(len(GRID) - 1)]

    def forward(self, t, x, context=None, probe=None):
        return self.values[int((GRID - t).abs().argmin())](0.0, x)


def setup(lq, tau=TAU, groups=200, paths=500, seed=0):
    """A policy of S copies of the weights, the exact critic, and sampled paths in S groups."""
    mean = LinearMean(1, 1, 0, groups=groups)
    with torch.no_grad():
        mean.weights.copy_(torch.tensor([OFFSET, GAIN], dtype=F64).expand_as(mean.weights))
    log_variance = torch.full((groups, 1, 1), VARIANCE, dtype=F64).log().requires_grad_()
    policy = GaussianPolicy(mean, lambda t: log_variance.exp())
    exact = AffineGaussian.constant([[GAIN]], [OFFSET], VARIANCE)
    value = Shifted(OnGrid(lq, exact, tau))
    value.critic.groups = groups
    x = torch.full((groups * paths, 1), X0, dtype=F64)
    with torch.no_grad():
        path = rollout(
            lq, policy, x, GRID, target=(), mode="sampled", noise=generator(seed, 1), entropy=seed + 2, temperature=tau
        )
    return policy, (mean.weights, log_variance), value, path


def gradients(policy, weights, loss):
    """(S, 3): by gain, offset and log variance."""
    by_mean, by_variance = torch.autograd.grad(loss, weights)
    return torch.stack([by_mean[:, 0, 1], by_mean[:, 0, 0], by_variance[:, 0, 0]], dim=1)


def z_scores(found, wanted):
    return (found.mean(0) - wanted) / (found.std(0) / len(found) ** 0.5)


PHI = [GAIN, OFFSET, float(torch.tensor(VARIANCE, dtype=F64).log())]


@pytest.mark.parametrize(("discount", "tau"), [(0.8, 0.3), (0.8, 0.0), (0.0, 0.3)])
def test_it_is_the_derivative_of_the_cost(discount, tau):
    lq = problem(discount)
    wanted = derivative(lq, PHI, tau)
    policy, weights, value, path = setup(lq, tau)
    found = gradients(policy, weights, policy_gradient_loss(policy, value, path))
    error = found.std(0) / len(found) ** 0.5
    assert (z_scores(found, wanted).abs() < 4).all(), (found.mean(0), wanted, error)
    assert (error < 0.05 * wanted.abs()).all(), (wanted, error)  # each derivative is known to be there
    if discount and tau:
        # what is left out is seen: the discount, the entropy
        for other in (derivative(problem(0.0), PHI, tau), derivative(lq, PHI, 0.0)):
            assert z_scores(found, other).abs().max() > 8


def test_a_wrong_critic_is_seen():
    """The formula needs the value: with zero in its place the gradient is another one."""
    lq = problem()
    policy, weights, _, path = setup(lq)
    found = gradients(policy, weights, policy_gradient_loss(policy, Shifted(LinearValue(1, 0, groups=200)), path))
    assert z_scores(found, derivative(lq, PHI)).abs().max() > 20


def test_the_module_of_a_single_group():
    """One group, the covariance a module: the same number as one of several groups."""
    lq = problem()
    policy, weights, value, path = setup(lq, groups=1, paths=300)
    by_group = gradients(policy, weights, policy_gradient_loss(policy, value, path))[0]
    mean, covariance = LinearMean(1, 1, 0), LogVariance(VARIANCE)
    with torch.no_grad():
        mean.weights.copy_(torch.tensor([[OFFSET, GAIN]], dtype=F64))
    policy_gradient_loss(GaussianPolicy(mean, covariance), value, path).backward()
    alone = torch.stack([mean.weights.grad[0, 1], mean.weights.grad[0, 0], covariance.weight.grad])
    assert torch.allclose(alone, by_group)


def test_a_baseline_leaves_the_mean_and_takes_variance():
    """b = E[score^2 dM]/E[score^2 dt] of a pilot run, for the offset: its gradient becomes less noisy."""
    lq = problem(C=[[[0.0]], [[0.0]]], s=[[0.0], [0.02]], D=[[[0.1]], [[0.0]]], R=4.0)
    wanted = derivative(lq, PHI)
    policy, _, value, path = setup(lq, seed=50, groups=1, paths=5000)
    levels = {}
    with torch.no_grad():
        delta = temporal_differences(value.along(path), path)
        for k, t, dt in path.steps():
            square = policy.score(t, path.actions[k], path.means[k])[:, 0].square()
            levels[float(t)] = float((square * delta[k]).mean() / square.mean() / dt)
    policy, weights, value, path = setup(lq)
    level = lambda t, x: torch.full_like(x[:, 0], levels[float(t)])  # noqa: E731
    plain = gradients(policy, weights, policy_gradient_loss(policy, value, path))
    based = gradients(policy, weights, policy_gradient_loss(policy, value, path, baseline=level))
    bad = lambda t, x: 5 + 3 * x[:, 0] ** 2  # noqa: E731
    worse = gradients(policy, weights, policy_gradient_loss(policy, value, path, baseline=bad))
    for found in (plain, based, worse):
        assert (z_scores(found, wanted).abs() < 4).all()
    ratio = based.var(0) / plain.var(0)
    assert ratio[1] < 0.75 and ratio[0] < 0.85, ratio
    assert (worse.var(0) > 1.5 * plain.var(0))[:2].all()


def test_a_test_function_leaves_the_mean_and_takes_variance():
    """H = alpha d m/d phi, with alpha = -E[score dM^2]/E[dM^2] of a pilot run at each step."""
    lq = problem(C=[[[0.0]], [[0.0]]], s=[[0.0], [0.02]], D=[[[0.1]], [[0.0]]], R=2.0)
    wanted = derivative(lq, PHI)
    policy, _, value, path = setup(lq, seed=50, groups=1, paths=5000)
    alpha = {}
    with torch.no_grad():
        delta = temporal_differences(value.along(path), path)
        for k, t, _ in path.steps():
            score, square = policy.score(t, path.actions[k], path.means[k])[:, 0], delta[k].square()
            alpha[float(t)] = -float((score * square).mean() / square.mean())
    policy, weights, value, path = setup(lq)
    plain = gradients(policy, weights, policy_gradient_loss(policy, value, path))
    right = lambda t, x: alpha[float(t)] * policy.mean(t, x, None, None)[:, 0]  # noqa: E731
    tested = gradients(policy, weights, policy_gradient_loss(policy, value, path, test=right))
    wrong = lambda t, x: -3 * alpha[float(t)] * policy.mean(t, x, None, None)[:, 0]  # noqa: E731
    worse = gradients(policy, weights, policy_gradient_loss(policy, value, path, test=wrong))
    for found in (plain, tested, worse):
        assert (z_scores(found, wanted).abs() < 4).all()
    assert (tested.var(0) < 0.8 * plain.var(0))[:2].all(), tested.var(0) / plain.var(0)
    assert (worse.var(0) > 1.2 * plain.var(0))[:2].all()
    assert torch.equal(tested[:, 2], plain[:, 2])  # h does not know the variance


def test_the_average_cost_is_a_constant_baseline():
    lq = problem(discount=0.0)
    policy, weights, value, path = setup(lq, groups=3, paths=20)
    by_eta = gradients(policy, weights, policy_gradient_loss(policy, value, path, average=0.7))
    constant = lambda t, x: torch.full_like(x[:, 0], 0.7)  # noqa: E731
    by_level = gradients(policy, weights, policy_gradient_loss(policy, value, path, baseline=constant))
    assert torch.allclose(by_eta, by_level)
    assert not torch.allclose(by_eta, gradients(policy, weights, policy_gradient_loss(policy, value, path)))


def test_no_gradient_reaches_the_critic():
    lq = problem()
    policy, _, _, path = setup(lq, groups=1, paths=10)
    critic = LinearValue(1, 0)
    policy_gradient_loss(policy, Shifted(critic), path).backward()
    assert critic.weights.grad is None
