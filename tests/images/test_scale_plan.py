"""The counts behind docs/how-to/scale-plan.md: by hand on the mini backbone, and against the trainer's iteration."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from aid_control.images import load_backbone
from aid_control.images.backbones.layers import Conv2d, Linear
from aid_control.images.backbones.wrappers import Counted
from aid_control.images.published import published

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import scale_plan as plan

# of the mini backbone, 64 channels: two layers of 16x16 pixels and one of 8x8
ATTENTION = 2 * (2 * 2 * 256**2 * 64) + 2 * 2 * 64**2 * 64


@pytest.fixture(scope="module")
def mini():
    return load_backbone()


@pytest.fixture(scope="module")
def ghost(mini):
    """The mini backbone without memory."""
    return copy.deepcopy(mini).to("meta").requires_grad_(False)


def by_hand(net):
    """A product and a sum as two, from the shapes that pass: convolutions, their resampling, linear maps, attention."""
    total = ATTENTION

    def count(module, args, out):
        nonlocal total
        if module.weight is not None:  # every output: one product and one sum a weight of its channel
            total += 2 * module.weight[0].numel() * out.numel()
        if isinstance(module, Conv2d) and (module.up or module.down):  # 2x2 taps, channel by channel
            _, channels, side, _ = args[0].shape
            coarse = side if module.up else side // 2
            total += 2 * 4 * channels * coarse**2

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, Conv2d | Linear)]
    net(torch.zeros(1, *net.shape), torch.tensor(1.0))
    for hook in hooks:
        hook.remove()
    return total


def test_a_call_of_the_mini_backbone_by_hand(mini, ghost):
    first = nn.Conv2d(3, 16, 3, padding=1)
    with plan.counting() as found:
        first(torch.zeros(1, 3, 64, 64))
    assert found == [2 * 9 * 3 * 16 * 64 * 64]
    assert plan.call_cost(ghost) == plan.call_cost(mini)
    assert plan.call_cost(mini) == pytest.approx(by_hand(mini), rel=1e-12)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("adjoint", "backprop, checkpointing")]


@pytest.mark.parametrize("name", ["stein", "backprop", *SLOW])
def test_an_iteration_is_the_trainers_own(mini, ghost, name):
    """The composed calls without memory against `ActorCritic.iterate` with numbers."""
    trainer = plan.trainer_of(mini, *plan.TRAINERS[name])
    with plan.counting() as found:
        trainer.iterate(plan.batch_of(trainer, 2, 2))
    assert found[0] == plan.counted_iteration(ghost, name, 2, 2)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(plan.TRAINERS))
def test_every_further_step_costs_the_same(ghost, name):
    operations, most = plan.iteration_cost(ghost, name, 6)
    counted, alive = plan.counted_iteration(ghost, name, 1, 6)
    assert operations == counted and most == pytest.approx(alive, rel=2e-3)


def test_memory_is_what_is_alive():
    with plan.Alive() as found:
        a = torch.zeros(1000)  # 4000 bytes
        b = a[10:]  # a view takes nothing
        b += 1
        c = torch.cat([a, a])  # 8000
        del a, b
        assert found.now == 8000
        d = c * 2  # 8000
    assert found.most == 16_000 and len(d) == 2000


@pytest.mark.parametrize(
    "name, forth, back",
    [("stein", 3, 0), ("adjoint", 6, 3), ("backprop", 3, 2), ("backprop, checkpointing", 6, 2)],
)
def test_calls_of_an_iteration(mini, name, forth, back):
    """K forth; 2 K and K back; K and K - 1 (nobody asks for the gradient in the first state); 2 K and K - 1."""
    net = Counted(mini)
    trainer = plan.trainer_of(net, *plan.TRAINERS[name])
    plan.iteration(trainer, plan.batch_of(trainer, 1, 3))
    assert (net.forward_calls, net.backward_calls) == (forth, back)


def test_architectures_are_the_published_ones():
    for item in plan.PLANS:
        assert plan.weights(plan.network(item.network)) == published(item.network).parameters
    # the larger plan asks for whole images a GPU
    assert all(item.batch % max(plan.GPUS) == 0 for item in plan.PLANS[1:])
