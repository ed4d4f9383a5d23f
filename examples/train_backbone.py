"""Train an EDM backbone, or continue one: ``python examples/train_backbone.py data=faces.zip``.

Writes into ``out``: ``checkpoints`` (everything; an interrupted run continues from the newest whole one by itself),
``backbone.safetensors`` (EMA weights, readable by ``load_backbone``), ``backbone.json`` (facts) and
``samples.png`` (18 Heun steps from fixed noise).  On several processes: ``torchrun --nproc_per_node 2
examples/train_backbone.py ...`` or ``accelerate launch``; ``batch`` is that of all of them together.  See
``conf/train_backbone.yaml`` for the options.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from tqdm import tqdm

from aid_control.checkpoint import atomic_write, clear_temporaries, content_hash
from aid_control.checkpoints import Checkpoints, read_checkpoint
from aid_control.errors import InputError
from aid_control.images.backbones.precond import PRECONDITIONERS, Denoiser
from aid_control.images.backbones.registry import save_backbone
from aid_control.images.backbones.training import BackboneTrainer, validate
from aid_control.images.data import ImageSource, to_float, to_uint8, write_png
from aid_control.images.sampler import edm_sampler
from aid_control.noise import per_image_normal
from aid_control.parallel import team
from aid_control.program import program

# options that may change when a run goes on: none of them changes a weight of a given iteration, but for rounding; data
# are compared by what they are, not by where they lie
FREE = (
    "data", "validation", "validation_n", "out", "resume", "kimg", "minutes", "every", "keep", "max_skipped", "threads",
    "device", "accumulate", "precision", "hydra", "defaults",
)  # fmt: skip


def read_state(path: str) -> dict[str, Any]:
    """A training state: our own checkpoint, or a ``.train.pt`` of tensors and plain values."""
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected a training state")
    if path.endswith(".safetensors"):
        return read_checkpoint(path)
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
    group = team(cfg.device, cfg.accumulate, cfg.precision)
    device = group.where.device
    torch.set_num_threads(cfg.threads)
    out = Path(cfg.out)
    options = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(options, dict)
    kwargs = dict(options["network"])
    precond = kwargs.pop("precond")
    if group.first:
        clear_temporaries(out)
    checkpoints = Checkpoints(out / "checkpoints", options, cfg.keep, FREE, legacy=out / "checkpoint.safetensors")
    state, source = checkpoints.latest(), checkpoints.source
    if state is None and cfg.resume:
        state, source = read_state(cfg.resume), cfg.resume
    if state and "kwargs" in state:
        kwargs = state["kwargs"]
    torch.manual_seed(cfg.seed)  # the initial weights
    net = PRECONDITIONERS[precond](**kwargs).to(device)
    images = ImageSource(cfg.data, net.img_resolution, net.img_channels).stack()
    data = content_hash({"images": images})
    if checkpoints.source and state and state.get("data", data) != data:  # earlier versions did not keep it
        raise InputError(f"{source}: of a run on other images than {cfg.data}; expected the same ones, or another out=")
    held_out = None
    if cfg.validation:
        pictures = ImageSource(cfg.validation, net.img_resolution, net.img_channels)
        held_out = to_float(pictures.stack(range(min(cfg.validation_n, len(pictures)))))
    trainer = BackboneTrainer(
        net, images, cfg.batch, cfg.lr, cfg.ema_halflife, seed=cfg.seed, team=group, max_skipped=cfg.max_skipped
    )
    if state:
        trainer.restore(state)
        if group.first:
            print(f"continuing from {source} at {trainer.images_seen} images")

    average = PRECONDITIONERS[precond](**kwargs).to(device).eval()

    def save() -> None:
        if not group.first:
            return
        average.load_state_dict(trainer.ema)
        facts = {
            "precond": precond,
            "kwargs": kwargs,
            "images_seen": trainer.images_seen,
            "batch": cfg.batch,
            "lr": cfg.lr,
            "skipped": trainer.descent.skipped,
        }
        if held_out is not None:
            facts["validation"] = validate(average, held_out)
        if trainer.images_seen != checkpoints.number:
            score = facts.get("validation", {}).get("edm_loss")
            checkpoints.save({**trainer.state(), "kwargs": kwargs, "data": data}, trainer.images_seen, score)
        save_backbone(out / "backbone.safetensors", precond, kwargs, trainer.ema)
        atomic_write(out / "backbone.json", json.dumps(facts, indent=1).encode())
        write_png(out / "samples.png", sample_grid(average))
        bar.write(f"{trainer.images_seen} images: {json.dumps(facts.get('validation', {}))}")

    start, target = time.monotonic(), int(cfg.kimg * 1000)

    def late() -> bool:
        if cfg.minutes is None:
            return False
        return bool(group.sum([float(time.monotonic() - start >= 60 * cfg.minutes)])[0])  # one decision for all

    seen = trainer.images_seen
    with tqdm(total=target, initial=seen, unit="img", smoothing=0.05, disable=not group.first) as bar:
        saved = seen
        while trainer.images_seen < target and not late():
            told = {"loss": f"{trainer.step():.4f}"}
            if trainer.descent.skipped:
                told["skipped"] = str(trainer.descent.skipped)
            bar.set_postfix(told)
            bar.update(cfg.batch)
            if trainer.images_seen - saved >= cfg.every:
                save()
                saved = trainer.images_seen
        save()


if __name__ == "__main__":
    program("conf/train_backbone", main, together=True)
