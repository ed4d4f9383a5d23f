"""The exact optimum of guidance on Gaussian images, against direct optimisation, and the per-instance method."""

import pytest
import torch

from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.mixture import MixtureBackbone
from aid_control.images.clock import GridClock, KarrasClock, LogClock
from aid_control.images.methods.optimal_control import optimal_control, optimise_controls
from aid_control.images.optimum import GaussianOptimum
from aid_control.images.problem import GuidanceProblem, Observation
from aid_control.images.terminal import TerminalCost
from aid_control.noise import generator
from aid_control.policy import GaussianPolicy
from aid_control.rollout import rollout

F64 = torch.float64


def gaussian(shape=(2, 3, 3), rank=4, seed=0):
    rng = generator(seed)
    d = torch.Size(shape).numel()
    net = GaussianBackbone(shape, rank).double()
    return net.assign(
        torch.randn(d, generator=rng, dtype=F64),
        torch.randn(rank, d, generator=rng, dtype=F64),
        torch.full((d,), 0.1, dtype=F64),
    )


def case(net, n=3, seed=1):
    rng = generator(seed)
    x = torch.randn(n, *net.shape, generator=rng, dtype=F64)
    y = torch.randn(n, *net.shape, generator=rng, dtype=F64)
    mask = (torch.rand(n, 1, *net.shape[1:], generator=rng) < 0.5).to(F64)
    return x, y, mask, net.posterior_mean(y, mask)


def cost_of(problem, controls, x, grid, target):
    """The discrete cost, written out."""
    falls, weights = problem.discrete(grid)
    total = 0
    for k, (fall, weight) in enumerate(zip(falls, weights, strict=True)):
        total = total + 0.5 * weight * controls[k].square().flatten(1).sum(1)
        x = x + fall * (problem.backbone(x, problem.clock.sigma(grid[k])) + controls[k] - x)
    return total + 0.5 * (x - target).square().flatten(1).mean(1)


@pytest.mark.parametrize("cost", ["levels", "drift"])
@pytest.mark.parametrize(
    "clock", [KarrasClock(0.05, 4.0), LogClock(0.05, 4.0), GridClock((3.0, 1.0, 0.2))], ids=["karras", "log", "grid"]
)
def test_optimum_is_stationary_and_has_the_value_it_says(cost, clock):
    net = gaussian()
    problem = GuidanceProblem(net, clock, beta=0.7, cost=cost)
    noise, _, mask, target = case(net)
    x, grid = noise * clock.sigma_max, clock.grid(5)
    optimum = GaussianOptimum(problem, grid, target)
    path = rollout(problem, GaussianPolicy(optimum), x, grid, Observation(x, mask), target)
    # the value function, the rollout's own sum and the cost written out agree
    value = optimum.value(grid[0], x)
    torch.testing.assert_close(path.total_cost(), value, rtol=1e-10, atol=1e-13)
    controls = torch.stack(path.means).requires_grad_()
    total = cost_of(problem, controls, x, grid, target)
    torch.testing.assert_close(total, value, rtol=1e-10, atol=1e-13)
    # a convex problem: where the gradient vanishes is the optimum
    gradient = torch.autograd.grad(total.sum(), controls)[0]
    zero = torch.zeros_like(controls, requires_grad=True)
    start = torch.autograd.grad(cost_of(problem, zero, x, grid, target).sum(), zero)[0]
    assert float(gradient.abs().max()) < 1e-11 * float(start.abs().max())


def test_thin_and_full_spectra_give_the_same_optimum():
    net = gaussian()
    u, l, rest = net.thin_spectrum()
    full_u, full_l = net.spectrum()
    assert u.shape == (18, 4) and float(rest) == pytest.approx(0.1)
    torch.testing.assert_close(l, full_l[:4])
    dense = u @ torch.diag(l) @ u.T + rest * (torch.eye(18, dtype=F64) - u @ u.T)
    torch.testing.assert_close(dense, net.covariance())
    problem = GuidanceProblem(net, KarrasClock(0.1, 5.0), beta=0.5)
    noise, _, _, target = case(net)
    grid = problem.clock.grid(4)
    thin = GaussianOptimum(problem, grid, target)
    net.thin_spectrum = lambda: (full_u, full_l, torch.zeros((), dtype=F64))
    full = GaussianOptimum(problem, grid, target)
    for t in grid[:-1]:
        torch.testing.assert_close(thin(t, noise), full(t, noise))
        torch.testing.assert_close(thin.value(t, noise), full.value(t, noise))


def test_unequal_noise_takes_the_full_spectrum():
    net = GaussianBackbone((1, 2, 2), 1).double()
    net.assign(torch.zeros(4), torch.ones(1, 4), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    u, l, rest = net.thin_spectrum()
    assert u.shape == (4, 4) and float(rest) == 0
    torch.testing.assert_close((u * l) @ u.T, net.covariance())


def test_refuses_what_it_is_not_the_optimum_of():
    net = gaussian()
    _, _, _, target = case(net)
    clock = KarrasClock(0.1, 5.0)
    for options in ({"base": "projected"}, {"terminal": TerminalCost(hole=2.0)}):
        problem = GuidanceProblem(net, clock, **options)
        with pytest.raises(ValueError, match="plain distance"):
            GaussianOptimum(problem, clock.grid(3), target)


def test_lbfgs_through_the_sampler_finds_the_exact_optimum():
    net = gaussian()
    problem = GuidanceProblem(net, KarrasClock(0.05, 4.0), beta=0.3)
    noise, _, mask, target = case(net)
    x, grid = noise * 4.0, problem.clock.grid(5)
    controls, end, cost = optimise_controls(problem, x, grid, Observation(x, mask), target, iterations=300)
    optimum = GaussianOptimum(problem, grid, target)
    torch.testing.assert_close(cost, optimum.value(grid[0], x), rtol=1e-9, atol=1e-12)
    path = rollout(problem, GaussianPolicy(optimum), x, grid, Observation(x, mask), target)
    torch.testing.assert_close(controls, torch.stack(path.means), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(end, path.states[-1], rtol=1e-3, atol=1e-4)


def test_lbfgs_may_start_anywhere_and_never_ends_above_its_start():
    net = gaussian()
    problem = GuidanceProblem(net, KarrasClock(0.05, 4.0), beta=0.3)
    noise, _, mask, target = case(net)
    x, grid = noise * 4.0, problem.clock.grid(5)
    start = torch.randn(5, *x.shape, generator=generator(3), dtype=F64)
    before = cost_of(problem, start, x, grid, target)
    for iterations in (1, 5):
        after = optimise_controls(problem, x, grid, Observation(x, mask), target, iterations=iterations, start=start)[2]
        assert (after.sum() < before.sum()).all()
        before = after


def test_per_instance_method_fills_holes_and_does_not_depend_on_the_batch():
    rng = generator(7)
    net = MixtureBackbone((1, 4, 4), 2, 2)
    net.assign(torch.randn(2, 16, generator=rng) * 0.3, torch.randn(2, 2, 16, generator=rng), torch.full((2, 16), 0.05))
    y = net.sample([1, 2, 3])
    mask = torch.ones(3, 1, 4, 4)
    mask[..., 2:] = 0
    out = optimal_control(net, y, mask, steps=8, seeds=[5, 6, 7], beta=0.02, iterations=15)
    assert torch.equal(out * mask, y * mask)
    alone = optimal_control(net, y[1:2], mask[1:2], steps=8, seeds=[6], beta=0.02, iterations=15)
    torch.testing.assert_close(alone, out[1:2])
    # nearer to the posterior mean than the unguided flow of the same noise
    free = optimal_control(net, y, mask, steps=8, seeds=[5, 6, 7], beta=1e6, iterations=1)
    mean = net.posterior_mean(y, mask)
    hole = 1 - mask
    assert (hole * (out - mean)).square().sum() < 0.7 * (hole * (free - mean)).square().sum()
