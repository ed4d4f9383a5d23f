r"""The pretrained flow: images are generated without a look at the observation, known pixels pasted at the end.

$$
\frac{dx}{d\sigma} = \frac{x - D(x; \sigma)}{\sigma}, \qquad \hat x = M y + (1 - M)\, x(0) .
$$

The floor of every comparison, and AID with $v = 0$.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...rollout import Solver
from ..backbones.precond import Denoiser
from ..clock import Clock
from ..inpaint import inpaint
from .task import Callback

__all__ = ["paste"]


def paste(
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
    """Inpaint by pasting; arguments, result and errors as `task.Method`, ``solver`` as `inpaint.inpaint`."""
    return inpaint(backbone, None, y, mask, steps, solver, seeds, class_labels, clock, callback)
