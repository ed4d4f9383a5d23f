r"""CTD by the generalised method of moments (Jia & Zhou 2022a, section 4.3): GTD0 and GTD2.

$$
GMM(\theta) = \tfrac12\, r_\theta'\, A\, r_\theta, \qquad r_\theta = E\int_0^T \xi_t\, dM_t^\theta,
$$

with the test functions $\xi = \partial_\theta J$ held fixed; $A = I$ is GTD0 and
$A = (E\int \xi\xi' dt)^{-1}$ GTD2 (in discrete time Sutton et al. 2009).  The minimum is zero exactly where CTD(0)
rests, but the loss is a proper objective, so that descending it cannot diverge off-policy or with function
approximation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..rollout import Trajectory
from ..value import Shifted, sensitivities
from .martingale import temporal_differences

__all__ = ["gmm_loss", "gtd0_loss", "gtd2_loss"]


def gmm_loss(value: Shifted, trajectory: Trajectory, whiten: bool, ridge: float = 1e-8) -> Tensor:
    """The loss, a scalar: one for each of the critic's groups, summed.

    Args:
        value: the critic.
        trajectory: made by the policy that is evaluated.
        whiten: the A of GTD2 instead of I.
        ridge: relative ridge of the inverse; unused for A = I.
    """
    groups = getattr(value.critic, "groups", 1)
    delta = temporal_differences(value.along(trajectory), trajectory)
    moment: Tensor | float = 0.0
    gram: Tensor | float = 0.0
    for k, t, dt in trajectory.steps():
        with torch.no_grad():
            xi = sensitivities(value.critic, t, trajectory.states[k], trajectory.context, trajectory.probes[k])
            xi = xi.reshape(groups, -1, xi.shape[1])
            if whiten:
                gram = gram + dt * (xi.mT @ xi) / xi.shape[1]
        moment = moment + (xi * delta[k].reshape(groups, -1, 1)).mean(1)
    assert isinstance(moment, Tensor)
    if not whiten:
        return 0.5 * moment.square().sum()
    assert isinstance(gram, Tensor)
    size = gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    weighted = torch.linalg.solve(gram + ridge * size * torch.eye(gram.shape[-1]).to(gram), moment.unsqueeze(-1))
    return 0.5 * (moment * weighted.squeeze(-1)).sum()


def gtd0_loss(value: Shifted, trajectory: Trajectory) -> Tensor:
    """GTD0, A = I, a scalar; arguments as `gmm_loss`."""
    return gmm_loss(value, trajectory, whiten=False)


def gtd2_loss(value: Shifted, trajectory: Trajectory) -> Tensor:
    """GTD2, A the inverse Gram matrix of the test functions, a scalar; arguments as `gmm_loss`."""
    return gmm_loss(value, trajectory, whiten=True)
