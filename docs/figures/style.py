"""What the programs of this folder share: one look, one way to save.  ``to=DIR`` on the command line says where."""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

__all__ = ["plt", "save"]

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
plt.rcParams.update(
    {
        "figure.dpi": 110,
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "legend.fontsize": 8,
    }
)


def save(figure: Figure, script: str) -> None:
    """Write the figure of ``script`` (its ``__file__``) as NAME.png beside it or into ``to=DIR``."""
    path = Path(script).resolve()
    folder = next((Path(a.split("=", 1)[1]) for a in sys.argv[1:] if a.startswith("to=")), path.parent)
    figure.tight_layout()
    figure.savefig(folder / f"{path.stem}.png", metadata={"Software": None})
    print(folder / f"{path.stem}.png")
