"""A learner run for many steps with noise by key: its weights on the way, their average over the end, its costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..regret.paths import Noise

__all__ = ["Learner", "Trained", "train"]

Array = NDArray[np.float64]


class Learner(Protocol):
    """What is trained.

    Attributes:
        weights: (P, S).
    """

    weights: Array

    def step(self, xi: Array, z: Array) -> Array:
        """One step.

        Args:
            xi: normals of the actions, (S, B).
            z: normals of the Brownian motion, (S, B).

        Returns:
            The mean cost rate of each repeat, (S,).
        """
        ...


@dataclass(frozen=True)
class Trained:
    """S repeats of a learner.

    Attributes:
        steps: numbers of steps at the records, (K,).
        trace: weights there, (K, P, S).
        costs: mean cost rate between a record and the one before, (K, S).
        average: weights averaged over the steps after ``average_from`` of them, (P, S).
        cost: mean cost rate over the same steps, (S,).
    """

    steps: Array
    trace: Array
    costs: Array
    average: Array
    cost: Array


def train(
    learner: Learner,
    seeds: list[int],
    streams: int,
    steps: int,
    records: int,
    average_from: float = 0.5,
    groups: int = 1,
) -> Trained:
    """Run a learner.

    Args:
        learner: with ``groups * len(seeds)`` repeats of ``streams`` streams.
        seeds: a repeat's noise depends on its seed and the number of streams only.
        streams: B.
        steps: N.
        records: K, evenly over the steps.
        average_from: share of the steps after which averaging begins.
        groups: blocks of repeats (all seeds each) that are given the *same* noise.

    Returns:
        What was seen; repeats that diverged hold numbers that are not finite.
    """
    noise = Noise(seeds, streams, ahead=16)
    every, begin = max(steps // records, 1), int(average_from * steps)
    total, cost_total = np.zeros_like(learner.weights), np.zeros(learner.weights.shape[1])
    block = np.zeros_like(cost_total)
    at, trace, costs = [], [], []
    with np.errstate(all="ignore"):
        for n in range(1, steps + 1):
            xi, z = noise.episode()
            if groups > 1:
                xi, z = np.tile(xi, (groups, 1)), np.tile(z, (groups, 1))
            cost = learner.step(xi, z)
            block += cost
            if n > begin:
                total += learner.weights
                cost_total += cost
            if n % every == 0:
                at.append(n)
                trace.append(learner.weights)
                costs.append(block / every)
                block = np.zeros_like(block)
    used = steps - begin
    return Trained(np.array(at, dtype=float), np.array(trace), np.array(costs), total / used, cost_total / used)
