"""Clocks: which noise levels a grid visits."""

from __future__ import annotations

import pytest
import torch

from aid_control.images.clock import GridClock, KarrasClock, LinearClock, LogClock

CLOCKS = [KarrasClock(), LinearClock(), LogClock(), GridClock((80.0, 9.0, 1.0, 0.002))]
each_clock = pytest.mark.parametrize("clock", CLOCKS, ids=["karras", "linear", "log", "grid"])


@each_clock
@pytest.mark.parametrize("steps", [2, 3, 18])
def test_endpoints_and_order(clock, steps):
    sigmas = clock.sigmas(steps)
    assert sigmas.dtype == torch.float64
    assert sigmas.shape == (steps + 1,)
    assert float(sigmas[0]) == pytest.approx(80.0, rel=1e-12)
    assert float(sigmas[-2]) == pytest.approx(0.002, rel=1e-10)
    assert float(sigmas[-1]) == 0.0
    assert (sigmas.diff() < 0).all()


@each_clock
def test_one_step_goes_from_sigma_max_to_zero(clock):
    assert clock.sigmas(1).tolist() == pytest.approx([80.0, 0.0], rel=1e-12)


def test_karras_middle_value():
    # 80^(1/7) = 1.870122 and 0.002^(1/7) = 0.411560; the 7th power of their mean, 1.140841, is 2.51522
    assert float(KarrasClock().sigmas(3)[1]) == pytest.approx(2.51522, rel=1e-5)


def test_rho_one_is_linear():
    assert KarrasClock(1.0, 5.0, rho=1.0).sigmas(5).tolist() == pytest.approx([5, 4, 3, 2, 1, 0])


@each_clock
def test_grid_runs_from_zero_to_sigma_max(clock):
    grid = clock.grid(7)
    assert float(grid[0]) == pytest.approx(0.0, abs=1e-12)
    assert float(grid[-1]) == 80.0
    assert (grid.diff() > 0).all()
    torch.testing.assert_close(clock.sigma(grid), clock.sigmas(7), rtol=0, atol=1e-12)


@each_clock
@pytest.mark.parametrize("steps", [0, -3])
def test_too_few_steps(clock, steps):
    with pytest.raises(ValueError, match=str(steps)):
        clock.sigmas(steps)


def test_log_clock_has_equal_ratios():
    sigmas = LogClock(0.01, 100.0).sigmas(9)[:-1]
    ratios = sigmas[1:] / sigmas[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 1e-4 ** (1 / 8)))


def test_rounding_is_applied_to_the_positive_levels():
    assert KarrasClock(1.0, 5.0, rho=1.0).sigmas(3, rounding=lambda s: s + 0.5).tolist() == [5.5, 3.5, 1.5, 0.0]


def test_linear_clock_is_linear():
    assert LinearClock(1.0, 5.0).sigmas(5).tolist() == pytest.approx([5, 4, 3, 2, 1, 0])


def test_a_given_grid_is_visited_exactly():
    levels = (80.0, 31.7, 3.3, 0.9, 0.41, 0.1, 0.0213, 0.002)
    clock = GridClock(levels)
    assert clock.sigmas(8).tolist() == [*levels, 0.0]
    twice = clock.sigmas(15)[:-1]
    torch.testing.assert_close(twice[::2], torch.tensor(levels, dtype=torch.float64), rtol=0, atol=0)
    torch.testing.assert_close(twice[1::2] ** 2, twice[:-1:2] * twice[2::2])  # geometric means between


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 2.0), (1.0, 1.0), (1.0, 0.0), (float("inf"), 1.0)])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match="levels"):
        GridClock(levels)
