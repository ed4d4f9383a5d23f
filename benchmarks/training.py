"""What training guidance costs: cached rollouts against asking the backbone again, and memory against batch and steps.

``python benchmarks/training.py cache [pairs=7] [batch=2] [steps=18]``.  A rollout keeps the backbone's answers
(*probes*), so that every update of the actor takes them from there.  The other run forgets them: before each of the N
updates of a rollout the backbone is asked again at every step.  Same batches, same numbers in every bit (checked), in
turn; the ratio of every pair, its median and range.

``python benchmarks/training.py memory [to=docs/figures/training-memory.csv]``.  Peak resident memory that one iteration
adds to a process that holds the networks, each in a process of its own: estimators against the batch (4 steps) and
against the number of steps (batch 2).  ``docs/figures/training-memory.py`` draws it.  Linux only.
"""

from __future__ import annotations

import csv
import ctypes
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from aid_control.images import load_backbone, load_guidance
from aid_control.images.backbones.registry import asset
from aid_control.images.backbones.wrappers import Counted
from aid_control.images.data import ImageSource
from aid_control.images.guidance import PyramidCritic
from aid_control.images.problem import GuidanceProblem
from aid_control.images.training import InpaintingData
from aid_control.memory import peak_memory
from aid_control.rollout import Trajectory
from aid_control.trainer import ActorCritic, Batch

BATCHES, STEPS = (1, 2, 4, 8, 16, 32), (4, 9, 18, 36)
FIXED_STEPS, FIXED_BATCH = 4, 2
# name: estimator, checkpointing, stepwise
SERIES = {
    "stein": ("stein", True, False),
    "stein, stepwise": ("stein", True, True),
    "adjoint": ("adjoint", True, False),
    "adjoint, stepwise": ("adjoint", True, True),
    "backprop": ("backprop", False, False),
    "backprop, checkpointing": ("backprop", True, False),
}


class Forgetful(ActorCritic):
    """Asks the backbone again for every update of the actor."""

    def actor_losses(
        self, trajectory: Trajectory, targets: Iterable[Tensor], signal: list[float] | None = None
    ) -> Iterator[Tensor]:
        with torch.no_grad():
            for k, t, _ in trajectory.steps():
                trajectory.probes[k] = self.problem.probe(t, trajectory.states[k], trajectory.context)
        yield from super().actor_losses(trajectory, targets, signal)


def networks(
    kind: type[ActorCritic], estimator: str, updates: int = 1, checkpointing: bool = True, stepwise: bool = False
) -> tuple[ActorCritic, Counted]:
    """A trainer of the shipped module on the mini backbone, and the backbone with its counter."""
    net = Counted(load_backbone())
    guidance = load_guidance()
    guidance.requires_grad_(True).encoder.requires_grad_(False)
    problem = GuidanceProblem(net, base=guidance.base)
    critic = PyramidCritic(guidance.encoder, problem.beta, problem.pixels, torch.ones(6))
    trainer = kind(
        problem, guidance, critic, 1e-4, estimator, actor_lr=3e-3, updates=updates, step_weight=problem.fall,
        value_scale=0.1, checkpointing=checkpointing, stepwise=stepwise,
    )  # fmt: skip
    return trainer, net


def batch_of(trainer: ActorCritic, data: InpaintingData, batch: int, iteration: int, steps: int) -> Batch:
    problem, guidance = trainer.problem, trainer.actor
    return data.rollout_batch(problem, guidance, batch, iteration, steps)  # type: ignore[arg-type]


def cache(pairs: int = 7, batch: int = 2, steps: int = 18) -> None:
    torch.set_num_threads(1)
    data = InpaintingData(ImageSource(asset("faces"), 64).stack())
    print(f"stein, mini backbone, batch {batch}, {steps} steps, 1 thread, {pairs} pairs")
    print(f"{'updates a rollout':>18}{'kept, s':>10}{'again, s':>10}{'again / kept: median':>22}{'range':>14}"
          f"{'updates/s kept':>16}{'images denoised':>17}")  # fmt: skip
    for updates in (1, 2, 4):
        found = [networks(kind, "stein", updates) for kind in (ActorCritic, Forgetful)]
        times: list[list[float]] = [[], []]
        calls = [0, 0]
        for i in range(pairs + 1):
            for j in (0, 1) if i % 2 else (1, 0):
                trainer, net = found[j]
                start_calls, start = net.forward_calls, time.perf_counter()
                trainer.iterate(batch_of(trainer, data, batch, i, steps))
                calls[j] = net.forward_calls - start_calls
                if i:  # the first warms up
                    times[j].append(time.perf_counter() - start)
        weights = [trainer.actor.state_dict() for trainer, _ in found]
        assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items()), "the two runs learned other things"
        ratios = [again / kept for kept, again in zip(*times, strict=True)]
        kept, again = (statistics.median(t) for t in times)
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{updates:18d}{kept:10.2f}{again:10.2f}{statistics.median(ratios):22.2f}{spread:>14}"
              f"{updates / kept:16.2f}{f'{calls[0]}, {calls[1]}':>17}", flush=True)  # fmt: skip


def weigh(name: str, batch: int, steps: int) -> int:
    """Bytes that one iteration adds to the process' peak."""
    torch.set_num_threads(1)
    data = InpaintingData(ImageSource(asset("faces"), 64).stack())
    estimator, checkpointing, stepwise = SERIES[name]
    trainer, _ = networks(ActorCritic, estimator, 1, checkpointing, stepwise)
    # what torch takes once (threads, kernels) is taken by the smallest iteration, before
    small, _ = networks(ActorCritic, estimator, 1, checkpointing, stepwise)
    small.iterate(batch_of(small, data, 1, 0, 1))
    del small
    full = batch_of(trainer, data, batch, 0, steps)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back, or the iteration would take it unseen
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    trainer.iterate(full)
    return peak_memory() - before


def resident() -> int:
    """Bytes of this process' resident memory now."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 2**10


def memory(to: str = "docs/figures/training-memory.csv") -> None:
    wanted = [(name, batch, FIXED_STEPS) for name in SERIES if "stepwise" not in name for batch in BATCHES]
    wanted += [(name, FIXED_BATCH, steps) for name in SERIES for steps in STEPS]
    # forked from here, where everything is imported and nothing has been computed yet
    with open(to, "w", newline="") as file, multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        writer = csv.writer(file)
        writer.writerow(["series", "batch", "steps", "megabytes"])
        for row in dict.fromkeys(wanted):
            megabytes = pool.apply(weigh, row) / 2**20
            writer.writerow([*row, f"{megabytes:.1f}"])
            file.flush()
            print(f"{row[0]:26s} batch {row[1]:3d} steps {row[2]:3d} {megabytes:9.1f} MB", flush=True)


if __name__ == "__main__":
    what, *options = sys.argv[1:] or ["cache"]
    named = dict(option.split("=", 1) for option in options)
    if what == "memory":
        memory(**named)
    else:
        cache(**{name: int(value) for name, value in named.items()})
