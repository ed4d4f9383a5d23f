"""One tidy table from many shards: a row is one image under one mask by one method at one number of steps.

Rows stand in the order of the grid and numbers are written with nine digits, so that the bytes of ``results.csv``
depend on the settings alone.  Times are no property of the settings and stand in ``timing.csv``.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoint import atomic_write, load_tensors
from ...errors import InputError
from .grid import ORIGINALS, Shard

__all__ = ["COLUMNS", "Cell", "Table", "read_table", "write_csv", "write_parquet"]

METRICS = ("psnr_hole", "psnr_image", "ssim_hole", "ssim_image", "lpips_hole", "lpips_image", "known_error")
COLUMNS = ("method", "mask", "steps", "image", "seed", *METRICS, "nfe_forward", "nfe_backward")
TIMES = ("method", "mask", "steps", "image", "seconds", "peak_mb")


@dataclass
class Cell:
    """All images of one (method, steps, mask).

    Attributes:
        method: name.
        steps: noise levels.
        mask: kind or file.
        rows: one dictionary an image, in order.
        seconds: one number an image.
        peak_mb: one number an image, its shard's.
        pictures: first results, uint8 (k, C, H, W), by draw.
        features: of the results (N, n), or ``None``.
    """

    method: str
    steps: int
    mask: str
    rows: list[dict[str, Any]]
    seconds: list[float]
    peak_mb: list[float]
    pictures: dict[int, Tensor]
    features: Tensor | None = None

    def values(self, column: str) -> Tensor:
        """One column: a name of the rows -> (N,) float64, NaN where nothing was measured."""
        found = [row[column] for row in self.rows]
        return torch.tensor([float("nan") if v is None else v for v in found], dtype=torch.float64)


class Table:
    """The cells of a benchmark by (method, steps, mask), in the order of the grid.

    Args:
        cells: what was measured.
        originals: features of the images (N, n), or ``None``.
    """

    def __init__(self, cells: dict[tuple[str, int, str], Cell], originals: Tensor | None = None) -> None:
        self.cells, self.originals = cells, originals

    @property
    def methods(self) -> list[str]:
        """Names, in order."""
        return list(dict.fromkeys(method for method, _, _ in self.cells))

    @property
    def masks(self) -> list[str]:
        """Kinds, in order."""
        return list(dict.fromkeys(mask for _, _, mask in self.cells))

    def steps(self, method: str) -> list[int]:
        """The numbers of steps of a method, in order.

        Args:
            method: name.
        """
        return list(dict.fromkeys(steps for name, steps, _ in self.cells if name == method))

    def under(self, mask: str) -> list[Cell]:
        """All cells of a mask.

        Args:
            mask: kind or file.
        """
        return [cell for cell in self.cells.values() if cell.mask == mask]

    def measured(self, column: str) -> bool:
        """Whether a column holds numbers.

        Args:
            column: name of a metric.
        """
        return any(row[column] is not None for cell in self.cells.values() for row in cell.rows)


def read_table(shards: Sequence[Shard], folder: Path) -> Table:
    """Put the files of shards together.

    Args:
        shards: all, in order.
        folder: of their files.

    Returns:
        Cells in the order of the shards, and the features of the originals where there are some.

    Raises:
        InputError: if a file is missing or damaged.
    """
    cells: dict[tuple[str, int, str], Cell] = {}
    for shard in shards:
        tensors, metadata = load_tensors(folder / shard.file)
        try:
            facts = json.loads(metadata["shard"])
            rows, seconds, peak = facts["rows"], facts["seconds"], facts["peak_mb"]
        except (KeyError, ValueError) as error:
            raise InputError(f"{folder / shard.file}: no shard; delete it to compute it again") from error
        key = shard.method, shard.steps, shard.mask
        cell = cells.setdefault(key, Cell(*key, [], [], [], {}))
        if "pictures" in tensors:
            before = cell.pictures.get(shard.draw)
            new = tensors["pictures"]
            cell.pictures[shard.draw] = new if before is None else torch.cat([before, new])
        if shard.draw:
            continue
        cell.rows += rows
        cell.seconds += seconds
        cell.peak_mb += [peak] * len(rows)
        if "features" in tensors:
            new = tensors["features"]
            cell.features = new if cell.features is None else torch.cat([cell.features, new])
    originals = cells.pop((ORIGINALS, 0, ""), None)
    return Table(cells, None if originals is None else originals.features)


def write_csv(table: Table, out: Path) -> None:
    """Write ``results.csv`` and ``timing.csv``, atomically.

    Args:
        table: all results.
        out: folder.
    """
    for name, columns, rows in (("results", COLUMNS, _results(table)), ("timing", TIMES, _timing(table))):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_text(row[c]) for c in columns] for row in rows)
        atomic_write(out / f"{name}.csv", text.getvalue().encode())


def write_parquet(out: Path) -> bool:
    """``results.csv`` as ``results.parquet``; returns whether pandas and pyarrow are there to do it.

    Args:
        out: folder of both.
    """
    try:
        pandas = importlib.import_module("pandas")
        importlib.import_module("pyarrow")
    except ImportError:
        return False
    data = io.BytesIO()
    # text stays text: a mask may be called 0.png, a method anything
    pandas.read_csv(out / "results.csv", dtype={"method": str, "mask": str}).to_parquet(data, index=False)
    atomic_write(out / "results.parquet", data.getvalue())
    return True


def _results(table: Table) -> Iterator[dict[str, Any]]:
    for cell in _by_mask(table):
        for row in cell.rows:
            yield {"method": cell.method, "mask": cell.mask, "steps": cell.steps, **row}


def _timing(table: Table) -> Iterator[dict[str, Any]]:
    for cell in _by_mask(table):
        for row, seconds, peak in zip(cell.rows, cell.seconds, cell.peak_mb, strict=True):
            names = {"method": cell.method, "mask": cell.mask, "steps": cell.steps, "image": row["image"]}
            yield {**names, "seconds": seconds, "peak_mb": peak}


def _by_mask(table: Table) -> Iterator[Cell]:
    """Method, mask, steps: the order of the columns."""
    for method in table.methods:
        for mask in table.masks:
            for steps in table.steps(method):
                yield table.cells[method, steps, mask]


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)
