"""Inpaint faces with a frozen backbone and AID guidance: ``python examples/inpaint_ffhq.py mask=freeform``.

Runs the pretrained flow (known pixels pasted at the end), replacement, projection and AID on the same images, masks
and seeds, and with ``backbone=mixture`` also the exact posterior mean and an exact posterior sample; writes
``grid.png``, every result as a PNG and ``metrics.json`` into ``out`` and prints the table.  Masks: 1 = known,
0 = hole.  See ``conf/inpaint_ffhq.yaml`` for the options.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import aid_control
from aid_control.checkpoint import atomic_write
from aid_control.errors import InputError
from aid_control.images import inpaint, load_backbone, load_guidance
from aid_control.images.backbones.mixture import MixtureBackbone
from aid_control.images.backbones.registry import asset
from aid_control.images.data import ImageSource, to_float, to_uint8, write_png
from aid_control.images.guidance import DEFAULT_GUIDANCE, shipped_guidance
from aid_control.images.inpaint import check_images, function_evaluations
from aid_control.images.masks import mask_source
from aid_control.images.methods.projection import projection
from aid_control.images.methods.replacement import replacement
from aid_control.images.metrics import psnr, ssim, summary
from aid_control.images.micro_batch import MicroBatch
from aid_control.images.pictures import png
from aid_control.program import check_device, program

LABELS = {
    "pretrained": "pretrained flow, pasted",
    "replacement": "replacement",
    "projection": "projection",
    "aid": "AID",
    "posterior_mean": "exact posterior mean",
    "posterior_sample": "exact posterior sample",
}


def read_inputs(cfg: Any, side: int, channels: int) -> tuple[Tensor, Tensor, list[str]]:
    """Clean images (N, C, H, W) in [-1, 1], masks (N, 1, H, W), and names."""
    source = ImageSource(cfg.image or cfg.data or asset("faces"), side, channels)
    n = min(len(source), 64 if cfg.n is None else cfg.n)
    if n < 1:
        raise InputError(f"n is {cfg.n}; expected at least 1")
    images = to_float(source.stack(range(n)))
    masks = mask_source(str(cfg.mask), side)(range(cfg.seed, cfg.seed + n))
    return images, masks, [Path(name).stem for name in source.names[:n]]


def run(
    name: str, method: Callable[..., Tensor], x: Tensor, masks: Tensor, cfg: Any, batches: MicroBatch
) -> tuple[Tensor, float]:
    """One method over all images in batches that fit into memory: (results, seconds an image)."""
    seconds = 0.0
    with tqdm(total=len(x) * cfg.steps, desc=LABELS[name], unit="step", leave=False) as bar:

        def fill(rows: slice) -> Tensor:
            nonlocal seconds
            bar.n = rows.start * cfg.steps  # steps of an attempt that did not fit do not count
            size, start = rows.stop - rows.start, time.perf_counter()
            result = method(
                y=x[rows].to(cfg.device), mask=masks[rows].to(cfg.device), steps=cfg.steps, solver=cfg.solver,
                seeds=range(cfg.seed + rows.start, cfg.seed + rows.stop), callback=lambda k, x: bar.update(size),
            ).cpu()  # fmt: skip
            seconds += time.perf_counter() - start
            return result

        out = torch.cat(batches(fill, len(x)))
    return out, seconds / len(x)


def measure(x: Tensor, masks: Tensor, result: Tensor, batches: MicroBatch) -> dict[str, Any]:
    """PSNR and SSIM over the hole and over the image, with 95 % intervals over the images."""

    def values(rows: slice) -> Tensor:
        a, b, hole = result[rows], x[rows], 1 - masks[rows]
        return torch.stack([psnr(a, b, hole), psnr(a, b), ssim(a, b, hole), ssim(a, b)])

    names = ("psnr_hole", "psnr_image", "ssim_hole", "ssim_image")
    rows = {name: summary(v) for name, v in zip(names, torch.cat(batches(values, len(x)), dim=1), strict=True)}
    # strict JSON knows no NaN: an interval of one image, or a PSNR where nothing differs, is null
    return {name: {k: v if math.isfinite(v) else None for k, v in row.items()} for name, row in rows.items()}


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def picture(x: Tensor, masks: Tensor, results: dict[str, Tensor], rows: int) -> bytes:
    """The labelled grid: original, masked, pretrained flow, what knows more, absolute error of AID (if it ran)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    n = min(rows, len(x))
    columns = {"original": x, "masked (grey = hole)": masks * x}
    columns |= {LABELS[name]: result for name, result in results.items() if name != "replacement"}
    if "aid" in results:
        error = (results["aid"] - x).abs().mean(1, keepdim=True).clip(0, 1).expand_as(x) * 2 - 1
        columns["|AID - original|"] = error
    fig, axes = plt.subplots(n, len(columns), figsize=(1.7 * len(columns), 1.7 * n + 0.3), squeeze=False)
    for j, (title, images) in enumerate(columns.items()):
        axes[0, j].set_title(title, fontsize=8)
        for i in range(n):
            axes[i, j].imshow(to_uint8(images[i]).permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray")
            axes[i, j].axis("off")
    fig.tight_layout(pad=0.3)
    return png(fig, 130)


def main(cfg: Any) -> None:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    check_device(cfg.device)
    for option in ("batch", "steps"):
        if cfg[option] < 1:
            raise InputError(f"{option} is {cfg[option]}; expected at least 1")
    backbone = load_backbone(cfg.backbone, cfg.device, cfg.path, cfg.sha256)
    guidance = load_guidance(cfg.guidance, cfg.device) if cfg.guidance else shipped_guidance(backbone, cfg.device)
    chosen = cfg.guidance or (guidance and DEFAULT_GUIDANCE)
    if guidance is None:
        print("no guidance is shipped for this backbone: AID is left out")
    x, masks, names = read_inputs(cfg, backbone.shape[-1], backbone.shape[0])
    check_images(backbone, x, masks, str(cfg.image or cfg.data or "bundled images"))

    methods: dict[str, Callable[..., Tensor]] = {
        "pretrained": lambda **kw: inpaint(backbone, None, **kw),
        "replacement": lambda **kw: replacement(backbone, **kw),
        "projection": lambda **kw: projection(backbone, **kw),
    }
    if guidance is not None:
        methods["aid"] = lambda **kw: inpaint(backbone, guidance, **kw)
    if isinstance(backbone, MixtureBackbone):
        methods["posterior_mean"] = lambda y, mask, **kw: backbone.posterior_mean(y, mask)
        methods["posterior_sample"] = lambda y, mask, seeds, **kw: backbone.posterior_sample(y, mask, seeds)
    # One step on one image first: the first call of every kernel pays for its set-up, and a guidance file of
    # another backbone is refused before anything is written.
    one = dict(y=x[:1].to(cfg.device), mask=masks[:1].to(cfg.device), steps=1, solver=cfg.solver, seeds=[0])
    batches = MicroBatch(cfg.batch)
    for method in methods.values():
        batches(lambda _, method=method: method(**one), 1)
    results, table = {}, {}
    for name, method in methods.items():
        results[name], seconds = run(name, method, x, masks, cfg, batches)
        table[name] = {
            **measure(x, masks, results[name], batches),
            "nfe": 0 if name.startswith("posterior") else function_evaluations(cfg.steps, cfg.solver, backbone),
            "seconds_per_image": seconds,
        }

    out = Path(cfg.out)
    try:
        for name, images in {**results, "original": x, "mask": masks * 2 - 1}.items():
            for i, image in enumerate(images):
                write_png(out / name / f"{i:04d}-{names[i]}.png", to_uint8(image))
        atomic_write(out / "grid.png", picture(x, masks, results, cfg.rows))
        report = {
            "methods": table,
            "images": len(x), "data": str(cfg.image or cfg.data or "bundled"), "mask": str(cfg.mask),
            "hole_fraction": float(1 - masks.mean()), "steps": cfg.steps, "solver": cfg.solver,
            "seeds": [cfg.seed, cfg.seed + len(x) - 1], "backbone": str(cfg.backbone), "guidance": chosen,
            "guidance_facts": guidance and guidance.facts,
            "guidance_parameters": guidance and guidance.parameter_count(),
            "backbone_parameters": sum(p.numel() for p in backbone.parameters()),
            "versions": {"aid_control": aid_control.__version__, "torch": torch.__version__,
                         "python": platform.python_version()},
            "device": cfg.device, "threads": torch.get_num_threads(), "batch": batches.size,
        }  # fmt: skip
        atomic_write(out / "metrics.json", json.dumps(report, indent=1).encode())
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); expected a writable folder") from error

    hole = 100 * report["hole_fraction"]
    print(f"{len(x)} images, mask {cfg.mask} ({hole:.0f} % hole), {cfg.steps} {cfg.solver} steps")
    heads = ("hole PSNR", "95 %", "image PSNR", "hole SSIM", "image SSIM", "NFE", "s/image")
    print(f"{'method':24s}" + "".join(f"{head:>12s}" for head in heads))
    for name, row in table.items():
        columns = [
            _number(row["psnr_hole"]["mean"], 2),
            "± " + _number(row["psnr_hole"]["ci95"], 2),
            _number(row["psnr_image"]["mean"], 2),
            _number(row["ssim_hole"]["mean"], 3),
            _number(row["ssim_image"]["mean"], 3),
            str(row["nfe"]),
            _number(row["seconds_per_image"], 3),
        ]
        print(f"{LABELS[name]:24s}" + "".join(f"{column:>12s}" for column in columns))
    print(f"pictures and numbers: {out}/grid.png, {out}/metrics.json")


if __name__ == "__main__":
    program("conf/inpaint_ffhq", main)
