r"""The bounded training loop: Adam with a decaying rate, averaged weights, errors on paths of the optimum on the way.

The rate falls from its start to a hundredth of it along half a cosine.  Paths of a batch come in mirrored pairs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...increments import Increments
from .losses import LOSSES
from .measure import TruthPaths
from .networks import Average, Costate
from .problems import Setting

__all__ = ["Budget", "Trained", "train"]


@dataclass(frozen=True)
class Budget:
    """What one training may use.

    Attributes:
        iterations: batches of paths.
        batch: paths a batch, even.
        rate: Adam's first learning rate.
        decay: of the average of the weights, a batch.
        pieces: steps of Adam a batch, for the losses that allow it.
        every: batches between recorded errors.
    """

    iterations: int
    batch: int
    rate: float
    decay: float = 0.98
    pieces: int = 4
    every: int = 25


@dataclass
class Trained:
    """What came out.

    Attributes:
        control: the network with averaged weights.
        iterations: at which errors were recorded.
        errors: relative control errors then.
        seconds: of computing (this process's processor time) until then, the recording left out.
    """

    control: nn.Module
    iterations: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def train(
    setting: Setting,
    loss: str,
    actor: Costate,
    budget: Budget,
    truth: TruthPaths,
    key: tuple[int, ...],
    progress: Callable[[int, float], None] = lambda n, e: None,
) -> Trained:
    """Train a control.

    Args:
        setting: the problem.
        loss: a key of `losses.LOSSES`.
        actor: the control, changed in place.
        budget: what may be used.
        truth: paths for the recorded errors; the training does not look at them.
        key: integers of the noise.
        progress: called with the batch number and the last error.

    Returns:
        The averaged control and the curve.
    """
    problem, grid = setting.problem, setting.grid
    groups = [{"params": list(actor.net.parameters()), "lr": budget.rate}]
    groups.append({"params": [actor.level], "lr": 30 * budget.rate})  # one number, far from zero
    if actor.gate is not None:
        groups.append({"params": [actor.gate.weight], "lr": 10 * budget.rate})  # linear: stands larger steps
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda n: 0.505 + 0.495 * math.cos(math.pi * min(n / budget.iterations, 1.0))
    )
    average, smooth = Average(actor, budget.decay), deepcopy(actor)
    out, spent = Trained(smooth), 0.0
    x = setting.x0.expand(budget.batch, -1)

    def record(n: int) -> None:
        error, _ = truth.error(smooth, 256)
        out.iterations.append(n)
        out.errors.append(error)
        out.seconds.append(spent)
        progress(n, error)

    record(0)
    for n in range(1, budget.iterations + 1):
        start = time.process_time()
        noise = Increments.sample(grid, budget.batch // 2, _noise_shape(setting, x), *key, n).antithetic()
        for value in LOSSES[loss](problem, actor, x, noise, budget.pieces, (*key, n)):
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()
        schedule.step()
        average.update(actor)
        spent += time.process_time() - start
        if n % budget.every == 0 or n == budget.iterations:
            average.copy_to(smooth)
            record(n)
    return out


def _noise_shape(setting: Setting, x: Tensor) -> tuple[int, ...]:
    return setting.problem.noise_dim(x)
