"""Every code block of the documentation runs.

By its language a block is

- ``python``: executed, one namespace a page, in an empty folder that has ``examples``, ``benchmarks``, ``docs`` in it;
- ``bash``: run by bash there, stopping at the first failure;
- ``console``: a long command, checked instead of run: the program exists and its configuration accepts the options;
- ``yaml``, ``toml``: parsed;
- ``py`` (a program of the tests shown on a page) and ``text`` (what a program printed): shown.

Anything else is a mistake.  A placeholder such as TRAIN.zip stands for a file of the reader.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from sybil import Document, Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "aid_control").rglob("*.md")])
LANGUAGES = {"python", "bash", "console", "yaml", "toml", "py", "text"}
TIME_LIMIT = 300  # seconds for a bash block


def run_bash(example: Example) -> None:
    here = Path.cwd()
    (here / ".bin").mkdir(exist_ok=True)
    for name in ("python", "python3"):
        (here / ".bin" / name).unlink(missing_ok=True)
        (here / ".bin" / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (here / ".bin" / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{here / '.bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example.parsed],
        env=environment, cwd=here, capture_output=True, text=True, timeout=TIME_LIMIT,
    )  # fmt: skip
    assert done.returncode == 0, f"{example.parsed}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def commands(text: str) -> list[list[str]]:
    """The words of every command: continued lines joined; comments, prompts and variables before it removed."""
    lines = text.replace("\\\n", " ").splitlines()
    words = [shlex.split(line.removeprefix("$ "), comments=True) for line in lines]
    for line in words:
        while line and re.fullmatch(r"[A-Z_]+=\S*", line[0]):
            line.pop(0)
    return [line for line in words if line]


def check_composes(script: Path, options: list[str]) -> None:
    """The script's own configuration accepts the options (``a=1,2`` of a sweep: each choice)."""
    found = re.search(r'program\("conf/(\w+)"', script.read_text())
    name = found.group(1) if found else "experiment/" + next(o[5:] for o in options if o.startswith("name="))
    folder, _, name = name.rpartition("/")
    flags = {"-m", "--multirun"} & set(options)
    plain = [
        re.sub(r"^([\w./@]+)=([^\[\]{}'\"]*?),.*$", r"\1=\2", o) if flags else o for o in options if o not in flags
    ]
    with initialize_config_dir(str(ROOT / "examples" / "conf" / folder), version_base=None):
        compose(name, overrides=plain)


def check_test(argument: str) -> None:
    """A path of the tests, or path::name."""
    path, *names = argument.split("::")
    assert (ROOT / path).exists(), f"{path} does not exist"
    for name in names:
        source = (ROOT / path).read_text()
        assert re.search(rf"^\s*(?:def|class) {re.escape(name.split('[')[0])}\b", source, re.M), (
            f"{argument} is not there"
        )


def check_figure(script: Path, name: str, options: list[str]) -> None:
    """The options of a figure that a program draws are that program's."""
    program, own, _ = runpy.run_path(str(script))["FIGURES"][name]
    check_composes(ROOT / "examples" / f"{program}.py", [*own, *options])


def check_python(words: list[str]) -> None:
    if words[:2] == ["-m", "pytest"]:
        return check_words(["pytest", *words[2:]])
    if words[0] == "-m":
        module = ROOT / words[1].replace(".", "/")
        assert module.with_suffix(".py").is_file() or (module / "__main__.py").is_file(), f"{words[1]} does not exist"
        return None
    script = ROOT / words[0]
    assert script.is_file(), f"{words[0]} does not exist"
    if script.parent.name == "examples":
        check_composes(script, words[1:])
    elif script.name == "from_runs.py":
        check_figure(script, words[1], words[2:])
    return None


def check_words(words: list[str]) -> None:
    """One command.

    Raises:
        AssertionError: where it would not start.
    """
    first, rest = words[0], words[1:]
    if first == "make":
        targets = [w for w in rest if "=" not in w]
        done = subprocess.run(["make", "-n", *targets], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, f"make {targets}: {done.stderr}"
        for word in rest:
            if word.startswith("ARGS="):
                check_composes(ROOT / "examples" / f"{targets[0]}_ffhq.py", shlex.split(word[5:]))
    elif first in {"python", "python3", ".venv/bin/python"}:
        check_python(rest)
    elif first in {"pytest", ".venv/bin/pytest"}:
        for argument in rest:
            if "/" in argument:
                check_test(argument)
    elif (first, *rest[:1]) == ("accelerate", "launch") or first == "torchrun":
        script = next(i for i, w in enumerate(rest) if w.endswith(".py"))
        check_python(rest[script:])
    elif (first, *rest[:1]) == ("pip", "install"):
        extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
        named = {e for w in rest for e in re.findall(r"\.\[([\w,]+)\]", w)}
        assert {e for names in named for e in names.split(",")} <= extras, f"{words}: no such extra"
    else:
        raise AssertionError(f"a console block holds {first!r}: this test cannot check it")


def check_console(example: Example) -> None:
    for words in commands(example.parsed):
        check_words(words)


READER = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser("bash", run_bash),
        CodeBlockParser("console", check_console),
        CodeBlockParser("yaml", lambda e: OmegaConf.create(e.parsed) and None),
        CodeBlockParser("toml", lambda e: tomllib.loads(e.parsed) and None),
    ]
)


def fences(text: str) -> list[str]:
    """What stands behind every opening fence."""
    found, inside = [], None
    for line in text.splitlines():
        match = re.match(r"\s*(```+)(.*)$", line)
        if match and inside is None:
            inside = match.group(1)
            found.append(match.group(2).strip())
        elif match and match.group(1) == inside and not match.group(2).strip():
            inside = None
    return found


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_has_a_known_language(page):
    unknown = [f for f in fences(page.read_text()) if (f.split() or [""])[0] not in LANGUAGES]
    assert not unknown, f"{name_of(page)}: {unknown}"


def parsed(page: Path) -> Document:
    return READER.parse(page)


@pytest.mark.parametrize("page", [p for p in PAGES if list(parsed(p))], ids=name_of)
def test_blocks_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("examples", "benchmarks", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for example in parsed(page):
        example.evaluate()


@pytest.mark.parametrize(
    ("line", "mistake"),
    [
        ("python examples/inpaint_ffhq.py stepz=3", "stepz"),
        ("python examples/nothing.py", "does not exist"),
        ("make nothing", "nothing"),
        ('make inpaint ARGS="stepz=3"', "stepz"),
        ("pytest tests/docs/test_blocks.py::test_nothing", "is not there"),
        ("pip install -e '.[nothing]'", "no such extra"),
        ("curl example.org", "cannot check"),
    ],
)
def test_a_wrong_command_is_found(line, mistake):
    with pytest.raises(Exception, match=mistake):
        check_words(commands(line)[0])


def test_right_commands_pass():
    text = '$ make inpaint ARGS="mask=freeform steps=10"\nA=1 python examples/inpaint_ffhq.py \\\n  n=2 # two'
    found = commands(text)
    assert found == [["make", "inpaint", "ARGS=mask=freeform steps=10"], ["python", "examples/inpaint_ffhq.py", "n=2"]]
    for words in found:
        check_words(words)
