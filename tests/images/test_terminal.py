"""The terminal cost: its parts, and what it refuses."""

import pytest
import torch

from aid_control.images.terminal import Goal, TerminalCost


def test_plain_cost_is_half_the_mean_square():
    x, image = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    want = 0.5 * ((x - image) ** 2).flatten(1).mean(1)
    assert TerminalCost().plain
    torch.testing.assert_close(TerminalCost()(x, image), want)
    torch.testing.assert_close(TerminalCost()(x, Goal(image, torch.ones(2, 1, 4, 4))), want)


def test_weights_tell_hole_from_known():
    x, image = torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    mask = torch.tensor([[[[1.0, 1.0], [1.0, 0.0]]]])  # three known pixels of four
    cost = TerminalCost(hole=4.0, known=0.5)
    assert not cost.plain
    # (3 x 0.5 + 1 x 4) / 4 / 2, found by hand
    assert float(cost(x, Goal(image, mask))) == pytest.approx(0.6875)
    with pytest.raises(ValueError, match="Goal"):
        cost(x, image)


def test_perceptual_term_is_added_with_its_weight():
    def distance(a, b):
        return (a - b).abs().flatten(1).sum(1)

    x, image = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, 1, 1, 2)
    assert float(TerminalCost(perceptual=3.0, distance=distance)(x, image)) == pytest.approx(0.125 + 3.0)


@pytest.mark.parametrize("options", [{"hole": -1.0}, {"hole": 0.0, "known": 0.0}, {"perceptual": 1.0}])
def test_bad_weights(options):
    with pytest.raises(ValueError, match="expected"):
        TerminalCost(**options)
