"""Figures of a benchmark: quality against cost, and the pictures themselves.

A frontier has one panel a metric and mask and one curve a method over its numbers of steps.  Cost is either the median
seconds an image, or the passes through a network, forward plus backward: a gradient counts as one more pass, though it
takes about twice as long.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..data import to_float, to_uint8
from ..methods.registry import METHODS
from ..pictures import png
from .inputs import Inputs
from .table import Cell, Table

__all__ = ["frontier", "picture_matrix"]

AXES = {"psnr_hole": "hole PSNR, dB", "lpips_hole": "hole LPIPS (lower is better)"}
COSTS: dict[str, tuple[str, Callable[[Cell], float]]] = {
    "time": ("seconds an image", lambda cell: float(torch.tensor(cell.seconds).median())),
    "nfe": (
        "network passes an image, forward + backward",
        lambda cell: float((cell.values("nfe_forward") + cell.values("nfe_backward")).mean()),
    ),
}
MARKERS = "osD^v<>PX*ph"


def frontier(table: Table, cost: Literal["time", "nfe"]) -> bytes:
    """Hole PSNR and, where measured, hole LPIPS against cost, as the bytes of a PNG file.

    Args:
        table: all results.
        cost: ``"time"``, the median seconds an image, or ``"nfe"``, the mean passes an image.
    """
    plt = _pyplot()
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    metrics = [name for name in AXES if table.measured(name)]
    size = (3.1 * len(table.masks) + 1.8, 2.9 * len(metrics) + 0.2)
    fig, axes = plt.subplots(
        len(metrics), len(table.masks), figsize=size, squeeze=False, sharex=True, layout="constrained"
    )
    colours = plt.get_cmap("tab20").colors
    words, price = COSTS[cost]
    for i, metric in enumerate(metrics):
        for j, mask in enumerate(table.masks):
            ax = axes[i, j]
            for k, method in enumerate(table.methods):
                points = [
                    (price(cell), float(values[values.isfinite()].mean()))
                    for cell in (table.cells[method, steps, mask] for steps in table.steps(method))
                    if (values := cell.values(metric)).isfinite().any()
                ]
                if points:
                    style = dict(marker=MARKERS[k % len(MARKERS)], color=colours[(2 * k + k // 10) % 20], ms=5, lw=1)
                    ax.plot(*zip(*sorted(points), strict=True), label=METHODS[method].label, **style)
            ax.set_xscale("log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))  # 20 and not 2 x 10^1
            ax.xaxis.set_minor_formatter(NullFormatter())
            ax.grid(alpha=0.3)
            if i == 0:
                ax.set_title(f"mask {mask}", fontsize=9)
            if i == len(metrics) - 1:
                ax.set_xlabel(words, fontsize=8)
            ax.tick_params(labelsize=7, which="both")
        axes[i, 0].set_ylabel(AXES[metric], fontsize=8)
    entries: dict[str, Any] = {}
    for ax in axes.flat:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    fig.legend(entries.values(), entries.keys(), loc="outside right upper", fontsize=7)
    return png(fig, 120)


def picture_matrix(table: Table, inputs: Inputs, count: int) -> bytes:
    """The first images under every mask: original, masked, every method at its most steps; bytes of a PNG file.

    Args:
        table: all results.
        inputs: images and masks.
        count: images of each mask.
    """
    plt = _pyplot()
    rows = range(min(count, inputs.n))
    methods = table.methods
    shape = (len(rows) * len(table.masks), 2 + len(methods))
    size = (1.15 * shape[1] + 0.4, 1.15 * shape[0] + 0.6)
    fig, axes = plt.subplots(*shape, figsize=size, squeeze=False, layout="constrained")
    clean = to_float(inputs.images(rows))
    for i, mask in enumerate(table.masks):
        masks = inputs.masks(mask, rows)
        columns: dict[str, Tensor] = {"original": clean, "masked": clean * masks}
        for method in methods:
            steps = max(table.steps(method))
            columns[f"{_wrapped(METHODS[method].label)}\n{steps} steps"] = to_float(
                table.cells[method, steps, mask].pictures[0]
            )
        for j, (title, images) in enumerate(columns.items()):
            for k in rows:
                ax = axes[i * len(rows) + k, j]
                ax.imshow(to_uint8(images[k]).permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray")
                ax.set(xticks=[], yticks=[])
                if j == 0:
                    ax.set_ylabel(mask, fontsize=7)
                if i == k == 0:
                    ax.set_title(title, fontsize=7)
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    return png(fig, 120)


def _wrapped(label: str, width: int = 16) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(label, width))


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
