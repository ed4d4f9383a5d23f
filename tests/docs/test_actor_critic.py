"""docs/explanation/actor-critic.md: the time shift, what the actor's line estimates, its noise, the code."""

import pytest
import sympy as sp
import torch
from symbolic import differs, expect, zero

from aid_control import ActorCritic, Batch, GaussianPolicy, rollout
from aid_control.evaluation import temporal_differences
from aid_control.improvement import score_targets
from aid_control.lq import AIDToy
from aid_control.noise import generator
from aid_control.value import NeuralValue, Shifted

F64 = torch.float64
x, e, m, t = sp.symbols("x e m t", real=True)
nu, beta, lam, h, eta = sp.symbols("nu beta lam h eta", positive=True)  # h is Dt


def gaussian(f, names, variance=nu):
    """E over independent N(0, variance), one coordinate after the other."""
    for name in names:
        f = expect(f, name, 0, variance)
    return sp.expand(f)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_equation_2_exploration_costs_lambda_a_unit_of_time(d):
    es, ms = sp.symbols("e1:4", real=True)[:d], sp.symbols("m1:4", real=True)[:d]
    action = [a + b for a, b in zip(ms, es, strict=True)]
    cost = beta / 2 * sum(a**2 for a in action)
    mean = gaussian(cost, es).subs(nu, 2 * lam / (beta * d))
    assert zero(mean - beta / 2 * sum(a**2 for a in ms) - lam)
    if d > 1:
        assert differs(gaussian(cost, es).subs(nu, 2 * lam / beta) - beta / 2 * sum(a**2 for a in ms) - lam)


def toy():
    """dx = u dt, Psi = x^2/2, T = 1: V = x^2/(2 (1 + (1 - t)/beta)), and m* = -V_x/beta."""
    value = x**2 / (2 * (1 + (1 - t) / beta))
    return value, -sp.diff(value, x) / beta


def test_equations_3_and_5_the_shift_and_the_advantage_identity():
    value, best = toy()
    shifted = value - lam * t
    action = sp.Symbol("a", real=True)
    q = sp.diff(shifted, t) + sp.diff(value, x) * action + beta / 2 * action**2
    assert zero(q - (beta / 2 * (action - best) ** 2 - lam))
    assert zero(expect(q, action, best, 2 * lam / beta))  # the martingale condition of the optimal policy
    assert zero(shifted.subs(t, 1) - (x**2 / 2 - lam))
    wrong = sp.diff(value + lam * t, t) + sp.diff(value, x) * action + beta / 2 * action**2
    assert differs(expect(wrong, action, best, 2 * lam / beta))


@pytest.mark.parametrize("d", [1, 2])
def test_equation_6_the_actor_estimates_the_slope_of_the_hamiltonian(d):
    """Any polynomial critic of degree four (three for d = 2), exactly, whatever V_k and lambda."""
    es, ms, xs = (sp.symbols(f"{name}1:3", real=True)[:d] for name in "emx")
    spots = sp.symbols("y1:3", real=True)[:d]
    monomials = sorted(sp.itermonomials(spots, 5 - d), key=str)
    weights = sp.symbols(f"c0:{len(monomials)}", real=True)
    ahead = sum(w * v for w, v in zip(weights, monomials, strict=True))
    drift = sp.symbols("b1:3", real=True)[:d]
    end = {y: p + h * (b + a + z) for y, p, b, a, z in zip(spots, xs, drift, ms, es, strict=True)}
    now = sp.Symbol("Vk", real=True)
    action2 = sum((a + z) ** 2 for a, z in zip(ms, es, strict=True))
    delta = sp.expand(ahead.subs(end, simultaneous=True) - lam * h - now + beta / 2 * action2 * h)
    for i in range(d):
        left = gaussian(es[i] / nu * delta, es)
        right = h * (gaussian(sp.diff(ahead, spots[i]).subs(end, simultaneous=True), es) + beta * ms[i])
        assert zero(left - right)
        if i == 0:
            assert differs(left - right + 2 * h * beta * ms[i])


def test_equations_8_and_9_on_the_toy_the_estimate_vanishes_at_the_discrete_optimum_only():
    """One step of the recursion A_k = r A_{k+1}, c_k = c_{k+1} + (Dt/beta) A_{k+1}^2, any r, A and c of k + 1."""
    fall, ahead, goal, price_ahead = *sp.symbols("r A goal", real=True), sp.Symbol("price", positive=True)
    now, price = fall * ahead, price_ahead + h / beta * ahead**2
    value = (now * x - goal) ** 2 / (2 * price)
    end = fall * x + h * (m + e)
    delta = (ahead * end - goal) ** 2 / (2 * price_ahead) - value + beta / 2 * (m + e) ** 2 * h
    estimate = expect(e / nu * delta, e, 0, nu)
    best = -ahead * (now * x - goal) / (beta * price)
    slope = ahead * (ahead * (fall * x + h * m) - goal) / price_ahead
    assert zero(estimate - h * (slope + beta * m))  # (8)
    assert zero(estimate.subs(m, best))  # (9)
    assert zero(estimate - h * (beta + h * ahead**2 / price_ahead) * (m - best))  # and nowhere else
    assert zero(delta.subs({e: 0, m: best}))  # dynamic programming: at the best mean the cost of a step closes
    # the continuous control is off by one power of Dt: a = 0, T = 1 left, goal 0
    value, best = toy()
    left = expect(e / nu * (value.subs({x: x + h * (m + e), t: t + h}, simultaneous=True)), e, 0, nu) + h * beta * m
    gap = sp.series(sp.simplify(left.subs(m, best) / h), h, 0, 2).removeO()
    assert zero(gap.subs(h, 0)) and zero(gap - sp.expand(gap).coeff(h, 1) * h)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_equation_10_the_noise_of_the_actors_estimate(d):
    """delta = eta + Dt s.e + (e'Qe - nu tr Q)/2: the trace of the covariance of e delta/nu, by moments."""
    zs = sp.symbols("z1:4", real=True)[:d]
    slope = sp.Matrix(sp.symbols("s1:4", real=True)[:d])
    entries = {(i, j): sp.Symbol(f"Q{min(i, j)}{max(i, j)}", real=True) for i in range(d) for j in range(d)}
    if d == 3:  # a full matrix of two dimensions and a number: enough terms, few enough for a second
        entries |= {(i, j): 0 for i, j in entries if i != j and 2 in (i, j)}
    curvature = sp.Matrix(d, d, lambda i, j: entries[i, j])
    z = sp.Matrix(zs)
    # e = sqrt(nu) z, and everything by powers of root = sqrt(nu)
    root = sp.Symbol("root", positive=True)
    delta = eta + h * root * slope.dot(z) + root**2 * ((z.T * curvature * z)[0] - curvature.trace()) / 2
    second = gaussian(sp.expand(z.dot(z) * delta**2 / root**2), zs, 1)
    mean = [gaussian(sp.expand(zi * delta / root), zs, 1) for zi in zs]
    assert all(zero(found - h * s) for found, s in zip(mean, slope, strict=True))
    variance = second - sum(found**2 for found in mean)
    trace, trace2 = curvature.trace(), (curvature * curvature).trace()
    page = h**2 * (d + 1) * slope.dot(slope) + root**2 * (d + 4) * trace2 / 2 + 2 * eta * trace + d * eta**2 / root**2
    assert zero(variance - page)
    assert differs(variance - page + eta * trace)


def test_equation_11_the_best_lambda():
    d, zeta, s2 = sp.symbols("d zeta s2", positive=True)
    # (10) with Q = Dt beta I, eta = Dt zeta, nu = 2 lam/(beta d), over Dt^2 |s|^2
    variance = h**2 * (d + 1) * s2 + nu / 2 * (d + 4) * d * (h * beta) ** 2 + 2 * h * zeta * d * h * beta
    variance += d * (h * zeta) ** 2 / nu
    relative = (variance / (h**2 * s2)).subs(nu, 2 * lam / (beta * d))
    page = d + 1 + beta / s2 * ((d + 4) * lam + 2 * d * zeta + d**2 * zeta**2 / (2 * lam))
    assert zero(relative - page)
    best = d * zeta / sp.sqrt(2 * (d + 4))
    assert zero(sp.diff(page, lam).subs(lam, best)) and sp.diff(page, lam, 2).is_positive
    assert zero(page.subs(lam, best) - (d + 1) - beta / s2 * d * zeta * (2 + sp.sqrt(2 * (d + 4))))
    assert differs(sp.diff(page, lam).subs(lam, d * zeta / sp.sqrt(d + 4)))


class Exact(torch.nn.Module):
    def __init__(self, problem):
        super().__init__()
        self.problem = problem

    def forward(self, t, x, context, probe):
        return self.problem.value(t, x, context)


def test_equation_10_is_the_noise_of_the_codes_score_targets():
    """First step of a toy in three dimensions; the critic is V, the policy is not optimal, so eta is not zero."""
    problem, d, n, lamda = AIDToy(), 3, 40_000, 0.2
    start = torch.tensor([[1.0, -0.5, 0.3]], dtype=F64).expand(n, d)
    goal = torch.tensor([[0.2, 0.8, -0.4]], dtype=F64).expand(n, d)
    variance = problem.policy_variance(torch.tensor(0.0), lamda, d)
    policy = GaussianPolicy(lambda t, x, c, p: 0.3 * torch.ones_like(x), lambda t: variance)
    grid = torch.linspace(0, 1, 6, dtype=F64)
    path = rollout(problem, policy, start, grid, goal, goal, mode="sampled", noise=generator(3))
    value = Shifted(Exact(problem), lamda)
    dt, weight = 0.2, problem.beta
    target = next(iter(score_targets(problem, policy, value, path)))
    estimate = (path.means[0] - target) * weight * dt
    # the parts of the page: slope and curvature of V one step ahead, the residual at e = 0
    mean = path.means[0][:1]
    ahead = ((1 - dt) * start[:1] + dt * mean).requires_grad_()
    level = problem.value(dt, ahead, goal[:1])
    gradient = torch.autograd.grad(level.sum(), ahead)[0]
    decay, reach = problem._decay_and_reach(dt)
    hessian = float(decay**2 / (1 + reach / weight))
    slope = (gradient + weight * mean)[0]
    kappa = dt * (weight + dt * hessian)
    residual = float(level.detach() - problem.value(0.0, start[:1], goal[:1]) + weight / 2 * mean.square().sum() * dt)
    residual = residual - lamda * dt + variance * d * kappa / 2
    assert abs(residual) > 0.01
    s2 = float(slope.square().sum())
    page = dt**2 * (d + 1) * s2 + variance * (d + 4) * d * kappa**2 / 2 + 2 * residual * d * kappa
    page = page + d * residual**2 / variance
    found = float(estimate.var(0).sum())
    print(f"variance: page {page:.5f}, code {found:.5f}")
    assert found == pytest.approx(page, rel=0.03)
    gap = estimate.mean(0) - dt * slope
    assert (gap.abs() < 4 * estimate.std(0) / n**0.5).all()


def test_equation_12_the_codes_regression_is_the_papers_line():
    """One step of SGD without clipping: phi changes by -rate/(B d R) sum_k (d m)' (A - m)/nu delta."""
    problem = AIDToy()
    actor, critic = torch.nn.Linear(3, 2).double(), NeuralValue(2).double()

    class Mean(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = actor

        def forward(self, t, x, context=None, probe=None):
            return self.net(torch.cat([t.to(x).expand(len(x), 1), x], dim=1))

    trainer = ActorCritic(
        problem, Mean(), critic, temperature=0.3, estimator="score", optimizer="sgd", actor_lr=0.01, critic_lr=0.0,
        clip=1e9,
    )  # fmt: skip
    start = torch.randn(7, 2, dtype=F64, generator=generator(1))
    batch = Batch(start, torch.linspace(0, 1, 5, dtype=F64), torch.zeros_like(start), torch.zeros_like(start))
    path = trainer.collect(batch)
    with torch.no_grad():
        delta = temporal_differences(trainer.value.along(path), path)
    variance = problem.policy_variance(torch.tensor(0.0), 0.3, 2)
    total = torch.zeros((), dtype=F64)
    for k, now, _ in path.steps():
        score = (path.actions[k] - path.means[k]) / variance
        total = total + (trainer.actor(now, path.states[k]) * score * delta[k].unsqueeze(1)).sum()
    wanted = torch.autograd.grad(total, list(actor.parameters()))
    before = [w.detach().clone() for w in actor.parameters()]
    trainer.iterate(batch)
    for old, new, line in zip(before, actor.parameters(), wanted, strict=True):
        torch.testing.assert_close(new.detach() - old, -0.01 / (7 * 2 * problem.beta) * line)
