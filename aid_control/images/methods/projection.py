r"""Projection (DDNM without noise; Wang et al. 2023): the known part of the denoised image is the observation.

$$
\hat D = M y + (1 - M)\, D(x; \sigma), \qquad \frac{dx}{d\sigma} = (x - \hat D)/\sigma .
$$

For inpainting the pseudo-inverse of "see the known pixels" is the mask itself, so this is DDNM's range-null
decomposition in the probability-flow ODE.  It is the frozen drift of guidance with ``base="projected"``: AID with
$v = 0$.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...rollout import Solver
from ..backbones.precond import Denoiser
from ..clock import Clock
from ..inpaint import inpaint
from .task import Callback

__all__ = ["projection"]


def projection(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 18,
    *,
    solver: Solver = "heun",
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Inpaint by projection; arguments, result and errors as `task.Method`, ``solver`` as `inpaint.inpaint`."""
    return inpaint(backbone, None, y, mask, steps, solver, seeds, class_labels, clock, callback, base="projected")
