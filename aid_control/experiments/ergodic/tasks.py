"""What runs in processes: learners on blocks of seeds, and the scan over steps and rates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...schedules import power
from .actor_critic import ActorCritic
from .big_q import BigQ, Form, action_share
from .problem import ErgodicProblem
from .q_learning import QLearning
from .train import Trained, train

__all__ = ["SEED_SHIFT", "Scanned", "learn", "scan"]

Array = NDArray[np.float64]

# on the policy q-learning is the actor-critic: with the same noise it would only repeat it
SEED_SHIFT = {"actor_critic": 0, "q_on": 100_000, "q_off": 200_000, "q_plain": 200_000, "scan": 300_000}


def learn(name: str, settings: dict[str, Any], problem: dict[str, Any], seeds: list[int], records: int) -> Trained:
    """Run one learner.

    Args:
        name: ``actor_critic``, ``q_on``, ``q_off``, or ``q_plain`` (off the policy, updates without weights).
        settings: streams, steps, rates, exponent, delay, average_from; off the policy also behaviour and scale.
        problem: settings of `ErgodicProblem`.
        seeds: one a repeat.
        records: of the trace.

    Returns:
        What was seen, the last weight of q-learning shifted to the log-variance, log tau + psi_3.
    """
    setting = ErgodicProblem(**problem)
    steps, streams = int(settings["steps"]), int(settings["streams"])
    schedule = power(1.0, float(settings["exponent"]), float(settings["delay"]) * steps)
    rates = np.array(settings["rates"], dtype=float)
    if name == "actor_critic":
        learner: ActorCritic | QLearning = ActorCritic(setting, len(seeds), streams, rates, schedule)
    else:
        behaviour = None if name == "q_on" else tuple(float(b) for b in settings["behaviour"])
        scale = float(settings["scale"]) if name == "q_off" else math.inf
        learner = QLearning(setting, len(seeds), streams, rates, schedule, behaviour, scale)  # type: ignore[arg-type]
    shifted = [s + SEED_SHIFT[name] for s in seeds]
    done = train(learner, shifted, streams, steps, records, float(settings["average_from"]))
    if name != "actor_critic":
        done.trace[:, 5] += math.log(setting.temperature)
        done.average[5] += math.log(setting.temperature)
    return done


@dataclass(frozen=True)
class Scanned:
    """One form at one step, S repeats of R rates.

    Attributes:
        gain: relative error of the slope at the end, (R, S).
        averaged: relative error of the slope that the averaged weights give, (R, S).
        value: relative error of the quadratic part of V at the end, (R, S).
        share: the share of the variance of the learned Q that is due to the action, (R, S).
    """

    gain: Array
    averaged: Array
    value: Array
    share: Array


def scan(form: Form, dt: float, settings: dict[str, Any], problem: dict[str, Any], seeds: list[int]) -> Scanned:
    """Learn with one form at one step and every rate, over the same simulated time, with the same noise for every rate.

    Args:
        form: see `big_q`.
        dt: the step.
        settings: rates, streams, time, behaviour.
        problem: settings of `ErgodicProblem`; its dt is replaced and the transition is exact.
        seeds: one a repeat.

    Returns:
        Errors; infinite where the weights are not finite.
    """
    setting = ErgodicProblem(**{**problem, "dt": dt, "transition": "exact"})
    rates = [float(r) for r in settings["rates"]]
    behaviour = (float(settings["behaviour"][0]), float(settings["behaviour"][1]), float(settings["behaviour"][2]))
    streams, steps = int(settings["streams"]), round(float(settings["time"]) / dt)
    learner = BigQ(setting, len(rates) * len(seeds), streams, np.repeat(rates, len(seeds)), behaviour, form)
    shifted = [s + SEED_SHIFT["scan"] for s in seeds]
    done = train(learner, shifted, streams, steps, 1, 0.5, groups=len(rates))
    best = setting.optimum()

    def relative(found: Array, truth: float) -> Array:
        with np.errstate(all="ignore"):
            error = np.abs(found / truth - 1)
        return np.where(np.isfinite(error), error, np.inf).reshape(len(rates), len(seeds))

    with np.errstate(all="ignore"):
        last, mean = learner.in_units_of_q(done.trace[-1]), learner.in_units_of_q(done.average)
        value = last[0] - dt * last[4] ** 2 / last[3]  # V is a minimum over a: its quadratic part is theta_0 - u k^2/S
        share = action_share(setting, behaviour, last).reshape(len(rates), len(seeds))
    return Scanned(
        relative(-last[4] / last[3], best.slope),
        relative(-mean[4] / mean[3], best.slope),
        relative(value, -best.k2),
        share,
    )
