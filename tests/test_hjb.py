"""The HJB layer against brute force: minimisation, quadrature, known derivatives, a value known by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from aid_control import ControlProblem
from aid_control.hjb import QuadraticHamiltonian, derivatives, hamiltonian, in_control, quadrature, residual
from aid_control.lq import AIDToy, LQProblem

F64 = torch.float64
T = torch.tensor(0.3, dtype=F64)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def positive(d, seed=0, floor=0.3):
    half = randn(d, d, seed=seed)
    return half @ half.mT / d + floor * torch.eye(d, dtype=F64)


def box(m, half_width, points):
    """A trapezoid grid in m dimensions: nodes (A, m) and weights (A,)."""
    line = torch.linspace(-half_width, half_width, points, dtype=F64)
    weights = torch.full((points,), float(line[1] - line[0]), dtype=F64)
    weights[[0, -1]] /= 2
    nodes = torch.cartesian_prod(*[line] * m).reshape(-1, m)
    return nodes, torch.cartesian_prod(*[weights] * m).reshape(-1, m).prod(1)


class Nonlinear(ControlProblem):
    """Two states, one control; drift, gain, noise and cost all depend on the state, the noise on the control too."""

    noise = "columns"

    def drift(self, t, x, context, probe):
        return torch.stack([x[:, 1].sin(), t * x[:, 0] ** 2], dim=1)

    def push(self, t, x, u):
        return torch.cat([(1 + x[:, :1] ** 2) * u, 0.5 * u], dim=1)

    def diffusion(self, t, x, u):
        return torch.stack([torch.cat([0.3 * u, 1 + x[:, :1].cos()], 1), x * (1 + 0.2 * u)], dim=2)

    def running_cost(self, t, x, context):
        return x.pow(4).sum(1)

    def control_cost(self, t, x, u):
        return (0.5 + x[:, 0] ** 2) * u[:, 0] ** 2 + x[:, 1] * u[:, 0]


class Diagonal(ControlProblem):
    """Noise that depends on state and control coordinate by coordinate."""

    noise = "diagonal"

    def drift(self, t, x, context, probe):
        return -x.sin()

    def diffusion(self, t, x, u):
        return 0.5 + 0.2 * x + 0.4 * u

    def running_cost(self, t, x, context):
        return x.square().sum(1)


class Columns(Diagonal):
    """The same noise written as a matrix."""

    noise = "columns"

    def diffusion(self, t, x, u):
        return torch.diag_embed(super().diffusion(t, x, u))


# --- The quadratic in u ----------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(1, 3), m=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_the_minimum_by_brute_force(rows, m, seed):
    hessian = torch.stack([positive(m, seed + i, 0.1) for i in range(rows)])
    h = QuadraticHamiltonian(randn(rows, seed=seed), randn(rows, m, seed=seed + 1), hessian)
    for i in range(rows):
        g, s = h.linear[i].numpy(), hessian[i].numpy()
        found = minimize(
            lambda u, g=g, s=s: g @ u + u @ s @ u / 2, np.zeros(m), jac=lambda u, g=g, s=s: g + s @ u, tol=1e-12
        )
        assert h.minimum()[i].item() == pytest.approx(float(h.constant[i]) + found.fun, abs=1e-8)
        assert h.minimiser()[i].numpy() == pytest.approx(found.x, abs=1e-5)
        # and nothing nearby is lower
        u = h.minimiser()[i] + 0.1 * randn(200, m, seed=seed + 2)
        assert (h.constant[i] + u @ h.linear[i] + ((u @ hessian[i]) * u).sum(1) / 2 >= h.minimum()[i]).all()


@settings(max_examples=12, deadline=None, derandomize=True)
@given(m=st.integers(1, 2), seed=st.integers(0, 10**6), tau=st.sampled_from([0.05, 0.7, 10.0]))
def test_the_soft_minimum_by_integration(m, seed, tau):
    """-tau log int exp(-H/tau) du, the Gibbs mean and its covariance on a grid about the minimiser."""
    s = positive(m, seed, 0.5)
    h = QuadraticHamiltonian(randn(1, seed=seed), randn(1, m, seed=seed + 1), s[None])
    nodes, weights = box(m, 9 * math.sqrt(tau / float(torch.linalg.eigvalsh(s)[0])), 241)
    nodes = nodes + h.minimiser()
    energy = h.constant + nodes @ h.linear[0] + ((nodes @ s) * nodes).sum(1) / 2
    logits = weights.log() - energy / tau
    assert h.soft_minimum(tau).item() == pytest.approx(-tau * torch.logsumexp(logits, 0).item(), rel=1e-9, abs=1e-9)
    density = torch.softmax(logits, 0)
    mean, covariance = h.gibbs(tau)
    assert torch.allclose(density @ nodes, mean[0], atol=1e-9)
    spread = nodes - mean
    assert torch.allclose(spread.mT @ (density[:, None] * spread), covariance[0], rtol=1e-8, atol=1e-9)


def test_the_soft_minimum_by_hand():
    """H = 3 + 2u + u^2/2: minimum 1 at -2; soft minimum 1 - (tau/2) log(2 pi tau)."""
    h = QuadraticHamiltonian(
        torch.tensor([3.0], dtype=F64), torch.tensor([[2.0]], dtype=F64), torch.ones(1, 1, 1, dtype=F64)
    )
    assert h.minimiser().item() == -2.0 and h.minimum().item() == 1.0
    assert h.soft_minimum(0.0).item() == 1.0
    for tau in (1e-6, 0.5, 3.0):
        assert h.soft_minimum(tau).item() == pytest.approx(1 - tau / 2 * math.log(2 * math.pi * tau), rel=1e-13)
    mean, covariance = h.gibbs(0.5)
    assert (mean.item(), covariance.item()) == (-2.0, 0.5)


def test_the_soft_minimum_is_attained_by_the_gibbs_policy_alone():
    """E_pi H + tau E log pi of other Gaussians is larger, by tau times the Kullback-Leibler divergence."""
    s, tau = positive(3), 0.6
    h = QuadraticHamiltonian(randn(1), randn(1, 3, seed=1), s[None])
    best, spread = (a[0] for a in h.gibbs(tau))

    def objective(mean, covariance):
        energy = h.constant[0] + h.linear[0] @ mean + mean @ s @ mean / 2 + (s @ covariance).trace() / 2
        return energy - tau * 0.5 * torch.logdet(2 * math.pi * math.e * covariance)

    assert objective(best, spread).item() == pytest.approx(h.soft_minimum(tau).item(), rel=1e-12)
    for seed in range(5):
        mean, covariance = (
            best + 0.3 * randn(3, seed=seed),
            spread + 0.2 * positive(3, seed),
        )
        mine, his = (torch.distributions.MultivariateNormal(*a) for a in ((mean, covariance), (best, spread)))
        divergence = torch.distributions.kl_divergence(mine, his)
        loss = objective(mean, covariance) - h.soft_minimum(tau)[0]
        assert loss.item() == pytest.approx(tau * divergence.item(), rel=1e-9) and loss > 0


@pytest.mark.parametrize("worst", [0.0, -1e-3, -5.0])
def test_a_hamiltonian_that_is_not_convex_is_refused(worst):
    hessian = torch.eye(2, dtype=F64).repeat(3, 1, 1)
    hessian[1, 1, 1] = worst
    h = QuadraticHamiltonian(torch.zeros(3, dtype=F64), torch.zeros(3, 2, dtype=F64), hessian)
    for call in (h.factor, h.minimiser, h.minimum, lambda: h.gibbs(1.0), lambda: h.soft_minimum(1.0)):
        with pytest.raises(ValueError, match=r"not convex .* shape \(3, 2, 2\) .* in row 1; expected S > 0"):
            call()


def test_a_cost_that_is_linear_in_the_control_is_refused():
    """Without curvature the minimum is -infinity, whether the cost has a second derivative or not."""

    class Linear(ControlProblem):
        def control_cost(self, t, x, u):
            return u.sum(1)

    class Free(ControlProblem):
        def control_weight(self, t):
            return 0.0

    for problem in (Free(), Linear()):
        with pytest.raises(ValueError, match="not convex in the control"):
            residual(problem, lambda t, x: x.square().sum(1), T, randn(3, 2))


# --- Coefficients by automatic differentiation -----------------------------------------------------------------------


@pytest.mark.parametrize("m_of", ["nonlinear", "diagonal", "lq"])
def test_the_coefficients_give_the_hamiltonian_back(m_of):
    """h0 + g.u + u'Su/2 at random actions is H evaluated there."""
    lq = LQProblem(
        randn(2, 2), randn(2, 3, seed=1), Q=positive(2), R=positive(3), C=randn(2, 2, 2, seed=2),
        D=randn(2, 2, 3, seed=3), N=randn(2, 3, seed=4), s=randn(2, 2, seed=5), b=randn(2, seed=6), r=randn(3, seed=7),
    )  # fmt: skip
    problem, m = {"nonlinear": (Nonlinear(), 1), "diagonal": (Diagonal(), 2), "lq": (lq, 3)}[m_of]
    x, p, y = randn(5, 2), randn(5, 2, seed=1), torch.stack([positive(2, i) for i in range(5)])
    h = in_control(problem, T, x, p, y, m)
    assert h.constant.shape == (5,) and h.linear.shape == (5, m) and h.hessian.shape == (5, m, m)
    for seed in range(3):
        u = 2 * randn(5, m, seed=seed)
        wanted = h.constant + (h.linear * u).sum(1) + torch.einsum("bi,bij,bj->b", u, h.hessian, u) / 2
        assert torch.allclose(hamiltonian(problem, T, x, u, p, y), wanted, rtol=1e-11, atol=1e-11)
    assert not h.constant.requires_grad and not h.hessian.requires_grad


def test_the_hamiltonian_by_hand():
    """One row, every term a different number."""
    problem = LQProblem(
        2.0,
        3.0,
        Q=5.0,
        R=7.0,
        C=[[[0.5]], [[-1.0]]],
        D=[[[0.25]], [[2.0]]],
        s=[[1.0], [0.0]],
        N=0.3,
        b=0.1,
        q=0.2,
        r=0.4,
    )
    x, u, p, y = (torch.tensor([v], dtype=F64).reshape(1, -1) for v in (1.5, -0.8, 0.7, 1.1))
    drift = 2 * 1.5 - 3 * 0.8 + 0.1
    noise = (0.5 * 1.5 - 0.25 * 0.8 + 1) ** 2 + (-1.5 - 1.6) ** 2
    cost = 2.5 * 1.5**2 - 1.5 * 0.3 * 0.8 + 3.5 * 0.64 + 0.2 * 1.5 - 0.4 * 0.8
    assert hamiltonian(problem, T, x, u, p, y[:, :, None]).item() == pytest.approx(0.7 * drift + 0.55 * noise + cost)


def test_diagonal_noise_and_its_columns_agree():
    x, u, p, y = randn(6, 3), randn(6, 3, seed=1), randn(6, 3, seed=2), torch.stack([positive(3, i) for i in range(6)])
    a, b = (hamiltonian(k(), T, x, u, p, y) for k in (Diagonal, Columns))
    assert torch.allclose(a, b, rtol=1e-13)
    one, two = (in_control(k(), T, x, p, y) for k in (Diagonal, Columns))
    for name in ("constant", "linear", "hessian"):
        assert torch.allclose(getattr(one, name), getattr(two, name), rtol=1e-12, atol=1e-13)

    def value(t, x):
        return (1 + t) * x.square().sum(1) + x.prod(1)

    assert torch.allclose(*(residual(k(), value, T, x, 0.4) for k in (Diagonal, Columns)), rtol=1e-12)


def test_a_constant_diffusion_of_less_than_full_shape():
    """A diagonal given as one number a coordinate, broadcast over the rows."""

    class Constant(Diagonal):
        def diffusion(self, t, x, u):
            return torch.tensor([0.5, 2.0], dtype=F64)

    x, p, y = randn(4, 2), randn(4, 2, seed=1), torch.stack([positive(2, i) for i in range(4)])
    none = hamiltonian(AIDToy(), T, x, torch.zeros_like(x), p, None) + x.mul(p).sum(1) - (x.sin() * p).sum(1)
    wanted = none + x.square().sum(1) + 0.5 * (0.25 * y[:, 0, 0] + 4 * y[:, 1, 1])
    assert torch.allclose(hamiltonian(Constant(), T, x, torch.zeros_like(x), p, y), wanted)


def test_context_and_probe_reach_the_problem():
    class Asked(ControlProblem):
        def probe(self, t, x, context):
            return context * x

        def drift(self, t, x, context, probe):
            return probe + context

    x = randn(4, 2)

    def value(t, x):
        return (1 - t) * x.sum(1)

    # V_t = -sum x, p = 1 - t, u* = -p
    left = 1 - float(T)
    wanted = -x.sum(1) + left * (3 * x + 3).sum(1) - left**2
    assert torch.allclose(residual(Asked(), value, T, x, context=3.0), wanted)


@pytest.mark.parametrize("tau", [0.2, 2.0])
def test_quadrature_knows_nothing_of_the_shape_and_agrees(tau):
    nodes, weights = box(1, 12.0, 801)
    for problem in (Nonlinear(), LQProblem(randn(2, 2), randn(2, 1), R=1.0, D=0.5 * randn(1, 2, 1, seed=3))):
        x, p = 0.5 * randn(4, 2), randn(4, 2, seed=1)
        y = torch.stack([positive(2, i) for i in range(4)])
        soft, mean = quadrature(problem, T, x, p, y, tau, nodes, weights)
        h = in_control(problem, T, x, p, y, 1)
        assert torch.allclose(soft, h.soft_minimum(tau), rtol=1e-8, atol=1e-8)
        assert torch.allclose(mean, h.gibbs(tau)[0], rtol=1e-7, atol=1e-7)


def test_quadrature_in_two_dimensions_without_noise():
    toy, x, p = AIDToy(a=0.3, beta=0.8), randn(3, 2), randn(3, 2, seed=1)
    nodes, weights = box(2, 8.0, 121)
    soft, mean = quadrature(toy, T, x, p, None, 0.5, nodes, weights)
    assert torch.allclose(soft, in_control(toy, T, x, p).soft_minimum(0.5), rtol=1e-8)
    assert torch.allclose(mean, -p / 0.8, rtol=1e-8)


# --- Derivatives of a value ------------------------------------------------------------------------------------------


def test_known_derivatives():
    """V = e^t sin(x1) x2^2 + t^3 x1."""

    def value(t, x):
        return t.exp() * x[:, 0].sin() * x[:, 1] ** 2 + t**3 * x[:, 0]

    x, t = randn(5, 2), float(T)
    v, v_t, p, y = derivatives(value, T, x)
    a, b = x[:, 0], x[:, 1]
    e = math.exp(t)
    assert torch.allclose(v, value(T, x)) and torch.allclose(v_t, e * a.sin() * b**2 + 3 * t**2 * a)
    assert torch.allclose(p, torch.stack([e * a.cos() * b**2 + t**3, 2 * e * a.sin() * b], 1))
    hess = torch.stack([-e * a.sin() * b**2, 2 * e * a.cos() * b, 2 * e * a.cos() * b, 2 * e * a.sin()], 1)
    assert torch.allclose(y, hess.reshape(5, 2, 2))
    assert not any(z.requires_grad for z in (v, v_t, p, y)) and not x.requires_grad


@pytest.mark.parametrize(
    ("value", "v_t", "hess"),
    [
        (lambda t, x: x.pow(3).sum(1), lambda x: 0 * x[:, 0], lambda x: torch.diag_embed(6 * x)),
        (lambda t, x: x.sum(1), lambda x: 0 * x[:, 0], lambda x: torch.diag_embed(0 * x)),
        (lambda t, x: t * x.sum(1), lambda x: x.sum(1), lambda x: torch.diag_embed(0 * x)),
        (
            lambda t, x: t + x[:, 0] ** 2,
            lambda x: 1 + 0 * x[:, 0],
            lambda x: 2 * torch.diag_embed(0 * x + torch.eye(2)[0]),
        ),
        (lambda t, x: (t**2).expand(len(x)), lambda x: 0.6 + 0 * x[:, 0], lambda x: torch.diag_embed(0 * x)),
    ],
    ids=["no time", "linear, no time", "linear", "one coordinate", "time alone"],
)
def test_a_value_that_does_not_depend_on_everything(value, v_t, hess):
    """Where a derivative is missing from the graph it is zero."""
    x = randn(4, 2)
    found = derivatives(value, T, x)
    assert torch.allclose(found[0], value(T, x))
    assert torch.allclose(found[1], v_t(x)) and torch.allclose(found[3], hess(x))


def test_the_derivatives_ignore_the_callers_graph_and_dtype():
    """Under no_grad, with inputs that ask for gradients, with a Python number as time, in float32."""
    x = randn(3, 2).requires_grad_()
    with torch.no_grad():
        _, v_t, p, _ = derivatives(lambda t, x: t**2 * x.square().sum(1), 0.5, x)
    assert torch.allclose(v_t, x.detach().square().sum(1)) and torch.allclose(p, 0.5 * x.detach()) and x.grad is None
    out = derivatives(lambda t, x: t * x.square().sum(1), torch.tensor(0.5, dtype=F64), x.detach().float())
    assert {a.dtype for a in out} == {torch.float32}


# --- The equation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.0, 0.7, -1.0])
@pytest.mark.parametrize("dim", [1, 3])
def test_the_value_of_the_toy_has_no_residual(a, dim):
    toy, x, goal = AIDToy(a, 0.4, 2.0), randn(6, dim), randn(6, dim, seed=1)
    for at in (0.0, 0.6, 1.9):
        t = torch.tensor(at, dtype=F64)
        assert residual(toy, lambda t, x: toy.value(t, x, goal), t, x).abs().max() < 1e-12
        for tau in (1e-3, 0.8):
            exploratory = residual(toy, lambda t, x, tau=tau: toy.exploratory_value(t, x, goal, tau), t, x, tau)
            assert exploratory.abs().max() < 1e-11
            # one belongs to the other's equation only up to the shift
            gap = residual(toy, lambda t, x: toy.value(t, x, goal), t, x, tau)
            assert torch.allclose(gap, torch.full_like(gap, -0.5 * tau * dim * math.log(2 * math.pi * tau / 0.4)))


def test_additive_noise_adds_a_known_constant():
    """With volatility s the value gains int s^2/2 tr hess V: the residual of the old one is that integrand."""
    toy, noisy = AIDToy(0.5, 0.4, 1.0), AIDToy(0.5, 0.4, 1.0, volatility=0.3)
    x, goal = randn(4, 2), randn(4, 2, seed=1)
    _, _, _, y = derivatives(lambda t, x: toy.value(t, x, goal), T, x)
    gap = residual(noisy, lambda t, x: toy.value(t, x, goal), T, x)
    assert torch.allclose(gap, 0.5 * 0.09 * y.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-10)


def test_the_discount():
    """V = 1: V_t - rho V + min H = -rho."""

    class Discounted(ControlProblem):
        discount = 0.7

    found = residual(Discounted(), lambda t, x: 1 + 0 * x.sum(1), T, randn(3, 2))
    assert torch.allclose(found, torch.full((3,), -0.7, dtype=F64))


def test_a_diffusing_problem_needs_the_hessian():
    with pytest.raises(AssertionError, match="Hessian"):
        hamiltonian(Diagonal(), T, randn(2, 2), randn(2, 2), randn(2, 2))
