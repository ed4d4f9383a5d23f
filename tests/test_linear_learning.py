"""Least-squares actor-critic: learns LQ optima from data alone; schedules, projections, repeats, refusals."""

import pytest
import torch

from aid_control.features import LinearMean, LinearValue
from aid_control.increments import time_grid
from aid_control.linear_learning import LeastSquaresActorCritic
from aid_control.lq import AffineGaussian, LQProblem, policy_iteration, riccati
from aid_control.noise import generator
from aid_control.schedules import box, constant, positive_definite, power

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, 0x11), dtype=F64)


def scalar():
    """Control, state and a constant in the noise; every term of the cost; discounted."""
    noise = {"C": [[[0.3]], [[0.0]]], "D": [[[0.5]], [[0.0]]], "s": [[0.1], [0.3]]}
    return LQProblem(0.3, 1.0, Q=1.0, R=0.6, N=0.2, q=0.2, r=-0.1, G=1.0, g=0.3, discount=0.5, **noise)


def planar():
    eye = torch.eye(2, dtype=F64)
    return LQProblem(
        -0.3 * eye + 0.4 * randn(2, 2, seed=1), eye + 0.3 * randn(2, 2, seed=2), Q=eye, R=[[1.2, 0.2], [0.2, 1.0]],
        C=0.1 * randn(2, 2, 2, seed=3), D=0.2 * randn(2, 2, 2, seed=4), s=0.2 * randn(2, 2, seed=5),
        q=0.3 * randn(2, seed=6), G=eye, g=0.5 * randn(2, seed=7),
    )  # fmt: skip


def make(lq, groups=2, **more):
    critic = LinearValue(lq.state_dim, 3, groups=groups)
    actor = LinearMean(lq.state_dim, lq.control_dim, 2, groups=groups)
    return LeastSquaresActorCritic(lq, critic, actor, **({"curvature": positive_definite(0.3)} | more))


def run(learner, iterations, paths=50, steps=10):
    grid = time_grid(learner.problem.horizon, steps=steps)
    rows = learner.actor.groups * paths
    for i in range(iterations):
        q = learner.iterate(1.5 * randn(rows, learner.problem.state_dim, seed=100 + i), grid)
    return q


def errors(law, lq, policy=None):
    """Relative L2 errors over time of gain and offset, per seed, from a policy or else the optimum."""
    times, exact = torch.linspace(0, 0.999, 21, dtype=F64), (policy or riccati(lq).policy).law

    def table(law):
        """[kappa, K] by time and seed."""
        laws = [law(t) for t in times]
        return torch.stack(
            [a.detach() if torch.is_tensor(a) else torch.cat([a[1][:, None], a[0]], 1)[None] for a in laws]
        )

    found, wanted = table(law), table(exact)

    def size(a):
        return a.square().sum((0, 2, 3)).sqrt()

    gap = found - wanted
    return size(gap[..., 1:]) / size(wanted[..., 1:]), size(gap[..., :1]) / size(wanted[..., :1])


@pytest.mark.parametrize(("problem", "bars", "iterations"), [(scalar, (0.07, 0.13), 30), (planar, (0.11, 0.18), 25)])
def test_it_learns_the_optimum_from_data(problem, bars, iterations):
    """Eight seeds at once from zero, 800 paths each an iteration; median errors of gain and offset."""
    lq = problem()
    learner = make(lq, 8, step=power(0.5, 0.7, 5), curvature_degree=1, average_from=10)
    start = errors(learner.mean().at, lq)
    assert torch.allclose(start[0], torch.ones(8, dtype=F64))
    run(learner, iterations, paths=800, steps=20)
    for found, bar in zip(errors(learner.mean().at, lq), bars, strict=True):
        assert found.median() < bar and found.max() < 3 * bar, found


def test_a_full_step_is_policy_iteration():
    """With a_n = 1 the gains are those of exact policy iteration, also while they are far from the optimum."""
    lq = LQProblem(-0.3, 1.0, Q=1.0, R=0.6, s=[[0.1]], G=1.0)
    learner = make(lq, 4, step=constant(1.0))
    exact = [policy for policy, _ in policy_iteration(lq, AffineGaussian.constant([[0.0]], [0.0], 1.0), steps=4)]
    assert errors(exact[1].law, lq)[0] > 0.5 and errors(exact[2].law, lq)[0] > 0.08
    for policy in exact[1:]:
        run(learner, 1, paths=4000, steps=40)
        gains, _ = errors(learner.actor.at, lq, policy)
        assert gains.mean() < 0.075, gains


def test_it_repeats_bit_by_bit_and_depends_on_the_seed():
    runs = []
    for seed in (3, 3, 4):
        learner = make(scalar(), seed=seed)
        q = run(learner, 4)
        runs.append((learner.actor.weights.detach().clone(), learner.average.clone(), q.value, q.curvature))
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not torch.equal(runs[0][0], runs[2][0])


def test_groups_learn_from_their_own_rows():
    """The second group starts elsewhere: the first does not notice."""
    grid, rows = time_grid(1.0, steps=10), 1.5 * randn(100, 1)
    one, two = make(scalar()), make(scalar())
    one.iterate(rows, grid)
    two.iterate(torch.cat([rows[:50], 2 * rows[50:]]), grid)
    assert torch.equal(one.actor.weights[0], two.actor.weights[0])
    assert not torch.equal(one.actor.weights[1], two.actor.weights[1])


def test_noise_is_fresh_each_iteration():
    learner, x, grid = make(scalar()), torch.ones(20, 1, dtype=F64), time_grid(1.0, steps=5)
    first, again = learner.collect(x, grid), learner.collect(x, grid)
    assert torch.equal(first.states[-1], again.states[-1])
    learner.iteration = 1
    assert not torch.equal(first.states[-1], learner.collect(x, grid).states[-1])
    assert not torch.equal(first.actions[0], learner.collect(x, grid).actions[0])
    # the Brownian part alone, under one action
    silent = make(scalar(), variance=1e-20)
    before = silent.collect(x, grid).states[1]
    silent.iteration = 1
    assert (before - silent.collect(x, grid).states[1]).abs().min() > 1e-4


def test_the_step_schedule_is_obeyed():
    """The move is a_n S^{-1} g of the solution that is returned; a_n = 0 stands still."""
    learner = make(scalar(), step=lambda n: [0.0, 0.25][n])
    run(learner, 1)
    assert not learner.actor.weights.any()
    q = run(learner, 1)
    s = q.curvature[:, 0].clamp(min=0.3)
    assert torch.allclose(learner.actor.weights, -0.25 * q.slope / s)


@pytest.mark.parametrize("degree", [1, 2])
def test_a_curvature_that_varies_in_time(degree):
    """The refit to the actor's polynomials: where S turns out constant it is the plain move."""
    learner = make(scalar(), step=constant(0.5), curvature_degree=degree)
    grid = time_grid(1.0, steps=10)
    trajectory_q = run(learner, 1)
    times = grid[:-1]
    moved = torch.stack([learner.actor.at(t).detach() for t in times])
    wanted = []
    for t in times:
        g, s = trajectory_q.at(t, learner.actor)
        wanted.append(-0.5 * g / s.clamp(min=0.3))
    # least squares over the grid: the residual is orthogonal to 1, z and z^2
    gap = moved - torch.stack(wanted)
    z = 2 * times - 1
    for basis in (torch.ones_like(z), z, z**2):
        assert (basis[:, None, None, None] * gap).sum(0).abs().max() < 1e-9 * (1 + torch.stack(wanted).abs().max())


def test_the_temperature_schedule_scales_the_variance():
    grid, x = time_grid(1.0, steps=5), torch.zeros(4000, 1, dtype=F64)
    learner = make(scalar(), variance=0.5, temperature_schedule=lambda n: 1 / (n + 1))
    assert learner.collect(x, grid).actions[0].detach().var() == pytest.approx(0.5, rel=0.1)
    learner.iteration = 4
    assert learner.collect(x, grid).actions[0].detach().var() == pytest.approx(0.1, rel=0.1)


def test_projections_are_obeyed():
    learner = make(scalar(), projection=box(-0.05, 0.1))
    run(learner, 1)
    assert learner.actor.weights.min() == -0.05 or learner.actor.weights.max() == 0.1
    assert learner.actor.weights.min() >= -0.05 and learner.actor.weights.max() <= 0.1
    # a large curvature makes small moves
    learner = make(scalar(), curvature=positive_definite(1e6))
    run(learner, 1)
    assert 0 < learner.actor.weights.abs().max() < 1e-3


def test_the_mean_is_averaged_over_the_last_part():
    learner, weights = make(scalar(), average_from=2), []
    for _ in range(5):
        run(learner, 1)
        weights.append(learner.actor.weights.detach().clone())
        if len(weights) <= 2:
            assert torch.equal(learner.mean().weights, weights[-1])
    assert torch.allclose(learner.mean().weights, torch.stack(weights[2:]).mean(0))
    # a module of its own
    with torch.no_grad():
        learner.mean().weights.zero_()
    assert torch.equal(learner.actor.weights, weights[-1]) and learner.mean().weights.any()


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan")])
def test_a_variance_must_be_positive(variance):
    with pytest.raises(ValueError, match="expected v > 0"):
        make(scalar(), variance=variance)


def test_groups_must_be_the_same():
    with pytest.raises(ValueError, match="critic has 2 groups and actor 3"):
        LeastSquaresActorCritic(scalar(), LinearValue(1, groups=2), LinearMean(1, 1, groups=3))


def test_rows_must_be_a_multiple_of_the_groups():
    with pytest.raises(ValueError, match="expected a multiple of 2"):
        make(scalar()).iterate(torch.zeros(5, 1, dtype=F64), time_grid(1.0, steps=5))
