"""Policy improvement: estimators of the same descent direction of the mean, one a file.

:mod:`.policy_gradient` and :mod:`.q_learning` are losses for any Gaussian policy, mean and covariance. Each function
of ``ESTIMATORS`` returns, for every step k, a target action w_k with the meaning "the mean should move from m_k
towards w_k": the policy gradient, pre-multiplied by the policy's variance (1/R up to a constant), is
:math:`-(m_k - w_k)`. At a fixed point m = w on average, and w = -B' grad V / R is the optimal control.
"""

from .adjoint import adjoint_targets
from .policy_gradient import policy_gradient_loss
from .q_learning import GaussianAdvantage, QSolution, least_squares_q, q_learning_loss
from .score import score_targets
from .stein import stein_targets

ESTIMATORS = {"score": score_targets, "stein": stein_targets, "adjoint": adjoint_targets}

__all__ = [
    "ESTIMATORS",
    "GaussianAdvantage",
    "QSolution",
    "adjoint_targets",
    "least_squares_q",
    "policy_gradient_loss",
    "q_learning_loss",
    "score_targets",
    "stein_targets",
]
