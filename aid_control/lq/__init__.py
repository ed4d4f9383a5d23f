"""Linear-quadratic problems whose answers are known in closed form."""

from . import zoo
from .algebraic import algebraic, evaluate_stationary, exploration_cost, mean_square_abscissa
from .discrete import scheme_value
from .evaluate import evaluate, improve, policy_iteration
from .ou import OrnsteinUhlenbeck
from .problem import LQProblem
from .quadratic import AffineGaussian, QuadraticValue
from .riccati import LQSolution, riccati
from .toy import AIDToy

__all__ = [
    "AIDToy",
    "AffineGaussian",
    "LQProblem",
    "LQSolution",
    "OrnsteinUhlenbeck",
    "QuadraticValue",
    "algebraic",
    "evaluate",
    "evaluate_stationary",
    "exploration_cost",
    "improve",
    "mean_square_abscissa",
    "policy_iteration",
    "riccati",
    "scheme_value",
    "zoo",
]
