"""The grid solver against closed forms, the Hopf-Cole transform, the recovery theorem and itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from aid_control.finite_difference import Grid, policy_iteration, solve, trapezoid
from aid_control.nonlinear import DoubleWell, VanDerPol
from aid_control.problem import ControlProblem

WELL = {"kappa": 0.25, "nu": 0.5, "sigma": 0.7, "weight": 0.8, "horizon": 0.5}
BOX = [(-1.6, 1.6)]
INSIDE = 0.8001
OSCILLATOR = {"sigma": (0.7, 0.7), "weight": 0.7, "horizon": 0.5}


class Linear(ControlProblem):
    """dX = (-a X + u) dt + sigma dW, cost R/2 u^2, terminal (x - c)^2 / 2."""

    def __init__(self, a=1.0, weight=0.5, sigma=0.4, goal=0.5):
        self.a, self.weight, self.sigma, self.goal = a, weight, sigma, goal
        self.noise = "diagonal" if sigma else "none"

    def drift(self, t, x, context, probe):
        return -self.a * x

    def control_weight(self, t):
        return self.weight

    def terminal_cost(self, x, target):
        return 0.5 * (x[:, 0] - self.goal) ** 2

    def diffusion(self, t, x, u):
        return torch.full_like(x, self.sigma) if self.sigma else None

    def value(self, x):
        """At t = 0, T = 1: with D = e^{-a}, G the integral of D^2; the last term is the noise's."""
        decay = math.exp(-self.a)
        reach = (1 - decay**2) / (2 * self.a)
        price = 1 + reach / self.weight
        noise = 0.5 * self.sigma**2 * self.weight * math.log(price)
        return 0.5 * (decay * x - self.goal) ** 2 / price + noise

    def control(self, x):
        decay = math.exp(-self.a)
        return -decay * (decay * x - self.goal) / (self.weight + (1 - decay**2) / (2 * self.a))


class NoisyControl(ControlProblem):
    """dX = u dt + D u dW^1 + s dW^2: the control enters the noise, which has two columns; discounted."""

    noise = "columns"

    def __init__(self, slope=0.6, floor=0.5, weight=0.5, discount=0.0):
        self.slope, self.floor, self.weight, self.discount = slope, floor, weight, discount

    def control_weight(self, t):
        return self.weight

    def diffusion(self, t, x, u):
        return torch.stack([self.slope * u, torch.full_like(u, self.floor)], dim=-1)

    def noise_dim(self, x):
        return (2,)

    def terminal_cost(self, x, target):
        return 0.5 * x[:, 0] ** 2

    def riccati(self, s):
        """P at time to go s: P' = -P^2/(R + D^2 P) has the first integral R/P - D^2 log P - s."""
        return brentq(lambda p: self.weight / p - self.slope**2 * math.log(p) - s - self.weight, 1e-6, 1.0, xtol=1e-14)


class Clocked(Linear):
    """dX = (1 + 2t) u dt + sigma dW, weight 1 + t, terminal x^2/2: P' = (1 + 2t)^2/(1 + t) P^2."""

    def __init__(self):
        super().__init__(a=0.0, goal=0.0)

    def gain(self, t):
        return 1 + 2 * t

    def control_weight(self, t):
        return 1 + t

    def riccati(self, t):
        return 1 / (3 + math.log(2) - 2 * t**2 - np.log(1 + t))


class TwoGoals(ControlProblem):
    """xdot = u, cost u^2/2, terminal (|x| - 1)^2/2: V = (|x| - 1)^2 / (2 + 2 (T - t)) has a kink at 0 (Hopf-Lax)."""

    def terminal_cost(self, x, target):
        return 0.5 * (x[:, 0].abs() - 1) ** 2

    def value(self, x):
        return 0.5 * (x.abs() - 1) ** 2 / 2


def order(errors, spacings):
    return np.polyfit(np.log(spacings), np.log(errors), 1)[0]


def error(found, expected, x, inside=INSIDE):
    return float((found - expected)[x.abs() <= inside].abs().max())


# ---------------------------------------------------------------- closed forms


def test_central_differences_solve_a_linear_quadratic_problem():
    # V is quadratic: no error in space, ghosts included; what is left is the time step's
    problem = Linear()
    errors = []
    for n in (41, 81):
        solution = solve(problem, [(-2, 2)], [n])
        (x,) = solution.axes
        errors.append(error(solution.values[0], problem.value(x), x, 2))
        assert error(solution.policy(0)[:, 0], problem.control(x), x, 2) < 5 * errors[-1]
    assert errors[1] < 1e-4
    assert errors[1] < errors[0] / 3


def test_paths_that_leave_the_box_do_not_spoil_a_quadratic_value():
    # with linear ghosts the error is 0.8 on both grids
    problem = Linear(a=-2.0, weight=20.0)
    x = Grid.uniform([(-2, 2)], [81]).axes[0]
    solution = solve(problem, [(-2, 2)], [81])
    assert error(solution.values[0], problem.value(x), x, 0.5) < 4e-3
    assert problem.value(x).max() > 70


def test_central_differences_are_stable_at_a_large_cell_peclet_number():
    class Kink(Linear):
        def terminal_cost(self, x, target):
            return 0.2 * (x[:, 0].abs() - 1).abs()

    problem = Kink(a=2.0, weight=2.0, sigma=0.1)  # 20 at the faces
    problem.horizon = 4.0
    values = solve(problem, [(-2, 2)], [81]).values
    # u = 0 costs at most 0.2
    assert values[0].max() < 0.2


@pytest.mark.parametrize("tau", [0.0, 0.4])
def test_gain_and_weight_that_depend_on_time(tau):
    problem = Clocked()
    solution = solve(problem, [(-2, 2)], [81], temperature=tau)
    t = np.linspace(0, 1, 2001)
    constant = np.trapezoid(0.5 * problem.sigma**2 * problem.riccati(t), t)
    if tau:
        constant -= np.trapezoid(0.5 * tau * np.log(2 * math.pi * tau / (1 + t)), t)
    (x,) = solution.axes
    assert error(solution.values[0], 0.5 * problem.riccati(0) * x**2 + constant, x, 2) < 3e-4
    assert error(solution.policy(0)[:, 0], -problem.riccati(0) * x, x, 2) < 3e-4


# at the higher temperature most of the noise is that of exploration
@pytest.mark.parametrize("tau", [0.0, 3.0])
def test_control_in_the_noise(tau):
    problem = NoisyControl()
    solution = solve(problem, [(-2, 2)], [41], temperature=tau)
    s = np.linspace(0, 1, 2001)
    p = np.array([problem.riccati(r) for r in s])
    convexity = problem.weight + problem.slope**2 * p
    constant = np.trapezoid(0.5 * problem.floor**2 * p, s)
    if tau:
        constant -= np.trapezoid(0.5 * tau * np.log(2 * math.pi * tau / convexity), s)
    (x,) = solution.axes
    assert error(solution.values[0], 0.5 * p[-1] * x**2 + constant, x, 2) < 3e-4
    assert error(solution.policy(0)[:, 0], -p[-1] / convexity[-1] * x, x, 2) < 3e-4


def test_discount():
    problem = NoisyControl(slope=0.0, weight=1e9, discount=0.7)  # nothing worth doing: e^{-rho T} E Psi
    solution = solve(problem, [(-2, 2)], [41], outputs=2)
    (x,) = solution.axes
    assert error(solution.values[0], math.exp(-0.7) * 0.5 * (x**2 + 0.25), x, 2) < 2e-4
    assert solution.times.tolist() == [0, 0.5, 1]


# ---------------------------------------------------------------- noise-free


@pytest.mark.parametrize("problem", [Linear(sigma=0.0), TwoGoals()], ids=["linear", "kink"])
def test_upwind_without_noise(problem):
    errors, sizes = [], (41, 81, 161)
    for n in sizes:
        solution = solve(problem, [(-2, 2)], [n], scheme="upwind")
        (x,) = solution.axes
        errors.append(error(solution.values[0], problem.value(x), x, 1.5001))
    assert order(errors, [4 / (n - 1) for n in sizes]) == pytest.approx(1, abs=0.3)
    assert errors[-1] < 0.02


def test_the_upwind_scheme_is_monotone():
    # raising V at a neighbour never lowers what a node gets, on rough data too
    solution = solve(Linear(sigma=0.0), [(-2, 2)], [41], scheme="upwind")
    v = torch.randn(41, generator=torch.Generator().manual_seed(1), dtype=torch.float64).cumsum(0) / 4
    t, slope = torch.zeros((), dtype=torch.float64), solution._equation.slope
    for j in range(1, 40):
        for neighbour in (j - 1, j + 1):
            raised = v.clone()
            raised[neighbour] += 1e-6
            assert float((slope(t, raised) - slope(t, v))[j]) >= -1e-12


def test_upwind_makes_no_new_extremes_at_a_jump():
    class Jump(TwoGoals):
        def terminal_cost(self, x, target):
            return 1.0 * (x[:, 0] > 0.3)

    values = solve(Jump(), [(-2, 2)], [81], scheme="upwind", outputs=4).values
    assert float(values.min()) == pytest.approx(0, abs=1e-12)
    assert float(values.max()) == pytest.approx(1, abs=1e-12)


# ---------------------------------------------------------------- the double well


def test_the_exact_solution_of_the_double_well_satisfies_its_equation():
    problem = DoubleWell(**WELL)
    x, t, e = torch.linspace(-1.2, 1.2, 25, dtype=torch.float64).unsqueeze(1), 0.2, 1e-3
    v_t = (problem.value(t + e, x) - problem.value(t - e, x)) / (2 * e)
    p = (problem.value(t, x + e) - problem.value(t, x - e)) / (2 * e)
    y = (problem.value(t, x + e) - 2 * problem.value(t, x) + problem.value(t, x - e)) / e**2
    b, r = problem.drift(torch.zeros(()), x, None, None)[:, 0], problem.weight
    assert (v_t + b * p + 0.5 * problem.sigma**2 * y - p**2 / (2 * r)).abs().max() < 1e-5
    assert (problem.optimal_control(t, x)[:, 0] + p / r).abs().max() < 1e-5
    assert (problem.value(problem.horizon, x) - problem.terminal_cost(x, None)).abs().max() < 1e-10


@pytest.mark.parametrize(("scheme", "slope", "tolerance"), [("central", 2, 0.25), ("upwind", 1, 0.3)])
def test_order_on_the_double_well(scheme, slope, tolerance):
    problem, sizes, errors = DoubleWell(**WELL), (33, 65, 129), []
    for n in sizes:
        solution = solve(problem, BOX, [n], scheme=scheme, outputs=2)
        (x,) = solution.axes
        for k in (0, 1):
            t, state = float(solution.times[k]), x.unsqueeze(1)
            errors.append(error(solution.values[k], problem.value(t, state), x))
            errors.append(error(solution.policy(k), problem.optimal_control(t, state), x))
    h = [3.2 / (n - 1) for n in sizes]
    slopes = [order(errors[i::4], h) for i in range(4)]
    print(scheme, "slopes", slopes, "finest", errors[-4:])
    assert slopes == pytest.approx([slope] * 4, abs=tolerance)
    assert max(errors[-4:]) < (1e-3 if scheme == "central" else 2e-2)


# ---------------------------------------------------------------- recovery


def shift(problem, m, tau):
    """V^tau - V^0 at t = 0 for constant R."""
    return -0.5 * tau * problem.horizon * m * math.log(2 * math.pi * tau / problem.weight)


@pytest.mark.parametrize("scheme", ["central", "upwind"])
@pytest.mark.parametrize(("tau", "nodes"), [(0.1, 61), (0.5, 41), (2.0, 41)])
def test_the_mean_of_the_quadrature_policy_is_the_deterministic_optimum(scheme, tau, nodes):
    problem = DoubleWell(**WELL)
    plain = solve(problem, BOX, [33], scheme=scheme, outputs=2)
    reach = 6.5 + 6.7 * math.sqrt(tau / problem.weight)
    exploring = solve(
        problem,
        BOX,
        [33],
        temperature=tau,
        scheme=scheme,
        how="quadrature",
        action_box=[(-reach, reach)],
        action_nodes=nodes,
        outputs=2,
    )
    for k in range(3):
        assert (plain.policy(k) - exploring.policy(k)).abs().max() < 1e-8
    assert (exploring.values[0] - plain.values[0] - shift(problem, 1, tau)).abs().max() < 1e-8
    closed = solve(problem, BOX, [33], temperature=tau, scheme=scheme, outputs=2)
    assert (exploring.values - closed.values).abs().max() < 1e-8


@pytest.mark.parametrize(("scheme", "slope", "tolerance"), [("central", 2, 0.25), ("upwind", 1, 0.3)])
def test_the_quadrature_policy_converges_to_the_exact_optimum(scheme, slope, tolerance):
    problem, sizes, tau = DoubleWell(**WELL), (17, 33, 65), 0.5
    values, controls = [], []
    for n in sizes:
        solution = solve(
            problem,
            BOX,
            [n],
            temperature=tau,
            scheme=scheme,
            how="quadrature",
            action_box=[(-12, 12)],
            action_nodes=41,
        )
        (x,) = solution.axes
        state = x.unsqueeze(1)
        values.append(error(solution.values[0], problem.value(0, state) + shift(problem, 1, tau), x))
        controls.append(error(solution.policy(0), problem.optimal_control(0, state), x))
    h = [1 / (n - 1) for n in sizes]
    print(scheme, order(values, h), order(controls, h), values[-1], controls[-1])
    assert order(values, h) == pytest.approx(slope, abs=tolerance)
    assert order(controls, h) == pytest.approx(slope, abs=tolerance)


@pytest.mark.parametrize(
    ("scheme", "gain", "tau", "nodes"),
    [
        ("central", ((0.0,), (1.0,)), 0.3, 41),
        ("upwind", ((0.5,), (1.0,)), 1.0, 31),
        ("central", ((1.0, 0.5), (0.0, 1.0)), 3.0, 21),
    ],
)
def test_recovery_in_two_dimensions(scheme, gain, tau, nodes):
    problem = VanDerPol(gain=gain, **OSCILLATOR)
    m = problem.control_dim
    reach = 4.5 + 6.5 * math.sqrt(tau / problem.weight)
    box, points = [(-2, 2), (-2, 2)], [13, 11]
    plain = solve(problem, box, points, scheme=scheme)
    exploring = solve(
        problem,
        box,
        points,
        temperature=tau,
        how="quadrature",
        action_box=[(-reach, reach)] * m,
        action_nodes=nodes,
        scheme=scheme,
    )
    assert plain.policy(0).shape == (13, 11, m)
    assert (plain.policy(0) - exploring.policy(0)).abs().max() < 1e-8
    assert (exploring.values[0] - plain.values[0] - shift(problem, m, tau)).abs().max() < 1e-8


@pytest.mark.parametrize(("scheme", "slope", "tolerance"), [("central", 2, 0.25), ("upwind", 1, 0.3)])
def test_self_convergence_in_two_dimensions(scheme, slope, tolerance):
    problem, found = VanDerPol(**OSCILLATOR), []
    for n in (17, 33, 65):
        every = (n - 1) // 16
        solution = solve(problem, [(-2, 2), (-2, 2)], [n, n], scheme=scheme)
        found.append((solution.values[0][::every, ::every], solution.policy(0)[::every, ::every, 0]))
    for coarse, middle, fine in zip(*found, strict=True):
        inside = slice(4, 13)
        first, second = ((a - b)[inside, inside].abs().max() for a, b in ((coarse, middle), (middle, fine)))
        print(scheme, math.log2(first / second), float(second))
        assert math.log2(first / second) == pytest.approx(slope, abs=tolerance)


# ---------------------------------------------------------------- policy iteration


@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_policy_iteration_decreases_and_stops_at_the_solution(tau):
    problem = DoubleWell(**WELL)
    sequence = policy_iteration(problem, BOX, [41], iterations=7, initial=lambda t, x: 1.5 * x, temperature=tau)
    values = torch.stack([s.values[0] for s in sequence])
    gaps = (values[:-1] - values[-1]).abs().amax(1)
    print("gaps", gaps.tolist())
    assert bool((values.diff(dim=0) < 1e-12).all())
    assert gaps[0] > 0.1
    # Newton's method in function space: each gap is of the order of the last one's square
    assert gaps[4] < 1e-9
    solution = solve(problem, BOX, [41], temperature=tau)
    # the two differ by their steps in time
    assert (values[-1] - solution.values[0]).abs().max() < 3e-4
    assert (sequence[-1].policy(0) - solution.policy(0)).abs().max() < 3e-4


def test_policy_iteration_in_two_dimensions():
    problem = VanDerPol(**OSCILLATOR)
    sequence = policy_iteration(problem, [(-2, 2)] * 2, [17, 17], iterations=4, temperature=0.1)
    solution = solve(problem, [(-2, 2)] * 2, [17, 17], temperature=0.1)
    inside = slice(4, 13)
    values = [s.values[0][inside, inside] for s in sequence]
    assert all(bool((later < earlier + 1e-9).all()) for earlier, later in zip(values, values[1:], strict=False))
    assert (values[-1] - solution.values[0][inside, inside]).abs().max() < 1e-3


# ---------------------------------------------------------------- pieces


def test_differences_are_exact_for_quadratics():
    grid = Grid.uniform([(-1, 2), (0, 1)], [7, 6])
    x, y = grid.states.unbind(1)
    v = (3 + x - 2 * y + 0.5 * x**2 + 1.5 * x * y - 2 * y**2).reshape(grid.shape)
    p, second = grid.differences(v)
    assert torch.allclose(p, torch.stack([1 + x + 1.5 * y, -2 + 1.5 * x - 4 * y], dim=1))
    assert torch.allclose(second, torch.tensor([[1.0, 1.5], [1.5, -4.0]], dtype=torch.float64).expand(42, 2, 2))


def test_the_trapezoid_rule_integrates_gaussians():
    nodes, weights = trapezoid([(-9, 9), (-8, 9)], 31)
    density = torch.exp(-0.5 * nodes.square().sum(1)) / (2 * math.pi)
    assert float(weights @ density) == pytest.approx(1, abs=1e-10)
    assert float(weights @ (density * nodes[:, 1] ** 2)) == pytest.approx(1, abs=1e-10)


def test_interpolation():
    solution = solve(Linear(), [(-2, 2)], [9], outputs=2)
    x = torch.tensor([[-2.0], [0.25], [0.5]], dtype=torch.float64)
    found = solution.value(0.25, x)
    middle = (solution.values[0] + solution.values[1]) / 2
    assert found.tolist() == pytest.approx([float(v) for v in (middle[0], (middle[4] + middle[5]) / 2, middle[5])])
    with pytest.raises(ValueError, match=r"x\[:, 0\] is \[2.1\]"):
        solution.value(0.0, torch.tensor([[2.1]], dtype=torch.float64))
    with pytest.raises(ValueError, match="^t is"):
        solution.value(1.5, x)
    with pytest.raises(ValueError, match="x has shape"):
        solution.value(0.0, x[:, 0])


@pytest.mark.parametrize(
    ("message", "change"),
    [
        (r"box is \[\(1, -1\)\]", {"box": [(1, -1)]}),
        ("box is", {"box": []}),
        ("box has 3 dimensions", {"box": [(-1, 1)] * 3, "points": [9] * 3}),
        (r"points is \(4,\)", {"points": [4]}),
        (r"points is \(9, 9\)", {"points": [9, 9]}),
        ("temperature is -0.1", {"temperature": -0.1}),
        ("temperature is nan", {"temperature": math.nan}),
        ("temperature is 0", {"how": "quadrature", "action_box": [(-1, 1)]}),
        ("action_box is None", {"how": "quadrature", "temperature": 0.1}),
        (r"action_box is \[\(3, 1\)\]", {"how": "quadrature", "temperature": 0.1, "action_box": [(3, 1)]}),
        ("action_nodes is 1", {"how": "quadrature", "temperature": 1, "action_box": [(-1, 1)], "action_nodes": 1}),
        ("how is 'exact'", {"how": "exact"}),
        ("scheme is 'godunov'", {"scheme": "godunov"}),
        ("scheme is 'central' for a problem without noise", {"problem": Linear(sigma=0.0)}),
        ("box has 1 dimensions, but the problem refuses", {"problem": VanDerPol()}),
        ("outputs is 0", {"outputs": 0}),
        ("more than max_steps = 10;", {"max_steps": 10}),
        ("more than max_steps = 100000;", {"problem": Linear(sigma=500.0)}),
        ("not convex", {"problem": Linear(weight=-1.0)}),
    ],
)
def test_bad_input(message, change):
    arguments = {"problem": Linear(), "box": [(-1, 1)], "points": [21], **change}
    with pytest.raises(ValueError, match=message):
        solve(**arguments)


def test_bad_input_of_policy_iteration():
    with pytest.raises(ValueError, match="iterations is 0"):
        policy_iteration(Linear(), [(-1, 1)], [21], iterations=0)
    with pytest.raises(ValueError, match="without noise"):
        policy_iteration(Linear(sigma=0.0), [(-1, 1)], [21])

    with pytest.raises(ValueError, match=r"initial returned a mean of shape \(21,\); expected \(21, 1\)"):
        policy_iteration(Linear(), [(-1, 1)], [21], initial=lambda t, x: x[:, 0])

    class Ending(Linear):
        def singular(self, t, s):
            return True

    with pytest.raises(ValueError, match="singular at T"):
        policy_iteration(Ending(), [(-1, 1)], [21])


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("kappa is 0", lambda: DoubleWell(kappa=0)),
        ("sigma is -1", lambda: DoubleWell(sigma=-1)),
        ("sigma is 0", lambda: DoubleWell(sigma=0).value(0, torch.zeros(1, 1))),
        ("sigma is", lambda: VanDerPol(sigma=(0.0, 1.0))),
        ("gain is", lambda: VanDerPol(gain=((1.0,), (1.0, 2.0)))),
        ("weight is 0", lambda: VanDerPol(weight=0)),
        ("running is -1", lambda: VanDerPol(running=-1)),
    ],
)
def test_bad_parameters(message, make):
    with pytest.raises(ValueError, match=message):
        make()
