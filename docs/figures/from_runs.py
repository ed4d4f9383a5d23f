"""Figures that a program of ``examples/`` draws: runs it and puts the picture here.

    python docs/figures/from_runs.py NAME [option=value ...] [out=DIR]

The options go to the program after its own of the table below; what a finished run left in ``out`` is used again by the
programs that go on where they stopped.  The picture is written beside this file, or into ``to=DIR``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BENCHMARK = [
    "masks=[box,freeform_thick,half,random]", "steps=[4,8,16]", "solver=euler", "+method_steps.optimal_control=[4]",
    "+options.optimal_control.iterations=4", "+options.dps.zeta=2", "+options.pigdm.weight=2",
    "+options.daps.ode_steps=2", "+options.repaint.jump_length=3", "+options.repaint.resamples=3", "workers=2",
]  # fmt: skip

# figure: (program, its options, the file it writes)
FIGURES: dict[str, tuple[str, list[str], str]] = {
    "inpaint": ("inpaint_ffhq", [], "grid.png"),
    "recovery": ("verify_recovery", ["threads=2"], "recovery.png"),
    "trainers-curves": ("verify_guidance", [], "curves.png"),
    "trainers-memory": ("verify_guidance", [], "memory.png"),
    "trainers-mixture": ("verify_guidance", [], "pictures-mixture.png"),
    "guidance-curve": ("compare_guidance", [], "curve.png"),
    "benchmark-frontier-time": ("benchmark", ["n=64", *BENCHMARK], "frontier-time.png"),
    "benchmark-frontier-nfe": ("benchmark", ["n=64", *BENCHMARK], "frontier-nfe.png"),
    "benchmark-pictures": (
        "benchmark",
        ["masks=[box,freeform_thick]", *BENCHMARK[1:], "n=2", "pictures=2"],
        "pictures.png",
    ),
    "benchmark-posterior": ("verify_methods", [], "posterior.png"),
    "experiment-regret": ("run_experiment", ["name=regret"], "figure.png"),
    "experiment-mean-variance": ("run_experiment", ["name=mean_variance"], "figure.png"),
    "experiment-ergodic": ("run_experiment", ["name=ergodic"], "figure.png"),
    "experiment-soc": ("run_experiment", ["name=soc"], "figure.png"),
    "experiment-art": ("run_experiment", ["name=art"], "figure.png"),
}


def draw(name: str, options: list[str], to: Path = HERE) -> Path:
    """Run the program of a figure and copy what it drew.

    Args:
        name: a key of `FIGURES`.
        options: further options of the program; they win over those of the table.
        to: folder the picture goes to.

    Returns:
        The picture's path.

    Raises:
        SystemExit: with the program's exit code, where it fails.
    """
    program, own, drawn = FIGURES[name]
    given = {o.split("=")[0] for o in options}
    own = [o for o in own if o.split("=")[0] not in given]
    if "out" not in given:
        options = [f"out=outputs/figures/{name if program == 'run_experiment' else program}", *options]
    out = next(o.split("=", 1)[1] for o in options if o.startswith("out="))
    command = [sys.executable, str(HERE.parents[1] / "examples" / f"{program}.py"), *own, *options]
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(done.returncode)
    target = to / f"{name}.png"
    shutil.copyfile(Path(out) / drawn, target)
    return target


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in FIGURES:
        print(f"error: which figure? expected one of {', '.join(FIGURES)}", file=sys.stderr)
        sys.exit(2)
    folder = [o.split("=", 1)[1] for o in sys.argv[2:] if o.startswith("to=")]
    print(draw(sys.argv[1], [o for o in sys.argv[2:] if not o.startswith("to=")], Path(folder[0]) if folder else HERE))
