"""The three estimators point the same way; at the optimum, with the exact value, they stand still."""

import pytest
import torch
from torch import nn

from aid_control import ControlProblem, GaussianPolicy, rollout
from aid_control.evaluation import ctd_loss, martingale_loss, terminal_gradient_loss
from aid_control.improvement import ESTIMATORS, adjoint_targets
from aid_control.lq import AIDToy
from aid_control.noise import generator
from aid_control.value import NeuralValue, Shifted

F64 = torch.float64


class Exact(nn.Module):
    def __init__(self, toy):
        super().__init__()
        self.toy = toy

    def forward(self, t, x, context, probe):
        return self.toy.value(t, x, context)


def sampled(toy, mean, n, steps=4, lam=0.3, seed=0, d=2):
    x = torch.tensor([[1.0, -0.5]], dtype=F64).expand(n, d)
    c = torch.tensor([[0.2, 0.8]], dtype=F64).expand(n, d)
    policy = GaussianPolicy(mean, lambda t: toy.policy_variance(t, lam, d))
    grid = torch.linspace(0, toy.horizon, steps + 1, dtype=F64)
    return policy, rollout(toy, policy, x, grid, c, c, mode="sampled", noise=generator(seed))


def test_score_and_stein_have_the_same_expectation():
    toy = AIDToy()
    policy, path = sampled(toy, lambda t, x, c, p: 0.3 * torch.ones_like(x), 200_000)
    value = Shifted(Exact(toy), 0.3)
    score, stein = (list(ESTIMATORS[name](toy, policy, value, path)) for name in ("score", "stein"))
    for k in range(len(path)):
        gap = score[k] - stein[k]
        assert (gap.mean(0).abs() < 5 * gap.std(0) / len(gap) ** 0.5).all()
        assert (stein[k].var(0) < 0.2 * score[k].var(0)).all()  # what the Stein form is for


@pytest.mark.parametrize("name", ["stein", "adjoint"])
def test_the_optimum_is_a_fixed_point(name):
    toy = AIDToy()
    mean = lambda t, x, c, p: toy.optimal_control(t, x, c)  # noqa: E731
    gaps = []
    for steps in (50, 100):
        x, c = torch.randn(64, 2, dtype=F64, generator=generator(5)), torch.zeros(64, 2, dtype=F64)
        policy = GaussianPolicy(mean)
        path = rollout(toy, policy, x, torch.linspace(0, 1, steps + 1, dtype=F64), c, c)
        w = torch.stack(list(ESTIMATORS[name](toy, policy, Shifted(Exact(toy), 0.0), path)))
        gaps.append(((w - torch.stack(path.means)).norm() / w.norm()).item())
    assert gaps[0] < 0.05 and gaps[0] / gaps[1] == pytest.approx(2, rel=0.15)  # first order in Dt


def test_evaluation_losses_have_no_gradient_at_the_value():
    """Drift-free toy under a constant control: V is polynomial, CTD and ML vanish in expectation."""

    class Value(nn.Module):
        def __init__(self):
            super().__init__()
            self.off = nn.Parameter(torch.zeros((), dtype=F64))

        def forward(self, t, x, context, probe):
            left = 1 - t
            end = x + 0.3 * left
            # E|X_T - c|^2/2 with exploration noise of variance v Dt a step, plus what the control costs
            noise = 0.5 * 2 * v * left * 0.25
            cost = left * (0.5 * 0.5 * 0.09 * 2 + 0.3)
            shift = 0.3 * t  # the critic is of V; Shifted takes lambda t off
            return 0.5 * (end - context).square().sum(1) + noise + cost - 0.3 + shift + self.off * left

    toy = AIDToy(a=0.0, beta=0.5)
    v = toy.policy_variance(torch.tensor(0.0), 0.3, 2)
    _, path = sampled(toy, lambda t, x, c, p: 0.3 * torch.ones_like(x), 100_000)
    for loss in (ctd_loss, martingale_loss):
        for offset, moves in ((0.0, False), (0.5, True)):
            critic = Value()
            critic.off.data.fill_(offset)
            loss(Shifted(critic, 0.3), path).backward()
            gradient = critic.off.grad.item()
            assert (gradient > 0.05) if moves else (abs(gradient) < 0.02), (loss.__name__, offset, gradient)


def test_terminal_gradient_loss_finds_the_conditional_mean():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = nn.Parameter(torch.zeros(2, dtype=F64))

        def forward(self, t, x, context, probe):
            return 0.5 * (x - self.m).square().sum(1)

    toy, critic = AIDToy(), Mean()
    goals = torch.randn(500, 2, dtype=F64, generator=generator(2)) + 1
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        terminal_gradient_loss(toy, critic, torch.zeros_like(goals), None, goals).backward()
        optimizer.step()
    assert torch.allclose(critic.m, goals.mean(0), atol=1e-9)


def test_neural_value_has_a_gradient_in_x():
    value = Shifted(NeuralValue(2).double(), 0.1)
    _, path = sampled(AIDToy(), lambda t, x, c, p: torch.zeros_like(x), 3)
    h = torch.tensor([[1e-6, 0.0]], dtype=F64)
    x, t = path.states[1], path.times[1]
    numeric = (value.critic(t, x + h) - value.critic(t, x - h)) / 2e-6
    assert torch.allclose(value.gradient(AIDToy(), path, 1)[:, 0], numeric, atol=1e-6)
    # at the end it is the terminal cost's own gradient
    assert torch.allclose(value.gradient(AIDToy(), path, 4), path.states[-1] - path.target)


class StateGain(ControlProblem):
    """dx = (-x + (1 + x^2) u) dt, cost u^2/2 + x_T^2/2."""

    def drift(self, t, x, context, probe):
        return -x

    def push(self, t, x, u):
        return (1 + x.square()) * u

    def pull(self, t, x, p):
        return (1 + x.square()) * p

    def terminal_cost(self, x, target):
        return 0.5 * x.square().sum(1)


def test_the_adjoint_sees_a_gain_that_depends_on_the_state():
    """With an exact end the target gap R (m - w) Dt is the gradient of the discrete cost in every control."""
    problem, steps = StateGain(), 6
    controls = torch.linspace(-0.8, 0.5, steps, dtype=F64)[:, None, None].expand(-1, 3, 1).clone().requires_grad_()
    grid = torch.linspace(0, 1, steps + 1, dtype=F64)
    x = start = torch.tensor([[1.0], [-0.5], [0.3]], dtype=F64)
    cost = 0.0
    for k in range(steps):
        cost = cost + 0.5 * controls[k].square().sum() / steps
        x = x + problem.velocity(grid[k], x, controls[k], None, None) / steps
    cost = cost + problem.terminal_cost(x, None).sum()
    exact = torch.autograd.grad(cost, controls)[0]
    mean = lambda t, x, c, p: controls[int((grid - t).abs().argmin())].detach()  # noqa: E731
    path = rollout(problem, GaussianPolicy(mean), start, grid, target=())
    value = Shifted(lambda t, x, c, p: 0.5 * x.square().sum(1), 0.0)
    targets = torch.stack(adjoint_targets(problem, GaussianPolicy(mean), value, path))
    torch.testing.assert_close((torch.stack(path.means) - targets) / steps, exact)
