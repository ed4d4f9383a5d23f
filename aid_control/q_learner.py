r"""q-learning as a loop: rollouts of any behaviour policy, joint updates of J and q (Jia & Zhou 2023, algorithm 2).

On-policy the behaviour is the Gibbs policy of the current q; off-policy it is whatever the caller gives, and the same
two updates are valid because the martingale condition holds under every behaviour.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .improvement.q_learning import GaussianAdvantage, q_learning_loss
from .noise import generator
from .policy import GaussianPolicy
from .problem import ControlProblem
from .rollout import Trajectory, rollout
from .schedules import Projection, Schedule, constant
from .value import Shifted

__all__ = ["QLearner"]


class QLearner:
    """(J, q) learning for a finite-horizon problem.

    Args:
        problem: is only run.
        critic: J, any module (t, x, context, probe) -> (B,).
        advantage: q with its mean and precision.
        behaviour: the policy that acts; ``None`` = on-policy.
        critic_rate: step size of J by iteration (plain stochastic approximation); default 0.1.
        mean_rate: step size of q's mean, pre-multiplied by nothing; default 0.1.
        precision_rate: step size of q's precision; default 0, which keeps it.
        projection: of the mean's weights.
        seed: of exploration and Brownian noise.
    """

    def __init__(
        self,
        problem: ControlProblem,
        critic: nn.Module,
        advantage: GaussianAdvantage,
        behaviour: GaussianPolicy | None = None,
        critic_rate: Schedule | None = None,
        mean_rate: Schedule | None = None,
        precision_rate: Schedule | None = None,
        projection: Projection | None = None,
        seed: int = 0,
    ) -> None:
        self.problem, self.critic, self.advantage, self.behaviour = problem, critic, advantage, behaviour
        self.value = Shifted(critic)
        self.rates = (critic_rate or constant(0.1), mean_rate or constant(0.1), precision_rate or constant(0.0))
        self.projection, self.seed, self.iteration = projection, seed, 0

    def collect(self, x: Tensor, grid: Tensor) -> Trajectory:
        """Run the behaviour with fresh noise; costs without the entropy.

        Args:
            x: initial states (B, d).
            grid: times (K + 1,).
        """
        policy = self.behaviour or self.advantage.policy()
        noise = generator(self.seed, self.iteration, 2)
        with torch.no_grad():
            return rollout(
                self.problem, policy, x, grid, None, (), "sampled", noise=noise, entropy=(self.seed, self.iteration)
            )

    def iterate(self, x: Tensor, grid: Tensor) -> float:
        """One rollout and one joint update.

        Args:
            x: initial states (B, d).
            grid: times (K + 1,).

        Returns:
            The mean total cost of the rollout, without the entropy.
        """
        trajectory = self.collect(x, grid)
        loss = q_learning_loss(self.value.along(trajectory), self.advantage, trajectory)
        loss = loss * getattr(self.critic, "groups", 1)
        groups = (list(self.critic.parameters()), list(self.advantage.mean.parameters()), [self.advantage.factor])
        gradients = torch.autograd.grad(loss, [w for group in groups for w in group])
        with torch.no_grad():
            rates = [rate(self.iteration) for rate, group in zip(self.rates, groups, strict=True) for _ in group]
            for weight, rate, gradient in zip([w for g in groups for w in g], rates, gradients, strict=True):
                weight.sub_(gradient, alpha=rate)
            if self.projection is not None:
                for weight in groups[1]:
                    weight.copy_(self.projection(weight))
        self.iteration += 1
        return float(trajectory.total_cost().mean())
