r"""The known case that tells right from wrong evaluation: a Brownian motion with a linear terminal cost.

$$
X = W, \qquad \Psi(x) = x, \qquad f = 0, \qquad J_\theta(t, x) = x + \theta\,(T - t)\, x .
$$

The value is $V = x$, so $\theta = 0$.  $\langle M^\theta\rangle_T = \int_0^T (1 + \theta(T-t))^2 dt$ is smallest at
$\theta = -3/(2T)$, which is where the mean-square TD error goes as the step is refined
($-3n/(2T(n+1))$ with n steps).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..features import LinearValue
from ..increments import time_grid
from ..policy import GaussianPolicy, ZeroMean
from ..problem import ControlProblem
from ..rollout import Trajectory, rollout
from ..value import Shifted

__all__ = ["BrownianCase", "LineCritic", "minimiser", "sample"]


class BrownianCase(ControlProblem):
    """X = W on [0, T] with terminal cost X_T.

    Args:
        horizon: T.
    """

    noise = "diagonal"

    def __init__(self, horizon: float = 1.0) -> None:
        self.horizon = horizon

    def diffusion(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return torch.ones_like(x)

    def terminal_cost(self, x: Tensor, target: Any) -> Tensor:
        return x[:, 0]


class LineCritic(LinearValue):
    """J = x + theta (T - t) x.

    Args:
        horizon: T.
    """

    def __init__(self, horizon: float = 1.0) -> None:
        super().__init__(1, time_degree=0, horizon=horizon, degree=0)

    def known(self, t: Tensor | float, x: Tensor) -> Tensor:
        return x[:, 0]

    def features(self, t: Tensor | float, x: Tensor, context: Any = None, probe: Any = None) -> Tensor:
        return (self.horizon - t) * x


def sample(horizon: float, paths: int, steps: int, seed: int) -> Trajectory:
    """Paths of W from 0 with everything an evaluation method needs.

    Args:
        horizon: T.
        paths: B.
        steps: K.
        seed: of the Brownian motion.
    """
    grid = time_grid(horizon, steps=steps)
    start = torch.zeros(paths, 1, dtype=torch.float64)
    return rollout(BrownianCase(horizon), GaussianPolicy(ZeroMean()), start, grid, target=(), entropy=seed)


def minimiser(loss: Callable[[Shifted, Trajectory], Tensor], trajectory: Trajectory) -> float:
    """theta at which the loss's gradient vanishes, from its values at 0 and 1.

    Args:
        loss: quadratic in theta, or with a gradient linear in it as CTD's.
        trajectory: of `sample`.
    """
    critic = LineCritic(float(trajectory.times[-1]))
    gradients = []
    for theta in (0.0, 1.0):
        with torch.no_grad():
            critic.weights.fill_(theta)
        gradients.append(float(torch.autograd.grad(loss(Shifted(critic), trajectory).sum(), critic.weights)[0]))
    return -gradients[0] / (gradients[1] - gradients[0])
