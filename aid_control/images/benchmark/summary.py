"""Markdown tables of a benchmark: means with 95 % bootstrap intervals, and paired differences to one method.

Intervals are percentile bootstrap intervals over the images (`metrics.bootstrap`), of the differences image by
image where two methods are compared: the same images, masks and noise seeds.  ``tables.md`` holds nothing that depends
on the machine's load; seconds and memory stand in ``timing.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..methods.registry import METHODS
from ..metrics import bootstrap
from ..paired import compare_family
from .sets import FID
from .table import Cell, Table

__all__ = ["interval", "markdown", "tables", "timing"]

FLIPS = 20_000
QUALITY = {"psnr_hole": ("hole PSNR, dB", 2), "ssim_hole": ("hole SSIM", 3), "lpips_hole": ("hole LPIPS", 3)}


def tables(table: Table, reference: str, realism: dict[tuple[str, int, str], dict[str, float]], title: str) -> str:
    """``tables.md``.

    Args:
        table: all results.
        reference: the method that others are compared with, at the same number of steps where it has it, else at its
            largest; none, if it was not run.
        realism: further numbers of a cell by name (FID, KID, diversity), for a table of their own.
        title: what was run, one line.

    Returns:
        The text.
    """
    metrics = [name for name in QUALITY if table.measured(name)]
    text = [
        "# Inpainting benchmark",
        title,
        "Mean [95 % bootstrap interval over the images]. Forward: images that passed a network for one image inpainted;"
        " backward: those whose gradient was taken. Known error: largest |result - original| at a known pixel."
        " p: two-sided sign-flip tests, Holm's correction over a table's tests; with n images and m tests it cannot be"
        " below m / 2^(n - 1).",
    ]
    for mask in table.masks:
        text.append(f"## Mask {mask}")
        heads = ["method", "steps", "forward", "backward", *(QUALITY[m][0] for m in metrics), "known error"]
        text.append(markdown(heads, (_row(cell, metrics) for cell in table.under(mask))))
        others = [cell for cell in table.under(mask) if cell.method != reference]
        if reference in table.methods and others:
            name = METHODS[reference].label
            text.append(f"### Paired differences, method - {name}, mask {mask}")
            text.append(_differences(table, others, reference, metrics))
        extra = {k: v for k, v in realism.items() if k[2] == mask}
        if extra:
            columns = list(dict.fromkeys(name for row in extra.values() for name in row))
            text.append(f"### Distributions, mask {mask}")
            body = (
                [METHODS[method].label, str(steps), *(_number(row.get(c, math.nan), 4) for c in columns)]
                for (method, steps, _), row in extra.items()
            )
            text.append(markdown(["method", "steps", *columns], body))
            if FID in columns and table.originals is not None:
                n = len(table.originals)
                text.append(f"FID of {n} images is biased upwards: compare it with values of as many images only.")
    if reference not in table.methods:
        text.append(f"Without paired differences: the reference, {METHODS[reference].label}, was not run.")
    return "\n\n".join(text) + "\n"


def timing(table: Table, title: str) -> str:
    """``timing.md``: median seconds an image and the largest peak of memory.

    Args:
        table: all results.
        title: how it was run, one line.
    """
    text = ["# Cost on this machine", title]
    for mask in table.masks:
        text.append(f"## Mask {mask}")
        body = (
            [
                METHODS[cell.method].label,
                str(cell.steps),
                *(_number(float(cell.values(f"nfe_{way}").mean()), 1) for way in ("forward", "backward")),
                f"{float(torch.tensor(cell.seconds).median()):.4g}",
                f"{max(cell.peak_mb):.0f}",
            ]
            for cell in table.under(mask)
        )
        text.append(markdown(["method", "steps", "forward", "backward", "seconds an image", "peak MB"], body))
    return "\n\n".join(text) + "\n"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right.

    Args:
        heads: of the columns.
        rows: one text a column; bars are escaped.
    """
    lines = [heads, [":--", *["--:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def interval(values: Tensor, digits: int) -> str:
    """``mean [low, high]`` of the finite values, with how many there were if not all; ``-`` for none.

    Args:
        values: (n,), one an image.
        digits: behind the point.
    """
    kept = values[values.isfinite()]
    if not len(kept):
        return "-"
    mean, low, high = bootstrap(kept)
    ends = "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean:.{digits}f}{ends}" + ("" if len(kept) == len(values) else f" ({len(kept)} of {len(values)})")


def _row(cell: Cell, metrics: Sequence[str]) -> list[str]:
    return [
        METHODS[cell.method].label,
        str(cell.steps),
        *(_number(float(cell.values(f"nfe_{way}").mean()), 1) for way in ("forward", "backward")),
        *(interval(cell.values(m), QUALITY[m][1]) for m in metrics),
        f"{float(cell.values('known_error').max()):.3g}",
    ]


def _differences(table: Table, cells: Sequence[Cell], reference: str, metrics: Sequence[str]) -> str:
    """One row a cell; the p values (sign flips) are corrected over all tests of the table."""
    have = table.steps(reference)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    heads = ["method", "steps", "reference's", *(h for m in metrics for h in (QUALITY[m][0], "p (Holm)"))]
    for i, cell in enumerate(cells):
        other = table.cells[reference, _nearest(cell.steps, have), cell.mask]
        for metric in metrics:
            a, b = cell.values(metric), other.values(metric)
            both = a.isfinite() & b.isfinite()
            if int(both.sum()) > 1:
                pairs[f"{i} {metric}"] = a[both], b[both]
    # drawn sign flips cannot give less than 2 m / flips after the correction: enough of them for m tests
    found = compare_family(pairs, flips=max(FLIPS, 400 * len(pairs))) if pairs else {}
    body = []
    for i, cell in enumerate(cells):
        row = [METHODS[cell.method].label, str(cell.steps), str(_nearest(cell.steps, have))]
        for metric in metrics:
            c, digits = found.get(f"{i} {metric}"), QUALITY[metric][1]
            missing = "" if c is None or c.n == len(cell.rows) else f" ({c.n} of {len(cell.rows)})"
            row += (
                ["-", "-"]
                if c is None
                else [f"{c.mean:+.{digits}f} [{c.low:+.{digits}f}, {c.high:+.{digits}f}]{missing}", _p(c.p_holm)]
            )
        body.append(row)
    return markdown(heads, body)


def _nearest(steps: int, have: Sequence[int]) -> int:
    """The reference's steps a method is compared with: the same, or else its most."""
    return steps if steps in have else max(have)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _number(value: float, digits: int) -> str:
    """Fixed digits, without zeros behind whole numbers."""
    if not math.isfinite(value):
        return "-"
    return str(int(value)) if value == int(value) else f"{value:.{digits}f}"
