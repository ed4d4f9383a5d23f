"""docs/explanation/gaussian-images.md: the affine denoiser, its flow, the discrete optimum by induction, its limits."""

import math

import pytest
import sympy as sp
import torch
from symbolic import differs, expect, zero

from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.clock import KarrasClock, LogClock
from aid_control.images.guidance import PyramidCritic, price
from aid_control.images.optimum import GaussianOptimum
from aid_control.images.problem import GuidanceProblem, Observation
from aid_control.noise import generator
from aid_control.policy import GaussianPolicy
from aid_control.rollout import rollout

F64 = torch.float64
z, m = sp.symbols("z m", real=True)
beta, d, l, s, low = sp.symbols("beta d l s s_min", positive=True)


def positive_definite(n):
    """C = L L' of any lower triangular L."""
    lower = sp.Matrix(n, n, lambda i, j: sp.Symbol(f"L{i}{j}", positive=i == j, real=True) if i >= j else 0)
    return lower * lower.T


def test_equation_1_is_tweedies_formula_for_a_gaussian():
    x, mu = sp.Matrix(sp.symbols("x1 x2", real=True)), sp.Matrix(sp.symbols("mu1 mu2", real=True))
    c = positive_definite(2)
    noisy = c + s**2 * sp.eye(2)
    log_density = -((x - mu).T * noisy.inv() * (x - mu))[0] / 2
    score = sp.Matrix([sp.diff(log_density, v) for v in x])
    denoised = mu + c * noisy.inv() * (x - mu)
    assert all(zero(e) for e in denoised - x - s**2 * score)
    assert differs((denoised - x + s**2 * score)[0])


def test_equation_2_the_flow_of_one_direction():
    start = sp.Symbol("s_0", positive=True)
    path = z * sp.sqrt((l + s**2) / (l + start**2))
    assert zero(sp.diff(path, s) - (path - l * path / (l + s**2)) / s)
    assert zero(path.subs(s, start) - z)
    assert zero(path.subs(s, 0) - z * sp.sqrt(l / (l + start**2)))


def test_equation_3_the_hole_given_the_known_pixels():
    """Pixels 1, 2 known, 3 the hole: the density in x_3 is largest at m, and the miss knows nothing of y."""
    x = sp.Matrix(sp.symbols("x1:4", real=True))
    c = positive_definite(3)
    known, across = c[:2, :2], c[2, :2]
    mean = (across * known.inv() * x[:2, :])[0]
    precision = c.inv()
    exponent = (x.T * precision * x)[0]
    assert zero(sp.together(sp.diff(exponent, x[2]).subs(x[2], mean)))
    assert zero(sp.together(sp.diff(exponent, x[2], 2) / 2 - 1 / (c[2, 2] - (across * known.inv() * across.T)[0])))


def test_equation_4_the_clean_image_may_be_replaced_by_its_mean():
    x, x0, v = sp.symbols("x x0 v", real=True)
    assert zero(expect((x - x0) ** 2, x0, m, v) - (x - m) ** 2 - v)


def test_equations_5_to_7_the_induction_step():
    rest, cost, weight = sp.symbols("A c w", positive=True)  # of step k + 1, and w_k
    f, level, v = sp.symbols("f sigma v", real=True)
    factor = 1 - f * level**2 / (l + level**2)
    after = z + f * (l * z / (l + level**2) + v - z)
    assert zero(after - factor * z - f * v)
    total = weight * v**2 / 2 + (rest * after - m) ** 2 / (2 * d * cost)
    gap = rest * factor * z - m
    now = cost + (rest * f) ** 2 / (d * weight)
    best = -rest * f / (d * weight) * gap / now
    assert zero(sp.diff(total, v).subs(v, best)) and zero(sp.diff(total, v, 2) - weight - (rest * f) ** 2 / (d * cost))
    assert zero(total.subs(v, best) - gap**2 / (2 * d * now))
    assert differs(total.subs(v, -best) - gap**2 / (2 * d * now))
    # (8): what is left of the gap
    assert zero((rest * after - m).subs(v, best) - gap * cost / now)


def recursion(variance, falls, levels, weights, pixels):
    """A_k and c_k of equation (6)."""
    rest, cost = [1], [1]
    for f, level, w in zip(falls[::-1], levels[::-1], weights[::-1], strict=True):
        cost.insert(0, cost[0] + (rest[0] * f) ** 2 / (pixels * w))
        rest.insert(0, rest[0] * (1 - f * level**2 / (variance + level**2)))
    return rest, cost


@pytest.mark.parametrize("variance", [0, sp.Rational(1, 3)])  # for 0 the last factor a_k vanishes
def test_equations_6_to_8_against_the_whole_problem_at_once(variance):
    levels = [sp.Integer(4), sp.Integer(1), sp.Rational(1, 4)]
    falls = [1 - b / a for a, b in zip(levels, [*levels[1:], 0], strict=True)]
    pixels, weights = 3, [sp.Rational(1, 5), sp.Rational(2, 7), sp.Rational(1, 2)]
    v = sp.symbols("v0:3")
    path = [z]
    for f, level, control in zip(falls, levels, v, strict=True):
        path.append(path[-1] + f * (variance * path[-1] / (variance + level**2) + control - path[-1]))
    total = sum(w * u**2 for w, u in zip(weights, v, strict=True)) / 2 + (path[-1] - m) ** 2 / (2 * pixels)
    best = sp.solve([sp.diff(total, u) for u in v], v, dict=True)[0]
    rest, cost = recursion(variance, falls, levels, weights, pixels)
    gap = rest[0] * z - m
    assert zero(total.subs(best) - gap**2 / (2 * pixels * cost[0]))
    for k in range(3):
        assert zero(best[v[k]] + rest[k + 1] * falls[k] / (pixels * weights[k]) * gap / cost[0])  # (8): one gap for all
        here = rest[k] * path[k].subs(best) - m
        assert zero(best[v[k]] + rest[k + 1] * falls[k] / (pixels * weights[k]) * here / cost[k])  # (7)
    assert zero(path[-1].subs(best) - m - gap / cost[0])


def test_equation_9_the_drifts_control_is_the_same_optimum():
    """u_k Dt = f_k v_k and d = 1: the cost beta/2 u^2 Dt is w_k v^2/2 with w_k = beta f^2/Dt, cost=drift's weight."""
    f, dt, rest, level = sp.symbols("f Dt A sigma", positive=True)
    gap, cost = sp.symbols("e c", positive=True)
    weight = beta * f**2 / dt
    assert zero((rest * f) ** 2 / weight - dt / beta * rest**2)
    v = -rest * f / weight * gap / cost
    assert zero(f * v / dt + rest * gap / (beta * cost))
    assert zero(weight.subs(f, dt / level) - beta * dt / level**2)  # f = Dt/sigma where time is the fallen noise
    # theory's factor 1 + (s_{k+1} - s_k)/s_k s_k^2/(l + s_k^2) is a_k
    after = sp.Symbol("sigma1", positive=True)
    fall = 1 - after / level
    assert zero(1 + (after - level) / level * level**2 / (l + level**2) - (1 - fall * level**2 / (l + level**2)))


def test_equation_10_solves_the_hjb_equation_where_the_flow_is_affine():
    """The double integrator: x1' = x2, x2' = u; Phi = [[1, T - t], [0, 1]] does not commute with B B'."""
    t, end = sp.symbols("t T", real=True)
    x, goal = sp.Matrix(sp.symbols("x1 x2", real=True)), sp.Matrix(sp.symbols("m1 m2", real=True))
    left = end - t
    phi, push = sp.Matrix([[1, left], [0, 1]]), sp.Matrix([0, 1])
    q = sp.Symbol("q", real=True)
    column = sp.Matrix([[1, q], [0, 1]]) * push
    reach = (column * column.T / beta).applyfunc(lambda e: sp.integrate(e, (q, 0, left)))
    inverse = (sp.eye(2) + reach).inv()
    gap = phi * x - goal
    value = (gap.T * inverse * gap)[0] / 2
    slope = sp.Matrix([sp.diff(value, v) for v in x])
    residual = sp.diff(value, t) + slope[0] * x[1] - (push.T * slope)[0] ** 2 / (2 * beta)
    assert zero(sp.together(residual))
    control = -(push.T * phi.T * inverse * gap)[0] / beta
    assert zero(sp.together(control + (push.T * slope)[0] / beta))
    assert zero(value.subs(t, end) - ((x - goal).T * (x - goal))[0] / 2)


def test_equation_11_solves_the_hjb_equation_in_log_sigma():
    """Time -log s: x' = D + v - x, cost beta/(2d) v^2: V_t + V_z (D - z) - d V_z^2/(2 beta) = 0."""
    cost, top = sp.Function("c")(s), sp.Symbol("kappa", positive=True)
    rest = sp.sqrt(top * l / (l + s**2))  # any constant factor: the last step's
    gap = rest * z - m
    value = gap**2 / (2 * d * cost)
    drift = l * z / (l + s**2) - z
    residual = -s * sp.diff(value, s) + sp.diff(value, z) * drift - d * sp.diff(value, z) ** 2 / (2 * beta)
    solved = residual.subs(sp.diff(cost, s), rest**2 / (beta * s))
    assert zero(sp.simplify(solved))
    assert differs(residual.subs(sp.diff(cost, s), -(rest**2) / (beta * s)).subs(cost, 2))
    assert zero(-d / beta * sp.diff(value, z) + rest * gap / (beta * cost))  # v*


def integral_of_square():
    """int A^2 dlog s from s_min to s, with A^2 = l/(l + s^2)."""
    return sp.log(s**2 / low**2) / 2 - sp.log((l + s**2) / (l + low**2)) / 2


def test_equations_11_to_13_the_integrals():
    assert zero(sp.diff(integral_of_square(), s) - l / (l + s**2) / s) and zero(integral_of_square().subs(s, low))
    area = sp.sqrt(l) * (sp.atan(s / sp.sqrt(l)) - sp.atan(low / sp.sqrt(l)))
    assert zero(sp.diff(area, s) - l / (l + s**2)) and zero(area.subs(s, low))
    formula = sp.lambdify((l, s, low, beta), 1 + (1 + integral_of_square()) / beta)
    for variance in (1e-3, 0.2, 3.0):
        found = float(price(torch.tensor(variance, dtype=F64), 7.0, 0.01, 0.4))
        assert found == pytest.approx(formula(variance, 7.0, 0.01, 0.4), rel=1e-12)


@pytest.mark.parametrize("cost", ["levels", "drift"])
@pytest.mark.parametrize("variance", [1e-6, 1e-2, 1.0])
def test_equations_11_and_13_are_the_limits_of_the_discrete_curves(cost, variance):
    clock, weight, errors = KarrasClock(0.002, 80.0), 0.7, []
    share = variance / (variance + 0.002**2)  # kappa
    whole = float(integral_of_square().subs({l: variance, s: 80.0, low: 0.002}))
    area = math.sqrt(variance) * (math.atan(80 / math.sqrt(variance)) - math.atan(0.002 / math.sqrt(variance)))
    inside = 1 + share * whole if cost == "levels" else 0.002 + share * area
    exact = 1 + inside / weight
    flow = variance / math.sqrt((variance + 80.0**2) * (variance + 0.002**2))
    for steps in (500, 1000, 2000):
        levels = clock.sigmas(steps).tolist()
        falls = [1 - b / a for a, b in zip(levels[:-1], levels[1:], strict=True)]
        weights = [weight * f / (1 if cost == "levels" else a) for f, a in zip(falls, levels[:-1], strict=True)]
        rest, price_of = recursion(variance, falls, levels[:-1], weights, 1)
        errors.append((abs(price_of[0] - exact) / exact, abs(rest[0] - flow) / flow))
    assert errors[2][0] < 0.01 and errors[2][1] < 0.005
    for a, b in zip(errors[:-1], errors[1:], strict=True):  # first order in the step
        assert a[0] / b[0] == pytest.approx(2, rel=0.1) and a[1] / b[1] == pytest.approx(2, rel=0.1)


def test_equation_12_is_far_from_a_grid_of_18_steps():
    levels = KarrasClock(0.002, 80.0).sigmas(18).tolist()
    falls = [1 - b / a for a, b in zip(levels[:-1], levels[1:], strict=True)]
    assert recursion(1.0, falls, levels[:-1], falls, 1)[1][0] == pytest.approx(6.14, abs=0.005)
    assert float(price(torch.tensor(1.0, dtype=F64), 80.0, 0.002, 1.0)) == pytest.approx(8.21, abs=0.005)


# --- the package's code ----------------------------------------------------------------------------------------------


def test_equation_12_is_the_critic_of_the_package():
    variances, clock = torch.tensor([0.01, 0.3], dtype=F64), KarrasClock(0.002, 80.0)
    critic = PyramidCritic(None, 0.7, 64, variances, clock).double()
    critic.band_variances = variances
    flat = torch.full((1, 1, 8, 8), 0.8, dtype=F64)  # only the coarsest band
    context = Observation(flat, flat[:, :1], guess=0.5 * flat)
    for level in (0.002, 1.0, 80.0):
        found = float(critic(torch.tensor(80.0 - level, dtype=F64), flat, context).detach())
        shrink = math.sqrt(0.3 / (0.3 + level**2))
        paid = 1 + (1 + float(integral_of_square().subs({l: 0.3, s: level, low: 0.002}))) / 0.7
        assert found == pytest.approx(0.5 * (shrink * 0.8 - 0.4) ** 2 / paid, rel=1e-9)


@pytest.mark.parametrize("cost", ["levels", "drift"])
def test_equations_6_to_8_are_the_packages_optimum(cost):
    rng, clock = generator(5), LogClock(0.05, 6.0)
    net = GaussianBackbone((1, 3, 3), 3).double()
    net.assign(torch.randn(9, generator=rng), torch.randn(3, 9, generator=rng), torch.full((9,), 0.2))
    problem, grid = GuidanceProblem(net, clock, beta=0.6, cost=cost), clock.grid(6)
    start, target = (k * torch.randn(2, 1, 3, 3, generator=rng, dtype=F64) for k in (6.0, 1.0))
    optimum = GaussianOptimum(problem, grid, target)
    u, variances = net.spectrum()
    falls, weights = problem.discrete(grid)
    levels = clock.sigmas(6).tolist()
    path = rollout(problem, GaussianPolicy(optimum), start, grid, Observation(start, start), target)

    def along(image):
        return (image.flatten(1) - net.mean[0]) @ u

    for j, variance in enumerate(variances.tolist()):
        rest, paid = recursion(variance, falls, levels[:-1], weights, 9)
        place = min(j, 3)  # the package's last entry stands for all directions outside its thin U
        assert [float(a[place]) for a in optimum.rest] == pytest.approx(rest, rel=1e-9)
        assert [float(c[place]) for c in optimum.cost] == pytest.approx(paid, rel=1e-9)
        gap = rest[0] * along(start)[:, j] - along(target)[:, j]
        torch.testing.assert_close(along(path.states[-1])[:, j] - along(target)[:, j], gap / paid[0])
        for k, mean in enumerate(path.means):
            expected = -rest[k + 1] * falls[k] / (9 * weights[k]) * gap / paid[0]
            torch.testing.assert_close((mean.flatten(1) @ u)[:, j], expected)
