"""Brownian increments: keys, laws, coarsening, reflection, grids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid_control.increments import Increments, time_grid

F64 = torch.float64


def sample(steps=12, paths=5, shape=(2,), key=(3,), **kwargs):
    return Increments.sample(time_grid(1.0, steps=steps), paths, shape, *key, **kwargs)


def test_sample_is_a_function_of_the_whole_key():
    torch.manual_seed(0)
    first = sample(key=(1, 2)).dw
    torch.manual_seed(1)
    torch.rand(3)
    assert torch.equal(first, sample(key=(1, 2)).dw)
    for other in ((2, 1), (1,), (1, 3), (1, 2, 0, 7), (-1, 2)):
        assert not torch.equal(first, sample(key=other).dw)


def test_sample_keeps_the_global_generators():
    torch.manual_seed(4)
    np.random.seed(4)
    want = torch.rand(3), np.random.rand(3)
    torch.manual_seed(4)
    np.random.seed(4)
    sample()
    assert torch.equal(torch.rand(3), want[0]) and np.array_equal(np.random.rand(3), want[1])


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=6, unique=True), st.data())
@settings(max_examples=25, deadline=None)
def test_a_row_per_path_depends_on_its_own_seed_only(seeds, data):
    grid = time_grid(1.0, steps=4)
    whole = Increments.per_path(grid, seeds, (2, 3), 9).dw
    assert whole.shape == (4, len(seeds), 2, 3)
    some = data.draw(st.permutations(range(len(seeds))))[: data.draw(st.integers(1, len(seeds)))]
    part = Increments.per_path(grid, [seeds[i] for i in some], (2, 3), 9).dw
    assert torch.equal(part, whole[:, some])
    if len(seeds) > 1:
        assert not torch.equal(whole[:, 0], whole[:, 1])
    assert not torch.equal(whole, Increments.per_path(grid, seeds, (2, 3), 8).dw)


@pytest.mark.parametrize("paths_are_keyed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_law_of_the_increments(paths_are_keyed, dtype):
    """dW_k / sqrt(h_k) has mean 0, variance 1, kurtosis 3, no correlation, on an uneven grid."""
    grid = torch.tensor([0.0, 0.5, 0.51, 2.0], dtype=F64)
    if paths_are_keyed:
        dw = Increments.per_path(grid, range(4000), (2,), 1, dtype=dtype).dw
    else:
        dw = Increments.sample(grid, 40_000, (2,), 1, dtype=dtype).dw
    assert dw.dtype == dtype
    z = (dw.double() / grid.diff().sqrt().reshape(3, 1, 1)).transpose(0, 1).flatten(1)  # (paths, 6)
    n = len(z)
    assert (z.mean(0).abs() < 5 / n**0.5).all()
    assert ((z.square().mean(0) - 1).abs() < 5 * (2 / n) ** 0.5).all()
    assert ((z**4).mean(0) - 3).abs().max() < 5 * (96 / n) ** 0.5
    correlation = z.mT.corrcoef() - torch.eye(6, dtype=F64)
    assert correlation.abs().max() < 5 / n**0.5


def test_quadratic_variation_is_time_and_first_variation_is_not():
    """QV_T = T +- T sqrt(2/K) a path; halving the step multiplies sum |dW| by sqrt 2."""
    fine = Increments.sample(time_grid(2.0, steps=4096), 50, (), 5)
    variation = fine.dw.square().sum(0)
    assert ((variation - 2).abs() < 5 * 2 * (2 / 4096) ** 0.5).all()
    ratio = fine.dw.abs().sum(0) / fine.coarsen(2).dw.abs().sum(0)
    assert ratio.mean().item() == pytest.approx(2**0.5, rel=0.01)


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_coarsening_observes_the_same_paths(blocks, every, seed):
    fine = sample(steps=blocks * every, paths=3, key=(seed,))
    coarse = fine.coarsen(every)
    assert torch.equal(coarse.grid, fine.grid[::every]) and coarse.dw.shape == (blocks, 3, 2)
    assert torch.allclose(coarse.path(), fine.path()[::every], rtol=0, atol=1e-14)
    assert torch.equal(fine.coarsen(1).dw, fine.dw)


def test_coarsening_twice_and_unevenly():
    fine = sample(steps=12)
    assert torch.allclose(fine.coarsen(2).coarsen(3).dw, fine.coarsen(6).dw, rtol=0, atol=1e-15)
    uneven = Increments.sample(torch.tensor([0.0, 0.1, 0.4, 0.5, 1.0], dtype=F64), 3, (1,), 0)
    assert uneven.coarsen(2).grid.tolist() == [0.0, 0.4, 1.0]


@pytest.mark.parametrize("every", [0, -1, 5, 24])
def test_coarsening_needs_a_divisor(every):
    with pytest.raises(ValueError, match=f"every is {every}; expected a divisor of the 12 steps"):
        sample(steps=12).coarsen(every)


def test_antithetic_paths_mirror_each_other():
    half = sample(paths=5)
    whole = half.antithetic()
    assert whole.dw.shape == (12, 10, 2) and torch.equal(whole.grid, half.grid)
    assert torch.equal(whole.dw[:, :5], half.dw) and torch.equal(whole.dw[:, 5:], -half.dw)
    assert whole.dw.sum(1).abs().max() < 1e-15


def test_path_starts_at_zero_and_steps_by_dw():
    increments = sample(shape=(2, 3))
    path = increments.path()
    assert path.shape == (13, 5, 2, 3) and not path[0].any()
    assert torch.allclose(path.diff(dim=0), increments.dw, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("grid", "dw", "message"),
    [
        ([0.0, 1.0], torch.zeros(2, 3), r"dw has shape \(2, 3\); expected \(1, paths, ...\) for a grid of 2 times"),
        ([0.0, 1.0], torch.zeros(1), r"dw has shape \(1,\)"),
        ([0.0, 1.0, 1.0], torch.zeros(2, 3), "grid must increase"),
        ([0.0, 1.0, 0.5], torch.zeros(2, 3), "grid must increase"),
    ],
)
def test_increments_that_do_not_fit_are_refused(grid, dw, message):
    with pytest.raises(ValueError, match=message):
        Increments(torch.tensor(grid, dtype=F64), dw)


@given(st.floats(1e-3, 1e3), st.integers(1, 2000))
@settings(max_examples=50, deadline=None)
def test_time_grid_is_uniform_and_exact_at_both_ends(horizon, steps):
    grid = time_grid(horizon, steps=steps)
    assert grid.dtype == F64 and len(grid) == steps + 1
    assert grid[0] == 0 and grid[-1] == horizon
    assert torch.allclose(grid.diff(), torch.tensor(horizon / steps, dtype=F64), rtol=0, atol=4e-16 * horizon)
    # the step that makes these steps makes this grid
    assert torch.equal(time_grid(horizon, dt=horizon / steps), grid)


@pytest.mark.parametrize(("horizon", "dt"), [(1.0, 0.01), (5.0, 0.05), (10.0, 0.1), (1.0, 1 / 3), (1.0, 1.0)])
def test_decimal_steps_that_divide_in_decimals_are_taken(horizon, dt):
    grid = time_grid(horizon, dt=dt)
    assert len(grid) == round(horizon / dt) + 1 and grid[-1] == horizon


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dt": 0.3}, "dt is 0.3, which does not divide the horizon 1.0"),
        ({"dt": 0.1001}, "does not divide"),
        ({"dt": 2.0}, "does not divide"),
        ({"dt": 0.0}, "dt is 0.0; expected dt > 0"),
        ({"dt": -0.1}, "dt is -0.1; expected dt > 0"),
        ({"dt": float("nan")}, "dt is nan; expected dt > 0"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({}, "exactly one of steps and dt"),
        ({"dt": 0.1, "steps": 10}, "exactly one of steps and dt"),
        ({"horizon": 0.0, "steps": 3}, "horizon is 0.0; expected T > 0"),
        ({"horizon": float("nan"), "steps": 3}, "horizon is nan; expected T > 0"),
    ],
)
def test_bad_grids_are_refused(arguments, message):
    horizon = arguments.pop("horizon", 1.0)
    with pytest.raises(ValueError, match=message):
        time_grid(horizon, **arguments)


@pytest.mark.parametrize("arguments", [{"steps": 3}, {"dt": 0.1}])
def test_an_infinite_horizon_has_no_grid(arguments):
    with pytest.raises(ValueError, match="horizon is inf"):
        time_grid(float("inf"), **arguments)
