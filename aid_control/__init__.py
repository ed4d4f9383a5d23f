"""Continuous-time, entropy-regularised control, verified against closed forms, used to guide diffusion models.

The generic layer knows neither linear-quadratic problems (`aid_control.lq`) nor images
(`aid_control.images`); both only supply problems and networks to it.
"""

from .batch import Batch
from .errors import InputError
from .policy import GaussianPolicy
from .problem import ControlProblem
from .rollout import Trajectory, rollout
from .trainer import ActorCritic

__all__ = ["ActorCritic", "Batch", "ControlProblem", "GaussianPolicy", "InputError", "Trajectory", "rollout"]
__version__ = "0.1.0"
