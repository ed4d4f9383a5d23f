"""What every experiment leaves in its folder: a table (CSV), numbers with intervals (JSON), a figure, the report."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..checkpoint import atomic_write

__all__ = ["write_csv", "write_figure", "write_json"]


def _plain(value: Any) -> Any:
    """JSON knows neither numpy's numbers nor NaN."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, numbers: Mapping[str, Any]) -> None:
    """Write nested numbers; arrays become lists, numbers that are not finite null.

    Args:
        path: the file.
        numbers: what to write.
    """
    atomic_write(Path(path), json.dumps(_plain(numbers), indent=1).encode())


def write_csv(path: str | Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Write columns of one length under their names.

    Args:
        path: the file.
        columns: name to values.

    Raises:
        ValueError: for columns of different lengths.
    """
    rows = zip(*columns.values(), strict=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[f"{v:.10g}" if isinstance(v, float) else v for v in row] for row in rows])
    atomic_write(Path(path), text.getvalue().encode())


def write_figure(path: str | Path, figure: Figure) -> None:
    """Write a figure as PNG.

    Args:
        path: the file.
        figure: closed by nobody here.
    """
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    atomic_write(Path(path), data.getvalue())
