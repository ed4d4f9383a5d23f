"""Named problems against their published or independently computed numbers; rewards are minus our costs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid_control.hjb import residual
from aid_control.lq import AffineGaussian, AIDToy, LQProblem, algebraic, evaluate, riccati, scheme_value, zoo

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def grid(steps, end=1.0):
    return torch.linspace(0, end, steps + 1, dtype=F64)


# --- Ornstein-Uhlenbeck with quadratic costs -------------------------------------------------------------------------

OU = {
    # F(0), J*, J(u = 0), and by the number of Euler-Maruyama steps: J of the optimum, time-mean of E|u*|^2
    False: (0.292554, 5.818225, 7.135465, {50: (5.790987, 1.995256)}),
    True: (1.313456, 28.611741, 95.401959, {50: (28.763588, 31.2945), 150: (28.660614, 30.9934)}),
}


def ou_start():
    """The source draws it in float32 after torch.manual_seed(0)."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    x0 = 0.5 * torch.randn(20, dtype=torch.float32)
    torch.random.set_rng_state(state)
    return x0


def test_the_start_of_the_ou_problem():
    assert ou_start().square().sum().item() == pytest.approx(6.025702, abs=2e-6)


@pytest.mark.parametrize("hard", [False, True])
def test_ou_quadratic(hard):
    """V = x'Fx + int tr F, F = P/2, u* = -2Fx.  The coordinates do not meet: twenty rows of the problem with d = 1."""
    curvature, best, idle, by_steps = OU[hard]
    problem, x = zoo.ou_quadratic(hard, dim=1), ou_start().double()[:, None]
    solution = riccati(problem)
    assert solution.value.terms(0.0)[0].item() == pytest.approx(2 * curvature, abs=2e-6)
    assert solution.value(0.0, x).sum().item() == pytest.approx(best, abs=2e-6)
    assert torch.allclose(solution.policy.mean(torch.tensor(0.0), x), -2 * curvature * x, atol=2e-6)
    nothing = AffineGaussian.constant([[0.0]])
    assert evaluate(problem, nothing)(0.0, x).sum().item() == pytest.approx(idle, abs=2e-6)
    square = LQProblem(problem.at("A", 0.0), 1.0, R=2.0, s=[[1.0]])  # its cost is int |u|^2
    for steps, (cost, size) in by_steps.items():
        found = [scheme_value(p, solution.policy, grid(steps), "mean")(0.0, x).sum().item() for p in (problem, square)]
        assert found == [pytest.approx(cost, abs=2e-6), pytest.approx(size, rel=2e-6)]


def test_ou_quadratic_in_its_twenty_dimensions():
    solution, x = riccati(zoo.ou_quadratic()), ou_start().double()[None]
    assert torch.allclose(solution.value.terms(0.0)[0], 2 * 0.292554 * torch.eye(20, dtype=F64), atol=2e-6)
    assert solution.value(0.0, x).item() == pytest.approx(5.818225, abs=2e-6)


@pytest.mark.parametrize("hard", [False, True])
def test_ou_quadratic_by_its_scalar_equation(hard):
    """-F' = 2aF - 2F^2 + w: with r the roots of the right-hand side, (F - r1)/(F - r2) is an exponential."""
    a, w, g = (1.0, 1.0, 0.5) if hard else (0.2, 0.2, 0.1)
    root = math.sqrt(a * a + 2 * w)
    r1, r2 = (a + root) / 2, (a - root) / 2
    value = riccati(zoo.ou_quadratic(hard, dim=2)).value
    for t in (0.0, 0.3, 0.8):
        ratio = (g - r1) / (g - r2) * math.exp(-2 * (r1 - r2) * (1 - t))
        wanted = (r1 - r2 * ratio) / (1 - ratio)
        assert torch.allclose(value.terms(t)[0], 2 * wanted * torch.eye(2, dtype=F64), rtol=1e-10)


# --- Sublinear regret ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("horizon", [1.0, 3.0])
def test_regret(horizon):
    """The best gain is -(B + CD)/D^2 = -2 at all times; then dX = -X dt - X dW, E X^2 = e^{-t} and J = -1/2."""
    solution = riccati(zoo.regret(horizon))
    for t in (0.0, 0.4, 1.0):
        gain, offset, _ = solution.policy.law(torch.tensor(t * horizon, dtype=F64))
        assert gain.item() == pytest.approx(-2.0, rel=1e-12) and offset.item() == 0
        assert solution.value(t * horizon, torch.ones(1, 1, dtype=F64)).item() == pytest.approx(0.5, rel=1e-11)


def test_the_regret_of_the_first_gain():
    """phi1 = -0.5 with phi2 = 5, where their experiment starts: a = 2 - 1 + 1/4 = 5/4, by the formula of the paper."""
    a, phi2 = 1.25, 5.0
    f = (1 - (1 + a) * math.exp(a)) / (2 * a)
    g = (a + (1 + a) * (1 - math.exp(a))) / (2 * a**2)
    value = evaluate(zoo.regret(), AffineGaussian.constant([[-0.5]], covariance=phi2))
    assert -value(0.0, torch.ones(1, 1, dtype=F64)).item() == pytest.approx(f + phi2 * g, rel=1e-11)


# --- Stationary problems ---------------------------------------------------------------------------------------------


def test_ergodic_jia_zhou():
    solution = algebraic(zoo.ergodic_jia_zhou(), 0.1)
    gain, offset, variance = (a.item() for a in solution.policy.law(torch.tensor(0.0)))
    assert gain == pytest.approx(-0.3542487, abs=5e-8)
    assert offset == pytest.approx(-0.7084974, abs=5e-8)
    assert variance == pytest.approx(0.03542487, abs=5e-9)
    assert -solution.average.item() == pytest.approx(0.6333742, abs=5e-8)


def test_the_example_of_wang_zariphopoulou_and_zhou_is_well_posed():
    """Their four equations with V = k2 x^2/2 + k1 x + k0 (a reward) hold for what is found."""
    A, B, C, D, M, N, R, P, Q, rho, tau = -1.0, 1.0, 0.3, 0.5, 2.0, 2.0, 0.5, 0.3, 0.2, 1.0, 0.7  # noqa: N806
    solution = algebraic(zoo.wang_zariphopoulou_zhou(), tau)
    k2, k1, k0 = (-a.item() for a in solution.value.terms(0.0))
    s = N - k2 * D**2
    assert rho * k2 == pytest.approx((k2 * (B + C * D) - R) ** 2 / s + (2 * A + C**2) * k2 - M, rel=1e-11)
    assert rho * k1 == pytest.approx((k1 * B - Q) * (k2 * (B + C * D) - R) / s + A * k1 - P, rel=1e-11)
    assert rho * k0 == pytest.approx((k1 * B - Q) ** 2 / (2 * s) + tau / 2 * math.log(2 * math.pi * tau / s), rel=1e-11)
    gain, offset, variance = (a.item() for a in solution.policy.law(torch.tensor(0.0)))
    assert gain == pytest.approx((k2 * (B + C * D) - R) / s) and offset == pytest.approx((k1 * B - Q) / s)
    assert variance == pytest.approx(tau / s) and k2 < 0


# --- Mean-variance ---------------------------------------------------------------------------------------------------

# mu, sigma -> best Sharpe ratio, and with 252 steps of a held control, of the table in Jia & Zhou's setting
SHARPE = {
    (0.3, 0.2): (2.47, 2.46),
    (0.3, 0.3): (1.18, 1.18),
    (0.5, 0.4): (1.79, 1.79),
    (-0.3, 0.2): (3.45, 3.43),
    (-0.1, 0.1): (1.79, 1.79),
    (0.1, 0.2): (0.42, 0.42),
}
START, GOAL, RATE = 1.0, 1.4, 0.02


def price(mu, sigma):
    return (mu - RATE) / sigma


def multiplier(k, horizon=1.0):
    return (GOAL * math.exp(k * k * horizon) - START) / math.expm1(k * k * horizon)


@pytest.mark.parametrize(("mu", "sigma"), list(SHARPE))
def test_mean_variance(mu, sigma):
    """Value and policy of Wang & Zhou at several times and temperatures (theory's formula, y = x - w)."""
    k = price(mu, sigma)
    w = multiplier(k)
    x = torch.tensor([[START], [2.0], [0.3]], dtype=F64)
    for tau in (0.0, 0.1, 2.0):
        solution = riccati(zoo.mean_variance(mu, sigma, RATE), tau)
        for t in (0.0, 0.25, 0.9):
            wanted = (x[:, 0] - w) ** 2 * math.exp(-k * k * (1 - t)) - (w - GOAL) ** 2
            if tau:
                wanted = wanted + tau * k * k / 4 * (1 - t * t)
                wanted = wanted - tau / 2 * (k * k - math.log(sigma**2 / (math.pi * tau))) * (1 - t)
            assert torch.allclose(solution.value(t, x - w) - (w - GOAL) ** 2, wanted, rtol=1e-9, atol=1e-9)
            at = torch.tensor(t, dtype=F64)
            assert torch.allclose(solution.policy.mean(at, x - w), -k / sigma * (x - w), rtol=1e-9)
            variance = tau / (2 * sigma**2) * math.exp(k * k * (1 - t))
            assert solution.policy.covariance(at).item() == pytest.approx(variance, rel=1e-9)


@pytest.mark.parametrize(("mu", "sigma"), list(SHARPE))
def test_sharpe_ratios(mu, sigma):
    """The multiplier makes the mean of terminal wealth the goal; the ratio is sqrt(e^{k^2 T} - 1)."""
    problem, k = zoo.mean_variance(mu, sigma, RATE), price(mu, sigma)
    w = multiplier(k)
    policy = riccati(problem).policy
    # E y_T and E y_T^2 as costs of their own
    line, square = (LQProblem(0.0, mu - RATE, R=0.0, D=sigma, **c) for c in ({"g": 1.0}, {"G": 2.0}))
    y = torch.full((1, 1), START - w, dtype=F64)

    def ratio(mean, second):
        return (w + mean - START) / math.sqrt(second - mean**2)

    exact = [evaluate(p, policy)(0.0, y).item() for p in (line, square)]
    assert w + exact[0] == pytest.approx(GOAL, rel=1e-9)
    assert ratio(*exact) == pytest.approx(math.sqrt(math.expm1(k * k)), rel=1e-7)
    daily = [scheme_value(p, policy, grid(252), "mean")(0.0, y).item() for p in (line, square)]
    assert (round(ratio(*exact), 2), round(ratio(*daily), 2)) == SHARPE[mu, sigma]


def test_no_other_gain_has_a_better_sharpe_ratio():
    mu, sigma = 0.3, 0.2
    best = -price(mu, sigma) / sigma

    def ratio(gain):
        policy, y = AffineGaussian.constant([[gain]]), torch.full((1, 1), -1.0, dtype=F64)
        line, square = (LQProblem(0.0, mu - RATE, R=0.0, D=sigma, **c) for c in ({"g": 1.0}, {"G": 2.0}))
        mean, second = (evaluate(p, policy)(0.0, y).item() for p in (line, square))
        return (1 + mean) / math.sqrt(second - mean**2)

    assert ratio(best) > max(ratio(best * f) for f in (0.5, 0.9, 0.99, 1.01, 1.1, 1.5))


def test_mean_variance_over_another_horizon():
    k, tau, end = price(0.3, 0.2), 0.1, 2.5
    y = torch.tensor([[0.8]], dtype=F64)
    found = riccati(zoo.mean_variance(0.3, 0.2, RATE, horizon=end), tau).value(0.5, y).item()
    wanted = 0.64 * math.exp(-k * k * 2) + tau * k * k / 4 * (end**2 - 0.25)
    wanted -= tau / 2 * (k * k * end - math.log(0.04 / (math.pi * tau))) * 2
    assert found == pytest.approx(wanted, rel=1e-9)


# --- The toy ---------------------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    a=st.sampled_from([-1.0, 0.0, 0.4, 2.0]), beta=st.floats(0.1, 3), dim=st.integers(1, 3),
    horizon=st.floats(0.3, 2), seed=st.integers(0, 1000), tau=st.sampled_from([0.0, 0.2, 4.0]),
)  # fmt: skip
def test_the_aid_toy_is_the_aid_toy(a, beta, dim, horizon, seed, tau):
    goal, x = randn(dim, seed=seed), randn(4, dim, seed=seed + 1)
    toy, goals = AIDToy(a, beta, horizon), goal.expand(4, dim)
    solution = riccati(zoo.aid_toy(a, beta, goal, dim, horizon), tau)
    for t in (0.0, 0.5, 1.0):
        at = torch.tensor(t * horizon, dtype=F64)
        value = solution.value(at, x) + 0.5 * goal.square().sum()
        wanted = toy.exploratory_value(at, x, goals, tau) if tau else toy.value(at, x, goals)
        assert torch.allclose(value, wanted, rtol=1e-9, atol=1e-9)
        assert torch.allclose(solution.policy.mean(at, x), toy.optimal_control(at, x, goals), rtol=1e-9, atol=1e-9)
        wanted = tau / beta * torch.eye(dim, dtype=F64)
        assert torch.allclose(solution.policy.covariance(at), wanted, rtol=1e-9)


def test_a_plain_number_is_a_time_of_full_precision():
    """Not one rounded to float32: states in float64 deserve a value in float64."""
    toy, x, goal = AIDToy(-1.0, 1.0, 1.58), randn(4, 1), randn(4, 1, seed=1)
    at = torch.tensor(0.1, dtype=F64)
    assert torch.allclose(toy.value(0.1, x, goal), toy.value(at, x, goal), rtol=1e-13)
    assert torch.allclose(toy.optimal_control(0.1, x, goal), toy.optimal_control(at, x, goal), rtol=1e-13)
    assert torch.allclose(toy.exploratory_value(0.1, x, goal, 1.0), toy.exploratory_value(at, x, goal, 1.0), rtol=1e-13)


def test_a_number_is_the_goal_of_every_coordinate():
    problem = zoo.aid_toy(goal=2.0, dim=3)
    assert torch.equal(problem.at("g", 0.0), torch.full((3,), -2.0, dtype=F64))


# --- Guidance of Gaussian images -------------------------------------------------------------------------------------


class GaussianGuidance:
    """The continuous closed form, in the eigenbasis U of C = U diag(l) U'.

    The flow from sigma to the end multiplies mode l by sqrt((l + e^2)/(l + sigma^2)), e = sigma_min: this is Phi, and
    int_t^T Phi^2 dr = (l + e^2) int_e^sigma ds/(l + s^2), an arc tangent (1/e - 1/sigma for l = 0).
    """

    def __init__(self, covariance, target, mean, beta, sigma_max, sigma_min):
        self.l, self.basis = torch.linalg.eigh(covariance)
        self.l = self.l.clamp(min=0)
        self.target, self.mean, self.beta, self.sigma_max, self.end = target, mean, beta, sigma_max, sigma_min

    def terms(self, t, x):
        sigma, e, l = self.sigma_max - t, self.end, self.l
        phi = ((l + e**2) / (l + sigma**2)).sqrt()
        root = l.sqrt().clamp(min=1e-300)
        arc = torch.where(l > 0, (torch.atan(sigma / root) - torch.atan(e / root)) / root, 1 / e - 1 / sigma)
        gap = phi * ((x - self.mean) @ self.basis) - (self.target - self.mean) @ self.basis
        return phi, 1 + (l + e**2) * arc / self.beta, gap

    def value(self, t, x):
        _, spread, gap = self.terms(t, x)
        return 0.5 * (gap.square() / spread).sum(1) - 0.5 * self.target.square().sum()

    def control(self, t, x):
        phi, spread, gap = self.terms(t, x)
        return -(phi * gap / spread) @ self.basis.mT / self.beta


@pytest.mark.parametrize("beta", [0.1, 1.0, 20.0])
@pytest.mark.parametrize("rank", [2, 4])
def test_gaussian_drift_guidance(beta, rank):
    """u* = -(1/beta) Phi'(I + (1/beta) int Phi Phi')^{-1} (F(t, x) - m), with and without directions of no variance."""
    half = randn(4, rank)
    covariance, target, mean = half @ half.mT, randn(4, seed=1), randn(4, seed=2)
    sizes = {"beta": beta, "sigma_max": 3.0, "sigma_min": 0.2}
    problem = zoo.gaussian_drift_guidance(covariance, target, mean, **sizes)
    exact = GaussianGuidance(covariance, target, mean, **sizes)
    assert problem.horizon == pytest.approx(2.8)
    solution, x = riccati(problem), 2 * randn(5, 4, seed=3)
    for t in (0.0, 1.1, 2.6, 2.8):
        at = torch.tensor(t, dtype=F64)
        assert torch.allclose(solution.value(t, x), exact.value(t, x), rtol=1e-8, atol=1e-8)
        assert torch.allclose(solution.policy.mean(at, x), exact.control(t, x), rtol=1e-8, atol=1e-8)
    # the closed form itself, put into the problem's own equation
    for t in (0.0, 1.1, 2.6):
        assert residual(problem, exact.value, torch.tensor(t, dtype=F64), x).abs().max() < 1e-10


def test_the_defaults_of_gaussian_drift_guidance():
    """sigma from 10 to 0.01, a mean of zero, beta = 1; the drift is that of the denoiser C (C + s^2)^{-1} x."""
    covariance = torch.diag(torch.tensor([2.0, 0.5], dtype=F64))
    problem, x = zoo.gaussian_drift_guidance(covariance, torch.ones(2)), randn(3, 2)
    assert problem.horizon == pytest.approx(9.99)
    for t in (0.0, 5.0, 9.9):
        sigma = 10 - t
        denoised = x @ (covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(2, dtype=F64)))
        drift = problem.drift(torch.tensor(t, dtype=F64), x, None, None)
        assert torch.allclose(drift, (denoised - x) / sigma, rtol=1e-10)
    exact = GaussianGuidance(covariance, torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64), 1.0, 10.0, 0.01)
    assert torch.allclose(riccati(problem).value(0.0, x), exact.value(0.0, x), rtol=1e-8)
