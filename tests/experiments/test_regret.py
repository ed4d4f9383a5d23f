"""The regret experiment: exact values against the Riccati layer and simulation, episodes without a loop, learners."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid_control.experiments.regret.adaptive import Adaptive
from aid_control.experiments.regret.exact import RegretProblem
from aid_control.experiments.regret.model_free import ModelFree
from aid_control.experiments.regret.paths import Noise, episode
from aid_control.experiments.regret.plug_in import PlugIn
from aid_control.experiments.regret.run import curves
from aid_control.experiments.slopes import loglog_slope
from aid_control.lq import evaluate
from aid_control.lq.quadratic import AffineGaussian
from aid_control.lq.zoo import regret

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("gain", [-3.0, -2.0, -1.0 - math.sqrt(2), -0.5, 0.3])
def test_the_value_is_that_of_the_lq_layer(gain):
    problem, variance = RegretProblem(), 0.7
    one = torch.ones(1, 1, dtype=torch.float64)
    policy = AffineGaussian.constant(gain * one, None, variance * one)
    exact = float(evaluate(regret(), policy)(0.0, one))
    assert float(problem.value(np.array([gain]), variance)[0]) == pytest.approx(-exact, rel=1e-8)


def test_the_best_gain_is_the_best():
    problem = RegretProblem(A=0.5, B=1.2, C=-0.4, D=0.8, Q=0.6, H=1.4)
    gains = problem.best_gain + np.linspace(-1, 1, 41)
    assert problem.value(gains, 0.3).argmax() == 20
    assert (problem.regret(gains, 0.3) > 0).all()
    assert problem.regret(np.array([problem.best_gain]), 0.0)[0] == pytest.approx(0.0, abs=1e-12)


def test_the_value_is_smooth_where_its_formula_divides_by_zero():
    problem = RegretProblem()
    for root in (-1.0, -3.0):  # 2 + 2 phi + (1 + phi)^2 = 0
        for step in (1e-3, 1e-5, 1e-7):
            low, at, high = problem.value(root + np.array([-step, 0.0, step]), 1.0)
            assert low - 2 * at + high == pytest.approx(0.0, abs=20 * step**2 + 1e-5)
            assert high - low == pytest.approx(0.0, abs=10 * step + 1e-5)


@settings(max_examples=25, deadline=None)
@given(st.floats(-3.0, 9.5), st.floats(0.05, 3.0), st.integers(0, 10_000))
def test_an_episode_is_the_loop(gain, spread, seed):
    """Also where some alpha is nearly zero: gains near 9 have alpha = 1 + 0.1 + 10 dW, dW of size 0.1."""
    problem = RegretProblem(steps=40)
    xi, normals = (np.random.default_rng([seed, i]).standard_normal((3, 40)) for i in (0, 1))
    gains = np.array([gain, -2.0, 0.5])
    x = episode(problem, gains, spread, xi, normals)
    state = np.ones(3)
    for k in range(40):
        action = gains * state + spread * xi[:, k]
        noise = (state + action) * normals[:, k] * problem.dt**0.5
        state = state + (state + action) * problem.dt + noise
        np.testing.assert_allclose(x[:, k + 1], state, rtol=1e-6, atol=1e-7 * np.abs(x).max())


def test_a_seed_does_not_depend_on_its_neighbours_or_the_buffer():
    alone, beside = Noise([7], 10, ahead=3), Noise([1, 7, 9], 10, ahead=64)
    for _ in range(8):
        a, b = alone.episode(), beside.episode()
        np.testing.assert_array_equal(a[0][0], b[0][1])
        np.testing.assert_array_equal(a[1][0], b[1][1])


def test_the_actors_step_is_the_gradient_on_average():
    """E Z = -(B + D(C + D phi_1)) E int x^2 dt up to O(dt): the policy gradient with the frozen critic."""
    problem, seeds = RegretProblem(), 60_000
    learner = ModelFree(problem, seeds, temperature=0.0, start_variance=0.5, start_gain=-1.2, rate=1e-9)
    rng = np.random.default_rng(0)
    xi, normals = rng.standard_normal((seeds, 100)), rng.standard_normal((seeds, 100))
    x = episode(problem, learner.gain, np.sqrt(learner.variance), xi, normals)
    learner.learn(x, xi)
    found = (learner.gain + 1.2) / 1e-9
    expected = -(1 + 1 - 1.2) * (x[:, :-1] ** 2).mean()  # -(B + D(C + D phi)) E int x^2 dt
    assert found.mean() == pytest.approx(expected, abs=5 * found.std() / seeds**0.5 + 0.02 * abs(expected))


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (lambda p: ModelFree(p, 16), 0.25),
        (lambda p: ModelFree(p, 16, rate=0.15, temperature=0.0, critic="learned", projection="growing"), 0.3),
        (lambda p: Adaptive(p, 16, temperature=0.0), 0.25),
        (lambda p: PlugIn(p, 16), 0.25),
    ],
    ids=["published", "no_props", "adaptive", "plug_in"],
)
def test_learners_find_the_gain(make, tolerance):
    problem = RegretProblem()
    learner, noise = make(problem), Noise(list(range(16)), problem.steps)
    for _ in range(3000):
        xi, normals = noise.episode()
        learner.learn(episode(problem, learner.gain, np.sqrt(learner.variance), xi, normals), xi)
    assert abs(float(np.median(learner.gain)) - problem.best_gain) < tolerance


def test_curves_do_not_depend_on_how_seeds_are_split():
    whole = curves("published", [3, 4, 5], 40, 10, {})
    parts = [curves("published", s, 40, 10, {}) for s in ([3], [4, 5])]
    for i in (0, 1):
        np.testing.assert_allclose(whole[i], np.concatenate([p[i] for p in parts], 1), rtol=1e-12)


def test_a_power_law_is_found_with_its_interval():
    n = np.arange(1, 200, dtype=float)
    noise = np.random.default_rng(1).lognormal(0, 0.3, (1, 50))
    slope = loglog_slope(n, 3 * n[:, None] ** -0.4 * noise, (10, 150))
    assert slope.slope == pytest.approx(-0.4, abs=1e-9) and slope.window == (10, 150)
    mixed = n[:, None] ** np.random.default_rng(2).normal(0.7, 0.05, (1, 50))
    slope = loglog_slope(n, mixed, (10, 150))
    assert slope.low < slope.slope < slope.high and 0.01 < slope.high - slope.low < 0.06
    with pytest.raises(ValueError, match="window"):
        loglog_slope(n, mixed, (10, 11))


def test_the_program(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "run_experiment.py"), "name=regret", "seeds=4", "episodes=400"]
    command += ["every=20", "window=[40,400]", "learners=[published,plug_in]", "workers=1", "bars={}", "out=o"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "o" / "results.json").read_text())
    assert set(found["learners"]) == {"published", "plug_in"}
    assert found["learners"]["published"]["regret"]["seeds"] == 4
    assert (tmp_path / "o" / "figure.png").is_file()
    assert (tmp_path / "o" / "results.csv").read_text().count("\n") == 21


@pytest.mark.parametrize(
    ("options", "words"),
    [(["name=nothing"], "expected one of"), ([], "missing"), (["name=regret", "learners=[oracle]"], "learners is")],
)
def test_bad_input_is_one_sentence(options, words, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "run_experiment.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1
