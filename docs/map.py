"""The map of the repository in README.md: one line a module, the first of its docstring.

    python docs/map.py          # writes it between the two marks of README.md
    python docs/map.py check    # exit code 1 where the README has another

A change of a docstring's first line or a new module changes the map, and a test says so.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- --8<-- [start:map] -->", "<!-- --8<-- [end:map] -->"
FOLDERS = ["aid_control", "examples", "benchmarks", "docs"]
WIDTH = 140  # longer lines are cut at a word


def first_line(path: Path) -> str:
    """The first sentence of a module's docstring, on one line, without Markdown."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    line = re.split(r"\n\s*\n", doc)[0].replace("\n", " ")
    line = re.sub(r"[,:]?\s*\$[^$]*\\[^$]*\$", "", line)  # a formula in TeX says nothing in plain text
    line = re.sub(r"[`*$]", "", line)
    line = re.split(r"(?<=[a-z0-9)])(?<!et al)\.\s", line + " ")[0].rstrip(" .:")
    return line if len(line) <= WIDTH else line[:WIDTH].rsplit(" ", 1)[0] + " ..."


def lines(folder: Path, depth: int = 0) -> list[str]:
    """Of a folder: its packages after its modules, each with what it is."""
    files = sorted(p for p in folder.glob("*.py") if p.name != "__init__.py")
    start = folder / "__init__.py"
    title = first_line(start) if start.is_file() else ""
    found = [f"{'  ' * depth}{folder.name + '/':<{29 - 2 * depth}} {title}".rstrip()]
    found += [f"{'  ' * (depth + 1)}{p.name:<{27 - 2 * depth}} {first_line(p)}".rstrip() for p in files]
    for below in sorted(p for p in folder.iterdir() if p.is_dir() and any(p.glob("*.py"))):
        found += lines(below, depth + 1)
    return found


def the_map() -> str:
    """The block that stands between the marks."""
    rows = [line for folder in FOLDERS for line in lines(ROOT / folder)]
    rows.append(f"{'tests/':<29} mirrors the package; tests/docs checks the documentation, a module a page")
    return "\n".join([START, "```text", *rows, "```", END])


def main() -> int:
    unknown = set(sys.argv[1:]) - {"check"}
    if unknown:
        print(f"error: {' '.join(sorted(unknown))}: expected nothing, or check", file=sys.stderr)
        return 2
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = text[: text.index(START)] + the_map() + text[text.index(END) + len(END) :]
    if "check" in sys.argv[1:]:
        if new != text:
            print("README.md has another map than the docstrings; run: python docs/map.py", file=sys.stderr)
        return int(new != text)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
