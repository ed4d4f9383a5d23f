"""The benchmark from options to files: check everything, compute what is missing, put it together."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...checkpoint import atomic_write, clear_temporaries
from ...errors import InputError
from ...parallel import Place, place
from ..perceptual import Lpips
from .choose import choose
from .figures import frontier, picture_matrix
from .grid import Shard, file_hash, lay_out, own_options
from .inputs import Inputs, Networks
from .processes import PATIENCE, compute, ready
from .sets import PACKAGE, distributions, inception
from .settings import Settings
from .summary import tables, timing
from .table import Table, read_table, write_csv, write_parquet

__all__ = ["run"]

SHARDS = "shards"
PACKAGES = ("torch", "numpy", "scipy", "lpips", "torchmetrics", "accelerate", "pandas", "pyarrow")


@dataclass
class _Plan:
    """What is to be done, and what it is done with; holds no network, so that workers' memory is their own.

    Attributes:
        shards: all, in order.
        inputs: images, masks, seeds.
        prints: fingerprints of the backbone (key ``""``) and, by method, of trained modules.
        measures: hashes of the feature networks.
        notes: what is left out.
    """

    shards: list[Shard]
    inputs: Inputs
    prints: dict[str, str]
    measures: dict[str, str]
    notes: list[str]

    @property
    def methods(self) -> list[str]:
        """Names, in order."""
        return [name for name in self.prints if name]


def run(settings: Settings) -> None:
    """Run a benchmark.

    Args:
        settings: options; results go to ``settings.out``.

    Raises:
        InputError: for unusable options, before anything is computed or written.
        Failed: if a worker ended before its share; what is computed is kept.
    """
    where = place(settings.device, PATIENCE)
    torch.set_num_threads(settings.threads)  # behind accelerate, which sets another number
    plan = _plan(settings, where)
    out, shards = Path(settings.out), plan.shards
    folder = out / SHARDS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if where.first:
            clear_temporaries(out)
            clear_temporaries(folder)  # of a run that was killed while it wrote
        where.wait()  # nobody writes before
        if where.first:
            done = len(ready(shards, folder))
            print(*plan.notes, sep="\n", end="\n" if plan.notes else "")
            sizes = f"{len(plan.methods)} methods, {len(settings.masks)} masks, {plan.inputs.n} images"
            print(f"{sizes}: {len(shards)} shards" + (f", {done} of them computed before" if done else ""))
        compute(settings, shards, folder, where)
        where.wait()
        if where.first:
            _write(settings, plan, read_table(shards, folder), out)
            manifest = json.dumps(_manifest(settings, plan, where), indent=1)
            atomic_write(out / "manifest.json", manifest.encode())
            print((out / "tables.md").read_text())
            print(f"tables: {out}/tables.md, {out}/timing.md; numbers: {out}/results.csv; figures: {out}/*.png")
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); expected a writable folder") from error
    where.wait()  # nobody starts the next run of a sweep before the tables are written


def _plan(settings: Settings, where: Place) -> _Plan:
    networks = Networks(settings, where.device)
    inputs = Inputs(settings, networks.main)
    for name in ("lpips", "inception"):
        if getattr(settings, name) is not None and inputs.shape[0] != 3:
            raise InputError(f"{name} is given for images of {inputs.shape[0]} channels; expected 3, or {name}=null")
    if settings.inception is not None and inputs.n < 2:
        raise InputError(f"inception is given for {inputs.n} image; expected at least 2, or inception=null")
    _lpips(settings)
    inception(settings.inception, "cpu")
    packaged = settings.inception == PACKAGE
    measures = {
        "lpips": file_hash(settings.lpips),
        "inception": PACKAGE if packaged else file_hash(settings.inception),
    }
    for mask in settings.masks:  # here, or every method would refuse it
        inputs.check(inputs.images([0]), mask, [0])
    modules, notes = choose(settings, networks, inputs, where.device)
    prints = {"": networks.backbone.fingerprint, **modules}
    return _Plan(lay_out(settings, inputs, list(modules), prints, measures), inputs, prints, measures, notes)


def _lpips(settings: Settings) -> Lpips | None:
    return None if settings.lpips is None else Lpips(settings.lpips)


def _write(settings: Settings, plan: _Plan, table: Table, out: Path) -> None:
    inputs = plan.inputs
    write_csv(table, out)
    write_parquet(out)
    title = (
        f"{inputs.n} images, seeds {settings.seed} to {settings.seed + inputs.n - 1}, backbone {settings.backbone}, "
        f"solver {settings.solver} where a method has the choice."
    )
    sets = distributions(table, inputs, _lpips(settings) if settings.diversity_seeds else None)
    atomic_write(out / "tables.md", tables(table, settings.reference, sets, title).encode())
    load = f"{settings.threads} threads a process, {settings.workers} local workers, one by one: {settings.one_by_one}."
    costs = "Median seconds an image, largest peak of resident memory (networks and torch included). "
    atomic_write(out / "timing.md", timing(table, costs + load).encode())
    if settings.figures:
        atomic_write(out / "frontier-time.png", frontier(table, "time"))
        atomic_write(out / "frontier-nfe.png", frontier(table, "nfe"))
    if settings.figures and settings.pictures:
        atomic_write(out / "pictures.png", picture_matrix(table, inputs, settings.pictures))


def _manifest(settings: Settings, plan: _Plan, where: Place) -> dict[str, Any]:
    """What a reader needs to make the numbers again."""
    return {
        "command": sys.argv,
        "settings": dataclasses.asdict(settings),
        "methods": {
            name: {
                "steps": settings.steps_of(name), "options": own_options(name, settings),
                "module": plan.prints[name], "weights": settings.weights.get(name),
            }
            for name in plan.methods
        },
        "left_out": plan.notes,
        "backbone": plan.prints[""],
        "feature_networks": plan.measures,
        "images": {str(i): name for i, name in enumerate(plan.inputs.names)},
        "data": str(plan.inputs.source.path),
        "seeds": plan.inputs.seeds(range(plan.inputs.n)),
        "shards": [shard.file for shard in plan.shards],
        "versions": {"aid-control": __version__, "python": platform.python_version(), **_versions()},
        "machine": {
            "system": platform.system(), "processor": platform.machine(), "device": where.device,
            "cpu": torch.backends.cpu.get_cpu_capability(), "processes": where.count, "workers": settings.workers,
        },
    }  # fmt: skip


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
