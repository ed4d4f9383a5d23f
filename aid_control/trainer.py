r"""The one loop: rollout, policy evaluation, policy improvement.

An iteration runs the current policy through the problem, updates the critic by a martingale method
(`evaluation`; and, if asked, by its terminal condition), asks an estimator of `improvement` for target
actions $w_k$, and moves the mean:

$$
L(\phi) = \tfrac12 E \sum_k \omega_k\, | m_\phi(t_k, X_k; \xi) - w_k |^2 , \qquad \omega_k = \Delta t_k ,
$$

whose gradient at the current policy is the (variance-pre-multiplied) policy gradient.  The estimator
``"policy_gradient"`` is the plain policy gradient of the entropy-regularised problem instead, for a policy whose
covariance may be learned too: costs carry $\tau \log \pi$, and the critic is $V^\tau$.  ``"backprop"`` differentiates
the discretised cost through the sampler and needs no critic.  Probes are cached in the trajectory,
so that the updates never call the frozen system again, and a trajectory can be used for several of them. Every
iteration's randomness is keyed by its number: a restarted run is the same run.  A batch may come in parts, for several
processes and for less memory (`parallel`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Batch
from .descent import Descent, Part
from .evaluation import EVALUATIONS, STEPWISE, clstd, terminal_gradient_loss
from .improvement import ESTIMATORS, backprop_loss, policy_gradient_loss
from .noise import generator
from .parallel import Rows, Team
from .policy import GaussianPolicy
from .problem import ControlProblem
from .rollout import Mode, Trajectory, rollout
from .schedules import Projection, Schedule, constant
from .value import Shifted

__all__ = ["ActorCritic", "Estimator"]

Estimator = Callable[[ControlProblem, GaussianPolicy, Shifted, Trajectory], Iterable[Tensor]]
SAMPLED = ("score", "antithetic", "policy_gradient")  # these look at the actions
UNDIVIDED = ("antithetic", "gtd0", "gtd2", "clstd")  # no means over the rows of a batch


class ActorCritic:
    """Actor-critic for a control problem.

    Args:
        problem: the problem.
        actor: the policy's mean, (t, x, context, probe) -> like the control.
        critic: the value, (t, x, context, probe) -> (B,).
        temperature: lambda, the cost of exploration a unit of time; tau for ``"policy_gradient"``.  A number, or
            a schedule of the iteration.
        estimator: ``"score"``, ``"antithetic"``, ``"stein"``, ``"adjoint"``, ``"policy_gradient"`` or ``"backprop"``;
            or a function with the signature of `improvement.stein_targets`.
        evaluation: how the critic learns: a name of `evaluation.EVALUATIONS`, or ``"clstd"``.
        mode: how rollouts execute the policy; estimators that look at the actions (``"score"``, ``"antithetic"``,
            ``"policy_gradient"``) need ``"sampled"``.
        actor_lr: the optimiser's rate for the actor.
        critic_lr: and for the critic.
        updates: updates of actor and critic a rollout (``"policy_gradient"``, ``"backprop"``: one of the actor).
        terminal_weight: weight of the critic's terminal condition beside its evaluation loss (0 = off).
        value_scale: size of the value in units of the cost: critic losses are divided by its square.
        step_weight: omega(t, Dt) of the actor's regression; default Dt.
        clip: bound of the gradients' norms.
        ema: decay of the actor's averaged weights a iteration, 0 = none.
        seed: of the exploration and Brownian noise.
        rate: a schedule that multiplies both learning rates.
        projection: applied to every weight of the actor after an update.
        covariance: maps a time to the policy's covariance, for ``"policy_gradient"``; a module's weights learn.
        optimizer: ``"adam"`` or ``"sgd"``.
        checkpointing: of ``"backprop"``: keep states only and run every step twice.
        stepwise: differentiate the losses one step at a time, so that memory does not grow with the number of
            steps by more than the path; slower for small networks.
        team: the processes that train together, and their precision.
        max_skipped: give up after so many updates in a row without a finite gradient.

    Raises:
        ValueError: for an unknown estimator, evaluation or optimiser, an estimator that does not fit the mode, or a
            covariance without ``"policy_gradient"`` (or the reverse).
    """

    def __init__(
        self,
        problem: ControlProblem,
        actor: nn.Module,
        critic: nn.Module,
        temperature: float | Schedule = 0.1,
        estimator: str | Estimator = "stein",
        evaluation: str = "ctd",
        mode: Mode = "sampled",
        actor_lr: float = 1e-3,
        critic_lr: float = 1e-3,
        updates: int = 1,
        terminal_weight: float = 0.0,
        value_scale: float = 1.0,
        step_weight: Callable[[Tensor, Tensor], Tensor] | None = None,
        clip: float = 1.0,
        ema: float = 0.0,
        seed: int = 0,
        rate: Schedule | None = None,
        projection: Projection | None = None,
        covariance: nn.Module | None = None,
        optimizer: str = "adam",
        checkpointing: bool = True,
        stepwise: bool = False,
        team: Team | None = None,
        max_skipped: int = 20,
    ) -> None:
        names = [*ESTIMATORS, "policy_gradient", "backprop"]
        if not callable(estimator) and estimator not in names:
            raise ValueError(f"estimator is {estimator!r}; expected one of {', '.join(names)}")
        if estimator in SAMPLED and mode != "sampled":
            raise ValueError(f"the {estimator} estimator needs sampled actions; expected mode 'sampled', not {mode!r}")
        if (covariance is None) == (estimator == "policy_gradient"):
            raise ValueError("a covariance belongs to the policy_gradient estimator; expected both or neither")
        if evaluation not in (*EVALUATIONS, "clstd"):
            raise ValueError(f"evaluation is {evaluation!r}; expected one of {', '.join(EVALUATIONS)}, clstd")
        if optimizer not in ("adam", "sgd"):
            raise ValueError(f"optimizer is {optimizer!r}; expected adam or sgd")
        self.evaluation = evaluation
        self.problem, self.actor, self.critic = problem, actor, critic
        self.estimator, self.mode, self.updates = estimator, mode, updates
        self.targets = estimator if callable(estimator) else ESTIMATORS.get(estimator)
        self.terminal_weight, self.value_scale, self.ema = terminal_weight, value_scale, ema
        self.checkpointing, self.stepwise = checkpointing, stepwise
        self.step_weight = step_weight or (lambda t, dt: dt)
        self.seed, self.iteration = seed, 0
        self.team = team or Team()
        self.descent = Descent(clip, self.team, max_skipped)
        self._temperature = temperature if callable(temperature) else constant(temperature)
        self.value = Shifted(critic, 0.0)
        self.rate, self.projection = rate or constant(1.0), projection
        self.policy = GaussianPolicy(actor, covariance)
        # what the actor's optimiser moves, and what is saved as "actor" beside the mean
        self.covariance = covariance
        moved = [*actor.parameters(), *(covariance.parameters() if covariance is not None else ())]
        self._modules = {"actor": moved, "critic": list(critic.parameters())}
        self._rates = {"actor": actor_lr, "critic": critic_lr}
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.SGD(weights, lr=self._rates[name])
            if optimizer == "sgd"
            else torch.optim.Adam(weights, lr=self._rates[name], betas=(0.9, 0.99))
            for name, weights in self._modules.items()
        }
        self.average = {k: v.detach().clone() for k, v in actor.state_dict().items()}

    @property
    def skipped(self) -> int:
        """Optimiser steps left out so far, for want of a finite gradient."""
        return self.descent.skipped

    @property
    def temperature(self) -> float:
        """lambda (or tau) of the current iteration."""
        return self._temperature(self.iteration)

    @torch.no_grad()
    def collect(self, batch: Batch) -> Trajectory:
        """Run the current policy; no gradients.

        Args:
            batch: where the rollouts start.
        """
        entropic = self.estimator == "policy_gradient"
        if not entropic:
            # fixed variance: exploration costs lambda a unit of time, the value is shifted (AID)
            # (by its coordinates: those of B'p, for any p)
            lam, first = self.temperature, batch.x[:1]
            dim = self.problem.pull(batch.grid[0], first, first)[0].numel()
            self.policy.variance = lambda t: self.problem.policy_variance(t, lam, dim)
            self.value.temperature = lam
        entropy = (self.seed, 0xB0, self.iteration)
        return rollout(
            self.problem,
            self.policy,
            batch.x,
            batch.grid,
            batch.context,
            batch.target,
            self.mode,
            noise=batch.noise(generator(self.seed, 0xAC7, self.iteration)),
            entropy=entropy,
            increments=batch.paths(self.problem, entropy),
            temperature=self.temperature if entropic else 0.0,
            keep="path" if self.estimator == "stein" else "all",  # Stein looks at states alone
        )

    def _descend(self, name: str, parts: Iterable[Part]) -> float:
        """One optimiser step on the weighted sum of the parts' losses; returns this process' share of it."""
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = self._rates[name] * self.rate(self.iteration)
        total = self.descent.step(optimizer, self._modules[name], parts, self.stepwise)
        if name == "actor" and self.projection is not None:
            with torch.no_grad():
                for weight in self.actor.parameters():
                    weight.copy_(self.projection(weight))
        return total

    def _advance(self) -> None:
        self.iteration += 1
        # while the run is young, average over its recent past only
        decay = min(self.ema, self.iteration / (self.iteration + 10))
        with torch.no_grad():
            for name, value in self.actor.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)

    def fit_terminal(self, x: Tensor, context: Any, target: Any, rows: Rows | None = None) -> float:
        """One critic update on its terminal condition alone (no rollout).

        Args:
            x: states (B, ...).
            context: xi.
            target: what the terminal cost sees.
            rows: which part of the global batch these are; ``None`` = it is the whole.

        Returns:
            The loss.
        """
        with self.team.autocast():
            loss = terminal_gradient_loss(self.problem, self.critic, x, context, target) / self.value_scale**2
        total = self._descend("critic", [(1.0 if rows is None else rows.weight, [loss])])
        self._advance()
        return self.team.sum([total])[0]

    def actor_losses(
        self, trajectory: Trajectory, targets: Iterable[Tensor], signal: list[float] | None = None
    ) -> Iterable[Tensor]:
        """The regression of the module's formula, one term a step, mean over batch and coordinates.

        Args:
            trajectory: states and probes.
            targets: w_k, like the control, one a step.
            signal: two numbers, to which the squared norm of the batch mean of w - m and the variance of that mean are
                added.

        Returns:
            One scalar a step.
        """
        for (k, t, dt), target in zip(trajectory.steps(), targets, strict=True):
            mean = self.actor(t, trajectory.states[k], trajectory.context, trajectory.probes[k])
            if signal is not None and len(target) > 1:
                error = (target - mean.detach()).flatten(1)
                signal[0] += float(error.mean(0).square().sum())
                signal[1] += float(error.var(0).sum() / len(error))
            yield 0.5 * self.step_weight(t, dt) * (mean - target).square().mean()

    def iterate(self, batch: Batch | Sequence[Batch]) -> dict[str, float]:
        """One iteration -> scalars for a log: cost, losses, signal-to-noise of the estimator (of an undivided batch).

        Args:
            batch: where the rollouts start; or this process' parts of a global batch.

        Raises:
            ValueError: for parts, where estimator or evaluation are no means over rows.
            Diverged: after too many updates in a row without a finite gradient.
        """
        batches = [batch] if isinstance(batch, Batch) else list(batch)
        if not all(b.part.whole for b in batches):
            self._check_divisible()
        with self.team.autocast():
            log = self._backprop(batches) if self.estimator == "backprop" else self._actor_critic(batches)
        self._advance()
        return dict(zip(log, self.team.sum(list(log.values())), strict=True))

    def _check_divisible(self) -> None:
        groups = getattr(self.critic, "groups", 1)
        names = [self.estimator] if self.estimator == "backprop" else [self.estimator, self.evaluation]
        wrong = [str(name) for name in names if name in UNDIVIDED]
        wrong += [f"a critic of {groups} groups"] if groups != 1 else []
        wrong += ["the averaged mode"] if self.mode == "averaged" else []
        if wrong:
            raise ValueError(f"{wrong[0]} looks at a whole batch; expected one process and accumulate = 1")

    def _actor_critic(self, batches: Sequence[Batch]) -> dict[str, float]:
        runs = [(b.part.weight, b, self.collect(b)) for b in batches]
        log = {"cost": 0.0, "terminal": 0.0}
        for weight, _, trajectory in runs:
            assert trajectory.terminal is not None
            log["cost"] += weight * float(trajectory.total_cost().mean())
            log["terminal"] += weight * float(trajectory.terminal.mean())
        log["critic_loss"] = self._evaluate(runs)
        if self.estimator == "policy_gradient":
            # one update a rollout: after it the data are no longer on-policy
            losses = ((weight, [policy_gradient_loss(self.policy, self.value, path)]) for weight, _, path in runs)
            log["actor_loss"] = self._descend("actor", losses)
            return log
        signal = [0.0, 1e-30]
        kept: dict[int, list[Tensor]] = {}
        for i in range(self.updates):
            log["actor_loss"] = self._descend("actor", self._improvement(runs, kept, None if i else signal))
        if len(runs) == 1 and self.team.where.count == 1:
            # of the mean direction over the batch: |mean|^2 / (variance of the mean)
            log["snr"] = signal[0] / signal[1]
        return log

    def _improvement(
        self, runs: list[tuple[float, Batch, Trajectory]], kept: dict[int, list[Tensor]], signal: list[float] | None
    ) -> Iterator[Part]:
        """The actor's losses of every part; targets that come as a list are made once a rollout."""
        assert self.targets is not None
        for number, (weight, _, trajectory) in enumerate(runs):
            targets: Iterable[Tensor] | None = kept.get(number)
            if targets is None:  # an iterator is spent after use: it is made again, without the drift
                targets = self.targets(self.problem, self.policy, self.value, trajectory)
                if isinstance(targets, list):
                    kept[number] = targets
            yield weight, self.actor_losses(trajectory, targets, signal)

    def _backprop(self, batches: Sequence[Batch]) -> dict[str, float]:
        log = {"cost": 0.0, "terminal": 0.0}

        def losses() -> Iterator[Part]:
            for b in batches:
                cost, terminal = backprop_loss(
                    self.problem, self.actor, b.x, b.grid, b.context, b.target, self.checkpointing
                )
                log["cost"] += b.part.weight * float(cost.detach().mean())
                log["terminal"] += b.part.weight * float(terminal.detach().mean())
                yield b.part.weight, [cost.mean() / self.value_scale]

        log["actor_loss"] = self._descend("actor", losses())
        return log

    def _evaluate(self, runs: list[tuple[float, Batch, Trajectory]]) -> float:
        """The critic's updates; returns the last loss (0 where it is solved for)."""
        if self.evaluation == "clstd":
            clstd(self.value, runs[0][2], ridge=1e-9)
            return 0.0
        for _ in range(self.updates):
            parts = ((weight, self._critic_losses(trajectory, batch)) for weight, batch, trajectory in runs)
            loss = self._descend("critic", parts)
        return loss

    def _critic_losses(self, trajectory: Trajectory, batch: Batch) -> Iterable[Tensor]:
        scale = self.value_scale**2
        if self.evaluation in STEPWISE:
            yield from (loss / scale for loss in STEPWISE[self.evaluation](self.value, trajectory))
        else:
            yield EVALUATIONS[self.evaluation](self.value, trajectory) / scale
        if self.terminal_weight:
            loss = terminal_gradient_loss(self.problem, self.critic, trajectory.states[-1], batch.context, batch.target)
            yield self.terminal_weight * loss / scale

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "actor": self.actor.state_dict(),
            "critic": self.critic.state_dict(),
            "average": self.average,
            "covariance": {} if self.covariance is None else self.covariance.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "iteration": self.iteration,
            **self.descent.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Args:
            state: what `state` gave, of a trainer with the same networks.
        """
        self.actor.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        if self.covariance is not None:
            self.covariance.load_state_dict(state["covariance"])
        self.average = {k: v.clone() for k, v in state["average"].items()}
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.iteration = int(state["iteration"])
        self.descent.restore(state)
