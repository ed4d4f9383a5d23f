r"""Backpropagation through the sampler: the exact gradient of the discretised cost, at the price of memory.

$$
\begin{aligned}
\partial_\phi J &= \partial_\phi \Big[ \sum_k e^{-\rho t_k} (f + \tfrac12 R |m_\phi|^2)\Delta t
+ e^{-\rho T} \Psi(X_K) \Big], \\
X_{k+1} &= X_k + \Delta t\,(b + B m_\phi) .
\end{aligned}
$$

The frozen drift and the policy are differentiated through all steps; with gradient checkpointing one step's
activations are kept at a time and every step is run a second time, so that memory grows with the number of steps by
the states alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..problem import ControlProblem

__all__ = ["backprop_loss"]


def backprop_loss(
    problem: ControlProblem,
    actor: nn.Module,
    x: Tensor,
    grid: Tensor,
    context: Any,
    target: Any,
    checkpointing: bool = True,
) -> tuple[Tensor, Tensor]:
    """Total and terminal cost (B,) of the mean policy, differentiable in the actor's weights.

    Args:
        problem: without Brownian noise; its drift must be differentiable in x.
        actor: the policy's mean.
        x: initial states (B, ...).
        grid: times (K + 1,).
        context: what the policy sees.
        target: what the terminal cost sees.
        checkpointing: keep states only and run every step twice.

    Returns:
        The total cost (B,), and the (discounted) terminal cost in it (B,).

    Raises:
        ValueError: for a diffusing problem.
    """
    if problem.noise != "none":
        raise ValueError(f"problem has {problem.noise} noise; expected none for backprop")

    weights = torch.exp(-problem.discount * (grid - grid[0])).tolist()

    def step(k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        t, dt = grid[k], grid[k + 1] - grid[k]
        probe = problem.probe(t, x, context)
        mean = actor(t, x, context, probe)
        cost = weights[k] * problem.stage_cost(t, x, mean, context) * dt
        return x + dt * problem.velocity(t, x, mean, context, probe), cost

    total = x.new_zeros(x.shape[0])
    for k in range(len(grid) - 1):
        if checkpointing:
            x, cost = checkpoint(step, k, x, use_reentrant=False)
        else:
            x, cost = step(k, x)
        total = total + cost
    terminal = weights[-1] * problem.terminal_cost(x, target)
    return total + terminal, terminal
