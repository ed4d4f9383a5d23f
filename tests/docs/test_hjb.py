"""docs/explanation/hjb.md: completing the square, the cost of a wrong control, Pontryagin, the toy."""

import sympy as sp
from symbolic import differs, zero

t, x, r, T = sp.symbols("t x r T", real=True)
a, beta = sp.symbols("a beta", positive=True)
c = sp.symbols("c", real=True)


def test_equation_6_the_hamiltonian_is_its_minimum_plus_a_square():
    u = sp.Matrix(sp.symbols("u1 u2", real=True))
    p = sp.Matrix(sp.symbols("p1 p2", real=True))
    gain = sp.Matrix(2, 2, sp.symbols("B11 B12 B21 B22", real=True))
    half = sp.Matrix([[sp.Symbol("l1", positive=True), 0], sp.symbols("l21 l2", positive=True)])
    weight = half * half.T  # any positive definite R
    rest = sp.Symbol("rest", real=True)  # p.b + tr(ss'Y)/2 + f

    def hamiltonian(w):
        return rest + (p.T * gain * w)[0] + (w.T * weight * w)[0] / 2

    best = -weight.inv() * gain.T * p
    square = ((u - best).T * weight * (u - best))[0] / 2
    assert zero(hamiltonian(u) - hamiltonian(best) - square)
    assert zero(hamiltonian(best) - rest + (p.T * gain * weight.inv() * gain.T * p)[0] / 2)
    assert differs(hamiltonian(u) - hamiltonian(best) + square)


def test_equation_7_a_wrong_control_costs_its_distance_from_the_best_one():
    """dX = u dt + s dW, cost (x^2 + u^2)/2 + x_T^2/2: P = 1 is stationary, V = x^2/2 + s^2 (T - t)/2, u* = -x."""
    s, k, q = sp.symbols("s k q", positive=True)
    value = x**2 / 2 + s**2 * (T - t) / 2
    assert zero(sp.diff(value, t) + x**2 / 2 - sp.diff(value, x) ** 2 / 2 + s**2 * sp.diff(value, x, 2) / 2)
    # the control u = -k x + q, k != 1: E X_r = mean, E X_r^2 = second, from their linear equations, left = r - t
    left = sp.Symbol("left", positive=True)
    mean = q / k + (x - q / k) * sp.exp(-k * left)
    spread = s**2 * (1 - sp.exp(-2 * k * left)) / (2 * k)
    assert zero(sp.diff(mean, left) + k * mean - q) and zero(sp.diff(spread, left) + 2 * k * spread - s**2)
    second = mean**2 + spread
    control = k**2 * second - 2 * k * q * mean + q**2  # E u^2
    gap = (1 - k) ** 2 * second + 2 * (1 - k) * q * mean + q**2  # E (u + x)^2
    span = sp.Symbol("span", positive=True)
    cost = sp.integrate(sp.expand((second + control) / 2), (left, 0, span)) + second.subs(left, span) / 2
    excess = sp.integrate(sp.expand(gap / 2), (left, 0, span))
    assert zero(sp.expand(cost - value.subs(t, T - span) - excess))


def toy():
    """F, G and V of equation (9)."""
    flow = sp.exp(-a * (T - t)) * x
    authority = (1 - sp.exp(-2 * a * (T - t))) / (2 * a)
    return flow, authority, (flow - c) ** 2 / (2 * (1 + authority / beta))


def test_equation_9_solves_the_hjb_equation():
    flow, authority, value = toy()
    gradient = sp.diff(value, x)
    assert zero(sp.diff(value, t) - a * x * gradient - gradient**2 / (2 * beta))
    assert zero(value.subs(t, T) - (x - c) ** 2 / 2)
    assert zero(-gradient / beta + sp.exp(-a * (T - t)) * (flow - c) / (beta + authority))
    assert zero(sp.limit(-gradient / beta, beta, 0, "+") + sp.exp(-a * (T - t)) * (flow - c) / authority)


def test_equation_8_the_gradient_along_the_optimal_path_is_the_costate():
    _, _, value = toy()
    gradient = sp.diff(value, x)
    speed = -a * x - gradient / beta
    along = sp.diff(gradient, t) + sp.diff(gradient, x) * speed  # d/dt of grad V(t, X_t)
    assert zero(along - a * gradient)  # -(d_x b)' p = a p
    assert zero(gradient.subs(t, T) - (x - c))
