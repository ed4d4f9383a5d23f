"""Train an EDM backbone, or continue one: ``python examples/train_backbone.py data=faces.zip``.

Writes into ``out``: ``checkpoint.safetensors`` (everything; an interrupted run continues from it by itself),
``backbone.safetensors`` (EMA weights, readable by ``load_backbone``), ``backbone.json`` (facts) and
``samples.png`` (18 Heun steps from fixed noise).  See ``conf/train_backbone.yaml`` for the options.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from aid_control.checkpoint import atomic_write, load_state, save_state
from aid_control.errors import InputError
from aid_control.images.backbones.precond import PRECONDITIONERS, Denoiser
from aid_control.images.backbones.registry import save_backbone
from aid_control.images.backbones.training import BackboneTrainer, validate
from aid_control.images.data import ImageSource, to_float, to_uint8, write_png
from aid_control.images.sampler import edm_sampler
from aid_control.noise import per_image_normal
from aid_control.program import check_device, program


def read_state(path: str) -> dict[str, Any]:
    """A training state: our own checkpoint, or a ``.train.pt`` of tensors and plain values."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected a training state")
    if path.endswith(".safetensors"):
        return load_state(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not {"net", "ema", "optimizer", "images_seen"} <= set(state):
        raise InputError(f"{path}: not a training state; expected net, ema, optimizer and images_seen")
    return state


@torch.no_grad()
def sample_grid(net: Denoiser, rows: int = 4) -> torch.Tensor:
    side, channels = net.img_resolution, net.img_channels
    x = edm_sampler(net, per_image_normal(range(rows * rows), (channels, side, side)).to(next(net.parameters())))
    image = to_uint8(x.cpu()).reshape(rows, rows, channels, side, side)
    return image.permute(2, 0, 3, 1, 4).reshape(channels, rows * side, rows * side)


def main(cfg: Any) -> None:
    torch.set_num_threads(cfg.threads)
    check_device(cfg.device)
    out = Path(cfg.out)
    kwargs = OmegaConf.to_container(cfg.network, resolve=True)
    assert isinstance(kwargs, dict)
    precond = kwargs.pop("precond")
    resume = out / "checkpoint.safetensors" if (out / "checkpoint.safetensors").is_file() else cfg.resume
    state = read_state(str(resume)) if resume else None
    if state and "kwargs" in state:
        kwargs = state["kwargs"]
    torch.manual_seed(cfg.seed)  # the initial weights
    net = PRECONDITIONERS[precond](**kwargs).to(cfg.device)
    images = ImageSource(cfg.data, net.img_resolution, net.img_channels).stack()
    held_out = None
    if cfg.validation:
        source = ImageSource(cfg.validation, net.img_resolution, net.img_channels)
        held_out = to_float(source.stack(range(min(cfg.validation_n, len(source)))))
    trainer = BackboneTrainer(net, images, cfg.batch, cfg.lr, cfg.ema_halflife, seed=cfg.seed)
    if state:
        trainer.restore(state)
        print(f"continuing from {resume} at {trainer.images_seen} images")

    average = PRECONDITIONERS[precond](**kwargs).to(cfg.device).eval()

    def save() -> None:
        average.load_state_dict(trainer.ema)
        facts = {
            "precond": precond,
            "kwargs": kwargs,
            "images_seen": trainer.images_seen,
            "batch": cfg.batch,
            "lr": cfg.lr,
        }
        if held_out is not None:
            facts["validation"] = validate(average, held_out)
        save_state(out / "checkpoint.safetensors", {**trainer.state(), "kwargs": kwargs})
        save_backbone(out / "backbone.safetensors", precond, kwargs, trainer.ema)
        atomic_write(out / "backbone.json", json.dumps(facts, indent=1).encode())
        write_png(out / "samples.png", sample_grid(average))
        bar.write(f"{trainer.images_seen} images: {json.dumps(facts.get('validation', {}))}")

    start, target = time.monotonic(), int(cfg.kimg * 1000)
    with tqdm(total=target, initial=trainer.images_seen, unit="img", smoothing=0.05) as bar:
        saved = trainer.images_seen
        while trainer.images_seen < target and (cfg.minutes is None or time.monotonic() - start < 60 * cfg.minutes):
            bar.set_postfix(loss=f"{trainer.step():.4f}")
            bar.update(cfg.batch)
            if trainer.images_seen - saved >= cfg.every:
                save()
                saved = trainer.images_seen
        save()


if __name__ == "__main__":
    program("conf/train_backbone", main)
