"""Train a baseline: ``python examples/train_baseline.py method=palette data=faces.zip minutes=45``.

Writes into ``out``: ``checkpoints`` (everything; a killed run goes on from the newest whole one and ends with the same
weights as an uninterrupted one) and ``METHOD.safetensors`` (averaged weights and the facts of the run).  See
``conf/train_baseline.yaml`` for the options.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from aid_control.checkpoint import clear_temporaries, content_hash
from aid_control.checkpoints import Checkpoints
from aid_control.errors import InputError
from aid_control.images import load_backbone
from aid_control.images.backbones.conditional import ConditionalDenoiser, network_arguments
from aid_control.images.backbones.precond import Denoiser
from aid_control.images.data import ImageSource
from aid_control.images.methods.baseline_training import Trainer
from aid_control.images.methods.davi_training import DaviLoss, DaviTrainer
from aid_control.images.methods.palette_training import PaletteTrainer
from aid_control.images.methods.propagation_training import PropagationTrainer
from aid_control.images.training import InpaintingData
from aid_control.program import check_device, program


def conditional(cfg: Any, backbone: Denoiser) -> ConditionalDenoiser:
    """A network that starts as the backbone."""
    return ConditionalDenoiser.from_backbone(backbone, network_arguments(cfg.backbone, cfg.path)).to(cfg.device)


def palette(cfg: Any, backbone: Denoiser, data: InpaintingData, shared: dict[str, Any]) -> Trainer:
    own = cfg.palette
    return PaletteTrainer(conditional(cfg, backbone), data, own.batch, own.lr, own.P_mean, own.P_std, **shared)


def davi(cfg: Any, backbone: Denoiser, data: InpaintingData, shared: dict[str, Any]) -> Trainer:
    own = cfg.davi
    loss = DaviLoss(own.kl, own.consistency, own.known, own.regression)
    net = conditional(cfg, backbone)
    rates = {"lr": own.lr, "score_lr": own.score_lr}
    return DaviTrainer(
        net, data, backbone, own.batch, **rates, perturbation=own.perturbation, loss=loss, paste=own.paste, **shared
    )


def latentpaint(cfg: Any, backbone: Denoiser, data: InpaintingData, shared: dict[str, Any]) -> Trainer:
    own = cfg.latentpaint
    return PropagationTrainer(backbone, data, own.batch, own.lr, own.P_mean, own.P_std, own.width, **shared)


TRAINERS = {"palette": palette, "davi": davi, "latentpaint": latentpaint}
# options that may change when a run goes on: none of them changes a weight of a given iteration
FREE = ("path", "sha256", "out", "iterations", "minutes", "every", "keep", "max_skipped", "threads", "device")


def compared(cfg: Any, fingerprint: str, images: torch.Tensor) -> dict[str, Any]:
    """The options of a run; backbone and data by what they are, not by where they lie."""
    options = OmegaConf.to_container(cfg, resolve=True)
    own = {k: v for k, v in options.items() if k not in TRAINERS or k == cfg.method}
    return {**own, "backbone": fingerprint, "data": content_hash({"images": images})}


def main(cfg: Any) -> None:
    if cfg.method not in TRAINERS:
        raise InputError(f"method is {cfg.method!r}; expected one of {', '.join(TRAINERS)}")
    if cfg.every < 1:
        raise InputError(f"every is {cfg.every}; expected at least 1 iteration")
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)  # weights that do not come from the backbone; the rest is keyed by (seed, iteration)
    out = Path(cfg.out)
    check_device(cfg.device)
    backbone = load_backbone(cfg.backbone, cfg.device, cfg.path, cfg.sha256)
    source = ImageSource(cfg.data, backbone.img_resolution, backbone.img_channels)
    images = source.stack(range(min(len(source), cfg.limit or len(source))))
    data = InpaintingData(images, cfg.mask, cfg.seed, cfg.device)
    shared = {"ema_halflife": cfg.ema_halflife, "ema_rampup": cfg.ema_rampup, "clip": cfg.clip, "seed": cfg.seed}
    trainer = TRAINERS[cfg.method](cfg, backbone, data, {**shared, "max_skipped": cfg.max_skipped})

    config = compared(cfg, backbone.fingerprint, images)
    clear_temporaries(out)
    checkpoints = Checkpoints(out / "checkpoints", config, cfg.keep, FREE, legacy=out / "checkpoint.safetensors")
    state, before = checkpoints.latest(), 0.0
    if state is not None:
        # the file of an earlier version has no options to compare
        then = state.get("method"), state.get("backbone")
        if then != (cfg.method, backbone.fingerprint):
            raise InputError(
                f"{checkpoints.source}: of a run of {then[0]} on backbone {then[1]}; expected {cfg.method} on "
                f"{backbone.fingerprint}"
            )
        trainer.restore(state["trainer"])
        before = float(state["minutes"])
        print(f"continuing from {checkpoints.source}: iteration {trainer.iteration}")
    start = time.monotonic()

    def minutes() -> float:
        return (time.monotonic() - start) / 60

    def save() -> None:
        spent = before + minutes()
        trainer.module.facts = {
            "method": cfg.method, "data": Path(cfg.data).name, "images": len(images), "mask": cfg.mask,
            "iteration": trainer.iteration, "images_seen": trainer.iteration * cfg[cfg.method].batch,
            "minutes": round(spent, 1), "seed": cfg.seed, "skipped": trainer.skipped, **dict(cfg[cfg.method]), **shared,
        }  # fmt: skip
        state = {"method": cfg.method, "backbone": backbone.fingerprint, "minutes": spent, "trainer": trainer.state()}
        if trainer.iteration != checkpoints.number:
            checkpoints.save(state, trainer.iteration)
        trainer.save(out / f"{cfg.method}.safetensors")

    with tqdm(total=cfg.iterations, initial=trainer.iteration, desc=cfg.method, smoothing=0.05) as bar:
        while trainer.iteration < cfg.iterations and (cfg.minutes is None or minutes() < cfg.minutes):
            told = trainer.step()
            scalars = told if isinstance(told, dict) else {"loss": told}
            if trainer.skipped:
                scalars = {**scalars, "skipped": trainer.skipped}
            bar.set_postfix({k: f"{v:.4g}" for k, v in scalars.items()}, refresh=False)
            bar.update()
            if trainer.iteration % cfg.every == 0:
                save()
    save()


if __name__ == "__main__":
    program("conf/train_baseline", main)
