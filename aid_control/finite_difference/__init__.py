"""The HJB equation on a box in one or two dimensions by finite differences: checks beyond the closed forms."""

from .equation import Scheme
from .grid import Grid, trapezoid
from .howard import policy_iteration
from .solver import GridSolution, solve

__all__ = ["Grid", "GridSolution", "Scheme", "policy_iteration", "solve", "trapezoid"]
