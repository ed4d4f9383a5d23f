"""docs/explanation/mean-variance.md: multiplier, value, policy, Sharpe ratios, daily trades; against `zoo`."""

import math

import pytest
import sympy as sp
import torch
from symbolic import differs, expect, hard_min, soft_min, tau, zero

from aid_control.lq import AffineGaussian, LQProblem, evaluate, riccati, scheme_value, zoo

F64 = torch.float64
x, u = sp.symbols("x u", real=True)
t, T, h, k, sigma, w, z, x0 = sp.symbols("t T h k sigma w z x0", positive=True)
left = T - t


def test_equation_3_the_variance_with_a_multiplier():
    mean, spread = sp.symbols("mean spread", positive=True)
    square = expect((x - w) ** 2, x, mean, spread)  # any law with these moments
    assert zero((square - (w - z) ** 2 - spread).subs(mean, z))
    assert differs((square + (w - z) ** 2 - spread).subs(mean, z))


def hamiltonian(value):
    return sigma * k * u * sp.diff(value, x) + sigma**2 * u**2 * sp.diff(value, x, 2) / 2


def test_equation_4_the_riccati_equation_of_the_problem():
    P = 2 * sp.exp(-(k**2) * left)
    value = P * (x - w) ** 2 / 2
    assert zero(-sp.diff(P, t) + (sigma * k * P) ** 2 / (sigma**2 * P)) and P.subs(t, T) == 2
    assert zero(sp.diff(value, t) + hard_min(hamiltonian(value), [u]))
    assert zero(sp.diff(hamiltonian(value), u).subs(u, -k / sigma * (x - w)))


def constant():
    return tau / 2 * left * sp.log(sigma**2 / (sp.pi * tau)) - tau * k**2 / 4 * left**2


def test_equation_5_the_constant():
    S = sigma**2 * 2 * sp.exp(-(k**2) * left)
    assert zero(-sp.diff(constant(), t) + tau / 2 * sp.log(2 * sp.pi * tau / S))
    assert constant().subs(t, T) == 0
    assert differs(-sp.diff(constant(), t) - tau / 2 * sp.log(2 * sp.pi * tau / S))


def value_6(logarithm):
    value = (x - w) ** 2 * sp.exp(-(k**2) * left) + tau * k**2 / 4 * (T**2 - t**2)
    return value - tau / 2 * (k**2 * T - logarithm) * left - (w - z) ** 2


def test_equation_6_the_exploratory_value_and_the_misprint():
    value = value_6(sp.log(sigma**2 / (sp.pi * tau)))
    assert zero(value - (x - w) ** 2 * sp.exp(-(k**2) * left) + (w - z) ** 2 - constant())
    assert zero(sp.diff(value, t) + soft_min(hamiltonian(value), [u]))
    assert zero(value.subs(t, T) - (x - w) ** 2 + (w - z) ** 2)
    misprint = value_6(sp.log(sigma**2 * sp.pi * tau))
    assert differs(sp.diff(misprint, t) + soft_min(hamiltonian(misprint), [u]))
    assert zero(sp.diff(misprint, t) + soft_min(hamiltonian(misprint), [u]) + tau * sp.log(sp.pi * tau))


def test_equation_7_is_the_gibbs_policy():
    value = value_6(sp.log(sigma**2 / (sp.pi * tau)))
    variance = tau / (2 * sigma**2) * sp.exp(k**2 * left)
    log_density = -((u + k / sigma * (x - w)) ** 2) / (2 * variance)
    assert zero(sp.diff(hamiltonian(value) + tau * log_density, u))
    assert differs(sp.diff(hamiltonian(value) + tau * log_density.subs(k**2, -(k**2)), u))


def multiplier():
    return (z * sp.exp(k**2 * T) - x0) / (sp.exp(k**2 * T) - 1)


def test_equations_8_and_9_moments_of_terminal_wealth():
    y = sp.Symbol("y", real=True)
    control = -k / sigma * y
    drift, noise = sigma * k * control, sigma * control
    assert zero(drift + k**2 * y) and zero(2 * y * drift + noise**2 + k**2 * y**2)  # generators of y and y^2
    theta = sp.exp(-(k**2) * T)
    mean = w + (x0 - w) * theta
    assert zero(mean.subs(w, multiplier()) - z)
    assert differs(mean.subs(w, (z * sp.exp(k**2 * T) + x0) / (sp.exp(k**2 * T) - 1)) - z)
    variance = ((x0 - w) ** 2 * theta * (1 - theta)).subs(w, multiplier())
    assert sp.simplify(variance - (z - x0) ** 2 / (sp.exp(k**2 * T) - 1)) == 0
    assert zero(sp.diff(mean, w) - (1 - theta))


def test_proposition_2_the_density_of_the_bound():
    """Z = exp(-k W_T - k^2 T / 2): Z times the law of W_T is N(-k T, T), and E Z^2 = exp(k^2 T)."""
    density = sp.exp(-(x**2) / (2 * T)) / sp.sqrt(2 * sp.pi * T)
    Z = sp.exp(-k * x - k**2 * T / 2)
    assert sp.simplify(Z * density / density.subs(x, x + k * T)) == 1
    assert sp.simplify(Z**2 * density / density.subs(x, x + 2 * k * T)) == sp.exp(k**2 * T)
    # attained: Z is affine in the optimal y_T = y_0 exp(-k W_T - 3 k^2 T / 2), by Ito for dy = -k y (k dt + dW)
    factor = sp.exp(-k * x - 3 * k**2 * T / 2)
    assert zero(sp.diff(factor, T) + sp.diff(factor, x, 2) / 2 + k**2 * factor) and zero(
        sp.diff(factor, x) + k * factor
    )
    assert sp.simplify(sp.diff(factor / Z, x)) == 0


def test_equation_10_the_cost_of_exploring():
    added = sigma**2 * tau / (2 * sigma**2) * sp.exp(k**2 * left)
    assert zero(sp.integrate(sp.simplify(sp.exp(-(k**2) * left) * added), (t, 0, T)) - tau * T / 2)
    problem, temperature = zoo.mean_variance(0.3, 0.2, 0.02), 0.1
    best, y = riccati(problem, temperature), torch.tensor([[-0.5]], dtype=F64)
    policies = (best.policy, best.policy.deterministic())
    exploring, mean = (evaluate(problem, policy)(0.0, y).item() for policy in policies)
    assert exploring - mean == pytest.approx(temperature / 2, rel=1e-9)


def test_equation_11_one_step_of_a_held_control():
    dw, y = sp.symbols("dw y", real=True)
    after = y + sigma * u * (k * h + dw)
    square = expect(after**2, dw, 0, h)
    best = -k * y / (sigma * (1 + k**2 * h))
    assert zero(sp.diff(square, u).subs(u, best)) and sp.diff(square, u, 2).is_positive
    assert zero(square.subs(u, best) - y**2 / (1 + k**2 * h))
    assert zero(expect(after, dw, 0, h).subs(u, best) - y / (1 + k**2 * h))
    assert differs(square.subs(u, -k * y / sigma) - y**2 / (1 + k**2 * h))  # the gain of continuous time is not it
    n = sp.Symbol("n", positive=True)
    assert sp.limit((1 + k**2 * T / n) ** n, n, sp.oo) == sp.exp(k**2 * T)


TABLE = [  # mu, sigma, w, (9), (12), while exploring
    (0.3, 0.2, 1.466, 2.47, 2.46, 1.45),
    (0.3, 0.3, 1.688, 1.18, 1.18, 0.98),
    (0.5, 0.4, 1.524, 1.79, 1.79, 1.27),
    (-0.3, 0.2, 1.434, 3.45, 3.43, 1.59),
    (-0.1, 0.1, 1.524, 1.79, 1.79, 1.27),
    (0.1, 0.2, 3.705, 0.42, 0.42, 0.41),
]


def ratio(mean, second, start, goal):
    """Sharpe ratio of x = w + y from E y_T and E y_T^2."""
    return (goal + mean - start) / math.sqrt(second - mean**2)


@pytest.mark.parametrize(("mu", "vol", "multiple", "best", "daily", "exploring"), TABLE)
def test_the_table(mu, vol, multiple, best, daily, exploring):
    """By the formulas, and by exact evaluation of E y_T and E y_T^2 as costs of the package's problem."""
    start, goal, rate, temperature, n = 1.0, 1.4, 0.02, 0.1, 252
    price = (mu - rate) / vol
    growth = math.exp(price**2)
    target = (goal * growth - start) / (growth - 1)
    formulas = (
        target,
        math.sqrt(growth - 1),
        math.sqrt((1 + price**2 / n) ** n - 1),
        (goal - start) / math.sqrt((goal - start) ** 2 / (growth - 1) + temperature / 2),
    )
    assert tuple(round(a, d) for a, d in zip(formulas, (3, 2, 2, 2), strict=True)) == (multiple, best, daily, exploring)

    line, square = (LQProblem(0.0, mu - rate, R=0.0, D=vol, **c) for c in ({"g": 1.0}, {"G": 2.0}))
    warm = riccati(zoo.mean_variance(mu, vol, rate), temperature).policy
    y = torch.full((1, 1), start - target, dtype=F64)
    for policy, wanted in ((warm.deterministic(), formulas[1]), (warm, formulas[3])):
        moments = [evaluate(p, policy, rtol=1e-10)(0.0, y).item() for p in (line, square)]
        assert target + moments[0] == pytest.approx(goal, rel=1e-9)
        assert ratio(*moments, start, target) == pytest.approx(wanted, rel=1e-7)

    theta = (1 + price**2 / n) ** -n
    target = (goal / theta - start) / (1 / theta - 1)
    held = AffineGaussian.constant([[-price / (vol * (1 + price**2 / n))]])
    y, grid = torch.full((1, 1), start - target, dtype=F64), torch.linspace(0, 1, n + 1, dtype=F64)
    moments = [scheme_value(p, held, grid, "mean")(0.0, y).item() for p in (line, square)]
    assert target + moments[0] == pytest.approx(goal, rel=1e-9)
    assert ratio(*moments, start, target) == pytest.approx(formulas[2], rel=1e-9)


def test_section_8_two_stocks():
    b, vol = torch.tensor([0.08, -0.05], dtype=F64), torch.tensor([[0.2, 0.0], [0.1, 0.3]], dtype=F64)
    columns = vol.mT[:, None, :]  # D_j = (j-th column of sigma)', one row: (n, d, m)
    zeros = torch.zeros(2, 2, dtype=F64)
    problem, temperature = LQProblem(0.0, b[None], R=zeros, D=columns, G=2.0, horizon=1.5), 0.3
    solution, inverse = riccati(problem, temperature), torch.linalg.inv(vol @ vol.mT)
    square = float(b @ inverse @ b)
    at = torch.tensor(0.4, dtype=F64)
    gain, _, covariance = solution.policy.law(at)
    assert solution.value.terms(0.4)[0].item() == pytest.approx(2 * math.exp(-square * 1.1), rel=1e-9)
    assert torch.allclose(gain[:, 0], -inverse @ b, rtol=1e-9)
    assert torch.allclose(covariance, temperature / 2 * inverse * math.exp(square * 1.1), rtol=1e-9)
