"""The value of any affine Gaussian policy: its equation, closed forms, the optimum, and exact policy iteration."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import expm

from aid_control.hjb import derivatives, hamiltonian, in_control
from aid_control.lq import (
    AffineGaussian,
    LQProblem,
    evaluate,
    exploration_cost,
    improve,
    policy_iteration,
    riccati,
    zoo,
)

F64 = torch.float64
SEED = st.integers(0, 10**6)
SIZES = {"d": st.integers(1, 3), "m": st.integers(1, 3), "n": st.integers(1, 2)}


def near(value, wanted, rtol=1e-9, atol=1e-9):
    return torch.allclose(torch.as_tensor(value), torch.as_tensor(wanted, dtype=F64), rtol=rtol, atol=atol)


class Draw:
    """Random matrices of one seed."""

    def __init__(self, seed):
        self.gen = torch.Generator().manual_seed(seed)

    def __call__(self, *shape, scale=1.0):
        return scale * torch.randn(*shape, generator=self.gen, dtype=F64)

    def positive(self, d, floor=0.2):
        half = self(d, d)
        return half @ half.mT / d + floor * torch.eye(d, dtype=F64)


def make(d, m, n, seed):
    r = Draw(seed)
    return {
        "A": r(d, d) / d**0.5, "B": r(d, m), "C": r(n, d, d, scale=0.3), "D": r(n, d, m, scale=0.3), "s": r(n, d),
        "b": r(d), "Q": r.positive(d, 1.0), "R": r.positive(m, 0.5), "N": r(d, m, scale=0.2), "q": r(d), "r": r(m),
        "G": r.positive(d), "g": r(d),
    }  # fmt: skip


def some_policy(d, m, seed, spread=1.0):
    r = Draw(seed + 1)
    return AffineGaussian.constant(r(m, d, scale=0.5), r(m), spread * r.positive(m))


# --- The equation ----------------------------------------------------------------------------------------------------


@settings(max_examples=14, deadline=None, derandomize=True)
@given(**SIZES, seed=SEED, rho=st.sampled_from([0.0, 0.8]), tau=st.sampled_from([0.0, 0.4, 50.0]))
def test_the_value_solves_the_equation_of_its_policy(d, m, n, seed, rho, tau):
    """V_t - rho V + E_pi H + tau E log pi = 0; the mean of a quadratic is exact on the 2m points m +- sqrt(m) F e_i."""
    problem, r = LQProblem(**make(d, m, n, seed), discount=rho, horizon=1.4), Draw(seed + 1)
    gain, offset, covariance = r(m, d, scale=0.5), r(m), r.positive(m)
    policy = AffineGaussian(lambda t: (math.cos(2 * t) * gain, t * offset, (1 + t) * covariance))
    value, x = evaluate(problem, policy, tau), r(5, d)
    for at in (0.0, 0.33, 1.4):
        t = torch.tensor(at, dtype=F64)
        v, v_t, p, y = derivatives(value, t, x)
        mean, factor = policy.mean(t, x), policy.std(t)
        points = [mean + sign * m**0.5 * factor[:, i] for i in range(m) for sign in (1, -1)]
        energy = torch.stack([hamiltonian(problem, t, x, u, p, y) for u in points]).mean(0)
        entropy = policy.entropy(t, mean)
        size = max(float(a.abs().max()) for a in (v_t, rho * v, energy, tau * entropy))
        assert (v_t - rho * v + energy - tau * entropy).abs().max() <= 1e-8 * size
        big = value.terms(at)[0]
        assert (big - big.mT).abs().max() <= 1e-13 * big.abs().max()
    assert near(value(1.4, x), problem.terminal_cost(x), rtol=1e-12, atol=1e-12 * max(1, tau))


@settings(max_examples=10, deadline=None, derandomize=True)
@given(d=st.integers(1, 4), seed=SEED, rho=st.sampled_from([0.0, 0.8]))
def test_without_noise_and_spread_the_flow_is_an_exponential(d, seed, rho):
    """The cost of a linear feedback by the exponential of the closed loop and of Van Loan's block matrix."""
    c = {k: v for k, v in make(d, 1, 1, seed).items() if k in "ABQRNG"}
    gain, end = Draw(seed)(1, d, scale=0.5), 1.3
    value = evaluate(LQProblem(**c, discount=rho, horizon=end), AffineGaussian.constant(gain))
    loop = (c["A"] + c["B"] @ gain).numpy() - rho / 2 * np.eye(d)
    weight = (c["Q"] + c["N"] @ gain + gain.mT @ c["N"].mT + gain.mT @ c["R"] @ gain).numpy()
    for t in (0.0, 0.9):
        block = expm(np.block([[-loop.T, weight], [np.zeros((d, d)), loop]]) * (end - t))
        flow = block[d:, d:]
        wanted = flow.T @ (block[:d, d:] + c["G"].numpy() @ flow)
        assert near(value.terms(t)[0], torch.from_numpy(wanted), rtol=1e-10)


def test_entropy_and_spread_are_counted_apart():
    """evaluate(tau) = evaluate(0) - tau H (1 - e^{-rho T})/rho for a constant spread."""
    problem = LQProblem(**make(2, 2, 1, 4), discount=0.5, horizon=2.0)
    policy, x = some_policy(2, 2, 4), Draw(0)(3, 2)
    covariance = policy.law(torch.tensor(0.0))[2]
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * covariance))
    gap = evaluate(problem, policy, 0.7)(0.0, x) - evaluate(problem, policy)(0.0, x)
    assert near(gap, -0.7 * entropy * (1 - math.exp(-1.0)) / 0.5, rtol=1e-9)
    # the spread itself costs tr(R Sigma)/2 at least: without it the policy is cheaper
    assert (evaluate(problem, policy)(0.0, x) > evaluate(problem, policy.deterministic())(0.0, x)).all()


def test_a_batch_of_policies_is_its_single_policies():
    c, r = make(3, 2, 2, 9), Draw(1)
    gains, offsets = r(4, 2, 3, scale=0.4), r(4, 2)
    sigmas = torch.stack([r.positive(2) for _ in range(4)])
    batch = LQProblem(**c | {"A": c["A"].expand(4, 3, 3)}, discount=0.3)
    together = evaluate(batch, AffineGaussian.constant(gains, offsets, sigmas), 0.2)
    x = r(4, 2, 3)
    for i in range(4):
        alone = evaluate(LQProblem(**c, discount=0.3), AffineGaussian.constant(gains[i], offsets[i], sigmas[i]), 0.2)
        for a, b in zip(together.terms(0.4), alone.terms(0.4), strict=True):
            assert near(a[i], b)
        assert near(together(0.4, x.flatten(0, 1))[2 * i : 2 * i + 2], alone(0.4, x[i]))


def test_one_policy_on_a_batch_of_problems():
    """Neither R = 0 nor a scalar spread needs special care."""
    drifts = torch.tensor([-1.0, 0.5, 1.0], dtype=F64).reshape(3, 1, 1)
    policy = AffineGaussian.constant([[-1.0]], covariance=0.3)
    together = evaluate(LQProblem(drifts, 1.0, R=0.0, G=2.0), policy)
    for i, a in enumerate((-1.0, 0.5, 1.0)):
        assert near(together.terms(0.0)[0][i], 2 * math.exp(2 * (a - 1)))


# --- Against the optimum ---------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None, derandomize=True)
@given(**SIZES, seed=SEED, rho=st.sampled_from([0.0, 0.8]), tau=st.sampled_from([0.0, 0.3]))
def test_no_policy_beats_the_optimum(d, m, n, seed, rho, tau):
    problem = LQProblem(**make(d, m, n, seed), discount=rho)
    best, x = riccati(problem, tau), 2 * Draw(seed)(6, d)
    floor = best.value(0.0, x)
    gap = evaluate(problem, some_policy(d, m, seed), tau)(0.0, x) - floor
    assert (gap > 0).all()


@pytest.mark.parametrize("which", [0, 1, 2], ids=["gain", "offset", "covariance"])
def test_a_small_change_of_the_optimum_costs_at_second_order(which):
    problem, tau = LQProblem(**make(3, 2, 2, 2), discount=0.3), 0.4
    best, r = riccati(problem, tau), Draw(2)
    x = 2 * r(6, 3)
    push = [r(2, 3), r(2), r.positive(2)][which]

    def loss(size):
        def moved(t):
            law = list(best.policy.law(t))
            law[which] = law[which] + size * push
            return tuple(law)

        return evaluate(problem, AffineGaussian(moved), tau)(0.0, x) - best.value(0.0, x)

    losses = [loss(size) for size in (0.02, 0.01, -0.01)]
    assert all((a > 0).all() for a in losses)
    assert near(losses[0] / losses[1], 4.0, rtol=0.1) and near(losses[2] / losses[1], 1.0, rtol=0.1)


@pytest.mark.parametrize("rho", [0.0, 0.8])
@pytest.mark.parametrize("tau", [0.0, 1e-3, 1.0, 1e3])
def test_the_value_of_the_optimal_policy_is_the_optimum(rho, tau):
    problem = LQProblem(**make(3, 2, 2, 7), discount=rho)
    best = riccati(problem, tau)
    value = evaluate(problem, best.policy, tau)
    for t in (0.0, 0.5):
        for a, b in zip(value.terms(t), best.value.terms(t), strict=True):
            assert near(a, b, rtol=1e-9, atol=1e-9 * max(1, tau))


def test_the_value_of_the_optimal_policy_where_the_weights_vary_and_are_indefinite():
    problem = LQProblem(
        lambda t: [[math.sin(4 * t)]], 1.0, Q=lambda t: [[1 + t]], R=-0.5, D=1.5, G=2.0, s=lambda t: [[t]], discount=0.1
    )
    best = riccati(problem, 0.6)
    assert near(evaluate(problem, best.policy, 0.6).terms(0.0)[2], best.value.terms(0.0)[2])
    assert near(evaluate(problem, best.policy, 0.6).terms(0.0)[0], best.value.terms(0.0)[0])


@settings(max_examples=5, deadline=None, derandomize=True)
@given(**SIZES, seed=SEED, rho=st.sampled_from([0.0, 0.8]), tau=st.sampled_from([1e-2, 5.0]))
def test_exploring_costs_half_the_temperature_a_control_and_unit_of_time(d, m, n, seed, rho, tau):
    problem = LQProblem(**make(d, m, n, seed), discount=rho, horizon=1.6)
    cold, warm, x = riccati(problem), riccati(problem, tau), Draw(1)(3, d)
    cost = evaluate(problem, warm.policy)(0.0, x) - cold.value(0.0, x)  # the entropy is left out
    wanted = tau * m / 2 * (1.6 if rho == 0 else (1 - math.exp(-rho * 1.6)) / rho)
    assert near(cost, wanted, rtol=1e-8, atol=1e-8)
    assert exploration_cost(problem, tau) == pytest.approx(wanted, rel=1e-13)


# --- A closed form of the literature ---------------------------------------------------------------------------------


def reward(phi1, phi2, x0=1.0, A=1.0, B=1.0, C=1.0, D=1.0, Q=1.0, H=1.0, T=1.0):  # noqa: N803
    """Huang, Jia & Zhou (SICON 2025): J = f + phi2 g of the policy N(phi1 x, phi2), with the limits at a = 0.

    Their reward is -Q x^2/2 dt and -H x_T^2/2: our cost is -J.
    """
    a = 2 * A + 2 * B * phi1 + (C + D * phi1) ** 2
    if a == 0:
        return -0.5 * x0**2 * (Q * T + H) - phi2 * D**2 / 2 * (Q * T**2 / 2 + H * T)
    f = x0**2 / (2 * a) * (Q - (Q + H * a) * math.exp(a * T))
    return f + phi2 * D**2 / (2 * a**2) * (Q * T * a + (Q + H * a) * (1 - math.exp(a * T)))


def measured(phi1, phi2):
    value = evaluate(zoo.regret(), AffineGaussian.constant([[phi1]], covariance=phi2))
    return -value(0.0, torch.ones(1, 1, dtype=F64)).item()


@pytest.mark.parametrize("phi1", [-2.2, -2.0, -1.5, -0.5, 0.0, 0.7])
@pytest.mark.parametrize("phi2", [0.0, 0.5, 5.0])
def test_the_closed_form_of_huang_jia_and_zhou(phi1, phi2):
    assert measured(phi1, phi2) == pytest.approx(reward(phi1, phi2), rel=1e-10)


@pytest.mark.parametrize("phi1", [-1.0, -3.0])
@pytest.mark.parametrize("phi2", [0.0, 0.5, 5.0])
def test_the_closed_form_where_its_denominator_vanishes(phi1, phi2):
    """a = (phi1 + 1)(phi1 + 3): beside the two zeros the formula loses digits, and the evaluation does not."""
    assert measured(phi1, phi2) == pytest.approx(reward(phi1, phi2), rel=1e-11)
    assert measured(phi1 + 1e-9, phi2) == pytest.approx(reward(phi1, phi2), rel=1e-7)
    assert reward(phi1 + 1e-4, phi2) == pytest.approx(reward(phi1, phi2), rel=1e-3)


def test_the_closed_form_with_every_coefficient_different():
    c = {"A": -0.4, "B": 0.7, "C": 0.5, "D": -0.8, "Q": 1.7, "H": 0.6, "T": 1.8}
    problem = LQProblem(c["A"], c["B"], Q=c["Q"], R=0.0, C=c["C"], D=c["D"], G=c["H"], horizon=c["T"])
    for phi1, phi2, x0 in ((-0.3, 0.9, 2.0), (1.1, 0.2, -0.7)):
        value = evaluate(problem, AffineGaussian.constant([[phi1]], covariance=phi2))
        assert -value(0.0, torch.full((1, 1), x0, dtype=F64)).item() == pytest.approx(reward(phi1, phi2, x0, **c))


def test_the_best_gain_of_the_closed_form_is_the_riccati_gain():
    """phi1 = -(B + CD)/D^2 = -2, J = -1/2, whatever the spread costs."""
    assert reward(-2.0, 0.0) == pytest.approx(-0.5, rel=1e-12)
    assert all(reward(p, 0.0) < reward(-2.0, 0.0) for p in (-2.1, -1.9, -1.0, -3.0))
    gain = riccati(zoo.regret()).policy.law(torch.tensor(0.3))[0]
    assert gain.item() == pytest.approx(-2.0, rel=1e-12)


# --- Policy iteration ------------------------------------------------------------------------------------------------


def small(noise):
    """A two-dimensional problem with control in the noise, and a scalar one with a negative weight."""
    if noise:
        return LQProblem(0.5, 1.0, Q=2.0, R=-0.3, C=0.3, D=1.0, s=[[0.5]], q=[0.4], G=1.5, g=[-1.0], discount=0.2)
    return LQProblem(**{k: v for k, v in make(2, 1, 1, 3).items() if k not in "CD"}, discount=0.2)


@pytest.mark.parametrize(("noise", "tau"), [(False, 0.5), (True, 0.0)])
def test_policy_iteration_is_newtons_method(noise, tau):
    """It falls monotonically and quadratically onto the Riccati solution, which it never saw."""
    problem = small(noise)
    d = problem.state_dim
    best, x, times = riccati(problem, tau), 2 * Draw(0)(6, d), (0.0, 0.6)
    start = AffineGaussian.constant(torch.full((1, d), 1.0), [0.5], 0.4 if tau else 0.0)
    errors, before = [], None
    for policy, value in policy_iteration(problem, start, tau, steps=7, rtol=1e-10):
        now = torch.stack([value(t, x) for t in times])
        assert before is None or (now <= before + 1e-8).all()
        before = now
        laws = [(policy.law(torch.tensor(t, dtype=F64)), best.policy.law(torch.tensor(t, dtype=F64))) for t in times]
        errors.append(max(float((a - b).abs().max()) for mine, his in laws for a, b in zip(mine, his, strict=True)))
        last = policy
    assert errors[0] > 0.5 and errors[-1] <= 1e-8
    assert near(before, torch.stack([best.value(t, x) for t in times]), rtol=1e-8, atol=1e-8)
    # digits double: at most a constant times the square, down to the solver's tolerance
    assert all(b <= 5 * a**2 + 1e-8 for a, b in zip(errors[1:], errors[2:], strict=False))
    assert last is not start and (last.covariance(torch.tensor(0.0, dtype=F64)) > 0).all() == (tau > 0)


def test_the_optimum_is_a_fixed_point():
    problem = LQProblem(**make(3, 2, 2, 5))
    best = riccati(problem, 0.7)
    again = improve(problem, best.value, 0.7)
    for t in (0.0, 0.4):
        at = torch.tensor(t, dtype=F64)
        for a, b in zip(again.law(at), best.policy.law(at), strict=True):
            assert near(a, b)


def test_improvement_is_the_gibbs_policy_of_the_value():
    problem = LQProblem(**make(3, 2, 2, 5), discount=0.4)
    value = evaluate(problem, some_policy(3, 2, 5))
    better, x, t = improve(problem, value, 0.7), Draw(2)(5, 3), torch.tensor(0.3, dtype=F64)
    _, _, p, y = derivatives(value, t, x)
    mean, covariance = in_control(problem, t, x, p, y, 2).gibbs(0.7)
    assert near(better.mean(t, x), mean) and near(better.covariance(t).expand(5, 2, 2), covariance)
    assert (evaluate(problem, better, 0.7)(0.0, x) < evaluate(problem, some_policy(3, 2, 5), 0.7)(0.0, x)).all()


# --- Refusals --------------------------------------------------------------------------------------------------------


def test_an_infinite_horizon_is_refused():
    with pytest.raises(ValueError, match="horizon is infinite; expected a finite one"):
        evaluate(LQProblem(-1.0, 1.0, R=1.0, horizon=math.inf), AffineGaussian.constant([[0.0]]))


@pytest.mark.parametrize("tau", [-1.0, math.nan, math.inf])
def test_what_is_no_temperature_is_refused(tau):
    problem = LQProblem(-1.0, 1.0, Q=1.0, R=1.0)
    policy = AffineGaussian.constant([[0.0]], covariance=1.0)
    for call in (
        lambda: evaluate(problem, policy, tau),
        lambda: improve(problem, riccati(problem).value, tau).law(torch.tensor(0.0)),
        lambda: next(policy_iteration(problem, policy, tau)),
    ):
        with pytest.raises(ValueError, match=f"^temperature is {tau}"):
            call()


def test_an_entropy_needs_a_spread():
    """A deterministic policy has the entropy -infinity: the reason is the spread, not an escape in time."""
    with pytest.raises(ValueError, match="covariance|spread|entropy|deterministic"):
        evaluate(LQProblem(-1.0, 1.0, Q=1.0, R=1.0), AffineGaussian.constant([[0.0]]), 0.5)


def test_a_batch_is_improved_one_by_one():
    batch = LQProblem(torch.zeros(2, 1, 1), 1.0, Q=1.0, R=1.0)
    with pytest.raises(ValueError, match="problem is a batch of 2; expected a single one"):
        improve(batch, riccati(batch).value, 0.0)


def test_an_improvement_needs_a_convex_hamiltonian():
    """R = -1, D = 1: S = P - 1 is negative for the value of a policy that costs nearly nothing."""
    problem = LQProblem(0.0, 1.0, R=-1.0, D=1.0, G=0.5)
    value = evaluate(problem, AffineGaussian.constant([[0.0]]))
    with pytest.raises(ValueError, match="not convex in the control"):
        improve(problem, value, 0.0).law(torch.tensor(0.0))


@pytest.mark.parametrize(
    ("gain", "offset", "covariance"),
    [
        (torch.zeros(1, 3), None, 0.0),
        (torch.zeros(2, 2), None, 0.0),
        (torch.zeros(1, 2), torch.zeros(2), 0.0),
        (torch.zeros(1, 2), None, torch.eye(2)),
        (torch.zeros(5, 1, 2), None, 0.0),
    ],
    ids=["states", "controls", "offset", "covariance", "batch"],
)
def test_a_policy_that_does_not_fit_is_refused(gain, offset, covariance):
    problem = LQProblem(torch.zeros(2, 2), torch.ones(2, 1), R=1.0)
    with pytest.raises(ValueError, match="expected"):
        evaluate(problem, AffineGaussian.constant(gain, offset, covariance))
