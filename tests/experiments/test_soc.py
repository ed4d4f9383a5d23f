"""Benchmarks of stochastic optimal control: closed forms against other routes, losses against their fixed points."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.integrate import quad
from scipy.stats import chi2

from aid_control.errors import InputError
from aid_control.experiments.soc.affine import ChebyshevAffine, fit, fit_extrapolated
from aid_control.experiments.soc.losses import LOSSES, PathReward
from aid_control.experiments.soc.measure import TruthPaths, simulated_cost
from aid_control.experiments.soc.networks import Average, Costate
from aid_control.experiments.soc.problems import PROBLEMS, LogCost, Setting, Wells, make
from aid_control.experiments.soc.run import run
from aid_control.experiments.soc.train import Budget, train
from aid_control.experiments.soc.truth import LinearTruth, LogTruth, QuadraticTruth, WellsTruth
from aid_control.increments import Increments
from aid_control.lq import LQProblem, evaluate, riccati, scheme_value
from aid_control.lq.zoo import ou_quadratic
from aid_control.policy import ZeroMean

torch.set_num_threads(1)
F64 = torch.float64


def small(hard: bool = False, steps: int = 20) -> Setting:
    x0 = torch.tensor([0.6, -0.4], dtype=F64)
    a, w, q = (1.0, 1.0, 0.5) if hard else (0.2, 0.2, 0.1)
    return Setting("small", ou_quadratic(hard, 2), x0, steps, QuadraticTruth(a, w, q, x0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ou_quadratic_easy", 5.818225),
        ("ou_quadratic_hard", 28.611741),
        ("ou_linear", -2.856301),
        ("hjb_log", 4.590162),
    ],
)
def test_values_are_the_reference_ones(name, value):
    assert make(name).truth.value == pytest.approx(value, abs=6e-7)


@pytest.mark.parametrize("hard", [False, True])
def test_quadratic_closed_form_solves_the_riccati_equation(hard):
    setting = small(hard)
    solved = riccati(setting.problem)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    for t in (0.0, 0.31, 0.77, 1.0):
        other = solved.policy.mean(torch.tensor(t, dtype=F64), x)
        assert torch.allclose(setting.truth.control(t, x), other, atol=1e-6)
    assert setting.truth.value == pytest.approx(float(solved.value(0.0, setting.x0[None])), abs=1e-10)


def test_linear_closed_form_is_the_riccati_solution():
    generator = torch.Generator().manual_seed(2)
    sigma = torch.eye(3, dtype=F64) + 0.2 * torch.randn(3, 3, generator=generator, dtype=F64)
    drift, c = -sigma.mT + 0.3, torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    x0, eye = torch.tensor([0.2, 0.1, -0.3], dtype=F64), torch.eye(3, dtype=F64)
    truth, solved = LinearTruth(drift, sigma, c, x0), riccati(LQProblem(drift, sigma, R=eye, s=sigma.mT, g=c))
    assert truth.value == pytest.approx(float(solved.value(0.0, x0[None])), abs=1e-10)
    for t in (0.0, 0.4, 1.0):
        other = solved.policy.mean(torch.tensor(t, dtype=F64), x0[None])
        assert torch.allclose(truth.control(t, x0[None]), other, atol=1e-7)


@pytest.mark.parametrize("d", [3, 100])
def test_log_value_is_the_chi_square_quadrature(d):
    direct = quad(lambda y: 2 / (1 + 2 * y) * chi2.pdf(y, d), 0, 8 * d + 100, limit=500, epsabs=1e-13)[0]
    assert LogTruth(torch.zeros(d, dtype=F64)).value == pytest.approx(-math.log(direct), abs=1e-9)


def test_log_control_is_the_gradient_of_the_value_and_ends_at_the_cost():
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(3), dtype=F64)
    truth = LogTruth(torch.zeros(5, dtype=F64))

    def value(y: np.ndarray) -> np.ndarray:
        return -np.log(truth._integrals(0.3, (y**2).sum(1))[0])

    h = 1e-5
    for i in range(5):
        e = np.eye(5)[i] * h
        slope = (value(x.numpy() + e) - value(x.numpy() - e)) / (2 * h)
        assert np.allclose(truth.control(0.3, x)[:, i], -math.sqrt(2) * slope, atol=1e-8)
    end = x.clone().requires_grad_()
    g = torch.autograd.grad(LogCost().terminal_cost(end, None).sum(), end)[0]
    assert torch.allclose(truth.control(1.0, x), -math.sqrt(2) * g, atol=1e-8)


def test_wells_end_at_the_cost_and_solve_each_coordinate():
    kappa, nu = torch.tensor([5.0, 1.0, 5.0], dtype=F64), torch.tensor([3.0, 1.0, 3.0], dtype=F64)
    truth = WellsTruth(kappa, nu, torch.zeros(3, dtype=F64))
    x = torch.linspace(-1.4, 1.4, 7, dtype=F64)[:, None].expand(-1, 3)
    near_end = truth.control(1 - 1e-9, x)
    assert torch.allclose(near_end, -4 * nu * x * (x.square() - 1), atol=1e-4)
    middle = truth.control(0.9, x)
    for well, at in truth.kinds:
        assert torch.allclose(middle[:, at[0]], well.optimal_control(0.9, x[:, :1])[:, 0], atol=1e-5)
    assert torch.equal(middle[:, 0], middle[:, 2]) and not torch.allclose(middle[:, 0], middle[:, 1])


def test_the_optimal_cost_with_its_martingale_hardly_varies_and_meets_the_value():
    kappa, nu, x0 = torch.ones(2, dtype=F64), torch.ones(2, dtype=F64), torch.zeros(2, dtype=F64)
    setting = Setting("wells", Wells(kappa, nu), x0, 100, WellsTruth(kappa, nu, x0))
    cost = simulated_cost(setting, lambda t, x, *_: setting.truth.control(float(t), x), 600, 4)
    assert cost.excess == 0 and cost.error < 0.4 * cost.plain_error
    assert cost.mean == pytest.approx(setting.truth.value, abs=0.03)  # the step's bias


def test_control_error_of_doing_nothing_is_one_and_of_a_scaled_optimum_its_square():
    setting = small()
    paths = TruthPaths(setting, 200, 5)
    assert paths.error(ZeroMean())[0] == pytest.approx(1.0, abs=1e-12)
    error, _ = paths.error(lambda t, x, *_: 1.1 * setting.truth.control(float(t), x))
    assert error == pytest.approx(0.01, rel=1e-9)


def test_normaliser_is_the_exact_second_moment():
    setting = small(steps=40)
    paths, truth = TruthPaths(setting, 4000, 6, finer=8), setting.truth
    # m' = (a - 2F) m, v' = 2 (a - 2F) v + 1 for the optimal path, by fine steps
    n, mean, variance, second = 8000, 1.0, 0.0, []
    for k in range(n):
        f = truth.coefficient(k / n)
        if k % (n // 40) == 0:
            second.append(4 * f * f * (mean**2 * float(setting.x0 @ setting.x0) + 2 * variance))
        pull = 0.2 - 2 * f
        mean, variance = mean + pull * mean / n, variance + (2 * pull * variance + 1) / n
    assert paths.normaliser == pytest.approx(np.mean(second), rel=0.03)


def test_importance_free_metric_excess_is_the_cost_difference():
    setting = small(steps=50)
    zero = simulated_cost(setting, ZeroMean(), 4000, 7)
    policy = ChebyshevAffine(torch.zeros(1, 3, 2, dtype=F64)).policy
    exact = float(scheme_value(setting.problem, policy, setting.grid, mode="mean")(0.0, setting.x0[None]))
    assert abs(zero.mean - exact) < 3.5 * zero.error
    value = float(evaluate(setting.problem, policy)(0.0, setting.x0[None]))
    assert zero.excess == pytest.approx(value - setting.truth.value, rel=0.1)


@pytest.mark.parametrize("hard", [False, True])
def test_affine_adjoint_matching_finds_the_optimum_of_both_problems(hard):
    setting = small(hard)
    control, coarse, moves = fit_extrapolated(setting.problem, setting.x0, 25, 128, 14, 7, 8)
    paths = TruthPaths(setting, 200, 9)
    assert paths.error(control.policy.mean)[0] < 1e-5 < paths.error(coarse.policy.mean)[0]
    assert moves[-1] < 1e-3 * moves[0]


def test_the_affine_fixed_point_minimises_the_cost_of_the_discretised_problem():
    setting = small(steps=10)
    control, moves = fit(setting.problem, setting.x0, 10, 128, 25, 9, 10)
    assert moves[-1] < 1e-8

    def cost(coefficients: torch.Tensor) -> float:
        policy = ChebyshevAffine(coefficients).policy
        return float(scheme_value(setting.problem, policy, setting.grid, mode="mean")(0.0, setting.x0[None]))

    best, h = cost(control.coefficients), 1e-3
    moved = torch.zeros_like(control.coefficients)
    for index in ((0, 0, 0), (1, 2, 1), (2, 1, 1), (0, 2, 0)):
        step = moved.clone()
        step[index] = h
        up, down = cost(control.coefficients + step), cost(control.coefficients - step)
        assert up > best and down > best
        assert abs(up - down) < 2e-3 * (up + down - 2 * best)


def test_affine_fit_recovers_the_linear_problem():
    setting = make("ou_linear")
    control, _, _ = fit_extrapolated(setting.problem, setting.x0, 50, 128, 3, 6, 11)
    assert TruthPaths(setting, 100, 12).error(control.policy.mean)[0] < 1e-5


def test_path_rewards_of_the_optimum_are_the_value_on_every_path():
    # with A = 0 the optimal control is the constant -sigma' c: the gated gradient with a gate of one
    sigma, c = torch.eye(2, dtype=F64) + 0.1, torch.tensor([1.0, 2.0], dtype=F64)
    zero, eye = torch.zeros(2, 2, dtype=F64), torch.eye(2, dtype=F64)
    problem, x0 = LQProblem(zero, sigma, R=eye, s=sigma.mT, g=c), torch.tensor([0.3, 0.1], dtype=F64)
    setting = Setting("constant", problem, x0, 5, LinearTruth(zero, sigma, c, x0))
    actor = Costate(problem, 2, [4], True, (1,))
    with torch.no_grad():
        actor.gate.weight[:, 0] = 1.0
    noise = Increments.sample(setting.grid, 8, (2,), 13)
    rewards = PathReward.rewards(problem, actor, x0.expand(8, -1), noise)
    assert torch.allclose(rewards, torch.full((8,), setting.truth.value, dtype=F64), atol=1e-12)
    for name in LOSSES:
        (loss, *_) = LOSSES[name](problem, actor, x0.expand(8, -1), noise, 2, (14,))
        loss.backward()
    first = [p.grad.abs().max() for p in actor.net.parameters()]
    # adjoint matching and log-variance have no gradient here; of the cost's the mean vanishes, not the sample's
    actor.zero_grad()
    for name in ("adjoint_matching", "log_variance"):
        for loss in LOSSES[name](problem, actor, x0.expand(8, -1), noise, 2, (14,)):
            loss.backward()
    assert max(float(p.grad.abs().max()) for p in actor.net.parameters()) < 1e-12 < float(max(first))


def test_the_discrete_adjoint_is_the_gradient_of_the_simulated_cost():
    setting = small(steps=4)
    actor = Costate(setting.problem, 2, [5], True, (2,))
    with torch.no_grad():
        actor.gate.weight.fill_(0.1)
        actor.net[-1].weight.normal_(generator=torch.Generator().manual_seed(3))
    noise, x = Increments.sample(setting.grid, 6, (2,), 15), setting.x0.expand(6, -1)

    def loss() -> torch.Tensor:
        return next(iter(LOSSES["relative_entropy"](setting.problem, actor, x, noise, 1, (0,))))

    loss().backward()
    weight, h = actor.net[0].weight, 1e-6
    with torch.no_grad():
        weight[1, 2] += h
        up = float(loss())
        weight[1, 2] -= 2 * h
        down = float(loss())
    assert float(weight.grad[1, 2]) == pytest.approx((up - down) / (2 * h), rel=1e-5, abs=1e-8)


def test_average_of_constant_weights_is_the_weights():
    setting = small()
    actor = Costate(setting.problem, 2, [3], False, (4,))
    average, other = Average(actor, 0.9), Costate(setting.problem, 2, [3], False, (5,))
    for _ in range(3):
        average.update(actor)
    average.copy_to(other)
    for p, q in zip(actor.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-14)


@pytest.mark.parametrize(
    ("loss", "limit"), [("adjoint_matching", 0.1), ("relative_entropy", 0.5), ("log_variance", 0.6)]
)
def test_training_lowers_the_error_and_depends_on_its_key_alone(loss, limit):
    setting = small(hard=True, steps=10)
    truth = TruthPaths(setting, 100, 16)
    ends = []
    for _ in range(2):
        actor = Costate(setting.problem, 2, [32, 32], False, (6,))
        ends.append(train(setting, loss, actor, Budget(40, 64, 5e-3, 0.9, every=40), truth, (17,)).errors)
        torch.rand(3)
    assert ends[0] == ends[1] and ends[0][0] == pytest.approx(1.0) and ends[0][-1] < limit


def config(tmp_path, **changes):
    tiny = {"iterations": 2, "batch": 8, "rate": 1e-3}
    return OmegaConf.create(
        {
            "out": str(tmp_path), "seed": 1, "problems": ["ou_linear"], "losses": ["adjoint_matching", "moment"],
            "workers": 1, "paths": 16, "cost_paths": 64, "network": {"widths": [8], "gated": []},
            "training": {"all": {"every": 1}, **dict.fromkeys(PROBLEMS, tiny)},
            "affine": {"fit_paths": 64, "rounds": 4, "degree": 6},
            "bars": {
                "loss": "adjoint_matching", "network": {"ou_linear": 0.02}, "affine": 1e-5, "value": 0.005,
                "values": {"ou_linear": -2.856301}, "minutes": 60,
            },
            **changes,
        }
    )  # fmt: skip


def test_a_run_writes_its_files_reports_failures_and_goes_on(tmp_path, monkeypatch, capsys):
    assert run(config(tmp_path)) == 1  # two batches do not reach the bar
    report = json.loads((tmp_path / "report.json").read_text())
    failed = [r["name"] for r in report["rows"] if not r["ok"]]
    assert failed == ["ou_linear: error of the network, adjoint_matching"]
    assert (tmp_path / "figure.png").stat().st_size > 5000
    lines = (tmp_path / "results.csv").read_text().splitlines()
    assert lines[0] == "problem,loss,iteration,seconds,error" and len(lines) == 1 + 2 * 3
    numbers = json.loads((tmp_path / "results.json").read_text())["problems"]["ou_linear"]
    low, high = numbers["adjoint_matching"]["interval"]
    assert low < numbers["adjoint_matching"]["error"] < high
    monkeypatch.setattr("aid_control.experiments.soc.jobs.PIECES", {})  # everything is read again
    assert run(config(tmp_path)) == 1
    with pytest.raises(KeyError):
        run(config(tmp_path, seed=2))
    capsys.readouterr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problems": ["ou"]}, "problems is"),
        ({"problems": []}, "problems is"),
        ({"losses": ["socm"]}, "losses is"),
        ({"paths": 1}, "paths 1"),
        ({"workers": 0}, "workers 0"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        run(config(tmp_path, **change))
    with pytest.raises(InputError, match="problem is nothing"):
        make("nothing")
