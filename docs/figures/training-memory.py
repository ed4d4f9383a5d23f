"""Memory of an iteration of guidance training against batch and steps, from ``training-memory.csv`` beside this file.

The numbers are measured by ``python benchmarks/training.py memory``.
"""

from __future__ import annotations

import csv
from pathlib import Path

from style import plt, save

FIXED = {"batch": 2, "steps": 4}
STYLES = {"stepwise": (":", "x"), "checkpointing": ("--", "s"), "": ("-", "o")}
COLOURS = {"stein": "C1", "adjoint": "C0", "backprop": "C2"}

with open(Path(__file__).with_suffix(".csv"), newline="") as file:
    rows = list(csv.DictReader(file))
names = list(dict.fromkeys(row["series"] for row in rows))

figure, axes = plt.subplots(1, 2, figsize=(8.2, 3.6), sharey=True)
for ax, moving, fixed in ((axes[0], "batch", "steps"), (axes[1], "steps", "batch")):
    ticks: set[int] = set()
    for name in names:
        points = sorted(
            (int(r[moving]), float(r["megabytes"]))
            for r in rows
            if r["series"] == name and int(r[fixed]) == FIXED[fixed]
        )
        if len(points) < 3:
            continue  # measured against the other only
        kind, _, variant = name.partition(", ")
        line, marker = STYLES[variant]
        ax.plot(*zip(*points, strict=True), line, marker=marker, ms=4, color=COLOURS[kind], label=name)
        ticks |= {x for x, _ in points}
    ax.set(xscale="log", yscale="log", xlabel=moving, title=f"{fixed} = {FIXED[fixed]}")
    ax.set_xticks(sorted(ticks), [str(x) for x in sorted(ticks)])
    ax.minorticks_off()
axes[0].set_ylabel("peak memory of an iteration, MB")
axes[0].set_ylim(1, 4000)
axes[0].set_yticks([1, 3, 10, 30, 100, 300, 1000, 3000], ["1", "3", "10", "30", "100", "300", "1000", "3000"])
axes[0].legend(*axes[1].get_legend_handles_labels(), fontsize=7, loc="lower right")
save(figure, __file__)
