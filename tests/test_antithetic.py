"""Mirrored pairs: the expectation of Stein's form, less noise than the score, no calls of the drift."""

import pytest
import torch

from aid_control import GaussianPolicy, rollout
from aid_control.improvement import antithetic_targets, score_targets, stein_targets
from aid_control.lq import AIDToy
from aid_control.noise import generator
from aid_control.value import Shifted

F64 = torch.float64


class Exact(torch.nn.Module):
    def __init__(self, toy):
        super().__init__()
        self.toy = toy

    def forward(self, t, x, context, probe):
        return self.toy.value(t, x, context)


def sampled(n, seed=0, lam=0.3, d=2, discount=0.0):
    toy = AIDToy()
    toy.discount = discount
    x = torch.tensor([[1.0, -0.5]], dtype=F64).expand(n, d)
    c = torch.tensor([[0.2, 0.8]], dtype=F64).expand(n, d)
    policy = GaussianPolicy(lambda t, x, c, p: 0.3 * torch.ones_like(x), lambda t: toy.policy_variance(t, lam, d))
    grid = torch.linspace(0, toy.horizon, 5, dtype=F64)
    path = rollout(toy, policy, x, grid, c, c, mode="sampled", noise=generator(seed))
    return toy, policy, Shifted(Exact(toy), lam), path


@pytest.mark.parametrize("discount", [0.0, 2.0])
def test_same_expectation_as_stein_and_less_noise_than_the_score(discount):
    toy, policy, value, path = sampled(50_000, discount=discount)
    pairs = torch.stack(list(antithetic_targets(toy, policy, value, path, pairs=1)))
    stein = torch.stack(list(stein_targets(toy, policy, value, path)))
    score = torch.stack(list(score_targets(toy, policy, value, path)))
    gap = pairs - stein
    assert (gap.mean(1).abs() < 5 * gap.std(1) / gap.shape[1] ** 0.5).all()
    assert (pairs.var(1) < 0.5 * score.var(1)).all()


def test_the_noise_falls_with_the_number_of_pairs():
    toy, policy, value, path = sampled(20_000)
    spread = [torch.stack(list(antithetic_targets(toy, policy, value, path, pairs=n))).var(1).mean() for n in (1, 16)]
    assert spread[0] > 8 * spread[1]  # 16 but for the part that Stein's form has, too


def test_exact_for_a_linear_value_however_large_the_step():
    """For V = g x one pair gives e (e g) / v in every coordinate: the direction e, unbiased, found by hand."""
    toy, policy, _, path = sampled(1)

    class Linear(torch.nn.Module):
        def forward(self, t, x, context, probe):
            return x @ torch.tensor([2.0, -1.0], dtype=F64)

    value = Shifted(Linear(), 0.3, anchored=False)
    for (k, t, _), target in zip(path.steps(), antithetic_targets(toy, policy, value, path, pairs=1), strict=True):
        e = path.actions[k] - path.means[k]
        slope = (e @ torch.tensor([2.0, -1.0], dtype=F64)).unsqueeze(1)
        want = -e * slope / (policy.variance(t) * toy.control_weight(t))
        torch.testing.assert_close(target, want)


def test_never_calls_the_drift():
    toy, policy, value, path = sampled(10)
    toy.drift = None
    assert len(list(antithetic_targets(toy, policy, value, path))) == len(path)


def test_refuses_a_diffusing_problem():
    toy, policy, value, path = sampled(2)
    toy.noise = "columns"
    with pytest.raises(ValueError, match="columns noise"):
        list(antithetic_targets(toy, policy, value, path))
