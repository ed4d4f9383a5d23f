"""Precision, extreme schedules and extreme masks: ``python examples/verify_numerics.py out=DIR``.

* precision: samplers and inpainting methods in float32 and bfloat16 against float64, same noise, shipped networks:
  the largest and the root mean square difference, each over that of the float64 result;
* stability: AID, the flow and projection from 2 to 1,000 steps, noise from 80 to 800 down to 1e-6: finite, in range,
  PSNR within a band and, for AID with Euler, never falling with more steps;
* masks: every method with no known pixel, one known, one hole, a checkerboard, a single row: finite, known pixels kept.

Writes ``report.json`` and ``numerics.md`` (the first two tables); the exit code is 1 if a row fails.  One thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from torch import Tensor

from aid_control.checkpoint import atomic_write
from aid_control.errors import InputError
from aid_control.images import load_backbone
from aid_control.images.backbones.precond import Denoiser
from aid_control.images.backbones.registry import asset
from aid_control.images.backbones.wrappers import Wrapped
from aid_control.images.clock import KarrasClock
from aid_control.images.data import ImageSource, to_float
from aid_control.images.masks import make_mask
from aid_control.images.methods.registry import METHODS, bind
from aid_control.images.metrics import psnr
from aid_control.images.sampler import ablation_sampler, edm_sampler
from aid_control.noise import per_image_normal
from aid_control.program import program
from aid_control.report import Report

PARTS = ("precision", "stability", "masks")
STEPS = 8  # of the samplers
METHOD_STEPS = 5
ABLATIONS = (("vp", "vp", "vp"), ("ve", "ve", "none"), ("iddpm", "linear", "none"), ("edm", "linear", "none"))
# cheap settings of methods whose defaults take many calls
FAST: dict[str, dict[str, Any]] = {
    "optimal_control": {"iterations": 1},
    "repaint": {"jump_length": 2, "resamples": 2},
}


class Bars(NamedTuple):
    """Largest and root mean square difference from float64 allowed, relative: float32, then bfloat16."""

    max32: float
    rms32: float
    max16: float
    rms16: float


@cache
def backbone(dtype: torch.dtype) -> Denoiser:
    return load_backbone().to(dtype)


@cache
def face() -> tuple[Tensor, Tensor]:
    """The first bundled picture (1, C, H, W) in [-1, 1], and the centre box."""
    return to_float(ImageSource(asset("faces"), 64, 3).stack([0])), make_mask("box", 64, 0)[None]


class Split(Wrapped):
    """Preconditioning in float32 around a U-Net in bfloat16, to tell where the error comes from."""

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        x = x.float()
        level = torch.as_tensor(sigma).float().reshape(-1, 1, 1, 1).expand(len(x), 1, 1, 1)
        skip, scale, inside, noise = self.inner.coefficients(level)
        out = self.inner.model((inside * x).bfloat16(), noise.flatten().bfloat16(), None)
        return skip * x + scale * out.float()


def _latents(seed: int, *key: int) -> Tensor:
    return per_image_normal([seed], (3, 64, 64), *key)


def _denoiser(sigma: float, split: bool = False) -> Callable[[torch.dtype, int], Tensor]:
    def run(dtype: torch.dtype, seed: int) -> Tensor:
        net = backbone(dtype)
        if split and dtype == torch.bfloat16:
            net = Split(net)
        return net(face()[0].double() + sigma * _latents(seed).double(), sigma)

    return run


def _edm(**options: Any) -> Callable[[torch.dtype, int], Tensor]:
    def run(dtype: torch.dtype, seed: int) -> Tensor:
        noise = torch.stack([_latents(seed, k) for k in range(options["num_steps"])])
        return edm_sampler(backbone(dtype), _latents(seed), noise=noise, **options)

    return run


def _ablation(discretization: str, schedule: str, scaling: str, solver: str) -> Callable[[torch.dtype, int], Tensor]:
    def run(dtype: torch.dtype, seed: int) -> Tensor:
        return ablation_sampler(
            backbone(dtype), _latents(seed), num_steps=STEPS, solver=solver,
            discretization=discretization, schedule=schedule, scaling=scaling,
        )  # fmt: skip

    return run


def _method(name: str, options: dict[str, Any]) -> Callable[[torch.dtype, int], Tensor]:
    def run(dtype: torch.dtype, seed: int) -> Tensor:
        entry, (x, mask) = METHODS[name], face()
        weights = None if entry.load is None else entry.load(entry.shipped).to(dtype)
        return bind(name, backbone(dtype), weights, options)(x.to(dtype), mask, METHOD_STEPS, [seed])

    return run


ROWS: dict[str, Callable[[torch.dtype, int], Tensor]] = {
    **{f"denoiser at {s:g}": _denoiser(s) for s in (0.002, 0.1, 1.0, 80.0)},
    **{f"denoiser at {s:g}, only the U-Net in bfloat16": _denoiser(s, True) for s in (0.002, 1.0, 80.0)},
    "edm_sampler, Heun": _edm(num_steps=STEPS),
    "edm_sampler, churn": _edm(num_steps=STEPS, S_churn=20, S_min=0.05, S_max=50, S_noise=1.003),
    **{
        f"ablation_sampler, {d}, {solver}": _ablation(d, s, c, solver)
        for d, s, c in ABLATIONS
        for solver in ("heun", "euler")
        if (d, solver) != ("edm", "heun")  # the same as edm_sampler
    },
    **{name: _method(name, FAST.get(name, {})) for name in METHODS},
    "aid, euler": _method("aid", {"solver": "euler"}),
}

# about three times what was measured with two seeds
BARS: dict[str, Bars] = {
    "denoiser at 0.002": Bars(6e-7, 2e-7, 3e-2, 6e-3),
    "denoiser at 0.1": Bars(2e-6, 6e-7, 3e-2, 1e-2),
    "denoiser at 1": Bars(6e-6, 3e-6, 4e-2, 2e-2),
    "denoiser at 80": Bars(6e-6, 6e-6, 6e-2, 4e-2),
    "denoiser at 0.002, only the U-Net in bfloat16": Bars(6e-7, 2e-7, 2e-3, 4e-4),
    "denoiser at 1, only the U-Net in bfloat16": Bars(6e-6, 3e-6, 4e-2, 2e-2),
    "denoiser at 80, only the U-Net in bfloat16": Bars(6e-6, 6e-6, 5e-2, 4e-2),
    "edm_sampler, Heun": Bars(5e-6, 4e-6, 2e-1, 2e-1),
    "edm_sampler, churn": Bars(7e-6, 6e-6, 2e-1, 2e-1),
    "ablation_sampler, vp, heun": Bars(2e-5, 2e-5, 4e-1, 3e-1),
    "ablation_sampler, vp, euler": Bars(4e-6, 4e-6, 6e-2, 6e-2),
    "ablation_sampler, ve, heun": Bars(2e-6, 9e-7, 2e-1, 2e-1),
    "ablation_sampler, ve, euler": Bars(3e-7, 2e-7, 3e-2, 2e-2),
    "ablation_sampler, iddpm, heun": Bars(2e-5, 7e-6, 3e-1, 2e-1),
    "ablation_sampler, iddpm, euler": Bars(5e-6, 4e-6, 8e-2, 6e-2),
    "ablation_sampler, edm, euler": Bars(4e-6, 3e-6, 8e-2, 7e-2),
    "paste": Bars(7e-6, 4e-6, 3e-1, 7e-2),
    "replacement": Bars(8e-6, 4e-6, 3e-1, 7e-2),
    "repaint": Bars(5e-6, 2e-6, 7e-2, 2e-2),
    "dps": Bars(4e-6, 2e-6, 6e-2, 2e-2),
    "mcg": Bars(6e-6, 2e-6, 6e-2, 2e-2),
    "projection": Bars(8e-6, 4e-6, 4e-1, 7e-2),
    "ddnm": Bars(5e-6, 2e-6, 6e-2, 2e-2),
    "pigdm": Bars(3e-6, 9e-7, 6e-2, 2e-2),
    "sdedit": Bars(4e-6, 2e-6, 6e-2, 3e-2),
    "daps": Bars(7e-6, 3e-6, 7e-2, 3e-2),
    "red_diff": Bars(3e-3, 1e-4, 2e0, 3e-1),
    "latentpaint": Bars(5e-6, 1e-6, 6e-2, 2e-2),
    "optimal_control": Bars(5e-6, 2e-6, 1e-1, 3e-2),
    "davi": Bars(4e-6, 2e-6, 3e-2, 9e-3),
    "palette": Bars(7e-6, 3e-6, 3e-1, 6e-2),
    "aid": Bars(6e-6, 2e-6, 3e-1, 5e-2),
    "aid, euler": Bars(3e-6, 9e-7, 7e-2, 2e-2),
}


@torch.no_grad()
def differences(row: str, seed: int = 0) -> Bars:
    """What `BARS` bounds, measured.

    Args:
        row: key of ``ROWS``.
        seed: of the noise.

    Raises:
        AssertionError: for a result in another precision than the sampler promises: that of the images, or float64.
    """
    reference = ROWS[row](torch.float64, seed)
    values: list[float] = []
    for dtype in (torch.float32, torch.bfloat16):
        got = ROWS[row](dtype, seed)
        assert got.dtype == (dtype if row.split(",")[0] in METHODS else got.dtype), row
        error = got.double() - reference
        values += [float(error.abs().max() / reference.abs().max()), float(error.norm() / reference.norm())]
    return Bars(*values)


def precision(report: Report, rows: list[str], seed: int) -> list[str]:
    """Rows of the report, and the lines of the table."""
    lines = ["| | float32: largest | rms | bfloat16: largest | rms |", "|---|---|---|---|---|"]
    for row in rows:
        got = differences(row, seed)
        for kind, value, bar in zip(("float32, largest", "float32, rms", "bfloat16, largest", "bfloat16, rms"), got,
                                    BARS[row], strict=True):  # fmt: skip
            report.below(f"{row}: {kind}", value, bar)
        lines.append(f"| {row} | " + " | ".join(f"{value:.1e}" for value in got) + " |")
    return lines


SCHEDULES = ((0.002, 80.0), (0.002, 800.0), (1e-6, 800.0))  # sigma_min, sigma_max
STABLE: dict[str, tuple[int, ...]] = {"aid": (2, 5, 18, 50), "paste": (2, 5, 18), "projection": (2, 5, 18)}
RANGE = {"euler": 1.3, "heun": 3.0}  # largest value allowed in the picture; its own is 1
# dB in the hole, least at any number of steps from 2; Heun's bars are those of five steps, where it overshoots
PSNR = {
    ("aid", "euler"): 12.9, ("paste", "euler"): 11.5, ("projection", "euler"): 11.5,
    ("aid", "heun"): 9.9, ("paste", "heun"): 8.7, ("projection", "heun"): 7.7,
}  # fmt: skip


def stability(report: Report, seed: int, most: int = 1000) -> list[str]:
    """Rows of the report, and the lines of the table: PSNR in the hole and largest value by steps."""
    x, mask = face()
    net, columns = backbone(torch.float32), (2, 5, 18, 50, most)
    lines = ["| | noise | solver | " + " | ".join(f"{k} steps" for k in columns) + " |", "|---|---|---|" + "---|" * 5]
    for name, counts in STABLE.items():
        bound = {s: bind(name, net, options={"solver": s}) for s in ("euler", "heun")}
        for (low, high), solver in ((c, s) for c in SCHEDULES for s in ("euler", "heun")):
            long = (most,) if (name, solver, high) == ("aid", "euler", 80.0) else ()
            cells, ratios, sizes = dict.fromkeys(columns, ""), [], []
            for steps in counts + long:
                out = bound[solver](x, mask, steps, [seed], clock=KarrasClock(low, high))
                ratios.append(float(psnr(out, x, 1 - mask)))
                sizes.append(float(out.abs().max()))  # NaN and infinity fail the row
                cells[steps] = f"{ratios[-1]:.2f} ({sizes[-1]:.2f})"
            what = f"{name}, noise {high:g} to {low:g}, {solver}"
            report.below(f"{what}: largest value", max(sizes), RANGE[solver])
            report.above(f"{what}: lowest PSNR, dB", min(ratios), PSNR[name, solver])
            if (name, solver) == ("aid", "euler"):
                gains = [b - a for a, b in zip(ratios, ratios[1:], strict=False)]
                report.above(f"{what}: least gain of more steps, dB", min(gains), -0.02)
            lines.append(f"| {name} | {high:g} to {low:g} | {solver} | " + " | ".join(cells.values()) + " |")
    return lines


def extreme_masks(side: int) -> dict[str, Tensor]:
    """Masks (1, side, side), 1 = known, of extreme coverage."""
    none, every = torch.zeros(1, side, side), torch.ones(1, side, side)
    middle = side // 2
    board = torch.arange(side)
    masks = {"no known pixel": none, "checkerboard": ((board[:, None] + board) % 2)[None].float()}
    for word, mask, value in (("known", none, 1.0), ("hole", every, 0.0)):
        masks[f"one {word} pixel"], masks[f"one {word} row"] = mask.clone(), mask.clone()
        masks[f"one {word} pixel"][0, middle, middle] = value
        masks[f"one {word} row"][0, middle] = value
    return masks


def refused(attempt: Callable[[], Any]) -> bool:
    """Whether it ends in one sentence."""
    try:
        attempt()
    except InputError as error:
        return "\n" not in str(error) and "expected" in str(error)
    return False


def mask_rows(report: Report, seed: int) -> None:
    """Rows of the report: every method on extreme masks, and requests that make no sense."""
    x, box = face()
    masks = torch.stack(list(extreme_masks(64).values()))
    y, seeds = x.expand(len(masks), -1, -1, -1), [seed + i for i in range(len(masks))]
    asked = answered = 0
    for name in METHODS:
        bound = bind(name, backbone(torch.float32), options=FAST.get(name), one_by_one=False)
        out = bound(y, masks, 3, seeds)
        report.below(f"{name}: largest value, {len(masks)} extreme masks", float(out.abs().max()), 5.0)
        report.below(f"{name}: known pixels, largest difference", float((masks * (out - y)).abs().max()), 0.0)
        for mask, steps, clock in (
            (torch.ones_like(box), 3, None), (box, 0, None), (box, 3, KarrasClock(1.0, 1.0)),
            (box, 3, KarrasClock(0.0, 80.0)), (box, 3, KarrasClock(2.0, 1.0)), (box, 3, KarrasClock(1e-12, 800.0)),
        ):  # fmt: skip
            asked += 1
            answered += refused(partial(bound, x, mask, steps, [seed], clock=clock))
    report.near("senseless requests refused in one sentence", answered, asked, 0)


def main(config: Any) -> int:
    cfg: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    rows = list(ROWS) if cfg["rows"] is None else list(cfg["rows"])
    for given, known in ((cfg["parts"], PARTS), (rows, tuple(ROWS))):
        for name in given:
            if name not in known:
                raise InputError(f"{name!r} is unknown; expected some of {', '.join(known)}")
    torch.set_num_threads(1)
    start, lines = time.perf_counter(), list[str]()
    report = Report(settings=cfg)
    if "precision" in cfg["parts"]:
        lines += [*precision(report, rows, cfg["seed"]), ""]
    if "stability" in cfg["parts"]:
        lines += [*stability(report, cfg["seed"]), ""]
    if "masks" in cfg["parts"]:
        mask_rows(report, cfg["seed"])
    report.add("seconds", time.perf_counter() - start, "shown", True)
    atomic_write(Path(cfg["out"]) / "numerics.md", "\n".join(lines).encode())
    return report.finish(cfg["out"])


if __name__ == "__main__":
    program("conf/verify_numerics", main)
