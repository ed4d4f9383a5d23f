"""What is counted of every kind of fault, and the printed table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from aid_control.report import Report

__all__ = ["Tally", "table"]


@dataclass
class Tally:
    """One row of the table.

    Attributes:
        fault: what was done to which program.
        injected: how often.
        survived: after how many of these all was as it should be (each module says what that is).
        lost: finished results that were gone, or not readable, afterwards.
        repeated: finished results that were computed again.
        notes: what else is worth knowing, such as how many kills hit a file being written.
        wrong: one line for everything that was not as it should be.
        skipped: why it could not be done here; "" = it was.
    """

    fault: str
    injected: int = 0
    survived: int = 0
    lost: int = 0
    repeated: int = 0
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    skipped: str = ""

    def judge(self, *faults: str) -> None:
        """Count one injected fault; it is survived if nothing is wrong.

        Args:
            *faults: what is wrong, empty strings left out.
        """
        self.injected += 1
        found = [text for text in faults if text]
        self.survived += not found
        self.wrong += found

    def rows(self, report: Report) -> None:
        """Add its numbers to a report; a fault that was skipped, or never hit, has none."""
        if self.skipped:
            return
        bar = f"= {self.injected} injected"
        report.add(f"{self.fault}: survived", self.survived, bar, 0 < self.injected == self.survived)
        report.below(f"{self.fault}: results lost", self.lost, 0)
        report.below(f"{self.fault}: results repeated", self.repeated, 0)


def table(tallies: Iterable[Tally]) -> str:
    """The rows as a Markdown table, with a line of totals."""
    done = list(tallies)
    lines = ["| fault | injected | survived | results lost | results repeated | |", "|---|---|---|---|---|---|"]
    for t in done:
        note = f"skipped: {t.skipped}" if t.skipped else "; ".join(t.notes)
        numbers = ("",) * 4 if t.skipped else (t.injected, t.survived, t.lost, t.repeated)
        lines.append(f"| {t.fault} | " + " | ".join(map(str, numbers)) + f" | {note} |")
    totals = [sum(getattr(t, name) for t in done) for name in ("injected", "survived", "lost", "repeated")]
    lines.append("| **all** | " + " | ".join(f"**{n}**" for n in totals) + " | |")
    return "\n".join(lines)
