r"""Online actor-critic: learn at every step of running streams, discounted, episodic or ergodic (Jia & Zhou 2022b).

After the step from (t, X) under the sampled action A to X',

$$
\begin{aligned}
\delta &= J(t', X') - J(t, X) + \big(c + \tau\log\pi(A) - \rho J(t, X) - \eta\big)\Delta t, \\
\theta &\mathrel{+}= a_\theta\, \partial_\theta J\, \delta, \qquad
\phi \mathrel{-}= a_\phi\, \partial_\phi \log\pi(A)\, \delta, \qquad
\eta \mathrel{+}= a_\eta\, \delta .
\end{aligned}
$$

- *discounted*: infinite horizon, $\rho > 0$, $\eta = 0$;
- *episodic*: finite horizon; $J(T, \cdot)$ is the observed terminal cost, and the streams start again after it;
- *ergodic*: infinite horizon, $\rho = 0$; $\eta$ learns the average cost (the sign is that of a cost: a cost above
  what was expected raises it).

B streams run side by side and their updates are averaged, which is the same as one stream with a smaller step size,
but for the wall clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .increments import Increments, time_grid
from .motion import Motion
from .noise import generator
from .policy import GaussianPolicy
from .problem import ControlProblem
from .schedules import Schedule, constant

__all__ = ["LogVariance", "OnlineActorCritic"]


class LogVariance(nn.Module):
    """v = exp(w), one learned number, constant in time: a covariance for `policy.GaussianPolicy`.

    Args:
        start: v at the start.

    Raises:
        ValueError: unless start > 0.
    """

    def __init__(self, start: float = 1.0) -> None:
        super().__init__()
        if not start > 0:
            raise ValueError(f"start is {start}; expected a positive variance")
        self.weight = nn.Parameter(torch.tensor(math.log(start), dtype=torch.float64))

    def forward(self, t: Tensor) -> Tensor:
        """v, whatever the time: () -> ()."""
        return self.weight.exp()


class OnlineActorCritic:
    """The streams, and the learner that moves with them.

    Args:
        problem: is only run.
        critic: J(t, x), (B,).
        actor: m(t, x), the policy's mean.
        covariance: a module t -> covariance, as `policy.GaussianPolicy` takes it.
        start: maps a generator and a number of streams to states (B, d): where streams begin.
        dt: the step; must divide a finite horizon.
        streams: B.
        temperature: tau.
        critic_rate: a_theta by step; default 0.1.
        actor_rate: a_phi by step, for mean and covariance; default 0.1.
        average_rate: a_eta by step, for ergodic problems; default 0.1.
        seed: of all randomness.

    Raises:
        ValueError: for a negative temperature or a step that does not divide the horizon.
    """

    def __init__(
        self,
        problem: ControlProblem,
        critic: nn.Module,
        actor: nn.Module,
        covariance: nn.Module,
        start: Callable[[torch.Generator, int], Tensor],
        dt: float = 0.01,
        streams: int = 256,
        temperature: float = 0.1,
        critic_rate: Schedule | None = None,
        actor_rate: Schedule | None = None,
        average_rate: Schedule | None = None,
        seed: int = 0,
    ) -> None:
        if not temperature >= 0:
            raise ValueError(f"temperature is {temperature}; expected tau >= 0")
        self.problem, self.critic, self.start, self.dt, self.streams = problem, critic, start, dt, streams
        self.policy, self.temperature, self.seed = GaussianPolicy(actor, covariance), temperature, seed
        self.actor_weights = [*actor.parameters(), *covariance.parameters()]
        self.critic_weights = list(critic.parameters())
        self.rates = (critic_rate or constant(0.1), actor_rate or constant(0.1), average_rate or constant(0.1))
        finite = math.isfinite(problem.horizon)
        self.steps = len(time_grid(problem.horizon, dt=dt)) - 1 if finite else 0
        self.ergodic = not finite and problem.discount == 0
        self.average = torch.zeros((), dtype=torch.float64)
        self.step_count = 0
        self._generator = generator(seed, 1)
        self.x = start(self._generator, streams)

    def run(self, steps: int) -> float:
        """Go on with every stream, learning at every step.

        Args:
            steps: how many, at least 1.

        Returns:
            The mean cost per unit time over these steps and the streams, entropy included.
        """
        total = 0.0
        for _ in range(steps):
            total += self._step()
        return total / steps

    def _step(self) -> float:
        k = self.step_count % self.steps if self.steps else 0
        t = torch.tensor(k * self.dt, dtype=torch.float64)
        grid = torch.stack([t, t + self.dt])
        x, problem = self.x, self.problem
        mean = self.policy.mean(t, x, None, None)
        with torch.no_grad():
            eps = torch.randn(mean.shape, generator=self._generator, dtype=x.dtype)
            action = self.policy.sample(t, mean, eps)
            increments = None
            if problem.noise != "none":
                dw = torch.randn(1, x.shape[0], *problem.noise_dim(x), generator=self._generator, dtype=x.dtype)
                increments = Increments(grid, dw * math.sqrt(self.dt))
            motion = Motion(problem, self.policy, x, grid, None, "sampled", "euler", "own", increments, 0)
            x_next, _ = motion.step(0, x, action, None)
        log_prob = self.policy.log_prob(t, action, mean)
        now = self.critic(t, x)
        with torch.no_grad():
            ends = bool(self.steps) and k == self.steps - 1
            ahead = problem.terminal_cost(x_next, ()) if ends else self.critic(t + self.dt, x_next)
            cost = problem.stage_cost(t, x, action, None) + self.temperature * log_prob
            delta = ahead - now + (cost - problem.discount * now - self.average) * self.dt
        up = torch.autograd.grad((now * delta).mean(), self.critic_weights)
        down = torch.autograd.grad((log_prob * delta).mean(), self.actor_weights)
        rates = [rate(self.step_count) for rate in self.rates]
        with torch.no_grad():
            for weight, gradient in zip(self.critic_weights, up, strict=True):
                weight.add_(gradient, alpha=rates[0])
            for weight, gradient in zip(self.actor_weights, down, strict=True):
                weight.sub_(gradient, alpha=rates[1])
            if self.ergodic:
                self.average = self.average + rates[2] * delta.mean()
        self.step_count += 1
        self.x = self.start(self._generator, self.streams) if ends else x_next
        return float(cost.mean())
