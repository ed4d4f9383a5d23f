"""Pictures of many images: one labelled row a method, one column an image; figures as bytes."""

from __future__ import annotations

import io
from typing import Any

from torch import Tensor

from .data import to_uint8

__all__ = ["picture_rows", "png"]


def picture_rows(rows: dict[str, Tensor], count: int, size: float = 1.3) -> bytes:
    """A labelled grid as the bytes of a PNG file.

    Args:
        rows: title -> images (N, C, H, W) in [-1, 1], from the top.
        count: columns, at most; as many as the shortest row has.
        size: of an image in inches, at 110 pixels an inch.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    count = min(count, *(len(images) for images in rows.values()))
    fig, axes = plt.subplots(len(rows), count, figsize=(size * count + 1.1, size * len(rows)), squeeze=False)
    for i, (title, images) in enumerate(rows.items()):
        for j in range(count):
            axes[i, j].imshow(to_uint8(images[j]).permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray")
            axes[i, j].set(xticks=[], yticks=[])
        axes[i, 0].set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
    fig.tight_layout(pad=0.4)
    return png(fig, 110)


def png(fig: Any, dpi: int) -> bytes:
    """A figure as the bytes of a PNG file; closes it.

    Args:
        fig: matplotlib figure, made by pyplot.
        dpi: pixels an inch.
    """
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    fig.savefig(buffer, dpi=dpi, format="png")
    plt.close(fig)
    return buffer.getvalue()
