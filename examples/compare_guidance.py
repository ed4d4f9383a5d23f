"""AID against the flow it corrects: ``python examples/compare_guidance.py data=TEST.zip lpips=alexnet.pth``.

Two questions on held-out faces.  (1) At equal calls of the backbone, is AID on the projected flow better than
projection (DDNM without noise) itself, in hole PSNR and in hole LPIPS?  (2) What does beta trade: hole PSNR, SSIM and
LPIPS of AID against the pretrained flow for several values, a curve from fidelity to realism.  Intervals are 95 %
bootstrap intervals of paired differences over the images.  Writes ``report.json``, ``curve.png``, ``pictures.png``; the
exit code is 1 if a row of the first question fails.  Every measurement leaves a file: a restart goes on.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import torch
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

from aid_control.checkpoint import atomic_write, load_tensors, save_tensors
from aid_control.errors import InputError
from aid_control.images import inpaint, load_backbone, load_guidance
from aid_control.images.backbones.precond import Denoiser
from aid_control.images.data import ImageSource, to_float
from aid_control.images.inpaint import function_evaluations
from aid_control.images.masks import MASK_KINDS, make_mask
from aid_control.images.methods.projection import projection
from aid_control.images.metrics import bootstrap, psnr, ssim
from aid_control.images.perceptual import Lpips
from aid_control.images.pictures import picture_rows
from aid_control.program import program
from aid_control.report import Report

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the backend is chosen

METRICS = {"psnr": "hole PSNR, dB", "ssim": "hole SSIM", "lpips": "hole LPIPS"}
SHOWN = 8


def images_and_masks(cfg: dict[str, Any], net: Denoiser, mask: str, most: int) -> tuple[Tensor, Tensor]:
    source = ImageSource(cfg["data"], net.img_resolution, net.img_channels)
    n = min(cfg["n"], most, len(source))
    masks = [make_mask(mask, net.img_resolution, cfg["seed"] + i) for i in range(n)]
    return to_float(source.stack(range(n))), torch.stack(masks)


@torch.no_grad()
def measure(name: str, guidance: str | None, mask: str, steps: int, cfg: dict[str, Any], folder: str) -> dict[str, Any]:
    """Every image by one method, in its own process; (metric -> one number an image), kept in a file.

    Args:
        name: ``flow``, ``projection`` or ``aid``.
        guidance: file or shipped name, for ``aid``.
        mask: kind.
        steps: of the solver.
        cfg: the settings.
        folder: where results are kept.
    """
    torch.set_num_threads(1)
    net = load_backbone(cfg["backbone"], path=cfg["path"])
    module = load_guidance(guidance) if guidance else None
    weights = [] if module is None else [v.double().sum().item() for v in module.state_dict().values()]
    key = [name, mask, cfg["solver"], steps, cfg["n"], cfg["seed"], net.fingerprint, Path(cfg["data"]).name, weights]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    file = Path(folder) / f"{name}-{mask}-{steps}-{digest}.json"
    if file.is_file():
        return json.loads(file.read_text())
    x, masks = images_and_masks(cfg, net, mask, cfg["n"])
    distance = Lpips(cfg["lpips"])
    rows: dict[str, list[float]] = {metric: [] for metric in METRICS}
    shown = []
    for i in range(0, len(x), cfg["batch"]):
        clean, m = x[i : i + cfg["batch"]], masks[i : i + cfg["batch"]]
        seeds = range(cfg["seed"] + i, cfg["seed"] + i + len(clean))
        if name == "projection":
            out = projection(net, clean * m, m, steps, solver=cfg["solver"], seeds=seeds)
        else:
            out = inpaint(net, module, clean * m, m, steps, cfg["solver"], seeds=seeds)
        hole = 1 - m
        for metric, value in (
            ("psnr", psnr(out, clean, hole)), ("ssim", ssim(out, clean, hole)), ("lpips", distance(out, clean, hole))
        ):  # fmt: skip
            rows[metric] += value.double().tolist()
        shown.append(out[: max(SHOWN - i, 0)])
    save_tensors(file.with_suffix(".safetensors"), {"shown": torch.cat(shown)}, {})
    result = {**rows, "pictures": str(file.with_suffix(".safetensors").name)}
    atomic_write(file, json.dumps(result).encode())
    return result


def compare(report: Report, title: str, ours: dict[str, Any], theirs: dict[str, Any], bar: bool) -> None:
    """Rows of the paired differences, ours - theirs; with ``bar`` PSNR must be higher and LPIPS lower."""
    for metric, words in METRICS.items():
        a, b = (torch.tensor(r[metric], dtype=torch.float64) for r in (ours, theirs))
        difference, low, high = bootstrap(a - b)
        demand = f"{'95 %'} interval {low:+.4f} to {high:+.4f}; {float(a.mean()):.4f} against {float(b.mean()):.4f}"
        good = high < 0 if metric == "lpips" else low > 0
        if bar and metric != "ssim":
            demand = f"{'below' if metric == 'lpips' else 'above'} 0: {demand}"
            report.add(f"{title}: difference of {words}", difference, demand, good)
        else:
            report.add(f"{title}: difference of {words}", difference, demand, True)


def draw_curve(out: Path, cfg: dict[str, Any], results: dict[tuple[Any, ...], dict[str, Any]]) -> None:
    fig, axes = plt.subplots(1, len(cfg["masks"]), figsize=(3.6 * len(cfg["masks"]), 3.4), squeeze=False)
    for ax, mask in zip(axes[0], cfg["masks"], strict=True):
        points = []
        for label in ("flow", *cfg["betas"]):
            row = results[("flow" if label == "flow" else "aid", label, mask)]
            (x, x0, x1), (y, y0, y1) = (bootstrap(torch.tensor(row[metric])) for metric in ("psnr", "lpips"))
            style = dict(fmt="s" if label == "flow" else "o", color="grey" if label == "flow" else "C0", ms=4)
            ax.errorbar(x, y, xerr=[[x - x0], [x1 - x]], yerr=[[y - y0], [y1 - y]], **style)
            name = "pretrained flow" if label == "flow" else f"beta {label}"
            ax.annotate(name, (x, y), textcoords="offset points", xytext=(4, 5), fontsize=7)
            if label != "flow":
                points.append((x, y))
        ax.plot(*zip(*points, strict=True), color="C0", lw=0.8)
        ax.set(title=mask, xlabel="hole PSNR, dB (fidelity)")
    axes[0, 0].set_ylabel("hole LPIPS (lower = more realistic)")
    fig.tight_layout()
    fig.savefig(out / "curve.png", dpi=120)
    plt.close(fig)


def main(config: Any) -> int:
    cfg: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    for mask in (cfg["mask"], *cfg["masks"]):
        if mask not in MASK_KINDS:
            raise InputError(f"mask is {mask!r}; expected one of {', '.join(MASK_KINDS)}")
    if min(cfg["n"], cfg["batch"], cfg["workers"], cfg["beta_steps"], *cfg["steps"]) < 1:
        raise InputError("n, batch, workers, steps and beta_steps: expected at least 1")
    if cfg["solver"] not in ("euler", "heun"):
        raise InputError(f"solver is {cfg['solver']!r}; expected euler or heun")
    Lpips(cfg["lpips"])
    net = load_backbone(cfg["backbone"], path=cfg["path"])
    x, masks = images_and_masks(cfg, net, cfg["mask"], SHOWN)
    for file in (cfg["guidance"], cfg["flow_guidance"], *cfg["betas"].values()):
        load_guidance(file)
    out = Path(cfg["out"])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); expected a folder") from error

    wanted: dict[tuple[Any, ...], tuple[str, str | None, str, int]] = {}
    for steps in cfg["steps"]:
        wanted["projection", steps] = ("projection", None, cfg["mask"], steps)
        wanted["aid on projection", steps] = ("aid", cfg["guidance"], cfg["mask"], steps)
        wanted["aid on flow", steps] = ("aid", cfg["flow_guidance"], cfg["mask"], steps)
    for mask in cfg["masks"]:
        wanted["flow", "flow", mask] = ("flow", None, mask, cfg["beta_steps"])
        for beta, file in cfg["betas"].items():
            wanted["aid", beta, mask] = ("aid", file, mask, cfg["beta_steps"])
    context = multiprocessing.get_context("spawn")
    results = {}
    with ProcessPoolExecutor(cfg["workers"], mp_context=context) as pool:
        futures = {key: pool.submit(measure, *args, cfg, str(out)) for key, args in wanted.items()}
        for key, future in tqdm(futures.items(), desc="measurements"):
            results[key] = future.result()

    means = {" ".join(map(str, k)): {m: sum(r[m]) / len(r[m]) for m in METRICS} for k, r in results.items()}
    report = Report(settings=cfg, means=means)
    for steps in cfg["steps"]:
        nfe = function_evaluations(steps, cfg["solver"], net)
        for flow, key in (("projected", "aid on projection"), ("plain", "aid on flow")):
            title = f"AID on the {flow} flow - projection, NFE {nfe}"
            compare(report, title, results[key, steps], results["projection", steps], flow == "projected")
    for mask in cfg["masks"]:
        for beta in cfg["betas"]:
            ours, theirs = results["aid", beta, mask], results["flow", "flow", mask]
            compare(report, f"{mask}, beta {beta}: AID - pretrained flow", ours, theirs, False)
    draw_curve(out, cfg, results)
    rows = {"original": x, "masked": x * masks}
    for name in ("projection", "aid on projection", "aid on flow"):
        rows[name] = load_tensors(out / results[name, cfg["steps"][-1]]["pictures"])[0]["shown"]
    atomic_write(out / "pictures.png", picture_rows(rows, SHOWN))
    return report.finish(out)


if __name__ == "__main__":
    program("conf/compare_guidance", main)
