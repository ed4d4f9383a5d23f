"""Run a published experiment of the field: ``python examples/run_experiment.py name=regret``.

Every experiment is one configuration of ``conf/experiment`` and writes ``results.csv``, ``results.json`` (numbers with
intervals), ``figure.png`` and ``report.json`` (numbers against bars) into ``out``.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from aid_control.errors import InputError
from aid_control.program import program, refuse

CONFIGS = Path(__file__).resolve().parent / "conf" / "experiment"


def main(cfg: Any) -> int:
    module = importlib.import_module(f"aid_control.experiments.{cfg.name}.run")
    return int(module.run(cfg))


if __name__ == "__main__":
    known = sorted(p.stem for p in CONFIGS.glob("*.yaml"))
    named = [a.split("=", 1)[1] for a in sys.argv[1:] if a.startswith("name=")]
    if len(named) != 1 or named[0] not in known:
        sys.exit(refuse(InputError(f"name is {', '.join(named) or 'missing'}; expected one of {', '.join(known)}")))
    program(f"conf/experiment/{named[0]}", main)
