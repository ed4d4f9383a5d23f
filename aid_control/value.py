r"""Critics: value functions J_theta(t, x; xi) -> (B,).

With the policy variance fixed by lambda (:meth:`.problem.ControlProblem.policy_variance`) exploration costs
lambda a unit of time whatever the policy does, so the exploratory value is the deterministic one up to time:

.. math::  V^{(\lambda)}(t, x) = V(t, x) - \lambda t, \qquad V^{(\lambda)}(T, x) = \Psi(x) - \lambda T .

:class:`Shifted` adds the shift to a network of V, anchors it at T, and differentiates it in x.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .problem import ControlProblem
from .rollout import Trajectory

__all__ = ["NeuralValue", "Shifted"]


class Shifted:
    """V^(lambda) along a trajectory, from a critic of V.

    Args:
        critic: maps (t, x, context, probe) to (B,).
        temperature: lambda.
    """

    def __init__(self, critic: nn.Module, temperature: float) -> None:
        self.critic, self.temperature = critic, temperature

    def along(self, trajectory: Trajectory) -> list[Tensor]:
        """V^(lambda) at every grid time, (B,) each; the last one is anchored to Psi."""
        assert trajectory.terminal is not None, "the terminal anchor needs a rollout with a target"
        values = [
            self.critic(t, trajectory.states[k], trajectory.context, trajectory.probes[k]) - self.temperature * t
            for k, t, _ in trajectory.steps()
        ]
        return [*values, trajectory.terminal - self.temperature * trajectory.times[-1]]

    def gradient(self, problem: ControlProblem, trajectory: Trajectory, k: int) -> Tensor:
        """grad_x V^(lambda)(t_k, X_k), like x; at the end it is grad Psi."""
        with torch.enable_grad():
            x = trajectory.states[k].detach().requires_grad_()
            if k == len(trajectory):
                value = problem.terminal_cost(x, trajectory.target)
            else:
                value = self.critic(trajectory.times[k], x, trajectory.context, trajectory.probes[k])
            return torch.autograd.grad(value.sum(), x)[0]


class NeuralValue(nn.Module):
    """A plain multilayer perceptron V(t, x) for flat states, smooth so that it can be differentiated.

    Args:
        dim: state coordinates.
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
        time = torch.as_tensor(t).to(x).expand(x.shape[0], 1)
        return self.net(torch.cat([time, x.flatten(1)], dim=1)).squeeze(1)
