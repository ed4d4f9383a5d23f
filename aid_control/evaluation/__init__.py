"""Policy evaluation by the martingale characterisation of the value; one method a file.

``EVALUATIONS`` are losses (value, trajectory) -> scalar whose gradient moves any critic; :func:`clstd` solves for the
weights of a linear one.  ``mstde`` is the documented negative control.
"""

from .clstd import clstd
from .ctd import ctd_loss
from .gmm import gmm_loss, gtd0_loss, gtd2_loss
from .martingale import temporal_differences
from .martingale_loss import martingale_loss
from .mstde import mstde_loss
from .terminal import terminal_gradient_loss

EVALUATIONS = {
    "ctd": ctd_loss,
    "martingale": martingale_loss,
    "gtd0": gtd0_loss,
    "gtd2": gtd2_loss,
    "mstde": mstde_loss,
}

__all__ = [
    "EVALUATIONS",
    "clstd",
    "ctd_loss",
    "gmm_loss",
    "gtd0_loss",
    "gtd2_loss",
    "martingale_loss",
    "mstde_loss",
    "temporal_differences",
    "terminal_gradient_loss",
]
