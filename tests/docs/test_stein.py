"""docs/explanation/stein.md: the lemma, the form on the grid, general steps, noise in the control, variances, bias."""

import pytest
import sympy as sp
import torch
from symbolic import differs, expect, zero

from aid_control import GaussianPolicy, rollout
from aid_control.improvement import antithetic_targets, stein_targets
from aid_control.lq import AIDToy, LQProblem
from aid_control.noise import generator
from aid_control.value import Shifted

F64 = torch.float64
x, e, m, z = sp.symbols("x e m z", real=True)
nu, h, R, rho = sp.symbols("nu h R rho", positive=True)  # h is Dt
normal = sp.exp(-(z**2) / 2) / sp.sqrt(2 * sp.pi)


def mean_of(f, names, variance=1):
    for name in names:
        f = expect(f, name, 0, variance)
    return sp.expand(f)


def test_equation_1_the_scalar_lemma_and_the_step_in_its_proof():
    y = sp.Symbol("y", positive=True)
    tail = sp.integrate(z * normal, (z, y, sp.oo))
    assert zero(tail - normal.subs(z, y))  # the density is the integral of z times itself over the tail
    for g in (z**5 - 2 * z**2 + 3 * z, z**3):
        assert zero(expect(z * g, z, 0, 1) - expect(sp.diff(g, z), z, 0, 1))
    # a kink is allowed, a jump is not: the positive part, and its derivative the step
    ramp = [sp.integrate(f * normal, (z, 0, sp.oo)) for f in (z * z, sp.Integer(1))]
    assert zero(ramp[0] - ramp[1])
    jump = sp.integrate(z * normal, (z, 0, sp.oo))
    assert differs(jump)  # E[z g(z)] where E g'(z) = 0


def test_equation_2_any_covariance():
    zs, point = sp.symbols("z1 z2", real=True), sp.symbols("y1 y2", real=True)
    factor = sp.Matrix([[sp.Symbol("f1", positive=True), 0], sp.symbols("f21 f2", positive=True)])
    gap = factor * sp.Matrix(zs)
    at = dict(zip(point, gap + sp.Matrix(sp.symbols("m1 m2", real=True)), strict=True))
    g = point[0] ** 3 * point[1] - 2 * point[0] * point[1] + point[1] ** 2
    left = (factor * factor.T).inv() * gap * g.subs(at, simultaneous=True)
    for i in range(2):
        assert zero(mean_of(left[i], zs) - mean_of(sp.diff(g, point[i]).subs(at, simultaneous=True), zs))


def quartic(at):
    return sum(sp.Symbol(f"c{i}", real=True) * at**i for i in range(5))


def test_equation_3_the_form_on_the_grid():
    """Scalar, gain B, discount, Brownian noise free of the control; any quartic critic, any V_k and running cost."""
    B, b, s, w, now, f = sp.symbols("B b s w Vk f", real=True)
    root = sp.sqrt(h)
    end, fall = x + h * (b + B * (m + e)) + s * root * w, sp.Symbol("fall", positive=True)
    delta = fall * quartic(end) - now + (f + R / 2 * (m + e) ** 2) * h

    def mean(g):
        return expect(expect(g, w, 0, 1), e, 0, nu)

    left = mean(sp.expand(e / nu * delta))
    slope = sp.diff(quartic(x), x).subs(x, end)
    assert zero(left - h * (fall * B * mean(sp.expand(slope)) + R * m))
    assert differs(left - h * (fall * mean(sp.expand(slope)) + R * m))  # the gain belongs there


def test_equation_4_a_general_step_and_heun():
    """E[e V(F(m + e))]/nu = E[F' V'(F)]; for Heun the derivative of the step needs that of the drift."""
    B = sp.Symbol("B", real=True)

    def drift(y):  # not linear
        return y**2 / 2

    action = m + e
    inner = x + h * (drift(x) + B * action)
    step = x + h / 2 * (drift(x) + drift(inner)) + h * B * action
    assert zero(sp.diff(step, e) - h * (1 + h / 2 * inner) * B)  # (1 + (Dt/2) b'(inner)) Dt B
    value = x**2 / 2 + x**3 / 3
    left = expect(sp.expand(e / nu * value.subs(x, step)), e, 0, nu)
    slope = sp.diff(value, x).subs(x, step)
    assert zero(left - expect(sp.expand(sp.diff(step, e) * slope), e, 0, nu))
    assert differs(left - expect(sp.expand(h * B * slope), e, 0, nu))  # Euler's form leaves out a term


def test_equation_5_control_in_the_noise_brings_the_hessian():
    B, b, C, D, s, w = sp.symbols("B b C D s w", real=True)
    p1, p2 = sp.symbols("p1 p2", real=True)
    column = C * x + D * (m + e) + s
    end = x + h * (b * x + B * (m + e)) + sp.sqrt(h) * column * w
    value = p1 * end + p2 * end**2 / 2

    def mean(g):
        return expect(expect(sp.expand(g), w, 0, 1), e, 0, nu)

    left = mean(e / nu * value)
    right = h * mean(B * (p1 + p2 * end) + D * p2 * column)
    assert zero(left - right)
    assert differs(left - h * mean(B * (p1 + p2 * end)))
    # the code refuses it
    lq = LQProblem(0.1, 1.0, R=1.0, D=[[[0.5]]], G=1.0)
    with pytest.raises(ValueError, match="expected D = 0"):
        lq.response(torch.tensor(0.0), torch.ones(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64))


def test_equation_6_the_target_minimises_cost_plus_costate():
    u, p, B, fall = sp.symbols("u p B fall", real=True)
    target = sp.solve(sp.diff(R * u**2 / 2 + fall * p * B * u, u), u)[0]
    assert zero(target + fall * B * p / R)
    # and R Dt (m - w) is the integrand of (3)
    assert zero(R * h * (m - target) - h * (fall * B * p + R * m))


def parts(d=2):
    """A quadratic value one step ahead seen from the mean: V = p.e Dt + e'He Dt^2/2 with H = B'YB."""
    zs = sp.symbols("z1 z2", real=True)[:d]
    slope = sp.Matrix(sp.symbols("p1 p2", real=True)[:d])
    h11, h12, h22 = sp.symbols("H11 H12 H22", real=True)
    return zs, sp.Matrix(zs), slope, sp.Matrix([[h11, h12], [h12, h22]])


def total_variance(vector, zs):
    return sum(mean_of(sp.expand(v * v), zs) - mean_of(v, zs) ** 2 for v in vector)


def test_equation_7_the_variances_of_the_three_forms():
    zs, z, slope, hessian = parts()
    root = sp.Symbol("root", positive=True)  # sqrt(nu), e = root z
    stein = h * (slope + h * root * hessian * z)
    assert zero(total_variance(stein, zs) - h**4 * root**2 * (hessian * hessian).trace())
    gap = h * root * slope.dot(z)  # the odd part of V(x + h B e)
    pair = z / root * gap
    assert [zero(mean_of(v, zs) - h * p) for v, p in zip(pair, slope, strict=True)] == [True, True]
    assert zero(total_variance(pair, zs) - 3 * h**2 * slope.dot(slope))  # d + 1
    assert differs(total_variance(pair, zs) - 2 * h**2 * slope.dot(slope))


def test_equation_8_the_variance_is_bounded_by_the_curvature():
    """In Hermite polynomials g = sum a_n He_n: Var g = sum n! a_n^2 and E g'^2 = sum n n! a_n^2, n >= 1."""
    weights = sp.symbols("w0:5", real=True)
    hermite = [sp.Integer(1), z, z**2 - 1, z**3 - 3 * z, z**4 - 6 * z**2 + 3]
    g = sum(w * p for w, p in zip(weights, hermite, strict=True))
    variance = expect(g**2, z, 0, 1) - expect(g, z, 0, 1) ** 2
    assert zero(variance - sum(sp.factorial(n) * w**2 for n, w in enumerate(weights) if n))
    bound = expect(sp.diff(g, z) ** 2, z, 0, 1)
    assert zero(bound - variance - sum((n - 1) * sp.factorial(n) * w**2 for n, w in enumerate(weights) if n))


def test_equation_9_both_forms_share_the_bias_and_exploration_smooths_it():
    """A ripple eps cos(q x) on the critic: its gradient is eps q, of which exp(-q^2 nu Dt^2/2) is left."""
    q, eps = sp.symbols("q eps", positive=True)
    spread = sp.Symbol("spread", positive=True)  # sqrt(nu) Dt, the standard deviation of X_{k+1}
    ripple = eps * sp.cos(q * (x + spread * z))
    score = sp.integrate(sp.expand(z * sp.expand(ripple, trig=True)) * normal, (z, -sp.oo, sp.oo)) / spread
    stein = sp.integrate(sp.expand(sp.diff(ripple, x), trig=True) * normal, (z, -sp.oo, sp.oo))
    page = -eps * q * sp.sin(q * x) * sp.exp(-(q**2) * spread**2 / 2)
    assert sp.simplify(score - page) == 0 and sp.simplify(stein - page) == 0


class Exact(torch.nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.problem = problem

    def forward(self, t, x, context, probe):
        return self.problem.value(t, x, context)


def test_equations_6_and_7_are_what_the_code_does():
    """First step of the toy in three dimensions: the two targets' variances against the page."""
    problem, d, n, lamda, dt = AIDToy(), 3, 40_000, 0.2, 0.2
    start = torch.tensor([[1.0, -0.5, 0.3]], dtype=F64).expand(n, d)
    goal = torch.tensor([[0.2, 0.8, -0.4]], dtype=F64).expand(n, d)
    variance = problem.policy_variance(torch.tensor(0.0), lamda, d)
    policy = GaussianPolicy(lambda t, x, c, p: 0.3 * torch.ones_like(x), lambda t: variance)
    path = rollout(problem, policy, start, torch.linspace(0, 1, 6, dtype=F64), goal, goal, mode="sampled",
                   noise=generator(3))  # fmt: skip
    value, weight = Shifted(Exact(problem), lamda), problem.beta
    decay, reach = problem._decay_and_reach(dt)
    hessian = float(decay**2 / (1 + reach / weight))

    stein = next(iter(stein_targets(problem, policy, value, path)))
    gradient = decay * (decay * path.states[1] - goal) / (1 + reach / weight)
    torch.testing.assert_close(stein, -gradient / weight)  # (6)
    page = dt**4 * variance * d * hessian**2 / (weight * dt) ** 2  # (7), in units of the target
    assert float(stein.var(0).sum()) == pytest.approx(page, rel=0.02)

    slope = decay * (decay * ((1 - dt) * start[0] + dt * 0.3) - goal[0]) / (1 + reach / weight)
    for pairs in (1, 4):
        target = next(iter(antithetic_targets(problem, policy, value, path, pairs=pairs)))
        wanted = dt**2 * (d + 1) * float(slope.square().sum()) / pairs / (weight * dt) ** 2
        found = float(target.var(0).sum())
        print(f"{pairs} pairs: page {wanted:.4f}, code {found:.4f}")
        assert found == pytest.approx(wanted, rel=0.05)
        assert ((target.mean(0) + slope / weight).abs() < 4 * target.std(0) / n**0.5).all()
