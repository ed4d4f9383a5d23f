r"""Does a trainer find the optimal guidance?  Image models whose optimum or posterior is known, and one examination.

A `Study` is a guidance problem on an exact backbone together with unlimited samples $(x_0, M)$ of it, so that
nothing but the trainer stands between the learned policy and the optimum.  An `Examination` fixes test images,
masks and starting noises and gives

$$
\begin{aligned}
\text{captured} &= \frac{J(0) - J(u_\phi)}{J(0) - J^*}, \\
\text{error}^2 &= \frac{E \sum_k w_k |u_\phi - u^*|^2(t_k, X_k)}{E \sum_k w_k |u^*|^2(t_k, X_k)}
\quad \text{along the learned path,}
\end{aligned}
$$

$J$ with the exact target $m(\xi) = E[x_0 \mid \xi]$, which differs from the cost with $x_0$ by a constant.  $J^*$ is
exact for Gaussian images (`optimum`); for mixtures it is the best that L-BFGS finds for every image
(`methods.optimal_control`), and there is no $u^*$ along other paths.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..improvement import antithetic_targets
from ..noise import generator
from ..policy import GaussianPolicy, ZeroMean
from ..rollout import rollout
from ..schedules import linear
from ..trainer import ActorCritic
from .backbones.gaussian import GaussianBackbone
from .backbones.mixture import MixtureBackbone
from .clock import KarrasClock
from .guidance import Guidance, PyramidCritic
from .masks import make_mask
from .methods.optimal_control import optimise_controls
from .metrics import psnr
from .optimum import GaussianOptimum
from .problem import GuidanceProblem, Observation, levels_of
from .proxy import proxy_targets
from .pyramid import BANDS
from .signals import MatrixCritic, MatrixGuidance, gap_masks, squared_exponential
from .training import band_variances

__all__ = ["TRAINERS", "Examination", "Progress", "Recipe", "Study", "faces", "fit_guess", "signals", "train"]

# name -> (estimator of the generic trainer, how rollouts execute the policy)
TRAINERS: dict[str, tuple[Any, Any]] = {
    "score": ("score", "sampled"),
    "antithetic": (functools.partial(antithetic_targets, pairs=32), "sampled"),
    "stein": ("stein", "sampled"),
    "adjoint": ("adjoint", "mean"),
    "backprop": ("backprop", "mean"),
    "proxy": (proxy_targets, "mean"),
}


@dataclass
class Study:
    """A guidance problem with a known answer.

    Attributes:
        problem: on an exact backbone.
        steps: Euler steps.
        networks: makes (actor, critic); the actor has an ``encoder`` and ``observe``.
        masks: (count, key...) -> (count, 1, H, W).
    """

    problem: GuidanceProblem
    steps: int
    networks: Callable[[], tuple[nn.Module, nn.Module]]
    masks: Callable[..., Tensor]

    @property
    def backbone(self) -> MixtureBackbone:
        """The exact backbone."""
        return self.problem.backbone  # type: ignore[return-value]

    @property
    def grid(self) -> Tensor:
        """Times of the sampler, (steps + 1,) float64."""
        return levels_of(self.problem, self.steps)

    def draw(self, count: int, *key: int) -> tuple[Tensor, Tensor, Tensor]:
        """One batch, a function of its key.

        Args:
            count: number of images.
            *key: integers that fix the draw.

        Returns:
            Clean images (count, C, H, W), masks (count, 1, H, W), and unit noise like the images.
        """
        net, rng = self.backbone, generator(*key)
        component = torch.multinomial(net.log_weights.double().softmax(0), count, True, generator=rng)
        z = torch.randn(count, net.rank, generator=rng)
        image = net.noise[component].sqrt() * torch.randn(count, net.pixels, generator=rng) + net.mean[component]
        for k in range(net.components):
            rows = component == k
            image[rows] += z[rows] @ net.factor[k]
        image = image.reshape(count, *net.shape)
        return image, self.masks(count, *key), torch.randn(image.shape, generator=rng)


def signals(n: int = 32, beta: float = 1.0, steps: int = 40) -> Study:
    """Signals of n numbers, with matrices for networks (module `signals`).

    Args:
        n: numbers in a signal.
        beta: weight of the control cost.
        steps: Euler steps.
    """
    problem = GuidanceProblem(squared_exponential(n), KarrasClock(), beta=beta)

    def networks() -> tuple[nn.Module, nn.Module]:
        actor = MatrixGuidance(n, problem.clock)
        return actor, MatrixCritic(actor.encoder, n, problem.clock, beta)

    return Study(problem, steps, networks, lambda count, *key: gap_masks(count, n, *key, 1))


def faces(backbone: MixtureBackbone, beta: float = 1.0, steps: int = 18, mask: str = "mixed") -> Study:
    """Square images of an exact backbone, with AID's own module and critic.

    Args:
        backbone: Gaussian or mixture of square images.
        beta: weight of the control cost.
        steps: Euler steps.
        mask: kind of the masks, see `masks.make_mask`.
    """
    problem, side = GuidanceProblem(backbone, KarrasClock(), beta=beta), backbone.img_resolution
    bands, coarse = (BANDS, 4) if side % 32 == 0 else (int(math.log2(side & -side)) + 1, 1)

    def masks(count: int, *key: int) -> Tensor:
        seeds = torch.randint(2**31, (count,), generator=generator(*key, 1)).tolist()
        return torch.stack([make_mask(mask, side, seed) for seed in seeds])

    def networks() -> tuple[nn.Module, nn.Module]:
        actor = Guidance(side, backbone.img_channels, bands=bands, coarse=coarse)
        spread = band_variances(study.draw(512, 0, 0xBA)[0], bands)
        return actor, PyramidCritic(actor.encoder, beta, problem.pixels, spread)

    study = Study(problem, steps, networks, masks)
    return study


class Examination:
    """Fixed test images of a study, and what is known of them.

    Args:
        study: the study.
        count: how many test images.
        seed: of images, masks and noises; training never draws them.
        search: iterations of L-BFGS where the optimum has no closed form.
        optimal: J* of the same examination, where it has been searched for before.

    Attributes:
        target: m(xi) (count, C, H, W).
        unguided: J(0).
        optimal: J*.
    """

    def __init__(self, study: Study, count: int, seed: int = 0, search: int = 60, optimal: float | None = None) -> None:
        self.study, self.problem, self.grid = study, study.problem, study.grid
        self.x0, self.mask, noise = study.draw(count, seed, 0xE8A)
        self.x = noise * study.problem.clock.sigma_max
        self.y = self.x0 * self.mask
        self.target = study.backbone.posterior_mean(self.y, self.mask)
        blind = Observation(self.y, self.mask)
        self.flow = self.run(ZeroMean(), blind)
        self.unguided = float(self.flow.total_cost().mean())
        self.optimum: GaussianOptimum | None = None
        if isinstance(study.backbone, GaussianBackbone):
            self.optimum = GaussianOptimum(self.problem, self.grid, self.target)
            path = self.run(self.optimum, blind)
            self.best: Tensor | None = path.states[-1]
            self.optimal = float(path.total_cost().mean())
        elif optimal is None:
            found = optimise_controls(self.problem, self.x, self.grid, blind, self.target, iterations=search)
            self.best, self.optimal = found[1], float(found[2].mean())
        else:
            self.best, self.optimal = None, optimal

    def run(self, actor: Any, context: Observation | None = None) -> Any:
        """The test trajectories under a policy's mean, as `rollout.Trajectory` with the exact target.

        Args:
            actor: (t, x, context, probe) -> v; without a context also `observe`.
            context: what it sees of the test images; default what it makes of them.
        """
        if context is None:
            context = actor.observe(self.y, self.mask)
        with torch.no_grad():
            return rollout(self.problem, GaussianPolicy(actor), self.x, self.grid, context, self.target)

    def hole_psnr(self, images: Tensor, reference: Tensor | None = None) -> float:
        """Mean PSNR over the holes in dB.

        Args:
            images: fillings (count, C, H, W).
            reference: like ``images``; default the clean images.
        """
        peak = psnr(images, self.x0 if reference is None else reference, 1 - self.mask)
        return float(peak.mean())

    def judge(self, actor: Any) -> dict[str, float]:
        """How good a policy is; one run over the test images.

        Args:
            actor: as `run`, with `observe`.

        Returns:
            ``captured``, ``error`` (NaN without a closed form), and hole PSNRs in dB: ``psnr`` to the clean images,
                ``psnr_to_mean`` to m(xi).
        """
        path = self.run(actor)
        error = math.nan
        if self.optimum is not None:
            wrong = size = 0.0
            for k, t, dt in path.steps():
                best, weight = self.optimum(t, path.states[k]), float(self.problem.control_weight(t) * dt)
                wrong += weight * float((path.means[k] - best).square().sum())
                size += weight * float(best.square().sum())
            error = math.sqrt(wrong / size)
        end = path.states[-1]
        return {
            "captured": (self.unguided - float(path.total_cost().mean())) / (self.unguided - self.optimal),
            "error": error,
            "psnr": self.hole_psnr(end),
            "psnr_to_mean": self.hole_psnr(end, self.target),
        }

    def guess_error(self, actor: Any) -> float:
        r"""What no later training can win back: $E|\hat m - m|^2 / E|X_K - m|^2$, $X_K$ the end of the unguided flow.

        Args:
            actor: has the ``encoder`` that guesses m, (y, mask) -> like y.
        """
        with torch.no_grad():
            wrong = (actor.encoder(self.y, self.mask) - self.target).square().mean()
        return float(wrong / (self.flow.states[-1] - self.target).square().mean())


@dataclass
class Recipe:
    """How long and how fast a trainer learns.

    Attributes:
        iterations: of the trainer.
        batch: rollouts an iteration.
        actor_lr: falls linearly to a fiftieth, as does the critic's.
        critic_lr: of the critic's tables.
        temperature: lambda.
        updates: a rollout (replay: no new calls of the backbone).
        minutes: bound of the time; the last result before it counts.
    """

    iterations: int = 400
    batch: int = 64
    actor_lr: float = 3e-3
    critic_lr: float = 1e-4
    temperature: float = 1e-4
    updates: int = 1
    minutes: float = 15.0


@dataclass
class Progress:
    """What a training run showed: one entry a look, and totals.

    Attributes:
        curve: rows of iteration, seconds, and what `Examination.judge` says, and ``snr``.
        calls: denoised images (calls of the backbone times batch).
        seconds: of training, looks not counted.
        skipped: updates left out because they were not finite.
    """

    curve: list[dict[str, float]] = field(default_factory=list)
    calls: int = 0
    seconds: float = 0.0
    skipped: int = 0


def fit_guess(
    study: Study, actor: Any, critic: nn.Module, iterations: int, batch: int, lr: float, seed: int = 1,
    minutes: float = math.inf, tick: Callable[[], Any] = lambda: None,
) -> float:  # fmt: skip
    """Phase 1, shared by all trainers: the critic's terminal condition; afterwards the actor holds averaged weights.

    Args:
        study: the study.
        actor: shares its ``encoder`` with the critic.
        critic: what is fitted.
        iterations: at most.
        batch: images an iteration.
        lr: learning rate at the start; falls linearly to a fiftieth.
        seed: of the batches.
        minutes: bound of the time.
        tick: called after every iteration.

    Returns:
        The seconds it took.
    """
    rate = linear(1.0, 0.02, max(iterations, 1))
    scale = study.problem.pixels**-0.5
    trainer = ActorCritic(study.problem, actor, critic, critic_lr=lr, value_scale=scale, ema=0.999, rate=rate)
    start = time.monotonic()
    while trainer.iteration < iterations and time.monotonic() - start < 60 * minutes:
        x0, mask, _ = study.draw(batch, seed, 0x601, trainer.iteration)
        trainer.fit_terminal(x0, Observation(x0 * mask, mask), x0)
        tick()
    actor.load_state_dict(trainer.average)
    return time.monotonic() - start


def train(
    study: Study, exam: Examination, actor: Any, critic: nn.Module, name: str, recipe: Recipe, seed: int = 2,
    looks: int = 12, tick: Callable[[], Any] = lambda: None,
) -> Progress:  # fmt: skip
    """Phase 2 with one of ``TRAINERS``; afterwards the actor holds its averaged weights.

    Args:
        study: the study.
        exam: judges the averaged weights during training.
        actor: with a fitted encoder, which is kept.
        critic: its critic.
        name: of the trainer.
        recipe: its settings.
        seed: of batches and exploration.
        looks: how often the examination is held.
        tick: called after every iteration.

    Raises:
        KeyError: for a name that is not in ``TRAINERS``.
    """
    actor.encoder.requires_grad_(False)
    estimator, mode = TRAINERS[name]
    trainer = ActorCritic(
        study.problem, actor, critic, recipe.temperature, estimator, mode=mode, actor_lr=recipe.actor_lr,
        critic_lr=recipe.critic_lr, updates=recipe.updates, step_weight=study.problem.fall, ema=0.99, seed=seed,
        rate=linear(1.0, 0.02, recipe.iterations), value_scale=0.1,
    )  # fmt: skip
    progress = Progress()
    counting = study.backbone.register_forward_hook(lambda net, args, out: _count(progress, out))
    every = max(recipe.iterations // looks, 1)
    snr: list[float] = []
    while trainer.iteration < recipe.iterations and progress.seconds < 60 * recipe.minutes:
        start = time.monotonic()
        x0, mask, noise = study.draw(recipe.batch, seed, 0x7A1, trainer.iteration)
        context = actor.observe(x0 * mask, mask)
        log = trainer.iterate(Batch(noise * study.problem.clock.sigma_max, study.grid, context, x0))
        progress.seconds += time.monotonic() - start
        snr.append(log.get("snr", math.nan))
        tick()
        if trainer.iteration % every == 0:
            calls = progress.calls
            now = {name: value.clone() for name, value in actor.state_dict().items()}
            actor.load_state_dict(trainer.average)
            row = {"iteration": float(trainer.iteration), "seconds": progress.seconds, **exam.judge(actor)}
            progress.curve.append({**row, "snr": sum(snr) / len(snr)})
            actor.load_state_dict(now)
            snr, progress.calls = [], calls
    counting.remove()
    progress.skipped = trainer.skipped
    actor.load_state_dict(trainer.average)
    return progress


def _count(progress: Progress, out: Tensor) -> None:
    progress.calls += len(out)
