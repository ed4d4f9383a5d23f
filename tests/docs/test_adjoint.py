"""docs/explanation/adjoint.md: the costate as a gradient, what the lean adjoint leaves out, how far one may step."""

import pytest
import sympy as sp
import torch
from symbolic import differs, zero

from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.mixture import MixtureBackbone
from aid_control.images.clock import KarrasClock
from aid_control.images.optimum import GaussianOptimum
from aid_control.images.problem import GuidanceProblem, Observation
from aid_control.images.study import signals
from aid_control.improvement import adjoint_targets, backprop_loss
from aid_control.lq import AIDToy
from aid_control.noise import generator
from aid_control.policy import GaussianPolicy
from aid_control.rollout import rollout
from aid_control.value import Shifted

F64 = torch.float64
x, c = sp.symbols("x c", real=True)
h, weight, gain, decay = sp.symbols("h R B gamma", positive=True)  # gamma = exp(-rho h)


def drift(z):
    return sp.Rational(1, 2) * z - z**2  # not affine, so that every Jacobian is at its own state


def running(z):
    return z**2 / 3


def terminal(z):
    return (z - c) ** 2 / 2


def path_and_cost(controls):
    """States and discounted cost of the Euler scheme (1), (2); a control may depend on the state."""
    states, total, factor = [x], 0, 1
    for control in controls:
        z = states[-1]
        u = control(z) if callable(control) else control
        total += factor * h * (running(z) + weight * u**2 / 2)
        states.append(z + h * (drift(z) + gain * u))
        factor *= decay
    return states, total + factor * terminal(states[-1])


def costates(states, controls):
    """Equation (3): p_K, ..., p_0 with every control held fixed, and (6) where the controls are feedbacks."""
    z = sp.Dummy()
    p = [sp.diff(terminal(z), z).subs(z, states[-1])]
    for state, control in zip(states[-2::-1], controls[::-1], strict=True):
        u = control(z) if callable(control) else control
        rate = decay * p[0] * (drift(z) + gain * u) + running(z) + weight * u**2 / 2
        p.insert(0, decay * p[0] + h * sp.diff(rate, z).subs(z, state))
    return p


def test_equations_3_and_4_the_costate_gives_the_gradient_in_every_control():
    u = sp.symbols("u0 u1", real=True)
    states, cost = path_and_cost(u)
    p = costates(states, u)
    for k in range(2):
        assert zero(sp.diff(cost, u[k]) - decay**k * h * (weight * u[k] + gain * decay * p[k + 1]))
        assert differs(sp.diff(cost, u[k]) - decay**k * h * (weight * u[k] - gain * decay * p[k + 1]))
    assert zero(sp.diff(cost, x) - p[0])


def test_equation_5_is_the_limit_and_the_costate_of_an_optimal_path():
    """p = V_x = Px of the scalar LQ problem x' = ax + Bu, cost (qx^2 + Ru^2)/2, along u* = -Bp/R."""
    a, rho, q = sp.symbols("a rho q", real=True)
    riccati = sp.Symbol("P", positive=True)
    # -P' = -rho P + 2aP + q - B^2 P^2/R
    slope = rho * riccati - 2 * a * riccati - q + gain**2 * riccati**2 / weight
    speed = a * x - gain**2 * riccati * x / weight
    along = slope * x + riccati * speed  # d/dt (P_t X_t)
    assert zero(along - (rho * riccati * x - a * riccati * x - q * x))
    assert differs(along - (-rho * riccati * x - a * riccati * x - q * x))


def feedback():
    """m = theta_0 x + theta_1 x^2: the policy looks at the state."""
    theta = sp.symbols("theta0 theta1", real=True)
    return theta, lambda z: theta[0] * z + theta[1] * z**2


def test_equations_6_and_7_the_full_adjoint_is_the_gradient_of_the_policys_value_and_of_its_cost():
    theta, mean = feedback()
    states, cost = path_and_cost([mean, mean])
    a = costates(states, [mean, mean])
    assert zero(sp.diff(cost, x) - a[0])
    lean = costates(states, [mean(z) for z in states[:-1]])

    def gradient(costate, power):
        """Equation (7): the sum over the steps of (dm/dtheta)' (R m + B' costate), costate = a or p."""
        steps = enumerate(states[:-1])
        return sum(decay**k * h * z**power * (weight * mean(z) + gain * decay * costate[k + 1]) for k, z in steps)

    for power, parameter in ((1, theta[0]), (2, theta[1])):
        assert zero(sp.diff(cost, parameter) - gradient(a, power))
        assert differs(sp.diff(cost, parameter) - gradient(lean, power))


def test_equation_8_the_two_adjoints_differ_by_what_vanishes_where_the_policy_answers_the_lean_one():
    slope, jacobian, rate, mean = sp.symbols("dm J l m", real=True)  # dm/dx, 1 + h db/dx, h df/dx, m
    full, lean = sp.symbols("a p", real=True)  # already discounted, at k + 1
    a = jacobian * full + h * gain * slope * full + rate + h * slope * weight * mean
    p = jacobian * lean + rate
    assert zero(a - p - (jacobian * (full - lean) + h * slope * (weight * mean + gain * full)))
    fixed = {full: lean, mean: -gain * lean / weight}
    assert zero((a - p).subs(fixed)) and differs((a - p).subs({full: lean}))


def test_equation_9_the_exact_gradient_of_a_policy_safely_improves_it():
    """The full step to w = -Ba/R takes R|m - w|^2/2 off the Hamiltonian, a part s of it s(2 - s) times that."""
    u, m, a, s = sp.symbols("u m a s", real=True)

    def hamiltonian(v):
        return a * gain * v + weight * v**2 / 2

    w = -gain * a / weight
    change = hamiltonian(m + s * (w - m)) - hamiltonian(m)
    assert zero(change + s * (2 - s) * weight * (m - w) ** 2 / 2)
    assert differs(change + s * (1 - s) * weight * (m - w) ** 2 / 2)
    assert zero(hamiltonian(u) - hamiltonian(w) - weight * (u - w) ** 2 / 2)


def test_equation_10_moving_all_controls_at_once_multiplies_the_error_by_minus_the_authority():
    steps = 3
    g, r = sp.symbols("g0:3", real=True), sp.symbols("r0:3", positive=True)  # end = F + sum g u, cost sum r u^2/2
    end, u = sp.Symbol("F", real=True), sp.symbols("u0:3", real=True)
    miss = end + sum(g[k] * u[k] for k in range(steps)) - c
    w = [-g[k] / r[k] * miss for k in range(steps)]
    authority = sum(g[k] ** 2 / r[k] for k in range(steps))
    best = [-g[k] / r[k] * (end - c) / (1 + authority) for k in range(steps)]
    cost = sum(r[k] * u[k] ** 2 for k in range(steps)) / 2 + miss**2 / 2
    for k in range(steps):
        assert zero(sp.diff(cost, u[k]) - r[k] * (u[k] - w[k]))
        assert zero(sp.diff(cost, u[k]).subs(dict(zip(u, best, strict=True))))
    # along g/r the map u -> w is multiplication of the error by -authority, across it the error is gone in one step
    size = sp.Symbol("e", real=True)
    along = {u[k]: best[k] + size * g[k] / r[k] for k in range(steps)}
    assert all(zero(w[k].subs(along) - best[k] + authority * size * g[k] / r[k]) for k in range(steps))
    across = {u[0]: best[0] + size * g[1], u[1]: best[1] - size * g[0], u[2]: best[2]}
    assert all(zero(w[k].subs(across) - best[k]) for k in range(steps))


# --- the package's code --------------------------------------------------------------------------------


class Table:
    """Controls given as a table, the policy that does not look at the state."""

    def __init__(self, problem, grid, controls, start, context, goal):
        self.problem, self.grid, self.controls, self.start = problem, grid, controls, start
        self.context, self.goal = context, goal

    def __call__(self, t, x, context=None, probe=None):
        return self.controls[int((self.grid - t).abs().argmin())]

    def cost(self, controls):
        state, total = self.start, 0
        for k, t in enumerate(self.grid[:-1]):
            dt = self.grid[k + 1] - t
            probe = self.problem.probe(t, state, self.context)
            total = total + dt * self.problem.stage_cost(t, state, controls[k], self.context)
            state = state + dt * self.problem.velocity(t, state, controls[k], self.context, probe)
        return (total + self.problem.terminal_cost(state, self.goal)).sum()

    def targets(self):
        with torch.no_grad():
            path = rollout(self.problem, GaussianPolicy(self), self.start, self.grid, self.context, self.goal)
        return torch.stack(adjoint_targets(self.problem, GaussianPolicy(self), Shifted(End(self), 0.0), path)), path


class End(torch.nn.Module):
    """The critic at T: the terminal cost itself."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def forward(self, t, x, context=None, probe=None):
        return self.table.problem.terminal_cost(x, self.table.goal)


def images(net, beta, cost="levels", steps=5, n=2, seed=1):
    problem = GuidanceProblem(net, KarrasClock(0.05, 4.0), beta=beta, cost=cost)
    rng, grid = generator(seed), problem.clock.grid(steps)
    start, goal = (s * torch.randn(n, *net.shape, generator=rng, dtype=F64) for s in (4.0, 0.7))
    return problem, grid, start, Observation(goal, torch.ones(n, 1, *net.shape[1:], dtype=F64)), goal


def mixture():
    rng = generator(3)
    net = MixtureBackbone((1, 2, 2), 2, 1).double()
    mean, factor = torch.randn(2, 4, generator=rng), torch.randn(2, 1, 4, generator=rng)
    return net.assign(mean, factor, torch.full((2, 4), 0.1))


def one_gaussian():
    rng = generator(4)
    net = GaussianBackbone((1, 2, 2), 1).double()
    return net.assign(torch.randn(4, generator=rng), torch.randn(1, 4, generator=rng), torch.full((4,), 0.1))


@pytest.mark.parametrize("cost", ["levels", "drift"])
def test_equation_4_the_packages_targets_are_the_gradient_through_a_non_linear_denoiser(cost):
    problem, grid, start, context, goal = images(mixture(), 0.5, cost)
    controls = torch.randn(len(grid) - 1, *start.shape, generator=generator(5), dtype=F64)
    table = Table(problem, grid, controls, start, context, goal)
    w, _ = table.targets()
    moved = controls.clone().requires_grad_()
    gradient = torch.autograd.grad(table.cost(moved), moved)[0]
    _, weights = problem.discrete(grid)
    found = torch.stack([r * (controls[k] - w[k]) for k, r in enumerate(weights)])
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)


def test_equation_10_the_packages_targets_overshoot_by_the_authority_of_the_gaussian_optimum():
    problem, grid, start, context, goal = images(one_gaussian(), 0.15)
    optimum = GaussianOptimum(problem, grid, goal)
    authority = optimum.cost[0] - 1
    assert float(authority.min()) > 1  # otherwise there is nothing to see
    best = rollout(problem, GaussianPolicy(optimum), start, grid, context, goal)
    best = torch.stack(best.means)
    for part, grows in ((1.0, True), (1.9 / (1 + float(authority.max())), False)):
        controls, sizes = torch.zeros_like(best), []
        for _ in range(12):
            w, _ = Table(problem, grid, controls, start, context, goal).targets()
            controls = controls + part * (w - controls)
            sizes.append(float((controls - best).norm()))
        assert (sizes[-1] > 100 * sizes[0]) if grows else (sizes[-1] < 0.5 * sizes[0])
        if grows:  # in the end the direction of the largest authority is left, and grows by exactly that
            assert sizes[-1] / sizes[-2] == pytest.approx(float(authority.max()), rel=0.02)


def test_equation_10_the_authority_of_the_signals_study():
    study = signals()
    authority = GaussianOptimum(study.problem, study.grid, torch.zeros(1, *study.backbone.shape)).cost[0] - 1
    assert float(authority.min()) == pytest.approx(3.2, abs=0.05)
    assert float(authority.max()) == pytest.approx(7.1, abs=0.05)


class Feedback(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor([0.3, -0.7], dtype=F64))

    def forward(self, t, x, context, probe):
        return self.gain[0] * x.square() + self.gain[1] * context * (1 + t)


def test_equation_8_at_the_exact_discrete_optimum_the_packages_targets_are_the_policy():
    problem, grid, start, context, goal = images(one_gaussian(), 0.15)
    policy = GaussianPolicy(GaussianOptimum(problem, grid, goal))
    path = rollout(problem, policy, start, grid, context, goal)
    held = Table(problem, grid, None, start, context, goal)
    w = torch.stack(adjoint_targets(problem, policy, Shifted(End(held), 0.0), path))
    torch.testing.assert_close(w, torch.stack(path.means), rtol=1e-8, atol=1e-10)


def test_equation_11_answering_as_a_function_of_the_state_converges_like_a_series():
    """kappa -> exp(-int kappa) is what full replacement does to x' = u; its fixed point is the optimum 1/(1 + s)."""
    s, z = sp.symbols("s z", positive=True)
    best = 1 / (1 + s)
    assert zero(sp.exp(-sp.integrate(best, (s, 0, z))) - best.subs(s, z))
    grid = torch.linspace(0, 7, 2001, dtype=F64)  # Lambda = 7
    kappa, exact, largest = torch.ones_like(grid), 1 / (1 + grid), []
    for n in range(1, 26):
        area = torch.cat([grid.new_zeros(1), torch.cumulative_trapezoid(kappa, grid)])
        kappa = torch.exp(-area)
        bound = torch.exp(n * grid.clamp_min(1e-300).log() - torch.lgamma(torch.tensor(n + 1.0, dtype=F64)))
        assert ((kappa - exact).abs() <= bound + 1e-5).all()
        largest.append(float((kappa - exact).abs().max()))
    assert largest[4] < 0.02 and largest[-1] < 1e-6


def test_equation_7_backprop_is_the_full_adjoint_and_off_the_optimum_the_lean_one_is_another_direction():
    toy, actor = AIDToy(), Feedback()
    start, goal = (torch.randn(5, 2, generator=generator(i), dtype=F64) for i in (6, 7))
    grid = torch.linspace(0, 1, 6, dtype=F64)
    backprop_loss(toy, actor, start, grid, goal, goal)[0].sum().backward()
    path = rollout(toy, GaussianPolicy(actor), start, grid, goal, goal)
    states, a = [s.detach() for s in path.states], path.states[-1].detach() - goal
    total = torch.zeros(2, dtype=F64)
    for k in reversed(range(5)):
        t, dt, z = grid[k], grid[k + 1] - grid[k], states[k].requires_grad_()
        m = actor(t, z, goal, None)
        push = dt * (toy.beta * m.detach() + a)  # B = 1
        into_weights, into_state = torch.autograd.grad((m * push).sum(), (actor.gain, z))
        total += into_weights
        a = (1 - toy.a * dt) * a + into_state
    torch.testing.assert_close(total, actor.gain.grad)
    lean = torch.zeros(2, dtype=F64)
    value = Shifted(End(Table(toy, grid, None, start, goal, goal)), 0.0)
    for (k, t, dt), w in zip(path.steps(), adjoint_targets(toy, GaussianPolicy(actor), value, path), strict=True):
        m = actor(t, states[k].detach(), goal, None)
        lean += torch.autograd.grad((m * dt * toy.beta * (m.detach() - w)).sum(), actor.gain)[0]
    assert float((lean - total).norm() / total.norm()) > 0.05
