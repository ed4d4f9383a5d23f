"""Schemes: orders of convergence from one table, formulas by hand, and torchsde on the same paths."""

import itertools
import math

import numpy as np
import pytest
import torch

from aid_control import ControlProblem, GaussianPolicy, motion, rollout
from aid_control.increments import Increments, time_grid
from aid_control.lq.ou import OrnsteinUhlenbeck
from aid_control.policy import ZeroMean
from aid_control.schemes import Field, PathBrownian, euler, heun, milstein

F64 = torch.float64


def tensor(value):
    return torch.tensor(value, dtype=F64)


def powers(matrices, x):
    """exp of every matrix (..., d, d) applied to x."""
    return (torch.linalg.matrix_exp(matrices) @ x.unsqueeze(-1)).squeeze(-1)


# --- problems whose solution is a function of the Brownian path -------------------------------------------------------

RATE, VOLATILITY = tensor([0.5, -0.3]), tensor([0.8, 0.6])
TURN = tensor([[0.0, 1.0], [-1.0, 0.0]])
# polynomials of one matrix: they commute, and the linear equation is solved by the exponential
EYE = torch.eye(2, dtype=F64)
LINEAR, COLUMNS = 0.3 * TURN - 0.2 * EYE, [0.7 * EYE + 0.5 * TURN, 0.6 * TURN - 0.3 * EYE]


def geometric():
    """dX = a X dt + c X dW, coordinatewise."""
    field = Field(lambda t, x: RATE * x, "diagonal", lambda t, x, dw: VOLATILITY * x * dw)
    return field, lambda fine, x0: x0 * ((RATE - VOLATILITY**2 / 2) + VOLATILITY * fine.path()[-1]).exp()


def hyperbolic():
    """X = sinh(asinh x + W) solves dX = X/2 dt + sqrt(1 + X^2) dW."""
    field = Field(lambda t, x: x / 2, "diagonal", lambda t, x, dw: (1 + x * x).sqrt() * dw)
    return field, lambda fine, x0: (x0.asinh() + fine.path()[-1]).sinh()


def linear(n):
    """dX = A X dt + sum_j C_j X dW^j with n commuting columns."""
    stack = torch.stack(COLUMNS[:n])
    drift = LINEAR - (stack @ stack).sum(0) / 2

    def exact(fine, x0):
        return powers(drift + torch.einsum("bn,nij->bij", fine.path()[-1], stack), x0)

    return (
        Field(lambda t, x: x @ LINEAR.mT, "columns", lambda t, x, dw: torch.einsum("nij,bj,bn->bi", stack, x, dw)),
        exact,
    )


def additive():
    ou = OrnsteinUhlenbeck(LINEAR, tensor([0.5, 0.0]), tensor([[1.0, 0.2], [0.0, 0.7]]))
    field = Field(lambda t, x: x @ ou.A.mT + ou.b, "columns", lambda t, x, dw: dw @ ou.s)
    return field, lambda fine, x0: ou.paths(x0, fine, 99)[-1]


def not_commuting():
    """dX^1 = dW^1, dX^2 = X^1 dW^2: a Levy area, which increments do not know; the exact one is the finest sum."""

    def iterated(fine):
        return (fine.path()[:-1, :, 0] * fine.dw[:, :, 1]).sum(0)

    def exact(fine, x0):
        w = fine.path()
        return torch.stack([x0[:, 0] + w[-1, :, 0], x0[:, 1] + x0[:, 0] * w[-1, :, 1] + iterated(fine)], dim=1)

    def diffuse(t, x, dw):
        return torch.stack([dw[:, 0], x[:, 0] * dw[:, 1]], dim=1)

    return Field(lambda t, x: torch.zeros_like(x), "columns", diffuse), exact


PROBLEMS = {
    "diagonal": (geometric, 2),
    "diagonal, nonlinear": (hyperbolic, 2),
    "one column": (lambda: linear(1), 1),
    "commuting columns": (lambda: linear(2), 2),
    "additive": (additive, 2),
    "Levy area": (not_commuting, 2),
}
STRONG_ORDER = {
    ("euler", "diagonal"): 0.5,
    ("euler", "diagonal, nonlinear"): 0.5,
    ("euler", "one column"): 0.5,
    ("euler", "commuting columns"): 0.5,
    ("euler", "additive"): 1.0,
    ("euler", "Levy area"): 0.5,
    ("milstein", "diagonal"): 1.0,
    ("milstein", "diagonal, nonlinear"): 1.0,
    ("milstein", "one column"): 1.0,
    ("milstein", "commuting columns"): 1.0,
    ("milstein", "additive"): 1.0,
    ("milstein", "Levy area"): 0.5,  # the negative control: Milstein needs commuting columns
}


def integrate(scheme, field, increments, x):
    grid = increments.grid
    for k in range(len(grid) - 1):
        x = scheme(field, grid[k], grid[k + 1], x, increments.dw[k])
    return x


def slope(sizes, errors):
    return np.polyfit(np.log(sizes), np.log(errors), 1)[0]


@pytest.mark.parametrize(("scheme", "noise"), STRONG_ORDER)
def test_strong_order(scheme, noise):
    """The mean error at T, at four steps on the same Brownian paths."""
    make, columns = PROBLEMS[noise]
    field, exact = make()
    x0 = tensor([[1.0, 0.5]]).repeat(2000, 1)
    fine = Increments.sample(time_grid(1.0, steps=512), 2000, (columns,), 21)
    want, factors = exact(fine, x0), [8, 16, 32, 64]
    step = {"euler": euler, "milstein": milstein}[scheme]
    errors = [(integrate(step, field, fine.coarsen(k), x0) - want).norm(dim=1).mean().item() for k in factors]
    assert slope(factors, errors) == pytest.approx(STRONG_ORDER[scheme, noise], abs=0.12)


@pytest.mark.parametrize("scheme", [euler, milstein], ids=["euler", "milstein"])
def test_weak_order_is_one(scheme):
    """E X_T^2 of geometric Brownian motion without sampling.

    Three Gauss-Hermite nodes a step integrate what a step makes of x^2, a polynomial of degree four in dW, exactly.
    """
    a, c, horizon, sizes, errors = 0.5, 0.8, 0.2, [2, 4, 8], []
    field = Field(lambda t, x: a * x, "diagonal", lambda t, x, dw: c * x * dw)
    for steps in sizes:
        nodes = tensor(list(itertools.product((-(3**0.5), 0.0, 3**0.5), repeat=steps))).mT.unsqueeze(-1)
        weights = torch.where(nodes == 0, tensor(2 / 3), tensor(1 / 6)).prod(0).squeeze(-1)
        tree = Increments(time_grid(horizon, steps=steps), nodes * (horizon / steps) ** 0.5)
        second = (weights * integrate(scheme, field, tree, torch.ones_like(nodes[0])).squeeze(-1) ** 2).sum().item()
        if scheme is euler:
            h = horizon / steps
            assert second == pytest.approx(((1 + a * h) ** 2 + c * c * h) ** steps, rel=1e-12)
        errors.append(abs(second - math.exp((2 * a + c * c) * horizon)))
    assert slope(sizes, errors) == pytest.approx(-1, abs=0.1)


# --- formulas by hand -------------------------------------------------------------------------------------------------


@pytest.fixture
def point():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    dw = torch.randn(6, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    return x, dw, tensor(0.3), tensor(0.45)


def test_euler_by_hand(point):
    x, dw, t, s = point
    field = Field(lambda t, x: t * x.sin(), "diagonal", lambda t, x, dw: (t + x) * dw)
    assert torch.allclose(euler(field, t, s, x, dw), x + 0.15 * 0.3 * x.sin() + (0.3 + x) * dw, atol=1e-15)


def test_milstein_by_hand_for_diagonal_noise(point):
    """x + f h + g dW + g g' (dW^2 - h)/2, for any shape of state."""
    x, dw, t, s = (v.reshape(6, 2, 1) if v.dim() else v for v in point)
    field = Field(lambda t, x: x.cos(), "diagonal", lambda t, x, dw: x.sin() * dw)
    want = x + 0.15 * x.cos() + x.sin() * dw + x.sin() * x.cos() * (dw**2 - 0.15) / 2
    assert torch.allclose(milstein(field, t, s, x, dw), want, atol=1e-14)


def test_milstein_by_hand_for_one_column(point):
    """One Brownian motion that moves both coordinates: (D sigma) sigma (dW^2 - h)/2 with the whole Jacobian."""
    x, dw, t, s = point
    dw = dw[:, :1]
    column = lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 0].sin() + x[:, 1]], dim=1)  # noqa: E731
    field = Field(lambda t, x: -x, "columns", lambda t, x, dw: column(x) * dw)
    one, two = x.unbind(1)
    jacobian = torch.stack([two, one, one.cos(), torch.ones_like(one)], dim=1).reshape(6, 2, 2)
    correction = (jacobian @ column(x).unsqueeze(-1)).squeeze(-1) * (dw**2 - 0.15) / 2
    assert torch.allclose(milstein(field, t, s, x, dw), x - 0.15 * x + column(x) * dw + correction, atol=1e-14)


def test_milstein_of_a_diagonal_matrix_of_columns_is_that_of_diagonal_noise(point):
    x, dw, t, s = point
    flat = Field(lambda t, x: x.cos(), "diagonal", lambda t, x, dw: (1 + x * x) * dw)
    matrix = Field(
        lambda t, x: x.cos(),
        "columns",
        lambda t, x, dw: torch.einsum("bdn,bn->bd", torch.diag_embed(1 + x * x), dw),
    )
    assert torch.allclose(milstein(matrix, t, s, x, dw), milstein(flat, t, s, x, dw), atol=1e-14)


def test_milstein_from_states_that_share_memory(point):
    x, dw, t, s = point
    field = Field(lambda t, x: x, "diagonal", lambda t, x, dw: x.sin() * dw)
    one = x[:1].expand(6, 2)
    assert torch.equal(milstein(field, t, s, one, dw), milstein(field, t, s, one.clone(), dw))


def test_schemes_without_noise(point):
    x, dw, t, s = point
    still = Field(lambda t, x: t * x)
    assert torch.equal(milstein(still, t, s, x, None), euler(still, t, s, x, None))
    slopes = (0.3 * x + 0.45 * (x + 0.15 * 0.3 * x)) / 2
    assert torch.allclose(heun(still, t, s, x, None), x + 0.15 * slopes, atol=1e-15)
    with pytest.raises(ValueError, match="Heun is for deterministic problems; expected euler or milstein"):
        heun(Field(lambda t, x: x, "diagonal", lambda t, x, dw: dw), t, s, x, dw)


# --- torchsde ---------------------------------------------------------------------------------------------------------


class Nonlinear(ControlProblem):
    """A drift with time, a feedback and a diffusion of either layout that depends on time, state and control."""

    horizon = 5.0

    def __init__(self, noise):
        self.noise = noise

    def drift(self, t, x, context, probe):
        return (t + x).sin() - x

    def diffusion(self, t, x, u):
        if self.noise == "diagonal":
            return 0.5 + 0.2 * (x + t).cos() + 0.1 * u
        row = torch.stack([0.4 + 0.1 * u[:, 0], 0.2 * x[:, 1], 0.3 * x[:, 0].sin()], dim=1)
        return torch.stack([row, row.flip(1)], dim=1)

    def noise_dim(self, x):
        return (3,) if self.noise == "columns" else tuple(x.shape[1:])

    def terminal_cost(self, x, target):
        return x.square().flatten(1).sum(1)


class Geometric(ControlProblem):
    """Geometric Brownian motion as a problem."""

    noise = "diagonal"

    def __init__(self, horizon=1.0, rate=0.5, volatility=0.8):
        self.horizon, self.rate, self.volatility = horizon, rate, volatility

    def drift(self, t, x, context, probe):
        return self.rate * x

    def diffusion(self, t, x, u):
        return self.volatility * x


class Brownian(Geometric):
    """dX = dW."""

    def drift(self, t, x, context, probe):
        return torch.zeros_like(x)

    def diffusion(self, t, x, u):
        return torch.ones_like(x)


FEEDBACK = GaussianPolicy(lambda t, x, context, probe: -0.5 * x + t)
STILL = GaussianPolicy(ZeroMean())


@pytest.mark.parametrize(("noise", "solver"), [("diagonal", "euler"), ("diagonal", "milstein"), ("columns", "euler")])
def test_own_engine_is_torchsde_path_by_path(noise, solver):
    """On a decimal grid, where torchsde's own clock drifts off it by rounding."""
    problem, x0 = Nonlinear(noise), torch.linspace(-1, 1, 16, dtype=F64).reshape(8, 2)
    grid = time_grid(5.0, dt=0.05)
    increments = Increments.sample(grid, 8, problem.noise_dim(x0), 4)
    run = lambda engine: rollout(  # noqa: E731
        problem, FEEDBACK, x0, grid, target=0, solver=solver, engine=engine, increments=increments
    )
    own, theirs = run("own"), run("torchsde")
    for a, b in zip(own.states, theirs.states, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    assert torch.allclose(own.total_cost(), theirs.total_cost(), rtol=0, atol=1e-11)
    assert (own.states[-1] - x0).abs().min() > 1e-3


def test_own_engine_is_torchsde_for_images():
    x0 = torch.ones(3, 2, 4, dtype=F64)
    increments = Increments.sample(time_grid(1.0, steps=10), 3, (2, 4), 4)
    run = lambda engine: rollout(  # noqa: E731
        Geometric(), STILL, x0, increments.grid, solver="milstein", engine=engine, increments=increments
    )
    assert torch.allclose(run("own").states[-1], run("torchsde").states[-1], rtol=0, atol=1e-12)


def test_torchsde_knows_no_milstein_for_columns():
    x0 = torch.zeros(2, 2, dtype=F64)
    with pytest.raises(ValueError, match="noise type|noise types"):
        rollout(Nonlinear("columns"), FEEDBACK, x0, time_grid(5.0, steps=4), solver="milstein", engine="torchsde")


def test_path_brownian_answers_on_the_grid_only():
    increments = Increments.sample(time_grid(1.0, steps=4), 3, (2, 2), 0)
    path = PathBrownian(increments)
    assert path.shape == (3, 4) and path.dtype == F64 and path.device.type == "cpu"
    assert path.levy_area_approximation == "none" and "(3, 4)" in repr(path)
    assert torch.allclose(path(0.25, tensor(0.75)), increments.dw[1:3].sum(0).flatten(1), atol=1e-15)
    assert torch.equal(path(0.5 + 1e-13, 0.5), torch.zeros(3, 4))
    for bad in (0.3, -0.25, 1.25):
        with pytest.raises(ValueError, match=f"time {bad} is not on the grid of the increments"):
            path(0.0, bad)
    for area in ({"return_U": True}, {"return_A": True}):
        with pytest.raises(ValueError, match="no Levy area; expected method euler or milstein"):
            path(0.0, 0.25, **area)


def test_torchsde_with_its_own_path_finishes_and_keeps_the_quadratic_variation():
    """T = 5 in steps of 0.05 in float64: plain torchsde grows its tree without bound at the step of 1e-14 it adds."""
    grid, x0 = time_grid(5.0, dt=0.05), torch.zeros(400, 2, dtype=F64)
    run = lambda seed: torch.stack(  # noqa: E731
        rollout(Brownian(5.0), STILL, x0, grid, engine="torchsde", entropy=seed).states
    )
    first = run(1)
    assert first.shape == (101, 400, 2)
    variation = first.diff(dim=0).square().sum(0)  # 5 (1 +- sqrt(2 / 100)) a path
    assert variation.mean().item() == pytest.approx(5, abs=5 * 5 * (2 / 100 / 800) ** 0.5)
    per_step = first.diff(dim=0).square().mean((1, 2))
    assert (per_step - 0.05).abs().max() < 5 * 0.05 * (2 / 800) ** 0.5
    torch.manual_seed(3)
    np.random.seed(3)
    assert torch.equal(first, run(1)) and not torch.equal(first, run(2))


def srk(problem, grid, x0, monkeypatch, seed):
    """(X_T, W_T) of torchsde's srk on its own path."""
    kept = []

    def keep(*args, **kwargs):
        kept.append(original(*args, **kwargs))
        return kept[-1]

    original = motion.brownian
    with monkeypatch.context() as patch:
        patch.setattr(motion, "brownian", keep)
        states = rollout(problem, STILL, x0, grid, engine="torchsde", solver="srk", entropy=seed).states
    w = kept[0](float(grid[0]), float(grid[-1]))
    return states[-1], (w[0] if isinstance(w, tuple) else w).reshape(x0.shape)


def test_srk_through_torchsde_has_order_three_halves(monkeypatch):
    """Against the exact geometric Brownian motion of torchsde's own path (other paths for every step)."""
    problem, x0 = Geometric(), torch.ones(500, 2, dtype=F64)
    sizes, errors = [5, 10, 20, 40], []
    for steps in sizes:
        end, w = srk(problem, time_grid(1.0, steps=steps), x0, monkeypatch, steps)
        exact = ((problem.rate - problem.volatility**2 / 2) + problem.volatility * w).exp()
        errors.append((end - exact).abs().mean().item())
    assert slope(sizes, errors) == pytest.approx(-1.5, abs=0.2)


def test_srk_on_a_decimal_grid_of_additive_noise(monkeypatch):
    """dX = dW is integrated exactly, also over torchsde's extra steps of 1e-14."""
    x0 = torch.zeros(50, 1, dtype=F64)
    end, w = srk(Brownian(5.0), time_grid(5.0, dt=0.05), x0, monkeypatch, 6)
    assert torch.allclose(end, w, rtol=0, atol=1e-9) and w.std().item() == pytest.approx(5**0.5, rel=0.5)


def test_srk_needs_torchsde_and_its_own_path():
    x0, grid = torch.ones(2, 2, dtype=F64), time_grid(1.0, steps=4)
    with pytest.raises(ValueError, match="solver 'srk' belongs to engine 'torchsde'"):
        rollout(Geometric(), STILL, x0, grid, solver="srk")
    increments = Increments.sample(grid, 2, (2,), 0)
    with pytest.raises(ValueError, match="[Ll]evy.area"):
        rollout(Geometric(), STILL, x0, grid, solver="srk", engine="torchsde", increments=increments)
