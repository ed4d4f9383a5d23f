"""Every closed form the toolkit relies on, put back into the equation that defines it.

Sources, named in the docstrings: Wang-Zariphopoulou-Zhou 2020 (exploratory control), Jia-Zhou 2022a (policy
evaluation) and 2022b (policy gradient), Huang-Jia-Zhou 2025 (sublinear regret) and 2024 (mean-variance), Huang-Zhou
2026 (AID), Huang-Tang-Zhou 2026 (ART). "theory:" marks what was derived for this project; T - t is the time left.

Problems are minimisations; the papers that maximise a reward are tested in their own sign, and the docstring says so.
A policy pi is charged tau * int pi log pi, so an "exploratory HJB" is the HJB with min over u replaced by
min over pi of int H pi + tau int pi log pi = -tau log int exp(-H / tau) du.
"""

import math

import pytest
import sympy as sp
from scipy.integrate import quad
from scipy.optimize import brentq
from symbolic import differs, expect, hard_min, soft_min, tau, zero

t, x, u, s, h = sp.symbols("t x u s h", real=True)
T, rho, lam, beta, v = sp.symbols("T rho lambda beta v", positive=True)


def close(value, printed, digits) -> bool:
    return abs(float(value) - printed) <= 0.5000001 * 10**-digits


# --- Exploratory control ---------------------------------------------------------------------------------------------


def test_the_two_helpers_are_gaussian_integrals():
    """E z^n for n <= 4 and -tau log int exp(-H / tau) du, by integration: the other tests use the closed forms."""
    m = sp.symbols("m", real=True)
    a, b, c = sp.symbols("a", positive=True), *sp.symbols("b c", real=True)
    density = sp.exp(-((x - m) ** 2) / (2 * v)) / sp.sqrt(2 * sp.pi * v)
    for n in range(5):
        assert zero(sp.integrate(x**n * density, (x, -sp.oo, sp.oo)) - expect(x**n, x, m, v))
    quadratic = a * u**2 / 2 + b * u + c
    partition = sp.integrate(sp.exp(-quadratic / tau), (u, -sp.oo, sp.oo))
    assert zero(-tau * sp.log(partition) - soft_min(quadratic, [u]))


def test_gibbs_minimiser_one_control():
    """Wang-Zariphopoulou-Zhou 2020: H = h0 + g u + S u^2 / 2.

    int H pi + tau int pi log pi is least at N(-g/S, tau/S), value h0 - g^2/(2S) - (tau/2) log(2 pi tau / S).
    Euler-Lagrange: H + tau log pi is constant in u (and then equals the value).
    The gap of any N(m, w) is S (m - m*)^2 / 2 + (tau/2) (r - 1 - log r), r = w S / tau: so the minimiser is unique.
    """
    h0, g, m = sp.symbols("h0 g m", real=True)
    S, w = sp.symbols("S w", positive=True)
    H = h0 + g * u + S * u**2 / 2
    value = h0 - g**2 / (2 * S) - tau / 2 * sp.log(2 * sp.pi * tau / S)

    def log_density(mean, variance):
        return -((u - mean) ** 2) / (2 * variance) - sp.log(2 * sp.pi * variance) / 2

    def objective(mean, variance):
        return expect(H + tau * log_density(mean, variance), u, mean, variance)

    partition = sp.integrate(sp.exp(-H / tau), (u, -sp.oo, sp.oo))
    assert zero(-tau * sp.log(partition) - value)
    assert zero(H + tau * log_density(-g / S, tau / S) - value)
    assert zero(objective(-g / S, tau / S) - value)
    r = w * S / tau
    gap = S * (m + g / S) ** 2 / 2 + tau / 2 * (r - 1 - sp.log(r))
    assert zero(objective(m, w) - value - gap)
    assert sp.diff(r - 1 - sp.log(r), w, 2).is_positive  # convex, zero with zero slope at r = 1
    assert zero(sp.diff(objective(m, w), w).subs(w, tau / S))

    assert zero(sp.diff(H + tau * log_density(-g / S, 2 * tau / S), u, 2) - S / 2)  # twice the variance: not constant
    assert zero(sp.diff(H + tau * log_density(g / S, tau / S), u) - 2 * g)  # wrong sign of the mean: neither


def test_gibbs_minimiser_two_controls():
    """theory: recovery theorem, its Gibbs lemma. For two controls the minimiser is N(-S^-1 g, tau S^-1).

    Its value is h0 - g' S^-1 g / 2 - (tau/2) log((2 pi tau)^2 / det S). With S = L L': H + tau log pi is constant, and
    the gap of N(m, C), C = W W', is (m - m*)' S (m - m*) / 2 + (tau/2) (tr(S C)/tau - 2 - log det(S C / tau)), so only
    m* is optimal.
    """
    l11, l22, w11, w22 = sp.symbols("l11 l22 w11 w22", positive=True)
    l21, w21, h0, g1, g2, u1, u2, m1, m2, z1, z2 = sp.symbols("l21 w21 h0 g1 g2 u1 u2 m1 m2 z1 z2", real=True)
    L, W = sp.Matrix([[l11, 0], [l21, l22]]), sp.Matrix([[w11, 0], [w21, w22]])
    S, g, controls, m = L * L.T, sp.Matrix([g1, g2]), sp.Matrix([u1, u2]), sp.Matrix([m1, m2])
    H = (sp.Matrix([h0]) + g.T * controls + controls.T * S * controls / 2)[0]
    best = -S.inv() * g
    value = h0 - (g.T * S.inv() * g)[0] / 2 - tau / 2 * sp.log((2 * sp.pi * tau) ** 2 / (l11 * l22) ** 2)

    def log_density(mean, precision, log_det_covariance):
        quadratic = ((controls - mean).T * precision * (controls - mean))[0]
        return -quadratic / 2 - sp.log(2 * sp.pi) - log_det_covariance / 2

    log_det = sp.log(tau**2 / (l11 * l22) ** 2)
    assert zero(H + tau * log_density(best, S / tau, log_det) - value)
    assert zero(soft_min(H, [u1, u2]) - value)

    moved = m + W * sp.Matrix([z1, z2])  # N(m, W W')
    mean_h = expect(expect(H.subs({u1: moved[0], u2: moved[1]}, simultaneous=True), z1, 0, 1), z2, 0, 1)
    negative_entropy = -sp.log(2 * sp.pi) - 1 - sp.log(w11 * w22)
    ratio = S * W * W.T / tau
    gap = ((m - best).T * S * (m - best))[0] / 2
    gap += tau / 2 * (ratio.trace() - 2 - sp.log((l11 * l22 * w11 * w22 / tau) ** 2))
    assert zero(mean_h + tau * negative_entropy - value - gap)

    wrong = sp.diff(H + tau * log_density(best, S.inv() * tau, -log_det), u1, 2)  # covariance S / tau
    assert zero(wrong - S[0, 0] + tau**2 * S.inv()[0, 0])
    assert wrong.subs({l11: 1, l21: 0, l22: 1, tau: 3}) != 0


def one_state_problem():
    """Generic data of a one-dimensional problem: the part of the HJB without control, and H without state cost."""
    b, sigma, f, B = (sp.Function(name)(t, x) for name in ("b", "sigma", "f", "B"))

    def rest(V):
        return sp.diff(V, t) - rho * V + b * sp.diff(V, x) + sigma**2 * sp.diff(V, x, 2) / 2 + f

    return rest, B


def discounted_integral(inner):
    """int_t^T exp(-rho (s - t)) inner(s) ds, with exp(rho t) in front of the integral."""
    return sp.exp(rho * t) * sp.Integral(sp.exp(-rho * s) * inner, (s, t, T))


def test_recovery_shift_one_control():
    """theory: recovery theorem, one control, any b, B, sigma, f, time-varying R(t), discount rho.

    If V0 solves the HJB, V0 - (tau/2) int_t^T exp(-rho (r - t)) log(2 pi tau / R(r)) dr solves the exploratory HJB.
    """
    rest, B = one_state_problem()
    R, V0 = sp.Function("R", positive=True), sp.Function("V0")(t, x)

    def hamiltonian(V):
        return B * sp.diff(V, x) * u + R(t) * u**2 / 2

    hjb = rest(V0) + hard_min(hamiltonian(V0), [u])
    slope = sp.solve(hjb, sp.diff(V0, t))[0]

    def exploratory(V):
        return (rest(V) + soft_min(hamiltonian(V), [u])).subs(sp.diff(V0, t), slope)

    log_term = sp.log(2 * sp.pi * tau / R(t))
    shift = tau / 2 * discounted_integral(log_term.subs(t, s))
    assert zero(exploratory(V0 - shift))
    assert shift.subs(t, T).doit() == 0  # same terminal value
    assert sp.diff(V0 - shift, x) == sp.diff(V0, x)  # hence the same mean control

    assert zero(exploratory(V0 + shift) + tau * log_term)  # wrong sign
    undiscounted = tau / 2 * sp.Integral(log_term.subs(t, s), (s, t, T))
    assert zero(exploratory(V0 - undiscounted) - rho * undiscounted)  # no discount in the integral


def test_recovery_shift_two_controls():
    """theory: recovery theorem, two states and two controls, full B(t, x), full R(t) = L(t) L(t)', discount rho.

    The shift is (tau/2) int_t^T exp(-rho (r - t)) log((2 pi tau)^2 / det R(r)) dr.
    """
    y, u1, u2 = sp.symbols("y u1 u2", real=True)
    V0, b1, b2, sigma, f = (sp.Function(name)(t, x, y) for name in ("V0", "b1", "b2", "sigma", "f"))
    B = sp.Matrix(2, 2, lambda i, j: sp.Function(f"B{i}{j}")(t, x, y))
    l11, l22 = (sp.Function(name, positive=True)(t) for name in ("l11", "l22"))
    L = sp.Matrix([[l11, 0], [sp.Function("l21", real=True)(t), l22]])
    controls = sp.Matrix([u1, u2])

    def rest(V):
        diffusion = sigma**2 * (sp.diff(V, x, 2) + sp.diff(V, y, 2)) / 2
        return sp.diff(V, t) - rho * V + b1 * sp.diff(V, x) + b2 * sp.diff(V, y) + diffusion + f

    def hamiltonian(V):
        gradient = sp.Matrix([sp.diff(V, x), sp.diff(V, y)])
        return sp.expand((gradient.T * B * controls + controls.T * L * L.T * controls / 2)[0])

    slope = sp.solve(rest(V0) + hard_min(hamiltonian(V0), [u1, u2]), sp.diff(V0, t))[0]

    def exploratory(V):
        return (rest(V) + soft_min(hamiltonian(V), [u1, u2])).subs(sp.diff(V0, t), slope)

    log_term = sp.log((2 * sp.pi * tau) ** 2 / (l11 * l22) ** 2)
    shift = tau / 2 * discounted_integral(log_term.subs(t, s))
    assert zero(exploratory(V0 - shift))
    one_dimensional = tau / 2 * discounted_integral(sp.log(2 * sp.pi * tau / (l11 * l22) ** 2).subs(t, s))
    excess = tau / 2 * sp.log(2 * sp.pi * tau)
    assert zero(exploratory(V0 - one_dimensional) + excess)  # the power m of 2 pi tau matters


@pytest.mark.parametrize("m", [1, 2])
def test_exploration_cost_is_half_tau_m_per_unit_time(m):
    """theory: recovery theorem, N(u*, tau R^-1), entropy excluded, costs tau m / 2 per unit time more than u*.

    Its plain cost J solves the linear evaluation equation and is V0 + (tau m / 2) (1 - exp(-rho (T - t))) / rho;
    adding the entropy charge tau E int exp(-rho (r - t)) log pi gives back the exploratory value.
    """
    rest, _ = one_state_problem()
    V0 = sp.Function("V0")(t, x)
    l11, l22 = sp.symbols("l11 l22", positive=True)
    L = sp.Matrix([[l11, 0], [sp.Symbol("l21", real=True), l22]])[:m, :m]
    B = sp.Matrix(sp.symbols("B1 B2", real=True)[:m]).T
    controls, noise = sp.Matrix(sp.symbols("u1 u2", real=True)[:m]), sp.Matrix(sp.symbols("z1 z2", real=True)[:m])

    def hamiltonian(V, a):
        return sp.expand((sp.diff(V, x) * B * a + a.T * L * L.T * a / 2)[0])

    best = -(L * L.T).inv() * B.T * sp.diff(V0, x)
    slope = sp.solve(rest(V0) + hard_min(hamiltonian(V0, controls), list(controls)), sp.diff(V0, t))[0]

    def evaluation(J):  # of the policy u* + sqrt(tau) L'^-1 z, whose covariance is tau R^-1
        averaged = hamiltonian(J, best + sp.sqrt(tau) * L.T.inv() * noise)
        for z in noise:
            averaged = expect(averaged, z, 0, 1)
        return (rest(J) + averaged).subs(sp.diff(V0, t), slope)

    horizon = (1 - sp.exp(-rho * (T - t))) / rho
    J = V0 + tau * m / 2 * horizon
    assert zero(evaluation(J))
    assert zero(evaluation(V0 + tau * m * horizon) + tau * m / 2)
    assert sp.limit(horizon, rho, 0) == T - t
    log_det = 2 * sum(sp.log(L[i, i]) for i in range(m))
    negative_entropy = -(m * sp.log(2 * sp.pi * sp.E * tau) - log_det) / 2
    recovery = V0 - tau / 2 * (m * sp.log(2 * sp.pi * tau) - log_det) * horizon
    assert zero(J + tau * negative_entropy * horizon - recovery)


def aid_problem():
    """AID with d = 2: V, its gradient, the action, grad V . (b + a) + beta |a|^2 / 2, and V_t taken from the HJB."""
    y = sp.Symbol("y", real=True)
    V, b1, b2 = (sp.Function(name)(t, x, y) for name in ("V", "b1", "b2"))
    gradient, drift = sp.Matrix([sp.diff(V, x), sp.diff(V, y)]), sp.Matrix([b1, b2])
    action = sp.Matrix(sp.symbols("a1 a2", real=True))
    running = gradient.dot(drift + action) + beta / 2 * action.dot(action)
    slope = -hard_min(sp.expand(running), list(action))
    return V, gradient, action, running, slope


def test_aid_value_is_shifted_by_lambda_t():
    """Huang-Zhou 2026: for Gaussian policies of fixed variance v = 2 lambda / (beta d), V^lambda = V - lambda t.

    It solves the averaged HJB 0 = V_t + min over m of E[grad V . (b + A) + beta |A|^2 / 2], A ~ N(m, v I), with
    terminal value Psi - lambda T.
    """
    V, _, action, running, slope = aid_problem()
    means = sp.Matrix(sp.symbols("m1 m2", real=True))

    def averaged_hjb(value, variance):
        averaged = running
        for a, m in zip(action, means, strict=True):
            averaged = expect(averaged, a, m, variance)
        # the shift is free of x, so the gradients of value and V agree
        return (sp.diff(value, t) + hard_min(sp.expand(averaged), list(means))).subs(sp.diff(V, t), slope)

    variance = 2 * lam / (beta * 2)
    assert zero(averaged_hjb(V - lam * t, variance))
    assert zero(averaged_hjb(V + lam * t, variance) - 2 * lam)  # wrong sign of the shift
    assert zero(averaged_hjb(V - lam * t, 2 * lam / beta) - lam)  # d forgotten in the variance
    m, d = sp.symbols("m", real=True), sp.symbols("d", positive=True)
    assert zero(d * expect(beta / 2 * u**2, u, m, 2 * lam / (beta * d)) - d * beta / 2 * m**2 - lam)  # any d


def test_aid_variance_is_the_entropy_optimum_at_tau_two_lambda_over_d():
    """theory: AID's fixed variance 2 lambda / (beta d) is the Gibbs variance tau / beta exactly at tau = 2 lambda / d.

    Checked in the Gibbs condition, beta |a|^2 / 2 + p.a + tau log pi constant in a.
    """
    d, p = sp.symbols("d", positive=True), sp.symbols("p", real=True)
    log_density = -((u + p / beta) ** 2) / (2 * v)  # one of the d equal coordinates, up to a constant
    slope = sp.diff(p * u + beta / 2 * u**2 + tau * log_density, u).subs(v, 2 * lam / (beta * d))
    assert zero(slope.subs(tau, 2 * lam / d))
    assert sp.solve(sp.diff(slope, u), tau) == [2 * lam / d]


def test_aid_advantage_identity():
    """theory: q = V^lambda_t + grad V . (b + a) + beta |a|^2 / 2 = beta |a - m*|^2 / 2 - lambda, and E q = 0."""
    V, gradient, action, running, slope = aid_problem()
    best = -gradient / beta
    q = (sp.diff(V - lam * t, t) + running).subs(sp.diff(V, t), slope)
    distance = (action - best).dot(action - best)
    assert zero(q - (beta / 2 * distance - lam))
    for a, m in zip(action, best, strict=True):
        q = expect(q, a, m, 2 * lam / (beta * 2))
    assert zero(q)


def test_control_dependent_noise_shares_the_quadratic_part():
    """theory: recovery theorem with control in the noise, dX = (A X + B u) dt + (C X + D u) dW, V = P x^2 / 2 + k.

    Cost (Q x^2 + R u^2) / 2, discount rho.
    The optimal policy is N(-(B + C D) P x / S, tau / S) with S = R + D^2 P; P does not know tau, only k does:
    -k' = -rho k - (tau/2) log(2 pi tau / S). Exploration still costs tau/2 per unit time.
    """
    A, B, C, D, Q, m = sp.symbols("A B C D Q m", real=True)
    R, w = sp.symbols("R w", positive=True)
    P, k = sp.Function("P", positive=True)(t), sp.Function("k")(t)
    V = P * x**2 / 2 + k
    S = R + D**2 * P
    H = (A * x + B * u) * sp.diff(V, x) + (C * x + D * u) ** 2 * sp.diff(V, x, 2) / 2 + (Q * x**2 + R * u**2) / 2

    riccati = rho * P - (2 * A + C**2) * P - Q + ((B + C * D) * P) ** 2 / S
    constant = rho * k + tau / 2 * sp.log(2 * sp.pi * tau / S)
    residual = sp.diff(V, t) - rho * V + soft_min(H, [u])
    solved = {sp.diff(P, t): riccati, sp.diff(k, t): constant}
    assert zero(residual.subs(solved))
    assert sp.diff(residual, tau, x) == 0  # tau never meets x
    plain = sp.diff(V, t) - rho * V + hard_min(H, [u])
    assert zero(plain.subs({sp.diff(P, t): riccati, sp.diff(k, t): rho * k}))

    mean = -(B + C * D) * P * x / S
    log_density = -((u - mean) ** 2) / (2 * w)
    assert zero(sp.diff(H + tau * log_density.subs(w, tau / S), u))
    assert zero(sp.diff(H + tau * log_density.subs(w, tau / R), u, 2) - D**2 * P)  # tau / R is wrong
    assert zero(expect(H, u, mean, tau / S) - H.subs(u, mean) - tau / 2)
    assert zero(sp.diff(expect(H, u, m, w), w) - S / 2)


def test_sampled_actions_add_variance_v_dt():
    """theory: sampled versus averaged. On a grid the sampled action adds variance v Dt per unit time.

    X' = X + (a X + A) Dt with A ~ N(phi X, v): E X'^2 exceeds its averaged counterpart by v Dt^2 a step; over a
    horizon T the excess is Dt v int_0^T exp(2 (a + phi) s) ds + O(Dt^2), which vanishes.
    """
    a, phi = sp.symbols("a phi", real=True)
    step = (x + (a * x + u) * h) ** 2
    excess = expect(step, u, phi * x, v) - step.subs(u, phi * x)
    assert zero(excess - v * h * h)
    growth = -1.5  # a + phi
    limit = 3 * (math.exp(2 * growth) - 1) / (2 * growth)  # v = 3, T = 1
    for n in (100, 1000, 10000):
        r = 1 + growth / n
        total = 3 / n**2 * (1 - r ** (2 * n)) / (1 - r**2)  # sum of v h^2 r^(2 j), j < n
        assert n * total == pytest.approx(limit, rel=2 / n)


def test_sampled_and_averaged_schemes_have_weak_order_one():
    """theory: sampled versus averaged with control in the noise, A = B = C = D = x0 = T = 1, policy N(-1.5 x, 0.5).

    m = E X^2 solves m' = a m + D^2 v, a = 2 (A + B phi) + (C + D phi)^2, so E X_T^2 = 0.82412; the exact recursions
    of both Euler schemes are of order one, and sampling on the grid has about four times the constant.
    """
    noise, phi = sp.Rational(1, 2), sp.Rational(-3, 2)
    a = 2 * (1 + phi) + (1 + phi) ** 2
    moment = sp.exp(a * t) + noise * (sp.exp(a * t) - 1) / a
    assert zero(sp.diff(moment, t) - a * moment - noise)
    assert moment.subs(t, 0) == 1
    assert close(moment.subs(t, 1), 0.82412, 5)

    w = sp.Symbol("w", real=True)
    step = (x + (x + u) * h + (x + u) * w) ** 2
    sampled = expect(expect(step, u, phi * x, noise), w, 0, h)
    averaged = expect(((x + (1 + phi) * x * h) + w) ** 2, w, 0, h * ((x + phi * x) ** 2 + noise))
    errors = []
    for scheme in (sampled, averaged):
        gain, add = (sp.lambdify(h, sp.expand(scheme).coeff(x, n)) for n in (2, 0))
        row = []
        for n in (5, 10, 20, 40, 80):
            second = 1.0
            for _ in range(n):
                second = gain(1 / n) * second + add(1 / n)
            row.append(abs(second - float(moment.subs(t, 1))))
        errors.append(row)
    assert errors[0] == pytest.approx([0.1002, 0.0482, 0.0237, 0.0117, 0.0058], abs=5e-5)
    assert errors[1] == pytest.approx([0.0246, 0.0117, 0.0057, 0.0028, 0.0014], abs=5e-5)
    assert errors[0][-1] / errors[1][-1] == pytest.approx(4, rel=0.05)


# --- Policy evaluation -----------------------------------------------------------------------------------------------


def policy_value(rate):
    """The value of N(phi x, v) for dX = -alpha X dt + sigma dW (closed loop) from the moments of X; no HJB involved."""
    alpha, sigma, weight, R, G = sp.symbols("alpha sigma weight R G", positive=True)
    second = x**2 * sp.exp(-2 * alpha * (s - t)) + sigma**2 * (1 - sp.exp(-2 * alpha * (s - t))) / (2 * alpha)
    assert zero(sp.diff(second, s) + 2 * alpha * second - sigma**2)
    assert second.subs(s, t) == x**2
    entropy = tau * (-sp.log(2 * sp.pi * v) / 2 - sp.Rational(1, 2))  # tau E log pi
    cost = weight * x**2 / 2 + R * v / 2 + entropy  # weight = Q + R phi^2
    along = (cost - weight * x**2 / 2) + weight * second / 2
    J = sp.integrate(sp.expand(sp.exp(-rate * (s - t)) * along), (s, t, T))
    J = sp.expand(J + sp.exp(-rate * (T - t)) * G * second.subs(s, T) / 2)

    def drift(value, charge=cost):  # of exp(-rate t) J(t, X_t) + int exp(-rate s) c_s ds, by Ito, times exp(rate t)
        generator = -alpha * x * sp.diff(value, x) + sigma**2 * sp.diff(value, x, 2) / 2
        return sp.diff(value, t) + generator - rate * value + charge

    def conditional_mean(later):  # E[M_later | X_t = x] - M_t, times exp(rate t)
        quadratic, constant = (J.coeff(x, n).subs(t, later) for n in (2, 0))
        running = sp.expand(sp.exp(-rate * (s - t)) * along)
        total = sp.exp(-rate * (later - t)) * (quadratic * second.subs(s, later) + constant)
        return total + sp.integrate(running, (s, t, later)) - J

    assert zero(J.subs(t, T) - G * x**2 / 2)
    return J, drift, conditional_mean, cost, entropy, (alpha, sigma)


def test_martingale_characterisation():
    """Jia-Zhou 2022a: J(t, X_t) + int_0^t c ds is a martingale iff J is the value of the policy; c holds tau log pi.

    J comes from the moments of X, so the vanishing drift of M is not put in; E[M_t' | X_t] = M_t is checked as well.
    A J with the right terminal value and a wrong interior has a drift.
    """
    J, drift, conditional_mean, cost, entropy, (alpha, sigma) = policy_value(sp.Integer(0))
    assert zero(drift(J))
    assert zero(conditional_mean(sp.Symbol("later", real=True)))
    assert zero(drift(J, cost - entropy) + entropy)  # tau log pi left out
    theta = sp.symbols("theta", real=True)
    wrong = J + theta * (T - t) * x**2
    assert zero(drift(wrong) - theta * (-(x**2) + (T - t) * (sigma**2 - 2 * alpha * x**2)))


def test_martingale_characterisation_discounted():
    """Jia-Zhou 2022a, discounted: M_t = exp(-rho t) J(t, X_t) + int_0^t exp(-rho s) c_s ds is a martingale."""
    J, drift, conditional_mean, cost, _, _ = policy_value(rho)
    assert zero(drift(J))
    assert zero(conditional_mean(sp.Symbol("later", real=True)))
    assert zero(drift(J, cost * sp.exp(rho * t)) - cost * (sp.exp(rho * t) - 1))  # cost not discounted
    undiscounted, *_ = policy_value(sp.Integer(0))
    assert zero(drift(undiscounted) + rho * undiscounted)  # value not discounted


def known_case():
    """X = W, J = x + theta (T - t) x, no running cost, Psi = x: truth theta = 0."""
    theta, dw = sp.symbols("theta dw", real=True)
    return theta, dw, x + theta * (T - t) * x


def test_mstde_minimises_the_quadratic_variation():
    """theory: negative control (after Jia-Zhou 2022a). MSTDE is E sum (dM)^2 / dt; here X = W, J = x + theta (T - t) x.

    One step of length h from t: E (dM)^2 / h = (1 + theta (T - t - h))^2 + theta^2 h t, so h MSTDE tends to
    int_0^T (1 + theta (T - t))^2 dt = E<M>_T, least at theta = -3/(2T) although the truth is 0. With n steps the
    minimiser is exactly -3n / (2T (n + 1)).
    """
    theta, dw, J = known_case()
    dM = J.subs({t: t + h, x: x + dw}, simultaneous=True) - J
    step = expect(expect(dM**2, dw, 0, h), x, 0, t) / h
    assert zero(step - ((1 + theta * (T - t - h)) ** 2 + theta**2 * h * t))
    integrand = sp.limit(step, h, 0)
    assert zero(integrand - sp.diff(J, x) ** 2)  # d<M>/dt
    assert sp.solve(sp.diff(sp.integrate(sp.expand(integrand), (t, 0, T)), theta), theta) == [-3 / (2 * T)]

    n, i = sp.symbols("n i", positive=True, integer=True)
    total = sp.summation(sp.expand(step.subs(t, i * h).subs(h, T / n)), (i, 0, n - 1))
    (minimiser,) = sp.solve(sp.diff(total, theta), theta)
    assert zero(minimiser + 3 * n / (2 * T * (n + 1)))
    assert close(minimiser.subs({n: 200, T: 1}), -1.4925, 4)


def test_martingale_loss_has_the_true_minimiser():
    """Jia-Zhou 2022a: ML = (1/2) E int |M_T - M_t|^2 dt is here (T^2/2 + theta^2 T^4/12) / 2, least at the truth 0."""
    theta, dw, J = known_case()
    squared = (x + dw - J) ** 2  # M_T = X_T = X_t + dw, dw ~ N(0, T - t)
    integrand = expect(expect(squared, dw, 0, T - t), x, 0, t)
    loss = sp.integrate(sp.expand(integrand), (t, 0, T)) / 2
    assert zero(loss - (T**2 / 2 + theta**2 * T**4 / 12) / 2)
    assert sp.solve(sp.diff(loss, theta), theta) == [0]


def test_orthogonality_has_the_true_solution():
    """Jia-Zhou 2022a: E int xi dM = 0 has the root theta = 0 only, for CTD(0), xi = d_theta J, and for CTD(lambda).

    CTD(lambda): xi_t = int_0^t lambda^(t-s) d_theta J(s, X_s) ds, lambda = exp(-kappa), with E X_s X_t = s for s < t.
    On a grid the root of CTD(0) is also exactly 0.
    """
    theta, dw, J = known_case()
    kappa = sp.symbols("kappa", positive=True)
    feature = sp.diff(J, theta)
    drift = sp.diff(J, t) + sp.diff(J, x, 2) / 2
    td0 = sp.integrate(sp.expand(expect(feature * drift, x, 0, t)), (t, 0, T))
    assert zero(td0 + theta * T**3 / 6)

    early = feature.coeff(x, 1).subs(t, s) * sp.exp(-kappa * (t - s)) * s  # E of the integrand of xi_t times X_t
    trace = sp.integrate(sp.expand(early), (s, 0, t))
    coefficient = sp.integrate(sp.expand(trace * drift.coeff(x, 1)), (t, 0, T))
    assert zero(coefficient.subs(theta, 0))
    assert zero(sp.diff(coefficient, theta, 2))
    assert float(sp.diff(coefficient, theta).subs({kappa: 1, T: 1})) < -0.01

    dM = J.subs({t: t + h, x: x + dw}, simultaneous=True) - J
    grid = expect(expect(feature * dM, dw, 0, h), x, 0, t)
    assert zero(grid + theta * h * t * (T - t))


# --- Linear-quadratic closed forms -----------------------------------------------------------------------------------


class LQ:
    """dX = (A X + B u) dt + sum_j (C_j X + D_j u + s_j) dW^j, cost (x'Qx + 2 x'Nu + u'Ru) / 2 + q'x + r'u."""

    def __init__(self, d, m, columns):
        def full(name, rows, cols):
            return sp.Matrix(rows, cols, lambda i, j: sp.Symbol(f"{name}{i}{j}", real=True))

        def symmetric(name, n):
            return sp.Matrix(n, n, lambda i, j: sp.Symbol(f"{name}{min(i, j)}{max(i, j)}", real=True))

        self.A, self.B, self.N = full("A", d, d), full("B", d, m), full("N", d, m)
        self.noise = [(full(f"C{j}_", d, d), full(f"D{j}_", d, m), full(f"s{j}_", d, 1)) for j in range(columns)]
        self.Q, self.R, self.P = symmetric("Q", d), symmetric("R", m), symmetric("P", d)
        self.q, self.r, self.p = full("q", d, 1), full("r", m, 1), full("p", d, 1)
        self.x, self.u, self.k = full("x", d, 1), full("u", m, 1), sp.Symbol("k", real=True)
        P, p = self.P, self.p
        self.S, self.L, self.l = self.R, self.B.T * P + self.N.T, self.B.T * p + self.r
        self.half = sp.zeros(1, 1)
        for C, D, shift in self.noise:
            self.S = self.S + D.T * P * D
            self.L = self.L + D.T * P * C
            self.l = self.l + D.T * P * shift
            self.half = self.half + shift.T * P * shift / 2

    def hamiltonian(self):
        """grad V . drift + tr(sigma sigma' hess V) / 2 + running cost for V = x'Px / 2 + p'x + k."""
        x, u = self.x, self.u
        H = (self.P * x + self.p).T * (self.A * x + self.B * u)
        for C, D, shift in self.noise:
            column = C * x + D * u + shift
            H = H + column.T * self.P * column / 2
        H = H + (x.T * self.Q * x + 2 * x.T * self.N * u + u.T * self.R * u) / 2 + self.q.T * x + self.r.T * u
        return H[0]

    def time_derivatives(self, inverse):
        """P', p', k' by the formulas of the docstrings below (no entropy), given S^-1."""
        P, p, L = self.P, self.p, self.L
        dP = rho * P - self.A.T * P - P * self.A - self.Q + L.T * inverse * L
        dp = rho * p - self.A.T * p - self.q + L.T * inverse * self.l
        for C, _, shift in self.noise:
            dP = dP - C.T * P * C
            dp = dp - C.T * P * shift
        return dP, dp, rho * self.k - (self.half - self.l.T * inverse * self.l / 2)[0]

    def value(self):
        return (self.x.T * self.P * self.x / 2 + self.p.T * self.x)[0] + self.k

    def slope(self, inverse):
        dP, dp, dk = self.time_derivatives(inverse)
        return (self.x.T * dP * self.x / 2 + dp.T * self.x)[0] + dk


def test_generalised_riccati_scalar():
    """theory: generalised Riccati equation, scalar, every term, two noise columns: V = P x^2 / 2 + p x + k.

    S = R + sum D_j^2 P,  L = B P + N + sum D_j P C_j,  l = B p + r + sum D_j P s_j,  u* = -(L x + l) / S,
    -P' = -rho P + 2 A P + sum C_j^2 P + Q - L^2 / S,  -p' = -rho p + A p + sum C_j P s_j + q - L l / S,
    -k' = -rho k + sum s_j^2 P / 2 - l^2 / (2 S)  [- (tau/2) log(2 pi tau / S) when exploring].
    The HJB's bracket at another u exceeds its minimum by S (u - u*)^2 / 2: feasible iff S > 0, whatever the sign of R.
    """
    lq = LQ(1, 1, 2)
    S, inverse = lq.S[0], lq.S.inv()
    H, control = lq.hamiltonian(), lq.u[0]
    best = -(lq.L * lq.x + lq.l)[0] / S
    bracket = lq.slope(inverse) - rho * lq.value() + H
    assert zero(bracket - S * (control - best) ** 2 / 2)

    entropy = tau / 2 * sp.log(2 * sp.pi * tau / S)
    assert zero(lq.slope(inverse) + entropy - rho * lq.value() + soft_min(H, [control]))  # k' gains + entropy

    optimal = hard_min(H, [control])
    kept, (C, D, shift) = (lq.L, lq.l, lq.half), lq.noise[1]
    lq.L = kept[0] - D.T * lq.P * C
    assert differs(lq.slope(inverse) - rho * lq.value() + optimal)  # L without D P C
    lq.L, lq.l = kept[0], kept[1] - D.T * lq.P * shift
    assert differs(lq.slope(inverse) - rho * lq.value() + optimal)  # l without D P s
    lq.l, lq.half = kept[1], 2 * kept[2]
    assert differs(lq.slope(inverse) - rho * lq.value() + optimal)  # s^2 P for s^2 P / 2
    lq.half = kept[2]
    assert zero(lq.slope(inverse) - rho * lq.value() + optimal)


def test_generalised_riccati_matrix():
    """theory: generalised Riccati equation, two states, two controls, two noise columns: V = x'Px / 2 + p'x + k.

    u* = -S^-1 (L x + l), l = B'p + r + sum D_j'P s_j,
    -P' = -rho P + A'P + P A + sum C_j'P C_j + Q - L'S^-1 L, S = R + sum D_j'P D_j, L = B'P + N' + sum D_j'P C_j,
    -p' = -rho p + A'p + sum C_j'P s_j + q - L'S^-1 l,  -k' = -rho k + sum s_j'P s_j / 2 - l'S^-1 l / 2.
    """
    lq = LQ(2, 2, 2)
    W = sp.Matrix(2, 2, lambda i, j: sp.Symbol(f"W{min(i, j)}{max(i, j)}", real=True))  # stands for S^-1
    best = -W * (lq.L * lq.x + lq.l)
    control = list(lq.u)
    H = lq.hamiltonian()

    gradient = sp.Matrix([sp.diff(H, z) for z in control])
    assert (gradient - (lq.S * lq.u + lq.L * lq.x + lq.l)).expand() == sp.zeros(2, 1)  # so u* is stationary
    assert (sp.hessian(H, control) - lq.S).expand() == sp.zeros(2, 2)  # and the minimum iff S > 0
    # H(u*) = H(0) + l(x)'u* / 2 at a stationary point, with l(x) the gradient at u = 0
    at_zero = gradient.subs(dict.fromkeys(control, 0))
    minimum = H.subs(dict.fromkeys(control, 0)) + (at_zero.T * best)[0] / 2
    assert sp.expand(lq.slope(W) - rho * lq.value() + minimum) == 0


def test_negative_control_weight_is_feasible_iff_s_is_positive():
    """theory: generalised Riccati equation, indefinite R. dX = u dW, cost R u^2 / 2, terminal G x^2 / 2.

    P = G and S = R + G. Under u = phi x, E X^2 = x0^2 exp(phi^2 t): the cost is x0^2 (G + S (exp(phi^2 T) - 1)) / 2,
    least at u* = 0 when S > 0 and unbounded below when S < 0.
    """
    R, G = sp.symbols("R G", real=True)
    phi, x0 = sp.symbols("phi x0", positive=True)
    second = x0**2 * sp.exp(phi**2 * t)
    cost = sp.integrate(R * phi**2 * second / 2, (t, 0, T)) + G * second.subs(t, T) / 2
    assert zero(cost - x0**2 * (G + (R + G) * (sp.exp(phi**2 * T) - 1)) / 2)
    assert sp.limit(cost.subs({R: -1, G: 2, x0: 1, T: 1}), phi, 0) == 1
    assert sp.diff(cost.subs({R: -1, G: 2}), phi).is_positive
    assert sp.limit(cost.subs({R: -3, G: 2, x0: 1, T: 1}), phi, sp.oo) == -sp.oo


def stationary_problem():
    """Wang-Zariphopoulou-Zhou 2020 in their reward form: V = k2 x^2 / 2 + k1 x + k0, the bracket of the HJB."""
    A, B, C, D, R, P, Q, k2, k1, k0 = sp.symbols("A B C D R P Q k2 k1 k0", real=True)
    M, N = sp.symbols("M N", positive=True)
    V = k2 * x**2 / 2 + k1 * x + k0
    reward = -(M * x**2 / 2 + R * x * u + N * u**2 / 2 + P * x + Q * u)
    generator = (A * x + B * u) * sp.diff(V, x) + (C * x + D * u) ** 2 * sp.diff(V, x, 2) / 2
    S = N - k2 * D**2
    slope, intercept = k2 * (B + C * D) - R, k1 * B - Q
    return V, reward, generator, S, slope, intercept, (A, B, C, D, M, N, R, P, Q, k2, k1, k0)


def stationary_equations():
    """The three formulas of the source, as right-hand sides of rho k2, rho k1, rho k0."""
    _, _, _, S, slope, intercept, (A, _, C, _, M, _, _, P, _, k2, k1, _) = stationary_problem()
    quadratic = slope**2 / S + (2 * A + C**2) * k2 - M
    linear = intercept * slope / S + A * k1 - P
    return quadratic, linear, intercept**2 / (2 * S) + tau / 2 * sp.log(2 * sp.pi * tau / S)


def test_stationary_scalar_case():
    """Wang-Zariphopoulou-Zhou 2020, REWARD form -(M x^2/2 + R x u + N u^2/2 + P x + Q u), infinite horizon.

    rho k2 = (k2 (B + C D) - R)^2 / S + (2A + C^2) k2 - M,  rho k1 = (k1 B - Q)(k2 (B + C D) - R) / S + A k1 - P,
    rho k0 = (k1 B - Q)^2 / (2S) + (tau/2) ln(2 pi tau / S),  S = N - k2 D^2,
    pi* = N(((k2 (B + C D) - R) x + k1 B - Q) / S, tau / S), by substitution in
    rho V = max over pi of int (LV + reward) pi - tau int pi log pi.
    """
    _, reward, generator, S, slope, intercept, symbols = stationary_problem()
    k2, k1, k0 = symbols[-3:]
    best = -soft_min(-(generator + reward), [u])  # a maximum: reverse the sign twice
    right = stationary_equations()
    claimed = right[0] * x**2 / 2 + right[1] * x + right[2]
    assert zero(best - claimed)

    log_density = -((u - (slope * x + intercept) / S) ** 2) * S / (2 * tau)
    assert zero(sp.diff(generator + reward - tau * log_density, u))
    D = symbols[3]
    assert differs(best - claimed.xreplace({D**2: -(D**2)}))  # S = N + k2 D^2, the minimisation's sign

    # the same problem as a minimisation: P = -k2, p = -k1, k = -k0 in the generalised Riccati equations
    A, B, C, D, M, N, R, P, Q = symbols[:9]
    lq = LQ(1, 1, 1)
    column = lq.noise[0]
    names = [lq.A, lq.B, column[0], column[1], lq.Q, lq.R, lq.N, lq.q, lq.r, column[2], lq.P, lq.p]
    values = dict(zip([n[0] for n in names], [A, B, C, D, M, N, R, P, Q, 0, -k2, -k1], strict=True)) | {lq.k: -k0}
    dP, dp, dk = lq.time_derivatives(lq.S.inv())
    assert zero(dP[0].subs(values) + rho * k2 - right[0])
    assert zero(dp[0].subs(values) + rho * k1 - right[1])
    assert zero(dk.subs(values) + tau / 2 * sp.log(2 * sp.pi * tau / S) + rho * k0 - right[2])


def test_stationary_cost_of_exploration():
    """Wang-Zariphopoulou-Zhou 2020 (reward form): exploration costs tau / (2 rho), whatever the problem.

    The reward of pi*, entropy excluded, solves rho J = int (LJ + reward) pi*: the classical value less tau / (2 rho).
    """
    _, reward, generator, S, slope, intercept, _ = stationary_problem()
    quadratic, linear, constant = stationary_equations()
    classical = (constant - tau / 2 * sp.log(2 * sp.pi * tau / S)) / rho  # k0 without exploration
    plain = classical - tau / (2 * rho)  # the claim: k2 and k1 are kept
    policy_reward = expect(generator + reward, u, (slope * x + intercept) / S, tau / S)
    assert zero(quadratic * x**2 / 2 + linear * x + rho * plain - policy_reward)
    # and with the entropy it is the exploratory value
    entropy = sp.log(2 * sp.pi * sp.E * tau / S) / 2
    assert zero(plain + tau * entropy / rho - constant / rho)


ERGODIC = {"A": -1, "B": 0, "C": 0, "D": 1, "M": 2, "N": 2, "Q": 2, "R": 1, "P": 1}
ERGODIC_TAU = sp.Rational(1, 10)


def ergodic_solution():
    quadratic, linear, average = stationary_equations()
    _, _, _, S, slope, intercept, symbols = stationary_problem()
    k2, k1, _ = symbols[-3:]
    values = {z: ERGODIC[z.name] for z in symbols if z.name in ERGODIC}
    root = (1 - sp.sqrt(7)) / 2
    first = sp.solve(linear.subs(values).subs(k2, root), k1)[0]
    point = values | {k2: root, k1: first, tau: ERGODIC_TAU}
    return (
        quadratic.subs(values),
        k2,
        root,
        first,
        (slope / S).subs(point),
        (intercept / S).subs(point),
        (tau / S).subs(point),
        average.subs(point),
    )


def test_ergodic_example():
    """Jia-Zhou 2022b, REWARD form, average reward: A=-1, B=C=0, D=1, M=N=Q=2, R=P=1, tau=0.1.

    rho = 0 in the stationary equations; k0 drops out and the right-hand side of its equation is the average reward V,
    with the entropy bonus. k2 = (1 - sqrt 7)/2 exactly, k1 = -0.2915026, slope -0.3542487, intercept -0.7084974,
    variance 0.03542487, V = 0.6333742. The other root (1 + sqrt 7)/2 also has S > 0, but E X^2 explodes under it.
    """
    equation, k2, root, k1, slope, intercept, variance, average = ergodic_solution()
    assert sorted(sp.solve(equation, k2), key=float) == [root, (1 + sp.sqrt(7)) / 2]
    for value, printed, digits in [
        (root, -0.8228757, 7), (k1, -0.2915026, 7), (slope, -0.3542487, 7), (intercept, -0.7084974, 7),
        (variance, 0.03542487, 8), (average, 0.6333742, 7),
    ]:  # fmt: skip
        assert close(value, printed, digits)
    other = 2 - (1 + sp.sqrt(7)) / 2  # S at the other root
    # growth rate of E X^2 under u = slope x: 2 A + slope^2 with D = 1, slope = -R / S
    assert other > 0 and float(-2 + slope**2) < 0 < float(-2 + 1 / other**2)
    # the limit of small discount: rho k2 = right-hand side has a root that tends to this one
    discounted = sp.solve(equation - rho * k2, k2)
    assert any(sp.simplify(sp.limit(r, rho, 0) - root) == 0 for r in discounted)


def test_ergodic_average_reward_from_the_stationary_law():
    """Jia-Zhou 2022b (reward form): the average reward of N(phi1 x + phi2, w) from the stationary moments, no HJB.

    dX = -X dt + u dW: E X = 0, E X^2 = (phi2^2 + w) / (2 - phi1^2). With tau * entropy it is V = 0.6333742 at the
    optimal policy and stationary there; without the entropy 0.6584974 = 0.7084974 - tau/2, the latter at w = 0.
    """
    phi1, phi2 = sp.symbols("phi1 phi2", real=True)
    w = sp.symbols("w", positive=True)
    E_uu = expect(u**2, u, phi1 * x + phi2, w)
    balance = sp.expand(-2 * x**2 + E_uu)  # generator of x^2
    second = -balance.coeff(x, 0) / balance.coeff(x, 2)
    reward = sp.expand(expect(-(x**2 + x * u + u**2 + x + 2 * u), u, phi1 * x + phi2, w))
    plain = reward.coeff(x, 2) * second + reward.coeff(x, 0)  # the terms in E X vanish
    total = plain + ERGODIC_TAU * sp.log(2 * sp.pi * sp.E * w) / 2
    _, _, _, _, slope, intercept, variance, average = ergodic_solution()
    policy = {phi1: slope, phi2: intercept, w: variance}
    assert zero(total.subs(policy) - average)
    assert all(zero(sp.diff(total, z).subs(policy)) for z in (phi1, phi2, w))
    assert close(plain.subs(policy | {w: 0}), 0.7084974, 7)
    assert close(plain.subs(policy), 0.6584974, 7)
    assert abs(float(sp.diff(total, phi1).subs(policy | {phi1: slope / 2}))) > 0.01


k, sd, wanted, z, x0 = sp.symbols("k sigma w z x0", positive=True)


def mean_variance_value():
    left = T - t
    value = (x - wanted) ** 2 * sp.exp(-(k**2) * left) + tau * k**2 / 4 * (T**2 - t**2)
    return value - tau / 2 * (k**2 * T - sp.log(sd**2 / (sp.pi * tau))) * left - (wanted - z) ** 2


def mean_variance_hamiltonian(V):
    """Discounted wealth dX = sigma u (k dt + dW)."""
    return sd * k * u * sp.diff(V, x) + sd**2 * u**2 * sp.diff(V, x, 2) / 2


def test_mean_variance_value():
    """Huang-Jia-Zhou 2024, a minimisation: dX = sigma u (k dt + dW), terminal (x - w)^2 - (w - z)^2.

    V = (x-w)^2 exp(-k^2 (T-t)) + (tau k^2/4)(T^2 - t^2) - (tau/2)(k^2 T - ln(sigma^2/(pi tau)))(T-t) - (w-z)^2 solves
    V_t + min over pi of int H pi + tau int pi log pi = 0. With ln(sigma^2 pi tau) it does not.
    """
    V = mean_variance_value()
    assert zero(sp.diff(V, t) + soft_min(mean_variance_hamiltonian(V), [u]))
    assert zero(V.subs(t, T) - (x - wanted) ** 2 + (wanted - z) ** 2)
    wrong = V + tau / 2 * sp.log(sp.pi**2 * tau**2) * (T - t)  # ln(sigma^2 pi tau) for ln(sigma^2 / (pi tau))
    assert zero(sp.diff(wrong, t) + soft_min(mean_variance_hamiltonian(wrong), [u]) + tau * sp.log(sp.pi * tau))


def test_mean_variance_policy_and_exploration_cost():
    """Huang-Jia-Zhou 2024: pi* = N(-(k/sigma)(x - w), tau exp(k^2 (T-t)) / (2 sigma^2)); exploring costs tau T / 2."""
    V = mean_variance_value()
    H = mean_variance_hamiltonian(V)
    mean, variance = -k / sd * (x - wanted), tau / (2 * sd**2) * sp.exp(k**2 * (T - t))
    log_density = -((u - mean) ** 2) / (2 * variance)
    assert zero(sp.diff(H + tau * log_density, u))
    assert zero(sp.diff(H + 2 * tau * log_density, u, 2) + sp.diff(H, u, 2))  # half the variance is wrong
    assert zero(sp.integrate(sp.simplify(expect(H, u, mean, variance) - H.subs(u, mean)), (t, 0, T)) - tau * T / 2)


def test_mean_variance_multiplier():
    """Huang-Jia-Zhou 2024: w = (z exp(k^2 T) - x0) / (exp(k^2 T) - 1) makes E X_T = z and dV(0, x0)/dw = 0."""
    mean = sp.Function("mean")
    solution = sp.dsolve(mean(t).diff(t) + k**2 * (mean(t) - wanted), mean(t), ics={mean(0): x0}).rhs
    multiplier = (z * sp.exp(k**2 * T) - x0) / (sp.exp(k**2 * T) - 1)
    assert zero(solution.subs(t, T).subs(wanted, multiplier) - z)
    assert zero(sp.diff(mean_variance_value().subs({t: 0, x: x0}), wanted).subs(wanted, multiplier))


def test_mean_variance_sharpe_ratio():
    """theory: mean-variance, the best Sharpe ratio is sqrt(exp(k^2 T) - 1).

    With u = -c (x - w), X - w is a geometric Brownian motion of mean -y exp(-c sigma k T) and mean square
    y^2 exp((c^2 sigma^2 - 2 c sigma k) T); the ratio is stationary, and largest, at c = k/sigma. No strategy does
    better: the bound is sd(Z) for the pricing density Z = exp(-k W_T - k^2 T/2), since E X_T - x0 = -Cov(Z, X_T).
    """
    c, y = sp.symbols("c y", positive=True)  # y = w - x0 > 0
    first = -y * sp.exp(-c * sd * k * t)
    square = y**2 * sp.exp((c**2 * sd**2 - 2 * c * sd * k) * t)
    assert zero(sp.diff(first, t) - k * sd * (-c * first))
    assert zero(sp.diff(square, t) - (2 * k * sd * (-c) + sd**2 * c**2) * square)
    sharpe = ((first + y) / sp.sqrt(square - first**2)).subs(t, T)
    best = sp.sqrt(sp.exp(k**2 * T) - 1)
    assert zero(sharpe.subs(c, k / sd) ** 2 - best**2)
    assert zero(sp.diff(sp.log((first + y) ** 2) - sp.log(square - first**2), c).subs({t: T, c: k / sd}))
    at = {k: 1, sd: 1, T: 1, y: 1}
    assert all(float(sharpe.subs(at | {c: n})) < float(best.subs(at)) for n in (0.5, 0.9, 1.1, 2))
    density = sp.exp(-(x**2) / (2 * T)) / sp.sqrt(2 * sp.pi * T)
    moved = density.subs(x, x + 2 * k * T)  # a density again: E Z^2 is the factor in front of it
    assert sp.simplify(sp.exp(-2 * k * x - k**2 * T) * density / moved - (1 + best**2)) == 0


@pytest.mark.parametrize(
    ("mu", "sigma", "printed"),
    [(0.3, 0.2, 2.47), (0.3, 0.3, 1.18), (0.5, 0.4, 1.79), (-0.3, 0.2, 3.45), (-0.1, 0.1, 1.79), (0.1, 0.2, 0.42)],
)
def test_mean_variance_sharpe_table(mu, sigma, printed):
    """theory: mean-variance, sqrt(exp(k^2 T) - 1) at k = (mu - r)/sigma, r = 0.02, T = 1, to two digits."""
    value = sp.sqrt(sp.exp(k**2 * T) - 1).subs({k: (mu - 0.02) / sigma, T: 1})
    assert close(value, printed, 2)


def test_aid_toy():
    """theory: AID toy, b = -a x, Psi = |x - c|^2 / 2, G = (1 - exp(-2a(T-t))) / (2a), any dimension (here two).

    V = |exp(-a(T-t)) x - c|^2 / (2 (1 + G/beta)) solves the HJB; u* = -exp(-a(T-t)) (exp(-a(T-t)) x - c) / (beta + G).
    """
    a, y, c1, c2, u1, u2 = sp.symbols("a y c1 c2 u1 u2", real=True)
    decay = sp.exp(-a * (T - t))
    G = (1 - decay**2) / (2 * a)
    V = ((decay * x - c1) ** 2 + (decay * y - c2) ** 2) / (2 * (1 + G / beta))

    def hamiltonian(W):
        return sp.diff(W, x) * (u1 - a * x) + sp.diff(W, y) * (u2 - a * y) + beta / 2 * (u1**2 + u2**2)

    assert zero(sp.diff(V, t) + hard_min(hamiltonian(V), [u1, u2]))
    assert zero(V.subs(t, T) - ((x - c1) ** 2 + (y - c2) ** 2) / 2)
    best = {u1: -decay * (decay * x - c1) / (beta + G), u2: -decay * (decay * y - c2) / (beta + G)}
    assert all(zero(sp.diff(hamiltonian(V), z).subs(best)) for z in (u1, u2))
    assert sp.limit(G, a, 0) == T - t
    wrong = V.subs(beta, 2 * beta)
    assert differs(sp.diff(wrong, t) + hard_min(hamiltonian(wrong), [u1, u2]))


def regret_problem():
    A, B, C, phi1 = sp.symbols("A B C phi1", real=True)
    D, Q, H, phi2, start = sp.symbols("D Q H phi2 x0", positive=True)
    return A, B, C, D, Q, H, phi1, phi2, start, 2 * A + 2 * B * phi1 + (C + D * phi1) ** 2


def regret_closed_form(a):
    _, _, _, D, Q, H, _, phi2, start, _ = regret_problem()
    f = start**2 / (2 * a) * (Q - (Q + H * a) * sp.exp(a * T))
    g = D**2 / (2 * a**2) * (Q * T * a + (Q + H * a) * (1 - sp.exp(a * T)))
    return f, g


def test_regret_problem_closed_form():
    """Huang-Jia-Zhou 2025, REWARD form -Q x^2 / 2, terminal -H x^2 / 2, policy N(phi1 x, phi2): J = f + phi2 g,

    a = 2A + 2B phi1 + (C + D phi1)^2, f = x0^2/(2a) (Q - (Q + H a) e^{aT}),
    g = D^2/(2a^2) (Q T a + (Q + H a)(1 - e^{aT})).
    From m = E x^2, m' = a m + D^2 phi2; a is derived from the generator of x^2 under the policy. Limits at a = 0 exist.
    """
    A, B, C, D, Q, H, phi1, phi2, start, rate = regret_problem()
    generator = 2 * x * (A * x + B * u) + (C * x + D * u) ** 2
    assert zero(expect(generator, u, phi1 * x, phi2) - rate * x**2 - D**2 * phi2)
    a = sp.symbols("a", nonzero=True)
    m = start**2 * sp.exp(a * t) + D**2 * phi2 * (sp.exp(a * t) - 1) / a
    assert zero(sp.diff(m, t) - a * m - D**2 * phi2)
    assert m.subs(t, 0) == start**2
    J = -Q * sp.integrate(sp.expand(m), (t, 0, T)) / 2 - H * m.subs(t, T) / 2
    f, g = regret_closed_form(a)
    assert zero(J - f - phi2 * g)
    assert zero(sp.limit(f, a, 0) + start**2 * (Q * T + H) / 2)
    assert zero(sp.limit(g, a, 0) + D**2 * (Q * T**2 / 2 + H * T) / 2)


def test_regret_problem_optimum():
    """Huang-Jia-Zhou 2025 (reward form): the best slope is phi1 = -(B + C D)/D^2, for every phi2, T, Q, H > 0.

    a is strictly convex in phi1 with its minimum there and m = E x^2 grows with a; it is also -L/S of the generalised
    Riccati equation with no cost on u. At A=B=C=D=Q=H=x0=T=1: phi1 = -2 and J = -1/2, and -x^2/2 is the exact value.
    """
    A, B, C, D, Q, H, phi1, phi2, start, rate = regret_problem()
    best = -(B + C * D) / D**2
    assert zero(sp.diff(rate, phi1).subs(phi1, best))
    assert sp.diff(rate, phi1, 2).is_positive
    f, g = regret_closed_form(rate)
    assert zero(sp.diff(f, phi1).subs(phi1, best))
    assert zero(sp.diff(g, phi1).subs(phi1, best))
    assert sp.diff(rate, phi1).subs(phi1, -B / D**2) != 0
    real = sp.symbols("a", real=True)
    derivative = start**2 * t * sp.exp(real * t) + D**2 * phi2 * sp.Integral(s * sp.exp(real * s), (s, 0, t))  # dm/da
    m = start**2 * sp.exp(real * t) + D**2 * phi2 * sp.Integral(sp.exp(real * s), (s, 0, t))
    assert zero(sp.diff(m, real) - derivative)  # a sum of positive terms

    lq = LQ(1, 1, 1)
    column = lq.noise[0]
    plain = {lq.R[0]: 0, lq.N[0]: 0, column[0][0]: C, column[1][0]: D, lq.B[0]: B}
    assert zero((-lq.L[0] / lq.S[0]).subs(plain) - best)

    ones = dict.fromkeys((A, B, C, D, Q, H, start, T), 1)
    assert best.subs(ones) == -2
    assert sp.simplify(f.subs(phi1, -2).subs(ones)) == sp.Rational(-1, 2)
    assert float(f.subs(phi1, -1.5).subs(ones)) < -0.5 and float(f.subs(phi1, -2.5).subs(ones)) < -0.5
    V = -(x**2) / 2
    bracket = (x + u) * sp.diff(V, x) + (x + u) ** 2 * sp.diff(V, x, 2) / 2 - x**2 / 2
    assert zero(-hard_min(-bracket, [u]))


# --- ART: the clock as control ---------------------------------------------------------------------------------------


def test_art_local_error():
    """Huang-Tang-Zhou 2026: for x' = theta F(x, psi), psi' = theta, one Euler step errs by h^2 theta^2 Q / 2 + O(h^3).

    Q = F_x F + F_psi, the derivative of the drift along itself, i.e. the second derivative in psi of the flow.
    """
    psi, theta = sp.symbols("psi theta", real=True)
    F, path = sp.Function("F"), sp.Function("x")
    Q = sp.diff(F(x, psi), x) * F(x, psi) + sp.diff(F(x, psi), psi)
    velocity = theta * F(path(t), psi + theta * t)
    second = sp.diff(velocity, t).doit().subs(sp.diff(path(t), t), velocity).doit()
    assert zero(second.subs(path(t), x).subs(t, 0).doit() - theta**2 * Q)

    flow = x * sp.sqrt((1 + (psi + theta * h) ** 2) / (1 + psi**2))  # exact for F = psi x / (1 + psi^2)
    field = psi * x / (1 + psi**2)
    here = sp.diff(field, x) * field + sp.diff(field, psi)
    error = flow - (x + h * theta * field)
    assert zero(sp.limit(error / h**2, h, 0) - theta**2 * here / 2)


def test_art_stationarity_and_policy():
    """Huang-Tang-Zhou 2026, a MAXIMISATION of -int |Q| theta^2 with int theta = T (multiplier gamma).

    mu* = (V_x F + V_psi - gamma) / (2 |Q|) maximises the Hamiltonian; N(mu, lambda/|Q|) is its Gibbs policy at
    temperature 2 lambda (AID's tau = 2 lambda / d with d = 1 and beta = 2 |Q|); V + lambda t solves the averaged HJB,
    with the terminal value raised by lambda T.
    """
    Vx, Vpsi, F, gamma, theta, mu, Vt = sp.symbols("Vx Vpsi F gamma theta mu Vt", real=True)
    Q = sp.symbols("Q", positive=True)
    H = theta * (Vx * F + Vpsi) - Q * theta**2 - gamma * theta
    best = (Vx * F + Vpsi - gamma) / (2 * Q)
    assert zero(sp.diff(H, theta).subs(theta, best)) and sp.diff(H, theta, 2).is_negative
    assert sp.diff(H, theta).subs(theta, 2 * best).subs({Vx: 0, Vpsi: 1, gamma: 0, Q: 1}) != 0  # the 2 in 2 |Q|

    log_density = -((theta - best) ** 2) / (2 * lam / Q)
    assert zero(sp.diff(H - 2 * lam * log_density, theta))
    assert differs(sp.diff(H - lam * log_density, theta))

    averaged = expect(H, theta, mu, lam / Q)
    (slope,) = sp.solve(Vt + H.subs(theta, best), Vt)  # the HJB of the deterministic problem
    assert zero(sp.diff(averaged, mu).subs(mu, best))  # the mean is the deterministic optimum
    assert zero(slope + lam + averaged.subs(mu, best))  # d/dt (V + lambda t) = V_t + lambda


def flow_drift(at):
    """F in the direction of sampling, psi = T - s, for data N(0, 1) and dx = sqrt(2 s) dw."""
    return -at * x / (1 + at**2)


def test_art_check_probability_flow():
    """theory: ART check, p0 = N(0, 1), dx = sqrt(2 s) dw has p_s = N(0, 1 + s^2).

    Its probability flow has drift s x / (1 + s^2) = (x - D)/s with D = x / (1 + s^2) the denoiser; both transport p_s.
    """
    density = sp.exp(-(x**2) / (2 * (1 + s**2))) / sp.sqrt(2 * sp.pi * (1 + s**2))
    assert zero(sp.diff(density, s) - s * sp.diff(density, x, 2))  # Fokker-Planck, (2 s) / 2
    drift = s * x / (1 + s**2)
    assert zero(sp.diff(density, s) + sp.diff(drift * density, x))  # continuity equation
    assert zero(drift - (x - x / (1 + s**2)) / s)
    assert zero(drift + flow_drift(s))
    assert differs(sp.diff(density, s) + sp.diff(2 * drift * density, x))


def test_art_check_second_derivative_of_the_flow():
    """theory: ART check, the flow is x0 (1 + s^2)^(1/2), so Q = x / (1 + s^2)^2, |Q| ∝ (1 + s^2)^(-3/2) along it."""
    psi, scale = sp.symbols("psi scale", positive=True)
    level = T - psi
    path = scale * sp.sqrt(1 + level**2)
    assert zero(sp.diff(path, psi) - flow_drift(level).subs(x, path))
    field = flow_drift(level)
    Q = sp.diff(field, x) * field + sp.diff(field, psi)
    assert zero(Q - x / (1 + level**2) ** 2)
    assert zero(sp.diff(path, psi, 2) - Q.subs(x, path))
    assert zero(sp.diff(path, psi, 2) - scale * (1 + level**2) ** sp.Rational(-3, 2))


def euler_lagrange_powers(exponent):
    """The p for which theta ∝ (1 + s^2)^p is an extremal of int (1 + s^2)^exponent psi'^2 dt, s = T - psi."""
    psi, velocity, power, c = sp.symbols("psi velocity power c", positive=True)
    level = 1 + (T - psi) ** 2
    lagrangian = level**exponent * velocity**2
    theta = c * level**power
    acceleration = sp.diff(theta, psi) * theta  # psi'' along psi' = theta(psi)
    momentum = sp.diff(lagrangian, velocity)
    rate = sp.diff(momentum, psi) * velocity + sp.diff(momentum, velocity) * acceleration
    residual = (rate - sp.diff(lagrangian, psi)).subs(velocity, theta)
    powers = sp.solve(sp.simplify(residual / (lagrangian.subs(velocity, theta) * (T - psi)) * level), power)
    assert all(zero(residual.subs(power, p)) for p in powers)
    return powers


def test_art_check_schedule():
    """theory: ART check, theta* ∝ (1 + s^2)^(3/4), s = T - psi, by Euler-Lagrange.

    Reading: minimise int_0^T |Q| psi'^2 dt over psi(0) = 0, psi(T) = T, theta = psi', with |Q| along the flow: the path
    does not depend on the clock, so |Q| is a function of psi alone, ∝ (1 + s^2)^(-3/2). The conserved quantity is
    |Q| theta^2, so theta ∝ |Q|^(-1/2). Among the powers of 1 + s^2 only 3/4 satisfies the Euler-Lagrange equation.
    """
    assert euler_lagrange_powers(sp.Rational(-3, 2)) == [sp.Rational(3, 4)]


def test_art_check_value():
    """theory: ART check (maximisation): V = -I^2 / (T - t), I = int_psi^T |Q|^(1/2), solves the HJB of the check.

    V_t + (V_x F + V_psi)^2 / (4 |Q|) = 0 with |Q| = |x| / (1 + s^2)^2; the control is I / ((T - t) |Q|^(1/2)) > 0, and
    t -> I / (T - t) is constant along it, so it is ∝ (1 + s^2)^(3/4). Adding gamma (psi - T) gives the form with the
    multiplier, and the same mu*.
    """
    psi, gamma = sp.symbols("psi gamma", real=True)
    r = sp.Symbol("r", real=True)
    state = sp.Symbol("x", positive=True)
    level = T - psi
    field, Q = flow_drift(level).subs(x, state), state / (1 + level**2) ** 2
    # x (1 + s^2)^(-1/2) is constant along the flow: at level r of the path |Q| = x (1 + s^2)^(-1/2) (1 + r^2)^(-3/2)
    I = (
        sp.sqrt(state)
        * (1 + level**2) ** sp.Rational(-1, 4)
        * sp.Integral((1 + r**2) ** sp.Rational(-3, 4), (r, 0, level))
    )
    V = -(I**2) / (T - t)

    def along(value):
        return sp.diff(value, state) * field + sp.diff(value, psi)

    assert zero(along(I) + sp.sqrt(Q))
    assert zero(sp.diff(V, t) + along(V) ** 2 / (4 * Q))
    mu = along(V) / (2 * Q)
    assert zero(mu - I / ((T - t) * sp.sqrt(Q)))
    ratio = I / (T - t)
    assert zero(sp.diff(ratio, t) + mu * along(ratio))  # constant along the controlled path
    with_multiplier = V + gamma * (psi - T)
    assert zero((along(with_multiplier) - gamma) / (2 * Q) - mu)
    assert zero(sp.diff(with_multiplier, t) + (along(with_multiplier) - gamma) ** 2 / (4 * Q))


def euler_distance(grid) -> float:
    """W2 between N(0, 1) and the end law of Euler on these levels from the exact N(0, 1 + T^2): a product of gains."""
    deviation = math.sqrt(1 + grid[0] ** 2)
    for here, after in zip(grid[:-1], grid[1:], strict=True):
        deviation *= 1 + (after - here) * here / (1 + here**2)
    return abs(deviation - 1)


def clock(power, steps, end=3.0):
    """Levels of theta ∝ (1 + s^2)^power: equal steps of int (1 + s^2)^-power."""

    def length(level):
        return quad(lambda r: (1 + r * r) ** -power, 0, level)[0]

    inner = [brentq(lambda level, n=n: length(level) - length(end) * (1 - n / steps), 0, end) for n in range(1, steps)]
    return [end, *inner, 0.0]


def karras(steps, last=0.0, end=3.0):
    return [(end ** (1 / 7) + n / steps * (last ** (1 / 7) - end ** (1 / 7))) ** 7 for n in range(steps + 1)]


STEPS = (2, 5, 10, 20, 50, 100)


@pytest.mark.parametrize(
    ("levels", "printed"),
    [
        (lambda n: clock(0.75, n), [0.349, 0.149, 0.077, 0.039, 0.016, 0.008]),
        (lambda n: clock(0.0, n), [0.465, 0.212, 0.110, 0.057, 0.023, 0.012]),
        (karras, [0.662, 0.316, 0.174, 0.091, 0.037, 0.019]),
        (lambda n: [*karras(n - 1, 0.002), 0.0], [0.682, 0.265, 0.128, 0.063, 0.025, 0.012]),
    ],
    ids=["art", "uniform", "rho 7 to zero", "rho 7 to 0.002, then zero"],
)
def test_art_check_distances(levels, printed):
    """theory: ART check, W2 of K = 2, 5, 10, 20, 50, 100 Euler steps, T = 3, started at the exact N(0, 1 + T^2).

    The third row, called EDM in the source, is the rho = 7 rule taken down to level 0; EDM's own grid, rho = 7 down to
    0.002 and then 0, is the last row and mostly better.
    """
    assert [euler_distance(levels(n)) for n in STEPS] == pytest.approx(printed, abs=5.1e-4)


def test_art_check_terminal_error_would_choose_power_one():
    """theory: ART check. An error made at level s reaches the end times (1 + s^2)^(-1/2), which |Q| theta^2 leaves out.

    With that weight Euler-Lagrange gives theta ∝ 1 + s^2 and K W2 -> arctan(T)^2 / 2: slightly less than ART's.
    """
    psi = sp.Symbol("psi", positive=True)
    level = T - psi
    gain = 1 / sp.sqrt(1 + level**2)
    assert zero(sp.diff(gain, psi) + gain * sp.diff(flow_drift(level), x))  # adjoint of the flow, 1 at the end
    assert euler_lagrange_powers(sp.Rational(-3, 2) - sp.Rational(1, 2)) == [1]
    assert 100 * euler_distance(clock(1.0, 100)) == pytest.approx(math.atan(3) ** 2 / 2, rel=0.01)
    assert all(euler_distance(clock(1.0, n)) < euler_distance(clock(0.75, n)) for n in STEPS)
