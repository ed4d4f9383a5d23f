r"""The terminal condition of the critic, in gradient form.

A policy sees $\xi$, not the target $x_0$, so the value at T is $E[\Psi(x; x_0) \mid \xi]$, and its gradient in x
is the conditional mean of $\nabla\Psi$.  Least squares learns conditional means:

$$
L(\theta) = \tfrac12 E\,| \nabla_x J_\theta(T, x; \xi) - \nabla_x \Psi(x; x_0) |^2 .
$$

It needs neither rollouts nor the drift: any x will do.  For $\Psi = \tfrac12|x - x_0|^2$ it fits the
posterior mean $m(\xi) = E[x_0 \mid \xi]$, because then $J(T, x) = \tfrac12|x - m(\xi)|^2$ + const.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..problem import ControlProblem

__all__ = ["terminal_gradient_loss"]


def terminal_gradient_loss(problem: ControlProblem, critic: nn.Module, x: Tensor, context: Any, target: Any) -> Tensor:
    """Mean squared gradient mismatch at T, a scalar (mean over the batch, sum over coordinates).

    Args:
        problem: gives Psi and T.
        critic: differentiable twice (in x, then in its weights).
        x: terminal states (B, ...).
        context: xi.
        target: what Psi sees.
    """
    x = x.detach().requires_grad_()
    end = torch.as_tensor(problem.horizon)
    wanted = torch.autograd.grad(problem.terminal_cost(x, target).sum(), x)[0]
    have = torch.autograd.grad(critic(end, x, context, None).sum(), x, create_graph=True)[0]
    return 0.5 * (have - wanted).square().flatten(1).sum(1).mean()
