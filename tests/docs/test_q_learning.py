"""docs/explanation/q-learning.md: the advantage rate, its constraints, the joint martingale, improvement, LQ."""

import math

import pytest
import sympy as sp
import torch
from symbolic import differs, expect, soft_min, tau, zero

from aid_control.features import LinearMean
from aid_control.improvement import GaussianAdvantage

x, u, k, k1 = sp.symbols("x u k k1", real=True)
a, b, c, d = sp.symbols("a b c d", real=True)  # dX = (a X + b A) dt + (c X + d A) dW + s dW_2
s, rho, nu, nu1, Q, R, h = sp.symbols("s rho nu nu1 Q R h", positive=True)


def growth(gain):
    """E X^2 grows at this rate under A ~ N(gain X, .)."""
    return 2 * (a + b * gain) + (c + d * gain) ** 2


def log_density(mean, variance):
    return -((u - mean) ** 2) / (2 * variance) - sp.log(2 * sp.pi * variance) / 2


def value(gain, variance):
    """J of N(gain x, variance) for ever: P x^2/2 + constant, as P and the constant."""
    p = (Q + R * gain**2) / (rho - growth(gain))
    entropy = (1 + sp.log(2 * sp.pi * variance)) / 2
    return p, ((R + d**2 * p) * variance / 2 + s**2 * p / 2 - tau * entropy) / rho


def rate(p, constant):
    """q = L^a J + cost - rho J of J = p x^2/2 + constant."""
    diffusion = (c * x + d * u) ** 2 + s**2
    return (a * x + b * u) * p * x + diffusion * p / 2 + (Q * x**2 + R * u**2) / 2 - rho * (p * x**2 / 2 + constant)


def test_equation_2_the_big_q_is_the_value_plus_dt_times_the_rate():
    """The action held for h: moments of the linear equation in closed form, then the first two terms in h."""
    p, level, left = sp.symbols("p level", real=True)[:2] + (sp.Symbol("left", positive=True),)
    mean = sp.exp(a * left) * (x + b * u / a) - b * u / a
    # additive noise only, so that E X^2 is mean^2 + variance
    variance = s**2 * (sp.exp(2 * a * left) - 1) / (2 * a)
    assert zero(sp.diff(mean, left) - a * mean - b * u) and zero(sp.diff(variance, left) - 2 * a * variance - s**2)
    running = sp.exp(-rho * left) * (Q * (mean**2 + variance) + R * u**2) / 2
    end = sp.exp(-rho * left) * (p * (mean**2 + variance) / 2 + level)
    start = p * x**2 / 2 + level
    assert zero(end.subs(left, 0) - start)
    first = running.subs(left, 0) + sp.diff(end, left).subs(left, 0)  # d/dh of the big Q at h = 0
    q = rate(p, level).subs({c: 0, d: 0})
    assert zero(first - q)
    assert differs(first - q - rho * start)
    second = sp.diff(running, left).subs(left, 0) + sp.diff(end, left, 2).subs(left, 0)
    assert differs(second)  # what is left out is of second order, and there


def test_equation_4_the_evaluation_constraint_and_its_sign():
    q = rate(*value(k, nu))
    assert zero(expect(q + tau * log_density(k * x, nu), u, k * x, nu))
    assert differs(expect(q - tau * log_density(k * x, nu), u, k * x, nu))


def test_equation_5_the_soft_constraint_at_the_optimum():
    """-tau log int exp(-q/tau) da = 0 at the stationary point, and nowhere else along the gains."""
    p = sp.Symbol("p", positive=True)
    S = R + d**2 * p
    best = -(b + c * d) * p / S  # the minimiser of q is best * x
    # the Riccati equation gives Q; the constant of the soft-optimal policy N(best x, tau/S)
    weight = rho * p - (2 * a + c**2) * p + (b + c * d) ** 2 * p**2 / S
    constant = (s**2 * p / 2 - tau / 2 * sp.log(2 * sp.pi * tau / S)) / rho
    q = rate(p, constant).subs(Q, weight)
    assert zero(soft_min(q, [u]))
    assert zero(q + tau * log_density(best * x, tau / S))  # pi = exp(-q/tau)
    # the same constant by evaluation of that policy
    assert zero(rho * constant - ((S * tau / S + s**2 * p) / 2 - tau * (1 + sp.log(2 * sp.pi * tau / S)) / 2))
    # a policy that is not optimal satisfies (4), and its soft minimum is negative
    numbers = {a: -0.5, b: 1.0, c: 0.2, d: 0.3, s: 0.4, rho: 1.0, Q: 1.0, R: 0.5, tau: 0.3}
    off = rate(*value(k, nu)).subs(numbers | {k: -0.2, nu: 0.9})
    assert sp.N(soft_min(off, [u]).subs(tau, 0.3).subs(x, 1.1)) < -0.01


def test_equation_7_the_drift_of_the_joint_process():
    """On one Euler step: E[delta | x, a] is (q^J - q) Dt + O(Dt^2), whatever the behaviour, and zero for q of (12)."""
    p, level, w = sp.symbols("p level w", real=True)
    guess = sp.Function("guess")(x, u)
    end = x + h * (a * x + b * u) + sp.sqrt(h) * (c * x + d * u) * w
    fall = sp.exp(-rho * h)
    ahead = expect(sp.expand(p * end**2 / 2 + level), w, 0, 1)
    cost = (Q * x**2 + R * u**2) / 2
    delta = fall * ahead - (p * x**2 / 2 + level) + (cost - guess) * h
    q = rate(p, level).subs(s, 0)
    assert zero(sp.diff(delta, h).subs(h, 0) - (q - guess))
    exact = cost + (fall * ahead - (p * x**2 / 2 + level)) / h
    assert zero(delta.subs(guess, exact))
    assert zero(sp.limit(exact.subs(rho, 0) - q.subs(rho, 0), h, 0))


def discounted_average(f, gain, variance):
    """E int e^{-rho s} f(X_s) ds under N(gain X, variance) for f = f0 + f2 x^2."""
    f = sp.expand(f)
    f2 = f.coeff(x, 2)
    f0 = f - f2 * x**2
    return f0 / rho + f2 * (x**2 + (s**2 + d**2 * variance) / rho) / (rho - growth(gain))


NUMBERS = {a: sp.Rational(-1, 2), b: 1, c: sp.Rational(1, 5), d: sp.Rational(3, 10), s: sp.Rational(2, 5), rho: 1}
NUMBERS |= {Q: 1, R: sp.Rational(1, 2), k: sp.Rational(-1, 5), nu: sp.Rational(9, 10)}


def test_equation_8_the_difference_of_two_policies():
    """The new policy stays symbols, the rest is rational numbers."""
    old, new = [term.subs(NUMBERS) for term in value(k, nu)], value(k1, nu1)
    gap = (new[0] - old[0]) * x**2 / 2 + new[1] - old[1]
    integrand = expect(rate(*old) + tau * log_density(k1 * x, nu1), u, k1 * x, nu1)
    assert zero((gap - discounted_average(integrand, k1, nu1)).subs(NUMBERS))
    assert differs((gap + discounted_average(integrand, k1, nu1)).subs(NUMBERS))
    assert differs((gap - discounted_average(integrand, k, nu)).subs(NUMBERS))  # along the new policy, not the old


def test_equations_9_and_10_the_gibbs_policy_of_q_costs_less_by_a_divergence():
    p, constant = (term.subs(NUMBERS) for term in value(k, nu))
    q = rate(p, constant).subs(NUMBERS)
    S = NUMBERS[R] + NUMBERS[d] ** 2 * p
    gain, spread = NUMBERS[k], tau / S
    better = gain - (NUMBERS[b] * p + NUMBERS[R] * gain + NUMBERS[d] * (NUMBERS[c] + NUMBERS[d] * gain) * p) / S
    assert zero(soft_min(q, [u]) - (q + tau * log_density(better * x, spread)))  # pi' is the Gibbs policy of q
    rates = expect(q + tau * log_density(better * x, spread), u, better * x, spread)

    def divergence(ratio):  # KL(N(gain x, nu) | N(better x, spread)), ratio = nu/spread
        return (-sp.log(ratio) + ratio + (gain - better) ** 2 * x**2 / spread - 1) / 2

    right, wrong = divergence(NUMBERS[nu] / spread), divergence(spread / NUMBERS[nu])
    assert zero(rates + tau * right)
    assert differs(rates + tau * wrong) and differs(rates - tau * right)
    new = [term.subs(NUMBERS) for term in value(better, spread)]
    fall = (new[0] - p) * x**2 / 2 + new[1] - constant
    wanted = -(tau * discounted_average(right, better, spread)).subs(NUMBERS)
    at = {tau: sp.Rational(3, 10), x: sp.Rational(11, 10)}
    assert abs(sp.N((fall - wanted).subs(at))) < 1e-12 and sp.N(fall.subs(at)) < -0.01


@pytest.mark.parametrize("m", [1, 2])
def test_equation_11_the_gaussian_form_is_normalised(m):
    controls, means = sp.symbols("a1 a2", real=True)[:m], sp.Matrix(sp.symbols("m1 m2", real=True)[:m])
    entries = [[sp.Symbol("f1", positive=True), 0], sp.symbols("f21 f2", positive=True)]
    factor = sp.Matrix(entries)[:m, :m]
    precision, gap = factor * factor.T, sp.Matrix(controls) - means
    logdet = 2 * sum(sp.log(factor[i, i]) for i in range(m))
    q = (gap.T * precision * gap)[0] / 2 + tau / 2 * (m * sp.log(2 * sp.pi * tau) - logdet)
    assert zero(soft_min(q, controls))
    assert differs(soft_min(q - tau * logdet, controls))
    # the module of the code, at one point
    net = GaussianAdvantage(LinearMean(1, m, 0), 0.3, m)
    with torch.no_grad():
        net.mean.weights.fill_(0.2)
        net.factor.copy_(torch.tensor([[0.3, 9.0], [-0.4, -0.1]], dtype=torch.float64)[:m, :m])
    row = torch.full((1, 1), 0.7, dtype=torch.float64)
    action = torch.tensor([[0.5, -1.1]], dtype=torch.float64)[:, :m]
    values = {tau: 0.3, factor[0, 0]: math.exp(0.3)} | dict(zip(controls, action[0].tolist(), strict=True))
    if m == 2:
        values |= {factor[1, 0]: -0.4, factor[1, 1]: math.exp(-0.1)}
    values |= {symbol: 0.2 * 1.7 for symbol in means}
    assert float(net(torch.tensor(0.0), row, action).detach()) == pytest.approx(float(q.subs(values)), rel=1e-12)


def test_equation_13_policy_iteration_is_newton_and_its_fixed_point_is_the_optimum():
    """(13) keeps the gain of the Riccati equation; the gap of the next gain is quadratic in the present one."""
    numbers = {name: number for name, number in NUMBERS.items() if name not in (k, nu)}
    p = value(k, nu)[0].subs(numbers)
    S = numbers[R] + numbers[d] ** 2 * p
    slope = numbers[b] * p + numbers[R] * k + numbers[d] * (numbers[c] + numbers[d] * k) * p
    step = k - slope / S
    best = sp.nsolve(sp.diff(p, k), k, -0.5)
    assert abs(step.subs(k, best) - best) < 1e-12
    gaps = [abs(sp.N(step.subs(k, best + sp.Float(g)) - best)) for g in (1e-2, 1e-3)]
    assert 80 < gaps[0] / gaps[1] < 120
