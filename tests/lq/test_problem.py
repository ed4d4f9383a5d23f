"""Linear-quadratic problems: what the rollout sees, batches against singles, and everything that must be refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid_control.hjb import in_control
from aid_control.lq import LQProblem

F64 = torch.float64
SHAPES = {
    "A": "dd", "B": "dm", "b": "d", "C": "ndd", "D": "ndm", "s": "nd",
    "Q": "dd", "R": "mm", "N": "dm", "q": "d", "r": "m", "G": "dd", "g": "d",
}  # fmt: skip
RUNNING = [name for name in SHAPES if name not in "Gg"]


def draw(sizes, batch=None, seed=0):
    """Random coefficients, symmetric where they must be."""
    gen = torch.Generator().manual_seed(seed)
    lead = () if batch is None else (batch,)
    out = {k: torch.randn(*lead, *(sizes[c] for c in v), generator=gen, dtype=F64) for k, v in SHAPES.items()}
    return out | {k: out[k] + out[k].mT for k in "QRG"}


def randn(*shape, seed=7):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def one():
    return draw({"d": 3, "m": 2, "n": 2})


T0 = torch.tensor(0.3, dtype=F64)


# --- What the formulas say -------------------------------------------------------------------------------------------


def by_loops(c, x, u, dw):
    """Velocity, stage cost, noise and terminal cost of one row, written out."""
    velocity = c["A"] @ x + c["B"] @ u + c["b"]
    stage = x @ c["Q"] @ x / 2 + x @ c["N"] @ u + u @ c["R"] @ u / 2 + c["q"] @ x + c["r"] @ u
    columns = [c["C"][j] @ x + c["D"][j] @ u + c["s"][j] for j in range(len(dw))]
    noise = sum(col * w for col, w in zip(columns, dw, strict=True))
    return velocity, stage, torch.stack(columns, dim=1), noise, x @ c["G"] @ x / 2 + c["g"] @ x


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    d=st.integers(1, 4), m=st.integers(1, 3), n=st.sampled_from([1, 2, 3, 9]), seed=st.integers(0, 10**6),
    zero=st.sets(st.sampled_from(["b", "C", "D", "N", "q", "r", "g", "Q", "R", "G"])),
)  # fmt: skip
def test_every_term_is_what_the_docstring_says(d, m, n, seed, zero):
    """Terms that are left out are skipped by the code: every subset must still give the full formula."""
    full = draw({"d": d, "m": m, "n": n}, seed=seed)
    c = {k: torch.zeros_like(v) if k in zero else v for k, v in full.items()}
    problem = LQProblem(**{k: v for k, v in c.items() if k not in zero})
    assert (problem.state_dim, problem.control_dim, problem.columns, problem.batch) == (d, m, n, None)
    x, u, dw = randn(5, d), randn(5, m, seed=8), randn(5, n, seed=9)
    rows = [by_loops(c, *z) for z in zip(x, u, dw, strict=True)]
    velocity, stage, columns, noise, terminal = (torch.stack(a) for a in zip(*rows, strict=True))
    assert torch.allclose(problem.velocity(T0, x, u, None, None), velocity)
    assert torch.allclose(problem.drift(T0, x, None, None) + problem.push(T0, x, u), velocity)
    assert torch.allclose(problem.stage_cost(T0, x, u, None), stage)
    assert torch.allclose(problem.diffusion(T0, x, u), columns)
    assert torch.allclose(problem.diffuse(T0, x, u, dw), noise)
    assert torch.allclose(problem.terminal_cost(x), terminal)
    assert problem.noise == "columns" and problem.noise_dim(x) == (n,)


def test_stage_cost_is_running_cost_plus_control_cost():
    problem = LQProblem(**one())
    x, u = randn(6, 3), randn(6, 2, seed=8)
    running, control = problem.running_cost(T0, x, None), problem.control_cost(T0, x, u)
    assert torch.allclose(running + control, problem.stage_cost(T0, x, u, None))
    assert torch.allclose(running, problem.stage_cost(T0, x, torch.zeros_like(u), None))
    assert problem.control_cost(T0, x, torch.zeros_like(u)).abs().max() < 1e-14


def test_diffuse_is_the_diffusion_times_the_increment():
    for drop in ("", "C", "D", "CD"):  # state- and control-free noise takes another way through the code
        problem = LQProblem(**{k: v for k, v in one().items() if k not in drop})
        x, u, dw = randn(6, 3), randn(6, 2, seed=8), randn(6, 2, seed=9)
        sigma = problem.diffusion(T0, x, u)
        assert sigma.shape == (6, 3, 2)
        assert torch.allclose(problem.diffuse(T0, x, u, dw), torch.einsum("bdn,bn->bd", sigma, dw))


def test_pull_is_the_adjoint_of_push():
    for batch in (None, 3):
        problem = LQProblem(**draw({"d": 3, "m": 2, "n": 1}, batch))
        x, u, p = randn(6, 3), randn(6, 2, seed=8), randn(6, 3, seed=9)
        left, right = (p * problem.push(T0, x, u)).sum(1), (problem.pull(T0, x, p) * u).sum(1)
        assert torch.allclose(left, right) and left.abs().min() > 1e-3


@pytest.mark.parametrize("batch", [None, 3])
def test_the_response_minimises_the_hamiltonian(batch):
    """-R^{-1}(B'p + N'x + r), where the noise is free of the control; otherwise it needs the value's Hessian."""
    c = draw({"d": 3, "m": 2, "n": 2}, batch)
    c["R"] = c["R"] @ c["R"].mT + torch.eye(2, dtype=F64)
    x, p = randn(6, 3), randn(6, 3, seed=8)
    with pytest.raises(ValueError, match="^D is not zero"):
        LQProblem(**c).response(T0, x, p)
    problem = LQProblem(**{k: v for k, v in c.items() if k != "D"})
    wanted = in_control(problem, T0, x, p, torch.zeros(6, 3, 3, dtype=F64), 2).minimiser()
    assert torch.allclose(problem.response(T0, x, p), wanted)


def test_exploration_adds_the_variance_of_the_sampled_noise():
    """Cov(sum_j D_j F eps dW^j) / dt = sum_j D_j F F' D_j', and the cost tr(R F F') / 2."""
    c = one()
    problem, x = LQProblem(**c), randn(4, 3)
    lower = torch.tensor([[0.5, 0.0], [-0.3, 0.8]], dtype=F64)
    for factor in (torch.tensor(0.7, dtype=F64), lower):
        full = factor * torch.eye(2, dtype=F64) if factor.dim() == 0 else factor
        columns = problem.exploration_columns(T0, x, factor)
        assert columns.shape == (4, 3, 4)
        want = sum(c["D"][j] @ full @ full.mT @ c["D"][j].mT for j in range(2))
        assert torch.allclose(columns @ columns.mT, want.expand(4, 3, 3))
        covariance = factor**2 if factor.dim() == 0 else full @ full.mT
        assert problem.exploration_cost(T0, covariance, 2).item() == pytest.approx(
            (c["R"] @ full @ full.mT).trace() / 2
        )
    assert LQProblem(**{k: v for k, v in c.items() if k != "D"}).exploration_columns(T0, x, lower) is None


def test_without_noise_there_is_no_diffusion():
    problem = LQProblem(1.0, 1.0, R=1.0)
    x = randn(2, 1)
    assert problem.noise == "none" and problem.diffusion(T0, x, x) is None
    # noise that is given but zero is no noise either
    assert LQProblem(1.0, 1.0, R=1.0, C=[[[0.0]]], s=[[0.0]]).noise == "none"


@pytest.mark.parametrize("kind", ["number", "list", "array", "float32", "function"])
def test_every_way_to_write_a_coefficient(kind):
    ways = {
        "number": 2.0, "list": [[2]], "array": np.array([[2.0]]), "float32": torch.tensor([[2.0]]),
        "function": lambda t: 2,
    }  # fmt: skip
    problem = LQProblem(ways[kind], 1, R=1)
    assert torch.equal(problem.at("A", 0.5), torch.tensor([[2.0]], dtype=F64))
    assert problem.time_varying == (kind == "function")


def test_a_number_stands_for_a_one_by_one_of_any_kind():
    problem = LQProblem(1.0, 2.0, 3.0, 4.0, C=5.0, D=6.0, s=7.0, N=8.0, b=9.0, q=10.0, r=11.0, G=12.0, g=13.0)
    x, u = torch.ones(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    assert problem.velocity(T0, x, u, None, None).item() == 1 + 2 + 9
    assert problem.diffusion(T0, x, u).item() == 5 + 6 + 7
    assert problem.stage_cost(T0, x, u, None).item() == 1.5 + 2 + 8 + 10 + 11
    assert problem.terminal_cost(x).item() == 6 + 13


# --- Batches and time ------------------------------------------------------------------------------------------------


def everything(problem, x, u, dw, factor):
    columns = problem.exploration_columns(T0, x, factor)
    return {
        "velocity": problem.velocity(T0, x, u, None, None),
        "drift": problem.drift(T0, x, None, None),
        "push": problem.push(T0, x, u),
        "pull": problem.pull(T0, x, x),
        "stage": problem.stage_cost(T0, x, u, None),
        "running": problem.running_cost(T0, x, None),
        "diffuse": problem.diffuse(T0, x, u, dw),
        "diffusion": problem.diffusion(T0, x, u),
        "columns": columns.expand(len(x), -1, -1),
        "terminal": problem.terminal_cost(x),
    }


@pytest.mark.parametrize("shared", [(), ("A", "D", "G"), ("B", "C", "s", "Q", "R", "g"), tuple("BCDsQRNqrGgb")])
@pytest.mark.parametrize("moving", [False, True])
def test_a_batch_of_problems_is_its_single_problems(shared, moving):
    """Coefficients may be batched or shared in any mixture, constant or functions of time."""
    groups, rows, sizes = 3, 2, {"d": 3, "m": 2, "n": 2}
    c = draw(sizes, groups) | {k: v for k, v in draw(sizes, seed=1).items() if k in shared}

    def write(value, name):
        return (lambda t: (1 + t) * value) if moving and name not in "Gg" else value

    x, u, dw = randn(groups * rows, 3), randn(groups * rows, 2, seed=8), randn(groups * rows, 2, seed=9)
    factors = torch.tril(randn(groups, 2, 2, seed=10))
    batch = LQProblem(**{k: write(v, k) for k, v in c.items()})
    assert batch.batch == groups
    together = everything(batch, x, u, dw, factors)
    for i in range(groups):
        mine = slice(i * rows, (i + 1) * rows)
        single = LQProblem(**{k: write(v if k in shared else v[i], k) for k, v in c.items()})
        alone = everything(single, x[mine], u[mine], dw[mine], factors[i])
        for name, value in alone.items():
            assert torch.allclose(together[name][mine], value), name
    cost = batch.exploration_cost(T0, factors @ factors.mT, 2)
    weights = batch.at("R", T0).expand(groups, 2, 2)
    assert torch.allclose(
        cost, torch.stack([(r @ f @ f.mT).trace() / 2 for r, f in zip(weights, factors, strict=True)])
    )


def test_a_policy_of_each_seed_on_one_problem():
    """A stack of covariances on a single problem: the exploration columns belong to the groups of rows."""
    problem, x, factors = LQProblem(**one()), randn(6, 3), torch.tril(randn(3, 2, 2, seed=3))
    columns = problem.exploration_columns(T0, x, factors)
    for i in range(6):
        assert torch.allclose(columns[i], problem.exploration_columns(T0, x[:1], factors[i // 2])[0])


def test_a_batch_of_one_is_a_batch():
    problem = LQProblem(torch.ones(1, 1, 1), 1.0, R=1.0)
    assert problem.batch == 1 and problem.coefficients(0.0)["B"].shape == (1, 1, 1)


def test_a_stack_of_one_is_shared_by_the_batch():
    c = draw({"d": 3, "m": 2, "n": 2}, 3)
    shared = c | {"A": c["A"][:1], "b": c["b"][:1], "s": c["s"][:1], "G": c["G"][:1]}
    plain = c | {k: shared[k][0] for k in ("A", "b", "s", "G")}
    x, u, dw, factor = randn(6, 3), randn(6, 2, seed=8), randn(6, 2, seed=9), torch.tensor(0.7, dtype=F64)
    together = everything(LQProblem(**shared), x, u, dw, factor)
    for name, value in everything(LQProblem(**plain), x, u, dw, factor).items():
        assert torch.allclose(together[name], value), name


def test_coefficients_have_a_leading_batch_dimension():
    for batch in (None, 4):
        problem = LQProblem(**draw({"d": 3, "m": 2, "n": 2}, batch) | {"b": torch.zeros(3)})
        shapes = {k: tuple(v.shape[1:]) for k, v in problem.coefficients(0.2).items()}
        assert shapes == {k: tuple({"d": 3, "m": 2, "n": 2}[c] for c in v) for k, v in SHAPES.items()}
        assert {v.shape[0] for v in problem.coefficients(0.2).values()} == {batch or 1}


@pytest.mark.parametrize("name", RUNNING)
def test_each_running_coefficient_may_vary_in_time(name):
    c = one()
    wave = lambda t: math.cos(t) * c[name]  # noqa: E731
    moving = LQProblem(**c | {name: wave})
    assert moving.time_varying
    x, u, dw, factor = randn(5, 3), randn(5, 2, seed=8), randn(5, 2, seed=9), torch.tensor(0.7, dtype=F64)
    seen = []
    for t in (0.0, 0.3, 0.9):
        frozen = LQProblem(**c | {name: wave(t)})
        at = torch.tensor(t, dtype=F64)
        seen.append((moving.velocity(at, x, u, None, None), moving.stage_cost(at, x, u, None)))
        assert torch.allclose(seen[-1][0], frozen.velocity(at, x, u, None, None))
        assert torch.allclose(seen[-1][1], frozen.stage_cost(at, x, u, None))
        assert torch.allclose(moving.diffuse(at, x, u, dw), frozen.diffuse(at, x, u, dw))
        assert torch.allclose(moving.exploration_columns(at, x, factor), frozen.exploration_columns(at, x, factor))
        assert torch.allclose(moving.exploration_cost(at, factor, 2), frozen.exploration_cost(at, factor, 2))


def test_a_coefficient_that_is_zero_at_first_still_counts():
    """sin(t) and t are zero at t = 0, where the problem looks at them."""
    x = torch.ones(1, 1, dtype=F64)
    problem = LQProblem(0.0, 0.0, s=lambda t: [[t]], b=lambda t: [t], q=lambda t: [math.sin(t)])
    assert problem.noise == "columns"
    assert problem.diffuse(T0, x, x, x).item() == pytest.approx(0.3)
    assert problem.velocity(T0, x, x, None, None).item() == pytest.approx(0.3)
    assert problem.stage_cost(T0, x, x, None).item() == pytest.approx(math.sin(0.3))


def test_the_problem_keeps_what_it_was_given():
    """Changing the caller's array afterwards must not change the problem (half of it, at that: some is cached)."""
    for a in (np.ones((1, 1)), torch.ones(1, 1, dtype=F64)):
        problem = LQProblem(a, 1.0, R=1.0)
        a[0, 0] = 5.0
        assert problem.at("A", 0.0).item() == 1.0


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("batch", [None, 2])
def test_a_shape_that_does_not_fit_is_named(name, batch):
    c = draw({"d": 3, "m": 2, "n": 2}, batch)
    shape = c[name].shape
    bad = torch.zeros(*shape[:-1], shape[-1] + 2, dtype=F64)
    with pytest.raises(ValueError, match="expected") as error:
        LQProblem(**c | {name: bad})
    # a wrong width of A or B is the number of states or controls itself: then what they fit with is named
    named = name not in "AB"
    assert not named or str(error.value).startswith(f"{name} has shape {tuple(bad.shape)}; expected ")
    if named and batch is None:
        assert str(error.value).endswith(f"expected {tuple(shape)}")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"A": torch.zeros(2, 3)}, r"^A has shape \(2, 3\); expected \(3, 3\)$"),
        ({"A": torch.zeros(3)}, r"^A has shape \(3,\); expected \(d, d\)$"),
        ({"A": torch.zeros(2, 2, 3, 3)}, r"^A has shape \(2, 2, 3, 3\); expected \(d, d\)$"),
        ({"B": torch.zeros(2, 2)}, r"^B has shape \(2, 2\); expected \(3, 2\)$"),
        ({"B": torch.zeros(3)}, r"^B has shape \(3,\); expected \(d, m\)$"),
        ({"C": torch.zeros(3, 3)}, r"^C has shape \(3, 3\); expected \(2, 3, 3\)$"),  # the column's index is missing
        ({"D": torch.zeros(1, 3, 2)}, r"^D has shape \(1, 3, 2\); expected \(2, 3, 2\)$"),
        ({"s": torch.zeros(3)}, r"^s has shape \(3,\); expected \(2, 3\)$"),
        ({"Q": torch.zeros(3)}, r"^Q has shape \(3,\); expected \(3, 3\)$"),
        ({"Q": 1.0}, r"^Q has shape \(1, 1\); expected \(3, 3\)$"),
        ({"q": torch.zeros(3, 1)}, r"^q has shape \(3, 1\)"),
    ],
)  # fmt: skip
def test_shapes_by_hand(bad, message):
    with pytest.raises(ValueError, match=message):
        LQProblem(**one() | bad)


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(name, value):
    c = one()
    bad = c[name].clone()
    bad[(0,) * bad.dim()] = value
    with pytest.raises(ValueError, match=rf"^{name} has shape .* not finite; expected numbers"):
        LQProblem(**c | {name: bad})


@pytest.mark.parametrize("name", ["Q", "R", "G"])
def test_an_asymmetric_weight_is_refused(name):
    c = one()
    bad = c[name].clone()
    bad[0, 1] += 1e-6
    with pytest.raises(ValueError, match=rf"^{name} has shape .* not symmetric; expected {name} = {name}'"):
        LQProblem(**c | {name: bad})
    bad[0, 1] = bad[1, 0] * (1 + 1e-14)  # rounding is not asymmetry
    LQProblem(**c | {name: bad})


def test_one_asymmetric_problem_of_a_batch_is_refused():
    c = draw({"d": 3, "m": 2, "n": 1}, 4)
    c["Q"][2, 0, 1] += 1
    with pytest.raises(ValueError, match=r"^Q has shape \(4, 3, 3\) and is not symmetric"):
        LQProblem(**c)


@pytest.mark.parametrize("value", [-1e-9, -1.0, math.nan, -math.inf])
def test_a_discount_below_zero_is_refused(value):
    with pytest.raises(ValueError, match=rf"^discount is {value}; expected rho >= 0"):
        LQProblem(1.0, 1.0, R=1.0, discount=value)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, -math.inf])
def test_a_horizon_that_is_not_positive_is_refused(value):
    with pytest.raises(ValueError, match=rf"^horizon is {value}; expected T > 0"):
        LQProblem(1.0, 1.0, R=1.0, horizon=value)


def test_an_infinite_discount_is_refused():
    with pytest.raises(ValueError, match="discount is inf"):
        LQProblem(1.0, 1.0, R=1.0, discount=math.inf)


@pytest.mark.parametrize("name", ["discount", "horizon"])
def test_a_discount_or_horizon_that_is_no_number_is_refused(name):
    with pytest.raises(ValueError, match=name):
        LQProblem(1.0, 1.0, R=1.0, **{name: "1"})


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("value", ["one", object(), [["x"]], {"a": 1}], ids=["str", "object", "list", "dict"])
def test_what_is_no_number_is_refused(name, value):
    with pytest.raises(ValueError, match=rf"^{name} is not numeric"):
        LQProblem(**one() | {name: value})


def test_ragged_lists_are_refused():
    with pytest.raises(ValueError, match=r"^A is not numeric: .*"):
        LQProblem([[1.0, 2.0], [3.0]], [[1.0], [1.0]])


@pytest.mark.filterwarnings("ignore:Casting complex")
def test_complex_coefficients_are_refused():
    """The imaginary part must not be dropped silently."""
    with pytest.raises(ValueError, match="^A "):
        LQProblem(torch.full((1, 1), 1 + 2j), 1.0, R=1.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"A": torch.zeros(0, 0), "B": torch.zeros(0, 1)},
        {"A": torch.zeros(1, 1), "B": torch.zeros(1, 0)},
        {"A": torch.zeros(0, 1, 1), "B": torch.zeros(0, 1, 1)},
    ],
    ids=["states", "controls", "problems"],
)
def test_problems_without_states_or_controls_are_refused(bad):
    with pytest.raises(ValueError, match="expected"):
        LQProblem(**bad)


@pytest.mark.parametrize("name", ["A", "B"])
def test_a_missing_matrix_is_named(name):
    with pytest.raises(ValueError, match=rf"^{name} is missing"):
        LQProblem(**{"A": 1.0, "B": 1.0} | {name: None})


def test_two_batch_sizes_are_refused():
    c = draw({"d": 3, "m": 2, "n": 2}, 2) | {"b": torch.zeros(5, 3)}
    with pytest.raises(ValueError, match=r"batches of \[2, 5\]; expected one batch size"):
        LQProblem(**c)


@pytest.mark.parametrize("name", ["G", "g"])
def test_a_terminal_weight_is_no_function_of_time(name):
    with pytest.raises(ValueError, match=rf"^{name} is a function of time; expected a constant"):
        LQProblem(1.0, 1.0, R=1.0, **{name: lambda t: 1.0})


@pytest.mark.parametrize(
    ("later", "message"),
    [
        (torch.zeros(3, 2), r"^A has shape \(3, 2\); expected \(3, 3\)"),
        (torch.zeros(2, 3, 3), r"^A has shape \(2, 3, 3\); expected \(3, 3\)"),
        (torch.full((3, 3), math.nan), "^A has shape .* not finite"),
        ("x", "^A is not numeric"),
    ],
)
def test_a_function_of_time_is_checked_at_every_time(later, message):
    problem = LQProblem(**one() | {"A": lambda t: torch.zeros(3, 3) if t < 0.5 else later})
    problem.at("A", 0.4)
    x, u = randn(2, 3), randn(2, 2)
    for call in (
        lambda t: problem.at("A", t),
        lambda t: problem.coefficients(t),
        lambda t: problem.velocity(t, x, u, None, None),
    ):
        with pytest.raises(ValueError, match=message):
            call(torch.tensor(0.6))


def test_a_weight_that_becomes_asymmetric_is_refused():
    problem = LQProblem(**one() | {"Q": lambda t: [[1.0, t, 0], [0, 1, 0], [0, 0, 1]]})
    with pytest.raises(ValueError, match="^Q has shape .* not symmetric"):
        problem.at("Q", 0.5)


def test_rows_that_do_not_fit_the_batch_are_refused():
    problem = LQProblem(**draw({"d": 3, "m": 2, "n": 2}, 4))
    x, u = randn(6, 3), randn(6, 2)
    for call in (
        lambda: problem.velocity(T0, x, u, None, None),
        lambda: problem.stage_cost(T0, x, u, None),
        lambda: problem.diffusion(T0, x, u),
        lambda: problem.terminal_cost(x),
    ):
        with pytest.raises(ValueError, match="expected a multiple of 4"):
            call()
