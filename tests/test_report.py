"""Reports: what a row says, that nothing that was not measured passes, and what is written and returned."""

import json
import math

import pytest

from aid_control.report import Report


def test_rows_by_comparison():
    report = Report()
    assert report.below("a", 0.5, 0.5) and not report.below("b", 0.51, 0.5)
    assert report.above("c", 3, 3) and not report.above("d", 2.9, 3)
    assert report.near("e", 1.1, 1.0, 0.11) and report.near("f", 0.9, 1.0, 0.11) and not report.near("g", 1.2, 1.0, 0.1)
    assert [row["ok"] for row in report.rows] == [True, False, True, False, True, True, False]
    assert [row["bar"] for row in report.rows] == [
        "<= 0.5", "<= 0.5", ">= 3", ">= 3", "1 +- 0.11", "1 +- 0.11", "1 +- 0.1",
    ]  # fmt: skip
    assert [row["value"] for row in report.rows] == [0.5, 0.51, 3, 2.9, 1.1, 0.9, 1.2]
    assert report.failed == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_fails(value):
    """Whatever the comparison says: an error of -inf is below every bar."""
    report = Report()
    for row in (
        report.below("a", value, 1.0),
        report.above("b", value, 1.0),
        report.near("c", value, 1.0, math.inf),
        report.add("d", value, "anything", True),
    ):
        assert row is False
    assert report.failed == 4


def test_a_row_of_ones_own():
    report = Report()
    assert report.add("slope", -0.5, "in [-0.6, -0.4]", True) is True
    assert report.add("slope", -0.5, "in [-0.4, 0]", False) is False
    assert report.rows[0] == {"name": "slope", "value": -0.5, "bar": "in [-0.6, -0.4]", "ok": True}


def test_numbers_of_other_libraries():
    """numpy and torch numbers become JSON."""
    import numpy as np
    import torch

    report = Report()
    report.below("numpy", np.float32(0.5), 1.0)
    report.below("torch", torch.tensor(0.25), 1.0)
    assert [type(row["value"]) for row in report.rows] == [float, float]
    assert [type(row["ok"]) for row in report.rows] == [bool, bool]
    json.dumps(report.rows)


def test_a_report_of_success(tmp_path, capsys):
    report = Report(seed=3, command="python x.py")
    report.below("error", 0.1234567, 0.5)
    assert report.finish(tmp_path / "new" / "folder") == 0
    out = capsys.readouterr().out
    assert "1 of 1 rows hold" in out and report.table() in out
    written = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert written["rows"] == [{"name": "error", "value": 0.1234567, "bar": "<= 0.5", "ok": True}]
    assert written["about"]["seed"] == 3 and written["about"]["command"] == "python x.py"
    assert {"python", "aid-control", "torch", "numpy", "scipy", "torchsde"} <= set(written["about"])


def test_a_report_of_failure(tmp_path, capsys):
    report = Report()
    report.below("good", 0.1, 0.5)
    report.below("bad", 0.6, 0.5)
    report.below("broken", math.nan, 0.5)
    report.above("endless", math.inf, 0.5)
    assert report.finish(tmp_path) == 1
    assert "1 of 4 rows hold" in capsys.readouterr().out
    text = (tmp_path / "report.json").read_text()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    rows = json.loads(text, parse_constant=refuse)["rows"]
    assert [row["value"] for row in rows] == [0.1, 0.6, None, None]
    assert [row["ok"] for row in rows] == [True, False, False, False]
    # the report itself keeps what was seen
    assert math.isnan(report.rows[2]["value"])


def test_an_empty_report_says_so(tmp_path, capsys):
    assert Report().finish(tmp_path) == 0
    assert "0 of 0 rows hold" in capsys.readouterr().out


def test_the_table_is_aligned():
    report = Report()
    report.below("short", 0.5, 1.0)
    report.above("a much longer name of what was measured", -123456.789, 1e-7)
    report.near("x", math.nan, 2.0, 0.5)
    lines = report.table().split("\n")
    assert len(lines) == 4
    head = lines[0]
    names, bars = head.index("what"), head.index("bar")
    ends = head.index("value") + len("value")
    assert [line[:4].strip() for line in lines] == ["", "ok", "FAIL", "FAIL"]
    for line, row in zip(lines[1:], report.rows, strict=True):
        assert line[names:].startswith(row["name"])
        assert line[bars:] == row["bar"]
        assert line[ends - 1] != " " and line[ends:bars] == "  "
    assert [line[:ends].split()[-1] for line in lines[1:]] == ["0.5", "-1.235e+05", "nan"]
    assert all(line == line.rstrip() for line in lines)


def test_finish_overwrites(tmp_path, capsys):
    first, second = Report(), Report()
    first.below("a", 2, 1)
    second.below("a", 0, 1)
    assert (first.finish(tmp_path), second.finish(tmp_path)) == (1, 0)
    assert json.loads((tmp_path / "report.json").read_text())["rows"][0]["ok"] is True
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
