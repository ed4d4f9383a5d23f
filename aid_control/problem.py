r"""The control problem, a minimisation, as the user writes it down.

.. math::
    \dot X = b(t, X; \xi) + \beta_t\, u \;(+\; \sigma(t, X)\, dW), \qquad
    J = E\Big[\int_0^T f(t, X) + \tfrac12 R_t |u|^2 \, dt + \Psi(X_T)\Big].

The state is any tensor (B, ...); :math:`|u|^2` and inner products sum over all but the batch dimension, so
the layer knows neither vectors nor images.  :math:`\xi` is the context a policy may see.  The terminal cost
may use a ``target`` that the policy must not see (for guidance: the clean image).

A frozen system may be expensive to ask (a network).  What it answers at (t, x) is its *probe* D: it is
computed once a step, kept in the trajectory, and handed to drift, policy and critic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["ControlProblem", "inner"]


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over all but the batch dimension: (B, ...), (B, ...) -> (B,)."""
    return (a * b).flatten(1).sum(1)


class ControlProblem:
    """Base class; override what differs from "no drift, no running cost, unit gain, unit weight".

    Attributes:
        horizon: T.
        singular_end: the drift is not defined at T, so that Heun takes its last step by Euler.
    """

    horizon: float = 1.0
    singular_end: bool = False

    def probe(self, t: Tensor, x: Tensor, context: Any) -> Any:
        """What the frozen system answers at (t, x): one call a drift evaluation; ``None`` where there is nothing."""
        return None

    def drift(self, t: Tensor, x: Tensor, context: Any, probe: Any) -> Tensor:
        """b(t, x; xi), like x."""
        return torch.zeros_like(x)

    def gain(self, t: Tensor) -> Tensor | float:
        """The scalar in front of the control, at a scalar time."""
        return 1.0

    def control_weight(self, t: Tensor) -> Tensor | float:
        """R_t > 0, at a scalar time."""
        return 1.0

    def running_cost(self, t: Tensor, x: Tensor, context: Any) -> Tensor | float:
        """f(t, x), (B,)."""
        return 0.0

    def terminal_cost(self, x: Tensor, target: Any) -> Tensor:
        """Psi(x), (B,)."""
        raise NotImplementedError  # pragma: no cover - abstract

    def diffusion(self, t: Tensor, x: Tensor) -> Tensor | None:
        """Diagonal sigma(t, x) like x, or ``None`` for a deterministic system."""
        return None

    def policy_variance(self, t: Tensor, temperature: float, dim: int) -> Tensor | float:
        r"""The fixed variance v with :math:`\tfrac12 R_t v d = \lambda` (AID, section 2 of its paper).

        It is the optimum of the entropy-regularised problem at tau = 2 lambda / d, and makes exploration
        cost exactly lambda per unit time, whatever R.

        Args:
            t: scalar time.
            temperature: lambda.
            dim: d, the number of control coordinates.
        """
        return 2 * temperature / (dim * self.control_weight(t))
