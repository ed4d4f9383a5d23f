"""docs/explanation/policy-gradient.md: the differentiated equation, the grid, Gaussian policies, variance."""

import math

import pytest
import sympy as sp
import torch
from symbolic import differs, expect, tau, zero

from aid_control import GaussianPolicy, rollout
from aid_control.improvement import policy_gradient_loss
from aid_control.lq import AffineGaussian, LQProblem, scheme_value
from aid_control.noise import generator
from aid_control.value import Shifted

x, u, k = sp.symbols("x u k", real=True)
a, b, c, d = sp.symbols("a b c d", real=True)  # dX = (a X + b A) dt + (c X + d A) dW + s dW_2
s, rho, nu, Q, R, h = sp.symbols("s rho nu Q R h", positive=True)
loop = 2 * (a + b * k) + (c + d * k) ** 2  # E X^2 grows at this rate under A ~ N(k X, nu)
P = (Q + R * k**2) / (rho - loop)
S = R + d**2 * P
entropy_cost = -(1 + sp.log(2 * sp.pi * nu)) / 2  # E log pi
constant = (S * nu / 2 + s**2 * P / 2 + tau * entropy_cost) / rho
J = P * x**2 / 2 + constant


def log_pi(mean=k * x, variance=nu):
    return -((u - mean) ** 2) / (2 * variance) - sp.log(2 * sp.pi * variance) / 2


def generator_of(f):
    """L^a f, at the action u."""
    return (a * x + b * u) * sp.diff(f, x) + ((c * x + d * u) ** 2 + s**2) * sp.diff(f, x, 2) / 2


def rate():
    """q + tau log pi at the action u."""
    return generator_of(J) - rho * J + Q * x**2 / 2 + R * u**2 / 2 + tau * log_pi()


def averaged(f):
    return expect(f, u, k * x, nu)


def test_equation_2_the_value_of_the_scalar_policy():
    assert zero(averaged(rate()))
    assert differs(averaged(rate() + tau * log_pi()))


@pytest.mark.parametrize("weight", [k, nu])
def test_equations_3_and_4_the_derivative_solves_the_linear_equation(weight):
    """g is the average of score times (q + tau log pi); the term of tau d log pi is zero.

    P is a symbol here, with Q from its equation: the polynomials stay small.
    """
    p, left = sp.symbols("p left", positive=True)
    given = {rho: left + loop, Q: left * p - R * k**2}
    by_weight = sp.diff(R * k**2 + loop * p, weight) / left  # dP/dweight, from (rho - loop) P = Q + R k^2
    level = (R + d**2 * p) * nu / 2 + s**2 * p / 2 + tau * entropy_cost  # rho times the constant
    slope = by_weight * x**2 / 2 + (sp.diff(level, weight) + sp.diff(level, p) * by_weight) / rho
    score = sp.diff(log_pi(), weight)
    assert zero(averaged(score))
    rates = generator_of(p * x**2 / 2) - rho * p * x**2 / 2 - level + Q * x**2 / 2 + R * u**2 / 2 + tau * log_pi()
    assert zero(averaged(rates).subs(given))
    g = averaged(score * rates)
    assert zero((averaged(generator_of(slope)) - rho * slope + g).subs(given))
    assert differs((averaged(generator_of(slope)) - rho * slope - g).subs(given))


def test_equation_12_the_gradient_of_the_lq_problem_in_closed_form():
    """E int e^{-rho s} g ds, with E int e^{-rho s} X^2 ds = (x^2 + (s^2 + d^2 nu)/rho)/(rho - loop)."""
    second = (x**2 + (s**2 + d**2 * nu) / rho) / (rho - loop)
    slope = b * P + R * k + d * (c + d * k) * P  # dH/da at the mean is slope * x
    assert zero(sp.diff(J, k) - slope * second)
    assert zero(sp.diff(J, nu) - (S - tau / nu) / (2 * rho))
    assert differs(sp.diff(J, k) - (b * P + R * k) * second)  # without the control in the noise
    assert differs(sp.diff(J, nu) - (R - tau / nu) / (2 * rho))


def test_equations_9_and_8_on_a_grid_the_formula_is_exact():
    """Two steps of a scalar problem without noise; every derivative, any Dt, and baselines that may and may not be."""
    acts, (first, second), G = sp.symbols("a0 a1", real=True), sp.symbols("x1 x2", real=True), sp.Symbol("G")

    def mean_of(f, z, at):  # the policy N(k x, nu) of one step
        return expect(f, z, k * at, nu)

    def logs(z, at):
        return -((z - k * at) ** 2) / (2 * nu) - sp.log(2 * sp.pi * nu) / 2

    def cost(z, at):
        return h * (Q * at**2 / 2 + R * z**2 / 2 + tau * logs(z, at))

    fall = sp.Symbol("fall", positive=True)  # e^{-rho h}
    move = [x + h * (a * x + b * acts[0]), first + h * (a * first + b * acts[1])]
    end = G * second**2 / 2
    ahead = mean_of(cost(acts[1], first) + fall * end.subs(second, move[1]), acts[1], first)  # J_1(x1)
    start = mean_of(cost(acts[0], x) + fall * ahead.subs(first, move[0]), acts[0], x)  # J_0(x)
    deltas = [
        fall * ahead.subs(first, move[0]) - start + cost(acts[0], x),
        fall * end.subs(second, move[1]) - ahead + cost(acts[1], first),
    ]

    def sum_of(now, later):
        """E[now delta_0 + e^{-rho h} later delta_1], the later step first."""
        tail = mean_of(later * deltas[1], acts[1], first)
        return mean_of(now * deltas[0] + fall * tail.subs(first, move[0]), acts[0], x)

    for weight in (k, nu):
        scores = [sp.diff(logs(acts[0], x), weight), sp.diff(logs(acts[1], first), weight)]
        assert zero(sp.diff(start, weight) - sum_of(*scores))
        # a function of the past is free, one that knows the present action is not
        assert zero(sum_of(3 * x, first**2 - x * acts[0]))
        assert differs(sum_of(acts[0], 0))


def two_dimensional():
    """e = F z with z standard normal, Sigma = F F'; expectations one coordinate after the other."""
    z = sp.Matrix(sp.symbols("z1 z2", real=True))
    factor = sp.Matrix([[sp.Symbol("f1", positive=True), 0], sp.symbols("f21 f2", positive=True)])

    def mean(f):
        return expect(expect(f, z[0], 0, 1), z[1], 0, 1)

    return z, factor, mean


def test_equation_10_the_gaussian_score():
    z, factor, mean = two_dimensional()
    m1, m2 = sp.symbols("m1 m2", real=True)
    action, covariance = sp.Matrix(sp.symbols("a1 a2", real=True)), factor * factor.T
    gap = action - sp.Matrix([m1, m2])
    inverse = covariance.inv()
    log_density = -(gap.T * inverse * gap)[0] / 2 - sp.log(factor[0, 0] * factor[1, 1]) - sp.log(2 * sp.pi)
    by_mean = inverse * gap
    by_covariance = (inverse * gap * gap.T * inverse - inverse) / 2
    assert zero(sp.diff(log_density, m1) - by_mean[0]) and zero(sp.diff(log_density, m2) - by_mean[1])
    for symbol in factor.free_symbols:  # through Sigma(symbol): the trace of the derivative with dSigma
        assert zero(sp.diff(log_density, symbol) - (by_covariance * sp.diff(covariance, symbol)).trace())
    at = dict(zip(action, sp.Matrix([m1, m2]) + factor * z, strict=True))
    assert all(zero(mean(entry.subs(at))) for entry in [*by_mean, *by_covariance])


def test_equation_11_the_integrand_of_gaussian_policies():
    """A rate q0 + g.e + e'Se/2 + tau log pi has the averages g and (S - tau Sigma^{-1})/2."""
    z, factor, mean = two_dimensional()
    e, inverse = factor * z, (factor * factor.T).inv()
    slope, level = sp.Matrix(sp.symbols("g1 g2", real=True)), sp.Symbol("q0", real=True)
    r11, r12, r22 = sp.symbols("S11 S12 S22", real=True)
    curvature = sp.Matrix([[r11, r12], [r12, r22]])
    logs = -(z.T * z)[0] / 2 - sp.log(2 * sp.pi * factor[0, 0] * factor[1, 1])
    rates = level + slope.dot(e) + (e.T * curvature * e)[0] / 2 + tau * logs
    assert all(zero(mean(v * rates) - g) for v, g in zip(inverse * e, slope, strict=True))
    found = ((inverse * e * e.T * inverse - inverse) / 2).applyfunc(lambda v: mean(sp.expand(v * rates)))
    assert all(zero(v) for v in found - (curvature - tau * inverse) / 2)
    assert any(differs(v) for v in found - (curvature + tau * inverse) / 2)


def one_step():
    """delta of one step from x under the action k x + e, exact value ahead: its part of order sqrt(Dt)."""
    e, w, w2 = sp.symbols("e w w2", real=True)
    root, gain = sp.symbols("root p", positive=True)  # root is sqrt(Dt), gain the value's P
    action = k * x + e
    end = x + root**2 * (a * x + b * action) + root * ((c * x + d * action) * w + s * w2)

    def mean(f):
        return expect(expect(expect(f, w2, 0, 1), w, 0, 1), e, 0, nu)

    raw = sp.expand(gain * end**2 / 2 + root**2 * R * action**2 / 2)
    delta = sp.expand(raw - mean(raw))
    assert zero(delta.coeff(root, 0))  # so that the square begins with Dt times the square of this:
    return e, gain, delta.coeff(root, 1), mean


def test_equation_13_the_variance_a_step_stays_finite():
    """E[(score delta)^2] = Dt E[score^2 |sigma' grad J|^2] + O(Dt^2)."""
    e, gain, leading, mean = one_step()
    square = mean((e / nu) ** 2 * leading**2)
    bracket = ((c * x + d * (k * x + e)) ** 2 + s**2) * (gain * x) ** 2
    assert zero(square - mean((e / nu) ** 2 * bracket))
    assert zero(square.subs(d, 0) - ((c * x) ** 2 + s**2) * (gain * x) ** 2 / nu)
    assert differs(square - mean(bracket) / nu)  # score and noise are dependent where the control is in the noise


def test_equation_14_the_best_test_function_of_the_state():
    e, gain, leading, mean = one_step()
    parts = [mean((e / nu) ** i * leading**2) for i in (0, 1)]  # of E[(score + zeta)^2 delta^2], its derivative in zeta
    best = -parts[1] / parts[0]
    fixed = (c + d * k) * x  # the noise at the mean
    assert zero(best + 2 * d * fixed / (fixed**2 + d**2 * nu + s**2))
    assert zero(best.subs(d, 0))  # nothing to be had where the noise is free of the control


def test_the_loss_of_the_code_has_the_gradient_of_equation_12():
    """Fine grid, long horizon, exact critic: the page's number within sampling error and the step's bias."""
    numbers = {a: -0.5, b: 1.0, c: 0.0, d: 0.0, s: 0.4, rho: 1.0, nu: 0.5, Q: 1.0, R: 0.5, k: -0.4, tau: 0.2, x: 1.5}
    exact = float(sp.diff(J, k).subs(numbers))
    lq = LQProblem(-0.5, 1.0, Q=1.0, R=0.5, s=[[0.4]], discount=1.0, horizon=6.0)
    grid = torch.linspace(0, 6, 91, dtype=torch.float64)
    fixed = AffineGaussian.constant([[-0.4]], None, 0.5)
    values = [scheme_value(lq, fixed, grid[i:], "sampled", 0.2) for i in range(len(grid) - 1)]

    class Critic(torch.nn.Module):
        def forward(self, t, x, context=None, probe=None):
            return values[int((grid - t).abs().argmin())](0.0, x)

    gain = torch.tensor(-0.4, dtype=torch.float64, requires_grad=True)
    policy = GaussianPolicy(lambda t, x, context, probe: gain * x, lambda t: 0.5)
    found = []
    for seed in range(16):
        start = torch.full((500, 1), 1.5, dtype=torch.float64)
        with torch.no_grad():
            path = rollout(
                lq, policy, start, grid, target=(), mode="sampled", noise=generator(seed), entropy=seed, temperature=0.2
            )
        found.append(float(torch.autograd.grad(policy_gradient_loss(policy, Shifted(Critic()), path), gain)[0]))
    mean = sum(found) / len(found)
    error = math.sqrt(sum((f - mean) ** 2 for f in found) / (len(found) - 1) / len(found))
    print(f"page {exact:.4f}, code {mean:.4f} +- {error:.4f}")
    assert abs(mean - exact) < 4 * error + 0.05 * abs(exact) and error < 0.05 * abs(exact)
