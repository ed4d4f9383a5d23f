r"""Policy improvement: estimators of the same descent direction of the mean, one a file.

`policy_gradient` and `q_learning` are losses for any Gaussian policy, mean and covariance.  Each function
of ``ESTIMATORS`` gives, for every step k, a target action $w_k$ with the meaning "the mean should move from $m_k$
towards $w_k$": the gradient of the expected cost in the mean, pre-multiplied by the policy's variance ($1/R$ up to a
constant), is $m_k - w_k$.  At a fixed point $m = w$ on average, and $w = -B'\nabla V / R$ is the optimal control.
"""

from collections.abc import Callable, Iterable

from torch import Tensor

from .adjoint import adjoint_targets
from .antithetic import antithetic_targets
from .backprop import backprop_loss
from .policy_gradient import policy_gradient_loss
from .q_learning import GaussianAdvantage, QSolution, least_squares_q, q_learning_loss
from .score import score_targets
from .stein import stein_targets

ESTIMATORS: dict[str, Callable[..., Iterable[Tensor]]] = {
    "score": score_targets,
    "antithetic": antithetic_targets,
    "stein": stein_targets,
    "adjoint": adjoint_targets,
}

__all__ = [
    "ESTIMATORS",
    "GaussianAdvantage",
    "QSolution",
    "adjoint_targets",
    "antithetic_targets",
    "backprop_loss",
    "least_squares_q",
    "policy_gradient_loss",
    "q_learning_loss",
    "score_targets",
    "stein_targets",
]
