"""Policy evaluation: every method finds the value it should, MSTDE does not, and the parts are the formulas'."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from aid_control import ControlProblem, GaussianPolicy, rollout
from aid_control.evaluation import (
    EVALUATIONS,
    clstd,
    ctd_loss,
    gtd0_loss,
    gtd2_loss,
    martingale_loss,
    mstde_loss,
    temporal_differences,
)
from aid_control.evaluation.clstd import solve_linear
from aid_control.evaluation.martingale import increments_of
from aid_control.features import LinearValue
from aid_control.increments import Increments, time_grid
from aid_control.lq import AffineGaussian, LQProblem, evaluate, scheme_value
from aid_control.noise import generator
from aid_control.policy import ZeroMean
from aid_control.rollout import Trajectory
from aid_control.value import NeuralValue, Shifted, sensitivities

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, 0xE7), dtype=F64)


def rest(loss, value, trajectory):
    """Weights (S, p) at which the gradient of ``loss``, affine in them, is zero; they are stored in the critic."""
    weights = value.critic.weights
    rows = weights.detach().reshape(value.critic.groups, -1)

    def gradient(at):
        with torch.no_grad():
            weights.copy_(at.reshape(weights.shape))
        return torch.autograd.grad(loss(value, trajectory), weights)[0].reshape(rows.shape)

    # groups do not see one another, so one coordinate of all of them is moved at a time
    base = gradient(torch.zeros_like(rows))
    unit = torch.eye(rows.shape[1], dtype=F64)
    slope = torch.stack([gradient(unit[j].expand_as(rows)) - base for j in range(rows.shape[1])], dim=2)
    found = torch.linalg.solve(slope, -base)
    with torch.no_grad():
        weights.copy_(found.reshape(weights.shape))
    return found


def lam(decay):
    return lambda value, trajectory: ctd_loss(value, trajectory, decay)


# --- The known case: X = W, J = x + theta (T - t) x, truth theta = 0 -------------------------------------------------


class Brownian(ControlProblem):
    """X = W, nothing costs anything but the end, Psi = x."""

    noise = "diagonal"

    def __init__(self, horizon):
        self.horizon = horizon

    def diffusion(self, t, x, u):
        return torch.ones_like(x)

    def terminal_cost(self, x, target):
        return x[:, 0]


class Slanted(LinearValue):
    """J = x + theta (T - t) x: one weight, and a part that is known."""

    def __init__(self, horizon):
        super().__init__(1, 0, horizon)
        self.weights = nn.Parameter(torch.zeros(1, dtype=F64))

    def features(self, t, x, context=None, probe=None):
        return (self.horizon - t) * x

    def known(self, t, x):
        return x[:, 0]


def run_brownian(horizon, steps, paths, exact):
    """From zero; with ``exact`` the increments' sample means and second moments are those of the distribution.

    Everything below is quadratic in them, so that sample averages are then expectations, free of sampling error.
    """
    grid = time_grid(horizon, steps=steps)
    dw = Increments.sample(grid, paths, (1,), 5).dw
    if exact:
        white, _ = torch.linalg.qr((dw - dw.mean(1, keepdim=True))[..., 0].mT)
        dw = math.sqrt(paths * horizon / steps) * white.mT[..., None]
    x = torch.zeros(paths, 1, dtype=F64)
    increments = Increments(grid, dw)
    return rollout(Brownian(horizon), GaussianPolicy(ZeroMean()), x, grid, target=(), increments=increments)


CASES = [(1.0, 200), (1.0, 50), (2.5, 200), (2.5, 50)]


@pytest.fixture(scope="module", params=CASES, ids=lambda p: f"T{p[0]}-K{p[1]}")
def brownian(request):
    horizon, steps = request.param
    return horizon, run_brownian(horizon, steps, 400, exact=True)


def test_mstde_finds_the_flattest_function(brownian):
    horizon, path = brownian
    found = rest(mstde_loss, Shifted(Slanted(horizon)), path).item()
    # dM_k = (1 + theta (T - t_{k+1})) dW_k - theta Dt W_k: its mean square is a parabola in theta
    t, dt = path.times, horizon / len(path)
    left = horizon - t[1:]
    exact = (-left.sum() / (left.square().sum() + dt * t[:-1].sum())).item()
    assert found == pytest.approx(exact, abs=1e-9)
    # refining does not help: the limit is -3/(2T)
    assert exact == pytest.approx(-1.5 / horizon, rel=1.5 / len(path))


@pytest.mark.parametrize("name", ["ctd", "martingale", "gtd0", "gtd2"])
def test_martingale_methods_find_the_truth_of_the_known_case(brownian, name):
    horizon, path = brownian
    assert abs(rest(EVALUATIONS[name], Shifted(Slanted(horizon)), path).item()) < 1e-9


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_clstd_finds_the_truth_of_the_known_case(brownian, decay):
    horizon, path = brownian
    assert abs(clstd(Shifted(Slanted(horizon)), path, decay).item()) < 1e-9


def test_the_known_case_by_sampling():
    """20 000 ordinary paths: MSTDE is 3/(2T) away, the others within five of their standard errors (0.013 each)."""
    path = run_brownian(1.0, 100, 20_000, exact=False)
    assert rest(mstde_loss, Shifted(Slanted(1.0)), path).item() == pytest.approx(-1.485, abs=0.02)
    for name in ("ctd", "martingale"):
        assert abs(rest(EVALUATIONS[name], Shifted(Slanted(1.0)), path).item()) < 0.065
    solved = clstd(Shifted(Slanted(1.0)), path).item()
    assert solved == pytest.approx(rest(ctd_loss, Shifted(Slanted(1.0)), path).item(), abs=1e-12)


# --- A random LQ problem whose value on the grid lies in the critic's span -------------------------------------------

TAU = 0.4


def tuned(seed, steps=10, horizon=1.0, discount=0.7, tau=TAU, d=2, m=2):
    """A random 2-d problem with control-dependent noise and a policy, and its exact value on the grid.

    The discrete Bellman recursion is affine in Q, q and r; they are chosen such that the value stays what it is at
    the end, V = x'Gx/2 + g'x, so that six features without time contain it.
    """
    big = randn(d, d, seed=seed)
    c = {
        "A": -0.5 * torch.eye(d, dtype=F64) + 0.5 * randn(d, d, seed=seed + 1),
        "B": randn(d, m, seed=seed + 2),
        "C": 0.3 * randn(2, d, d, seed=seed + 3),
        "D": 0.3 * randn(2, d, m, seed=seed + 4),
        "s": 0.3 * randn(2, d, seed=seed + 5),
        "N": 0.3 * randn(d, m, seed=seed + 6),
        "R": torch.eye(m, dtype=F64),
        "b": 0.3 * randn(d, seed=seed + 7),
        "G": big @ big.mT / d + 0.3 * torch.eye(d, dtype=F64),
        "g": randn(d, seed=seed + 8),
    }
    offset = 0.7 * randn(m, seed=seed + 9)
    root = torch.eye(m, dtype=F64) + 0.3 * randn(m, m, seed=seed + 10).tril()
    policy = AffineGaussian.constant(0.5 * randn(m, d, seed=seed + 11), offset, 0.2 * root @ root.mT)
    grid, dt = time_grid(horizon, steps=steps), horizon / steps

    def after_a_step(**more):
        problem = LQProblem(**c, **more, discount=discount, horizon=horizon)
        return scheme_value(problem, policy, grid[:2], "sampled", tau).terms(0)

    r = -after_a_step()[2] / dt * offset / offset.square().sum()
    one, line, _ = after_a_step(r=r)
    weights = {"Q": (c["G"] - (one + one.mT) / 2) / dt, "q": (c["g"] - line) / dt, "r": r}
    problem = LQProblem(**c, **weights, discount=discount, horizon=horizon)
    exact = scheme_value(problem, policy, grid, "sampled", tau).terms(0)
    assert torch.allclose(exact[0], c["G"]) and torch.allclose(exact[1], c["g"]) and abs(float(exact[2])) < 1e-12
    # in LinearValue's order: 1; x_1, x_2; x_1^2, x_1 x_2, x_2^2
    g = c["G"]
    truth = torch.stack([torch.zeros((), dtype=F64), *c["g"], g[0, 0] / 2, g[0, 1], g[1, 1] / 2])
    return problem, policy, grid, truth


GROUPS, PATHS = 16, 3000


@pytest.fixture(scope="module", params=[0.7, 0.0], ids=["rho0.7", "rho0"])
def evaluated(request):
    problem, policy, grid, truth = tuned(20, discount=request.param)
    x = 1.5 * randn(GROUPS * PATHS, 2, seed=1)
    path = rollout(problem, policy, x, grid, target=(), mode="sampled", noise=generator(3), entropy=4, temperature=TAU)
    return problem, policy, path, truth


def agrees(found, truth, bar):
    """Whether the mean over the groups is within 4 standard errors of the truth; those must be below the bar."""
    error = found.std(0) / len(found) ** 0.5
    assert (error < bar).all(), error
    return bool(((found.mean(0) - truth).abs() < 4 * error).all())


RESTS = {"ctd0": lam(0.0), "ctd.5": lam(0.5), "ctd1": lam(1.0)} | {k: EVALUATIONS[k] for k in EVALUATIONS if k != "ctd"}


@pytest.mark.parametrize("name", list(RESTS))
def test_the_exact_value_is_where_every_loss_rests(evaluated, name):
    _, _, path, truth = evaluated
    found = rest(RESTS[name], Shifted(LinearValue(2, 0, groups=GROUPS)), path)
    assert agrees(found, truth, 0.06) == (name != "mstde")


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_clstd_finds_the_exact_value(evaluated, decay):
    _, _, path, truth = evaluated
    critic = LinearValue(2, 0, groups=GROUPS)
    found = clstd(Shifted(critic), path, decay)
    assert agrees(found, truth, 0.06)
    assert torch.equal(critic.weights, found)


def test_leaving_out_entropy_or_discount_is_seen(evaluated):
    """The checks above have the power to see either: without it the same estimate is off by many standard errors."""
    problem, policy, path, truth = evaluated
    free = rollout(
        problem, policy, path.states[0], path.times, target=(), mode="sampled", noise=generator(3), entropy=4
    )
    assert not agrees(clstd(Shifted(LinearValue(2, 0, groups=GROUPS)), free), truth, 0.06)
    if path.discount:
        other = replace(path, discount=0.0)
        assert not agrees(clstd(Shifted(LinearValue(2, 0, groups=GROUPS)), other), truth, 0.06)


def test_on_a_piece_of_a_path_the_critic_is_its_own_end(evaluated):
    """Without a terminal cost a discounted stationary value is still determined; without a discount it is not."""
    _, _, path, truth = evaluated
    piece = replace(path, terminal=None)
    value = Shifted(LinearValue(2, 0, groups=GROUPS), anchored=False)
    if path.discount:
        for found in (clstd(value, piece), rest(ctd_loss, value, piece), rest(gtd2_loss, value, piece)):
            assert agrees(found, truth, 0.1)
    with pytest.raises(AssertionError, match="terminal anchor"):
        clstd(Shifted(LinearValue(2, 0)), piece)
    with pytest.raises(AssertionError, match="terminal anchor"):
        ctd_loss(Shifted(LinearValue(2, 0)), piece)


def test_the_averaged_mode_is_evaluated_to_the_averaged_value():
    """A time-dependent value (nothing tuned): cubic time features find evaluate()'s answer up to the step."""
    problem = LQProblem(-0.5, 1.0, Q=1.0, R=1.0, C=[[[0.3]]], D=[[[0.4]]], G=0.5, q=0.2, discount=0.5)
    policy = AffineGaussian.constant([[-0.4]], [0.2], 0.6)
    grid, x = time_grid(1.0, steps=40), 1.5 * randn(20_000, 1, seed=6)
    path = rollout(problem, policy, x, grid, target=(), mode="averaged", entropy=2, temperature=0.2)
    critic = LinearValue(1, 3)
    clstd(Shifted(critic), path)
    exact = evaluate(problem, policy, 0.2)
    at = torch.linspace(-2, 2, 9, dtype=F64)[:, None]
    for t in (0.0, 0.4, 0.8):
        assert (critic(t, at) - exact(t, at)).abs().max() < 0.03
    # what the entropy or the spread is worth is more than that
    for other in (evaluate(problem, policy, 0.0), evaluate(problem, policy.deterministic(), 0.0)):
        assert (exact(0.0, at) - other(0.0, at)).abs().min() > 0.06


# --- Exact relations between the methods, on one small sample --------------------------------------------------------


def small(discount=0.3, paths=12, steps=7, temperature=0.2, uneven=True):
    problem, policy, _, _ = tuned(40, steps=steps, discount=discount)
    grid = time_grid(1.0, steps=steps)
    grid = grid**1.3 if uneven else grid
    x = randn(paths, 2, seed=2)
    return rollout(problem, policy, x, grid, target=(), mode="sampled", noise=generator(8), temperature=temperature)


def filled(critic, seed=3):
    with torch.no_grad():
        critic.weights.copy_(randn(*critic.weights.shape, seed=seed))
    return critic


class Offset(LinearValue):
    """With a part that is not learned."""

    def known(self, t, x):
        return 0.5 * t * x[:, 0] + x[:, 1] ** 3


@pytest.mark.parametrize("critic", [LinearValue, Offset])
@pytest.mark.parametrize("decay", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("anchored", "discount"), [(True, 0.0), (True, 0.3), (False, 0.3)])
def test_clstd_is_where_ctd_rests(critic, decay, anchored, discount):
    """On the same data, with the trace, the discount and the shift by lambda t."""
    path = small(discount, paths=200)
    value = Shifted(critic(2, 1 if anchored else 0), 0.6, anchored)
    theta = clstd(value, path, decay)
    gradient = torch.autograd.grad(ctd_loss(value, path, decay), value.critic.weights)[0]
    assert gradient.abs().max() < 1e-9 * (1 + theta.abs().max())
    # half a percent away it does not rest
    with torch.no_grad():
        value.critic.weights.mul_(1.005)
    assert torch.autograd.grad(ctd_loss(value, path, decay), value.critic.weights)[0].abs().max() > 1e-5


def test_moments_are_zero_where_ctd_rests():
    """GTD0 and GTD2 share their minimum, 0, with CTD(0) (as many conditions as weights)."""
    path = small(paths=200)
    value = Shifted(LinearValue(2, 1), 0.6)
    theta = clstd(value, path)
    for loss in (gtd0_loss, gtd2_loss):
        assert float(loss(value, path).detach()) < 1e-16
        assert torch.allclose(rest(loss, value, path)[0], theta, rtol=1e-4, atol=1e-4)


def test_ctd_1_is_the_martingale_loss():
    """Without a discount, on a uniform grid: both regress J on the realised cost-to-go."""
    path = small(0.0, uneven=False)
    value = Shifted(filled(LinearValue(2, 1)), 0.3)
    one, ml = (torch.autograd.grad(f(value, path), value.critic.weights)[0] for f in (lam(1.0), martingale_loss))
    assert torch.allclose(one / len(path), ml, atol=1e-12)
    assert not torch.allclose(one, torch.autograd.grad(ctd_loss(value, path), value.critic.weights)[0], rtol=0.1)


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
def test_the_gradient_of_ctd_is_the_sum_by_hand(decay):
    path = small()
    critic = filled(LinearValue(2, 1))
    gradient = torch.autograd.grad(ctd_loss(Shifted(critic, 0.5), path, decay), critic.weights)[0]
    times, rho, steps = path.times.tolist(), path.discount, len(path)
    total = torch.zeros(critic.weights.shape, dtype=F64)
    for b in range(path.states[0].shape[0]):
        phi = [critic.features(times[k], path.states[k][b : b + 1])[0] for k in range(steps)]
        v = [float(p @ critic.weights.detach()) - 0.5 * t for p, t in zip(phi, times, strict=False)]
        v.append(float(path.terminal[b]) - 0.5 * times[-1])
        for k in range(steps):
            trace = sum((phi[i] * (decay ** (times[k] - times[i]) if i < k else 1.0) for i in range(k + 1)), 0 * phi[0])
            dm = math.exp(-rho * times[k + 1]) * v[k + 1] - math.exp(-rho * times[k]) * v[k]
            dm += math.exp(-rho * times[k]) * float(path.costs[k][b])
            total += trace * dm
    assert torch.allclose(gradient, -total / path.states[0].shape[0], rtol=1e-10, atol=1e-12)


def test_the_mean_square_error_by_hand():
    """Each step's square in units of its own length."""
    path = small()
    value = Shifted(filled(LinearValue(2, 1)), 0.5)
    delta = temporal_differences(value.along(path), path).detach()
    wanted = sum(delta[k].square().mean() / dt for k, _, dt in path.steps())
    assert float(mstde_loss(value, path).detach()) == pytest.approx(float(wanted))


@pytest.mark.parametrize("decay", [0.0, 0.2, 1.0])
def test_the_future_of_a_process_by_loops(decay):
    grid = torch.tensor([0.5, 0.6, 0.9, 1.0, 1.6], dtype=F64)
    path, y = Trajectory(grid), randn(4, 3)
    wanted = torch.zeros(4, 3, dtype=F64)
    for i in range(4):
        for k in range(i, 4):
            wanted[i] += (decay ** (grid[k] - grid[i]) if k > i else 1.0) * y[k]
    assert torch.allclose(increments_of(y, path, decay), wanted)


def test_temporal_differences_telescope():
    """sum dM = discounted total cost - J_0 + shift, whatever J is."""
    path = small(0.8)
    value = Shifted(filled(LinearValue(2, 1)), 0.5)
    values = value.along(path)
    weight = math.exp(-0.8 * float(path.times[-1]))
    wanted = path.total_cost() - values[0] - weight * 0.5 * path.times[-1]
    delta = temporal_differences(values, path)
    assert delta.shape == (len(path), 12)
    assert torch.allclose(delta.sum(0), wanted)
    # eta is a cost a unit of time; a vector is one a path
    eta = randn(12)
    per_time = (path.discounts()[:-1] * path.times.diff()).sum()
    assert torch.allclose(temporal_differences(values, path, eta).sum(0), wanted - eta * per_time)
    assert torch.equal(
        temporal_differences(values, path, 0.3), temporal_differences(values, path, torch.full((12,), 0.3, dtype=F64))
    )


def test_time_starts_where_the_grid_starts():
    """A path that starts at t_0 > 0 is discounted from t_0."""
    path = small(0.8)
    late = replace(path, times=path.times + 2)
    zero = [torch.zeros(12, dtype=F64)] * (len(path) + 1)
    assert torch.allclose(temporal_differences(zero, late), temporal_differences(zero, path))


@pytest.mark.parametrize("mode", ["averaged", "sampled"])
def test_the_exact_value_makes_a_martingale(mode):
    """E dM = 0 at every step, with discount and entropy cost, in both modes; not for a value that is off."""
    problem, policy, grid, _ = tuned(70, steps=6)
    n = 40_000
    x = torch.tensor([[1.0, -0.5]], dtype=F64).expand(n, 2)
    noise = generator(1)
    path = rollout(problem, policy, x, grid, target=(), mode=mode, noise=noise, entropy=2, temperature=TAU)
    exact = [scheme_value(problem, policy, grid[k:], mode, TAU) for k in range(6)]
    values = [v(0.0, x) for v, x in zip(exact, path.states, strict=False)] + [path.terminal]
    delta = temporal_differences(values, path)

    def scores(delta, test):
        products = test * delta
        return products.mean(1) / (products.std(1) / n**0.5)

    states = torch.stack(path.states[:-1])
    for test in (torch.ones_like(delta), states[..., 0], states[..., 1] ** 2):
        assert (scores(delta, test).abs() < 5).all()
    # the entropy is in the costs: the value without it fails
    cold = [scheme_value(problem, policy, grid[k:], mode, 0.0) for k in range(6)]
    wrong = [v(0.0, x) for v, x in zip(cold, path.states, strict=False)] + [path.terminal]
    assert (scores(temporal_differences(wrong, path), torch.ones_like(delta)).abs() > 10).any()
    # and so does the value without the discount
    free = temporal_differences(values, replace(path, discount=0.0))
    assert (scores(free, values[0].new_ones(())).abs() > 10).any()


# --- Other critics, groups, refusals ---------------------------------------------------------------------------------


def test_sensitivities_are_gradients_row_by_row():
    critic, x, t = NeuralValue(2, 8).double(), randn(5, 2), torch.tensor(0.3, dtype=F64)
    rows = sensitivities(critic, t, x)
    weights = list(critic.parameters())
    assert rows.shape == (5, sum(w.numel() for w in weights))
    for i in range(5):
        gradient = torch.autograd.grad(critic(t, x[i : i + 1]).sum(), weights)
        assert torch.allclose(rows[i], torch.cat([g.flatten() for g in gradient]))
    linear = filled(LinearValue(2, 1))
    assert torch.equal(sensitivities(linear, t, x), linear.features(t, x))


@pytest.mark.parametrize("whiten", [False, True])
def test_gmm_of_a_network_is_the_formula(whiten):
    """r'Ar/2 with r = mean of sum xi dM and xi = dJ held fixed, gradient by hand."""
    path = small(paths=30)
    critic = NeuralValue(2, 3, 1).double()
    loss = (gtd2_loss if whiten else gtd0_loss)(Shifted(critic, 0.2), path)
    weights = list(critic.parameters())
    p = sum(w.numel() for w in weights)
    r, slope, gram = torch.zeros(p, dtype=F64), torch.zeros(p, p, dtype=F64), torch.zeros(p, p, dtype=F64)
    values = Shifted(critic, 0.2).along(path)
    delta = temporal_differences(values, path).detach()
    rows = [sensitivities(critic, path.times[k], path.states[k]) for k in range(len(path))]
    d = path.discounts()
    for k in range(len(path)):
        r += (rows[k] * delta[k][:, None]).mean(0)
        gram += (path.times[k + 1] - path.times[k]) * rows[k].mT @ rows[k] / 30
        ahead = rows[k + 1] if k + 1 < len(path) else torch.zeros_like(rows[k])
        slope += rows[k].mT @ (d[k + 1] * ahead - d[k] * rows[k]) / 30
    ridge = 1e-8 * gram.diagonal().mean() * torch.eye(p, dtype=F64)
    a = torch.linalg.inv(gram + ridge) if whiten else torch.eye(p, dtype=F64)
    assert float(loss.detach()) == pytest.approx(float(0.5 * r @ a @ r), rel=1e-6)
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
    assert torch.allclose(gradient, slope.mT @ a @ r, rtol=1e-5, atol=1e-7 * float(gradient.abs().max()))


@pytest.mark.parametrize("name", ["ctd", "martingale", "gtd0", "gtd2"])
def test_a_network_is_trained_by_the_same_losses(name):
    """Plain Adam on one batch brings the error of the value down."""
    problem = LQProblem(-0.5, 1.0, Q=1.0, R=1.0, s=[[0.3]], G=1.0, discount=0.5)
    policy = AffineGaussian.constant([[-0.4]], [0.3], 0.3)
    grid = time_grid(1.0, steps=5)
    path = rollout(problem, policy, 1.5 * randn(300, 1, seed=2), grid, target=(), mode="sampled", noise=generator(1))
    torch.manual_seed(0)
    critic = NeuralValue(1, 12, 1).double()
    exact = scheme_value(problem, policy, grid, "sampled")
    x = torch.linspace(-2, 2, 21, dtype=F64)[:, None]

    def error():
        with torch.no_grad():
            return float((critic(0.0, x) - exact(0.0, x)).square().mean().sqrt())

    before = error()
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.03)
    for _ in range(120):
        optimizer.zero_grad()
        EVALUATIONS[name](Shifted(critic), path).backward()
        optimizer.step()
    assert error() < 0.3 * before, (before, error())


def rows_of(path, rows):
    """The paths ``rows`` of a trajectory."""
    states, costs = [x[rows] for x in path.states], [c[rows] for c in path.costs]
    return replace(path, states=states, costs=costs, terminal=path.terminal[rows])


@pytest.mark.parametrize("loss", [lam(0.0), lam(0.5), martingale_loss, gtd0_loss, gtd2_loss, mstde_loss])
def test_groups_are_separate_critics(loss):
    path = small(paths=12)
    critic = filled(LinearValue(2, 1, groups=3))
    together = torch.autograd.grad(loss(Shifted(critic, 0.2), path), critic.weights)[0]
    for i in range(3):
        single = LinearValue(2, 1)
        with torch.no_grad():
            single.weights.copy_(critic.weights[i])
        part = rows_of(path, slice(4 * i, 4 * i + 4))
        alone = torch.autograd.grad(loss(Shifted(single, 0.2), part), single.weights)[0]
        assert torch.allclose(together[i], alone, rtol=1e-9, atol=1e-12)


def test_groups_are_separate_least_squares():
    path = small(paths=60)
    found = clstd(Shifted(LinearValue(2, 0, groups=3)), path, 0.5)
    for i in range(3):
        part = rows_of(path, slice(20 * i, 20 * i + 20))
        assert torch.allclose(found[i], clstd(Shifted(LinearValue(2, 0)), part, 0.5), atol=1e-9)


def test_clstd_refuses_a_network():
    with pytest.raises(ValueError, match="critic is a NeuralValue; expected a LinearValue"):
        clstd(Shifted(NeuralValue(2).double()), small())


@pytest.mark.xfail(strict=True, reason="the constant, which nothing determines, spoils the other weights")
def test_an_undetermined_constant_does_no_harm():
    """No discount, no terminal cost: x'Px is determined, the constant is not (dX = -X dt + ..., cost x^2/2 - 1/8)."""
    problem = LQProblem(-1.0, 1.0, Q=1.0, R=0.0, s=[[0.5]], horizon=2.0)
    grid, x = time_grid(2.0, steps=40), 1 + randn(20_000, 1)
    path = rollout(problem, AffineGaussian.constant([[0.0]]), x, grid, entropy=3)
    # eta = E x^2/2 = 1/16 of the stationary law
    path = replace(path, costs=[c - 0.05 / 16 for c in path.costs])
    found = clstd(Shifted(LinearValue(1, 0), anchored=False), path)
    assert found[1].item() == pytest.approx(0, abs=0.03) and found[2].item() == pytest.approx(0.25, abs=0.03)


def test_sensitivities_of_a_single_number():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.zeros((), dtype=F64))

        def forward(self, t, x, context=None, probe=None):
            return self.level * x[:, 0]

    x = randn(4, 2)
    assert torch.equal(sensitivities(Constant(), torch.tensor(0.3), x), x[:, :1])


def test_a_ridge_is_relative():
    """Units of the features do not change what a ridge does to the function."""
    matrix, vector = randn(2, 3, 3) + 3 * torch.eye(3, dtype=F64), randn(2, 3, seed=1)
    assert torch.allclose(solve_linear(matrix, vector), torch.linalg.solve(matrix, vector))
    ridged = solve_linear(matrix, vector, 0.1)
    assert not torch.allclose(ridged, torch.linalg.solve(matrix, vector), rtol=0.01)
    units = torch.tensor([1.0, 1e4, 1e-3], dtype=F64)
    scaled = solve_linear(matrix * units[:, None] * units, vector * units, 0.1)
    assert torch.allclose(scaled * units, ridged)
