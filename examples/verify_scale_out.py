"""The same results from one process and from several: ``python examples/verify_scale_out.py out=DIR``.

Trains guidance and a small backbone with one process, with parts of a batch (``accumulate``), and with processes
started by torchrun and by accelerate, all at the same global batch, and compares the weights: the largest difference
over the largest weight.  Runs the benchmark with one process, with local workers and with launched processes, and
compares the bytes of its tables.  Writes ``report.json``; the exit code is 1 if a row fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tqdm import tqdm

from aid_control.checkpoints import read_checkpoint
from aid_control.errors import Failed, InputError
from aid_control.images.backbones.registry import asset
from aid_control.program import program
from aid_control.report import Report

HERE = Path(__file__).resolve().parent
NETWORK = (
    "network.model_channels=8", "network.channel_mult=[1,2]", "network.attn_resolutions=[]",
)  # fmt: skip
Launcher = list[str]


def launcher(name: str, processes: int) -> Launcher:
    """The words before the script."""
    if name == "torchrun":
        return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    if name == "accelerate":  # --multi_gpu takes gloo where there is no GPU; --cpu would start one process
        words = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
        return [*words, "--dynamo_backend", "no", "--num_processes", str(processes)]
    raise InputError(f"launchers holds {name!r}; expected torchrun, accelerate")


def start(script: str, options: list[str], words: Launcher) -> None:
    """Run a program to its end.

    Raises:
        Failed: where it fails.
    """
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, *words, str(HERE / script), *options]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise Failed(f"{script} {' '.join(options)} ended with exit code {done.returncode}: {last}")


def distance(a: dict[str, Any], b: dict[str, Any]) -> float:
    """Largest difference of two sets of weights over the largest weight."""
    return max(float((a[k] - b[k]).abs().max()) for k in a) / max(float(v.abs().max()) for v in a.values())


def main(cfg: Any) -> int:
    runs, data = Path(cfg.out) / "runs", f"data={cfg.data or asset('faces')}"
    if cfg.processes < 2:
        raise InputError(f"processes is {cfg.processes}; expected at least 2")
    several = {f"{cfg.processes} processes, {name}": launcher(name, cfg.processes) for name in cfg.launchers}
    ways: dict[str, tuple[Launcher, list[str]]] = {
        "one": ([], []), f"{cfg.processes} parts": ([], [f"accumulate={cfg.processes}"]),
        **{name: (words, []) for name, words in several.items()},
    }  # fmt: skip
    guidance = [
        f"encoder_iterations={cfg.encoder_iterations}", f"encoder_batch={cfg.batch}", f"iterations={cfg.iterations}",
        f"batch={cfg.batch}", f"steps={cfg.steps}", f"seed={cfg.seed}",
    ]  # fmt: skip
    images = 4 * cfg.iterations * cfg.batch
    backbone = [f"kimg={images / 1000}", f"batch={cfg.batch}", f"every={images}", f"seed={cfg.seed}", *NETWORK]
    trainings = {
        f"guidance by {name}": ("train_guidance.py", [*guidance, f"estimator={name}"]) for name in cfg.estimators
    } | {"backbone": ("train_backbone.py", backbone)}
    benchmark = [
        "methods=[paste,aid]", "masks=[box,random]", "steps=[3]", "n=4", "chunk=1", "solver=euler", "figures=false",
        "reference=aid",
    ]  # fmt: skip
    measured = {"one": ([], []), "2 workers": ([], ["workers=2"]), **{n: (w, []) for n, w in several.items()}}
    report = Report(program="verify_scale_out", seed=cfg.seed, batch=cfg.batch)
    shutil.rmtree(runs, ignore_errors=True)  # a finished run would be taken for a new one
    with tqdm(total=len(trainings) * len(ways) + len(measured), unit="run", desc="scale out") as bar:
        for what, (script, options) in trainings.items():
            weights: dict[str, dict[str, Any]] = {}
            for way, (words, more) in ways.items():
                out = runs / what.replace(" ", "-") / way.replace(" ", "-").replace(",", "")
                start(script, [data, *options, *more, f"out={out}"], words)
                state = read_checkpoint(max((out / "checkpoints").glob("*.safetensors")))
                weights[way] = state["net"] if "net" in state else state["trainer"]["actor"]
                bar.update()
                if way != "one":
                    report.below(f"{what}: {way} against one", distance(weights["one"], weights[way]), cfg.tolerance)
        tables: dict[str, bytes] = {}
        for way, (words, more) in measured.items():
            out = runs / "benchmark" / way.replace(" ", "-").replace(",", "")
            start("benchmark.py", [data, *benchmark, *more, f"out={out}"], words)
            tables[way] = b"".join((out / name).read_bytes() for name in ("results.csv", "tables.md"))
            bar.update()
            if way != "one":
                differ = sum(a != b for a, b in zip(tables["one"], tables[way], strict=False))
                differ += abs(len(tables["one"]) - len(tables[way]))
                report.below(f"benchmark: {way} against one, bytes that differ", differ, 0)
    return report.finish(cfg.out)


if __name__ == "__main__":
    program("conf/verify_scale_out", main)
