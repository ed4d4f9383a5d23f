r"""Critics: learned value functions of time, state and context.

A critic is a module $J_\theta(t, x; \xi)$, called as ``critic(t, x, context, probe)``, that returns (B,).  Two accounts
of exploration lead to the same policy mean:

- *entropy*: the cost carries $\tau \log \pi$ (``temperature`` of a rollout); the critic is $V^\tau$ itself;
- *fixed variance* (AID): with the policy variance fixed by $\lambda$
  (`problem.ControlProblem.policy_variance`) exploration costs $\lambda$ a unit of time whatever the policy does,
  so the exploratory value is the deterministic one up to time:

$$
V^{(\lambda)}(t, x) = V(t, x) - \lambda t, \qquad V^{(\lambda)}(T, x) = \Psi(x) - \lambda T .
$$

`Shifted` adds the shift (none for $\lambda = 0$) to a critic of V, anchors it at T, and differentiates it in x.
Critics linear in their weights are in `features`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .problem import ControlProblem
from .rollout import Trajectory

__all__ = ["NeuralValue", "Shifted", "sensitivities"]


class Shifted:
    """V^(lambda) along a trajectory, from a critic of V.

    Args:
        critic: maps (t, x, context, probe) to (B,).
        temperature: lambda; 0 where the cost carries the entropy.
        anchored: at T the value is the observed terminal cost; otherwise (ergodic problems, pieces of a path)
            it is the critic's own.
    """

    def __init__(self, critic: nn.Module, temperature: float = 0.0, anchored: bool = True) -> None:
        self.critic, self.temperature, self.anchored = critic, temperature, anchored

    def at(self, trajectory: Trajectory, k: int) -> Tensor:
        """V^(lambda)(t_k, X_k), (B,); at the end it is anchored to Psi.

        Args:
            trajectory: a path; its terminal cost is needed at an anchored end.
            k: number of the time, 0 to K.
        """
        t = trajectory.times[k]
        if k < len(trajectory):
            v = self.critic(t, trajectory.states[k], trajectory.context, trajectory.probes[k])
        elif not self.anchored:
            v = self.critic(t, trajectory.states[k], trajectory.context, None)
        else:
            assert trajectory.terminal is not None, "the terminal anchor needs a rollout with a target"
            v = trajectory.terminal
        return v - self.temperature * t

    def along(self, trajectory: Trajectory) -> list[Tensor]:
        """V^(lambda) at every grid time of a path: trajectory -> K + 1 of (B,)."""
        return [self.at(trajectory, k) for k in range(len(trajectory) + 1)]

    def mean(self, per_path: Tensor) -> Tensor:
        """Mean over the paths, summed over the critic's groups of rows (each learns from its own): (B,) -> ()."""
        return per_path.mean() * getattr(self.critic, "groups", 1)

    def of(self, problem: ControlProblem, trajectory: Trajectory, k: int, x: Tensor, probe: Any = None) -> Tensor:
        """V(t_k, x), (B,), without the shift, of states that need not be the trajectory's; Psi(x) at an anchored end.

        Args:
            problem: gives Psi.
            trajectory: gives time, context and target.
            k: number of the time, 0 to K.
            x: states (B, ...).
            probe: what the frozen system answers at (t_k, x), where the critic needs it.
        """
        if k == len(trajectory) and self.anchored:
            return problem.terminal_cost(x, trajectory.target)
        return self.critic(trajectory.times[k], x, trajectory.context, probe)

    def gradient(self, problem: ControlProblem, trajectory: Trajectory, k: int) -> Tensor:
        """grad_x V^(lambda)(t_k, X_k), like x; at an anchored end it is grad Psi.

        Args:
            problem: gives Psi.
            trajectory: a path.
            k: number of the time, 0 to K.
        """
        with torch.enable_grad():
            x = trajectory.states[k].detach().requires_grad_()
            probe = trajectory.probes[k] if k < len(trajectory) else None
            return torch.autograd.grad(self.of(problem, trajectory, k, x, probe).sum(), x)[0]


def sensitivities(critic: nn.Module, t: Tensor, x: Tensor, context: Any = None, probe: Any = None) -> Tensor:
    """d J_theta(t, x_i)/d theta for every row, (B, p): the test functions of the orthogonality conditions.

    For a critic linear in its weights these are its features; for a network they are per-row gradients (no
    context or probe then).

    Args:
        critic: with a method ``features``, or any module.
        t: scalar time.
        x: states (B, ...).
        context: xi.
        probe: what the frozen system answers at (t, x).
    """
    features = getattr(critic, "features", None)
    if features is not None:
        return features(t, x, context, probe)
    weights = {name: w.detach() for name, w in critic.named_parameters()}

    def one(row: Tensor, **parameters: Tensor) -> Tensor:
        return torch.func.functional_call(critic, parameters, (t, row.unsqueeze(0), context, probe)).squeeze(0)

    grads = torch.func.vmap(lambda row: torch.func.grad(lambda w: one(row, **w))(weights))(x)
    return torch.cat([g.reshape(len(x), -1) for g in grads.values()], dim=1)


class NeuralValue(nn.Module):
    """A plain multilayer perceptron V(t, x) for flat states, smooth so that it can be differentiated.

    Args:
        dim: number of state coordinates.
        width: hidden units.
        depth: hidden layers.
    """

    def __init__(self, dim: int, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        sizes = [dim + 1] + [width] * depth
        layers: list[nn.Module] = []
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Linear(a, b), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, t: Tensor, x: Tensor, context: Any = None, probe: Any = None) -> Tensor:
        """V(t, x): (), (B, ...) -> (B,); context and probe are not looked at."""
        time = torch.as_tensor(t).to(x).expand(x.shape[0], 1)
        return self.net(torch.cat([time, x.flatten(1)], dim=1)).squeeze(1)
