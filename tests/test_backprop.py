"""Backpropagation through the sampler: the exact gradient of the discrete cost, with and without checkpointing."""

import pytest
import torch

from aid_control.improvement import backprop_loss
from aid_control.lq import AIDToy
from aid_control.noise import generator
from aid_control.policy import GaussianPolicy
from aid_control.rollout import rollout

F64 = torch.float64


class Feedback(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor([0.3, -0.7], dtype=F64))

    def forward(self, t, x, context, probe):
        return self.gain[0] * x + self.gain[1] * context * (1 + t)


def case():
    toy = AIDToy()
    x, c = (torch.randn(6, 2, dtype=F64, generator=generator(i)) for i in (1, 2))
    return toy, x, torch.linspace(0, toy.horizon, 8, dtype=F64), c


@pytest.mark.parametrize("discount", [0.0, 1.3])
def test_the_loss_is_the_rollouts_cost(discount):
    toy, x, grid, c = case()
    toy.discount = discount
    actor = Feedback()
    total, terminal = backprop_loss(toy, actor, x, grid, c, c)
    path = rollout(toy, GaussianPolicy(actor), x, grid, c, c)
    torch.testing.assert_close(total, path.total_cost())
    torch.testing.assert_close(terminal, path.terminal * path.discounts()[-1])


@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_gradient_is_that_of_central_differences(checkpointing):
    toy, x, grid, c = case()
    actor = Feedback()
    backprop_loss(toy, actor, x, grid, c, c, checkpointing)[0].sum().backward()
    for i in range(2):
        ends = []
        for step in (1e-6, -1e-6):
            moved = Feedback()
            moved.gain.data[i] += step
            with torch.no_grad():
                ends.append(backprop_loss(toy, moved, x, grid, c, c, False)[0].sum())
        assert float(actor.gain.grad[i]) == pytest.approx(float(ends[0] - ends[1]) / 2e-6, rel=1e-7)


def test_refuses_a_diffusing_problem():
    toy, x, grid, c = case()
    toy.noise = "columns"
    with pytest.raises(ValueError, match="columns noise"):
        backprop_loss(toy, Feedback(), x, grid, c, c)
