"""What the pages point to exists: files, tests, options; and a derivation shows the program that checks it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOP = [ROOT / "README.md", ROOT / "SECURITY.md"]
PAGES = sorted([*TOP, *(ROOT / "docs").rglob("*.md"), *(ROOT / "aid_control").rglob("*.md")])
DERIVATIONS = sorted(p for p in (ROOT / "docs" / "explanation").glob("*.md") if p.name != "index.md")
ROOTS = ("aid_control", "benchmarks", "docs", "examples", "tests")
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
MADE_ON_THE_WAY = {"docs/explanation/NAME.md", "docs/figures/NAME.py", "tests/docs/test_NAME.py"}  # placeholders


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """The page without its code blocks."""
    return re.sub(r"^( *)(```+).*?^\1\2\s*$", "", text, flags=re.M | re.S)


def references(text: str) -> list[str]:
    """Words of code spans that start like a path of the repository."""
    words = [w for span in SPAN.findall(prose(text)) for w in span.split()]
    return [w for w in words if w.split("/")[0] in ROOTS and "/" in w and w not in MADE_ON_THE_WAY]


def expanded(word: str) -> list[str]:
    """a/{b,c}.py -> a/b.py, a/c.py; a/* -> a."""
    match = re.fullmatch(r"(.*)\{([^}]*)\}(.*)", word)
    words = (
        [match.group(1) + choice.strip() + match.group(3) for choice in match.group(2).split(",")] if match else [word]
    )
    return [re.sub(r"/\*+$", "", w) for w in words]


def missing(word: str) -> str | None:
    path, *names = word.rstrip(".,;:").split("::")
    for one in expanded(path):
        if not (ROOT / one).exists():
            return f"{one} does not exist"
    for name in names:
        source = (ROOT / path).read_text()
        if not re.search(rf"^\s*(?:async def|def|class) {re.escape(name.split('[')[0])}\b", source, re.M):
            return f"{path} has no {name}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_and_tests_that_are_named_exist(page):
    found = [m for m in map(missing, references(page.read_text())) if m]
    assert not found, f"{name_of(page)}: {found}"


@pytest.mark.parametrize("page", DERIVATIONS, ids=name_of)
def test_a_derivation_shows_the_program_that_checks_it(page):
    text = page.read_text()
    program = f"tests/docs/test_{page.stem.replace('-', '_')}.py"
    assert "## Checked by" in text
    assert f'--8<-- "{program}"' in text and (ROOT / program).is_file()


@pytest.mark.parametrize("page", DERIVATIONS, ids=name_of)
def test_equations_that_a_test_names_are_on_the_page(page):
    """`test_equation_7_...` checks \\tag{7}: the number cannot be left over from an older version of the page."""
    program = ROOT / "tests" / "docs" / f"test_{page.stem.replace('-', '_')}.py"
    tags = set(re.findall(r"\\tag\{([^}]+)\}", page.read_text()))
    named = re.findall(r"def test_equations?_(\d+(?:_(?:and_|to_)?\d+)*)", program.read_text())
    numbers = {n for group in named for n in re.findall(r"\d+", group)}
    assert numbers, f"{program.name} names no equation"
    assert numbers <= tags, f"{sorted(numbers - tags)} are not on the page"


def test_pages_that_are_built_are_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text()
    left = [p for p in (ROOT / "docs").rglob("*.md") if p.relative_to(ROOT / "docs").as_posix() not in nav]
    assert not left


def test_every_module_is_in_the_reference():
    reference = "\n".join(p.read_text() for p in (ROOT / "docs" / "reference").glob("*.md"))
    listed = set(re.findall(r"^::: (\S+)$", reference, re.M))
    modules = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in (ROOT / "aid_control").rglob("*.py")
        if not p.name.startswith("__") and "__all__" in p.read_text()
    }
    assert not modules - listed, f"not in docs/reference: {sorted(modules - listed)}"
    existing = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "aid_control").rglob("*.py")}
    existing |= {name.removesuffix(".__init__") for name in existing}
    assert listed <= existing, f"there is no {sorted(listed - existing)}"


def test_the_map_is_made_of_the_docstrings():
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "map.py"), "check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("see `tests/symbolic.py`", 0),
        ("see `tests/docs/{test_hjb,test_site}.py` and `aid_control/lq/*`", 0),
        ("see `tests/docs/test_hjb.py::test_equation_9_solves_the_hjb_equation`", 0),
        ("see `tests/docs/test_hjb.py::test_nothing`", 1),
        ("see `aid_control/nothing.py`", 1),
        ("run `pytest tests/nothing.py`", 1),
        ("```text\naid_control/nothing.py `aid_control/nothing.py`\n```", 0),
    ],
)
def test_the_reader_finds_wrong_references(text, wrong):
    assert sum(missing(r) is not None for r in references(text)) == wrong
