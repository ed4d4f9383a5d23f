"""Linear-quadratic problems whose answers are known in closed form."""

from .toy import AIDToy

__all__ = ["AIDToy"]
