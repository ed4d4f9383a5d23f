"""Exact linear paths: closed forms, laws, coarsening, and the order of Euler measured against them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid_control.increments import Increments, time_grid
from aid_control.lq import AffineGaussian, LQProblem, riccati, zoo
from aid_control.lq.ou import OrnsteinUhlenbeck
from aid_control.rollout import rollout

F64 = torch.float64


def tensor(value):
    return torch.tensor(value, dtype=F64)


B, S = tensor([0.5, -1.0]), tensor([[1.0, 0.3], [-0.2, 0.8]])
DRIFTS = {
    "stable": [[-1.0, 0.4], [-0.3, -2.0]],
    "unstable": [[1.5, 1.0], [0.2, 0.7]],
    "singular": [[0.0, 1.0], [0.0, 0.0]],
    "rotating": [[0.0, 3.0], [-3.0, 0.0]],
    "zero": [[0.0, 0.0], [0.0, 0.0]],
}
drifts = pytest.mark.parametrize("drift", DRIFTS.values(), ids=DRIFTS)


def system(drift):
    return OrnsteinUhlenbeck(tensor(drift), B, S)


def simpson(f, end, pieces=400):
    """The integral of f over [0, end], independent of every matrix trick."""
    u = np.linspace(0, end, 2 * pieces + 1)
    weights = np.tile([2.0, 4.0], pieces + 1)[: len(u)]
    weights[0] = weights[-1] = 1
    return sum(w * f(v) for w, v in zip(weights, u, strict=True)) * end / (6 * pieces)


@drifts
def test_transition_is_the_integrals_that_define_it(drift):
    ou, h = system(drift), 0.7
    move = ou.transition(h)
    power = lambda u: torch.linalg.matrix_exp(tensor(drift) * u)  # noqa: E731
    integral = simpson(power, h)
    assert torch.allclose(move.flow, power(h), atol=1e-13)
    assert torch.allclose(move.shift, integral @ B, atol=1e-10)
    covariance = simpson(lambda u: power(u) @ S.mT @ S @ power(u).mT, h)
    assert torch.allclose(move.covariance, covariance, atol=1e-9)
    assert torch.allclose(move.weight, integral @ S.mT / h, atol=1e-10)
    # total covariance = what dW explains + the rest
    assert torch.allclose(move.covariance, h * move.weight @ move.weight.mT + move.root @ move.root.mT, atol=1e-13)


def test_scalar_closed_form():
    a, b, s, t = -1.3, 0.4, 0.8, 2.5
    ou = OrnsteinUhlenbeck(tensor([[a]]), tensor([b]), tensor([[s]]))
    mean = math.exp(a * t) * 2 + b * math.expm1(a * t) / a
    assert ou.mean(t, tensor([2.0])).item() == pytest.approx(mean, rel=1e-13)
    assert ou.covariance(t).item() == pytest.approx(s * s * math.expm1(2 * a * t) / (2 * a), rel=1e-13)
    move, left = ou.transition(0.1), (math.expm1(a * 0.1) / a) ** 2 / 0.1
    rest = s * s * (math.expm1(2 * a * 0.1) / (2 * a) - left)
    assert move.root.item() ** 2 == pytest.approx(rest, rel=1e-10)


@pytest.mark.parametrize("scale", [-1.0, 1.0])
def test_stiff_and_long(scale):
    """A rotated diag(-200, -0.1) over 5 units of time, and a growth of e^20: nothing is swamped."""
    rates = tensor([-200.0, -0.1]) if scale < 0 else tensor([4.0, -2.0])
    turn = torch.linalg.matrix_exp(tensor([[0.0, 0.6], [-0.6, 0.0]]))
    ou = OrnsteinUhlenbeck(turn @ rates.diag() @ turn.mT, None, S)
    g = turn.mT @ S.mT
    pairs = rates + rates.unsqueeze(1)
    want = turn @ (g @ g.mT * torch.expm1(pairs * 5) / pairs) @ turn.mT
    assert torch.allclose(ou.covariance(5.0), want, rtol=1e-11, atol=0)


@drifts
def test_semigroup(drift):
    ou = system(drift)
    one, two, both = ou.transition(0.3), ou.transition(0.5), ou.transition(0.8)
    assert torch.allclose(two.flow @ one.flow, both.flow, atol=1e-13)
    assert torch.allclose(two.flow @ one.shift + two.shift, both.shift, atol=1e-13)
    assert torch.allclose(two.flow @ one.covariance @ two.flow.mT + two.covariance, both.covariance, atol=1e-13)
    x = tensor([[1.0, 2.0], [0.0, -1.0]])
    assert torch.allclose(ou.mean(0.5, ou.mean(0.3, x)), ou.mean(0.8, x), atol=1e-13)
    assert torch.equal(ou.mean(0.0, x), x) and not ou.covariance(0.0).any()


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(-2, 2), min_size=9, max_size=9),
    st.integers(1, 4),
    st.floats(1e-5, 1.0),
)
def test_any_drift_and_number_of_columns(entries, columns, h):
    """Also more or fewer Brownian motions than coordinates: the law is a law and explains dW."""
    s = torch.arange(3.0 * columns, dtype=F64).reshape(columns, 3).cos()
    move = OrnsteinUhlenbeck(tensor(entries).reshape(3, 3), None, s).transition(h)
    assert move.weight.shape == (3, columns) and torch.isfinite(move.root).all()
    total = h * move.weight @ move.weight.mT + move.root @ move.root.mT
    assert torch.allclose(move.covariance, total, rtol=1e-9, atol=1e-13 * h)


@drifts
def test_moments_of_the_paths(drift):
    """Mean and covariance of X, and its covariance with W, at all times of an uneven grid."""
    ou, paths = system(drift), 20_000
    grid, x0 = tensor([0.0, 0.1, 0.5, 0.6, 1.0]), tensor([1.0, -2.0])
    increments = Increments.sample(grid, paths, (2,), 5)
    x = ou.paths(x0, increments, 5)  # the same key must not repeat the increments
    assert x.shape == (5, paths, 2) and torch.equal(x[0, 7], x0)
    w = increments.path()
    for k, t in enumerate(grid.tolist()):
        cov, root = ou.covariance(t), ou.covariance(t).diagonal().sqrt()
        assert ((x[k].mean(0) - ou.mean(t, x0)).abs() <= 4.5 * root / paths**0.5).all()
        slack = 5 * torch.outer(root, root) * (2 / paths) ** 0.5 + 1e-15
        assert ((x[k].mT.cov() - cov).abs() <= slack).all()
        if k:
            # E[X_t W_t'] = Phi_t s'
            cross = ou.transition(t).weight * t
            have = (x[k] - ou.mean(t, x0)).mT @ w[k] / paths
            assert ((have - cross).abs() <= 5 * root.unsqueeze(1) * (2 * t / paths) ** 0.5).all()


def test_without_drift_the_path_is_the_brownian_one():
    ou = OrnsteinUhlenbeck(torch.zeros(2, 2), None, S)
    increments = Increments.sample(time_grid(1.0, steps=7), 5, (2,), 1)
    assert not ou.transition(1 / 7).root.any()
    want = tensor([1.0, 2.0]) + increments.path() @ S
    assert torch.allclose(ou.paths(tensor([1.0, 2.0]), increments, 3), want, atol=1e-14)


def test_an_integrator_draws_only_what_is_open():
    """dX = V dt, dV = dW: given dW, V is known and X has variance h^3 / 12."""
    ou = OrnsteinUhlenbeck(tensor([[0.0, 1.0], [0.0, 0.0]]), None, tensor([[0.0, 1.0]]))
    for h in (1.0, 1e-2, 1e-5):
        move = ou.transition(h)
        assert (move.root @ move.root.mT)[0, 0].item() == pytest.approx(h**3 / 12, rel=1e-9)
        assert move.root[1].abs().max() < 1e-15 and move.weight[:, 0].tolist() == pytest.approx([h / 2, 1.0], rel=1e-12)


@drifts
def test_coarsening_keeps_the_process(drift):
    ou, x0 = system(drift), tensor([1.0, -1.0])
    increments = Increments.sample(time_grid(1.0, steps=12), 6, (2,), 2)
    z = ou.convolutions(increments, 3)
    fine = ou.follow(x0, increments.grid, z)
    assert torch.equal(fine, ou.paths(x0, increments, 3))
    for every in (1, 2, 3, 12):
        coarse = ou.coarsen(z, increments.grid, every)
        assert coarse.shape == (12 // every, 6, 2)
        assert torch.allclose(ou.follow(x0, increments.grid[::every], coarse), fine[::every], atol=1e-12)
    twice = ou.coarsen(ou.coarsen(z, increments.grid, 2), increments.grid[::2], 3)
    assert torch.allclose(twice, ou.coarsen(z, increments.grid, 6), atol=1e-13)


def test_paths_are_a_function_of_the_key():
    ou = system(DRIFTS["stable"])
    increments = Increments.sample(time_grid(1.0, steps=4), 6, (2,), 2)
    run = lambda *key: ou.paths(torch.zeros(2), increments, *key)  # noqa: E731
    assert torch.equal(run(1, 2), run(1, 2)) and not torch.equal(run(1, 2), run(2, 1))
    # rows of x0 start their own paths
    starts = torch.arange(12, dtype=F64).reshape(6, 2)
    assert torch.equal(ou.paths(starts, increments, 1)[0], starts)


def test_strong_order_of_euler_on_additive_noise_is_one():
    """On one Brownian path: the rollout's Euler at four steps against the exact process of the finest grid."""
    drift, x0 = [[-1.0, 2.0], [-2.0, -0.5]], tensor([[1.0, -1.0]]).expand(2000, 2)
    problem = LQProblem(drift, [[0.0], [1.0]], b=B, s=S)
    policy = AffineGaussian.constant([[0.3, -0.7]], [0.2])
    ou = OrnsteinUhlenbeck.from_closed_loop(problem, policy)
    fine = Increments.sample(time_grid(1.0, steps=256), 2000, (2,), 11)
    exact = ou.paths(x0, fine, 12)[-1]
    factors, errors = [4, 8, 16, 32], []
    for every in factors:
        coarse = fine.coarsen(every)
        end = rollout(problem, policy, x0, coarse.grid, increments=coarse).states[-1]
        errors.append((end - exact).square().sum(1).mean().sqrt().item())
    slope = np.polyfit(np.log(factors), np.log(errors), 1)[0]
    assert slope == pytest.approx(1, abs=0.15)


def test_closed_loop_of_a_problem():
    problem = LQProblem([[0.5, 1.0], [0.0, -1.0]], [[0.0], [2.0]], Q=1.0 * torch.eye(2), R=1.0, b=B, s=S)
    ou = OrnsteinUhlenbeck.from_closed_loop(problem, AffineGaussian.constant([[-1.0, 0.5]], [0.25], 3.0))
    assert torch.equal(ou.A, tensor([[0.5, 1.0], [-2.0, 0.0]])) and torch.equal(ou.b, tensor([0.5, -0.5]))
    assert torch.equal(ou.s, S)
    with pytest.raises(ValueError, match="changes with time"):
        OrnsteinUhlenbeck.from_closed_loop(problem, riccati(problem).policy)
    with pytest.raises(ValueError, match="without C and D"):
        OrnsteinUhlenbeck.from_closed_loop(zoo.regret(), AffineGaussian.constant([[-2.0]]))
    moving = LQProblem(lambda t: [[-t]], 1.0, s=1.0)
    with pytest.raises(ValueError, match="time_varying True"):
        OrnsteinUhlenbeck.from_closed_loop(moving, AffineGaussian.constant([[-2.0]]))
    batch = LQProblem(torch.zeros(3, 1, 1), 1.0, s=1.0)
    with pytest.raises(ValueError, match="batch 3"):
        OrnsteinUhlenbeck.from_closed_loop(batch, AffineGaussian.constant([[-2.0]]))
    with pytest.raises(ValueError, match=r"gain has shape \(1, 3\)"):
        OrnsteinUhlenbeck.from_closed_loop(problem, AffineGaussian.constant([[-2.0, 1.0, 1.0]]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3), None, S), r"A has shape \(2, 3\); expected \(d, d\)"),
        ((torch.zeros(2, 2), torch.zeros(3), S), r"b has shape \(3,\); expected \(2,\)"),
        ((torch.zeros(2, 2), None, torch.zeros(2)), r"s has shape \(2,\); expected \(n, 2\)"),
        ((torch.zeros(2, 2), None, S * math.nan), r"s has shape \(2, 2\) and an entry that is not finite"),
    ],
)
def test_bad_systems_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OrnsteinUhlenbeck(*arguments)


def test_bad_calls_are_refused():
    ou, grid = system(DRIFTS["stable"]), time_grid(1.0, steps=4)
    increments = Increments.sample(grid, 6, (2,), 0)
    calls = {
        r"h is 0 ": lambda: ou.transition(0),
        r"time is -1": lambda: ou.covariance(-1.0),
        r"time is inf": lambda: ou.mean(math.inf, torch.zeros(2)),
        r"x0 has shape \(3,\); expected \(2,\) or \(B, 2\)": lambda: ou.mean(1.0, torch.zeros(3)),
        r"x0 has shape \(5, 2\); expected \(6, 2\)": lambda: ou.paths(torch.zeros(5, 2), increments),
        r"increments has shape \(4, 6, 3\); expected \(K, B, 2\)": lambda: ou.convolutions(
            Increments.sample(grid, 6, (3,), 0)
        ),
        r"z has shape \(3, 6, 2\); expected \(4, B, 2\)": lambda: ou.follow(torch.zeros(2), grid, torch.zeros(3, 6, 2)),
        r"every is 3; expected a divisor of the 4 steps": lambda: ou.coarsen(torch.zeros(4, 6, 2), grid, 3),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()
