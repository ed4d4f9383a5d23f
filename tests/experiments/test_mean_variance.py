"""Mean-variance experiment: moments, paths, the learner against the package's gradients, w, estimates, files."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from aid_control.errors import InputError
from aid_control.evaluation import temporal_differences
from aid_control.experiments.mean_variance import asset_liability, run
from aid_control.experiments.mean_variance.learner import ActorCritic
from aid_control.experiments.mean_variance.market import Goal, Market, stocks
from aid_control.experiments.mean_variance.multiplier import Multiplier
from aid_control.experiments.mean_variance.paths import explore, stream, terminal
from aid_control.experiments.mean_variance.plug_in import plug_in_linear, plug_in_stocks
from aid_control.experiments.mean_variance.published import MUS, SHARPE, SIGMAS
from aid_control.experiments.mean_variance.training import Settings, execute, offline, online
from aid_control.improvement import policy_gradient_loss
from aid_control.lq import AffineGaussian, LQProblem, riccati, scheme_value, zoo
from aid_control.policy import GaussianPolicy
from aid_control.rollout import rollout
from aid_control.value import Shifted

F64 = torch.float64
CONFIG = Path(__file__).resolve().parents[2] / "examples" / "conf" / "experiment" / "mean_variance.yaml"


def general(steps=20):
    """Two markets with every coefficient."""
    return Market(
        np.array([0.3, -0.2]), np.array([0.4, -0.5]), np.array([0.2, 0.3]), np.array([0.5, 0.3]), 1.0, 0.7, 1.5, steps
    )


# the exact numbers


def test_costs_and_moments_against_the_package():
    market, gain = general(), np.array([-0.8, 1.1])
    grid = torch.linspace(0, market.horizon, market.steps + 1, dtype=F64)
    for i in range(2):
        a, b, c, d = (float(v[i]) for v in (market.A, market.B, market.C, market.D))
        problem = LQProblem(a, b, market.Q, 0.0, C=c, D=d, G=market.H, horizon=market.horizon)
        value = scheme_value(problem, AffineGaussian.constant([[gain[i]]]), grid, "mean")
        assert value(0.0, torch.ones(1, 1, dtype=F64)).item() == pytest.approx(market.cost(gain)[i], rel=1e-10)
        line = LQProblem(a, b, C=c, D=d, R=0.0, g=1.0, horizon=market.horizon)
        mean = scheme_value(line, AffineGaussian.constant([[gain[i]]]), grid, "mean")(0.0, torch.ones(1, 1, dtype=F64))
        assert mean.item() == pytest.approx(market.factors(gain)[0][i] ** market.steps, rel=1e-12)


def test_the_best_gain_is_best_for_every_cost():
    for market in (general(), stocks([0.3, -0.1], [0.1, 0.4])):
        b = market.factors(market.best_gain)[1]
        for step in (-1e-3, 1e-3):
            assert (market.factors(market.best_gain + step)[1] > b).all()
    plain = stocks([0.3], [0.2])
    problem = riccati(zoo.mean_variance(0.3, 0.2, 0.02))
    continuous = problem.policy.law(torch.tensor(0.5, dtype=F64))[0].item()
    assert plain.best_gain[0] == pytest.approx(continuous, rel=1e-2)
    assert plain.best_gain[0] != pytest.approx(continuous, rel=1e-4)  # daily trading has its own optimum


def test_sharpe_ratios_of_the_page():
    """(12) of docs/explanation/mean-variance.md, and the digits of its table."""
    market = stocks(MUS, SIGMAS)
    k = market.B / market.D
    best = market.sharpe(market.best_gain)
    assert np.allclose(best, np.sqrt((1 + k**2 / 252) ** 252 - 1), rtol=1e-8)
    cells = [(m, s) for m in MUS for s in SIGMAS]
    digits = {
        (0.3, 0.2): 2.46,
        (0.3, 0.3): 1.18,
        (0.5, 0.4): 1.79,
        (-0.3, 0.2): 3.43,
        (-0.1, 0.1): 1.79,
        (0.1, 0.2): 0.42,
    }
    assert digits.keys() == SHARPE.keys()
    for cell, value in digits.items():
        assert round(best[cells.index(cell)], 2) == value and max(SHARPE[cell]) < value
    assert market.sharpe(np.zeros(28)).tolist() == [0.0] * 28
    assert (market.sharpe(-market.best_gain) < 0).all()


def test_the_multiplier_reaches_the_goal():
    market, goal = stocks([0.3, 0.1], [0.2]), Goal()
    gain = 0.8 * market.best_gain
    w = market.multiplier(gain, goal)
    assert np.allclose(market.mean_wealth(gain, w, goal.x0), 1.4, rtol=1e-12)
    growth = math.exp(1.4**2)
    continuous = (1.4 * growth - 1) / (growth - 1)  # (8)
    assert market.multiplier(market.best_gain, goal)[0] == pytest.approx(continuous, rel=2e-3)


@pytest.mark.parametrize("bad", [lambda: stocks([0.02], [0.2]), lambda: stocks([0.3], [0.0]), lambda: Goal(1.0, 1.0)])
def test_markets_without_a_problem_are_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        bad()


def test_a_market_without_noise_in_the_control_is_refused():
    with pytest.raises(ValueError, match="D nowhere 0"):
        Market(np.zeros(1), np.ones(1), np.zeros(1), np.zeros(1))


# paths


def test_a_year_without_a_loop_is_the_recursion():
    market, gain, n, paths = general(), np.array([-0.8, 1.1]), 20, 7
    noise = stream(3)
    xi, dw = noise.standard_normal((2, n, 1, paths))
    dw *= 0.3
    dw[4, 0, 2] = (-1 - (market.A + market.B * gain)[0] * market.h) / (market.C + market.D * gain)[
        0
    ] + 1e-9  # alpha ~ 0
    spread = np.full((n, 2), 0.7)
    y = explore(market, gain, spread, xi, dw)
    now = np.full((2, paths), -1.0)
    for k in range(n):
        u = gain[:, None] * now + spread[k][:, None] * xi[k]
        drift = market.A[:, None] * now + market.B[:, None] * u
        now = now + drift * market.h + (market.C[:, None] * now + market.D[:, None] * u) * dw[k]
        assert np.allclose(y[k + 1], now, rtol=1e-9, atol=1e-12)
    still = explore(market, gain, np.zeros((n, 2)), xi, dw)[-1]
    assert np.allclose(terminal(market, gain, dw[:, 0]), still, rtol=1e-9, atol=1e-12)


# the learner


class Curve(nn.Module):
    """The critic of a learner, for the package."""

    def __init__(self, learner):
        super().__init__()
        self.learner, self.weight = learner, nn.Parameter(torch.zeros(1, dtype=F64))

    def forward(self, t, x, context=None, probe=None):
        one = self.learner
        k = round(float(t) / one.h)
        p = float(one.curve(k, 0)[0][0, 0])
        left = one.left[k : one.steps, 0]
        constant = -one.gamma[0] * one.h * float((one.eta[0, 0] + one.eta[1, 0] * left).sum())
        return 0.5 * p * x[:, 0] ** 2 + constant


class Spread(nn.Module):
    def __init__(self, learner):
        super().__init__()
        self.gamma, self.horizon = float(learner.gamma[0]), float(learner.left[0, 0])
        self.phi = nn.Parameter(torch.from_numpy(learner.phi[:, 0].copy()))

    def forward(self, t):
        return self.gamma * torch.exp(self.phi[0] + self.phi[1] * (self.horizon - t))


class Gain(nn.Module):
    def __init__(self, learner):
        super().__init__()
        self.gain = nn.Parameter(torch.from_numpy(learner.gain.copy()))

    def forward(self, t, x, context, probe):
        return self.gain * x


def test_without_weights_it_is_the_policy_gradient_of_the_package():
    market, one = general(8), ActorCritic((1,), 8, 1.5, Q=1.0, H=0.7, temperature=0.3, weighted=False)
    one.gain, one.theta = np.array([-0.6]), np.array([0.4])
    one.phi, one.eta = np.array([[0.2], [0.5]]), np.array([[0.3], [-0.4]])
    a, b, c, d = (float(v[0]) for v in (market.A, market.B, market.C, market.D))
    problem = LQProblem(a, b, 1.0, 0.0, C=c, D=d, G=0.7, horizon=1.5)
    gain, spread = Gain(one), Spread(one)
    policy, value = GaussianPolicy(gain, spread), Shifted(Curve(one))
    grid, x = torch.linspace(0, 1.5, 9, dtype=F64), torch.full((6, 1), -1.0, dtype=F64)
    with torch.no_grad():
        path = rollout(
            problem, policy, x, grid, target=(), mode="sampled", noise=torch.Generator().manual_seed(0), temperature=0.3
        )
    y = torch.stack(path.states).squeeze(-1).numpy()[:, None]
    u = torch.stack(path.actions).squeeze(-1).numpy()[:, None]
    log_variance = one.log_variance()
    xi = (u - one.gain[:, None] * y[:-1]) * np.exp(-0.5 * log_variance)[..., None]
    assert np.allclose(explore(
        Market(*(v[:1] for v in (market.A, market.B, market.C, market.D)), 1.0, 0.7, 1.5, 8), one.gain,
        np.exp(0.5 * log_variance), xi, (y[1:] - y[:-1] - (a * y[:-1] + b * u) * one.h) / (c * y[:-1] + d * u),
    ), y)  # fmt: skip

    delta, q = one.differences(0, y, xi, log_variance)
    exact = temporal_differences(value.along(path), path)
    assert np.allclose(delta[:, 0], exact.numpy(), rtol=1e-10, atol=1e-12)
    assert np.allclose(q[-1, 0], path.terminal.numpy())
    policy_gradient_loss(policy, value, path).backward()
    wanted = [float(gain.gain.grad), *spread.phi.grad.tolist()]
    assert np.allclose(one.sums(0, y, xi, log_variance)[0][:3, 0], wanted, rtol=1e-9)
    weighted = ActorCritic((1,), 8, 1.5, Q=1.0, H=0.7, temperature=0.3)
    weighted.gain, weighted.theta, weighted.phi, weighted.eta = one.gain, one.theta, one.phi, one.eta
    assert not np.allclose(weighted.sums(0, y, xi, log_variance)[0][:3, 0], wanted, rtol=1e-2)


def test_days_add_up_to_years():
    """Sums of single days are the sums of the whole path, but for the centre of theta's test function: also by day."""
    market, one = general(), ActorCritic((2,), 20, 1.5, Q=1.0, H=0.7)
    one.phi[0], one.theta = 0.3, np.array([0.5, -0.2])
    xi, dw = stream(4).standard_normal((2, 20, 1, 5))
    log_variance = one.log_variance()
    y = explore(market, one.gain, np.exp(0.5 * log_variance), xi, 0.2 * dw)
    whole = one.sums(0, y, xi, log_variance)
    days = [one.sums(k, y[k : k + 2], xi[k : k + 1], log_variance[k : k + 1]) for k in range(20)]
    for i in range(2):
        assert np.allclose(sum(d[i] for d in days), whole[i], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("theta", [0.0, 1.7])
def test_the_direction_is_right_for_every_critic(theta):
    """E[score delta | Y] of one step by Gauss-Hermite quadrature, exact for these polynomials."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    weights = weights / weights.sum()
    xi, z = (g.ravel() for g in np.meshgrid(nodes, nodes))
    mass = np.outer(weights, weights).ravel()
    market = general()
    one = ActorCritic((2,), 20, 1.5, Q=1.0, H=0.7)
    one.gain, one.theta, one.phi[0] = np.array([0.4, -0.3]), np.full(2, theta), 0.2
    log_variance = one.log_variance(3, 1)
    s = np.exp(0.5 * log_variance[0])[:, None]
    for state in (-1.0, 2.5):
        u = one.gain[:, None] * state + s * xi
        dw = z * market.h**0.5
        column = [v[:, None] for v in (market.A, market.B, market.C, market.D)]
        after = state + (column[0] * state + column[1] * u) * market.h + (column[2] * state + column[3] * u) * dw
        delta = one.differences(3, np.stack([np.full_like(after, state), after]), xi[None, None], log_variance)[0][0]
        found = (xi * state / s * delta * mass).sum(-1)
        curvature = (market.D**2 + market.B**2 * market.h) * market.h
        wanted = one.curve(3, 1)[0][1] * state**2 * curvature * (one.gain - market.best_gain)
        assert np.allclose(found, wanted, rtol=1e-9)


def test_a_curve_is_the_price_of_a_constant_gain():
    """p with theta = -log(b)/h, against the exact recursion of the grid, to the order of the step."""
    gain = np.array([-0.8, 1.1])
    gaps = []
    for steps in (50, 400):
        market = general(steps)
        one = ActorCritic((2,), steps, 1.5, Q=1.0, H=0.7)
        one.theta = -np.log(market.factors(gain)[1]) / market.h
        p = one.curve(0, steps)[0]
        assert np.allclose(p[-1], market.H)
        gaps.append(np.abs(0.5 * p[0] / market.cost(gain) - 1).max())
    assert gaps[1] < 2e-3 and gaps[0] / gaps[1] == pytest.approx(8, rel=0.1)
    one.theta = np.array([1e-9, 0.6])
    up = ActorCritic((2,), 400, 1.5, Q=1.0, H=0.7)
    up.theta = one.theta + 1e-6
    slope = (np.log(up.curve(0, 400)[0]) - np.log(one.curve(0, 400)[0])) / 1e-6
    assert np.allclose(one.curve(0, 400)[1], slope, atol=1e-4)


def test_it_learns_offline_and_reaches_the_goal():
    market, goal = stocks([0.3, -0.3], [0.3]), Goal()
    settings = Settings(years=4000, paths=16, delay=500.0)
    found, again = (offline(market, goal, 1, settings) for _ in range(2))
    assert (found.gain == again.gain).all() and (found.w == again.w).all()
    ratio = market.sharpe(found.gain[0]) / market.sharpe(market.best_gain)
    assert (ratio > 0.97).all() and len(found.gains) == len(found.years)
    assert (np.abs(found.gains[0][0]) < 0.2 * np.abs(market.best_gain)).all()
    w = execute(market, goal, found.gain[0], np.full(2, 3.0), 1, 4000)
    assert np.allclose(market.mean_wealth(found.gain[0], w, 1.0), 1.4, rtol=0.02)
    assert abs(market.mean_wealth(found.gain[0], np.full(2, 3.0), 1.0) - 1.4).min() > 0.2


def test_it_learns_online_and_seeds_do_not_see_each_other():
    market, goal = stocks([0.5], [0.3]), Goal()
    settings = Settings(years=512, paths=16, delay=500.0, rate=0.2)
    both, one = (online(market, goal, seeds, settings) for seeds in ([7, 8], [8]))
    assert np.allclose(both.gain[1], one.gain[0], rtol=1e-9) and not np.allclose(both.gain[0], one.gain[0], rtol=1e-2)
    assert (market.sharpe(both.gain) > 0.8 * market.sharpe(market.best_gain)).all()
    with pytest.raises(ValueError, match="A or C"):
        online(general(), goal, [1], settings)


@pytest.mark.parametrize("bad", [{"paths": 1}, {"years": 100}, {"m": 0}])
def test_settings_that_cannot_learn_are_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        Settings(**bad)
    with pytest.raises(ValueError, match="positive"):
        ActorCritic((1,), temperature=0.0)


# w


def test_the_multiplier_finds_the_root_of_a_mean_without_noise():
    goal = Goal()
    share = np.array([0.86, 0.0025])  # 1 - a^n
    w = Multiplier(goal, (2,), start=0.5, delay=2.0)
    assert w.w.tolist() == [1.4, 1.4]
    for _ in range(30000):
        w.update(-(1 - share))  # mean of Y_T = -a^n
    assert np.allclose(w.w, goal.x0 + goal.gain / share, rtol=4e-2)
    assert w.w[0] == pytest.approx(goal.x0 + goal.gain / share[0], rel=1e-3)


def test_the_last_multiplier_is_as_good_as_an_average():
    """Spread of w over runs: (z - x0) / sqrt(m N) times the noise of one year over what it answers to."""
    goal, noise = Goal(), stream(11)
    w = Multiplier(goal, (400,), start=0.05, delay=20.0)
    w.distance = np.full(400, 1.0)
    for _ in range(2000):
        w.update(-0.6 + 0.5 * noise.standard_normal(400))
    reached = w.distance * 0.4 / goal.gain
    assert reached.mean() == pytest.approx(1, abs=0.01)
    assert reached.std() == pytest.approx(0.5 / 0.4 / math.sqrt(2000), rel=0.2)


# estimates


def test_plug_in_gains_are_right_with_much_data_and_not_with_little():
    market, goal = stocks([0.1, 0.3], [0.2]), Goal()
    gain, w = plug_in_stocks(market, goal, 10**7, 3, stream(5))
    assert np.allclose(gain, market.best_gain, rtol=2e-2)
    assert np.allclose(market.mean_wealth(gain, w, goal.x0), 1.4, rtol=5e-3)
    gain, w = plug_in_stocks(market, goal, 20, 500, stream(5))
    assert np.median(np.abs(market.mean_wealth(gain, w, 1.0) / 1.4 - 1), axis=0)[0] > 0.05

    wide, paths = general(252), 1500
    xi, dw = stream(6).standard_normal((2, 252, 1, paths))
    y = explore(wide, np.zeros(2), np.ones((252, 2)), xi, dw * wide.h**0.5)
    assert np.allclose(plug_in_linear(wide, y, np.broadcast_to(xi, (252, 2, paths))), wide.best_gain, rtol=0.06)


def test_asset_liability_markets():
    market = asset_liability.random_markets(6, 1, steps=252 * 64)
    assert np.allclose(market.cost(market.best_gain), asset_liability.continuous_optimum(market), rtol=1e-3)
    market = asset_liability.random_markets(6, 1)
    costs = asset_liability.compare(market, 1, Settings(years=960, delay=500.0), 5)
    both = asset_liability.Costs.join([costs, costs])
    assert both.learned.shape == (2, 6) and both.optimum.shape == (6,)
    for values in (costs.learned, costs.plug_in, costs.nothing):
        assert (values >= costs.optimum - 1e-12).all()
    assert costs.learned.mean() < costs.nothing.mean()


# numbers and files


def test_intervals():
    values = stream(8).standard_normal((200, 3))
    low, high = run.bootstrap(values)
    assert (low < np.median(values, 0)).all() and (np.median(values, 0) < high).all()
    assert (high - low).mean() == pytest.approx(2 * 1.96 * 1.2533 / math.sqrt(200), rel=0.3)
    wealth = 1 + 0.5 * (0.3 + stream(9).standard_normal((30, 2000)))
    error = math.sqrt((1 + 0.3**2 / 2) / 2000)  # of the Sharpe ratio of normal wealth
    assert run.jackknife(wealth, 1.0).mean() == pytest.approx(error, rel=0.15)


def test_simulated_execution_has_the_exact_moments():
    market, goal = stocks([0.1, 0.3], [0.3]), Goal()
    w = market.multiplier(market.best_gain, goal)
    wealth = run.simulate(market, market.best_gain, w, goal.x0, 4000, 1)
    assert (np.abs(wealth.mean(1) - 1.4) < 4 * wealth.std(1) / math.sqrt(4000)).all()
    ratio = (wealth.mean(1) - 1) / wealth.std(1)
    assert (np.abs(ratio - market.sharpe(market.best_gain)) < 4 * run.jackknife(wealth, 1.0)).all()


def settings(tmp_path, **changes):
    small = {
        "out": str(tmp_path), "seeds": 2, "few": 1, "workers": 1, "execute": 200, "paths": 200, "steps": 20,
        "offline": {"years": 240, "paths": 8}, "online": {"years": 240, "paths": 8},
        "unweighted": {"years": 240, "paths": 8, "weighted": False},
        "asset_liability": {"markets": 3, "data": 2, "learner": {"years": 240, "paths": 8}},
    }  # fmt: skip
    return OmegaConf.merge(OmegaConf.load(CONFIG), small, changes)


def test_a_small_run_writes_its_files(tmp_path):
    assert run.run(settings(tmp_path)) == 1  # so few years meet no bar
    with open(tmp_path / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 28 and sum(r["published_online"] != "" for r in rows) == 6
    assert all(float(r["offline_sharpe_q25"]) <= float(r["offline_sharpe_q75"]) for r in rows)
    report = json.loads((tmp_path / "report.json").read_text())
    names = [r["name"] for r in report["rows"]]
    assert len(names) == len(set(names)) == 15 and (tmp_path / "figure.png").stat().st_size > 10_000
    assert report["rows"][-1]["ok"]  # the Riccati row does not depend on learning
    numbers = json.loads((tmp_path / "results.json").read_text())
    assert {"offline", "online", "unweighted", "plug_in_20_years", "asset_liability"} <= numbers.keys()
    assert numbers["settings"]["unweighted"]["weighted"] is False


@pytest.mark.parametrize(
    "bad",
    [
        {"learners": ["offline"]},
        {"learners": ["offline", "online", "td"]},
        {"seeds": 1},
        {"paths": 30},
        {"sigma": [0.2]},
        {"rate": 0.1},
        {"z": 0.9},
        {"offline": {"years": 10}},
        {"online": {"pathz": 10}},
    ],
)
def test_settings_are_refused_in_one_sentence(tmp_path, bad):
    with pytest.raises(InputError, match="expected"):
        run.run(settings(tmp_path, **bad))
