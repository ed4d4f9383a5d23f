"""docs/explanation/exploratory.md: averaged coefficients, the Gibbs principle, the cost of a wrong policy, entropy."""

import math

import numpy as np
import pytest
import sympy as sp
import torch
from scipy.integrate import quad, solve_ivp
from symbolic import differs, expect, hard_min, soft_min, tau, zero

from aid_control.hjb import in_control
from aid_control.lq import AffineGaussian, LQProblem, evaluate, riccati

t, x, u, z, h, T = sp.symbols("t x u z h T", real=True)
v = sp.Symbol("v", positive=True)


def test_equation_3_one_sampled_step_has_no_error_of_first_order():
    """dX = (a x + B u) dt + (C x + D u) dW, A ~ N(phi x, v), and w = p x^2 + k solving the averaged equation."""
    a, B, C, D, phi = sp.symbols("a B C D phi", real=True)  # noqa: N806 - the page's letters
    p, k = sp.Function("p")(t), sp.Function("k")(t)
    w = p * x**2 + k
    # the averaged generator: drift and sigma^2 are averaged, not sigma
    drift, square = a * x + B * phi * x, expect((C * x + D * u) ** 2, u, phi * x, v)
    generator = sp.expand(drift * sp.diff(w, x) + square * sp.diff(w, x, 2) / 2)
    slopes = {p: -generator.coeff(x, 2), k: -generator.coeff(x, 0)}

    def local_error(sampled):
        """E w(t + h, X_{t + h}) - w(t, x) of an Euler step, w expanded to first order in time."""
        if sampled:
            moved = x + (a * x + B * u) * h + (C * x + D * u) * z
            second = expect(expect(sp.expand(moved**2), z, 0, h), u, phi * x, v)
        else:
            second = (x + drift * h) ** 2 + square * h
        return sp.expand((p + h * slopes[p]) * second + k + h * slopes[k] - w)

    error = local_error(True)
    assert zero(error.coeff(h, 0)) and zero(error.coeff(h, 1))
    # sampling adds B v B' h^2 to the covariance of the step, and nothing else of that order
    assert zero((error - local_error(False)).coeff(h, 2) - B**2 * v * p)
    # sigma averaged in the place of sigma^2 would leave out D^2 v: an error of first order
    wrong = expect(C * x + D * u, u, phi * x, v) ** 2
    assert zero(square - wrong - D**2 * v)


def test_the_limit_has_its_own_brownian_motion():
    """dX = u dW with A ~ N(0, 1): E X_T^2 -> T although E X_T W_T = 0; with sigma averaged on W both would be T."""
    n = sp.Symbol("n", positive=True, integer=True)
    square = expect(expect(u**2 * z**2, z, 0, h), u, 0, 1)
    with_w = expect(expect(u * z**2, z, 0, h), u, 0, 1)
    assert zero((n * square).subs(h, T / n) - T) and with_w == 0


def test_one_draw_for_all_times_does_not_average_out():
    """dX = u dt: Var X_T is v T delta for independent draws and v T^2 for a single one."""
    n = 8
    delta = sp.Rational(1, n) * T
    draws = sp.symbols(f"e:{n}", real=True)
    independent, shared = sum(delta * e for e in draws), sum(delta * draws[0] for _ in draws)

    def variance(total):
        out = sp.expand(total**2)
        for e in draws:
            out = expect(out, e, 0, v)
        return out

    assert zero(variance(independent) - v * T * delta)
    assert zero(variance(shared) - v * T**2)


def test_equation_6_gibbs_identity_for_a_hamiltonian_that_is_not_quadratic():
    temperature, limit = 0.6, 12.0

    def energy(a):
        return a**4 / 4 + a**2 / 2 - 1.3 * a

    def density(a):  # a mixture of two Gaussians
        parts = ((0.3, -1.0, 0.5), (0.7, 0.8, 0.3))
        return sum(w * math.exp(-((a - m) ** 2) / (2 * s * s)) / (s * math.sqrt(2 * math.pi)) for w, m, s in parts)

    def integral(f):
        return quad(f, -limit, limit, epsabs=1e-13, epsrel=1e-13, limit=400)[0]

    partition = integral(lambda a: math.exp(-energy(a) / temperature))
    gibbs = -temperature * math.log(partition)

    def times_log(p, a):
        return p * math.log(p) if p > 0 else 0.0

    left = integral(lambda a: energy(a) * density(a)) + temperature * integral(lambda a: times_log(density(a), a))
    divergence = integral(
        lambda a: (
            density(a) * (math.log(density(a)) + energy(a) / temperature + math.log(partition))
            if density(a) > 0
            else 0.0
        )
    )
    assert left == pytest.approx(gibbs + temperature * divergence, abs=1e-9)
    assert divergence > 0.05 and left > gibbs + 0.03
    # the other order of the arguments is not it
    reverse = integral(
        lambda a: (
            math.exp(-energy(a) / temperature)
            / partition
            * (-energy(a) / temperature - math.log(partition) - math.log(max(density(a), 1e-300)))
        )
    )
    assert abs(reverse - divergence) > 0.01


def test_equation_7_the_coefficients_are_the_derivatives_of_the_hamiltonian():
    """S and g by the formula against automatic differentiation of the package's own problem."""
    gen = torch.Generator().manual_seed(3)
    d, m, n = 3, 2, 2

    def normal(*shape):
        return torch.randn(*shape, generator=gen, dtype=torch.float64)

    B, D, C, shift = normal(d, m), normal(n, d, m), normal(n, d, d), normal(n, d)  # noqa: N806 - the page's letters
    problem = LQProblem(normal(d, d), B, R=torch.eye(m), C=C, D=D, s=shift, G=torch.eye(d))
    at, p, root = normal(1, d), normal(1, d), normal(d, d)
    Y = root + root.T  # noqa: N806 - symmetric, of any sign
    found = in_control(problem, torch.tensor(0.2), at, p, Y[None], m)
    c = torch.einsum("nij,j->ni", C, at[0]) + shift
    S = torch.eye(m) + sum(D[j].T @ Y @ D[j] for j in range(n))  # noqa: N806
    g = B.T @ p[0] + sum(D[j].T @ Y @ c[j] for j in range(n))
    assert torch.allclose(found.hessian[0], S, atol=1e-12) and torch.allclose(found.linear[0], g, atol=1e-12)


def test_equations_8_and_9_for_one_control():
    h0, g, mu = sp.symbols("h0 g mu", real=True)
    S, w = sp.symbols("S w", positive=True)  # noqa: N806
    energy = h0 + g * u + S * u**2 / 2
    assert zero(soft_min(energy, [u]) - hard_min(energy, [u]) + tau / 2 * sp.log(2 * sp.pi * tau / S))
    partition = sp.integrate(sp.exp(-energy / tau), (u, -sp.oo, sp.oo))
    assert zero(-tau * sp.log(partition) - soft_min(energy, [u]))
    log_pi = -((u - mu) ** 2) / (2 * w) - sp.log(2 * sp.pi * w) / 2
    divergence = expect(log_pi + energy / tau, u, mu, w) - soft_min(energy, [u]) / tau
    formula = S * (mu + g / S) ** 2 / 2 + tau / 2 * (S * w / tau - 1 - sp.log(S * w / tau))
    assert zero(tau * divergence - formula)
    assert differs(tau * divergence - formula.subs(tau, 2 * tau))


def test_equation_10_a_wrong_policy_costs_its_divergence():
    """dX = u dt + s dW, cost (x^2 + u^2)/2 + x_T^2/2; pi = N(-k x + q, w)."""
    s, k, q, w, span, left = sp.symbols("s k q w span left", positive=True)
    value = x**2 / 2 + (s**2 - tau * sp.log(2 * sp.pi * tau)) * (T - t) / 2
    energy = sp.diff(value, x) * u + s**2 * sp.diff(value, x, 2) / 2 + x**2 / 2 + u**2 / 2
    assert zero(sp.diff(value, t) + soft_min(energy, [u]))  # (5)
    # moments of the averaged state, from their linear equations
    mean = q / k + (x - q / k) * sp.exp(-k * left)
    spread = s**2 * (1 - sp.exp(-2 * k * left)) / (2 * k)
    assert zero(sp.diff(mean, left) + k * mean - q) and zero(sp.diff(spread, left) + 2 * k * spread - s**2)
    second = mean**2 + spread
    control = k**2 * second - 2 * k * q * mean + q**2 + w
    entropy = -sp.log(2 * sp.pi * w) / 2 - sp.Rational(1, 2)  # int pi log pi
    rate = sp.expand((second + control) / 2) + tau * entropy
    cost = sp.integrate(sp.expand(rate), (left, 0, span)) + second.subs(left, span) / 2
    distance = (1 - k) ** 2 * second + 2 * (1 - k) * q * mean + q**2  # E (mu - u*)^2
    divergence = distance / 2 + tau / 2 * (w / tau - 1 - sp.log(w / tau))  # (9) with S = 1
    excess = sp.integrate(sp.expand(divergence), (left, 0, span))
    gap = sp.expand(cost - value.subs(t, T - span) - excess)
    assert zero(gap)
    assert differs(gap + excess)


def test_equation_10_with_control_in_the_noise():
    """The cost by the package's linear equation, the divergence along moments of the policy's own state."""
    tau_, span, x0 = 0.4, 1.0, 0.7
    c = {"A": 0.3, "B": 1.1, "b": 0.2, "Q": 0.8, "R": 0.6, "C": 0.3, "D": 0.5, "s": 0.4, "G": 0.9, "g": -0.3}
    matrices = {n: [[[c[n]]]] for n in ("C", "D")} | {n: [c[n]] for n in ("b", "g")} | {"s": [[c["s"]]]}
    problem = LQProblem(**{n: [[c[n]]] for n in ("A", "B", "Q", "R", "G")}, **matrices, horizon=span, discount=0.5)
    best = riccati(problem, tau_)
    gain, offset, w = -0.4, 0.5, 0.9
    policy = AffineGaussian.constant([[gain]], [offset], w)
    at = torch.tensor([[x0]], dtype=torch.float64)
    left = float(evaluate(problem, policy, tau_)(0.0, at) - best.value(0.0, at))

    def rate(r, y):
        first, second, _ = y
        loop, push = c["A"] + c["B"] * gain, c["B"] * offset + c["b"]
        steep, level = c["C"] + c["D"] * gain, c["D"] * offset + c["s"]
        noise = steep**2 * second + 2 * steep * level * first + level**2 + c["D"] ** 2 * w
        k, kappa, sigma = (float(a) for a in best.policy.law(torch.tensor(r, dtype=torch.float64)))
        curvature = tau_ / sigma
        dk, dq = gain - k, offset - kappa
        distance = dk**2 * second + 2 * dk * dq * first + dq**2
        share = curvature * w / tau_
        divergence = curvature * distance / 2 + tau_ / 2 * (share - 1 - math.log(share))
        return [loop * first + push, 2 * (loop * second + push * first) + noise, math.exp(-0.5 * r) * divergence]

    done = solve_ivp(rate, (0, span), [x0, x0**2, 0.0], method="DOP853", rtol=1e-11, atol=1e-12)
    assert left > 0.1
    assert done.y[2, -1] == pytest.approx(left, rel=1e-8)
    # S = R in the place of R + D^2 P would be seen
    assert abs(float(best.policy.law(torch.tensor(0.0))[2]) - tau_ / c["R"]) > 0.05


def test_equation_11_the_price_does_not_depend_on_the_curvature():
    g, h0, rho = sp.symbols("g h0 rho", real=True)
    S = sp.Symbol("S", positive=True)  # noqa: N806
    energy = h0 + g * u + S * u**2 / 2
    assert zero(expect(energy, u, -g / S, tau / S) - hard_min(energy, [u]) - tau / 2)
    price = tau / 2 * (1 - sp.exp(-rho * (T - t))) / rho
    assert zero(sp.diff(price, t) - rho * price + tau / 2)
    assert zero(sp.limit(price, rho, 0) - tau / 2 * (T - t))
    positive = sp.Symbol("positive", positive=True)
    assert zero(sp.limit(price.subs(rho, positive), T, sp.oo) - tau / (2 * positive))


def test_equation_12_entropy_has_a_sign_and_a_unit():
    mu = sp.Symbol("mu", real=True)
    c = sp.Symbol("c", positive=True)

    def negative_entropy(variance):
        log_pi = -((u - mu) ** 2) / (2 * variance) - sp.log(2 * sp.pi * variance) / 2
        return expect(log_pi, u, mu, variance)

    assert zero(negative_entropy(v) + sp.log(2 * sp.pi * sp.E * v) / 2)
    assert zero(negative_entropy(v / c**2) - negative_entropy(v) - sp.log(c))
    assert differs(negative_entropy(v / c**2) - negative_entropy(v) + sp.log(c))
    threshold = 1 / (2 * math.pi * math.e)
    around = [float(negative_entropy(v).subs(v, f * threshold)) for f in (0.99, 1.01)]
    assert around[0] > 0 > around[1]
    assert threshold == pytest.approx(0.0585, abs=5e-5)
    # in two dimensions: log det of the covariance
    root = np.array([[0.7, 0.0], [0.4, 1.3]])
    law = torch.distributions.MultivariateNormal(torch.zeros(2), scale_tril=torch.tensor(root, dtype=torch.float32))
    sign, logdet = np.linalg.slogdet(2 * np.pi * np.e * root @ root.T)
    assert float(law.entropy()) == pytest.approx(logdet / 2, rel=1e-6)
