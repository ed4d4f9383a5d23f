"""Train AID guidance: ``python examples/train_guidance.py data=faces.zip backbone=edm-faces64-mini``.

Phase 1 fits the critic's terminal condition (the context encoder; no backbone calls), phase 2 is the
actor-critic on rollouts of the guided flow.  A killed run goes on from ``out/checkpoint.safetensors`` and ends
with the same weights as an uninterrupted one.  See ``conf/train_guidance.yaml`` for the options.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from aid_control.checkpoint import load_state, save_state
from aid_control.errors import InputError
from aid_control.images import load_backbone, load_guidance
from aid_control.images.data import ImageSource, to_float
from aid_control.images.guidance import Guidance, PyramidCritic, save_guidance
from aid_control.images.problem import GuidanceProblem, Observation
from aid_control.images.training import InpaintingData, band_variances
from aid_control.program import check_device, program
from aid_control.schedules import linear
from aid_control.trainer import ActorCritic

PHASES = ("encoder", "guidance")


class Log:
    """TensorBoard scalars where tensorboard is installed, nothing otherwise."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.writer: Any = SummaryWriter(str(folder))
        except ImportError:
            self.writer = None

    def __call__(self, step: int, **scalars: float) -> None:
        for name, value in scalars.items() if self.writer else ():
            self.writer.add_scalar(name, value, step)


def main(cfg: Any) -> None:
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)  # the initial weights; everything later is keyed by (seed, iteration)
    out = Path(cfg.out)
    check_device(cfg.device)
    backbone = load_backbone(cfg.backbone, cfg.device, cfg.path, cfg.sha256)
    source = ImageSource(cfg.data, backbone.img_resolution, backbone.img_channels)
    images = source.stack(range(min(len(source), cfg.limit or len(source))))
    data = InpaintingData(images, cfg.mask, cfg.seed, cfg.device)

    problem = GuidanceProblem(backbone, beta=cfg.beta, cost=cfg.cost, base=cfg.base)
    guidance = Guidance(backbone.img_resolution, backbone.img_channels, base=cfg.base).to(cfg.device)
    guidance.backbone = backbone.fingerprint
    spread = band_variances(to_float(images[:1024]))
    critic = PyramidCritic(guidance.encoder, cfg.beta, problem.pixels, spread).to(cfg.device)
    phase_two = {
        "estimator": cfg.estimator,
        "temperature": cfg.temperature,
        "updates": cfg.updates,
        "step_weight": problem.fall,
        "actor_lr": cfg.actor_lr,
        "ema": cfg.ema,
        "seed": cfg.seed,
    }
    totals = {"encoder": cfg.encoder_iterations, "guidance": cfg.iterations}
    falling = {name: linear(1.0, 0.1, max(total, 1)) for name, total in totals.items()}
    trainers = {
        # gradients of Psi are of order 1/pixels: that is the scale of the terminal condition
        "encoder": ActorCritic(
            problem, guidance, critic, critic_lr=cfg.encoder_lr, value_scale=problem.pixels**-0.5, ema=0.999,
            rate=falling["encoder"],
        ),
        "guidance": ActorCritic(
            problem, guidance, critic, critic_lr=cfg.critic_lr, value_scale=0.1, rate=falling["guidance"], **phase_two
        ),
    }  # fmt: skip

    checkpoint = out / "checkpoint.safetensors"
    phase = "encoder"
    if checkpoint.is_file():
        state = load_state(checkpoint)
        if state["backbone"] != backbone.fingerprint:
            raise InputError(f"{checkpoint}: of a run on another backbone; expected {backbone.fingerprint}")
        phase = state["phase"]
        trainers[phase].restore(state["trainer"])
        print(f"continuing from {checkpoint}: {phase} iteration {trainers[phase].iteration}")

    def save() -> None:
        trainer = trainers[phase]
        save_state(checkpoint, {"phase": phase, "backbone": backbone.fingerprint, "trainer": trainer.state()})
        guidance.facts = {
            "data": Path(cfg.data).name, "images": len(images), "mask": cfg.mask, "beta": cfg.beta, "cost": cfg.cost,
            "base": cfg.base,
            "estimator": cfg.estimator, "phase": phase, "iteration": trainer.iteration, "seed": cfg.seed,
            "encoder": cfg.encoder and Path(cfg.encoder).name,
            "encoder_iterations": cfg.encoder_iterations, "encoder_batch": cfg.encoder_batch, "batch": cfg.batch,
        }  # fmt: skip
        save_guidance(out / "guidance.safetensors", guidance, trainer.average)

    if cfg.start and not checkpoint.is_file():
        guidance.encoder.load_state_dict(load_guidance(cfg.start).encoder.state_dict())
        trainers["encoder"].average = {k: v.clone() for k, v in guidance.state_dict().items()}
    if cfg.encoder and not checkpoint.is_file():
        guidance.encoder.load_state_dict(load_guidance(cfg.encoder).encoder.state_dict())
        trainers["guidance"].average = {k: v.clone() for k, v in guidance.state_dict().items()}
        phase = "guidance"

    log, start = Log(out / "tb"), time.monotonic()
    for name in PHASES[PHASES.index(phase) :]:
        phase = name  # what save() writes
        trainer = trainers[phase]
        every = cfg.every if phase == "encoder" else min(cfg.every, 10)
        with tqdm(total=totals[phase], initial=trainer.iteration, desc=phase, smoothing=0.05) as bar:
            while trainer.iteration < totals[phase]:
                if cfg.minutes is not None and time.monotonic() - start > 60 * cfg.minutes:
                    save()
                    return
                i = trainer.iteration
                if phase == "encoder":
                    x0, mask = data.clean_and_mask(cfg.encoder_batch, i)
                    loss = trainer.fit_terminal(x0, Observation(x0 * mask, mask), x0)
                    scalars = {"encoder/loss": loss}
                    bar.set_postfix(loss=f"{loss:.4f}")
                else:
                    batch = data.rollout_batch(problem, guidance, cfg.batch, i, cfg.steps)
                    scalars = trainer.iterate(batch)
                    bar.set_postfix({k: f"{v:.4g}" for k, v in scalars.items()})
                    scalars = {f"guidance/{k}": v for k, v in scalars.items()}
                log(i, **scalars)
                bar.update()
                if trainer.iteration % every == 0:
                    save()
        if phase == "encoder":
            # phase 2 starts from the averaged encoder, and its checkpoint from iteration 0
            guidance.load_state_dict(trainer.average)
            trainers["guidance"].average = {k: v.clone() for k, v in trainer.average.items()}
    save()


if __name__ == "__main__":
    program("conf/train_guidance", main)
