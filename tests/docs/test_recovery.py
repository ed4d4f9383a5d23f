"""docs/explanation/recovery.md: the shift, how the excess splits, noise in the control, AID's form, what fails."""

import math

import pytest
import sympy as sp
import torch
from scipy.integrate import quad
from symbolic import differs, expect, hard_min, soft_min, tau, zero

from aid_control import ControlProblem, finite_difference
from aid_control.increments import time_grid
from aid_control.lq import AffineGaussian, LQProblem, evaluate, riccati, scheme_value

t, x, u, r, T = sp.symbols("t x u r T", real=True)
rho, beta, lam = sp.symbols("rho beta lambda", positive=True)
F64 = torch.float64


def test_equations_1_and_3_the_shift():
    """Any b, B, sigma, f and R(t): V0 - c solves the exploratory equation if c solves (3); (1) solves (3)."""
    b, gain, sigma, f, cold = (sp.Function(name)(t, x) for name in ("b", "B", "sigma", "f", "V"))
    weight, c = sp.Function("R", positive=True)(t), sp.Function("c")(t)

    def equation(value, least):
        energy = sp.diff(value, x) * (b + gain * u) + sigma**2 * sp.diff(value, x, 2) / 2 + f + weight * u**2 / 2
        return sp.diff(value, t) - rho * value + least(sp.expand(energy), [u])

    slope = sp.solve(equation(cold, hard_min), sp.diff(cold, t))[0]
    rate = tau / 2 * sp.log(2 * sp.pi * tau / weight)
    warm = equation(cold - c, soft_min).subs(sp.diff(c, t), rho * c - rate).subs(sp.diff(cold, t), slope)
    assert zero(warm)
    wrong = equation(cold - c, soft_min).subs(sp.diff(c, t), rho * c + rate).subs(sp.diff(cold, t), slope)
    assert zero(wrong + 2 * rate)
    integral = sp.exp(rho * t) * sp.Integral(sp.exp(-rho * r) * rate.subs(t, r), (r, t, T))
    assert zero(sp.diff(integral, t) - rho * integral + rate)
    # backwards: the HJB equation from the exploratory one
    hot = sp.Function("W")(t, x)
    slope = sp.solve(equation(hot, soft_min), sp.diff(hot, t))[0]
    back = equation(hot + c, hard_min).subs(sp.diff(c, t), rho * c - rate).subs(sp.diff(hot, t), slope)
    assert zero(back)


def problem_and_policy(noise_in_control):
    gen = torch.Generator().manual_seed(4)

    def normal(*shape):
        return torch.randn(*shape, generator=gen, dtype=F64)

    d, m, n = 2, 2, 2
    root = normal(m, m)
    terms = {
        "A": 0.4 * normal(d, d), "B": normal(d, m), "b": 0.3 * normal(d), "Q": torch.eye(d), "g": normal(d),
        "R": torch.eye(m) + root @ root.T, "G": torch.eye(d), "C": 0.2 * normal(n, d, d), "s": 0.4 * normal(n, d),
    }  # fmt: skip
    if noise_in_control:
        terms["D"] = 0.4 * normal(n, d, m)
    spread = normal(m, m)
    covariance = 0.3 * (torch.eye(m) + spread @ spread.T)
    gain, offset = 0.5 * normal(m, d), 0.5 * normal(m)
    return LQProblem(**terms, discount=0.4), gain, offset, covariance, terms["R"]


@pytest.mark.parametrize("noise_in_control", [False, True])
def test_equations_5_and_6_the_excess_splits_where_the_noise_is_free_of_the_control(noise_in_control):
    """J^pi - V^tau against (J^mu - V^0) + what the covariance costs; three of the package's solvers."""
    temperature, rate = 0.6, 0.4
    problem, gain, offset, covariance, weight = problem_and_policy(noise_in_control)
    policy = AffineGaussian.constant(gain, offset, covariance)
    at = torch.tensor([[0.8, -1.1]], dtype=F64)
    excess = float(evaluate(problem, policy, temperature)(0.0, at) - riccati(problem, temperature).value(0.0, at))
    of_mean = float(evaluate(problem, policy.deterministic())(0.0, at) - riccati(problem).value(0.0, at))
    share = weight @ covariance / temperature
    price = float(share.trace() - 2 - torch.logdet(share)) * temperature / 2
    split = of_mean + price * (1 - math.exp(-rate)) / rate
    assert of_mean > 0.1 and price > 0.1
    if noise_in_control:
        assert abs(excess - split) > 0.01  # R is not S, and the states differ
    else:
        assert excess == pytest.approx(split, rel=1e-9)
        assert of_mean < excess


def test_equation_7_only_the_constant_knows_the_temperature():
    """Scalar, every term: with V = P x^2/2 + p x + k the soft minimum has tau in the term free of x alone."""
    A, B, b, C, D, s, Q, R, q = sp.symbols("A B b C D s Q R q", real=True)  # noqa: N806 - the page's letters
    P, p, k = sp.symbols("P p k", real=True)  # noqa: N806
    value = P * x**2 / 2 + p * x + k
    noise = C * x + D * u + s
    energy = sp.diff(value, x) * (A * x + B * u + b) + noise**2 * P / 2 + (Q * x**2 + R * u**2) / 2 + q * x
    S = R + D**2 * P  # noqa: N806
    difference = soft_min(sp.expand(energy), [u]) - hard_min(sp.expand(energy), [u])
    assert zero(difference + tau / 2 * sp.log(2 * sp.pi * tau / S))
    assert zero(sp.diff(difference, x)) and zero(sp.diff(difference, k)) and zero(sp.diff(difference, p))
    assert differs(difference + tau / 2 * sp.log(2 * sp.pi * tau / R))


def test_equation_8_the_residual_depends_on_the_state():
    D, R, level = sp.symbols("D R level", positive=True)  # noqa: N806
    cold, c = sp.Function("V")(t, x), sp.Function("c")(t)
    S = R + D**2 * sp.diff(cold, x, 2)  # noqa: N806

    def equation(value, least):
        energy = sp.diff(value, x) * u + (level + D * u) ** 2 * sp.diff(value, x, 2) / 2 + R * u**2 / 2
        return sp.diff(value, t) - rho * value + least(sp.expand(energy), [u])

    slope = sp.solve(equation(cold, hard_min), sp.diff(cold, t))[0]
    residual = equation(cold - c, soft_min).subs(sp.diff(cold, t), slope)
    page = -sp.diff(c, t) + rho * c - tau / 2 * sp.log(2 * sp.pi * tau) + tau / 2 * sp.log(S)
    assert zero(residual - page)
    assert zero(sp.diff(page, x) - tau / 2 * D**2 * sp.diff(cold, x, 3) / S)  # zero for quadratics


class Noisy(ControlProblem):
    """dX = u dt + (1/2 + slope u) dW, R = 1, Psi = log cosh 2x: convex, not quadratic."""

    noise = "diagonal"

    def __init__(self, slope):
        self.slope = slope

    def diffusion(self, t, x, u):
        return 0.5 + self.slope * u

    def terminal_cost(self, x, target):
        return torch.log(torch.cosh(2 * x[:, 0]))


def test_the_mean_moves_where_s_depends_on_the_state():
    for slope, low, high in ((0.0, 0.0, 1e-13), (0.5, 0.035, 0.045)):
        cold, hot = (finite_difference.solve(Noisy(slope), [(-3, 3)], [41], temperature=a) for a in (0.0, 1.0))
        inside = torch.as_tensor(cold.axes[0]).abs() < 1
        gap = float((hot.policy(0) - cold.policy(0))[inside].abs().max())
        assert low <= gap <= high, (slope, gap)


def aid(d=2):
    """Gradient, drift, action and mean of a d-dimensional problem; V_t from its HJB equation."""
    gradient, drift, action, mean = (sp.Matrix(sp.symbols(f"{n}1:{d + 1}", real=True)) for n in "gbam")
    slope = -gradient.dot(drift) + gradient.dot(gradient) / (2 * beta)
    return gradient, drift, action, mean, slope


def average(expression, action, mean, variance):
    for a, m in zip(action, mean, strict=True):
        expression = expect(sp.expand(expression), a, m, variance)
    return expression


@pytest.mark.parametrize("d", [1, 2, 3])
def test_equations_9_and_10_aid_pays_lambda_whatever_the_mean(d):
    _, _, action, mean, _ = aid(d)
    variance = 2 * lam / (beta * d)
    assert zero(average(beta / 2 * action.dot(action), action, mean, variance) - beta / 2 * mean.dot(mean) - lam)
    assert zero((tau / beta).subs(tau, 2 * lam / d) - variance)
    assert zero((tau * d / 2).subs(tau, 2 * lam / d) - lam)
    # (1) at that temperature
    shift = tau / 2 * (T - t) * sp.log((2 * sp.pi * tau) ** d / beta**d)
    assert zero(shift.subs(tau, 2 * lam / d) - lam * (T - t) * sp.log(4 * sp.pi * lam / (beta * d)))
    if d > 1:  # d forgotten in the variance
        paid = average(beta / 2 * action.dot(action), action, mean, 2 * lam / beta)
        assert differs(paid - beta / 2 * mean.dot(mean) - lam)


def test_equation_11_the_advantage():
    gradient, drift, action, _, slope = aid()
    best = -gradient / beta
    q = slope - lam + gradient.dot(drift + action) + beta / 2 * action.dot(action)
    away = (action - best).dot(action - best)
    assert zero(q - beta / 2 * away + lam)
    assert zero(average(q, action, best, 2 * lam / (beta * 2)))
    assert differs(q - beta / 2 * away - lam)


def test_equation_12_what_sampling_adds():
    """The toy: nu beta / 2 log(1 + G / beta) a unit of step; and its integral."""
    a, span = sp.symbols("a span", positive=True)
    authority = (1 - sp.exp(-2 * a * (span - t))) / (2 * a)
    curvature = sp.exp(-2 * a * (span - t)) / (1 + authority / beta)
    assert zero(sp.diff(-beta * sp.log(1 + authority / beta), t) - curvature)
    rate, weight, nu = 0.7, 0.4, 1.5
    problem = LQProblem(-rate, 1.0, R=weight, G=1.0, g=[-2.0])
    best = riccati(problem, nu * weight)
    at = torch.tensor([[1.5]], dtype=F64)
    leading = nu * weight / 2 * math.log(1 + (1 - math.exp(-2 * rate)) / (2 * rate * weight))
    gaps = []
    for steps in (100, 200):
        grid = time_grid(1.0, steps=steps)
        both = [float(scheme_value(problem, best.policy, grid, m)(0.0, at)) for m in ("sampled", "averaged")]
        gaps.append((both[0] - both[1]) * steps - leading)
    assert abs(gaps[1]) < 0.02 * leading
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.05)  # the rest is of order dt^2


def test_equation_13_a_cost_that_is_not_quadratic():
    # Laplace: u = u* + sqrt(tau) y, to first order in tau, with H'' = h2 and H''' = h3
    y, root = sp.symbols("y root", real=True)
    h2, h3 = sp.symbols("h2 h3", positive=True)
    h4 = sp.Symbol("h4", real=True)
    tilt = -(h3 * y**3 * root / 6 + h4 * y**4 * root**2 / 24)
    weight = 1 + tilt + tilt**2 / 2
    moment = sp.series(expect(root * y * weight, y, 0, 1 / h2) / expect(weight, y, 0, 1 / h2), root, 0, 3).removeO()
    assert zero(moment + root**2 * h3 / (2 * h2**2))

    def energy(a):  # p = -2, the minimiser is 1
        return a**2 / 2 + a**4 / 4 - 2 * a + 1.25

    assert zero(sp.diff(energy(u), u).subs(u, 1)) and zero(energy(sp.Integer(1)))

    def mean(temperature):
        def density(a):
            return math.exp(-energy(a) / temperature)

        options = {"points": [1], "epsabs": 1e-14, "limit": 200}
        return quad(lambda a: a * density(a), -4, 6, **options)[0] / quad(density, -4, 6, **options)[0]

    assert (mean(1e-3) - 1) / 1e-3 == pytest.approx(-6 / 32, abs=1e-4)
    assert mean(0.01) == pytest.approx(0.99812, abs=5e-6) and mean(1.0) == pytest.approx(0.8106, abs=5e-5)
