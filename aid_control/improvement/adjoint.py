r"""Adjoint matching: the lean adjoint of the frozen drift along the path (one vector-Jacobian product a step).

After Domingo-Enrich, Drozdzal, Karrer and Chen (2025), with a discount and any control cost:

$$
p_K = \nabla \Psi(X_K), \qquad \tilde p_{k+1} = e^{-\rho\Delta t} p_{k+1}, \qquad
p_k = \tilde p_{k+1} + \Delta t\,\big((\partial_x (b + B m_k))' \tilde p_{k+1} + \partial_x (f + c)(t_k, X_k, m_k)\big),
$$

and the target $w_k$ minimises $c(u) + \tilde p_{k+1} \cdot Bu$ ($-B'\tilde p_{k+1}/R$ for the plain weight).

At the optimum $p = \nabla V$ along the path.  The gradient of the terminal cost is replaced by the critic's at
T, i.e. by its conditional mean given the context, which has the same expectation and less noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..policy import GaussianPolicy
from ..problem import ControlProblem
from ..rollout import Trajectory
from ..value import Shifted

__all__ = ["adjoint_targets"]


def adjoint_targets(
    problem: ControlProblem, policy: GaussianPolicy, value: Shifted, trajectory: Trajectory
) -> list[Tensor]:
    """Targets w_k, like the control, one a step; calls the drift once a step, with its vector-Jacobian product.

    Args:
        problem: its drift and costs must be differentiable in x, its noise free of x and of the control.
        policy: not looked at; here for the common signature.
        value: its critic gives the gradient at T, called without a probe.
        trajectory: made by the policy; without means (``keep="path"``) the slopes in x of the gain and of the
            costs are left out.

    Returns:
        K targets (B, ...), detached.
    """
    end = trajectory.states[-1].detach().requires_grad_()
    with torch.enable_grad():
        at_end = value.critic(trajectory.times[-1], end, trajectory.context, None)
        p = torch.autograd.grad(at_end.sum(), end)[0]
    targets: list[Tensor] = []
    for k, t, dt in reversed(list(trajectory.steps())):
        p = torch.exp(-problem.discount * dt).to(p) * p
        targets.append(problem.response(t, trajectory.states[k], p))
        with torch.enable_grad():
            x = trajectory.states[k].detach().requires_grad_()
            probe = problem.probe(t, x, trajectory.context)
            if trajectory.means:  # slopes in x at the control that was applied, held fixed
                mean = trajectory.means[k]
                rate = (problem.velocity(t, x, mean, trajectory.context, probe) * p).sum()
                rate = rate + problem.stage_cost(t, x, mean, trajectory.context).sum()
            else:
                rate = (problem.drift(t, x, trajectory.context, probe) * p).sum()
            if rate.requires_grad:
                p = p + dt * torch.autograd.grad(rate, x)[0]
    return targets[::-1]
