"""Train AID guidance: ``python examples/train_guidance.py data=faces.zip backbone=edm-faces64-mini``.

Phase 1 fits the critic's terminal condition (the context encoder; no backbone calls), phase 2 is the
actor-critic on rollouts of the guided flow.  A killed run goes on from the newest whole file of ``out/checkpoints``
and ends with the same weights as an uninterrupted one.  On several processes: ``torchrun --nproc_per_node 2
examples/train_guidance.py ...`` or ``accelerate launch``; ``batch`` is that of all of them together.  See
``conf/train_guidance.yaml`` for the options.
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
from aid_control.images import load_backbone, load_guidance
from aid_control.images.data import ImageSource, to_float
from aid_control.images.guidance import Guidance, PyramidCritic, save_guidance
from aid_control.images.problem import GuidanceProblem, Observation
from aid_control.images.training import InpaintingData, band_variances
from aid_control.parallel import team
from aid_control.program import program
from aid_control.schedules import linear
from aid_control.trainer import ActorCritic

PHASES = ("encoder", "guidance")
# options that may change when a run goes on: none of them changes a weight of a given iteration, but for rounding
FREE = (
    "path", "sha256", "out", "minutes", "every", "keep", "max_skipped", "threads", "device", "accumulate", "precision",
    "hydra", "defaults", "start", "encoder",
)  # fmt: skip


class Log:
    """TensorBoard scalars where tensorboard is installed, nothing otherwise."""

    def __init__(self, folder: Path | None) -> None:
        self.writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(folder))
        except ImportError:
            pass

    def __call__(self, step: int, **scalars: float) -> None:
        for name, value in scalars.items() if self.writer else ():
            self.writer.add_scalar(name, value, step)


def compared(cfg: Any, fingerprint: str, images: torch.Tensor) -> dict[str, Any]:
    """The options of a run; backbone and data by what they are, not by where they lie."""
    options = OmegaConf.to_container(cfg, resolve=True)
    return {**options, "backbone": fingerprint, "data": content_hash({"images": images})}


def main(cfg: Any) -> None:
    group = team(cfg.device, cfg.accumulate, cfg.precision)
    device = group.where.device
    torch.set_num_threads(cfg.threads)
    torch.manual_seed(cfg.seed)  # the initial weights; everything later is keyed by (seed, iteration)
    out = Path(cfg.out)
    backbone = load_backbone(cfg.backbone, device, cfg.path, cfg.sha256)
    source = ImageSource(cfg.data, backbone.img_resolution, backbone.img_channels)
    images = source.stack(range(min(len(source), cfg.limit or len(source))))
    data = InpaintingData(images, cfg.mask, cfg.seed, device)

    problem = GuidanceProblem(backbone, beta=cfg.beta, cost=cfg.cost, base=cfg.base)
    guidance = Guidance(backbone.img_resolution, backbone.img_channels, base=cfg.base).to(device)
    guidance.backbone = backbone.fingerprint
    spread = band_variances(to_float(images[:1024]))
    critic = PyramidCritic(guidance.encoder, cfg.beta, problem.pixels, spread).to(device)
    shared = {"team": group, "max_skipped": cfg.max_skipped}
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
            rate=falling["encoder"], **shared,
        ),
        "guidance": ActorCritic(
            problem, guidance, critic, critic_lr=cfg.critic_lr, value_scale=0.1, rate=falling["guidance"],
            **phase_two, **shared,
        ),
    }  # fmt: skip
    encoder_parts = group.parts(cfg.encoder_batch, accumulate=1)  # small: no need of less memory
    parts = group.parts(cfg.batch)

    if group.first:
        clear_temporaries(out)
    config = compared(cfg, backbone.fingerprint, images)
    checkpoints = Checkpoints(out / "checkpoints", config, cfg.keep, FREE, legacy=out / "checkpoint.safetensors")
    state, phase = checkpoints.latest(), "encoder"
    if state is not None:
        if state["backbone"] != backbone.fingerprint:  # the file of an earlier version has no options to compare
            raise InputError(f"{checkpoints.source}: of a run on another backbone; expected {backbone.fingerprint}")
        phase = state["phase"]
        trainers[phase].restore(state["trainer"])
        if group.first:
            print(f"continuing from {checkpoints.source}: {phase} iteration {trainers[phase].iteration}")
    elif cfg.start or cfg.encoder:
        guidance.encoder.load_state_dict(load_guidance(cfg.encoder or cfg.start).encoder.state_dict())
        phase = "guidance" if cfg.encoder else "encoder"
        trainers[phase].average = {k: v.clone() for k, v in guidance.state_dict().items()}
    costs: list[float] = []  # of the rollouts since the last checkpoint

    def save() -> None:
        if not group.first:
            return
        trainer = trainers[phase]
        number = trainer.iteration + (totals["encoder"] if phase == "guidance" and not cfg.encoder else 0)
        if number != checkpoints.number:
            state = {"phase": phase, "backbone": backbone.fingerprint, "trainer": trainer.state()}
            checkpoints.save(state, number, sum(costs) / len(costs) if costs else None)
            costs.clear()
        guidance.facts = {
            "data": Path(cfg.data).name, "images": len(images), "mask": cfg.mask, "beta": cfg.beta, "cost": cfg.cost,
            "base": cfg.base,
            "estimator": cfg.estimator, "phase": phase, "iteration": trainer.iteration, "seed": cfg.seed,
            "encoder": cfg.encoder and Path(cfg.encoder).name,
            "encoder_iterations": cfg.encoder_iterations, "encoder_batch": cfg.encoder_batch, "batch": cfg.batch,
        }  # fmt: skip
        save_guidance(out / "guidance.safetensors", guidance, trainer.average)

    log, start = Log(out / "tb" if group.first else None), time.monotonic()
    for name in PHASES[PHASES.index(phase) :]:
        phase = name  # what save() writes
        trainer = trainers[phase]
        every = cfg.every if phase == "encoder" else min(cfg.every, 10)
        hidden = not group.first
        with tqdm(total=totals[phase], initial=trainer.iteration, desc=phase, smoothing=0.05, disable=hidden) as bar:
            while trainer.iteration < totals[phase]:
                if cfg.minutes is not None:
                    late = float(time.monotonic() - start > 60 * cfg.minutes)
                    if group.sum([late])[0]:  # one decision for all
                        save()
                        return
                i = trainer.iteration
                if phase == "encoder":
                    (rows,) = encoder_parts
                    x0, mask = data.clean_and_mask(cfg.encoder_batch, i, rows)
                    scalars = {"loss": trainer.fit_terminal(x0, Observation(x0 * mask, mask), x0, rows)}
                else:
                    scalars = trainer.iterate(
                        [data.rollout_batch(problem, guidance, cfg.batch, i, cfg.steps, rows) for rows in parts]
                    )
                    costs.append(scalars["cost"])
                if trainer.skipped:
                    scalars["skipped"] = trainer.skipped
                bar.set_postfix({k: f"{v:.4g}" for k, v in scalars.items()})
                log(i, **{f"{phase}/{k}": v for k, v in scalars.items()})
                bar.update()
                if trainer.iteration % every == 0:
                    save()
        if phase == "encoder":
            # phase 2 starts from the averaged encoder, and its checkpoint from iteration 0
            guidance.load_state_dict(trainer.average)
            trainers["guidance"].average = {k: v.clone() for k, v in trainer.average.items()}
    save()


if __name__ == "__main__":
    program("conf/train_guidance", main, together=True)
