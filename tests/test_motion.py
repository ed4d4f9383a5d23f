"""Rollouts of diffusing problems: execution modes, common random numbers, costs, engines, refusals."""

import math

import pytest
import torch

from aid_control import GaussianPolicy, rollout
from aid_control.increments import Increments, time_grid
from aid_control.lq import AffineGaussian, AIDToy, LQProblem, scheme_value, zoo
from aid_control.noise import generator
from aid_control.policy import ZeroMean

F64 = torch.float64
TIME = torch.tensor(0.0, dtype=F64)


def tensor(value):
    return torch.tensor(value, dtype=F64)


def plane(**changes):
    """A problem of two states, two controls and two Brownian motions with every coefficient."""
    draw = lambda *shape: torch.randn(*shape, generator=numbers, dtype=F64)  # noqa: E731
    numbers = torch.Generator().manual_seed(8)
    given = {
        "A": draw(2, 2) - torch.eye(2), "B": draw(2, 2), "C": 0.3 * draw(2, 2, 2), "D": 0.4 * draw(2, 2, 2),
        "s": 0.5 * draw(2, 2), "b": draw(2), "N": 0.2 * draw(2, 2), "q": draw(2), "r": draw(2), "g": draw(2),
        "Q": torch.eye(2), "R": tensor([[2.0, 0.3], [0.3, 1.0]]), "G": tensor([[1.0, 0.5], [0.5, 2.0]]),
        "discount": 0.4,
    } | changes  # fmt: skip
    return LQProblem(**given)


COVARIANCE = tensor([[0.5, 0.2], [0.2, 0.3]])
POLICY = AffineGaussian.constant([[-0.5, 0.2], [0.1, -0.4]], [0.3, -0.2], COVARIANCE)


def sampled_like(problem, x, grid, seed, extra=0):
    return Increments.sample(grid, len(x), (problem.columns + extra,), seed)


# --- execution modes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["mean", "averaged", "sampled"])
def test_second_moment_by_hand(mode):
    """dX = (aX + Bu) dt + (cX + Du) dW under N(kx, v): what one step makes of E X^2, in every mode."""
    a, b, c, d, k, v, h, steps, paths = -0.5, 2.0, 0.4, 0.5, -0.3, 1.0, 0.1, 10, 100_000
    problem = LQProblem(a, b, C=[[[c]]], D=[[[d]]])
    policy, x = AffineGaussian.constant([[k]], None, v), torch.ones(paths, 1, dtype=F64)
    out = rollout(problem, policy, x, time_grid(1.0, steps=steps), mode=mode, entropy=3, noise=generator(4))
    added = {"mean": 0.0, "averaged": v * h * d**2, "sampled": v * h * (d**2 + h * b**2)}[mode]
    moment = 1.0
    for state in out.states[1:]:
        moment = ((1 + (a + b * k) * h) ** 2 + (c + d * k) ** 2 * h) * moment + added
        square = state.square()
        assert square.mean().item() == pytest.approx(moment, abs=5 * square.std().item() / paths**0.5)


def test_averaged_step_by_hand():
    """Own columns first, then D_j F for every j: the increments say which is which."""
    problem, grid = plane(), tensor([0.0, 0.3, 0.4])
    x = torch.linspace(-1, 1, 10, dtype=F64).reshape(5, 2)
    increments = sampled_like(problem, x, grid, 2, extra=4)
    gain, offset, _ = POLICY.law(TIME)
    factor, c = torch.linalg.cholesky(COVARIANCE), {k: problem.at(k, 0.0) for k in "ABCDsb"}
    out = rollout(problem, POLICY, x, grid, mode="averaged", increments=increments)
    for k, h in enumerate((0.3, 0.1)):
        rows = []
        for row, dw in zip(x, increments.dw[k], strict=True):
            u = gain @ row + offset
            new = row + h * (c["A"] @ row + c["B"] @ u + c["b"])
            for j in range(2):
                new = new + (c["C"][j] @ row + c["D"][j] @ u + c["s"][j]) * dw[j]
                new = new + c["D"][j] @ factor @ dw[2 + 2 * j : 4 + 2 * j]
            rows.append(new)
        x = torch.stack(rows)
        assert torch.allclose(out.states[k + 1], x, rtol=0, atol=1e-14)


@pytest.mark.parametrize("mode", ["mean", "averaged"])
def test_milstein_differentiates_the_closed_loop(mode):
    """The feedback is part of what moves within a step: c + d k, not c."""
    a, c, d, k, h = 0.3, 0.5, 0.7, -1.2, 0.2
    problem = LQProblem(a, 1.0, C=[[[c]]], D=[[[d]]])
    x = torch.linspace(-1, 1, 5, dtype=F64).unsqueeze(1)
    increments = sampled_like(problem, x, tensor([0.0, h]), 0, extra=1)
    policy = AffineGaussian.constant([[k]], None, 0.25)
    out = rollout(problem, policy, x, increments.grid, mode=mode, solver="milstein", increments=increments).states[-1]
    dw, extra = increments.dw[0].split(1, dim=1)
    want = x + h * (a + k) * x + (c + d * k) * x * dw + (c + d * k) ** 2 * x * (dw**2 - h) / 2
    if mode == "averaged":
        # sigma = ((c + dk) x, d F): along the second column the first one changes too
        want = want + d * 0.5 * extra + (c + d * k) * d * 0.5 * dw * extra / 2
    assert torch.allclose(out, want, rtol=0, atol=1e-14)


def test_milstein_holds_a_sampled_action():
    a, c, d, h = 0.3, 0.5, 0.7, 0.2
    problem = LQProblem(a, 1.0, C=[[[c]]], D=[[[d]]])
    x = torch.linspace(-1, 1, 5, dtype=F64).unsqueeze(1)
    increments = sampled_like(problem, x, tensor([0.0, h]), 0)
    policy = AffineGaussian.constant([[-1.2]], None, 0.25)
    out = rollout(
        problem, policy, x, increments.grid, mode="sampled", solver="milstein", increments=increments,
        noise=generator(1),
    )  # fmt: skip
    u, dw = out.actions[0], increments.dw[0]
    shift = c * x + d * u
    want = x + h * (a * x + u) + shift * dw + c * shift * (dw**2 - h) / 2
    assert torch.allclose(out.states[-1], want, rtol=0, atol=1e-14) and not torch.allclose(u, -1.2 * x)


@pytest.mark.parametrize("mode", ["mean", "averaged", "sampled"])
def test_torchsde_runs_every_mode_on_the_same_paths(mode):
    problem, grid = plane(), time_grid(1.0, dt=0.05)
    x = torch.linspace(-1, 1, 10, dtype=F64).reshape(5, 2)
    increments = sampled_like(problem, x, grid, 2, extra=4 if mode == "averaged" else 0)
    run = lambda engine: rollout(  # noqa: E731
        problem, POLICY, x, grid, target=0, mode=mode, engine=engine, increments=increments, noise=generator(7)
    )
    own, theirs = run("own"), run("torchsde")
    assert torch.allclose(own.states[-1], theirs.states[-1], rtol=0, atol=1e-12)
    assert torch.allclose(own.total_cost(), theirs.total_cost(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.0, 0.3])
@pytest.mark.parametrize("mode", ["mean", "averaged", "sampled"])
def test_expected_cost_is_the_exact_one_of_the_scheme(mode, temperature):
    """Discount, cross and linear costs, spread and entropy, against the recursion that knows no sampling."""
    problem, grid, paths = plane(), time_grid(1.0, steps=8), 40_000
    x0 = tensor([[1.0, -0.5]])
    cost = rollout(
        problem, POLICY, x0.repeat(paths, 1), grid, target=0, mode=mode, temperature=temperature, entropy=5,
        noise=generator(6), keep="last",
    ).total_cost()  # fmt: skip
    want = scheme_value(problem, POLICY, grid, mode, temperature)(0.0, x0).item()
    assert cost.mean().item() == pytest.approx(want, abs=4.5 * cost.std().item() / paths**0.5)


def test_additive_noise_needs_no_columns_for_the_spread():
    problem, grid = plane(C=None, D=None), time_grid(1.0, steps=5)
    x = torch.ones(3, 2, dtype=F64)
    increments = sampled_like(problem, x, grid, 2)
    mean, averaged = (rollout(problem, POLICY, x, grid, mode=m, increments=increments) for m in ("mean", "averaged"))
    assert torch.equal(mean.states[-1], averaged.states[-1])
    extra = averaged.total_cost() - mean.total_cost()
    spread = 0.5 * (problem.at("R", 0.0) @ COVARIANCE).trace()
    assert torch.allclose(extra, 0.2 * averaged.discounts()[:-1].sum() * spread, atol=1e-13)


@pytest.mark.parametrize("mode", ["mean", "averaged"])
def test_a_batch_of_problems_is_the_problems_one_by_one(mode):
    """Three drifts, noises, gains and covariances in one rollout of groups of rows."""
    scale, single = tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1), plane()
    stacked = {"A": scale * single.at("A", 0), "D": scale.unsqueeze(-1) * single.at("D", 0), "R": scale * torch.eye(2)}
    gain, offset, sigma = POLICY.law(TIME)
    batch, grid = plane(**stacked), time_grid(1.0, steps=6)
    policy = AffineGaussian.constant(scale * gain, offset.expand(3, 2), scale * sigma)
    x = torch.linspace(-1, 1, 24, dtype=F64).reshape(12, 2)
    increments = sampled_like(batch, x, grid, 3, extra=4)
    whole = rollout(batch, policy, x, grid, target=0, mode=mode, increments=increments)
    for i in range(3):
        rows = slice(4 * i, 4 * i + 4)
        alone = rollout(
            plane(**{k: v[i] for k, v in stacked.items()}),
            AffineGaussian.constant(scale[i] * gain, offset, scale[i] * sigma),
            x[rows], grid, target=0, mode=mode, increments=Increments(grid, increments.dw[:, rows]),
        )  # fmt: skip
        assert torch.allclose(whole.states[-1][rows], alone.states[-1], rtol=0, atol=1e-13)
        assert torch.allclose(whole.total_cost()[rows], alone.total_cost(), rtol=0, atol=1e-12)


# --- common random numbers --------------------------------------------------------------------------------------------


def regret_cost(gain, increments, grid, variance=1.0):
    x = torch.ones(increments.dw.shape[1], 1, dtype=F64)
    policy = AffineGaussian.constant([[gain]], None, variance)
    return rollout(
        zoo.regret(), policy, x, grid, target=0, mode="averaged", increments=increments, keep="last"
    ).total_cost()


def test_common_random_numbers_on_the_regret_problem():
    """Var of J(phi) - J(phi + 0.05): two orders of magnitude smaller on shared paths, and the same mean."""
    grid = time_grid(1.0, steps=100)
    one, two = (Increments.sample(grid, 20000, (2,), seed) for seed in (1, 2))
    here = regret_cost(-1.5, one, grid)
    shared, fresh = here - regret_cost(-1.45, one, grid), here - regret_cost(-1.45, two, grid)
    assert fresh.var() > 100 * shared.var()
    assert shared.mean().item() == pytest.approx(fresh.mean().item(), abs=5 * fresh.std().item() / 20000**0.5)


def test_antithetic_paths_reduce_the_variance():
    """Beyond the halving of two paths for a convex cost; to nothing for a linear cost of a linear system."""
    grid = time_grid(1.0, steps=50)
    half = Increments.sample(grid, 2000, (2,), 1)
    cost = regret_cost(-1.5, half.antithetic(), grid, variance=0.2)
    pairs = (cost[:2000] + cost[2000:]) / 2
    assert cost.var() / 2 > 1.2 * pairs.var()

    linear = LQProblem([[0.0, 1.0], [-1.0, 0.0]], [[0.0], [1.0]], s=torch.eye(2), q=[1.0, -1.0], g=[2.0, 0.5])
    x = torch.ones(4000, 2, dtype=F64)
    cost = rollout(
        linear, AffineGaussian.constant([[0.5, -1.0]]), x, grid, target=0, increments=half.antithetic()
    ).total_cost()
    assert cost.std() > 0.5 and ((cost[:2000] + cost[2000:]) / 2).std() < 1e-12


# --- increments -------------------------------------------------------------------------------------------------------


def run_on(increments, problem=None, x=None, **options):
    x = torch.ones(4, 2, dtype=F64) if x is None else x
    grid = time_grid(1.0, steps=5)
    return rollout(problem or plane(), POLICY, x, grid, increments=increments, **options)


@pytest.mark.parametrize("engine", ["own", "torchsde"])
@pytest.mark.parametrize("mode", ["mean", "averaged"])
def test_further_columns_are_left_alone(mode, engine):
    many = Increments.sample(time_grid(1.0, steps=5), 4, (9,), 1)
    few = Increments(many.grid, many.dw[..., : 6 if mode == "averaged" else 2])
    one, two = (run_on(i, mode=mode, engine=engine).states[-1] for i in (many, few))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("steps", "horizon", "paths", "columns", "mode"),
    [(4, 1.0, 4, 2, "mean"), (5, 1.1, 4, 2, "mean"), (5, 1.0, 3, 2, "mean"), (5, 1.0, 4, 1, "mean"),
     (5, 1.0, 4, 5, "averaged"), (5, 1.0, 4, 2, "averaged")],
)  # fmt: skip
@pytest.mark.parametrize("engine", ["own", "torchsde"])
def test_increments_of_another_grid_or_shape_are_refused(steps, horizon, paths, columns, mode, engine):
    increments = Increments.sample(time_grid(horizon, steps=steps), paths, (columns,), 1)
    wanted = (4, 6 if mode == "averaged" else 2)
    with pytest.raises(ValueError) as error:
        run_on(increments, mode=mode, engine=engine)
    message = (
        f"increments have {steps + 1} times and shape {(paths, columns)}; expected the grid's 6 times and {wanted}"
    )
    assert message in str(error.value)


@pytest.mark.parametrize("engine", ["own", "torchsde"])
@pytest.mark.parametrize(("coordinates", "columns"), [(1, 2), (2, 3), (2, 1)])
def test_diagonal_noise_takes_increments_like_the_state_only(coordinates, columns, engine):
    """One coordinate and two columns would broadcast to a state of two coordinates."""
    increments = Increments.sample(time_grid(1.0, steps=5), 4, (columns,), 1)
    with pytest.raises(ValueError, match=r"increments have 6 times and shape"):
        rollout(
            AIDToy(volatility=1.0), GaussianPolicy(ZeroMean()), torch.ones(4, coordinates, dtype=F64),
            increments.grid, increments=increments, engine=engine,
        )  # fmt: skip


def test_a_seed_is_the_increments_it_draws():
    problem, x = plane(), torch.ones(4, 2, dtype=F64)
    grid = time_grid(1.0, steps=5)
    for mode, columns in (("mean", 2), ("averaged", 6)):
        drawn = rollout(problem, POLICY, x, grid, mode=mode, entropy=9).states[-1]
        given = Increments.sample(grid, 4, (columns,), 9)
        assert torch.equal(drawn, rollout(problem, POLICY, x, grid, mode=mode, increments=given).states[-1])


# --- costs ------------------------------------------------------------------------------------------------------------


def test_the_cost_of_entropy():
    """Sampled: tau log pi(A), -tau H on average; otherwise -tau H itself."""
    problem, grid, paths, tau = plane(discount=0.0), time_grid(2.0, steps=4), 20_000, 0.7
    x = torch.ones(paths, 2, dtype=F64)
    entropy = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), COVARIANCE).entropy().item()
    for mode in ("averaged", "sampled"):
        with_tau, without = (
            rollout(problem, POLICY, x, grid, mode=mode, noise=generator(1), temperature=t).total_cost()
            for t in (tau, 0.0)
        )
        extra = with_tau - without
        if mode == "averaged":
            assert torch.allclose(extra, torch.full_like(extra, -tau * entropy * 2), atol=1e-12)
        else:
            # the log-density is minus a chi-squared of two degrees of freedom over 2: variance 1 a step
            assert extra.var().item() == pytest.approx(tau**2 * 4 * 0.25, rel=0.1)
            assert extra.mean().item() == pytest.approx(-tau * entropy * 2, abs=5 * extra.std().item() / paths**0.5)


@pytest.mark.parametrize("mode", ["mean", "averaged", "sampled"])
def test_forgetting_the_path_keeps_the_cost(mode):
    problem, grid, x = plane(), time_grid(1.0, steps=7), torch.ones(5, 2, dtype=F64)
    seen = []
    run = lambda keep, callback=None: rollout(  # noqa: E731
        problem, POLICY, x, grid, target=0, mode=mode, noise=generator(2), temperature=0.1, keep=keep, callback=callback
    )
    kept, gone = run("all"), run("last", lambda k, x: seen.append((k, x)))
    assert torch.equal(kept.total_cost(), gone.total_cost()) and torch.equal(kept.terminal, gone.terminal)
    assert torch.equal(kept.states[-1], gone.states[-1])
    assert (len(kept.states), len(kept.means), len(kept.probes)) == (8, 7, 7)
    assert (len(gone.states), len(gone.means), len(gone.probes), len(gone)) == (1, 0, 0, 7)
    assert [k for k, _ in seen] == list(range(7))
    assert all(torch.equal(x, y) for (_, x), y in zip(seen, kept.states[1:], strict=True))
    assert torch.equal(x, torch.ones(5, 2, dtype=F64)), "the initial states are the caller's"


def test_discount_by_hand():
    """From the grid's first time on, at the start of each step."""
    problem = LQProblem(0.0, 1.0, Q=2.0, R=4.0, G=6.0, b=1.0, discount=0.5)
    policy, grid = AffineGaussian.constant([[0.0]], [0.5]), tensor([1.0, 1.5, 3.0])
    out = rollout(problem, policy, torch.ones(2, 1, dtype=F64), grid, target=0)
    # x = 1, 1.75, 4 and the stage cost x^2 + 0.5
    want = 1.5 * 0.5 + math.exp(-0.25) * (1.75**2 + 0.5) * 1.5 + math.exp(-1.0) * 3 * 16
    assert [x[0].item() for x in out.states] == [1.0, 1.75, 4.0]
    assert out.total_cost().tolist() == pytest.approx([want, want], rel=1e-14)
    free = rollout(problem, policy, torch.ones(2, 1, dtype=F64), grid)
    assert free.terminal is None and free.total_cost()[0].item() == pytest.approx(want - math.exp(-1) * 48, rel=1e-14)


# --- policies ---------------------------------------------------------------------------------------------------------

STACK = torch.stack([COVARIANCE, tensor([[2.0, -0.5], [-0.5, 0.3]]), torch.eye(2, dtype=F64)])


@pytest.mark.parametrize("sigma", [tensor(0.3), COVARIANCE, STACK], ids=["scalar", "matrix", "stack"])
def test_gaussian_policy_against_torch(sigma):
    numbers = torch.Generator().manual_seed(3)
    mean, action = (torch.randn(6, 2, generator=numbers, dtype=F64) for _ in range(2))
    policy = GaussianPolicy(ZeroMean(), lambda t: sigma)
    full = sigma * torch.eye(2, dtype=F64) if sigma.dim() == 0 else sigma
    full = full if full.dim() == 2 else full.repeat_interleave(2, dim=0)
    mean.requires_grad_()
    want = torch.distributions.MultivariateNormal(mean, full)
    log = policy.log_prob(TIME, action, mean)
    assert log.shape == (6,) and torch.allclose(log, want.log_prob(action), atol=1e-13)
    assert torch.allclose(policy.entropy(TIME, mean).expand(6), want.entropy(), atol=1e-13)
    (gradient,) = torch.autograd.grad(log.sum(), mean)
    assert torch.allclose(policy.score(TIME, action, mean), gradient, atol=1e-12)
    factor = policy.std(TIME)
    assert torch.allclose(factor @ factor.mT if sigma.dim() else factor**2, sigma, atol=1e-15)


@pytest.mark.parametrize("sigma", [COVARIANCE, STACK], ids=["matrix", "stack"])
def test_sampled_actions_have_the_policy_s_covariance(sigma):
    """Given the state, in each group of rows, independent from step to step."""
    problem, paths, groups = plane(A=torch.zeros(3, 2, 2)), 60_000, 3
    gain, offset, _ = POLICY.law(TIME)
    policy = AffineGaussian.constant(gain, offset, sigma)
    out = rollout(
        problem, policy, torch.ones(paths, 2, dtype=F64), time_grid(1.0, steps=2), mode="sampled", noise=generator(2)
    )
    gaps = torch.stack([a - m for a, m in zip(out.actions, out.means, strict=True)])
    rows = paths // groups
    for i in range(groups):
        want = sigma if sigma.dim() == 2 else sigma[i]
        first, second = gaps[:, i * rows : (i + 1) * rows]
        scale = torch.outer(want.diagonal(), want.diagonal()).sqrt()
        for gap in (first, second):
            assert (gap.mT.cov() - want).abs().le(5 * scale * (2 / rows) ** 0.5).all()
            assert gap.mean(0).abs().le(5 * (want.diagonal() / rows).sqrt()).all()
        assert (first.mT @ second / rows).abs().le(5 * scale / rows**0.5).all()


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "Mean"}, "mode 'Mean'"),
        ({"solver": "rk4"}, "solver 'rk4'"),
        ({"engine": "diffrax"}, "engine 'diffrax'"),
        ({"solver": "heun"}, "Heun is for deterministic problems"),
        ({"solver": "heun", "engine": "torchsde"}, "Heun is for deterministic problems"),
        ({"solver": "srk"}, "solver 'srk' belongs to engine 'torchsde'; expected euler or milstein"),
        ({"temperature": -0.1}, "temperature is -0.1; expected tau >= 0"),
        ({"temperature": math.nan}, "temperature is nan; expected tau >= 0"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        run_on(None, **options)


@pytest.mark.parametrize("mode", ["mean", "averaged", "sampled"])
def test_a_deterministic_policy_has_no_entropy(mode):
    with pytest.raises(ValueError, match="variance"):
        rollout(
            plane(), POLICY.deterministic(), torch.ones(4, 2, dtype=F64), time_grid(1.0, steps=5), mode=mode,
            temperature=0.1,
        )  # fmt: skip


@pytest.mark.parametrize("solver", ["euler", "heun", "milstein", "srk"])
def test_torchsde_is_for_diffusing_problems(solver):
    still = plane(C=None, D=None, s=None)
    assert still.noise == "none"
    with pytest.raises(ValueError, match="engine 'torchsde' is for diffusing problems; expected 'own'"):
        run_on(None, still, engine="torchsde", solver=solver)


@pytest.mark.parametrize("mode", ["mean", "averaged"])
def test_srk_is_not_an_own_scheme_without_noise_either(mode):
    with pytest.raises(ValueError, match="solver 'srk' belongs to engine 'torchsde'"):
        run_on(None, plane(C=None, D=None, s=None), solver="srk", mode=mode)
