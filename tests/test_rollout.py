"""Rollouts: orders of convergence, execution modes, torchsde's part."""

import numpy as np
import pytest
import torch

from aid_control import ControlProblem, GaussianPolicy, rollout
from aid_control.lq import AIDToy
from aid_control.noise import generator
from aid_control.policy import ZeroMean

F64 = torch.float64


def grid(steps, end=1.0):
    return torch.linspace(0, end, steps + 1, dtype=F64)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_order_of_convergence(solver, order):
    toy = AIDToy(a=1.3)
    x = torch.tensor([[2.0]], dtype=F64)
    steps = np.array([10, 20, 40, 80])
    ends = [rollout(toy, GaussianPolicy(ZeroMean()), x, grid(k), solver=solver).states[-1].item() for k in steps]
    slope = np.polyfit(np.log(steps), np.log(np.abs(np.array(ends) - 2 * np.exp(-1.3))), 1)[0]
    assert slope == pytest.approx(-order, abs=0.1)


@pytest.mark.parametrize(("solver", "calls"), [("euler", 5), ("heun", 10)])
def test_the_drift_is_called_once_or_twice_a_step(solver, calls):
    path = rollout(AIDToy(), GaussianPolicy(ZeroMean()), torch.ones(1, 1), grid(5), solver=solver)
    assert path.calls == calls


def test_a_singular_end_is_reached_by_euler():
    class Singular(ControlProblem):
        def singular(self, t, s):
            return s == 1

        def drift(self, t, x, context, probe):
            return x / (1 - t)  # infinite at T = 1

    path = rollout(Singular(), GaussianPolicy(ZeroMean()), torch.ones(1, 1, dtype=F64), grid(4), solver="heun")
    assert torch.isfinite(path.states[-1]).all() and path.calls == 7


def test_exploration_costs_lambda_a_unit_of_time():
    toy = AIDToy(beta=0.7)
    x, lam = torch.ones(4000, 3, dtype=F64), 0.4
    policy = GaussianPolicy(lambda t, x, c, p: -0.5 * x, lambda t: toy.policy_variance(t, lam, 3))
    mean = rollout(toy, policy, x, grid(10), mode="mean")
    averaged = rollout(toy, policy, x, grid(10), mode="averaged")
    assert torch.equal(mean.states[-1], averaged.states[-1])
    assert torch.allclose(averaged.total_cost() - mean.total_cost(), torch.tensor(lam, dtype=F64))
    # without a drift the state of the sampled run does not feed back through a constant mean
    policy.mean = lambda t, x, c, p: torch.full_like(x, -0.5)
    gap = (
        rollout(toy, policy, x, grid(10), mode="sampled", noise=generator(1)).total_cost()
        - rollout(toy, policy, x, grid(10), mode="mean").total_cost()
    )
    assert gap.mean().item() == pytest.approx(lam, abs=5 * gap.std().item() / len(gap) ** 0.5)


def test_diffusion_goes_through_torchsde():
    toy = AIDToy(a=1.0, volatility=0.8)
    x = torch.zeros(20000, 1, dtype=F64)
    run = lambda seed: rollout(toy, GaussianPolicy(ZeroMean()), x, grid(20), entropy=seed).states[-1]  # noqa: E731
    end = run(3)
    assert torch.equal(end, run(3)) and not torch.equal(end, run(4))
    # variance of the Euler scheme in closed form: v <- (1 - dt)^2 v + s^2 dt
    v = 0.0
    for _ in range(20):
        v = (1 - 0.05) ** 2 * v + 0.64 * 0.05
    assert end.var().item() == pytest.approx(v, rel=5 * (2 / 20000) ** 0.5)
    with pytest.raises(ValueError, match="Heun"):
        rollout(toy, GaussianPolicy(ZeroMean()), x, grid(20), solver="heun")


def test_unknown_names_are_refused():
    for bad in ({"mode": "other"}, {"solver": "rk4"}):
        with pytest.raises(ValueError, match="expected"):
            rollout(AIDToy(), GaussianPolicy(ZeroMean()), torch.ones(1, 1), grid(2), **bad)


def test_log_prob_and_entropy_of_a_gaussian_policy():
    policy = GaussianPolicy(ZeroMean(), lambda t: 0.3)
    a, m = torch.randn(5, 2, 2, dtype=F64), torch.randn(5, 2, 2, dtype=F64)
    t = torch.tensor(0.0)
    want = torch.distributions.Normal(m, torch.tensor(0.3, dtype=F64).sqrt())
    assert torch.allclose(policy.log_prob(t, a, m), want.log_prob(a).flatten(1).sum(1), atol=1e-6)
    assert policy.entropy(t, m).item() == pytest.approx(want.entropy()[0].sum().item(), rel=1e-6)
