"""The AID toy: its closed form against the HJB equation, and the generic trainer against its closed form."""

import pytest
import torch
from torch import nn

from aid_control import ActorCritic, Batch, GaussianPolicy, rollout
from aid_control.lq import AIDToy
from aid_control.noise import generator
from aid_control.policy import ZeroMean


class Affine(nn.Module):
    """m = g(t) x + h(t) c with quadratic g and h: contains the optimum up to a small error, starts at zero."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(4, 2, dtype=torch.float64))

    def forward(self, t, x, context, probe):
        s = torch.stack([torch.as_tensor(t, dtype=torch.float64) ** i for i in range(4)])
        g, h = s @ self.weights
        return g * x + h * context


class Quadratic(nn.Module):
    """V = |A(t) x - c|^2 / (2 C(t)), exact at T; log A and log C polynomials that vanish at T = 1."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(3, 2, dtype=torch.float64))

    def forward(self, t, x, context, probe):
        left = 1 - torch.as_tensor(t, dtype=torch.float64)
        log_a, log_c = torch.stack([left, left**2, left**3]) @ self.weights
        return 0.5 * (log_a.exp() * x - context).square().sum(1) / log_c.exp()


def start(iteration: int, n: int = 64, d: int = 2, steps: int = 20, seed: int = 0) -> Batch:
    gen = generator(seed, iteration)
    x = 1.5 * torch.randn(n, d, generator=gen, dtype=torch.float64)
    c = torch.randn(n, d, generator=gen, dtype=torch.float64)
    return Batch(x, torch.linspace(0, 1, steps + 1, dtype=torch.float64), c, c)


def test_closed_form_solves_the_hjb_equation():
    toy = AIDToy(a=0.7, beta=0.3, horizon=2.0)
    batch = start(0)
    x = batch.x.requires_grad_()
    t = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    v = toy.value(t, x, batch.context)
    v_t = torch.stack([torch.autograd.grad(v[i], t, retain_graph=True)[0] for i in range(4)])
    v_x = torch.autograd.grad(v.sum(), x)[0]
    residual = v_t - 0.7 * (x * v_x).sum(1)[:4] - v_x.square().sum(1)[:4] / (2 * 0.3)
    assert residual.abs().max() < 1e-12
    assert torch.allclose(toy.optimal_control(t, x, batch.context), -v_x / 0.3, atol=1e-12)
    assert torch.equal(toy.value(2.0, x, batch.context), toy.terminal_cost(x, batch.context))


def test_without_drift_the_control_is_a_straight_line():
    # found by hand: a = 0 moves the fraction T/(beta + T) of the way to the goal, at constant speed
    toy = AIDToy(a=0.0, beta=0.5, horizon=2.0)
    x, c = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    policy = GaussianPolicy(lambda t, x, context, probe: toy.optimal_control(t, x, context))
    path = rollout(toy, policy, x, torch.linspace(0, 2, 9, dtype=torch.float64), c, c)
    assert path.states[-1].item() == pytest.approx(2 / 2.5)
    assert path.total_cost().item() == pytest.approx(toy.value(0.0, x, c).item())


def test_optimal_cost_converges_to_the_value():
    toy = AIDToy()
    policy = GaussianPolicy(lambda t, x, context, probe: toy.optimal_control(t, x, context))
    b = start(0)
    gaps = []
    for steps in (20, 40, 80):
        grid = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        gaps.append(
            (rollout(toy, policy, b.x, grid, b.context, b.target).total_cost() - toy.value(0.0, b.x, b.context)).mean()
        )
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1) and gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(
    ("estimator", "iterations", "updates", "bar"),
    [("score", 1000, 1, 0.10), ("stein", 400, 3, 0.08), ("adjoint", 400, 1, 0.06)],
)
def test_the_generic_trainer_learns_the_optimal_control(estimator, iterations, updates, bar):
    """Starts from zero control; ends within ``bar`` of u* relative to its size, along its own path."""
    toy = AIDToy()
    actor, critic = Affine(), Quadratic()
    trainer = ActorCritic(
        toy,
        actor,
        critic,
        temperature=0.1,
        estimator=estimator,
        evaluation="martingale",
        updates=updates,
        actor_lr=0.02,
        critic_lr=0.05,
        clip=1e9,
        ema=0.99,
    )
    for i in range(iterations):
        trainer.iterate(start(i))
    actor.load_state_dict(trainer.average)
    b = start(10**6)
    policy = GaussianPolicy(actor)
    with torch.no_grad():
        path = rollout(toy, policy, b.x, b.grid, b.context, b.target)
    best = torch.stack([toy.optimal_control(t, path.states[k], b.context) for k, t, _ in path.steps()])
    error = (torch.stack(path.means) - best).norm() / best.norm()
    assert error < bar, f"relative control error {error:.3f}"
    # the share of the possible gain, all three measured on the same grid
    exact = GaussianPolicy(lambda t, x, context, probe: toy.optimal_control(t, x, context))
    free, best_cost = (
        rollout(toy, p, b.x, b.grid, b.context, b.target).total_cost().mean()
        for p in (GaussianPolicy(ZeroMean()), exact)
    )
    assert (free - path.total_cost().mean()) / (free - best_cost) > 0.98


def test_restart_is_bit_equal():
    def make():
        return ActorCritic(AIDToy(), Affine(), Quadratic(), estimator="score", ema=0.9)

    whole, first, second = make(), make(), make()
    for i in range(6):
        whole.iterate(start(i))
    for i in range(3):
        first.iterate(start(i))
    second.restore(first.state())
    for i in range(3, 6):
        second.iterate(start(i))
    assert torch.equal(whole.actor.weights, second.actor.weights)
    assert all(torch.equal(v, second.average[k]) for k, v in whole.average.items())
