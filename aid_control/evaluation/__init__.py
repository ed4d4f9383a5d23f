"""Policy evaluation by the martingale characterisation of the value; one method a file.

``EVALUATIONS`` are losses (value, trajectory) -> scalar whose gradient moves any critic, by name; ``STEPWISE`` are
those among them that are sums over the steps, a term at a time; `clstd` solves for the weights of a linear critic.
``mstde`` is the documented negative control.
"""

from .clstd import clstd
from .ctd import ctd_loss, ctd_losses
from .gmm import gmm_loss, gtd0_loss, gtd2_loss
from .martingale import temporal_differences
from .martingale_loss import martingale_loss, martingale_losses
from .mstde import mstde_loss
from .terminal import terminal_gradient_loss

EVALUATIONS = {
    "ctd": ctd_loss,
    "martingale": martingale_loss,
    "gtd0": gtd0_loss,
    "gtd2": gtd2_loss,
    "mstde": mstde_loss,
}

# those that are sums over the steps: a trainer may differentiate one step at a time
STEPWISE = {"ctd": ctd_losses, "martingale": martingale_losses}

__all__ = [
    "EVALUATIONS",
    "STEPWISE",
    "clstd",
    "ctd_loss",
    "ctd_losses",
    "gmm_loss",
    "gtd0_loss",
    "gtd2_loss",
    "martingale_loss",
    "martingale_losses",
    "mstde_loss",
    "temporal_differences",
    "terminal_gradient_loss",
]
