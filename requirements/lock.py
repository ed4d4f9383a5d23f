"""Write lock.txt: the exact version of everything that ``aid-control[test]`` needs, as installed here.

Run it by ``make lock``, after ``make test`` has passed: the lock names what was tested, not what is newest.  What is
installed beside that (an editor's tools) is left out.  Names and versions only: no index, no path, no hash.
"""

from __future__ import annotations

import platform
import sys
from importlib.metadata import distribution, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT, EXTRA = "aid-control", "test"
TARGET = Path(__file__).parent / "lock.txt"


def wanted(name: str, extras: frozenset[str]) -> list[Requirement]:
    """What an installed package requires on this machine, with these extras."""
    found = [Requirement(line) for line in requires(name) or []]
    return [r for r in found if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras or {""})]


def main() -> None:
    """Walk the requirements and write the file."""
    direct = wanted(PROJECT, frozenset({"", EXTRA}))
    pending = list(direct)
    seen: set[tuple[str, frozenset[str]]] = set()
    while pending:
        need = pending.pop()
        key = (canonicalize_name(need.name), frozenset({"", *need.extras}))
        if key not in seen:
            seen.add(key)
            pending += wanted(*key)
    # a version such as 2.13.0+cpu names a build of one index; the lock is for all
    pins = {name: distribution(name).version.split("+")[0] for name, _ in seen if name != PROJECT}
    first = {canonicalize_name(r.name) for r in direct}
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    lines = [f"# The versions `make test` ran with (Python {python}, {platform.system()}); by `make lock`."]
    lines += ["# Install: pip install -c requirements/lock.txt -e '.[test]'", "", "# direct"]
    lines += [f"{name}=={pins[name]}" for name in sorted(first)]
    lines += ["", "# indirect", *(f"{name}=={pins[name]}" for name in sorted(set(pins) - first))]
    TARGET.write_text("\n".join(lines) + "\n")
    print(f"{TARGET}: {len(pins)} packages, {len(first)} of them direct")


if __name__ == "__main__":
    main()
