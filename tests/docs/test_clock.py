"""docs/explanation/clock.md: Tweedie, the probability-flow ODE, clocks, the two costs, the Euler step, projection."""

import pytest
import sympy as sp
import torch
from symbolic import differs, zero

from aid_control.images.backbones.mixture import MixtureBackbone
from aid_control.images.clock import KarrasClock, LinearClock, LogClock
from aid_control.images.problem import GuidanceProblem, Observation
from aid_control.noise import generator
from aid_control.policy import GaussianPolicy, ZeroMean
from aid_control.rollout import rollout

F64 = torch.float64
x = sp.Symbol("x", real=True)
s = sp.Symbol("s", positive=True)


def two_points():
    """x_0 is one of two numbers: its density through noise, E[x_0 | x] and Var[x_0 | x] by Bayes' rule."""
    a, b = sp.symbols("a b", real=True)
    alpha = sp.Symbol("alpha", positive=True)  # odds of a
    weights = {a: alpha * sp.exp(-((x - a) ** 2) / (2 * s**2)), b: sp.exp(-((x - b) ** 2) / (2 * s**2))}
    total = sum(weights.values())
    mean = sum(z * w for z, w in weights.items()) / total
    variance = sum(z**2 * w for z, w in weights.items()) / total - mean**2
    return total / s, mean, variance


def test_equation_2_the_conditional_mean_is_a_step_along_the_score():
    density, mean, _ = two_points()
    assert zero(mean - x - s**2 * sp.diff(density, x) / density)
    assert differs(mean - x + s**2 * sp.diff(density, x) / density)


def test_equation_3_the_denoisers_slope_is_the_conditional_variance():
    density, mean, variance = two_points()
    assert zero(s**2 * sp.diff(mean, x) - variance)
    assert zero(variance - s**2 - s**4 * sp.diff(sp.log(density), x, 2))


def test_equation_4_noise_of_level_s_diffuses_at_rate_s():
    y = sp.symbols("y1 y2", real=True)
    kernel = sp.exp(-(y[0] ** 2 + y[1] ** 2) / (2 * s**2)) / (2 * sp.pi * s**2)
    laplacian = sum(sp.diff(kernel, z, 2) for z in y)
    assert zero(sp.diff(kernel, s) - s * laplacian)
    assert differs(sp.diff(kernel, s) - s * laplacian / 2)


def test_equation_5_the_flow_carries_the_density():
    density, mean, _ = two_points()
    for sign, holds in ((1, True), (-1, False)):
        velocity = sign * (x - mean) / s
        left = sp.diff(density, s) + sp.diff(density * velocity, x)
        assert zero(left) if holds else differs(left)


def clocks():
    """Decreasing levels of t: fallen noise, exponential, Karras with exponent 3."""
    t, top, rate = sp.symbols("t top rate", positive=True)
    return t, [top - t, top * sp.exp(-rate * t), (top - rate * t) ** 3]


def test_equations_6_to_8_a_change_of_time_and_of_scale():
    t, levels = clocks()
    denoised, v = sp.Function("D"), sp.Symbol("v", real=True)
    scale = sp.Function("a")(t)
    for level in levels:
        rate = -sp.diff(level, t) / level
        slope = (x - denoised(x, level)) / level  # dx/ds of (5)
        assert zero(sp.diff(level, t) * slope - rate * (denoised(x, level) - x))
        guided = sp.diff(level, t) * (x - (denoised(x, level) + v)) / level
        assert zero(guided - rate * (denoised(x, level) - x) - rate * v)  # u = r v
        # z = a x
        z = sp.Symbol("z", real=True)
        inner = rate * (denoised(z / scale, level) - z / scale)
        moved = sp.diff(scale, t) * z / scale + scale * inner
        general = (sp.diff(level, t) / level + sp.diff(scale, t) / scale) * z
        general -= sp.diff(level, t) * scale / level * denoised(z / scale, level)
        assert zero(moved - general)


def test_equation_9_karras_grid_is_linear_for_one_and_geometric_for_infinity():
    lo, hi, q, rho = sp.symbols("lo hi q rho", positive=True)
    level = (hi ** (1 / rho) + q * (lo ** (1 / rho) - hi ** (1 / rho))) ** rho
    assert zero(level.subs(rho, 1) - hi - q * (lo - hi))
    exponent = sp.limit(sp.log(level.subs({lo: 2, hi: 7})), rho, sp.oo)
    assert zero(exponent - (1 - q) * sp.log(7) - q * sp.log(2))
    base = hi ** (1 / rho) + q * (lo ** (1 / rho) - hi ** (1 / rho))  # so that the spacing is like s^(1 - 1/rho)
    assert zero(sp.diff(level, q) - rho * (lo ** (1 / rho) - hi ** (1 / rho)) * base ** (rho - 1))
    numbers = {lo: 0.002, hi: 80.0, rho: 7.0}
    for k, found in enumerate(KarrasClock().sigmas(9)[:-1].tolist()):
        assert found == pytest.approx(float(level.subs(numbers | {q: k / 8})), rel=1e-10)
    torch.testing.assert_close(KarrasClock(rho=1e6).sigmas(9), LogClock().sigmas(9), rtol=2e-4, atol=0)


def test_equation_10_one_cost_does_not_know_the_clock():
    top, low = sp.Integer(5), sp.Rational(1, 2)
    t = sp.Symbol("t", positive=True)
    levels, drifts = [], []
    for clock, end in (
        (top - t, top - low),
        (top * sp.exp(-3 * t), sp.log(top / low) / 3),
        (top - 2 * t, (top - low) / 2),
    ):
        v, rate = 1 + clock, -sp.diff(clock, t) / clock  # guidance as a function of the level, v = 1 + s
        levels.append(sp.integrate(sp.expand(sp.simplify(v**2 * rate)), (t, 0, end)))
        drifts.append(sp.integrate(sp.expand(sp.simplify(v**2 * rate**2)), (t, 0, end)))
    by_level = sp.integrate(sp.expand((1 + s) ** 2 / s), (s, low, top))
    assert all(zero(sp.simplify(c - by_level)) for c in levels)
    fallen = sp.integrate(sp.expand((1 + s) ** 2 / s**2), (s, low, top))
    assert zero(sp.simplify(drifts[0] - fallen)) and zero(sp.simplify(drifts[2] - 2 * fallen))
    assert zero(sp.simplify(drifts[1] - 3 * by_level))
    assert differs(sp.simplify(drifts[1] - drifts[0]) + 0 * x)


def test_equation_11_the_euler_step_is_exact_where_the_denoised_image_stands_still():
    s0, s1, d = sp.symbols("s0 s1 D", positive=True)
    path = d + (x - d) * s / s0  # through x at s0
    assert zero(sp.diff(path, s) - (path - d) / s) and zero(path.subs(s, s0) - x)
    fall = 1 - s1 / s0
    assert zero(path.subs(s, s1) - (x + fall * (d - x)))
    assert zero(x + (s1 - s0) * (x - d) / s0 - (x + fall * (d - x)))
    assert zero((x + fall * (d - x)).subs(s1, 0) - d)
    # Euler in time log(1/s) visits the same levels and steps elsewhere
    assert differs(x + sp.log(s0 / s1) * (d - x) - (x + fall * (d - x)))


# --- the package's code ----------------------------------------------------------------------------------------------


def backbone():
    rng = generator(3)
    net = MixtureBackbone((1, 4, 4), 2, 2).double()
    mean, factor = torch.randn(2, 16, generator=rng), torch.randn(2, 2, 16, generator=rng)
    return net.assign(mean, factor, torch.full((2, 16), 0.05))


def setting(clock=None, n=2, **options):
    problem, rng = GuidanceProblem(backbone(), clock or KarrasClock(0.1, 10.0), **options), generator(1)
    start, y = (scale * torch.randn(n, 1, 4, 4, generator=rng, dtype=F64) for scale in (10.0, 1.0))
    mask = (torch.rand(n, 1, 4, 4, generator=rng) < 0.5).to(F64)
    return problem, start, Observation(y * mask, mask)


class Constant(torch.nn.Module):
    """Guidance that is the same number everywhere."""

    def forward(self, t, x, context, probe):
        return torch.full_like(x, 0.3)


def test_equations_11_and_12_are_the_steps_of_the_package():
    problem, start, context = setting()
    net, levels, policy = problem.backbone, problem.clock.sigmas(6), GaussianPolicy(Constant())
    for solver in ("euler", "heun"):
        path = rollout(problem, policy, start, problem.clock.grid(6), context, solver=solver)
        z = start
        for s0, s1, found in zip(levels[:-1], levels[1:], path.states[1:], strict=True):
            slope = (z - net(z, s0) - 0.3) / s0
            guess = z + (s1 - s0) * slope
            if solver == "heun" and s1 > 0:
                guess = z + (s1 - s0) * (slope + (guess - net(guess, s1) - 0.3) / s1) / 2
            torch.testing.assert_close(found, guess, rtol=1e-9, atol=1e-9)
            z = found
        last = net(path.states[-2], levels[-2]) + 0.3  # the end is D + v
        torch.testing.assert_close(path.states[-1], last, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_equation_13_known_pixels_of_the_projected_flow_are_on_a_straight_line(solver):
    problem, start, context = setting(base="projected")
    levels = problem.clock.sigmas(6)
    path = rollout(problem, GaussianPolicy(ZeroMean()), start, problem.clock.grid(6), context, solver=solver)
    for level, z in zip(levels, path.states, strict=True):
        line = context.y + level / levels[0] * (start - context.y)
        torch.testing.assert_close(z * context.mask, line * context.mask, rtol=0, atol=1e-12)
    assert float((path.states[-1] - context.y).abs().max()) > 0.1  # but not the hole


def test_equation_14_the_steps_weights():
    for clock in (KarrasClock(0.1, 10.0), LogClock(0.1, 10.0), LinearClock(0.1, 10.0)):
        levels = clock.sigmas(7)
        falls = 1 - levels[1:] / levels[:-1]
        for cost, expected in (("levels", falls), ("drift", falls / levels[:-1])):
            problem, _, _ = setting(clock, cost=cost, beta=0.7)
            found, weights = problem.discrete(clock.grid(7))
            torch.testing.assert_close(torch.tensor(found, dtype=F64), falls, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(torch.tensor(weights, dtype=F64), 0.7 / 16 * expected, rtol=1e-12, atol=1e-12)
        fine = clock.sigmas(4000)
        total = float((1 - fine[1:] / fine[:-1]).sum())
        exact = 1 + torch.tensor(100.0, dtype=F64).log().item()  # the range of log sigma, and 1 for the last step
        assert total == pytest.approx(exact, rel=0.05 if clock == LinearClock(0.1, 10.0) else 2e-3)


@pytest.mark.parametrize("cost", ["levels", "drift"])
def test_equation_15_the_best_answer_to_a_slope_of_the_value(cost):
    problem, start, _ = setting(cost=cost, beta=0.7)
    t = torch.tensor(6.0, dtype=F64)  # sigma = 4
    slope = torch.randn(start.shape, generator=generator(2), dtype=F64)
    expected = -16 / 0.7 * slope * (1 if cost == "levels" else 4.0)
    torch.testing.assert_close(problem.response(t, start, slope), expected)
