r"""The three parts of a run: learn offline or online while exploring, then execute the mean and go on learning w.

Learning ends with the mean of $\varphi$ over its last third (Polyak and Ruppert).  That gain is then executed without
exploration, as one would use it, and only w still learns, from the wealth reached: exploring has the same mean and
more noise (docs/explanation/mean-variance.md, section 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .learner import ActorCritic
from .market import Goal, Market
from .multiplier import Multiplier
from .paths import explore, stream, terminal

__all__ = ["Learned", "Settings", "execute", "offline", "online"]

Array = NDArray[np.float64]
BATCH = 200  # years that `execute` makes at a time


@dataclass(frozen=True)
class Settings:
    """Of a learner.

    Attributes:
        years: of exploring, in all.
        paths: M, years of a batch (offline) or streams side by side (online).
        temperature: tau at w = z, in units of wealth squared.
        absolute: whether it stays so, as published; otherwise it grows like (w - x0)^2.
        rate: alpha of the first years.
        decay: its power of the years.
        delay: years until it begins to fall.
        weighted: see `learner.ActorCritic`.
        m: batches (exploring) and years (executing) between two steps of w.

    Raises:
        ValueError: for fewer than 2 paths, or too few years for 30 batches.
    """

    years: int = 30000
    paths: int = 32
    temperature: float = 0.1
    absolute: bool = False
    rate: float = 0.1
    decay: float = 0.51
    delay: float = 2000.0
    weighted: bool = True
    m: int = 10

    def __post_init__(self) -> None:
        if self.paths < 2 or self.years < 30 * self.paths or self.m < 1:
            raise ValueError(
                f"years is {self.years}, paths {self.paths}, m {self.m}; expected at least 2 paths, 30 batches, m >= 1"
            )


@dataclass
class Learned:
    """What a learner ends with, and how it came there.

    Attributes:
        gain: of u = gain Y, averaged, (S, K).
        w: the multiplier, (S, K), NaN where there is no goal.
        theta: the critic's rate, (S, K).
        gains: gains along the way, one (S, K) a record.
        years: when they were recorded.
    """

    gain: Array
    w: Array
    theta: Array
    gains: list[Array]
    years: list[int]

    @classmethod
    def join(cls, parts: Sequence[Learned]) -> Learned:
        """The seeds of several runs in the same markets with the same settings.

        Args:
            parts: of the runs.
        """
        gain, w, theta = (np.concatenate([getattr(p, name) for p in parts]) for name in ("gain", "w", "theta"))
        gains = [np.concatenate(g) for g in zip(*(p.gains for p in parts), strict=True)]
        return cls(gain, w, theta, gains, parts[0].years)


class _Average:
    """The last third of the gains, and records at ever rarer batches."""

    def __init__(self, batches: int, paths: int) -> None:
        self.first, self.count = batches - batches // 3, 0
        self.total: Array = np.zeros(())
        self.marks = {int(b) for b in np.unique(np.geomspace(1, batches, 40).astype(int))}
        self.paths = paths
        self.gains: list[Array] = []
        self.years: list[int] = []

    def see(self, batch: int, gain: Array) -> None:
        if batch > self.first:
            self.total, self.count = self.total + gain, self.count + 1
        if batch in self.marks:
            self.gains.append(self.total / self.count if self.count else gain)
            self.years.append(batch * self.paths)


def _actor_critic(market: Market, goal: Goal | None, shape: tuple[int, ...], s: Settings) -> ActorCritic:
    gamma = s.temperature / (goal.gain if goal else 1.0) ** 2  # w starts at z
    return ActorCritic(
        shape, market.steps, market.horizon, market.Q, market.H, gamma, s.rate, s.decay, s.delay, s.weighted
    )


def _follow(learner: ActorCritic, multiplier: Multiplier | None, s: Settings, finals: list[Array]) -> None:
    """A step of w every m batches."""
    if len(finals) < s.m:
        return
    if multiplier is not None:
        multiplier.update(np.mean(finals, axis=0))
        if s.absolute:
            learner.gamma = s.temperature / multiplier.distance**2
    finals.clear()


def offline(market: Market, goal: Goal | None, seed: int, settings: Settings) -> Learned:
    """Learn one seed, a step after every batch of whole years.

    Args:
        market: K markets, which see the same noise.
        goal: of the mean-variance problem; without one there is no w.
        seed: of the noise.
        settings: of the learner.

    Returns:
        Arrays (1, K); w is NaN without a goal.
    """
    s, shape = settings, (len(market),)
    learner, noise = _actor_critic(market, goal, shape, s), stream(seed, 0)
    multiplier = Multiplier(goal, shape) if goal else None
    batches = s.years // s.paths
    finals: list[Array] = []
    average = _Average(batches, s.paths)
    for batch in range(1, batches + 1):
        xi, dw = noise.standard_normal((2, market.steps, 1, s.paths))
        dw *= market.h**0.5
        log_variance = learner.log_variance()
        y = explore(market, learner.gain, np.exp(0.5 * log_variance), xi, dw)
        finals.append(y[-1].mean(-1))
        learner.learn(0, y, xi, log_variance)
        _follow(learner, multiplier, s, finals)
        average.see(batch, learner.gain)
    w = multiplier.w if multiplier else np.full(shape, np.nan)
    gain = average.total / average.count
    return Learned(gain[None], w[None], learner.theta[None], [g[None] for g in average.gains], average.years)


def online(market: Market, goal: Goal, seeds: Sequence[int], settings: Settings) -> Learned:
    """Learn S seeds side by side, a step after every trading day of M streams.

    Args:
        market: K markets with A = C = 0, which see the same noise.
        goal: of the mean-variance problem.
        seeds: one run each; what a seed sees does not depend on the others.
        settings: of the learner.

    Returns:
        Arrays (S, K).

    Raises:
        ValueError: for A or C that are not 0.
    """
    if market.A.any() or market.C.any():
        raise ValueError("A or C is not 0; expected a mean-variance problem")
    s, shape = settings, (len(seeds), len(market))
    learner, noises = _actor_critic(market, goal, shape, s), [stream(seed, 1) for seed in seeds]
    multiplier = Multiplier(goal, shape)
    finals: list[Array] = []
    batches = s.years // s.paths
    average = _Average(batches, s.paths)
    drift, column = (market.B * market.h)[:, None], market.D[:, None]
    for batch in range(1, batches + 1):
        drawn = np.stack([g.standard_normal((2, market.steps, s.paths)) for g in noises], axis=2)
        drawn[1] *= market.h**0.5
        y = np.full((2, *shape, s.paths), -1.0)
        for k in range(market.steps):
            xi, dw = drawn[:, k, :, None]
            log_variance = learner.log_variance(k, 1)
            u = learner.gain[..., None] * y[0]
            u += np.exp(0.5 * log_variance[0])[..., None] * xi
            u *= drift + column * dw
            np.add(y[0], u, out=y[1])
            learner.learn(k, y, xi[None], log_variance)
            y[0] = y[1]
        finals.append(y[1].mean(-1))
        _follow(learner, multiplier, s, finals)
        average.see(batch, learner.gain)
    return Learned(average.total / average.count, multiplier.w, learner.theta, average.gains, average.years)


def execute(market: Market, goal: Goal, gain: Array, w: Array, seed: int, years: int, m: int = 10) -> Array:
    """Execute the mean for so many years and go on learning w from them.

    Args:
        market: K markets.
        goal: x0 and z.
        gain: of u = gain (X - w), (K,).
        w: where learning starts, (K,).
        seed: of the noise.
        years: how many.
        m: years between two steps of w.

    Returns:
        w, (K,).
    """
    multiplier = Multiplier(goal, w.shape, start=0.05, delay=20.0)
    multiplier.distance = w - goal.x0
    noise, block = stream(seed, 2), m * max(BATCH // m, 1)
    for first in range(0, years - years % m, block):
        count = min(block, years - years % m - first)
        dw = noise.standard_normal((market.steps, count)) * market.h**0.5
        # Y_T does not depend on w, so many years can be made before w is moved
        for final in terminal(market, gain, dw).reshape(len(market), -1, m).mean(-1).T:
            multiplier.update(final)
    return multiplier.w
