r"""What the trainers of trained baselines share: averaged weights, guarded steps, and states to go on from.

The average of the weights has a half-life $h$ in images, at most a share $r$ of the images seen so far,

$$
\bar\theta \leftarrow \theta + 2^{-B/\min(h,\, r\, n)} (\bar\theta - \theta),
$$

$B$ images an iteration, $n$ images seen (as EDM's training).  All randomness is keyed by (seed, iteration), so a
restored run is the uninterrupted run.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ...descent import Descent
from ..backbones.conditional import ConditionalDenoiser, save_conditional
from ..backbones.training import move_average
from ..training import InpaintingData

__all__ = ["BaselineTrainer", "ConditionalTrainer", "Trainer"]

N = TypeVar("N", bound=nn.Module)


class Trainer(Protocol):
    """What a training program needs.

    Attributes:
        iteration: iterations done.
    """

    iteration: int

    @property
    def module(self) -> Any:
        """What is trained; its ``facts`` go into the file."""

    @property
    def skipped(self) -> int:
        """Optimiser steps left out so far, for want of a finite gradient."""

    def step(self) -> float | dict[str, float]:
        """One iteration; returns the loss, or numbers by name for a progress bar."""

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a run stopped.

        Args:
            state: what `state` returned.
        """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the averaged weights.

        Args:
            path: target, ``.safetensors``.
        """


class BaselineTrainer(Generic[N]):
    """Base class; a method's trainer adds networks and optimisers and defines `step`.

    Args:
        net: the network that is kept (in place).
        data: training images and masks.
        batch: images an iteration.
        ema_halflife: h, in images.
        ema_rampup: r.
        clip: bound of a gradient's norm.
        seed: of everything random but the data's own draws.
        max_skipped: give up after so many steps of one optimiser in a row without a finite gradient.

    Attributes:
        iteration: iterations done.
        average: averaged weights of ``net``.
        networks: everything that learns, by name.
        optimizers: theirs.
    """

    def __init__(
        self,
        net: N,
        data: InpaintingData,
        batch: int,
        ema_halflife: float = 10_000,
        ema_rampup: float = 0.1,
        clip: float = 1.0,
        seed: int = 0,
        max_skipped: int = 20,
    ) -> None:
        self.net, self.data, self.batch, self.seed = net, data, batch, seed
        self.ema_halflife, self.ema_rampup = ema_halflife, ema_rampup
        self.iteration = 0
        self.average = {k: v.detach().clone() for k, v in net.state_dict().items()}
        self.networks: dict[str, nn.Module] = {"net": net}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        # one an optimiser: a good step of one network does not end the row of the other's broken ones
        self._descents: defaultdict[str, Descent] = defaultdict(lambda: Descent(clip, max_skipped=max_skipped))

    @property
    def module(self) -> N:
        """The network that is kept."""
        return self.net

    @property
    def images_seen(self) -> int:
        """Training images used so far, repetitions included."""
        return self.iteration * self.batch

    @property
    def skipped(self) -> int:
        """Optimiser steps left out so far, for want of a finite gradient."""
        return sum(descent.skipped for descent in self._descents.values())

    def step(self) -> float | dict[str, float]:
        """One iteration; returns the loss, or numbers by name for a progress bar."""
        raise NotImplementedError  # pragma: no cover - abstract

    def descend(self, name: str, loss: Tensor) -> None:
        """One optimiser step down a loss, its gradient clipped; left out and counted where that is not finite.

        Args:
            name: of the network and of its optimiser, a key of ``networks`` and ``optimizers``.
            loss: a scalar with gradients to the network's weights.

        Raises:
            Diverged: after ``max_skipped`` steps of this optimiser in a row without a finite gradient.
        """
        self._descents[name].step(self.optimizers[name], self.networks[name].parameters(), [(1.0, [loss])])

    def advance(self) -> None:
        """Count the iteration and move the average."""
        self.iteration += 1
        move_average(self.average, self.net, self.batch, self.images_seen, self.ema_halflife, self.ema_rampup)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: iteration, average; states of networks and optimisers, counts of steps left out.

        Those three by name.
        """
        return {
            "iteration": self.iteration,
            "average": self.average,
            "networks": {name: net.state_dict() for name, net in self.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "skipped": {name: self._descents[name].state() for name in self.optimizers},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a run stopped.

        Args:
            state: what `state` returned, of a trainer with the same networks; extra keys are ignored.

        Raises:
            KeyError: if something is missing from it.
            RuntimeError: if its weights do not fit the networks.
        """
        self.iteration = int(state["iteration"])
        self.average = {k: v.clone().to(self.average[k].device) for k, v in state["average"].items()}
        for name, net in self.networks.items():
            net.load_state_dict(state["networks"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
            # states of earlier versions have no counts
            self._descents[name].restore(state.get("skipped", {}).get(name, {}))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the averaged weights, with the network's facts, as the method's module.

        Args:
            path: target, ``.safetensors``.
        """
        raise NotImplementedError  # pragma: no cover - abstract


class ConditionalTrainer(BaselineTrainer[ConditionalDenoiser]):
    """A trainer of a conditional denoiser, written as a file of its `kind`.

    Attributes:
        kind: kind of file that `save` writes.
    """

    kind = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the averaged weights, with the network's facts, as the method's module.

        Args:
            path: target, ``.safetensors``.
        """
        save_conditional(path, self.kind, self.net, self.average)
