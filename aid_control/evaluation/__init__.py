"""Policy evaluation by the martingale characterisation of the value; one method a file."""

from .ctd import ctd_loss, temporal_differences
from .martingale_loss import martingale_loss
from .terminal import terminal_gradient_loss

EVALUATIONS = {"ctd": ctd_loss, "martingale": martingale_loss}

__all__ = ["EVALUATIONS", "ctd_loss", "martingale_loss", "temporal_differences", "terminal_gradient_loss"]
