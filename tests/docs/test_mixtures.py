"""docs/explanation/mixtures.md: one component's posterior, the mixture's, its denoiser, EM, bits, the bound on J*."""

import math

import pytest
import sympy as sp
import torch
from symbolic import differs, expect, zero

from aid_control.images.backbones.em import _EM, EMSettings, _Statistics
from aid_control.images.backbones.exact import infer, small
from aid_control.images.backbones.mixture import MixtureBackbone, held_out
from aid_control.images.clock import KarrasClock
from aid_control.images.data import to_float, to_uint8
from aid_control.images.methods.optimal_control import optimise_controls
from aid_control.images.problem import GuidanceProblem, Observation
from aid_control.noise import generator

F64 = torch.float64
s = sp.Symbol("s", positive=True)
PSI = sp.symbols("psi1:4", positive=True)
W = sp.Matrix(3, 1, sp.symbols("W1:4", real=True))  # three pixels, one factor
R = sp.Matrix(sp.symbols("r1:4", real=True))  # x - mu


def null(expression) -> bool:
    """`zero` for rational functions: over one denominator first, which is much faster here."""
    return sp.expand(sp.fraction(sp.together(expression))[0]) == 0


def one_factor():
    """g, P, M and m of equations (2), (3); the third pixel is in the hole."""
    g = sp.diag(*[psi / (psi + s**2) for psi in PSI[:2]], 0)
    p = sp.diag(*[1 / (psi + s**2) for psi in PSI[:2]], 0)
    big = 1 + (W.T * p * W)[0]
    return g, p, big, (W.T * p * R)[0] / big


def joint_exponent(z):
    """-2 log of p(z) p(seen pixels | z), but for constants."""
    return z**2 + sum((R[i] - W[i] * z) ** 2 / (PSI[i] + s**2) for i in (0, 1))


def test_equation_3_completes_the_square():
    z = sp.Symbol("z", real=True)
    _, _, big, m = one_factor()
    assert null(joint_exponent(z) - joint_exponent(m) - big * (z - m) ** 2)
    assert differs(joint_exponent(z) - joint_exponent(m) - (big - 1) * (z - m) ** 2)


def test_equation_4_woodbury_and_the_determinant():
    _, p, big, _ = one_factor()
    seen, precision = W[:2, :], p[:2, :2]
    noisy = seen * seen.T + precision.inv()
    inverse = precision - precision * seen * seen.T * precision / big
    assert all(null(e) for e in noisy * inverse - sp.eye(2))
    assert null(noisy.det() - big / precision.det())


def test_equation_5_has_the_same_quadratic_form_without_a_difference():
    _, p, big, m = one_factor()
    rest = R - W * m
    plain = (R.T * p * R)[0] - (R.T * p * W)[0] ** 2 / big
    assert null((rest.T * p * rest)[0] + m**2 - plain)
    assert differs((rest.T * p * rest)[0] - m**2 - plain)


def test_equations_6_and_7_mean_and_covariance_of_the_clean_pixels():
    g, _, big, m = one_factor()
    # Gaussian conditioning of x_0 on the seen pixels, by dense algebra
    clean = W * W.T + sp.diag(*PSI)
    noisy = clean[:2, :2] + s**2 * sp.eye(2)
    gain = clean[:, :2] * noisy.inv()
    rest = R - W * m
    assert all(null(e) for e in W * m + g * rest - gain * R[:2, :])
    kept = sp.eye(3) - g
    found = kept * W * W.T * kept / big + sp.diag(*PSI) * kept
    assert all(null(e) for e in found - (clean - gain * clean[:2, :]))
    assert differs((W * W.T / big + sp.diag(*PSI) * kept - (clean - gain * clean[:2, :]))[0, 0])


def test_equation_8_the_mixtures_denoiser_is_tweedies():
    """Two components in one dimension: D from the responsibilities, against x + s^2 d/dx log p_s."""
    x, mean, spread = sp.symbols("x mean l", real=True)
    law = sp.exp(-((x - mean) ** 2) / (2 * (spread + s**2))) / sp.sqrt(spread + s**2)
    assert zero(sp.diff(law, x) / law + (x - mean) / (spread + s**2))
    a, b = sp.symbols("a b", real=True)
    u, v, p, q = sp.symbols("u v p q", positive=True)  # p, q: pi_k N(x; mu_k, l_k + s^2) at this x
    components = ((a, u, p), (b, v, q))
    slope = sum(-w * (x - m) / (l + s**2) for m, l, w in components)
    denoised = sum(w * (m + l / (l + s**2) * (x - m)) for m, l, w in components)
    assert zero(denoised / (p + q) - x - s**2 * slope / (p + q))
    assert differs(denoised / (p + q) - x + s**2 * slope / (p + q))


def test_equation_9_the_law_of_total_variance():
    a, b, x = sp.symbols("a b x", real=True)
    u, v, w = sp.symbols("u v w", positive=True)
    mean = w * a + (1 - w) * b
    second = w * expect(x**2, x, a, u) + (1 - w) * expect(x**2, x, b, v)
    assert zero(second - mean**2 - w * (u + (a - mean) ** 2) - (1 - w) * (v + (b - mean) ** 2))


# --- expectation-maximisation ----------------------------------------------------------------------


def test_equations_10_and_11_are_the_maximum_of_the_expected_log_likelihood():
    """One pixel, one factor, two images: the regression, its variance, and no other."""
    h, r, z = (sp.symbols(f"{name}1:3", real=True) for name in "hrz")
    inverse, psi = sp.symbols("v psi", positive=True)
    slope, shift = sp.symbols("W dmu", real=True)
    n = sum(h)
    # E (r - W z - dmu)^2 with z ~ N(z_i, v)
    misses = [(r[i] - slope * z[i] - shift) ** 2 + slope**2 * inverse for i in range(2)]
    loss = sum(h[i] * (misses[i] / psi + sp.log(psi)) for i in range(2)) / 2
    square, total = sum(h[i] * z[i] ** 2 for i in range(2)) + n * inverse, sum(h[i] * z[i] for i in range(2))
    gram = sp.Matrix([[square, total], [total, n]])
    cross = sp.Matrix([sum(h[i] * r[i] * z[i] for i in range(2)), sum(h[i] * r[i] for i in range(2))])
    best = gram.inv() * cross
    at = {slope: best[0], shift: best[1]}
    assert zero(sp.diff(loss, slope).subs(at)) and zero(sp.diff(loss, shift).subs(at))
    spread = sum(h[i] * misses[i] for i in range(2)) / n
    short = (sum(h[i] * r[i] ** 2 for i in range(2)) - (best.T * cross)[0]) / n
    assert zero(spread.subs(at) - short)
    assert zero(sp.diff(loss, psi) - n * (1 / psi - spread / psi**2) / 2)


def test_equation_12_standardising_the_factor_changes_no_density():
    eta, mu, w, psi = sp.symbols("eta mu w psi", real=True)
    root = sp.Symbol("L", positive=True)  # S = L^2
    z, u = sp.symbols("z u", real=True)
    mean = expect(expect(mu + w * z + u, u, 0, psi), z, eta, root**2)
    second = expect(expect((mu + w * z + u) ** 2, u, 0, psi), z, eta, root**2)
    assert zero(mean - (mu + w * eta)) and zero(second - mean**2 - ((w * root) ** 2 + psi))
    # and among N(eta, S) the expected log density is largest at the moments
    m, v = sp.Symbol("m", real=True), sp.Symbol("v", positive=True)
    loss = ((m - eta) ** 2 + v) / root**2 + 2 * sp.log(root)
    assert zero(sp.diff(loss, eta).subs(eta, m))
    assert zero(sp.diff(loss, root).subs(eta, m).subs(root, sp.sqrt(v)))


def test_equation_13_dropping_responsibilities_gives_a_lower_bound():
    p = sp.symbols("p1:4", positive=True)
    kept = p[0] + p[1]
    q = [p[0] / kept, p[1] / kept]  # the responsibilities that are kept, scaled to add up to 1
    bound = sum(qi * sp.log(pi / qi) for qi, pi in zip(q, p[:2], strict=True))
    assert zero(sp.simplify(sp.expand_log(bound, force=True) - sp.log(kept)))
    dropped = p[2] / sum(p)
    assert zero(sp.exp(sp.log(kept) - sp.log(sum(p))) - (1 - dropped))


def images(n=300):
    rng = generator(11)
    net = MixtureBackbone((1, 4, 4), 2, 2)
    mean, factor = 0.4 * torch.randn(2, 16, generator=rng), 0.15 * torch.randn(2, 2, 16, generator=rng)
    net.assign(mean, factor, torch.full((2, 16), 0.02))
    return net, to_uint8(net.sample(range(n)))


class Bar:
    def update(self, n):
        pass


def test_equations_10_to_12_are_a_step_of_the_package():
    """Everything dense: responsibilities by MultivariateNormal, moments of z by Bayes' rule, one regression."""
    _, data = images()
    em = _EM(data, EMSettings(components=2, rank=2, mirror=False, floor=1e-4))
    x, before = to_float(data).flatten(1).double(), {k: v.double().clone() for k, v in em.net.state_dict().items()}
    em.step(True, Bar())
    pi = before["log_weights"].softmax(0)
    w, psi, mu = before["factor"].transpose(1, 2), before["noise"], before["mean"]
    covariance = w @ w.transpose(1, 2) + torch.diag_embed(psi)
    laws = [torch.distributions.MultivariateNormal(mu[k], covariance[k]) for k in range(2)]
    h = (pi.log() + torch.stack([law.log_prob(x) for law in laws], 1)).softmax(1)
    torch.testing.assert_close(em.net.log_weights.double().softmax(0), h.mean(0), rtol=1e-4, atol=1e-5)
    for k in range(2):
        r, n = x - mu[k], h[:, k].sum()
        inverse = torch.linalg.inv(torch.eye(2, dtype=F64) + w[k].T @ (w[k] / psi[k][:, None]))
        z = (r / psi[k]) @ w[k] @ inverse
        tilde = torch.cat([z, torch.ones(len(z), 1, dtype=F64)], 1)
        gram = (h[:, k, None] * tilde).T @ tilde
        gram[:2, :2] += n * inverse
        cross = (h[:, k, None] * tilde).T @ r
        both = torch.linalg.solve(gram, cross)
        eta = gram[2, :2] / n
        spread = gram[:2, :2] / n - torch.outer(eta, eta)
        torch.testing.assert_close(em.net.mean[k].double(), mu[k] + both[2] + eta @ both[:2], rtol=1e-3, atol=1e-4)
        found = em.net.factor[k].double()
        torch.testing.assert_close(found.T @ found, both[:2].T @ spread @ both[:2], rtol=1e-3, atol=1e-4)
        rest = h[:, k] @ (r - tilde @ both).square() / n + (both[:2] * (inverse @ both[:2])).sum(0)
        torch.testing.assert_close(em.net.noise[k].double(), rest, rtol=1e-3, atol=1e-5)


def test_equation_11_is_what_the_statistics_solve_for():
    rng = generator(2)
    h, z = torch.rand(40, generator=rng, dtype=F64), torch.randn(40, 2, generator=rng, dtype=F64)
    r = torch.randn(40, 5, generator=rng, dtype=F64)
    sums = _Statistics(5, 2)
    sums.add(h, z, r, 0.3 * torch.eye(2, dtype=F64))
    _, _, psi = sums.solve(0.0)
    both = torch.linalg.solve(sums.gram, sums.cross)
    rest = r - torch.cat([z, torch.ones(40, 1, dtype=F64)], 1) @ both
    torch.testing.assert_close(psi, h @ rest.square() / h.sum() + 0.3 * both[:2].square().sum(0))


# --- the package's posteriors ----------------------------------------------------------------------


def test_equations_3_to_6_are_the_packages_inference():
    rng = generator(4)
    x, mean = (torch.randn(*size, generator=rng, dtype=F64) for size in ((3, 6), (6,)))
    factor, psi = torch.randn(2, 6, generator=rng, dtype=F64), 0.1 + torch.rand(6, generator=rng, dtype=F64)
    level, seen = 0.4, torch.tensor([1.0, 1, 0, 1, 0, 1], dtype=F64)
    gain = psi / (psi + level**2) * seen
    found = infer(x, mean, factor, gain / psi, small(factor, gain / psi))
    o = seen.bool()
    clean = factor.T @ factor + psi.diag()
    noisy = clean[o][:, o] + level**2 * torch.eye(4, dtype=F64)
    law = torch.distributions.MultivariateNormal(mean[o], noisy)
    torch.testing.assert_close(found.log, law.log_prob(x[:, o]))
    exact = mean + (x - mean)[:, o] @ torch.linalg.solve(noisy, clean[o])
    torch.testing.assert_close(mean + found.fitted + gain * found.residual, exact)


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_equations_8_and_9_by_importance_weights(level):
    """Samples of the prior, weighted by the likelihood of what is seen: a computation that shares only the model."""
    net, _ = images(1)
    net = net.double()
    prior = net.sample(range(8_000))
    mask = torch.zeros(1, 1, 4, 4, dtype=F64)
    mask[..., 0, :1] = 1
    y = prior[:1] + 0.1
    width = max(level, 0.05)  # exact observations by a narrow band
    log_weights = -((prior - y) * mask).square().flatten(1).sum(1) / (2 * width**2)
    weights = log_weights.softmax(0)
    flat = prior.flatten(1)
    mean = weights @ flat
    variance = weights @ (flat - mean).square()
    found = net.posterior_mean(y, mask, width).flatten()
    size = 1 / weights.square().sum()
    assert float(size) > 200
    assert ((found - mean).abs() < 4.5 * (variance / size).sqrt() + 1e-3).all()
    torch.testing.assert_close(net.posterior_variance(y, mask, width).flatten(), variance, rtol=0.25, atol=2e-3)


def test_equation_14_bits_of_eight_bit_images():
    net, data = images()
    found = held_out(net, data)
    assert found["bits_per_dim"] == pytest.approx(math.log2(127.5) - found["nats_per_dim"] / math.log(2), abs=1e-6)
    # a density that is flat on [-1 - 1/255, 1 + 1/255], the range of dequantised images, costs 8 bits
    levels = to_float(torch.tensor([0, 255], dtype=torch.uint8))
    width = float(levels[1] - levels[0]) + 1 / 127.5
    assert math.log2(127.5) + math.log2(width) == pytest.approx(8, abs=1e-6)


def test_equation_15_a_local_minimum_of_the_controls_is_no_bound():
    """Images -1 or 1, target 1, start on the side of -1: L-BFGS from zero stays in a worse valley."""
    net = MixtureBackbone((1, 1, 1), 2, 0).double()
    net.assign(torch.tensor([[-1.0], [1.0]]), torch.zeros(2, 0, 1), torch.full((2, 1), 0.01))
    problem = GuidanceProblem(net, KarrasClock(0.05, 10.0), beta=0.3)
    one, costs = torch.ones(1, 1, 1, 1, dtype=F64), {}
    for first in (0.0, 2.0):
        start = torch.full((10, 1, 1, 1, 1), first, dtype=F64)
        grid, x = problem.clock.grid(10), -10 * one
        found = optimise_controls(problem, x, grid, Observation(one, one), one, iterations=300, start=start)
        moved = found[0].clone().requires_grad_()
        state = x
        falls, weights = problem.discrete(grid)
        total = 0
        for k, (fall, weight) in enumerate(zip(falls, weights, strict=True)):
            state = state + fall * (net(state, problem.clock.sigma(grid[k])) + moved[k] - state)
            total = total + 0.5 * weight * moved[k].square().sum()
        total = total + 0.5 * (state - one).square().sum()
        assert float(torch.autograd.grad(total, moved)[0].abs().max()) < 1e-4  # it is stationary
        costs[first] = float(found[2])
    assert costs[0.0] == pytest.approx(0.326, abs=0.001) and costs[2.0] == pytest.approx(0.221, abs=0.001)
