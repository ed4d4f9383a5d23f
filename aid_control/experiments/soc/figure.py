"""The figure: relative control error against seconds of one core, a panel a problem."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

__all__ = ["draw"]

LABELS = {
    "adjoint_matching": "adjoint matching",
    "relative_entropy": "relative entropy (discrete adjoint)",
    "log_variance": "log-variance",
    "moment": "moment",
}


def draw(found: dict[str, dict[str, Any]], losses: list[str], bars: dict[str, Any]) -> Figure:
    """Draw the curves.

    Args:
        found: problem to piece to numbers, as `run` collects them.
        losses: which curves.
        bars: the configuration's.

    Returns:
        The figure; nothing of pyplot's state is used.
    """
    columns = min(3, len(found))
    lines = -(-(len(found) + 1) // columns) if len(found) > 1 else 1
    figure = Figure(figsize=(4.2 * columns, 3.4 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis, (problem, pieces) in zip(axes, found.items(), strict=False):
        for i, loss in enumerate(losses):
            curve = pieces[loss]["curve"]
            axis.semilogy(curve["seconds"], curve["errors"], color=f"C{i}", label=LABELS[loss])
        if "affine" in pieces:
            axis.axhline(
                pieces["affine"]["grid_error"], color="0.5", ls=":", label="optimum of the discretised problem"
            )
        if problem in bars["network"]:
            axis.axhline(bars["network"][problem], color="k", lw=0.8, ls="--", label="bar (2 %)")
        axis.set(title=problem, xlabel="seconds of one core", ylabel="error / error of u = 0")
        axis.grid(alpha=0.3)
    handles = {h.get_label(): h for axis in axes for h in axis.get_lines()}
    if len(axes) > len(found):
        axes[len(found)].legend(handles.values(), handles.keys(), loc="center", frameon=False)
        for axis in axes[len(found) :]:
            axis.axis("off")
    else:
        axes[0].legend(fontsize=7)
    return figure
