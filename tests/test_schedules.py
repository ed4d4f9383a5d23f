"""Schedules by their formulas, projections by what a projection is."""

import math

import pytest
import torch

from aid_control.noise import generator
from aid_control.schedules import ball, box, constant, inverse_log, linear, positive_definite, power

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, 0x5C), dtype=F64)


def symmetric(*lead, m=3, seed=0):
    half = randn(*lead, m, m, seed=seed)
    return half + half.mT


def test_constant():
    assert {constant(0.3)(n) for n in (0, 1, 10**6)} == {0.3}


def test_power_by_hand():
    falling = power(2.0, 0.5, 4.0)
    assert falling(0) == 2.0
    assert falling(12) == pytest.approx(1.0)  # (16/4)^-1/2
    assert falling(60) == pytest.approx(0.5)
    assert power(0.05, 0.75)(15) == pytest.approx(0.05 / 8)  # the default: start/(n + 1)^0.75


def test_power_falls_like_its_exponent():
    """Late, doubling n divides by 2^exponent; before the delay it has hardly begun."""
    falling = power(3.0, 0.7, 100.0)
    assert falling(2 * 10**7) / falling(10**7) == pytest.approx(2**-0.7, rel=1e-4)
    assert falling(1) > 0.99 * 3
    assert all(falling(n + 1) < falling(n) for n in range(100))


def test_inverse_log():
    falling = inverse_log(0.6)
    assert falling(0) == falling(1) == 0.6  # log 2 < 1
    assert falling(99) == pytest.approx(0.6 / math.log(100))
    assert falling(10**6) < falling(10**5)


def test_box_clips_every_entry():
    w = torch.tensor([[-2.0, 0.3], [0.9, 5.0]])
    assert torch.equal(box(-1.0, 0.9)(w), torch.tensor([[-1.0, 0.3], [0.9, 0.9]]))
    assert torch.equal(box(0.5, 0.5)(w), torch.full((2, 2), 0.5))


def test_ball_of_one_set_of_weights():
    project = ball(2.0)
    inside, outside = torch.tensor([[0.6, -0.8]], dtype=F64), torch.tensor([[3.0, -4.0]], dtype=F64)
    assert torch.equal(project(inside), inside)
    assert torch.allclose(project(outside), torch.tensor([[1.2, -1.6]], dtype=F64))
    assert torch.equal(project(torch.zeros(3)), torch.zeros(3))


def test_ball_shrinks_each_group_alone():
    w = randn(3, 2, 4)
    w = w / w.square().sum((1, 2), keepdim=True).sqrt() * torch.tensor([0.5, 2.0, 7.0], dtype=F64)[:, None, None]
    out = ball(2.0)(w)
    assert torch.equal(out[0], w[0])
    assert torch.allclose(out.square().sum((1, 2)).sqrt(), torch.tensor([0.5, 2.0, 2.0], dtype=F64))
    assert torch.allclose(out[2], w[2] * 2 / 7)


@pytest.mark.parametrize("lead", [(), (5,)])
def test_positive_definite_clips_eigenvalues(lead):
    w = symmetric(*lead)
    out = positive_definite(0.4, 1.5)(w)
    before, after = torch.linalg.eigvalsh(w), torch.linalg.eigvalsh(out)
    assert torch.allclose(after, before.clamp(0.4, 1.5))
    assert torch.allclose(out, out.mT)
    assert torch.allclose(w @ out, out @ w)  # eigenvectors stay


def test_positive_definite_is_the_nearest():
    """No other admissible matrix is nearer in the Frobenius norm."""
    w = symmetric(seed=4)
    project = positive_definite(0.2)
    best = (project(w) - w).norm()
    for seed in range(50):
        half = randn(3, 3, seed=100 + seed)
        for other in (half @ half.mT + 0.2 * torch.eye(3, dtype=F64), project(w + 0.1 * symmetric(seed=seed))):
            assert (other - w).norm() >= best - 1e-12


@pytest.mark.parametrize("project", [box(-0.5, 0.7), ball(1.0), positive_definite(0.3, 1.0)])
def test_a_projection_is_one(project):
    """Twice is once, and what is inside stays."""
    w = symmetric(4)
    once = project(w)
    assert not torch.equal(once, w)
    assert torch.allclose(project(once), once, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: power(1.0, 0.7, 0.0), "delay is 0.0"),
        (lambda: power(1.0, 0.7, math.nan), "delay is nan"),
        (lambda: box(1.0, 0.0), "expected low <= high"),
        (lambda: box(math.nan, 0.0), "expected low <= high"),
        (lambda: ball(0.0), "radius is 0.0"),
        (lambda: ball(-1.0), "radius is -1.0"),
        (lambda: positive_definite(0.0), "expected 0 < low <= high"),
        (lambda: positive_definite(2.0, 1.0), "expected 0 < low <= high"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_linear_runs_from_its_start_to_its_end():
    rate = linear(1.0, 0.1, 200)
    assert rate(0) == 1.0 and rate(100) == pytest.approx(0.55) and rate(200) == pytest.approx(0.1)
