"""docs/explanation/policy-evaluation.md: projection, stability, quadratic variation, double sampling, interpolation."""

from dataclasses import replace

import pytest
import sympy as sp
import torch
from symbolic import differs, expect, zero

from aid_control import ControlProblem, GaussianPolicy, rollout
from aid_control.evaluation import clstd, ctd_loss, martingale_loss, mstde_loss
from aid_control.evaluation.known_case import LineCritic, sample
from aid_control.features import LinearValue
from aid_control.increments import time_grid
from aid_control.policy import ZeroMean
from aid_control.value import Shifted

t, x, s, y, w, z, theta = sp.symbols("t x s y w z theta", real=True)
T, h, rho, nu, beta = sp.symbols("T h rho nu beta", positive=True)
F64 = torch.float64


def known():
    """The known case: X = W from 0, Psi = x, J = x + theta (T - t) x."""
    return x + theta * (T - t) * x


def integrate(expression, variable=t, low=0, high=T):
    return sp.integrate(sp.expand(expression), (variable, low, high))


def test_equation_6_the_known_case():
    squared = (x + w - known()) ** 2  # G_t = X_t + w, w ~ N(0, T - t)
    loss = integrate(expect(expect(squared, w, 0, T - t), x, 0, t)) / 2
    constant = integrate(T - t) / 2
    projection = integrate(expect((known() - x) ** 2, x, 0, t)) / 2
    assert zero(constant - T**2 / 4) and zero(projection - theta**2 * T**4 / 24)
    assert zero(loss - constant - projection)


def test_equation_6_a_class_without_the_value():
    """X = W, Psi = x^2, discount: the minimiser of ML in J = theta x^2 e^{-rho (T - t)} is the weighted projection."""
    value = sp.exp(-rho * (T - t)) * (x**2 + T - t)
    guess = theta * x**2 * sp.exp(-rho * (T - t))
    realised = sp.exp(-rho * (T - t)) * (x + w) ** 2
    inner = expect(expect((realised - guess) ** 2, w, 0, T - t), x, 0, t)
    loss = sp.integrate(sp.expand(sp.exp(-2 * rho * t) * inner), (t, 0, T)) / 2
    distance = sp.integrate(sp.expand(sp.exp(-2 * rho * t) * expect((value - guess) ** 2, x, 0, t)), (t, 0, T)) / 2
    assert zero(sp.diff(loss - distance, theta))
    (best,) = sp.solve(sp.diff(loss, theta), theta)
    assert zero(best - sp.Rational(7, 6))
    # CTD(0) rests elsewhere: the projected equation is not the projected value
    drift = sp.diff(guess, t) + sp.diff(guess, x, 2) / 2 - rho * guess  # c = 0; the last step carries Psi - J
    moment = sp.exp(-rho * t) * expect(sp.diff(guess, theta) * drift, x, 0, t)
    end = sp.exp(-rho * T) * expect(x**2 * (x**2 - theta * x**2), x, 0, T)
    (rest,) = sp.solve(sp.integrate(sp.expand(moment), (t, 0, T)) + end, theta)
    assert differs(rest - best)


def test_equations_7_and_8_the_matrix_of_ctd_is_positive_on_the_policys_paths():
    """X = x0 + s W with x0 ~ N(0, 1): every epsilon = (T - t) (polynomial of degree 2 in x and of degree 1 in t)."""
    names = sp.symbols("a0:6", real=True)
    basis = (1, x, x**2, t, t * x, t * x**2)
    e = (T - t) * sum(a * b for a, b in zip(names, basis, strict=True))
    size = sp.Symbol("size", positive=True)

    def mean(expression):
        return expect(sp.expand(expression), x, 0, 1 + size**2 * t)

    left = -mean(e * (sp.diff(e, t) + size**2 * sp.diff(e, x, 2) / 2 - rho * e))
    right = mean(rho * e**2 + size**2 * sp.diff(e, x) ** 2) / 2
    start = mean(e**2).subs(t, 0) / 2
    # the integral against e^{-rho t} of left - right is the total derivative of -e^{-rho t} E e^2 / 2
    assert zero(left - right - (rho * mean(e**2) - sp.diff(mean(e**2), t)) / 2)
    assert zero(mean(e**2).subs(t, T))
    numbers = {a: k - 2 for k, a in enumerate(names)} | {size: 2, T: 1, rho: 1}
    both = [sp.integrate(sp.expand((sp.exp(-rho * t) * f).subs(numbers)), (t, 0, 1)) for f in (left, right)]
    assert zero(both[0] - both[1] - start.subs(numbers)) and both[0].evalf() > 0
    # features that do not vanish at T: the anchor is a jump, e^{-rho T} E e^2 more on the left
    f = sp.cancel(e / (T - t))
    left = -mean(f * (sp.diff(f, t) + size**2 * sp.diff(f, x, 2) / 2 - rho * f))
    right = mean(rho * f**2 + size**2 * sp.diff(f, x) ** 2) / 2
    both = [sp.integrate(sp.expand((sp.exp(-rho * t) * g).subs(numbers)), (t, 0, 1)) for g in (left, right)]
    ends = [(sp.exp(-rho * t) * mean(f**2)).subs(numbers).subs(t, at) for at in (0, 1)]
    assert zero(both[0] + ends[1] - both[1] - (ends[0] + ends[1]) / 2)
    # and (7) in the known case
    J = known()  # noqa: N806
    drift = sp.diff(J, t) + sp.diff(J, x, 2) / 2
    assert zero(integrate(expect(sp.diff(J, theta) * drift, x, 0, t)) + theta * T**3 / 6)


def test_equations_11_and_12_the_leading_term_is_the_quadratic_variation():
    """dX = -X dt + k dW from its stationary law, J = theta x^2 + t x: step E (dM)^2 exactly, with c = x^2."""
    k = sp.Symbol("k", positive=True)
    law = k**2 / 2
    fall, spread = sp.exp(-h), law * (1 - sp.exp(-2 * h))
    ahead = x * fall + w  # w ~ N(0, spread)
    dm = sp.exp(-rho * h) * (theta * ahead**2 + (t + h) * ahead) - (theta * x**2 + t * x) + h * x**2
    square = expect(expect(sp.expand(dm**2), w, 0, spread), x, 0, law)
    rate = expect((k * (2 * theta * x + t)) ** 2, x, 0, law)
    assert zero(sp.series(square, h, 0, 2).removeO() - rate * h)  # no constant, and the rate of <M>
    assert differs(sp.diff(square, rho).subs(h, sp.Rational(1, 3)))  # while the cost and the discount are in it
    assert zero(sp.diff(rate, rho))


def test_equation_13_the_flattest_function():
    variation = integrate(sp.diff(known(), x) ** 2)
    assert zero(variation - (T + theta * T**2 + theta**2 * T**3 / 3))
    assert sp.solve(sp.diff(variation, theta), theta) == [-3 / (2 * T)]
    n, k = sp.symbols("n k", positive=True, integer=True)
    dm = known().subs({t: t + h, x: x + w}, simultaneous=True) - known()
    step = expect(expect(sp.expand(dm**2), w, 0, h), x, 0, t)
    total = sp.summation(sp.expand(step.subs(t, k * h).subs(h, T / n)), (k, 0, n - 1))
    (best,) = sp.solve(sp.diff(total, theta), theta)
    assert zero(best + 3 * n / (2 * T * (n + 1)))
    assert float(best.subs({n: 100, T: 1})) == pytest.approx(-1.485, abs=5e-4)


def test_equation_14_two_continuations_have_no_bias():
    def increment(noise):
        return known().subs({t: t + h, x: x + noise}, simultaneous=True) - known()

    product = expect(expect(sp.expand(increment(w) * increment(z)), w, 0, h), z, 0, h)
    mean = expect(sp.expand(increment(w)), w, 0, h)
    assert zero(product - mean**2)
    assert sp.solve(sp.diff(expect(product, x, 0, t), theta), theta) == [0]
    one = expect(sp.expand(increment(w) ** 2), w, 0, h)
    variance = one - mean**2
    assert zero(sp.series(sp.expand(variance), h, 0, 2).removeO() - h * (1 + theta * (T - t)) ** 2)


class Still(ControlProblem):
    """dx = u dt, Psi = |x|^2/2, R = 1."""

    def terminal_cost(self, x, target):
        return 0.5 * x[:, 0].square()


class Parabola(LinearValue):
    """J = x^2 (1 + theta (1 - t)) / 2."""

    def __init__(self):
        super().__init__(1, time_degree=0, degree=0)

    def known(self, t, x):
        return 0.5 * x[:, 0].square()

    def features(self, t, x, context=None, probe=None):
        return 0.5 * (1 - t) * x.square()


def rests(loss, path, shift):
    """theta where the gradient, affine in it, is zero."""
    critic, gradients = Parabola(), []
    for at in (0.0, 1.0):
        with torch.no_grad():
            critic.weights.fill_(at)
        gradients.append(float(torch.autograd.grad(loss(Shifted(critic, shift), path), critic.weights)[0]))
    return -gradients[0] / (gradients[1] - gradients[0])


def test_equation_15_sampled_actions_in_a_deterministic_environment():
    # the variance, d = 2
    g, m, a = (sp.symbols(f"{name}1:3", real=True) for name in "gmz")
    rate = sum(gi * (mi + zi) + beta / 2 * (mi + zi) ** 2 for gi, mi, zi in zip(g, m, a, strict=True))

    def average(expression):
        for zi in a:
            expression = expect(sp.expand(expression), zi, 0, nu)
        return expression

    variance = average(rate**2) - average(rate) ** 2
    page = nu * sum((gi + beta * mi) ** 2 for gi, mi in zip(g, m, strict=True)) + beta**2 * nu**2 * 2 / 2
    assert zero(variance - page)
    assert differs(variance - page + nu)
    # the example: h averages to -theta x^2/2 (lambda cancels), grad J = x (1 + theta (1 - t)), x ~ N(0, 1)
    limit = sp.integrate(sp.expand(theta**2 * 3 / 4 + nu * (1 + theta * s) ** 2), (s, 0, 1))
    (best,) = sp.solve(sp.diff(limit, theta), theta)
    assert zero(best + nu / (sp.Rational(3, 2) + 2 * nu / 3))
    # rollouts of the package; quantiles in the place of random starts
    start = torch.special.ndtri((torch.arange(10_000, dtype=F64) + 0.5) / 10_000)[:, None]
    policy, grid = GaussianPolicy(ZeroMean(), lambda t: 1.0), time_grid(1.0, steps=100)
    for mode, wanted, allowed in (("sampled", float(best.subs(nu, 1)), 0.02), ("averaged", 0.0, 1e-9)):
        path = rollout(Still(), policy, start, grid, target=(), mode=mode, noise=torch.Generator().manual_seed(1))
        assert abs(rests(mstde_loss, path, 0.5) - wanted) < allowed, mode
        for loss in (ctd_loss, martingale_loss):
            assert abs(rests(loss, path, 0.5)) < 0.04, (mode, loss)


def interpolated(path, n):
    """n sub-steps between two states, on straight lines."""
    grid = time_grid(float(path.times[-1]), steps=len(path) * n)
    ends = zip(path.states[:-1], path.states[1:], strict=True)
    states = [a + (b - a) * (i / n) for a, b in ends for i in range(n)] + path.states[-1:]
    nothing = [torch.zeros_like(path.terminal)] * (len(grid) - 1)
    probes = [None] * len(nothing)
    return replace(path, times=grid, states=states, probes=probes, means=nothing, actions=nothing, costs=nothing)


def test_equation_16_interpolated_paths_know_the_future():
    # one coarse step of dW: sum over i of (xi + xi' i w / n) (M' w / n), xi' and M' the slopes in x
    n, i = sp.symbols("n i", positive=True, integer=True)
    xi, slope, other = sp.symbols("xi slope other", real=True)
    inside = sp.summation(sp.expand((xi + slope * i * w / n) * other * w / n), (i, 0, n - 1))
    assert zero(expect(sp.expand(inside), w, 0, h) - slope * other * h * (1 - 1 / n) / 2)
    # the known case
    J = known()  # noqa: N806
    half = integrate((T - t) * sp.diff(J, x)) / 2  # half of <xi, M>, xi = (T - t) x
    assert zero(half - T**2 / 4 - theta * T**3 / 6)
    (rest,) = sp.solve(-theta * T**3 / 6 + (1 - 1 / n) * half, theta)
    assert zero(rest - 3 * (n - 1) / (2 * T))
    path = sample(1.0, 10_000, 100, 3)
    for parts in (2, 4):
        fine = interpolated(path, parts)
        found = float(clstd(Shifted(LineCritic(1.0)), fine))
        assert abs(found - 1.5 * (parts - 1)) < 0.15, parts
        variation = sum(float((b - a).square().mean()) for a, b in zip(fine.states[:-1], fine.states[1:], strict=True))
        assert variation == pytest.approx(1 / parts, rel=0.02)
    assert abs(float(clstd(Shifted(LineCritic(1.0)), path))) < 0.05
