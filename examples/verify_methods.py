"""Every method against a posterior that is known: ``python examples/verify_methods.py out=DIR``.

Images are drawn from a mixture of factor analysers, which is then the backbone: given the known pixels, the mean and
the variance of every hidden one are known exactly.  Each method fills the same holes under many seeds; reported are

* the error of its mean over the hole, root mean square, in posterior standard deviations (the sampling error of the
  mean is subtracted), and
* the ratio of its variance to the posterior's, both summed over the hole.

A posterior sampler has 0 and 1: exact posterior samples are run as a control and must.  Also checked: known pixels are
exact, an image's result depends on its batch in no bit, DPS in sigma form is DPS in VP form.  Writes ``report.json``,
``posterior.md`` and ``posterior.png``; the exit code is 1 if a row fails.
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
from aid_control.images import load_backbone
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.mixture import MixtureBackbone
from aid_control.images.clock import DDPMClock
from aid_control.images.data import to_uint8
from aid_control.images.masks import MASK_KINDS, make_mask
from aid_control.images.methods.dps import KEY as DPS_KEY
from aid_control.images.methods.dps import dps
from aid_control.images.methods.registry import METHODS, bind
from aid_control.images.pictures import png
from aid_control.noise import per_image_normal
from aid_control.program import program
from aid_control.report import Report

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 - after the backend is chosen

EXACT = "exact posterior"


def problems(cfg: dict[str, Any]) -> tuple[MixtureBackbone, Tensor, Tensor]:
    """The backbone, images (N, C, H, W) drawn from it, and masks."""
    net = load_backbone(cfg["backbone"])
    if not isinstance(net, MixtureBackbone):
        raise InputError(f"backbone is {cfg['backbone']}; expected one with a known posterior, such as mixture")
    seeds = [cfg["seed"] + 1000 + i for i in range(cfg["images"])]
    masks = torch.stack([make_mask(cfg["mask"], net.shape[-1], cfg["seed"] + i) for i in range(cfg["images"])])
    return net, net.sample(seeds), masks


@torch.no_grad()
def run(name: str, steps: int, options: dict[str, Any], cfg: dict[str, Any]) -> dict[str, Tensor]:
    """Moments of one method, in its own process: means and variances (N, C, H, W), and its calls; kept in a file."""
    torch.set_num_threads(1)
    net, x, masks = problems(cfg)
    key = [name, steps, options, net.fingerprint, *(cfg[k] for k in ("mask", "images", "samples", "seed"))]
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
    file = Path(cfg["out"]) / "runs" / f"{name.replace(' ', '_')}-{steps}-{digest}.safetensors"
    if file.is_file():
        return load_tensors(file)[0]
    bound = None if name == EXACT else bind(name, net, options=options, one_by_one=False)
    means, variances = [], []
    for i in range(cfg["images"]):
        parts = []
        for j in range(0, cfg["samples"], cfg["batch"]):
            seeds = [cfg["seed"] + cfg["samples"] * i + k for k in range(j, min(j + cfg["batch"], cfg["samples"]))]
            y, mask = (v[i : i + 1].expand(len(seeds), -1, -1, -1) for v in (x, masks))
            parts.append(net.posterior_sample(y, mask, seeds) if bound is None else bound(y, mask, steps, seeds))
        samples = torch.cat(parts).double()
        means.append(samples.mean(0))
        variances.append(samples.var(0))
    n = cfg["images"] * cfg["samples"]
    calls = [0, 0] if bound is None else [bound.forward_calls / n, bound.backward_calls / n]
    result = {"mean": torch.stack(means), "variance": torch.stack(variances), "calls": torch.tensor(calls)}
    save_tensors(file, result, {})
    return result


def distances(result: dict[str, Tensor], mean: Tensor, variance: Tensor, hole: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Error of the mean in posterior deviations and ratio of variances, (N,) each."""

    def over(v: Tensor) -> Tensor:
        return (hole * v).flatten(1).sum(1)

    error = over((result["mean"] - mean).square() - result["variance"] / n).clamp_min(0)
    return (error / over(variance)).sqrt(), over(result["variance"]) / over(variance)


def vp_difference() -> float:
    """Largest difference of DPS in sigma form and, as published, in variance-preserving form, 1,000 levels."""
    i = torch.arange(8, dtype=torch.float64)
    row = torch.exp(-0.5 * ((i[:, None] - i) / 2) ** 2)
    net = GaussianBackbone.from_covariance(
        0.1 * torch.ones(1, 8, 8), 0.25 * torch.kron(row, row), floor=1e-4, dtype=torch.float64
    )
    seeds, mask = [4, 5], make_mask("box", 8, 0).expand(2, 1, 8, 8).double()
    y = 0.5 * per_image_normal(seeds, net.shape, 1).double()
    ours = dps(net, y, mask, 1000, seeds=seeds, clock=DDPMClock())
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cat([torch.ones(1, dtype=torch.float64), (1 - beta).cumprod(0)])
    x = (1 - abar[-1]).sqrt() * per_image_normal(seeds, net.shape).double()
    for k, t in enumerate(range(1000, 0, -1)):
        with torch.enable_grad():
            x = x.requires_grad_()
            x0 = net(x / abar[t].sqrt(), ((1 - abar[t]) / abar[t]).sqrt())
            (g,) = torch.autograd.grad((mask * (y - x0)).flatten(1).norm(dim=1).sum(), x)
        b, left = beta[t - 1], (1 - abar[t - 1]) / (1 - abar[t])
        z = per_image_normal(seeds, net.shape, DPS_KEY, k).double()
        x = x.detach()
        x = abar[t - 1].sqrt() * b / (1 - abar[t]) * x0 + (1 - b).sqrt() * left * x + (b * left).sqrt() * z - 0.5 * g
    return float((ours - torch.where(mask.bool(), y, x)).abs().max())


@torch.no_grad()
def batch_rows(report: Report, name: str, net: MixtureBackbone, x: Tensor, masks: Tensor) -> None:
    """Known pixels, and batch 1 against batch 7, at six steps."""
    bound = bind(name, net)
    whole, single = bound(x, masks, 6, list(range(7))), bound(x[4:5], masks[4:5], 6, [4])
    report.below(f"{name}: known pixels, largest difference", float((masks * (whole - x)).abs().max()), 0.0)
    report.below(f"{name}: batch 1 against batch 7, largest difference", float((whole[4:5] - single).abs().max()), 0.0)


def picture(moments: dict[str, tuple[Tensor, Tensor]], hole: Tensor) -> bytes:
    """First image: means above, standard deviations below, one column a method."""
    fig, axes = plt.subplots(2, len(moments), figsize=(1.25 * len(moments), 3.0), squeeze=False)
    top = max(float(variance.sqrt().mean(0).max()) for _, variance in list(moments.values())[:1]) * 2
    for j, (title, (mean, variance)) in enumerate(moments.items()):
        axes[0, j].imshow(to_uint8(mean.float()).permute(1, 2, 0).numpy())
        axes[0, j].set_title(title, fontsize=6)
        axes[1, j].imshow((hole * variance.sqrt()).mean(0).numpy(), vmin=0, vmax=top, cmap="magma")
    for ax in axes.flat:
        ax.axis("off")
    fig.tight_layout(pad=0.2)
    return png(fig, 140)


def main(config: Any) -> int:
    cfg: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    if cfg["mask"] not in MASK_KINDS or min(cfg["images"], cfg["batch"], cfg["workers"]) < 1 or cfg["samples"] < 2:
        raise InputError("expected a known mask kind, images, batch, workers >= 1 and samples >= 2")
    torch.set_num_threads(1)
    net, x, masks = problems(cfg)
    jobs = [(EXACT, 0, {})]
    chosen = list(cfg["runs"]) if cfg["methods"] is None else cfg["methods"]
    for name in chosen:
        if name not in cfg["runs"]:
            raise InputError(f"method {name!r} has no run; expected some of {', '.join(cfg['runs'])}")
        for steps, options in cfg["runs"][name]:
            bind(name, net, options=options)  # refuses what it does not know, before anything is computed
            jobs.append((name, steps, options))
    hole = 1 - masks
    mean, variance = net.posterior_mean(x, masks).double(), net.posterior_variance(x, masks)
    results = []
    with ProcessPoolExecutor(cfg["workers"], mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run, *job, cfg) for job in jobs]
        for future in tqdm(futures, desc="runs"):
            results.append(future.result())

    report = Report(settings=cfg)
    report.below("DPS in sigma form - DPS in VP form, 1,000 levels, largest difference", vp_difference(), 1e-10)
    seven = net.sample([cfg["seed"] + 1000 + i for i in range(7)])
    mixed = torch.stack([make_mask("mixed", net.shape[-1], i) for i in range(7)])
    for name in chosen:
        batch_rows(report, name, net, seven, mixed)
    lines = [
        "| method | levels | options | calls (forth + back) | error of the mean | ratio of variances |",
        "|---|---|---|---|---|---|",
    ]
    shown = {}
    for (name, steps, options), result in zip(jobs, results, strict=True):
        error, ratio = (v.mean() for v in distances(result, mean, variance, hole, cfg["samples"]))
        if name == EXACT:
            report.below("exact samples (control): error of the mean", float(error), 0.1)
            report.near("exact samples (control): ratio of variances", float(ratio), 1.0, 0.1)
        else:
            report.add(f"{name}, {steps} levels {options or ''}: error of the mean", float(error), "reported", True)
            report.add(f"{name}, {steps} levels {options or ''}: ratio of variances", float(ratio), "reported", True)
        label = METHODS[name].label if name in METHODS else name
        told = ", ".join(f"{k} = {v}" for k, v in options.items())
        forth, back = result["calls"].tolist()
        calls = "" if name == EXACT else f"{forth:.0f} + {back:.0f}"
        lines.append(f"| {label} | {steps or ''} | {told} | {calls} | {float(error):.2f} | {float(ratio):.2f} |")
        shown[f"{label}\n{steps} levels\n{told}" if steps else label] = (result["mean"][0], result["variance"][0])
    out = Path(cfg["out"])
    atomic_write(out / "posterior.md", ("\n".join(lines) + "\n").encode())
    atomic_write(out / "posterior.png", picture(shown, hole[0]))
    print("\n".join(lines))
    return report.finish(out)


if __name__ == "__main__":
    program("conf/verify_methods", main)
