"""Rows of "what was measured, what it should be, is it so": the output of every verifying program.

``report.json`` holds ``{"rows": [{"name", "value", "bar", "ok"}, ...], "about": {...}}``; the same table is printed,
and the program's exit code is 1 if a row fails.
"""

from __future__ import annotations

import json
import math
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .checkpoint import atomic_write

__all__ = ["Report"]


class Report:
    """A growing table.

    Args:
        **about: what a reader needs to make the numbers again (seeds, sizes, the command).
    """

    def __init__(self, **about: Any) -> None:
        packages = {name: version(name) for name in ("aid-control", "torch", "numpy", "scipy", "torchsde")}
        self.about: dict[str, Any] = {"python": platform.python_version(), **packages, **about}
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, value: float, bar: str, ok: bool) -> bool:
        """One row.

        Args:
            name: what was measured.
            value: the number seen.
            bar: what was demanded of it, in words.
            ok: whether it is met; a value that is not finite never is.

        Returns:
            Whether the row holds.
        """
        good = bool(ok) and math.isfinite(value)
        self.rows.append({"name": name, "value": float(value), "bar": bar, "ok": good})
        return good

    def below(self, name: str, value: float, bar: float) -> bool:
        """A row that demands value <= bar; returns whether it holds.

        Args:
            name: what was measured.
            value: the number seen.
            bar: the largest number allowed.
        """
        return self.add(name, value, f"<= {bar:g}", value <= bar)

    def above(self, name: str, value: float, bar: float) -> bool:
        """A row that demands value >= bar; returns whether it holds.

        Args:
            name: what was measured.
            value: the number seen.
            bar: the smallest number allowed.
        """
        return self.add(name, value, f">= {bar:g}", value >= bar)

    def near(self, name: str, value: float, target: float, margin: float) -> bool:
        """A row that demands abs(value - target) <= margin; returns whether it holds.

        Args:
            name: what was measured.
            value: the number seen.
            target: the number it should be.
            margin: the largest distance allowed.
        """
        return self.add(name, value, f"{target:g} +- {margin:g}", abs(value - target) <= margin)

    @property
    def failed(self) -> int:
        """How many rows fail."""
        return sum(not row["ok"] for row in self.rows)

    def table(self) -> str:
        """The rows as aligned text."""
        cells = [["", "what", "value", "bar"]]
        cells += [["ok" if r["ok"] else "FAIL", r["name"], f"{r['value']:.4g}", r["bar"]] for r in self.rows]
        width = [max(len(row[i]) for row in cells) for i in range(4)]
        return "\n".join(f"{a:{width[0]}}  {b:{width[1]}}  {c:>{width[2]}}  {d}".rstrip() for a, b, c, d in cells)

    def finish(self, out: str | Path) -> int:
        """Write ``report.json`` and print the table.

        Args:
            out: folder of the file, made where it is missing.

        Returns:
            The exit code: 1 if a row fails, otherwise 0.
        """
        target = Path(out) / "report.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        # JSON has no nan or infinity; a failed measurement is null
        rows = [{**r, "value": r["value"] if math.isfinite(r["value"]) else None} for r in self.rows]
        atomic_write(target, json.dumps({"rows": rows, "about": self.about}, indent=1).encode())
        print(self.table())
        print(f"{len(self.rows) - self.failed} of {len(self.rows)} rows hold; written to {target}")
        return 1 if self.failed else 0
