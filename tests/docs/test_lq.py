"""docs/explanation/lq.md: the three equations, what a wrong policy costs, Newton, Euler-Maruyama, two examples."""

import math

import pytest
import sympy as sp
import torch
from symbolic import differs, expect, soft_min, tau, zero

from aid_control.lq import (
    AffineGaussian,
    LQProblem,
    OrnsteinUhlenbeck,
    algebraic,
    evaluate,
    mean_square_abscissa,
    policy_iteration,
    riccati,
    scheme_value,
    zoo,
)
from aid_control.lq.recovery import random_problem

F64 = torch.float64
t, T, h = sp.symbols("t T h", positive=True)
rho = sp.Symbol("rho", positive=True)


def matrix(name, rows, cols):
    return sp.Matrix(rows, cols, lambda i, j: sp.Symbol(f"{name}{i}{j}", real=True))


def symmetric(name, size):
    return sp.Matrix(size, size, lambda i, j: sp.Symbol(f"{name}{min(i, j)}{max(i, j)}", real=True))


class Symbols:
    """Every coefficient of (1) and (2), and P, p, x, u, as letters; one noise column unless told otherwise."""

    def __init__(self, d, m, columns=1):
        self.d, self.m = d, m
        self.A, self.B, self.N, self.b = matrix("A", d, d), matrix("B", d, m), matrix("N", d, m), matrix("b", d, 1)
        self.noise = [(matrix(f"C{j}_", d, d), matrix(f"D{j}_", d, m), matrix(f"s{j}_", d, 1)) for j in range(columns)]
        self.Q, self.R, self.q, self.r = symmetric("Q", d), symmetric("R", m), matrix("q", d, 1), matrix("r", m, 1)
        self.P, self.p, self.k = symmetric("P", d), matrix("p", d, 1), sp.Symbol("k", real=True)
        self.x, self.u = matrix("x", d, 1), matrix("u", m, 1)

    def hamiltonian(self, u):
        """(3)."""
        x, P = self.x, self.P
        out = (P * x + self.p).T * (self.A * x + self.B * u + self.b)
        for C, D, s in self.noise:
            out += (C * x + D * u + s).T * P * (C * x + D * u + s) / 2
        out += (x.T * self.Q * x + 2 * x.T * self.N * u + u.T * self.R * u) / 2 + self.q.T * x + self.r.T * u
        return sp.expand(out[0])

    def in_control(self, P=None, p=None):
        """S, L and l of (4)."""
        P, p = self.P if P is None else P, self.p if p is None else p
        S, L, small = self.R, self.B.T * P + self.N.T, self.B.T * p + self.r
        for C, D, s in self.noise:
            S, L, small = S + D.T * P * D, L + D.T * P * C, small + D.T * P * s
        return S, L, small

    def at_rest(self):
        """The three coefficients of H(0) in (6)."""
        P, p = self.P, self.p
        square, line, level = self.A.T * P + P * self.A + self.Q, self.A.T * p + P * self.b + self.q, p.T * self.b
        for C, _, s in self.noise:
            square, line, level = square + C.T * P * C, line + C.T * P * s, level + s.T * P * s / 2
        return square, line, level

    def lyapunov(self, gain, P):
        """The right-hand side of (15) for P, without the discount."""
        loop = self.A + self.B * gain
        out = loop.T * P + P * loop + self.Q + self.N * gain + gain.T * self.N.T + gain.T * self.R * gain
        for C, D, _ in self.noise:
            out += (C + D * gain).T * P * (C + D * gain)
        return out

    def gain(self, P):
        S, L, _ = self.in_control(P)
        return -S.inv() * L


# --- The equations ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("d", "m", "columns"), [(1, 2, 2), (2, 2, 1), (2, 1, 2)])
def test_equations_4_to_6_the_hamiltonian_by_powers(d, m, columns):
    """Gradient and Hessian in u are L x + l and S; at u = 0 the powers of x are those of (6)."""
    lq = Symbols(d, m, columns)
    S, L, small = lq.in_control()
    square, line, level = lq.at_rest()
    at_zero = (lq.x.T * square * lq.x / 2 + lq.x.T * line + level)[0]
    linear = (lq.u.T * (L * lq.x + small))[0]
    quadratic = (lq.u.T * S * lq.u)[0] / 2
    assert sp.expand(lq.hamiltonian(lq.u) - at_zero - linear - quadratic) == 0
    assert differs(sp.expand(lq.hamiltonian(lq.u) - at_zero - linear - 2 * quadratic))


def test_equation_5_completing_the_square():
    lq = Symbols(1, 2)
    S, L, small = lq.in_control()
    best = -S.inv() * (L * lq.x + small)
    gap = (lq.u - best).T * S * (lq.u - best) / 2
    bottom = lq.hamiltonian(sp.zeros(2, 1)) - ((L * lq.x + small).T * S.inv() * (L * lq.x + small))[0] / 2
    assert sp.simplify(lq.hamiltonian(lq.u) - bottom - gap[0]) == 0


def test_equation_7_the_three_odes_are_the_powers_of_x_of_the_exploratory_hjb():
    """One state, one control, two columns: P', p', k' of (7) make the residual vanish identically in x."""
    lq = Symbols(1, 1, 2)
    S, L, small = (a[0] for a in lq.in_control())
    square, line, level = (a[0] for a in lq.at_rest())
    P, p, x = lq.P[0], lq.p[0], lq.x[0]
    slopes = {
        "P": rho * P - square + L**2 / S,
        "p": rho * p - line + L * small / S,
        "k": rho * lq.k - level + small**2 / (2 * S) + tau / 2 * sp.log(2 * sp.pi * tau / S),
    }

    def residual(dP, dp, dk):
        time = dP * x**2 / 2 + dp * x + dk
        return time - rho * (P * x**2 / 2 + p * x + lq.k) + soft_min(lq.hamiltonian(lq.u), [lq.u[0]])

    positive = {lq.R[0]: sp.Symbol("R", positive=True)}
    assert zero(residual(*slopes.values()).subs(positive))
    assert differs(residual(slopes["P"] - 2 * L**2 / S, slopes["p"], slopes["k"]))  # + L'S^-1 L
    assert differs(residual(slopes["P"], slopes["p"] - 2 * L * small / S, slopes["k"]))
    assert differs(residual(*list(slopes.values())[:2], slopes["k"] - tau * sp.log(2 * sp.pi * tau / S)))


def written_out(problem, at, big, small):
    """(7) and (8) by ordinary matrix products, of one problem: minus P', p', k' without entropy, S, L, l."""
    c = {name: value[0] for name, value in problem.coefficients(at).items()}
    columns = [(c["C"][j], c["D"][j], c["s"][j]) for j in range(problem.columns)]
    S = c["R"] + sum(D.T @ big @ D for _, D, _ in columns)
    L = c["B"].T @ big + c["N"].T + sum(D.T @ big @ C for C, D, _ in columns)
    line = c["B"].T @ small + c["r"] + sum(D.T @ big @ s for _, D, s in columns)
    dP = c["A"].T @ big + big @ c["A"] + c["Q"] + sum(C.T @ big @ C for C, _, _ in columns)
    dp = c["A"].T @ small + big @ c["b"] + c["q"] + sum(C.T @ big @ s for C, _, s in columns)
    dk = small @ c["b"] + sum(s @ big @ s for _, _, s in columns) / 2
    solved = torch.linalg.solve(S, torch.cat([L, line[:, None]], dim=1))
    return (dP - L.T @ solved[:, :-1], dp - L.T @ solved[:, -1], dk - line @ solved[:, -1] / 2), S, L, line


@pytest.mark.parametrize("kind", ["standard", "indefinite", "time_varying"])
def test_equations_7_and_8_are_what_the_package_solves(kind):
    """P, p, k of `riccati` differentiated in time against the formulas of the page, and its policy against theirs."""
    problem, temperature, step = random_problem(3, 3, kind), 0.3, 1e-4
    solution = riccati(problem, temperature)
    for at in (0.2, 0.7):
        big, small, constant = solution.value.terms(at)
        (dP, dp, dk), S, L, line = written_out(problem, at, big, small)
        dk = dk - temperature / 2 * (2 * math.log(2 * math.pi * temperature) - torch.logdet(S))
        ahead, behind = solution.value.terms(at + step), solution.value.terms(at - step)
        slopes = [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
        for slope, minus, now in zip(slopes, (dP, dp, dk), (big, small, constant), strict=True):
            assert torch.allclose(slope, problem.discount * now - minus, rtol=1e-5, atol=1e-5)
        gain, offset, spread = solution.policy.law(torch.tensor(at, dtype=F64))
        assert torch.allclose(gain, -torch.linalg.solve(S, L), rtol=1e-9)
        assert torch.allclose(offset, -torch.linalg.solve(S, line), rtol=1e-9)
        assert torch.allclose(spread, temperature * torch.linalg.inv(S), rtol=1e-9)
        if kind == "indefinite":
            assert torch.linalg.eigvalsh(problem.at("R", at))[0] < 0 < torch.linalg.eigvalsh(S)[0]


# --- What a wrong policy costs ---------------------------------------------------------------------------------------


def test_equation_10_tau_times_the_divergence_of_two_gaussians():
    u, mean, best = sp.symbols("u mean best", real=True)
    S, w = sp.symbols("S w", positive=True)

    def log_density(centre, variance):
        return -((u - centre) ** 2) / (2 * variance) - sp.log(2 * sp.pi * variance) / 2

    divergence = expect(log_density(mean, w) - log_density(best, tau / S), u, mean, w)
    claimed = S * (mean - best) ** 2 / 2 + tau / 2 * (S * w / tau - 1 - sp.log(S * w / tau))
    assert zero(tau * divergence - claimed)
    assert differs(2 * tau * divergence - claimed)


@pytest.mark.parametrize("kind", ["standard", "indefinite"])
def test_equations_9_and_10_the_cost_of_any_affine_gaussian_policy(kind):
    """J - V is the value of another LQ problem: the same dynamics, the running cost (u - u*)'S(u - u*)/2."""
    problem, temperature, x = random_problem(5, 2, kind), 0.4, torch.tensor([[0.7, -1.2], [2.0, 0.3]], dtype=F64)
    best = riccati(problem, temperature)

    def around(at):
        gain, offset, _ = best.policy.law(torch.tensor(at, dtype=F64))
        S = written_out(problem, at, *best.value.terms(at)[:2])[1]
        return gain, offset, S

    def coefficient(make):
        return lambda at: make(*around(at))

    now = {name: value[0] for name, value in problem.coefficients(0.0).items()}
    gap = LQProblem(
        **{name: now[name] for name in ("A", "B", "b", "C", "D", "s")},
        Q=coefficient(lambda K, o, S: K.T @ S @ K), R=coefficient(lambda K, o, S: S),
        N=coefficient(lambda K, o, S: -K.T @ S), q=coefficient(lambda K, o, S: K.T @ S @ o),
        r=coefficient(lambda K, o, S: -S @ o), discount=problem.discount, horizon=problem.horizon,
    )  # fmt: skip
    spread = torch.tensor([[0.3]], dtype=F64)
    policy = AffineGaussian.constant([[-0.4, 0.1]], [0.2], spread)
    steps = 400
    times = (torch.arange(steps, dtype=F64) + 0.5) / steps * problem.horizon
    rest = 0.0  # what does not depend on x: the midpoint rule
    for at in times.tolist():
        _, offset, S = around(at)
        level = offset @ S @ offset / 2 - temperature / 2 * (1 + torch.logdet(S @ spread / temperature))
        rest += float(level) * math.exp(-problem.discount * at) * problem.horizon / steps
    found = evaluate(problem, policy, temperature, rtol=1e-9)(0.0, x) - best.value(0.0, x)
    wanted = evaluate(gap, policy, rtol=1e-9)(0.0, x) + rest
    assert torch.allclose(found, wanted, rtol=1e-5) and (found > 0).all()


def test_exploring_costs_half_the_temperature_a_control():
    """(11): E (u - u*)'S(u - u*)/2 under N(u*, tau S^-1) is tau m / 2, m = 2."""
    l1, l2 = sp.symbols("l1 l2", positive=True)
    half = sp.Matrix([[l1, 0], [sp.Symbol("l21", real=True), l2]])
    S = half * half.T
    z = sp.Matrix(sp.symbols("z1 z2", real=True))
    moved = sp.sqrt(tau) * half.T.inv() * z  # covariance tau S^-1
    assert sp.simplify(moved.jacobian(z) * moved.jacobian(z).T - tau * S.inv()) == sp.zeros(2, 2)
    cost = (moved.T * S * moved)[0] / 2
    for letter in z:
        cost = expect(sp.expand(cost), letter, 0, 1)
    assert zero(cost - tau)


# --- Existence -------------------------------------------------------------------------------------------------------


def test_an_escape_and_a_loss_of_convexity():
    """(12): dX = u dt, cost u^2/2 - g x_T^2/2: 1/P = T - t - 1/g; and dX = u dW: P = G, feasible iff R + G > 0."""
    g = sp.Symbol("g", positive=True)
    P = 1 / (T - t - 1 / g)
    assert zero(sp.diff(P, t) - P**2) and P.subs(t, T) == -g
    problem = LQProblem(0.0, 1.0, R=1.0, G=-0.5, horizon=1.9)
    assert riccati(problem).value.terms(0.0)[0].item() == pytest.approx(1 / (1.9 - 2), rel=1e-8)
    with pytest.raises(ValueError, match="t = 1"):
        riccati(LQProblem(0.0, 1.0, R=1.0, G=-0.5, horizon=3.0))
    still = LQProblem(0.0, 0.0, R=-1.0, D=[[[1.0]]], G=2.0)
    assert riccati(still).value.terms(0.0)[0].item() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="infeasible"):
        riccati(LQProblem(0.0, 0.0, R=-2.5, D=[[[1.0]]], G=2.0))


def test_comparison_more_cost_more_value():
    """Two problems of the same dynamics whose cost matrices are ordered: P is ordered."""
    problem = random_problem(11, 3, "standard")
    now = {name: value[0] for name, value in problem.coefficients(0.0).items()}
    more = dict(now, Q=now["Q"] + 0.3 * torch.eye(3, dtype=F64), R=now["R"] + 0.2 * torch.eye(2, dtype=F64))
    first, second = (
        riccati(LQProblem(**c, discount=problem.discount, horizon=problem.horizon)).value.terms(0.0)[0]
        for c in (now, more)
    )
    assert torch.linalg.eigvalsh(second - first)[0] > 0


# --- Infinite horizon ------------------------------------------------------------------------------------------------


def test_equation_13_the_stationary_equations():
    """What `algebraic` returns, put into (13) written out; the gain is stabilising."""
    base = random_problem(2, 2, "standard", discount=0.5)
    now = {name: value[0] for name, value in base.coefficients(0.0).items()}
    problem, temperature = LQProblem(**now, discount=0.5, horizon=math.inf), 0.2
    solution = algebraic(problem, temperature)
    big, small, constant = solution.value.terms(0.0)
    (dP, dp, dk), S, L, line = written_out(problem, 0.0, big, small)
    assert torch.allclose(0.5 * big, dP, atol=1e-10) and torch.allclose(0.5 * small, dp, atol=1e-10)
    entropy = temperature / 2 * (math.log(2 * math.pi * temperature) - torch.logdet(S))
    assert torch.allclose(0.5 * constant, dk - entropy, atol=1e-10)
    gain = -torch.linalg.solve(S, L)
    assert mean_square_abscissa(problem, gain).item() < 0
    loop = now["A"] + now["B"] @ gain  # the linear equation for p
    pushed = now["r"] + sum(now["D"][j].T @ big @ now["s"][j] for j in range(2))
    known = big @ now["b"] + now["q"] + sum(now["C"][j].T @ big @ now["s"][j] for j in range(2)) + gain.T @ pushed
    assert torch.allclose(torch.linalg.solve(0.5 * torch.eye(2, dtype=F64) - loop.T, known), small, atol=1e-10)
    assert torch.allclose(line, now["B"].T @ small + pushed)


def scalar():
    """Letters of Wang, Zariphopoulou and Zhou, and the translation of the page's table into `Symbols(1, 1)`."""
    A, B, C, D, R, P, Q, k2, k1, k0 = sp.symbols("A B C D R P Q k2 k1 k0", real=True)
    M, N = sp.symbols("M N", positive=True)
    lq = Symbols(1, 1)
    names = (lq.A, lq.B, lq.b, *lq.noise[0], lq.Q, lq.R, lq.N, lq.q, lq.r, lq.P, lq.p)
    theirs = (A, B, 0, C, D, 0, M, N, R, P, Q, -k2, -k1)
    table = dict(zip([name[0] for name in names], theirs, strict=True)) | {lq.k: -k0}
    return lq, table, (A, B, C, D, M, N, R, P, Q, k2, k1, k0)


def test_equation_14_the_reward_form_by_the_table_of_signs():
    lq, table, (A, B, C, D, M, N, R, P, Q, k2, k1, k0) = scalar()
    S, L, small = (a[0].subs(table) for a in lq.in_control())
    square, line, level = (a[0].subs(table) for a in lq.at_rest())
    theirs = N - k2 * D**2
    assert zero(S - theirs) and zero(-L - (k2 * (B + C * D) - R)) and zero(-small - (k1 * B - Q))
    slope, intercept = k2 * (B + C * D) - R, k1 * B - Q
    # (13) multiplied by -1: rho k2 = ..., rho k1 = ..., rho k0 = ...
    assert zero(-(square - L**2 / S) - (slope**2 / theirs + (2 * A + C**2) * k2 - M))
    assert zero(-(line - L * small / S) - (intercept * slope / theirs + A * k1 - P))
    assert zero(-(level - small**2 / (2 * S)) - intercept**2 / (2 * theirs))
    assert differs(-(square - L**2 / S) - (slope**2 / (N + k2 * D**2) + (2 * A + C**2) * k2 - M))


def test_the_ergodic_example_by_hand():
    """A = -1, B = C = 0, D = 1, M = N = Q = 2, R = P = 1, tau = 1/10: everything in terms of the root of 7."""
    k2 = sp.Symbol("k2")
    root = sp.sqrt(7)
    assert set(sp.solve(1 / (2 - k2) - 2 * k2 - 2, k2)) == {(1 - root) / 2, (1 + root) / 2}
    S = 2 - (1 - root) / 2
    slope, intercept, k1, variance = root - 3, 2 * (root - 3), 5 - 2 * root, (3 - root) / 10
    assert zero(S - (3 + root) / 2) and zero(1 / S - (3 - root))
    assert zero(-1 / S - slope) and zero(-2 / S - intercept) and zero(sp.Rational(1, 10) / S - variance)
    assert zero(2 / S - k1 - 1)  # 0 = (-Q)(-R)/S + A k1 - P
    average = 2 * (3 - root) + sp.log(sp.pi * (3 - root) / 5) / 20
    assert abs(float(average - (4 / (2 * S) + sp.log(2 * sp.pi / 10 / S) / 20))) < 1e-14
    printed = {slope: -0.3542487, intercept: -0.7084974, k1: -0.2915026, average: 0.6333742, 2 / S: 0.7084974}
    assert all(abs(float(value) - number) < 5.1e-8 for value, number in printed.items())
    assert abs(float(variance) - 0.03542487) < 5e-9
    # E X^2 grows at rate 2A + slope^2: stable for this root, not for the other
    assert float(-2 + slope**2) < 0 < float(-2 + 1 / (2 - (1 + root) / 2) ** 2)
    solution = algebraic(zoo.ergodic_jia_zhou(), 0.1)
    law = [a.item() for a in solution.policy.law(torch.tensor(0.0))]
    assert law == pytest.approx([float(slope), float(intercept), float(variance)], rel=1e-12)
    assert -solution.average.item() == pytest.approx(float(average), rel=1e-12)


# --- Any policy, and Newton ------------------------------------------------------------------------------------------


def test_equation_15_the_averaged_hamiltonian_of_an_affine_gaussian_policy():
    """u = K x + kappa + F z averaged over z: H(K x + kappa) + tr(S F F')/2, and its powers of x are those of (15)."""
    lq = Symbols(2, 1)
    gain, kappa, factor, z = matrix("K", 1, 2), matrix("o", 1, 1), matrix("F", 1, 1), sp.Symbol("z", real=True)
    S, _, _ = lq.in_control()
    mean = gain * lq.x + kappa
    averaged = expect(lq.hamiltonian(mean + factor * z), z, 0, 1)
    assert sp.expand(averaged - lq.hamiltonian(mean) - (S * factor * factor.T)[0] / 2) == 0
    (C, D, s), P, p = lq.noise[0], lq.P, lq.p
    loop, push, column, shift = lq.A + lq.B * gain, lq.b + lq.B * kappa, C + D * gain, s + D * kappa
    line = loop.T * p + P * push + column.T * P * shift + lq.q + lq.N * kappa + gain.T * (lq.R * kappa + lq.r)
    level = p.T * push + shift.T * P * shift / 2 + kappa.T * lq.R * kappa / 2 + lq.r.T * kappa
    claimed = (lq.x.T * lq.lyapunov(gain, P) * lq.x / 2 + lq.x.T * line + level)[0]
    assert sp.expand(lq.hamiltonian(mean) - claimed) == 0


@pytest.mark.parametrize(("d", "m"), [(1, 1), (2, 2)])
def test_equations_16_and_17_policy_iteration_is_newtons_method(d, m):
    """F(P) + F'(P) E = F_{K(P)}(P + E), and the two identities of the error: letters for d = 1, fractions for d = 2."""
    lq, e = Symbols(d, m), sp.Symbol("e")
    step, other = symmetric("E", d), matrix("K", m, d)
    letters = sorted(
        set().union(*(a.free_symbols for a in (lq.A, lq.B, lq.N, *lq.noise[0], lq.Q, lq.R, lq.P))), key=str
    )
    numbers = {} if d == 1 else {name: sp.Rational(3 + 7 * i % 11, 5 + i % 4) for i, name in enumerate(letters)}
    numbers |= {} if d == 1 else {name: sp.Rational(i - 2, 3) for i, name in enumerate([*step, *other])}
    for name in ("A", "B", "N", "Q", "R", "P"):
        setattr(lq, name, getattr(lq, name).subs(numbers))
    lq.noise = [tuple(a.subs(numbers) for a in lq.noise[0])]
    P, (C, D, _), step, other = lq.P, lq.noise[0], step.subs(numbers), other.subs(numbers)

    def vanishes(expression):
        return expression.applyfunc(sp.simplify) == sp.zeros(*expression.shape)

    gain, (S, _, _) = lq.gain(P), lq.in_control(P)
    here = lq.lyapunov(gain, P)  # F(P)
    slope = sp.diff(lq.lyapunov(lq.gain(P + e * step), P + e * step), e).subs(e, 0)  # F'(P) E
    assert vanishes(here + slope - lq.lyapunov(gain, P + step))
    assert not vanishes(here - slope - lq.lyapunov(gain, P + step))
    # F_K(P) - F(P) = (K - K(P))' S(P) (K - K(P))
    assert vanishes(lq.lyapunov(other, P) - here - (other - gain).T * S * (other - gain))
    # S(P + E)(K(P + E) - K(P)) = -(B'E + D'E (C + D K(P)))
    later = lq.in_control(P + step)
    assert vanishes(-later[1] - later[0] * gain + lq.B.T * step + D.T * step * (C + D * gain))


def test_equation_17_the_error_is_squared_and_falls_monotonically():
    problem = random_problem(7, 2, "standard")
    best = riccati(problem, 0.2).value.terms(0.0)[0]
    start = AffineGaussian.constant([[3.0, -2.0]], [0.0], 1.0)
    values = [value.terms(0.0)[0] for _, value in policy_iteration(problem, start, 0.2, 6)]
    gaps = [float((value - best).abs().max()) for value in values]
    for before, after in zip(values, values[1:], strict=False):
        assert torch.linalg.eigvalsh(before - after)[0] > -1e-9
    constants = [after / before**2 for before, after in zip(gaps, gaps[1:], strict=False) if after > 1e-12]
    assert len(constants) >= 3 and max(constants) < 1 and gaps[-1] < 1e-12, gaps


# --- Euler-Maruyama, Ornstein-Uhlenbeck ------------------------------------------------------------------------------


def test_equations_18_and_19_one_step_of_euler_maruyama():
    """One state, one control, one column: the recursion by direct expectation, sampled minus averaged, the limit."""
    lq = Symbols(1, 1)
    x, P, p, k = lq.x[0], lq.P[0], lq.p[0], lq.k
    K, o, F, z, dw = sp.symbols("K o F z dw", real=True)
    (C, D, s) = (a[0] for a in lq.noise[0])
    A, B, b = lq.A[0], lq.B[0], lq.b[0]

    def later(y):
        return P * y**2 / 2 + p * y + k

    u = K * x + o + F * z
    sampled = expect(expect(later(x + h * (A * x + B * u + b) + (C * x + D * u + s) * dw), dw, 0, h), z, 0, 1)
    move, column = x + h * ((A + B * K) * x + b + B * o), (C + D * K) * x + s + D * o
    averaged = later(move) + h / 2 * P * (column**2 + (D * F) ** 2)
    assert sp.expand(sampled - averaged - h**2 / 2 * P * (B * F) ** 2) == 0
    assert differs(sp.expand(sampled - averaged - h / 2 * P * (B * F) ** 2))
    # averaged mode draws its own noise for the spread: two independent increments
    direct = expect(expect(later(move + column * dw + D * F * z), dw, 0, h), z, 0, h)
    assert sp.expand(direct - averaged) == 0
    # the recursion's coefficient of x^2 and its limit, (15)
    stage = lq.Q[0] + 2 * lq.N[0] * K + lq.R[0] * K**2
    coefficient = h * stage + sp.exp(-rho * h) * 2 * sp.expand(averaged).coeff(x, 2)
    claimed = h * stage + sp.exp(-rho * h) * P * ((1 + h * (A + B * K)) ** 2 + h * (C + D * K) ** 2)
    assert zero(coefficient - claimed)
    limit = sp.limit((coefficient - P) / h, h, 0)
    assert zero(limit - (lq.lyapunov(sp.Matrix([[K]]), lq.P)[0] - rho * P))


def test_equation_19_is_what_the_package_says_of_one_step():
    problem, step = random_problem(9, 2, "standard"), 0.05
    spread = torch.tensor([[0.7]], dtype=F64)
    policy = AffineGaussian.constant([[0.3, -0.2]], [0.1], spread)
    grid, x = torch.tensor([problem.horizon - step, problem.horizon], dtype=F64), torch.tensor([[1.0, -2.0]], dtype=F64)
    sampled, averaged = (scheme_value(problem, policy, grid, mode)(0.0, x) for mode in ("sampled", "averaged"))
    B, G = problem.at("B", 0.0), problem.at("G", 0.0)
    wanted = step**2 / 2 * torch.trace(B.T @ G @ B @ spread) * math.exp(-problem.discount * step)
    assert torch.allclose(sampled - averaged, wanted, rtol=1e-9)


def test_equation_20_the_exact_step_given_the_increment():
    """Scalar: the part of Z that dW leaves open has variance a^2 h^3 / 12 to leading order."""
    a, v = sp.symbols("a v", positive=True)
    phi = (sp.exp(a * h) - 1) / a
    total = (sp.exp(2 * a * h) - 1) / (2 * a)
    assert zero(sp.integrate(sp.exp(2 * a * v), (v, 0, h)) - total)
    assert zero(sp.integrate(sp.exp(a * v), (v, 0, h)) - phi)
    assert zero(sp.limit((total - phi**2 / h) / h**3, h, 0) - a**2 / 12)
    move = OrnsteinUhlenbeck(torch.tensor([[0.8]]), None, torch.tensor([[1.0]])).transition(0.3)
    at = {a: 0.8, h: 0.3}
    assert move.covariance.item() == pytest.approx(float(total.subs(at)), rel=1e-7)
    assert move.weight.item() == pytest.approx(float((phi / h).subs(at)), rel=1e-7)
    assert move.root.item() ** 2 == pytest.approx(float((total - phi**2 / h).subs(at)), rel=1e-4)


# --- The regret problem ----------------------------------------------------------------------------------------------


def test_equation_21_the_closed_form_of_the_regret_problem():
    """(15) with K = phi1, Sigma = phi2: P, k solved, and minus the value is J = f + phi2 g."""
    Q, H, D, phi2, start = sp.symbols("Q H D phi2 x0", positive=True)
    A, B, C, phi1 = sp.symbols("A B C phi1", real=True)
    a = sp.Symbol("a", nonzero=True)
    lq = Symbols(1, 1)
    plain = {lq.A[0]: A, lq.B[0]: B, lq.noise[0][0][0]: C, lq.noise[0][1][0]: D, lq.Q[0]: Q, lq.R[0]: 0, lq.N[0]: 0}
    rate = 2 * A + 2 * B * phi1 + (C + D * phi1) ** 2
    assert zero(lq.lyapunov(sp.Matrix([[phi1]]), lq.P)[0].subs(plain) - rate * lq.P[0] - Q)
    left = T - t
    P = (H + Q / a) * sp.exp(a * left) - Q / a
    k = D**2 * phi2 / 2 * sp.integrate(P.subs(t, T - t), (t, 0, left))
    assert zero(-sp.diff(P, t) - a * P - Q) and zero(P.subs(t, T) - H)
    assert zero(-sp.diff(k, t) - D**2 * phi2 * P / 2) and zero(k.subs(t, T))
    f = start**2 / (2 * a) * (Q - (Q + H * a) * sp.exp(a * T))
    g = D**2 / (2 * a**2) * (Q * T * a + (Q + H * a) * (1 - sp.exp(a * T)))
    value = (P * start**2 / 2 + k).subs(t, 0)
    assert zero(value + f + phi2 * g)
    assert zero(sp.limit(f, a, 0) + start**2 * (Q * T + H) / 2)
    assert zero(sp.limit(g, a, 0) + D**2 * (Q * T**2 + 2 * H * T) / 4)
    # the best gain, whatever T, Q, H and phi2
    best = -(B + C * D) / D**2
    assert zero(sp.diff(rate, phi1).subs(phi1, best)) and zero(sp.diff(rate, phi1, 2) - 2 * D**2)
    S, L, _ = lq.in_control()
    assert zero((-L[0] / S[0]).subs(plain) - best)
    ones = dict.fromkeys((A, B, C, D, Q, H, start, T), 1)
    assert best.subs(ones) == -2 and sp.simplify(f.subs(a, rate).subs(phi1, -2).subs(ones)) == -sp.Rational(1, 2)


@pytest.mark.parametrize(("phi1", "phi2"), [(-0.5, 5.0), (-2.0, 0.3), (-1.3, 0.0)])
def test_equation_21_against_the_package(phi1, phi2):
    a = 2 + 2 * phi1 + (1 + phi1) ** 2
    f = (1 - (1 + a) * math.exp(a)) / (2 * a)
    g = (a + (1 + a) * (1 - math.exp(a))) / (2 * a**2)
    value = evaluate(zoo.regret(), AffineGaussian.constant([[phi1]], covariance=phi2))
    assert -value(0.0, torch.ones(1, 1, dtype=F64)).item() == pytest.approx(f + phi2 * g, rel=1e-10)
