"""docs/explanation/art.md: the error density, the best clock, its randomised form, and the example in one dimension."""

import math

import pytest
import sympy as sp
from scipy.integrate import quad
from scipy.optimize import brentq
from symbolic import differs, expect, hard_min, soft_min, tau, zero

t, T, psi, s, r = sp.symbols("t T psi s r", positive=True)
x, h, theta = sp.symbols("x h theta", real=True)


def test_equation_2_the_local_error_of_euler():
    """x(psi + h) - (x + h F) = h^2 Q / 2 + O(h^3), and Q is the derivative of F along itself."""
    path, field = sp.Function("path"), sp.Function("F")
    Q = sp.diff(field(x, psi), x) * field(x, psi) + sp.diff(field(x, psi), psi)
    along = sp.diff(field(path(psi), psi), psi).subs(sp.diff(path(psi), psi), field(path(psi), psi)).doit()
    assert zero(along.subs(path(psi), x).doit() - Q)
    exact = x * sp.exp(h) + psi * (sp.exp(h) - 1) + sp.exp(h) - 1 - h  # dx/dpsi = x + psi
    error = sp.series(exact - x - h * (x + psi), h, 0, 4).removeO()
    assert zero(error.coeff(h, 1)) and zero(error.coeff(h, 2) - ((x + psi) + 1) / 2)


def test_equation_4_minimiser_and_hjb():
    slope, gamma = sp.symbols("slope gamma", real=True)  # V_x . F + V_psi
    q = sp.Symbol("q", positive=True)
    bracket = q * theta**2 + gamma * theta + theta * slope
    best = -(slope + gamma) / (2 * q)
    assert zero(sp.diff(bracket, theta).subs(theta, best))
    assert zero(hard_min(bracket, [theta]) + (slope + gamma) ** 2 / (4 * q))
    # the papers' sign: maximise -q theta^2 - gamma theta + theta slope of -V
    assert zero(sp.diff(-q * theta**2 - gamma * theta + theta * slope, theta).subs(theta, (slope - gamma) / (2 * q)))


def test_equation_5_value_and_feedback_for_any_density():
    """Along one path, q(psi) arbitrary: V = I^2 / (T - t) solves (4) with gamma = 0."""
    q = sp.Function("q", positive=True)
    rest = sp.Integral(sp.sqrt(q(r)), (r, psi, T))
    value = rest**2 / (T - t)
    slope = sp.diff(value, psi)
    assert zero(sp.diff(value, t) - slope**2 / (4 * q(psi)))
    feedback = rest / ((T - t) * sp.sqrt(q(psi)))
    assert zero(feedback + slope / (2 * q(psi)))
    ratio = rest / (T - t)
    assert zero(sp.diff(ratio, t) + feedback * sp.diff(ratio, psi))  # constant along the clock
    assert differs((sp.diff(value, t) + slope**2 / (4 * q(psi))).subs(q(psi), psi).subs(rest, 2))
    # multiplier: q theta^2 is constant (= c^2), costate p of psi: p' = -q' theta^2, p(T) = 0, 2 q theta + p + gamma = 0
    c = sp.Symbol("c", positive=True)
    clock = c / sp.sqrt(q(psi))
    gamma = -2 * q(T) * clock.subs(psi, T)
    costate = -gamma - 2 * q(psi) * clock
    assert zero(costate.subs(psi, T))
    assert zero(sp.diff(costate, psi) * clock + sp.diff(q(psi), psi) * clock**2)


def cost(power, end=3.0):
    """int q theta^2 dt with q = (1 + s^2)^(-3/2), theta = c (1 + s^2)^power, clock horizon 1."""
    normaliser = quad(lambda a: (1 + a * a) ** -power, 0, end)[0]
    return normaliser * quad(lambda a: (1 + a * a) ** (power - 1.5), 0, end)[0]


def test_equation_5_is_a_minimum():
    best = quad(lambda a: (1 + a * a) ** -0.75, 0, 3)[0] ** 2  # I(0)^2
    assert cost(0.75) == pytest.approx(best, rel=1e-10)
    assert all(cost(power) > best * (1 + 1e-6) for power in (-0.5, 0, 0.5, 0.7, 0.8, 1, 1.5))


def test_equations_6_and_7_the_randomised_clock():
    mu, slope, Vt = sp.symbols("mu slope Vt", real=True)
    q, lam = sp.symbols("q lam", positive=True)
    assert zero(expect(q * theta**2, theta, mu, lam / q) - q * mu**2 - lam)
    bracket = q * theta**2 + theta * slope
    averaged = expect(bracket, theta, mu, lam / q)
    best = -slope / (2 * q)
    (rate,) = sp.solve(Vt + bracket.subs(theta, best), Vt)
    assert zero(sp.diff(averaged, mu).subs(mu, best))
    assert zero(rate - lam + averaged.subs(mu, best))  # d/dt of V + lam (T - t), and of V - lam t
    assert differs(rate + lam + averaged.subs(mu, best))
    log_density = -((theta - best) ** 2) / (2 * lam / q)
    assert zero(sp.diff(bracket + 2 * lam * log_density, theta))
    assert differs(sp.diff(bracket + lam * log_density, theta))


def test_an_entropy_term_changes_the_optimum():
    """Soft minimum: the extra term -(tau/2) log(pi tau / q) moves with psi unless q is constant."""
    q, shift = sp.Function("q", positive=True), sp.Function("shift")
    rest = sp.Integral(sp.sqrt(q(r)), (r, psi, T))
    value = rest**2 / (T - t)
    Q, slope = sp.symbols("Q slope", positive=True)
    soft = soft_min(Q * theta**2 + theta * slope, [theta])
    assert zero(soft + slope**2 / (4 * Q) + tau / 2 * sp.log(sp.pi * tau / Q))
    residual = sp.diff(value + shift(t), t) + soft.subs({Q: q(psi), slope: sp.diff(value, psi)})
    assert zero(residual - sp.diff(shift(t), t) + tau / 2 * sp.log(sp.pi * tau / q(psi)))
    assert sp.simplify(sp.diff(residual, psi).subs(q(psi), 1 + psi).doit()) != 0  # no shift(t) can cancel it
    assert sp.simplify(sp.diff(residual.subs(q(psi), 2), psi)) == 0


def test_equation_8_the_flow_of_the_example():
    level = T - psi
    path = x * sp.sqrt(1 + level**2)
    field = -s * x / (1 + s**2)
    assert zero(sp.diff(path, psi) - field.subs({x: path, s: level}, simultaneous=True))
    Q = sp.diff(field, x) * field - sp.diff(field, s)  # d/dpsi = -d/ds
    assert zero(Q - x / (1 + s**2) ** 2)
    assert differs(sp.diff(field, x) * field + sp.diff(field, s) - x / (1 + s**2) ** 2)
    assert zero(sp.diff(path, psi, 2) - Q.subs({x: path, s: level}, simultaneous=True))
    assert zero(sp.diff(path, psi, 2) - x * (1 + level**2) ** sp.Rational(-3, 2))
    # (D - x) / s, and the law: N(0, 1 + s^2) solves the heat equation of dx = sqrt(2 s) dw
    assert zero((x / (1 + s**2) - x) / s - field)
    density = sp.exp(-(x**2) / (2 * (1 + s**2))) / sp.sqrt(2 * sp.pi * (1 + s**2))
    assert zero(sp.diff(density, s) - s * sp.diff(density, x, 2))


def test_equation_9_the_best_clock():
    q = (1 + s**2) ** sp.Rational(-3, 2)
    assert sp.simplify(sp.diff(sp.sqrt(q) * (1 + s**2) ** sp.Rational(3, 4), s)) == 0
    assert differs(sp.diff(sp.sqrt(q) * (1 + s**2) ** sp.Rational(1, 2), s))


END = 3.0


def levels(power, steps):
    """Equal steps of int (1 + s^2)^-power ds, from END to 0."""

    def length(level):
        return quad(lambda a: (1 + a * a) ** -power, 0, level)[0]

    total = length(END)
    inner = [
        brentq(lambda level, n=n: length(level) - total * (1 - n / steps), 0, END, xtol=1e-14) for n in range(1, steps)
    ]
    return [END, *inner, 0.0]


def rule(steps, last=0.0, rho=7):
    """s^(1/rho) falls linearly to ``last``."""
    high, low = END ** (1 / rho), last ** (1 / rho)
    return [(high + n / steps * (low - high)) ** rho for n in range(steps + 1)]


def distance(grid):
    """(10)."""
    deviation = math.sqrt(1 + grid[0] ** 2)
    for here, after in zip(grid, grid[1:], strict=False):
        deviation *= 1 - (here - after) * here / (1 + here**2)
    return abs(1 - deviation)


STEPS = (2, 5, 10, 20, 50, 100)


@pytest.mark.parametrize(
    ("grid", "printed"),
    [
        (lambda n: levels(0.75, n), (0.349, 0.149, 0.077, 0.039, 0.016, 0.008)),
        (lambda n: levels(0.0, n), (0.465, 0.212, 0.110, 0.057, 0.023, 0.012)),
        (rule, (0.662, 0.316, 0.174, 0.091, 0.037, 0.019)),
        (lambda n: [*rule(n - 1, 0.002), 0.0], (0.682, 0.265, 0.128, 0.063, 0.025, 0.012)),
        (lambda n: levels(1.0, n), (0.342, 0.146, 0.075, 0.038, 0.015, 0.008)),
    ],
    ids=["art", "uniform", "rho 7 to zero", "edm", "power one"],
)
def test_the_table(grid, printed):
    assert [distance(grid(n)) for n in STEPS] == pytest.approx(printed, abs=5.1e-4)


def limit(speed):
    """(11), for a speed that need not be normalised."""
    total = quad(lambda a: 1 / speed(a), 0, END)[0]
    return 0.5 * total * quad(lambda a: (1 + a * a) ** -2 * speed(a), 0, END)[0]


def test_equation_11_the_limits():
    n = 3200
    assert limit(lambda a: 1.0) == pytest.approx(1.162, abs=5e-4)
    assert n * distance([END * (1 - i / n) for i in range(n + 1)]) == pytest.approx(limit(lambda a: 1.0), rel=2e-3)
    assert limit(lambda a: a ** (6 / 7)) == pytest.approx(1.902, abs=5e-4)
    assert n * distance(rule(n)) == pytest.approx(limit(lambda a: a ** (6 / 7)), rel=2e-3)
    # EDM's grid: the last step, from 0.002, does not shrink; without its error, 0.002^2 / 2, there is a limit too
    tail = quad(lambda a: (1 + a * a) ** -2 * a ** (6 / 7), 0.002, END)[0]
    edm = 3.5 * (END ** (1 / 7) - 0.002 ** (1 / 7)) * tail
    assert edm == pytest.approx(1.233, abs=5e-4)
    assert n * (distance([*rule(n - 1, 0.002), 0.0]) - 0.002**2 / 2) == pytest.approx(edm, rel=2e-3)
    assert limit(lambda a: (1 + a * a) ** 0.75) == pytest.approx(0.800, abs=5e-4)
    best = math.atan(END) ** 2 / 2
    assert limit(lambda a: 1 + a * a) == pytest.approx(best, rel=1e-10) and best == pytest.approx(0.780, abs=5e-4)
    tangent = [math.tan(math.atan(END) * (1 - i / n)) for i in range(n + 1)]  # the levels of 1 + s^2
    assert n * distance(tangent) == pytest.approx(best, rel=2e-3)
    assert limit(lambda a: (1 + a * a) ** 0.75) / best == pytest.approx(1.025, abs=1e-3)
    # an error made at s shrinks by (1 + s^2)^(-1/2): the weight of (11) is q times that, and its best speed 1 + s^2
    assert all(limit(lambda a, p=p: (1 + a * a) ** p) > best for p in (0.5, 0.9, 1.1, 1.5))
