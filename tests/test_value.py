"""Critics along a trajectory: the anchor at T, the shift by lambda t, gradients, groups."""

import pytest
import torch
from torch import nn

from aid_control import rollout
from aid_control.features import LinearValue
from aid_control.increments import time_grid
from aid_control.lq import AffineGaussian, LQProblem
from aid_control.noise import generator
from aid_control.value import NeuralValue, Shifted, sensitivities

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, 0xA1), dtype=F64)


PROBLEM = LQProblem(-0.5, 1.0, Q=1.0, R=1.0, s=[[0.3]], G=2.0, g=0.4, horizon=2.0)


@pytest.fixture
def path():
    policy = AffineGaussian.constant([[-0.4]], [0.1], 0.3)
    return rollout(PROBLEM, policy, randn(6, 1), time_grid(2.0, steps=4), target=(), mode="sampled", noise=generator(1))


def filled(module, seed=1):
    with torch.no_grad():
        module.weights.copy_(randn(*module.weights.shape, seed=seed))
    return module


@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_the_value_along_a_path(path, lam):
    """V(t_k, X_k) - lambda t_k, and at T the observed terminal cost - lambda T."""
    critic = filled(LinearValue(1, 1, 2.0))
    along = Shifted(critic, lam).along(path)
    assert len(along) == 5
    for k in range(4):
        assert torch.allclose(along[k], critic(path.times[k], path.states[k]) - lam * path.times[k])
    x = path.states[-1][:, 0]
    assert torch.allclose(along[-1], x**2 + 0.4 * x - lam * 2.0)
    assert not along[-1].requires_grad and all(v.requires_grad for v in along[:-1])


def test_without_the_anchor_the_end_is_the_critics_own(path):
    critic = filled(LinearValue(1, 1, 2.0))
    along = Shifted(critic, 0.7, anchored=False).along(path)
    assert torch.allclose(along[-1], critic(path.times[-1], path.states[-1]) - 0.7 * 2.0)
    assert along[-1].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(along[:-1], Shifted(critic, 0.7).along(path)[:-1], strict=True))


def test_an_anchor_needs_a_terminal_cost(path):
    path.terminal = None
    with pytest.raises(AssertionError, match="terminal anchor"):
        Shifted(LinearValue(1)).along(path)
    Shifted(LinearValue(1), anchored=False).along(path)


def test_the_critic_sees_context_and_probe():
    seen = []

    class Critic(nn.Module):
        def forward(self, t, x, context, probe):
            seen.append((float(t), context, probe))
            return x[:, 0]

    class Probed(LQProblem):
        def probe(self, t, x, context):
            return f"{context} at {float(t):g}"

    problem = Probed(0.0, 1.0, R=1.0)
    policy = AffineGaussian.constant([[0.0]])
    out = rollout(problem, policy, randn(2, 1), time_grid(1.0, steps=2), context="xi", target=())
    Shifted(Critic()).along(out)
    assert seen == [(0.0, "xi", "xi at 0"), (0.5, "xi", "xi at 0.5")]
    Shifted(Critic(), anchored=False).along(out)
    assert seen[-1] == (1.0, "xi", None)


@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_the_gradient_in_x(path, lam):
    """Of V, by hand; the shift has none; at the end it is the terminal cost's."""
    critic = filled(LinearValue(1, 1, 2.0))
    value = Shifted(critic, lam)
    w, t = critic.weights.detach(), path.times[2]
    at = w[:3] + (float(t) - 1) * w[3:]  # 2t/T - 1 for T = 2
    x = path.states[2]
    with torch.no_grad():  # where estimators call it
        assert torch.allclose(value.gradient(PROBLEM, path, 2), at[1] + 2 * at[2] * x)
        assert torch.allclose(value.gradient(PROBLEM, path, 4), 2 * path.states[4] + 0.4)
    assert not path.states[2].requires_grad


def test_the_mean_is_summed_over_groups(path):
    per_path = randn(6)
    assert Shifted(NeuralValue(1)).mean(per_path) == per_path.mean()
    wanted = per_path.reshape(3, 2).mean(1).sum()
    assert torch.allclose(Shifted(LinearValue(1, groups=3)).mean(per_path), wanted)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_neural_value(depth):
    critic = NeuralValue(3, width=5, depth=depth).double()
    x = randn(4, 3)
    out = critic(0.3, x)
    assert out.shape == (4,)
    assert torch.allclose(out, critic(torch.tensor(0.3, dtype=F64), x))
    assert not torch.allclose(out, critic(0.8, x))  # it sees the time
    # states of another shape are flattened
    wide = NeuralValue(6)
    assert torch.equal(wide(0.0, torch.ones(2, 2, 3)), wide(0.0, torch.ones(2, 6)))
    # twice differentiable, with a second derivative that is not zero
    x = x.requires_grad_()
    first = torch.autograd.grad(critic(0.3, x).sum(), x, create_graph=True)[0]
    assert torch.autograd.grad(first.square().sum(), x)[0].any()


def test_sensitivities_do_not_move_the_critic():
    critic, x = NeuralValue(2, 4).double(), randn(3, 2)
    before = [w.clone() for w in critic.parameters()]
    rows = sensitivities(critic, torch.tensor(0.2, dtype=F64), x)
    assert not rows.requires_grad
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, critic.parameters(), strict=True))
    # to first order a step along a row's sensitivity changes that row's value by its square
    with torch.no_grad():
        old, offset = critic(0.2, x[:1]), 0
        for w in critic.parameters():
            w += 1e-6 * rows[0, offset : offset + w.numel()].reshape(w.shape)
            offset += w.numel()
        assert float((critic(0.2, x[:1]) - old) / 1e-6) == pytest.approx(float(rows[0].square().sum()), rel=1e-4)
