"""The ART experiment: clocks and their files, the control problem against its closed form, measured densities."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid_control.errors import InputError
from aid_control.experiments.art import control, one_dim, quality, warp
from aid_control.experiments.art.flow import densities, rms, trace
from aid_control.experiments.art.images import detail, from_density, powers, ratio, refine, sample, short, steps_within
from aid_control.experiments.art.inpainting import Filling, Job, learn_own, measure, training
from aid_control.experiments.art.run import run
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.registry import save_exact
from aid_control.images.clock import GridClock, KarrasClock, LogClock
from aid_control.images.data import ImageSource, write_png
from aid_control.images.inpaint import function_evaluations, inpaint
from aid_control.images.learned_clock import LearnedClock, load_clock, save_clock
from aid_control.images.realism import kid
from aid_control.increments import time_grid
from aid_control.policy import GaussianPolicy
from aid_control.rollout import rollout

END = 3.0
KNOTS = (80.0, 5.0, 0.4, 0.002)


def standard(side=8):
    """Images of independent standard normal pixels."""
    return GaussianBackbone((1, side, side), 0)


# --- clocks and files -----------------------------------------------------------------------------------------------


def mass_above(clock, level, cells=20_000):
    """Quadrature of the density, independent of the closed form."""
    u = np.linspace(math.log(max(level, clock.sigma_min)), math.log(clock.sigma_max), cells)
    v = np.log(clock.levels)[::-1]
    above = np.trapezoid(np.exp(np.interp(u, v, np.log(clock.density)[::-1])), u)
    return above + clock.density[-1] * max(0.0, 1 - level / clock.sigma_min)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-6, 6), min_size=4, max_size=4), st.integers(1, 40))
def test_levels_cut_the_mass_into_equal_parts(logs, steps):
    clock = LearnedClock(KNOTS, tuple(math.exp(v) for v in logs))
    levels = clock.sigmas(steps)
    assert levels.dtype == torch.float64 and levels.shape == (steps + 1,)
    assert float(levels[0]) == pytest.approx(80.0, rel=1e-12) and float(levels[-1]) == 0.0
    assert (levels.diff() < 0).all()
    whole = mass_above(clock, 0.0)
    for k, level in enumerate(levels.tolist()):
        assert mass_above(clock, level) == pytest.approx(k / steps * whole, rel=1e-4, abs=1e-5 * whole)


def test_a_constant_density_is_uniform_in_log_sigma_with_one_part_for_the_tail():
    clock, length = LearnedClock((80.0, 1.0, 0.002), (3.0, 3.0, 3.0)), math.log(80 / 0.002)
    k = torch.arange(4, dtype=torch.float64)
    torch.testing.assert_close(clock.sigmas(4)[:-1], 80 * torch.exp(-k / 4 * (length + 1)))
    assert float(clock.sigmas(100)[-2]) == pytest.approx(0.002 * (length + 1) / 100, rel=1e-9)  # linear below the knot


def test_karras_rule_is_a_density():
    """sigma^(1/rho) linear is the density sigma^(1/rho) a unit of log sigma: log-linear, so two knots hold it."""
    clock = LearnedClock((80.0, 0.002), (80 ** (1 / 7), 0.002 ** (1 / 7)))
    s = torch.linspace(0, 1, 12, dtype=torch.float64)
    torch.testing.assert_close(clock.level(s), KarrasClock().level(s), rtol=1e-9, atol=0)
    assert float(clock.level(torch.tensor(1.0, dtype=torch.float64))) == pytest.approx(0.002)


def test_only_ratios_count_and_rounding_is_used():
    a, b = (LearnedClock(KNOTS, tuple(c * v for v in (1.0, 3.0, 2.0, 0.1))) for c in (1.0, 50.0))
    torch.testing.assert_close(a.sigmas(9), b.sigmas(9))
    rounded = a.sigmas(3, rounding=lambda s: s + 1)
    torch.testing.assert_close(rounded[:-1], a.sigmas(3)[:-1] + 1)


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 2.0), (2.0, 0.0), (math.inf, 1.0), (2.0, math.nan)])
def test_bad_levels(levels):
    with pytest.raises(ValueError, match="levels"):
        LearnedClock(levels, (1.0,) * len(levels))


@pytest.mark.parametrize("density", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, math.inf)])
def test_bad_densities(density):
    with pytest.raises(ValueError, match="density"):
        LearnedClock((2.0, 1.0), density)


def test_too_few_steps():
    with pytest.raises(ValueError, match="steps is 0"):
        LearnedClock((2.0, 1.0), (1.0, 1.0)).sigmas(0)


def test_a_clock_survives_its_file(tmp_path):
    clock = LearnedClock(KNOTS, (0.1, 1.0, 0.5, 0.01), {"backbone": "b", "solver": "heun", "calls": 13})
    save_clock(tmp_path / "c.json", clock)
    found = load_clock(tmp_path / "c.json")
    assert found.about == clock.about and (tmp_path / "c.json").stat().st_size < 600
    torch.testing.assert_close(found.sigmas(7), clock.sigmas(7), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        '{"levels": [2, 1], "about": {}}',
        '{"levels": [2, 1], "density": [1, NaN], "about": {}}',
        '{"levels": [1, 2], "density": [1, 1], "about": {}}',
        '{"levels": [2, 1], "density": [1], "about": {}}',
        '{"levels": [2, 1], "density": [1, 1], "about": {"a": [1]}}',
        '{"levels": 2, "density": [1, 1], "about": {}}',
        '{"levels": ["x", 1], "density": [1, 1], "about": {}}',
        "[" * 5000,
    ],
)
def test_files_that_hold_no_clock(tmp_path, text):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match="holds no clock"):
        load_clock(tmp_path / "c.json")


def test_a_missing_clock_is_named():
    with pytest.raises(InputError, match="no-such-clock: no such clock"):
        load_clock("no-such-clock")


@pytest.mark.parametrize("name", ["clock-edm-faces64-mini", "clock-edm-faces64-mini-euler"])
def test_the_shipped_clocks(name):
    clock = load_clock(name)
    assert clock.about["backbone"] == "edm-faces64-mini"
    assert clock.about["solver"] == ("euler" if name.endswith("euler") else "heun")
    for steps in (2, 7, 18):
        levels = clock.sigmas(steps)
        assert (levels.diff() < 0).all() and float(levels[0]) == pytest.approx(80.0)


def test_a_learned_clock_is_the_same_as_a_grid_of_its_levels():
    net, clock = standard(), LearnedClock((80.0, 1.0, 0.01), (1.0, 2.0, 0.2))
    y, mask = torch.zeros(2, 1, 8, 8), torch.ones(2, 1, 8, 8)
    mask[..., 3:6, 3:6] = 0
    grid = GridClock(tuple(clock.sigmas(6)[:-1].tolist()))
    for base in ("flow", "projected"):
        a, b = (inpaint(net, None, y, mask, 6, "heun", [3, 4], clock=c, base=base) for c in (clock, grid))
        torch.testing.assert_close(a, b)


# --- warps ----------------------------------------------------------------------------------------------------------


def test_equal_steps_against_the_inverse():
    x = torch.linspace(0, 2, 4001, dtype=torch.float64)
    torch.testing.assert_close(
        warp.equal_steps(x, x, 4), 2 * (torch.arange(5.0).double() / 4).sqrt(), rtol=0, atol=1e-3
    )


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-4, 4), min_size=5, max_size=5))
def test_log_linear_densities(logs):
    w = warp.LogLinear(END, 5)
    assert torch.allclose(w.grid(6), torch.arange(7.0).double() / 2)
    with torch.no_grad():
        w.weights.copy_(torch.tensor(logs))
        psi = torch.linspace(0, END, 7, dtype=torch.float64)
        table = w.rest(psi)
        assert (table.diff() < 0).all() and float(table[-1]) == 0.0
        slope = (w.rest(psi[1:-1] + 1e-3) - w.rest(psi[1:-1] - 1e-3)) / 2e-3
        torch.testing.assert_close(-slope, w.density(psi[1:-1]), rtol=0.1, atol=0)
    assert (w.grid(9).diff() > 0).all()
    with pytest.raises(ValueError, match="knots is 1"):
        warp.LogLinear(END, 1)


# --- the control problem --------------------------------------------------------------------------------------------


def perfect():
    """The optimum, sqrt(q) = (1 + s^2)^(-3/4), with many knots."""
    w = warp.LogLinear(END, 61)
    with torch.no_grad():
        w.weights.copy_(-0.75 * torch.log(1 + (END - torch.linspace(0, END, 61)) ** 2))
    return w


def starts(episodes=1, paths=5):
    x = torch.linspace(-2, 3, paths, dtype=torch.float64).expand(episodes, paths) * math.sqrt(1 + END**2)
    return torch.cat([x, x.new_zeros(episodes, 1)], 1)


@pytest.mark.parametrize("psi", [0.0, 1.3, 2.9999, 3.0])
def test_the_second_derivative_comes_from_two_questions(psi):
    problem = control.ClockProblem(one_dim.field, END, 0.1)
    x = torch.cat([starts()[:, :-1], torch.full((1, 1), psi, dtype=torch.float64)], 1)
    asked = problem.probe(torch.tensor(0.0), x, None)
    q = (x[:, :-1].abs() / (1 + (END - psi) ** 2) ** 2).mean()
    assert float(asked.root) == pytest.approx(math.sqrt(q), rel=3e-3)
    assert problem.calls == 2


def cost_of(w, mode="mean", variance=0.0, episodes=1, steps=400, seed=0):
    problem = control.ClockProblem(one_dim.field, END, END / steps)
    policy = GaussianPolicy(control.Speed(w, END), (lambda t: variance) if variance else None)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return rollout(
            problem, policy, starts(episodes), time_grid(END, steps=steps), target=(), mode=mode, noise=noise
        )


def test_the_optimum_costs_what_the_closed_form_says():
    path, s = cost_of(perfect()), torch.linspace(0, END, 10_001, dtype=torch.float64)
    constant = float(starts()[0, :-1].abs().mean()) / math.sqrt(1 + END**2)  # |x_0| of the formula
    best = constant * float(torch.trapezoid((1 + s**2) ** -0.75, s)) ** 2 / END
    assert float(path.total_cost()) == pytest.approx(best, rel=0.01)
    assert float(path.states[-1][0, -1]) == pytest.approx(END, abs=1e-6 + END / 400)
    critic = control.ClockValue(perfect(), END)
    start = critic(torch.tensor(0.0), path.states[0], None, path.probes[0]).detach()
    assert float(start) == pytest.approx(best, rel=0.01)
    for k in (100, 300):  # the value is what is still to be paid
        left = sum(float(c) for c in path.costs[k:])
        value = critic(path.times[k], path.states[k], None, path.probes[k]).detach()
        assert float(value) == pytest.approx(left, rel=0.02)
    assert float(cost_of(warp.LogLinear(END, 8)).total_cost()) > 1.05 * best  # uniform


def test_exploring_costs_lambda_per_unit_of_time():
    free = float(cost_of(perfect(), steps=100).total_cost())
    paid = cost_of(perfect(), "sampled", 0.02, episodes=400, steps=100).total_cost()
    margin = 4 * float(paid.std()) / 20
    assert float(paid.mean()) - free == pytest.approx(0.02 * END, abs=margin + 0.01 * free)


def test_distances_of_the_page():
    assert one_dim.w2(one_dim.best(0.75, 10)) == pytest.approx(0.077, abs=5e-4)
    assert one_dim.w2(one_dim.best(0.0, 2)) == pytest.approx(0.465, abs=5e-4)
    assert one_dim.w2(one_dim.rho_grid(5)) == pytest.approx(0.316, abs=5e-4)
    assert one_dim.w2(one_dim.rho_grid(5, last=0.002)) == pytest.approx(0.265, abs=5e-4)


def test_learning_from_questions_alone_finds_the_clock():
    few = one_dim.Settings(iterations=70, episodes=32, paths=8, steps=30, rate=0.1, critic_rate=0.1)
    found = one_dim.compare(few, [0], [2, 10])
    assert found["uniform_excess"] > 0.08
    assert found["excess"][0] < found["uniform_excess"] / 2
    learned, art, uniform = (
        v[1] for v in (found["learned"][0], found["fixed"]["optimum of ART"], found["fixed"]["uniform"])
    )
    assert abs(learned - art) < 0.4 * (uniform - art)


def test_what_is_learned_is_a_function_of_the_seed():
    few = one_dim.Settings(iterations=3, episodes=4, paths=2, steps=5)
    a, b, c = (one_dim.learn(one_dim.field, few, seed).warp.weights.tolist() for seed in (7, 7, 8))
    assert a == b != c


# --- measured on backbones ------------------------------------------------------------------------------------------


def test_densities_of_gaussian_images_are_the_closed_forms():
    """x = c sqrt(1 + s^2): |Q| = c (1 + s^2)^(-3/2), and Heun errs by (c s/2) (1 + s^2)^(-5/2) h^3.

    An error made at s arrives times (1 + s^2)^(-1/2).
    """
    path = trace(standard(), range(3), 160, LogClock(0.02, 40.0))
    found = densities(standard(), path, 4, 2)
    s = found.levels
    inside = (s > 0.1) & (s < 10)
    truth = {"euler": (s**2 * (1 + s**2) ** -1.5 / 2).sqrt(), "heun": (s**4 / 2 * (1 + s**2) ** -2.5) ** (1 / 3)}
    for solver, power in (("euler", 2), ("heun", 3)):
        shrink = (1 + s**2) ** (-0.5 / power)
        for values, exact in ((found.local, truth[solver]), (found.arriving, truth[solver] * shrink)):
            quotient = (values[solver] / exact)[inside]
            assert float(quotient.max() / quotient.min()) < 1.25  # c, and finite steps


def test_a_trace_solves_the_flow():
    path = trace(standard(), [5], 200, LogClock(0.002, 80.0))
    exact = path.states[0] / math.sqrt(1 + 80.0**2)
    assert float(rms(path.states[-1] - exact)) < 1e-3 * float(rms(exact))


def test_steps_fit_the_budget():
    net = standard()
    for budget in range(1, 20):
        for clock in (KarrasClock(), LearnedClock((80.0, 1.0, 0.01), (1.0, 2.0, 0.2))):
            steps = steps_within(net, budget, "heun", clock)
            assert function_evaluations(steps, "heun", net, clock) <= budget
            assert steps_within(net, budget, "euler", clock) == budget
    with pytest.raises(InputError, match="budget is 0"):
        steps_within(net, 0, "euler", KarrasClock())


def test_refining_is_never_worse_where_it_learns():
    net, seeds = standard(4), range(4)
    truth = sample(net, seeds, 100, "heun", KarrasClock())
    levels = torch.tensor([10.0, 1.0, 0.1], dtype=torch.float64)
    start = from_density(levels, torch.ones(3, dtype=torch.float64), 4, KarrasClock(), {"a": 1})
    assert start.levels[0] == pytest.approx(80) and start.levels[-1] == pytest.approx(0.002)
    net.calls = []

    def error(clock):
        net.calls.append(1)
        return float(rms(sample(net, seeds, 6, "euler", clock) - truth).mean())

    found = refine([start, *powers(start, (2.0,))], error, 20)
    assert len(net.calls) == 20
    assert error(found) < 0.9 * error(start)
    assert found.levels == start.levels and found.about == start.about


def test_small_helpers():
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(detail(x, x), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(detail(x / 2, x), torch.full((2,), 0.25, dtype=torch.float64))
    clock = LearnedClock((80.0, 1.0, 0.01), (1.0, 2.0, 0.2))
    own, other = clock.sigmas(5), short(clock, 5).sigmas(5)
    torch.testing.assert_close(own[[0, -2, -1]], other[[0, -2, -1]])
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 4.0, 6.0, 8.0])
    assert ratio(a, b) == pytest.approx((0.5, 0.5, 0.5))
    value, low, high = ratio(torch.tensor([1.0, 3.0, 1.0, 3.0]), torch.ones(4), groups=2)
    assert (value, low, high) == pytest.approx((2.0, 1.0, 3.0))  # two images with two masks each: two draws


def test_measuring_in_the_hole():
    net = standard()
    mask = torch.ones(4, 1, 8, 8)
    mask[..., 2:6, 2:6] = 0
    job = Job(torch.zeros(4, 1, 8, 8), mask, [0, 1, 0, 1], 2)
    clocks = {"same": {"heun": KarrasClock()}, "coarse": {"euler": KarrasClock(rho=1.0)}}
    filling = Filling(net, job, None, 16)
    found = measure(filling, clocks, [31])
    assert float(found["heun", 31, "same"].error.max()) == 0.0  # 16 steps are the fine solution
    assert float(found["euler", 31, "coarse"].error.min()) > 0.05
    assert found["heun", 31, "same"].psnr.tolist() == found["heun", 0, "fine"].psnr.tolist()
    own = learn_own(filling, "euler", 5, 4, 12, {"method": "x"})
    assert own.about == {"method": "x"}
    errors = [filling.within(5, "euler", c).error.mean() for c in (own, KarrasClock())]
    assert errors[0] < errors[1]


def test_images_to_learn_on_are_not_led_back_to_by_their_own_noise():
    job = training(standard(16), ["box", "half"], 2, 50)
    assert job.y.shape == (4, 1, 16, 16) and job.mask.shape == (4, 1, 16, 16) and job.masks == 2
    assert job.seeds == [10_050, 10_051] * 2 and torch.equal(job.y[:2], job.y[2:])


# --- the program ----------------------------------------------------------------------------------------------------


def config(tmp_path: Path, **changes):
    file = tmp_path / "tiny.safetensors"
    save_exact(file, standard())
    plan = {
        "seeds": 4, "fine": 40, "budgets": [6, 16], "low": 6, "paths": 2, "trace": 40, "stride": 4, "carried": 1,
        "refine_paths": 2, "refine_budgets": [6], "evaluations": 12,
    }  # fmt: skip
    learn = {"iterations": 2, "episodes": 2, "paths": 2, "steps": 4}
    c = {
        "out": str(tmp_path / "out"), "seed": 0, "parts": ["one_dim", "backbones"], "bars": {"w2": 10.0},
        "one_dim": {"seeds": 1, "steps": [2, 5], "learn": learn}, "backbones": {str(file): plan},
    }  # fmt: skip
    return {**c, **changes}


def test_the_program_writes_everything_and_goes_on_where_it_was(tmp_path):
    c = config(tmp_path)
    code = run(c)
    out = Path(c["out"])
    report = json.loads((out / "report.json").read_text())
    assert code == (1 if any(not r["ok"] for r in report["rows"]) else 0)
    assert sum("calls" in r["name"] for r in report["rows"]) == 2  # one budget below "low", two solvers
    assert (out / "figure.png").stat().st_size > 10_000
    numbers = json.loads((out / "results.json").read_text())
    (found,) = numbers["backbones"].values()
    table = (out / "results.csv").read_text().splitlines()
    assert len(table) == 1 + len(found["rows"]) == 1 + 2 * (7 + 4)
    for solver in ("euler", "heun"):
        assert load_clock(out / f"clock-tiny-{solver}-6.json").about["method"] == "refined"
        assert load_clock(out / f"clock-tiny-{solver}-local.json").about["method"] == "local"
    before = {p: p.stat().st_mtime_ns for p in (out / "parts").iterdir()}
    run(c)
    assert before == {p: p.stat().st_mtime_ns for p in (out / "parts").iterdir()}
    assert json.loads((out / "results.json").read_text()) == numbers


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"parts": []}, "parts is"),
        ({"parts": ["two_dim"]}, "parts is"),
        ({"backbones": {"mixture": {"seeds": 1}}}, "seeds is too small"),
        ({"parts": ["inpainting"], "inpainting": {"backbone": "x"}}, "inpainting.backbone is x"),
    ],
)
def test_refused(tmp_path, changes, text):
    with pytest.raises(InputError, match=text):
        run(config(tmp_path, **changes))


# --- sets of images -------------------------------------------------------------------------------------------------


def normals(n, seed, shift=0.0, scale=1.0, side=4):
    return shift + scale * torch.randn(n, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_kernel_distances_without_an_image_are_those_of_smaller_sets():
    real, made = normals(9, 0), normals(7, 1, 0.5, 1.2)
    found = quality.kernel_distance(real, made)
    for i in range(7):
        less = quality.kernel_distance(real, torch.cat([made[:i], made[i + 1 :]])).value
        assert float(found.without_made[i]) == pytest.approx(less, rel=1e-9)
    for j in range(9):
        less = quality.kernel_distance(torch.cat([real[:j], real[j + 1 :]]), made).value
        assert float(found.without_real[j]) == pytest.approx(less, rel=1e-9)


def test_the_kernel_distance_is_that_of_the_package():
    pytest.importorskip("torchmetrics", reason="needs the package torchmetrics (extra 'metrics')")
    real, made = normals(12, 2), normals(12, 3, -0.4)
    assert quality.kernel_distance(real, made).value == pytest.approx(kid(real, made, 1, 12)[0], rel=1e-5)


def test_standard_errors_are_the_deviation_over_repetitions():
    draws = [quality.kernel_distance(normals(60, 2 * k), normals(60, 2 * k + 1, 0.6)) for k in range(300)]
    spread = np.std([d.value for d in draws])
    assert np.mean([d.error for d in draws]) == pytest.approx(spread, rel=0.2)  # the deviation itself is known to 4 %


def test_what_two_sets_share_cancels_in_their_difference():
    real, made = normals(40, 5), normals(40, 6, 0.5)
    whole = quality.kernel_distance(real, made)
    assert (whole - whole).value == 0 and (whole - whole).error == 0
    near = quality.kernel_distance(real, made + 0.01 * normals(40, 7))
    assert 0 < (near - whole).error < 0.1 * whole.error


class Pixels:
    """A stand-in for the feature network: means of the channels and of their squares; counts images."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        assert images.dtype == torch.uint8
        self.seen += len(images)
        x = images.float().flatten(2) / 255
        return torch.cat([x.mean(2), x.square().mean(2)], 1)


def faces(folder, n=20):
    folder.mkdir()
    for i in range(n):
        image = torch.randint(0, 256, (3, 8, 8), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        write_png(folder / f"{i:02d}.png", image)
    return ImageSource(folder, 8)


def test_features_are_kept_and_a_larger_run_adds_to_them(tmp_path):
    net, source, count = GaussianBackbone((3, 8, 8), 0), faces(tmp_path / "real"), Pixels()
    solvers = {"euler": {"clock": "clock-edm-faces64-mini-euler", "budgets": [3]}}
    made = quality.samplers(net, solvers, fine=4)
    assert [s.key for s in made] == ["fine-4", "euler-3-karras", "euler-3-learned", "euler-3-uniform"]

    def features(n, folder, made=made):
        before = count.seen
        found, _ = quality.features_of_sets(net, made, source, count, n, tmp_path / folder, {})
        assert all(len(f) == n for f in found.values())
        return found, count.seen - before

    assert features(5, "a")[1] == 5 * 5
    grown, new = features(18, "a")
    assert new == 5 * 13
    assert features(18, "a")[1] == 0 and features(4, "a")[1] == 0
    whole, _ = features(18, "b")
    for key, value in whole.items():
        assert torch.allclose(grown[key], value, atol=5e-3)  # batches differ by rounding, once in a while a grey level
    assert torch.equal(whole["real"], Pixels()(source.stack(range(18))))
    other = quality.samplers(net, {"euler": {"clock": "clock-edm-faces64-mini", "budgets": [3]}}, fine=4)
    assert features(18, "a", other)[1] == 18  # another clock of that name: only its set is made again


def quality_config(tmp_path, **changes):
    save_exact(tmp_path / "colour.safetensors", GaussianBackbone((3, 8, 8), 0))
    euler = {"clock": "clock-edm-faces64-mini-euler", "budgets": [4]}
    c = {
        "n": 8, "data": str(tmp_path / "real"), "backbone": str(tmp_path / "colour.safetensors"),
        "inception": "package", "solvers": {"euler": euler}, "fine": 0,
    }  # fmt: skip
    return config(tmp_path, parts=["fid"], fid={**c, **changes})


def test_the_part_of_sets_runs_alone(tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics", reason="needs the package torchmetrics (extra 'metrics')")
    faces(tmp_path / "real")
    monkeypatch.setattr(quality, "inception", lambda path, device: Pixels())
    c = quality_config(tmp_path)
    assert run(c) == 0
    out = Path(c["out"])
    rows = json.loads((out / "results.json").read_text())["fid"]["rows"]
    assert [r["clock"] for r in rows] == ["karras", "learned", "uniform"] and {r["calls"] for r in rows} == {4}
    assert rows[0]["difference"] is None
    for row in rows[1:]:
        assert row["difference"] == pytest.approx(row["kid"] - rows[0]["kid"], abs=1e-6) and row["fid"] > 0
    table = (out / "fid.csv").read_text().splitlines()
    assert table[0].startswith("solver,budget,clock") and len(table) == 4
    assert len(json.loads((out / "report.json").read_text())["rows"]) == 3 * 2 + 2


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"n": 0}, "fid.n is 0 with 20 real images; expected 3 to 20"),
        ({"n": 21}, "fid.n is 21"),
        ({"data": None}, "fid.data is null"),
        ({"inception": None}, "fid.inception is null"),
        ({"solvers": {"rk4": {"clock": "clock-edm-faces64-mini", "budgets": [4]}}}, "fid.solvers names rk4"),
    ],
)
def test_sets_refused(tmp_path, changes, text):
    faces(tmp_path / "real")
    with pytest.raises(InputError, match=text):
        run(quality_config(tmp_path, **changes))
