"""The generalised Riccati equation: residuals, manufactured solutions, other methods, and where it must fail."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.linalg import expm

from aid_control.hjb import derivatives, in_control, residual
from aid_control.lq import LQProblem, QuadraticValue, riccati

F64 = torch.float64
TEMPERATURES = (0.0, 1e-3, 1.0, 1e3)
TIMES = (0.0, 0.137, 0.5, 0.81, 1.0)


def near(value, wanted, rtol=1e-9, atol=1e-9):
    return torch.allclose(torch.as_tensor(value), torch.as_tensor(wanted), rtol=rtol, atol=atol)


class Draw:
    """Random matrices of one seed."""

    def __init__(self, seed):
        self.gen = torch.Generator().manual_seed(seed)

    def __call__(self, *shape, scale=1.0):
        return scale * torch.randn(*shape, generator=self.gen, dtype=F64)

    def positive(self, d, floor=0.0):
        half = self(d, d)
        return half @ half.mT / d + floor * torch.eye(d, dtype=F64)


def terms(c, big, small):
    """S, L, l of the module's docstring."""
    s = c["R"] + torch.einsum("nim,ij,njk->mk", c["D"], big, c["D"])
    cross = c["B"].mT @ big + c["N"].mT + torch.einsum("nim,ij,njk->mk", c["D"], big, c["C"])
    return s, cross, c["B"].mT @ small + c["r"] + torch.einsum("nim,ij,nj->m", c["D"], big, c["s"])


def rhs(c, rho, big, small):
    """-P' and -p' without Q and q."""
    s, cross, linear = terms(c, big, small)
    square = c["A"].mT @ big + big @ c["A"] + torch.einsum("nki,kl,nlj->ij", c["C"], big, c["C"]) - rho * big
    line = c["A"].mT @ small + big @ c["b"] + torch.einsum("nji,jk,nk->i", c["C"], big, c["s"]) - rho * small
    gain = torch.linalg.solve(s, cross)
    return square - cross.mT @ gain, line - gain.mT @ linear


def make(kind, d, m, n, seed, linear=True, rho=0.0):
    """Coefficients whose feasibility is known beforehand.

    ``indefinite`` and ``tight``: R = -theta sum D'D is negative, and made up for by D'PD.  By Ito's formula for
    |x|^2, J >= |x|^2/2 (so that P >= I, S >= (1 - theta) sum D'D) as soon as G >= I and the weight of the running
    cost exceeds that of -d|x|^2/dt; in the tight case both are equalities, hence P = I at all times.
    """
    r = Draw(seed)
    a = r(d, d) / d**0.5
    c = {
        "A": {"stable": a - 2 * torch.eye(d), "unstable": a + 1.5 * torch.eye(d)}.get(kind, a),
        "B": r(d, m), "C": r(n, d, d, scale=0.4 / d**0.5), "D": r(n, d, m, scale=0.4), "N": r(d, m, scale=0.2),
        "Q": r.positive(d, 1.5), "R": r.positive(m, 0.5), "G": r.positive(d),
        "b": r(d), "s": r(n, d), "q": r(d), "r": r(m), "g": r(d),
    }  # fmt: skip
    if kind in ("indefinite", "tight"):
        eye = torch.eye(d, dtype=F64)
        c["D"] = 0.5 * c["D"] + torch.eye(d, m, dtype=F64)
        theta, spare = (0.5, r.positive(d)) if kind == "indefinite" else (0.9, torch.zeros(d, d, dtype=F64))
        square = torch.einsum("nim,nik->mk", c["D"], c["D"])
        c |= {"R": -theta * square, "G": eye + spare}
        # N such that the gain at P = I is moderate
        s, cross, _ = terms(c, eye, c["g"])
        c["N"] = c["N"] - (cross + s @ r(m, d, scale=0.5)).mT
        c["Q"] = torch.zeros(d, d, dtype=F64)
        c["Q"] = spare - rhs(c, rho, eye, c["g"])[0]
        c["Q"] = (c["Q"] + c["Q"].mT) / 2
    if not linear:
        c |= {k: torch.zeros_like(c[k]) for k in "bsqrg"}
    if kind == "moving":
        full = dict(c)

        def wave(name, phase):
            return lambda t: (1 + 0.4 * math.sin(5 * t + phase)) * full[name]

        c |= {k: wave(k, i) for i, k in enumerate(c) if k not in "Gg"}
    return c


def size(problem, value, t, x, tau):
    """The largest term of the HJB equation over the rows: what its residual is measured against."""
    m = problem.control_dim
    v, v_t, p, y = derivatives(value, t, x)
    h = in_control(problem, t, x, p, y, m)
    parts = (v_t, problem.discount * v, h.constant, h.minimum() - h.constant, h.soft_minimum(tau) - h.minimum())
    return max(float(a.abs().max()) for a in parts)


KINDS = st.sampled_from(["stable", "unstable", "indefinite", "tight", "stable", "unstable", "tight", "moving"])
RHO = st.sampled_from([0.0, 0.3, 2.0])
SEED = st.integers(0, 10**6)


# --- The equation ----------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    kind=KINDS, d=st.integers(1, 8), m=st.integers(1, 3), n=st.integers(1, 3), seed=SEED, rho=RHO,
    tau=st.sampled_from(TEMPERATURES), linear=st.booleans(), horizon=st.sampled_from([0.3, 1.0, 1.7]),
)  # fmt: skip
def test_the_value_solves_the_hjb_equation(kind, d, m, n, seed, rho, tau, linear, horizon):
    """The derivative in time is the solution's own and the others are automatic: nothing is shared with the solver."""
    assume(kind not in ("indefinite", "tight") or d >= m)
    problem = LQProblem(**make(kind, d, m, n, seed, linear, rho), discount=rho, horizon=horizon)
    solution = riccati(problem, tau)
    x = Draw(seed + 1)(6, d)
    for fraction in TIMES:
        t = torch.tensor(fraction * horizon, dtype=F64)
        error = residual(problem, solution.value, t, x, tau, m).abs().max()
        assert error <= 1e-8 * size(problem, solution.value, t, x, tau), (fraction, float(error))
        big = solution.value.terms(t)[0]
        assert (big - big.mT).abs().max() <= 1e-14 * big.abs().max()
    assert near(solution.value(horizon, x), problem.terminal_cost(x), rtol=1e-13, atol=1e-12 * max(1, tau))


def test_a_residual_sees_a_wrong_value():
    """The check above is not empty: changes of P, p and k by a hundred-thousandth are seen."""
    problem = LQProblem(**make("stable", 3, 2, 2, 0), discount=0.5)
    value, x, t = riccati(problem, 1.0).value, Draw(1)(6, 3), torch.tensor(0.4, dtype=F64)
    scale = 1e-8 * size(problem, value, t, x, 1.0)
    eye = torch.eye(3, dtype=F64)
    for wrong in (
        lambda t, x: value(t, x) + 1e-5 * x.square().sum(1),
        lambda t, x: value(t, x) + 1e-5 * x.sum(1),
        lambda t, x: value(t, x) + 1e-5,
        lambda t, x: value(t * (1 - 1e-5), x),  # (but a shift in time is a solution, too)
        lambda t, x: value(t, x @ (eye + 1e-5)),
    ):
        assert residual(problem, wrong, t, x, 1.0, 2).abs().max() > 10 * scale


@pytest.mark.parametrize("horizon", [0.07, 0.13, 0.15, 0.19, 0.23, 0.26, 0.3, 0.7, 1.1, 2.3, 10.0])
def test_the_solution_is_smooth_at_its_very_start(horizon):
    """A sum of steps misses 0 by rounding: a last step of 1e-17 must not give the derivative at t = 0."""
    problem = LQProblem(-1.0, 1.0, Q=1.0, R=1.0, G=0.2, s=[[0.3]], horizon=horizon)
    value, x = riccati(problem).value, torch.ones(1, 1, dtype=F64)
    for t in (0.0, 1e-18, 1e-12, 1e-3 * horizon, horizon):
        assert residual(problem, value, torch.tensor(t, dtype=F64), x).abs().item() < 1e-9


@settings(max_examples=4, deadline=None, derandomize=True)
@given(d=st.integers(1, 3), m=st.integers(1, 2), n=st.integers(1, 2), seed=SEED, rho=RHO)
def test_a_manufactured_solution_is_found(d, m, n, seed, rho):
    r"""Choose P(t) and p(t), compute the Q(t) and q(t) that make them a solution, and solve."""
    r = Draw(seed)
    c = make("stable", d, m, n, seed)
    base, wave, level, slope = r.positive(d, 1.0), r.positive(d), r(d), r(d)

    def big(t):
        return base + math.sin(3 * t) * wave

    def small(t):
        return level + t * t * slope

    def weight(t):
        out = -3 * math.cos(3 * t) * wave - rhs(c, rho, big(t), small(t))[0]
        return (out + out.mT) / 2

    def line(t):
        return -2 * t * slope - rhs(c, rho, big(t), small(t))[1]

    problem = LQProblem(**c | {"Q": weight, "q": line, "G": big(1.0), "g": small(1.0)}, discount=rho)
    solution = riccati(problem)
    for t in TIMES:
        found = solution.value.terms(t)
        assert near(found[0], big(t)) and near(found[1], small(t))
        s, cross, ell = terms(c, big(t), small(t))
        gain, offset, _ = solution.policy.law(torch.tensor(t, dtype=F64))
        assert near(gain, -torch.linalg.solve(s, cross)) and near(offset, -torch.linalg.solve(s, ell))


@pytest.mark.parametrize("theta", [0.5, 0.99, 1 - 1e-6])
def test_near_the_edge_of_feasibility(theta):
    """R = -theta sum D'D and P = I at all times (see ``make``): S = (1 - theta) sum D'D stays positive, barely."""
    c = make("stable", 3, 2, 2, 5, linear=False)
    c["D"] = c["D"] + torch.eye(3, 2, dtype=F64)
    eye, square = torch.eye(3, dtype=F64), torch.einsum("nim,nik->mk", c["D"], c["D"])
    c |= {"R": -theta * square, "G": eye}
    # a cross term of the size of S keeps the gain finite as S goes to zero
    c["N"] = (1 - theta) * c["N"] - c["B"] - torch.einsum("nji,njm->im", c["C"], c["D"])
    c["Q"] = -rhs(c, 0.0, eye, torch.zeros(3, dtype=F64))[0]
    c["Q"] = (c["Q"] + c["Q"].mT) / 2
    solution = riccati(LQProblem(**c), 1.0)
    gap = 1 - theta
    for t in TIMES:
        assert near(solution.value.terms(t)[0], eye, atol=1e-9 / gap**0.5)
        assert near(
            gap * solution.policy.covariance(torch.tensor(t, dtype=F64)), torch.linalg.inv(square), rtol=1e-6, atol=1e-9
        )


@settings(max_examples=12, deadline=None, derandomize=True)
@given(d=st.integers(1, 6), m=st.integers(1, 3), seed=SEED, rho=RHO, kind=st.sampled_from(["stable", "unstable"]))
def test_without_noise_the_hamiltonian_matrix_gives_the_answer(d, m, seed, rho, kind):
    """[X; Y]' = H [X; Y] with X(T) = I, Y(T) = G, and P = Y X^{-1}."""
    c = make(kind, d, m, 1, seed)
    problem = LQProblem(**{k: v for k, v in c.items() if k not in "CDs"}, discount=rho, horizon=1.3)
    a, b, q, r, n, g = (c[k].numpy() for k in ("A", "B", "Q", "R", "N", "G"))
    inverse = np.linalg.inv(r)
    a = a - 0.5 * rho * np.eye(d) - b @ inverse @ n.T
    flow = np.block([[a, -b @ inverse @ b.T], [-(q - n @ inverse @ n.T), -a.T]])
    value = riccati(problem).value
    for t in (0.0, 0.4, 1.1):
        both = expm(flow * (t - 1.3)) @ np.vstack([np.eye(d), g])
        assert near(value.terms(t)[0], torch.from_numpy(both[d:] @ np.linalg.inv(both[:d])))


def test_scalar_answers_found_by_hand():
    """A = Q = 0, B = R = G = 1: P = 1/(1 + T - t); a constant push b = 1 gives p = P (T - t), noise a logarithm."""
    problem = LQProblem(0.0, 1.0, R=1.0, G=1.0, b=[1.0], s=[[2.0]], horizon=2.0)
    solution = riccati(problem)
    for t in (0.0, 0.7, 1.9):
        big, small, level = solution.value.terms(t)
        left = 2.0 - t
        assert big.item() == pytest.approx(1 / (1 + left), rel=1e-11)
        assert small.item() == pytest.approx(left / (1 + left), rel=1e-11)
        # the deterministic part is (x + left)^2 / (2 (1 + left)); the noise adds int 2 P dr
        assert level.item() == pytest.approx(left**2 / (2 * (1 + left)) + 2 * math.log(1 + left), rel=1e-10)
        assert solution.policy.mean(
            torch.tensor(t, dtype=F64), torch.ones(1, 1, dtype=F64), None, None
        ).item() == pytest.approx(-1 / (1 + left) - left / (1 + left))


def test_a_control_without_effect_leaves_the_uncontrolled_cost():
    """B = D = 0: dX = aX dt + cX dW + b dt; E X^2 and E X by hand, discounted."""
    a, c, rho, end = -0.7, 0.5, 0.4, 1.5
    problem = LQProblem(a, 0.0, Q=2.0, R=1.0, C=c, q=3.0, G=4.0, discount=rho, horizon=end)
    x = torch.tensor([[1.3]], dtype=F64)
    rate = 2 * a + c**2 - rho
    square = 1.3**2 * (math.expm1(rate * end) / rate + 2 * math.exp(rate * end))
    line = 3 * 1.3 * math.expm1((a - rho) * end) / (a - rho)
    assert riccati(problem).value(0.0, x).item() == pytest.approx(square + line, rel=1e-11)


# --- Batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["unstable", "indefinite", "moving"])
def test_a_batch_is_its_single_problems(kind):
    singles = [make(kind, 3, 2, 2, seed, rho=0.2) for seed in (1, 2, 3)]

    def stack(name):
        parts = [c[name] for c in singles]
        return (lambda t: torch.stack([f(t) for f in parts])) if callable(parts[0]) else torch.stack(parts)

    x = Draw(0)(3, 2, 3)
    together = riccati(LQProblem(**{k: stack(k) for k in singles[0]}, discount=0.2), 0.7)
    assert together.value.batched
    apart = [riccati(LQProblem(**c, discount=0.2), 0.7) for c in singles]
    for t in (0.0, 0.6, 1.0):
        at, rows = torch.tensor(t, dtype=F64), x.flatten(0, 1)
        values, means = together.value(t, rows), together.policy.mean(at, rows, None, None)
        for i, alone in enumerate(apart):
            mine = slice(2 * i, 2 * i + 2)
            for a, b in zip(together.value.terms(t), alone.value.terms(t), strict=True):
                assert near(a[i], b)
            assert near(values[mine], alone.value(t, x[i]))
            assert near(together.value.gradient(t, rows)[mine], alone.value.gradient(t, x[i]))
            assert near(means[mine], alone.policy.mean(at, x[i], None, None))
            assert near(together.policy.covariance(at)[i], alone.policy.covariance(at))


def test_problems_of_very_different_size_are_solved_equally_well():
    """One tolerance for the batch must not spoil its small members: P scales with the cost."""
    c = make("unstable", 2, 1, 1, 3, linear=False)
    scales = torch.tensor([1e-4, 1.0, 1e4], dtype=F64)
    costs = {k: scales[:, None, None] * c[k] for k in "QRNG"}
    value = riccati(LQProblem(**c | costs)).value
    big = value.terms(0.0)[0]
    assert near(big[0] / 1e-4, big[1], rtol=1e-7) and near(big[2] / 1e4, big[1], rtol=1e-7)


@pytest.mark.parametrize("scale", [1e-12, 1e-8, 1e-4, 1e6, 1e13])
@pytest.mark.parametrize("horizon", [1.0, 30.0])
def test_the_solution_is_measured_in_units_of_the_cost(scale, horizon):
    """All weights times a number: P times that number, to the same digits, and no large P taken for an infinite one."""
    one, many = (riccati(LQProblem(3.0, 10.0, Q=c, R=c, G=0.01 * c, horizon=horizon)).value for c in (1.0, scale))
    for t in (0.0, 0.9, 0.99):
        a, b = (value.terms(t * horizon)[0].item() for value in (many, one))
        assert a == pytest.approx(scale * b, rel=1e-9, abs=0)


# --- Temperature -----------------------------------------------------------------------------------------------------


@settings(max_examples=7, deadline=None, derandomize=True)
@given(
    kind=KINDS, d=st.integers(1, 4), m=st.integers(1, 3), seed=SEED, rho=RHO,
    tau=st.sampled_from(TEMPERATURES[1:]), horizon=st.sampled_from([1.0, 2.5]),
)  # fmt: skip
def test_the_recovery_theorem(kind, d, m, seed, rho, tau, horizon):
    """The temperature moves k by its integral and nothing else; the policy's mean is the deterministic optimum."""
    assume(kind not in ("indefinite", "tight") or d >= m)
    problem = LQProblem(**make(kind, d, m, 2, seed, rho=rho), discount=rho, horizon=horizon)
    cold, warm = riccati(problem), riccati(problem, tau)
    x = Draw(seed + 1)(4, d)

    def s_at(t):
        c = {k: v[0] for k, v in problem.coefficients(t).items()}
        return terms(c, *cold.value.terms(t)[:2])[0]

    for t in (0.0, 0.4, 0.9):
        left = [horizon * (t + (1 - t) * f) for f in (0, 1)]
        shift = quad(
            lambda r, t=left[0]: math.exp(-rho * (r - t))
            * (m * math.log(2 * math.pi * tau) - float(torch.logdet(s_at(r)))),
            *left, epsabs=1e-10, epsrel=1e-10, limit=200,
        )[0]  # fmt: skip
        a, b = cold.value.terms(left[0]), warm.value.terms(left[0])
        # the shift may drown the rest of k in rounding and in the tolerance: both are relative
        assert near(a[0], b[0], rtol=1e-8, atol=1e-8 * float(a[0].abs().max()))
        assert near(a[1], b[1], rtol=1e-8, atol=1e-8 * float(a[1].abs().max()))
        scale = abs(0.5 * tau * shift) + float(a[2].abs())
        assert abs(float(b[2] - a[2]) + 0.5 * tau * shift) <= 1e-8 * max(scale, 1.0)
        at = torch.tensor(left[0], dtype=F64)
        mean = cold.policy.mean(at, x, None, None)
        assert near(warm.policy.mean(at, x, None, None), mean, rtol=1e-7, atol=1e-8 * float(mean.abs().max()))
        assert near(
            warm.policy.covariance(at) @ s_at(left[0]), tau * torch.eye(m, dtype=F64), rtol=1e-7, atol=1e-7 * tau
        )
        assert cold.policy.covariance(at).abs().max() == 0


def test_the_shift_by_hand():
    """S = R = 2 constant: V^tau - V = -(tau/2) log(2 pi tau / 2) (1 - e^{-rho T})/rho."""
    problem = LQProblem(0.0, 1.0, R=2.0, G=1.0, discount=0.5, horizon=3.0)
    x, tau = torch.ones(1, 1, dtype=F64), 0.3
    shift = riccati(problem, tau).value(0.0, x) - riccati(problem).value(0.0, x)
    wanted = -0.5 * tau * math.log(math.pi * tau) * (1 - math.exp(-1.5)) / 0.5
    assert shift.item() == pytest.approx(wanted, rel=1e-10)


def test_the_warm_value_tends_to_the_cold_one():
    problem = LQProblem(**make("indefinite", 3, 2, 2, 4))
    x, cold = Draw(9)(5, 3), riccati(problem).value
    gaps = [float((riccati(problem, tau).value(0.0, x) - cold(0.0, x)).abs().max()) for tau in (1e-2, 1e-4, 1e-8)]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] < 1e-6


def test_the_policy_is_the_gibbs_policy_of_the_value():
    """Against the generic HJB layer, on rows."""
    problem, tau = LQProblem(**make("indefinite", 4, 3, 2, 6, rho=0.1), discount=0.1), 0.8
    solution, x = riccati(problem, tau), Draw(2)(5, 4)
    for t in (0.0, 0.5, 0.99):
        at = torch.tensor(t, dtype=F64)
        _, _, p, y = derivatives(solution.value, at, x)
        mean, covariance = in_control(problem, at, x, p, y, 3).gibbs(tau)
        assert near(solution.policy.mean(at, x, None, None), mean)
        assert near(solution.policy.covariance(at).expand(5, 3, 3), covariance)
        assert near(solution.value.gradient(at, x), p)


# --- Where it must fail ----------------------------------------------------------------------------------------------


def failing_time(error):
    return float(str(error.value).split("first failure is at t = ")[1].split(",")[0])


@pytest.mark.parametrize(("g", "horizon"), [(-2.0, 1.0), (-2.0, 5.0), (-0.5, 3.0), (-40.0, 0.1)])
def test_an_escape_is_found_at_its_time(g, horizon):
    """P' = P^2, P(T) = g: P = g/(1 + g (T - t)) escapes at T - t = -1/g."""
    with pytest.raises(ValueError, match="P escapes to infinity; expected S") as error:
        riccati(LQProblem(0.0, 1.0, R=1.0, G=g, horizon=horizon))
    assert failing_time(error) == pytest.approx(horizon + 1 / g, abs=1e-4 * horizon)


def test_just_before_the_escape_there_is_a_solution():
    solution = riccati(LQProblem(0.0, 1.0, R=1.0, G=-2.0, horizon=0.499))
    assert solution.value.terms(0.0)[0].item() == pytest.approx(-2 / (1 - 2 * 0.499), rel=1e-8)


@pytest.mark.parametrize("end", [1.5, 2.0, 7.0])
def test_a_loss_of_convexity_is_found_at_its_time(end):
    """A = B = C = 0, D = R = 1, Q = -1: the control does nothing but cost, P = -(T - t), S = 1 - (T - t)."""
    with pytest.raises(ValueError, match=r"S\(t\) = R \+ sum D'PD, shape \(1, 1\), stops being positive") as error:
        riccati(LQProblem(0.0, 0.0, Q=-1.0, R=1.0, D=1.0, horizon=end))
    assert failing_time(error) == pytest.approx(end - 1, abs=1e-4)


def test_a_loss_of_convexity_with_an_active_control_is_found_at_its_time():
    """A = C = 0, B = D = 1, R = -1, Q = 0: P' = P^2/S, S = P - 1, so log P + 1/P = log G + 1/G + (T - t) ... to P = 1.

    -P' = -P^2/(P - 1) means dP (1/P - 1/P^2) = dt, thus log P + 1/P falls at unit rate going back from T and S = 0
    is reached at T - t = log G + 1/G - 1, with an infinite slope.
    """
    lasts = math.log(3.0) + 1 / 3.0 - 1
    with pytest.raises(ValueError, match="stops being positive definite") as error:
        riccati(LQProblem(0.0, 1.0, R=-1.0, D=1.0, G=3.0, horizon=2.0))
    assert failing_time(error) == pytest.approx(2.0 - lasts, abs=1e-4)
    big = riccati(LQProblem(0.0, 1.0, R=-1.0, D=1.0, G=3.0, horizon=0.9 * lasts)).value.terms(0.0)[0].item()
    assert math.log(big) + 1 / big == pytest.approx(math.log(3.0) + 1 / 3.0 - 0.9 * lasts, rel=1e-10)


def test_a_time_varying_weight_that_changes_sign():
    """R(t) = t - 0.3 with no noise: infeasible before t = 0.3."""
    with pytest.raises(ValueError, match="stops being positive definite") as error:
        riccati(LQProblem(0.0, 0.0, R=lambda t: t - 0.3))
    assert failing_time(error) == pytest.approx(0.3, abs=1e-6)


@pytest.mark.parametrize(
    ("r", "d"), [(0.0, 0.0), (-1.0, 0.0), (-1.0, 1.0), (-1.0, 0.5)], ids=["free", "negative", "zero S", "too little"]
)
def test_infeasible_at_the_end_itself(r, d):
    with pytest.raises(ValueError, match="stops being positive definite") as error:
        riccati(LQProblem(1.0, 1.0, Q=1.0, R=r, D=d, G=1.0, horizon=1.5))
    assert failing_time(error) == 1.5


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_the_infeasible_problem_of_a_batch_is_named(bad):
    good = torch.ones(4, 1, 1, dtype=F64)
    for change, when in (({"G": -2.0}, 1.5), ({"Q": -1.0, "R": 1.0, "D": 1.0, "B": 0.0, "G": 0.0}, 1.0)):
        c = {"A": 0 * good, "B": good, "Q": good, "R": good, "G": good, "D": 0 * good[:, None]}
        c = {k: v.clone() for k, v in c.items()}
        c["Q"][bad] = 0.0
        for name, value in change.items():
            c[name][bad] = value
        with pytest.raises(ValueError, match=f"^infeasible in problem {bad} of the batch") as error:
            riccati(LQProblem(**c, horizon=2.0))
        assert failing_time(error) == pytest.approx(when, abs=1e-4)


def test_the_first_of_two_failures_is_named():
    """Going back from T the escape of problem 1 (at T - t = 1/4) comes before that of problem 0 (at 1/2)."""
    g = torch.tensor([-2.0, -4.0], dtype=F64).reshape(2, 1, 1)
    with pytest.raises(ValueError, match="in problem 1 of the batch") as error:
        riccati(LQProblem(0.0, 1.0, R=1.0, G=g))
    assert failing_time(error) == pytest.approx(0.75, abs=1e-4)


@pytest.mark.parametrize("tau", [-1e-12, -1.0, math.nan, math.inf, -math.inf])
def test_what_is_no_temperature_is_refused(tau):
    with pytest.raises(ValueError, match=f"^temperature is {tau}"):
        riccati(LQProblem(0.0, 1.0, R=1.0), tau)


def test_an_infinite_horizon_is_sent_to_the_algebraic_equation():
    with pytest.raises(ValueError, match="horizon is infinite; expected a finite one .*algebraic"):
        riccati(LQProblem(0.0, 1.0, R=1.0, horizon=math.inf))


@pytest.mark.parametrize("t", [-0.01, 1.01, math.nan])
def test_times_outside_the_horizon_are_refused(t):
    solution = riccati(LQProblem(0.0, 1.0, R=1.0))
    for ask in (solution.value.terms, solution.policy.law):
        with pytest.raises(ValueError, match=r"expected a time in \[0.0, 1.0\]"):
            ask(torch.tensor(t, dtype=F64))


def test_a_coefficient_that_breaks_on_the_way_is_named():
    with pytest.raises(ValueError, match=r"^Q has shape \(2, 2\); expected \(1, 1\)"):
        riccati(LQProblem(0.0, 1.0, Q=lambda t: [[1.0]] if t == 0 or t > 0.5 else torch.eye(2), R=1.0))


def test_the_value_is_a_value_function():
    value = riccati(LQProblem(**make("stable", 2, 1, 1, 0))).value
    assert isinstance(value, QuadraticValue) and not value.batched
    big, small, level = value.terms(0.3)
    assert (big.shape, small.shape, level.shape) == ((2, 2), (2,), ())
    x = Draw(3)(4, 2)
    wanted = torch.stack([row @ big @ row / 2 + small @ row + level for row in x])
    assert near(value(0.3, x), wanted, rtol=1e-13)
