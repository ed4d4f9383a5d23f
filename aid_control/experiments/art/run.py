r"""The ART experiment from settings to files: one dimension, two backbones, inpainting, and on demand FID and KID.

Parts write their numbers into ``parts/`` of the output folder and are used again by a run with the same settings, so a
run that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...checkpoint import atomic_write, load_tensors, save_tensors
from ...errors import InputError
from ...images.backbones.precond import Denoiser
from ...images.backbones.registry import fingerprint, load_backbone
from ...images.clock import Clock, KarrasClock
from ...images.guidance import load_guidance
from ...images.learned_clock import save_clock
from ...images.metrics import bootstrap
from ...report import Report
from ...rollout import Solver
from ..outputs import write_csv, write_figure, write_json
from .backbones import SOLVERS, Plan, clock_of, errors_of_clocks, fine_solutions, learn_clocks, refined_for, rows_of
from .figure import draw
from .images import ratio
from .inpainting import Filling, Job, bundled, learn_own, measure, training
from .one_dim import Settings, compare
from .quality import measure as measure_quality

__all__ = ["run"]

Make = Callable[[Callable[[], object]], Any]


def _cached(path: Path, settings: Mapping[str, Any], total: int, make: Make) -> Any:
    """What ``make`` returns, from the file if it was written under the same settings; with seconds of the processor."""
    asked = json.loads(json.dumps(settings))
    if path.is_file():
        try:
            found = json.loads(path.read_bytes())
            if found["settings"] == asked:
                return found
        except (ValueError, KeyError, TypeError):
            pass  # of another program: made again
    start = time.process_time()
    with tqdm(total=total, desc=path.stem) as bar:
        result = make(bar.update)
    found = {"settings": asked, "result": result, "seconds": time.process_time() - start}
    atomic_write(path, json.dumps(found).encode())
    return json.loads(json.dumps(found))


def _fine(net: Denoiser, plan: Plan, path: Path) -> tuple[Tensor, float]:
    """Fine solutions of the tested seeds, and the seconds they took; kept in a file beside the parts."""
    asked = {"backbone": str(net.fingerprint), "seeds": str(plan.seeds), "steps": str(plan.fine)}
    if path.is_file():
        tensors, about = load_tensors(path)
        if {k: about.get(k) for k in asked} == asked and "x" in tensors:
            return tensors["x"], float(about["seconds"])
    start, parts = time.process_time(), []
    for i in tqdm(range(0, plan.seeds, 8), desc=path.stem, unit="batch"):
        parts.append(fine_solutions(net, range(i, min(i + 8, plan.seeds)), plan.fine))
    x, took = torch.cat(parts), round(time.process_time() - start, 1)
    save_tensors(path, {"x": x}, {**asked, "seconds": str(took)})
    return x, took


def _backbone(name: str, options: Mapping[str, Any], parts: Path) -> dict[str, Any]:
    """Everything measured on one backbone."""
    plan = Plan(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})  # type: ignore[arg-type]
    net, name = load_backbone(name), Path(name).stem
    asked = {"backbone": str(net.fingerprint), **options}
    sizes = plan.trace // plan.stride - 1 + 2 * plan.evaluations * len(plan.refine_budgets)
    learned = _cached(parts / f"clocks-{name}.json", asked, sizes, lambda step: learn_clocks(net, name, plan, step))
    truth, took = _fine(net, plan, parts / f"fine-{name}.safetensors")
    clocks = learned["result"]["clocks"]
    rows = _cached(
        parts / f"errors-{name}.json",
        {**asked, "clocks": clocks},
        rows_of(plan, "refined" in clocks),
        lambda step: errors_of_clocks(net, clocks, plan, truth, step),
    )
    seconds = learned["seconds"] + took + rows["seconds"]
    return {"learned": learned["result"], "rows": rows["result"], "low": plan.low, "seconds": seconds}


def _inpainting(cfg: Mapping[str, Any], clocks: Mapping[str, Any], parts: Path) -> dict[str, Any]:
    """AID and projection on the bundled faces: EDM's grid, the unguided flow's clock, and for AID its own."""
    net, guidance = load_backbone(cfg["backbone"]), load_guidance()
    most = max(cfg["budgets"])
    unguided = {s: refined_for(clocks["refined"][s], most) for s in SOLVERS}
    asked = {**cfg, "fingerprint": str(net.fingerprint), "guidance": fingerprint(guidance)}

    def make_own(step: Callable[[], object]) -> dict[str, Any]:
        job = training(net, cfg["masks"], cfg["learn_images"], cfg["learn_first"])
        filling, own = Filling(net, job, guidance, cfg["fine"]), dict[str, Any]()
        for solver in SOLVERS:
            about: dict[str, str | float] = {
                "backbone": Path(cfg["backbone"]).stem,
                "fingerprint": asked["fingerprint"],
            }
            about |= {"guidance": asked["guidance"], "solver": solver, "method": "refined on AID", "calls": most}
            clock = learn_own(filling, solver, most, cfg["knots"], cfg["evaluations"], about, step)
            own[solver] = asdict(clock)
        return own

    own = _cached(parts / "clocks-aid.json", asked, 2 * cfg["evaluations"], make_own)
    job = bundled(net, cfg["masks"], cfg["images"])

    def make(step: Callable[[], object]) -> list[dict[str, Any]]:
        rows = []
        for method, guide in (("AID", guidance), ("projection", None)):
            compared: dict[str, dict[Solver, Clock]] = {"karras": dict.fromkeys(SOLVERS, KarrasClock())}
            compared["unguided"] = {s: unguided[s] for s in SOLVERS}
            if guide is not None:
                compared["own"] = {s: clock_of(own["result"][s]) for s in SOLVERS}
            found = measure(Filling(net, job, guide, cfg["fine"]), compared, cfg["budgets"], step)
            for (solver, budget, clock), m in found.items():
                row = {"method": method, "solver": solver, "budget": budget, "clock": clock, "steps": m.steps}
                rows.append(row | {"errors": m.error.tolist(), "psnr": m.psnr.tolist()})
        return rows

    asked |= {"own": own["result"], "unguided": [asdict(c) for c in unguided.values()]}
    found = _cached(parts / "inpainting.json", asked, 10 * len(cfg["budgets"]), make)
    seconds = own["seconds"] + found["seconds"]
    return {
        "clocks": own["result"],
        "rows": found["result"],
        "seconds": seconds,
        "ratios": _ratios(found["result"], job),
    }


def _ratios(rows: list[dict[str, Any]], job: Job) -> list[dict[str, Any]]:
    """Errors over those of EDM's grid, and differences of the PSNR, with intervals over the images."""
    ratios = []
    for row in rows:
        if row["clock"] in ("karras", "fine"):
            continue
        where = {k: row[k] for k in ("method", "solver", "budget")}
        value, low, high = ratio(*_pair(rows, row["clock"], "karras", **where), job.masks)
        a, b = _pair(rows, row["clock"], "karras", "psnr", **where)
        gain, gain_low, gain_high = bootstrap((a - b).reshape(job.masks, -1).mean(0))
        found = {**where, "clock": row["clock"], "ratio": value, "low": low, "high": high}
        ratios.append(found | {"psnr": gain, "psnr_low": gain_low, "psnr_high": gain_high})
    return ratios


def _pair(
    rows: list[dict[str, Any]], name: str, other: str, what: str = "errors", **where: Any
) -> tuple[Tensor, Tensor]:
    """Numbers by seed of two clocks in the same place."""
    found = []
    for clock in (name, other):
        (row,) = (r for r in rows if r["clock"] == clock and all(r[k] == v for k, v in where.items()))
        found.append(torch.tensor(row[what], dtype=torch.float64))
    return found[0], found[1]


def _report_backbone(report: Report, name: str, found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows "learned against Karras" of one backbone; the ratios of all learned clocks."""
    ratios = []
    final = "refined" if "refined" in found["learned"]["clocks"] else "local"
    for solver in SOLVERS:
        for budget in sorted({r["budget"] for r in found["rows"]}):
            mine = [r for r in found["rows"] if r["solver"] == solver and r["budget"] == budget]
            for clock in [r["clock"] for r in mine if r["clock"] != "karras"]:
                value, low, high = ratio(*_pair(mine, clock, "karras"))
                row = {"solver": solver, "budget": budget, "clock": clock, "ratio": value, "low": low, "high": high}
                ratios.append(row)
                if clock == final and budget <= found["low"]:
                    text = f"{name}, {solver}, {budget} calls: error over Karras' [{low:.3f}, {high:.3f}]"
                    report.add(text, value, "interval below 1", high < 1)
    return ratios


def _report_quality(report: Report, found: Mapping[str, Any]) -> None:
    """Rows without bars: at these numbers of images the page says what they can tell."""
    for row in found["rows"]:
        where = f"{row['solver']}, {row['calls']} calls, {row['clock']}, {found['n']} images"
        report.below(f"FID, {where}", row["fid"], float("inf"))
        report.below(f"KID, {where} [se {row['kid_error']:.4f}]", row["kid"], float("inf"))
        if row["difference"] is not None:
            text = f"KID less that of Karras' grid, {where} [se {row['difference_error']:.4f}]"
            report.below(text, row["difference"], float("inf"))


def _table(backbones: Mapping[str, Any]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        k: [] for k in ("backbone", "solver", "clock", "budget", "steps", "calls", "error", "low", "high", "detail")
    }
    for name, found in backbones.items():
        for row in found["rows"]:
            mean, low, high = bootstrap(torch.tensor(row["errors"], dtype=torch.float64))
            values = {
                "backbone": name,
                "error": mean,
                "low": low,
                "high": high,
                "detail": float(np.mean(row["detail"])),
            }
            for key in columns:
                columns[key].append(values.get(key, row.get(key)))
    return columns


def run(cfg: Any) -> int:
    """Run the experiment.

    Args:
        cfg: see ``examples/conf/experiment/art.yaml``.

    Returns:
        The exit code: 1 if a row of the report fails.

    Raises:
        InputError: for unknown parts or sizes.
    """
    from omegaconf import OmegaConf

    c: dict[str, Any] = OmegaConf.to_container(cfg) if OmegaConf.is_config(cfg) else dict(cfg)  # type: ignore[assignment]
    known = {"one_dim", "backbones", "inpainting", "fid"}
    if not c["parts"] or set(c["parts"]) - known:
        raise InputError(f"parts is {c['parts']}; expected some of {', '.join(sorted(known))}")
    if c["one_dim"]["seeds"] < 1 or any(b["seeds"] < 2 for b in c["backbones"].values()):
        raise InputError("seeds is too small; expected at least 1 in one dimension and 2 of a backbone")
    out = Path(c["out"])
    parts, numbers = out / "parts", dict[str, Any]()
    report = Report(program="run_experiment name=art")
    one_dim, backbones = None, dict[str, Any]()
    settings = Settings(**c["one_dim"]["learn"])
    if "one_dim" in c["parts"]:
        seeds = range(c["seed"], c["seed"] + c["one_dim"]["seeds"])
        asked = {**c["one_dim"], "first": c["seed"]}
        total = settings.iterations * len(seeds)
        made = _cached(
            parts / "one-dim.json", asked, total, lambda step: compare(settings, seeds, c["one_dim"]["steps"], step)
        )
        one_dim = made["result"]
        numbers["one_dim"] = one_dim | {"seconds": made["seconds"]}
        for i, k in enumerate(one_dim["steps"]):
            worst = max(abs(w[i] / one_dim["fixed"]["optimum of ART"][i] - 1) for w in one_dim["learned"])
            report.below(f"1-d, K = {k}: W2 learned over closed form - 1, largest of the seeds", worst, c["bars"]["w2"])
    if "backbones" in c["parts"]:
        for name, options in c["backbones"].items():
            backbones[name] = _backbone(name, options, parts)
            backbones[name]["ratios"] = _report_backbone(report, Path(name).stem, backbones[name])
            for kind, own in backbones[name]["learned"]["clocks"].items():
                for solver in SOLVERS:
                    for calls, clock in own[solver].items() if kind == "refined" else [(kind, own[solver])]:
                        save_clock(out / f"clock-{Path(name).stem}-{solver}-{calls}.json", clock_of(clock))
        numbers["backbones"] = backbones
        write_csv(out / "results.csv", _table(backbones))
    if "inpainting" in c["parts"]:
        where = c["inpainting"]["backbone"]
        if where not in backbones:
            raise InputError(f"inpainting.backbone is {where}; expected one of the backbones: {', '.join(backbones)}")
        if "refined" not in backbones[where]["learned"]["clocks"]:
            raise InputError(f"evaluations of {where} is 0; inpainting expects refined clocks")
        found = _inpainting(c["inpainting"], backbones[where]["learned"]["clocks"], parts)
        for solver, clock in found["clocks"].items():
            save_clock(out / f"clock-{Path(where).stem}-aid-{solver}.json", clock_of(clock))
        numbers["inpainting"] = found
    if "fid" in c["parts"]:
        numbers["fid"] = measure_quality(c["fid"], parts)
        _report_quality(report, numbers["fid"])
        rows = numbers["fid"]["rows"]
        write_csv(out / "fid.csv", {key: [row[key] for row in rows] for key in rows[0]} if rows else {})
    write_json(out / "results.json", {"settings": c, **numbers})
    if one_dim or backbones:
        write_figure(out / "figure.png", draw(one_dim, settings.end, backbones))
    return report.finish(out)
