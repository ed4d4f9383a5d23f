"""Options: kinds come from the defaults, names have bounds, nothing infinite or unprintable gets through."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aid_control.errors import InputError
from aid_control.options import check_options

OWN = {
    "out": "outputs/x", "data": "???", "n": None, "seed": 0, "steps": [18], "lr": 1e-3, "flag": True, "kimg": 100,
    "methods": None, "options": {}, "network": {"width": 4, "mult": [1, 2], "names": {"a": "b"}}, "runs": [["x", 1]],
}  # fmt: skip
GOOD = OWN | {"data": "faces.zip"}


def test_the_defaults_are_good():
    assert check_options(GOOD, OWN) == GOOD


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("out", 2024, "2024"), ("data", 1.5, "1.5"), ("n", 3, 3), ("seed", 2**63 - 1, 2**63 - 1), ("steps", 9, [9]),
        ("steps", [1, 2], [1, 2]), ("lr", 1, 1), ("flag", False, False), ("kimg", 0.064, 0.064),
        ("methods", ["a"], ["a"]), ("methods", "a", "a"), ("options", {"dps": {"zeta": 1}}, {"dps": {"zeta": 1}}),
        ("runs", [["y", 2, {}]], [["y", 2, {}]]),
    ],
)  # fmt: skip
def test_what_is_taken(name, value, becomes):
    assert check_options(GOOD | {name: value}, OWN)[name] == becomes


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("out", None, "out is None; expected a text"),
        ("out", ["a"], "out is .*expected a text"),
        ("out", True, "out is True; expected a text"),
        ("out", "a\nb", "printable"),
        ("out", "\x1b[2J", "printable"),
        ("out", "x" * 5000, "at most 4096"),
        ("n", "3", "n is '3'; expected a whole number"),
        ("n", 0, "n is 0; expected at least 1"),
        ("n", 1.0, "expected a whole number"),
        ("seed", -1, "seed is -1; expected at least 0"),
        ("seed", 2**63, "expected at most 63 bits"),
        pytest.param("seed", 10**5000, "a number of more than 30 digits", id="enormous"),
        ("seed", True, "seed is True; expected a whole number"),
        ("steps", [1, "a"], r"steps\[1\] is 'a'; expected a whole number"),
        ("steps", [1, 0], "steps is 0; expected at least 1"),
        ("steps", None, r"steps\[0\] is None"),
        ("steps", [[1]], r"steps\[0\] is \[1\]"),
        ("steps", [1] * 10_001, "10001 entries"),
        ("lr", math.nan, "lr is nan; expected a finite number"),
        ("lr", math.inf, "lr is inf"),
        ("lr", 0.0, "lr is 0.0; expected at least"),
        ("lr", "fast", "lr is 'fast'; expected a number"),
        ("flag", 1, "flag is 1; expected true or false"),
        ("methods", [math.nan], "methods is nan"),
        ("options", {"a": {"b": [1, math.inf]}}, "inf"),
        ("options", [], "expected a group of options"),
        ("network", {"width": "wide"}, r"network\.width is 'wide'"),
        ("network", {"names": {"a": 1.5, "c": "\0"}}, "printable"),
        ("network", 3, "network is 3; expected a group of options"),
    ],
)
def test_what_is_refused(name, value, message):
    with pytest.raises(InputError, match=message) as error:
        check_options(GOOD | {name: value}, OWN)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_unknown_and_missing_options():
    with pytest.raises(InputError, match=r"stepz: no such option; expected one of out, data"):
        check_options(GOOD | {"stepz": 1}, OWN)
    with pytest.raises(InputError, match="option seed is missing"):
        check_options({name: value for name, value in GOOD.items() if name != "seed"}, OWN)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def finite(value):
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@given(st.sampled_from(list(OWN)), json)
def test_whatever_is_given_is_refused_or_has_the_kind_of_the_default(name, value):
    try:
        found = check_options(GOOD | {name: value}, OWN)
    except InputError:
        return
    assert finite(found[name])
    assert OWN[name] is None or name == "kimg" or type(found[name]) is type(OWN[name]) or name == "lr"
