"""The layers: the generic one knows neither of its two users, and nothing executes what it reads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "aid_control"
USERS = {"lq", "images", "experiments"}  # the last may use the other two
GENERIC = sorted(p for p in PACKAGE.rglob("*.py") if p.relative_to(PACKAGE).parts[0] not in USERS)


def relative_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(source: str, package: list[str]) -> set[str]:
    """Absolute names of everything a module of ``package`` imports, at any depth of the code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            # ``from . import images`` imports a module too
            names.update({base, *(f"{base}.{alias.name}" for alias in node.names)})
    return names


def reaches(path: Path, layer: str) -> set[str]:
    found = imports(path.read_text(), list(path.relative_to(ROOT).parent.parts))
    return {n for n in found if n == f"aid_control.{layer}" or n.startswith(f"aid_control.{layer}.")}


@pytest.mark.parametrize(
    "line",
    [
        "import aid_control.images.masks",
        "from aid_control import images",
        "from .. import images",
        "from ..images import masks",
        "def f():\n    from ..images.masks import make_mask",
    ],
)
def test_the_reader_sees_every_way_of_importing(line):
    assert any(n.startswith("aid_control.images") for n in imports(line, ["aid_control", "evaluation"]))


def test_the_generic_layer_was_found():
    names = {relative_name(p) for p in GENERIC}
    assert {"aid_control/trainer.py", "aid_control/noise.py"} <= names
    assert any("/evaluation/" in n for n in names)
    assert any("/improvement/" in n for n in names)


@pytest.mark.parametrize("path", GENERIC, ids=relative_name)
def test_generic_modules_know_no_problem(path):
    assert not reaches(path, "lq") | reaches(path, "images") | reaches(path, "experiments")


@pytest.mark.parametrize(
    ("here", "there"), [("lq", "images"), ("images", "lq"), ("lq", "experiments"), ("images", "experiments")]
)
def test_problems_do_not_know_each_other(here, there):
    bad = {relative_name(p): r for p in (PACKAGE / here).rglob("*.py") if (r := reaches(p, there))}
    assert not bad


def test_importing_the_package_loads_no_problem():
    code = (
        "import sys, aid_control\n"
        "print([m for m in sys.modules if m.startswith(('aid_control.images', 'aid_control.lq'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


# Methods such as ``net.eval()`` are no code execution; a bare ``eval(...)`` is.
FORBIDDEN = [r"pickle\.load", r"weights_only\s*=\s*False", r"(?<![\w.])exec\(", r"(?<![\w.])eval\("]


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_nothing_executes_what_it_reads(pattern):
    files = [p for folder in ("aid_control", "examples") for p in (ROOT / folder).rglob("*.py")]
    assert files
    hits = [
        f"{relative_name(p)}:{number}: {line.strip()}"
        for p in files
        for number, line in enumerate(p.read_text().splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not hits
