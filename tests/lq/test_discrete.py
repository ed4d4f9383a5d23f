"""What Euler-Maruyama computes, exactly: against all paths of two-point noise, Monte Carlo and continuous time."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid_control import rollout
from aid_control.increments import Increments
from aid_control.lq import AffineGaussian, LQProblem, evaluate, riccati, scheme_value, zoo
from aid_control.noise import generator

F64 = torch.float64
NUMBERS = (5, 10, 20, 40, 80)


def grid(steps, end=1.0):
    return torch.linspace(0, end, steps + 1, dtype=F64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def positive(d, seed, floor=0.3):
    half = randn(d, d, seed=seed)
    return half @ half.mT / d + floor * torch.eye(d, dtype=F64)


def make(d, m, n, seed, moving=False):
    c = {
        "A": randn(d, d, seed=seed), "B": randn(d, m, seed=seed + 1), "C": 0.5 * randn(n, d, d, seed=seed + 2),
        "D": 0.5 * randn(n, d, m, seed=seed + 3), "s": randn(n, d, seed=seed + 4), "b": randn(d, seed=seed + 5),
        "Q": positive(d, seed + 6), "R": positive(m, seed + 7), "N": 0.3 * randn(d, m, seed=seed + 8),
        "q": randn(d, seed=seed + 9), "r": randn(m, seed=seed + 10), "G": positive(d, seed + 11),
        "g": randn(d, seed=seed + 12),
    }  # fmt: skip
    if moving:
        fixed = dict(c)
        for name in "ABDQsr":
            c[name] = lambda t, name=name: math.cos(2 * t) * fixed[name]
    return c


def law(d, m, seed, moving=False):
    gain, offset, sigma = 0.5 * randn(m, d, seed=seed + 20), randn(m, seed=seed + 21), positive(m, seed + 22)
    return AffineGaussian(lambda t: ((1 + t) * gain, offset, (1 + t) * sigma) if moving else (gain, offset, sigma))


def signs(steps, width):
    """All paths of +-1, (steps, 2^(steps width), width)."""
    paths = torch.tensor(list(itertools.product((1.0, -1.0), repeat=steps * width)), dtype=F64)
    return paths.unflatten(1, (steps, width)).transpose(0, 1)


# --- Exactly ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("mode", ["mean", "averaged"])
@pytest.mark.parametrize(("d", "m", "n", "steps"), [(1, 1, 1, 4), (2, 1, 2, 2), (2, 2, 1, 3)])
def test_the_mean_over_all_paths_of_two_point_noise(d, m, n, steps, mode, moving):
    """V_{k+1} is quadratic and one step linear in each increment: +-sqrt(dt) has the moments that matter."""
    problem, policy = LQProblem(**make(d, m, n, 3, moving), discount=0.7), law(d, m, 3, moving)
    times = torch.tensor([0.1, 0.3, 0.35, 0.7, 1.0], dtype=F64)[: steps + 1]  # uneven
    tau = 0.4
    noise = signs(steps, n + (n * m if mode == "averaged" else 0))
    paths = Increments(times, noise * times.diff().sqrt()[:, None, None])
    x = randn(1, d, seed=1)
    run = rollout(
        problem, policy, x.expand(noise.shape[1], d), times, target=0, mode=mode, increments=paths, temperature=tau
    )
    exact = scheme_value(problem, policy, times, mode, tau)(0.1, x)
    assert run.total_cost().mean().item() == pytest.approx(exact.item(), rel=1e-12)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize(("d", "m", "n", "steps"), [(1, 1, 1, 4), (2, 1, 2, 3), (2, 2, 1, 3)])
def test_the_mean_over_all_paths_of_two_point_noise_and_actions(d, m, n, steps, moving):
    """The same with actions m + F eps, eps = +-1, written out by hand; E tau log pi is exact, too, as |eps|^2 = m."""
    problem, policy, tau = LQProblem(**make(d, m, n, 5, moving), discount=0.7), law(d, m, 5, moving), 0.4
    times = torch.tensor([0.1, 0.3, 0.35, 0.7, 1.0], dtype=F64)[: steps + 1]
    both = signs(steps, n + m)
    start = randn(1, d, seed=1)
    x, total, weight = start.expand(both.shape[1], d), 0.0, 1.0
    for k in range(steps):
        t, dt = times[k], times[k + 1] - times[k]
        mean = policy.mean(t, x)
        u = mean + both[k, :, n:] @ torch.linalg.cholesky(policy.law(t)[2]).mT
        density = torch.distributions.MultivariateNormal(mean, policy.law(t)[2]).log_prob(u)
        total = total + weight * dt * (problem.stage_cost(t, x, u, None) + tau * density)
        x = x + dt * problem.velocity(t, x, u, None, None) + problem.diffuse(t, x, u, both[k, :, :n] * dt.sqrt())
        weight = weight * math.exp(-0.7 * dt)
    total = total + weight * problem.terminal_cost(x)
    exact = scheme_value(problem, policy, times, "sampled", tau)(0.1, start)
    assert total.mean().item() == pytest.approx(exact.item(), rel=1e-12)


def test_one_step_by_hand():
    """X = 2, u = 3 + eps, dX = (X + u) dt + u dW, cost (X^2 + u^2)/2, then X_T^2/2; dt = 1/2, rho = 2, Var u = v."""
    problem = LQProblem(1.0, 1.0, Q=1.0, R=1.0, D=1.0, G=1.0, discount=2.0, horizon=0.5)
    policy, x, factor = AffineGaussian.constant([[0.0]], [3.0], 0.2), torch.full((1, 1), 2.0, dtype=F64), math.exp(-1)
    cold = 0.5 * (4 + 9) / 2 + factor * 0.5 * ((2 + 0.5 * 5) ** 2 + 9 * 0.5)
    averaged = cold + 0.5 * 0.2 / 2 + factor * 0.5 * 0.2 * 0.5
    sampled = averaged + factor * 0.5 * 0.25 * 0.2
    for mode, wanted in (("mean", cold), ("averaged", averaged), ("sampled", sampled)):
        found = scheme_value(problem, policy, grid(1, 0.5), mode)(0.0, x).item()
        assert found == pytest.approx(wanted, rel=1e-13), mode


def test_a_run_without_noise_is_the_value_itself():
    c = {k: v for k, v in make(3, 2, 1, 8, moving=True).items() if k not in "CDs"}
    problem, policy, times = LQProblem(**c, discount=0.3), law(3, 2, 8, moving=True), grid(13)
    x = randn(4, 3)
    run = rollout(problem, policy, x, times, target=0)
    assert torch.allclose(run.total_cost(), scheme_value(problem, policy, times, "mean")(0.0, x), rtol=1e-12)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    d=st.integers(1, 3), m=st.integers(1, 2), n=st.integers(1, 2), seed=st.integers(0, 10**5), steps=st.integers(1, 9)
)
def test_sampled_minus_averaged_is_the_spread_of_the_drift(d, m, n, seed, steps):
    """The whole difference is sum dt^2 tr(B'P_{k+1}B Sigma)/2 and depends on no state."""
    problem, policy = LQProblem(**make(d, m, n, seed)), law(d, m, seed)
    sampled, averaged = (scheme_value(problem, policy, grid(steps), mode) for mode in ("sampled", "averaged"))
    assert torch.equal(sampled.terms(0.0)[0], averaged.terms(0.0)[0])
    assert torch.equal(sampled.terms(0.0)[1], averaged.terms(0.0)[1])
    sigma, b = policy.law(torch.tensor(0.0))[2], problem.at("B", 0.0)
    total = 0.0
    for left in range(steps):
        if left == 0:
            big = problem.at("G", 0.0)
        else:
            big = scheme_value(problem, policy, grid(steps)[-left - 1 :], "averaged").terms(0.0)[0]
        total = total + 0.5 / steps**2 * (b.mT @ big @ b @ sigma).trace()
    assert torch.allclose(sampled.terms(0.0)[2] - averaged.terms(0.0)[2], total, rtol=1e-9, atol=1e-12)


def test_a_batch_is_its_single_problems():
    singles, rows = [make(2, 2, 1, seed) for seed in (1, 2, 3)], randn(3, 2, 2)
    batch = LQProblem(**{k: torch.stack([c[k] for c in singles]) for k in singles[0]}, discount=0.2)
    policy = law(2, 2, 4)
    for mode in ("mean", "averaged", "sampled"):
        together = scheme_value(batch, policy, grid(7), mode)(0.0, rows.flatten(0, 1))
        for i, c in enumerate(singles):
            alone = scheme_value(LQProblem(**c, discount=0.2), policy, grid(7), mode)(0.0, rows[i])
            assert torch.allclose(together[2 * i : 2 * i + 2], alone, rtol=1e-12)


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_the_mean_mode_of_a_rollout_costs_the_same(tau):
    """The policy's entropy is charged in every mode, its spread is not there: cost -tau H T for a control at rest."""
    problem, policy = LQProblem(0.0, 1.0, R=1.0), AffineGaussian.constant([[0.0]], covariance=0.3)
    x, wanted = torch.zeros(1, 1, dtype=F64), -tau * 0.5 * math.log(2 * math.pi * math.e * 0.3)
    run = rollout(problem, policy, x, grid(2), target=0, mode="mean", temperature=tau)
    assert run.total_cost().item() == pytest.approx(wanted, abs=1e-12)
    assert scheme_value(problem, policy, grid(2), "mean", tau)(0.0, x).item() == pytest.approx(wanted, abs=1e-12)


# --- Monte Carlo -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mean", "averaged", "sampled"])
@pytest.mark.parametrize("seed", [1, 2])
def test_monte_carlo_agrees(mode, seed):
    problem, policy = LQProblem(**make(2, 2, 2, seed), discount=0.7), law(2, 2, seed)
    tau, x = 0.4, randn(1, 2, seed=1)
    # one seed for the actions and the paths: they must be independent all the same
    run = rollout(
        problem, policy, x.expand(20_000, 2), grid(6), target=0, mode=mode, noise=generator(seed), entropy=seed,
        temperature=tau, keep="last",
    )  # fmt: skip
    cost = run.total_cost()
    exact = scheme_value(problem, policy, grid(6), mode, tau)(0.0, x).item()
    error = cost.std().item() / len(cost) ** 0.5
    assert abs(cost.mean().item() - exact) < 4 * error
    assert error < 0.05 * abs(exact)  # and the test has some power
    if mode != "mean":  # which it would not have if it could not tell the two modes apart with enough paths
        other = "averaged" if mode == "sampled" else "sampled"
        assert abs(scheme_value(problem, policy, grid(6), other, tau)(0.0, x).item() - exact) > error / 4


# --- Continuous time -------------------------------------------------------------------------------------------------


def second_moment():
    """E X_T^2 with A = B = C = D = 1, under N(-1.5 x, 0.5) from X_0 = 1: here as a cost."""
    problem = LQProblem(1.0, 1.0, R=0.0, C=1.0, D=1.0, G=2.0)
    return problem, AffineGaussian.constant([[-1.5]], covariance=0.5), torch.ones(1, 1, dtype=F64)


def errors(problem, policy, x, mode, tau=0.0):
    exact = evaluate(problem, policy, tau)(0.0, x)
    return torch.stack([scheme_value(problem, policy, grid(k), mode, tau)(0.0, x) - exact for k in NUMBERS])


def test_numbers_found_before():
    """Of an independent program: the exact 0.82412 and the errors at n = 5, 10, 20, 40, 80."""
    problem, policy, x = second_moment()
    assert evaluate(problem, policy)(0.0, x).item() == pytest.approx(0.82412, abs=5e-6)
    wanted = {
        "sampled": (0.1002, 0.0482, 0.0237, 0.0117, 0.0058),
        "averaged": (0.0246, 0.0118, 0.0057, 0.0028, 0.0014),
    }
    for mode, numbers in wanted.items():
        assert errors(problem, policy, x, mode).flatten().tolist() == pytest.approx(numbers, abs=6e-5)


def test_those_numbers_by_their_recursion():
    """E X_{k+1}^2 = ((1 + a dt)^2 + c^2 dt) E X_k^2 + v dt (1 [+ dt when sampled]) with a = c = -1/2."""
    problem, policy, x = second_moment()
    for n in NUMBERS:
        for mode in ("averaged", "sampled"):
            y, dt = 1.0, 1 / n
            for _ in range(n):
                y = ((1 - 0.5 * dt) ** 2 + 0.25 * dt) * y + 0.5 * dt * (1 + (dt if mode == "sampled" else 0))
            assert scheme_value(problem, policy, grid(n), mode)(0.0, x).item() == pytest.approx(y, rel=1e-12)


@pytest.mark.parametrize("mode", ["averaged", "sampled"])
@pytest.mark.parametrize("which", ["second moment", "general"])
def test_both_modes_are_of_first_order(mode, which):
    if which == "general":
        problem, policy = LQProblem(**make(2, 1, 2, 6), discount=0.5), law(2, 1, 6)
        gaps, tau = None, 0.3
        exact = evaluate(problem, policy, tau)(0.0, randn(1, 2))
        numbers = (40, 80, 160, 320)
        gaps = [scheme_value(problem, policy, grid(k), mode, tau)(0.0, randn(1, 2)) - exact for k in numbers]
        gaps = torch.stack(gaps).abs().flatten()
    else:
        numbers, gaps = NUMBERS, errors(*second_moment(), mode).abs().flatten()
    slope = np.polyfit(np.log(numbers), np.log(gaps.numpy()), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)


def test_sampling_has_four_times_the_error_of_averaging():
    problem, policy, x = second_moment()
    ratio = errors(problem, policy, x, "sampled") / errors(problem, policy, x, "averaged")
    assert ratio.flatten().tolist() == pytest.approx([4.1] * 5, abs=0.1)


def test_with_noise_free_of_the_control_sampling_costs_at_first_order_only():
    """The two modes have one limit; what sampling adds is dt/2 times int tr(B'PB Sigma) e^{-rho t} dt, in the limit."""
    c = {k: v for k, v in make(2, 2, 2, 9).items() if k != "D"}
    problem, policy, x = LQProblem(**c), law(2, 2, 9), randn(1, 2)
    numbers = (25, 50, 100, 200)
    gaps = []
    for k in numbers:
        sampled, averaged = (scheme_value(problem, policy, grid(k), mode)(0.0, x) for mode in ("sampled", "averaged"))
        gaps.append((sampled - averaged).item())
    assert np.polyfit(np.log(numbers), np.log(gaps), 1)[0] == pytest.approx(-1, abs=0.02)
    value, sigma = evaluate(problem, policy), policy.law(torch.tensor(0.0))[2]
    times = np.linspace(0, 1, 41)
    rate = [float((c["B"].mT @ value.terms(t)[0] @ c["B"] @ sigma).trace()) for t in times]
    weights = np.array([1] + [4, 2] * 19 + [4, 1]) / 120  # Simpson
    assert gaps[-1] * numbers[-1] == pytest.approx(0.5 * float(weights @ rate), rel=0.02)


def test_the_scheme_of_the_optimal_policy_tends_to_the_optimum():
    problem = zoo.ou_quadratic(dim=3)
    best, x = riccati(problem, 0.5), torch.ones(1, 3, dtype=F64)
    gaps = []
    for k in (20, 40, 80):
        gaps.append((scheme_value(problem, best.policy, grid(k), temperature=0.5)(0.0, x) - best.value(0.0, x)).item())
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.1) and gaps[1] / gaps[2] == pytest.approx(2, rel=0.1)


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["Averaged", "relaxed", "", None])
def test_an_unknown_mode_is_refused(mode):
    problem, policy, _ = second_moment()
    with pytest.raises(ValueError, match="mode"):
        scheme_value(problem, policy, grid(3), mode)


@pytest.mark.parametrize("tau", [-1.0, math.nan])
def test_what_is_no_temperature_is_refused(tau):
    problem, policy, _ = second_moment()
    with pytest.raises(ValueError, match=f"^temperature is {tau}"):
        scheme_value(problem, policy, grid(3), temperature=tau)


@pytest.mark.parametrize("times", [[1.0, 0.5, 0.0], [0.0, 0.5, 0.5, 1.0], [0.0]], ids=["back", "standing", "one"])
def test_a_grid_that_does_not_increase_is_refused(times):
    problem, policy, _ = second_moment()
    with pytest.raises(ValueError, match="grid"):
        scheme_value(problem, policy, torch.tensor(times, dtype=F64))
