"""Every figure of the documentation is drawn by a program of docs/figures, and its command stands under it."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ROOT / "docs" / "figures"
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
FROM_RUNS = set(runpy.run_path(str(FIGURES / "from_runs.py"))["FIGURES"])
QUICK = sorted(p.stem for p in FIGURES.glob("*.py") if p.name not in {"from_runs.py", "style.py"})
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_pictures_have_words_a_program_and_its_command(page):
    lines = page.read_text().splitlines()
    for i, line in enumerate(lines):
        for words, target in IMAGE.findall(line):
            path = (page.parent / target).resolve()
            assert path.is_file() and path.parent == FIGURES, f"{target} is not a picture of docs/figures"
            assert words.strip(), f"{target} has no text for those who do not see it"
            below = "\n".join(lines[i + 1 : i + 16])
            command = f"from_runs.py {path.stem}" if path.stem in FROM_RUNS else f"docs/figures/{path.stem}.py"
            assert command in below, f"{name_of(page)}: the command of {target} is not under it"


def test_every_picture_has_a_program_and_a_reader():
    drawn = {p.stem for p in FIGURES.glob("*.png")}
    assert drawn == FROM_RUNS | set(QUICK)
    shown = {Path(target).stem for page in PAGES for _, target in IMAGE.findall(page.read_text())}
    assert drawn <= shown, f"no page shows {sorted(drawn - shown)}"


@pytest.mark.parametrize("name", QUICK)
def test_quick_figures_are_drawn_again(name, tmp_path):
    """The picture in the repository is what the program draws now, up to fonts and rounding."""
    command = [sys.executable, str(FIGURES / f"{name}.py"), f"to={tmp_path}"]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / f"{name}.png") as new, Image.open(FIGURES / f"{name}.png") as old:
        assert new.size == old.size
        difference = np.abs(np.asarray(new.convert("L"), float) - np.asarray(old.convert("L"), float))
    assert difference.mean() < 2.0  # grey levels of 255: the fonts of another machine move edges, not curves


def test_an_unknown_figure_is_refused_in_a_sentence():
    command = [sys.executable, str(FIGURES / "from_runs.py"), "nothing"]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: which figure?") and done.stderr.count("\n") == 1
