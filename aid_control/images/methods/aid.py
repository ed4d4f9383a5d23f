r"""AID, amortised inpainting guidance: the flow plus a learned control, the mean of a Gaussian policy.

$$
\frac{dx}{d\sigma} = \frac{x - D(x; \sigma) - v(x, y, M; \sigma)}{\sigma} .
$$

The control problem is in `problem`, the module $v$ in `guidance` (Huang and Zhou 2026, arXiv 2605.13010).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ...rollout import Solver
from ..backbones.precond import Denoiser
from ..clock import Clock
from ..guidance import Guidance, load_guidance
from ..inpaint import inpaint
from .task import Callback

__all__ = ["aid"]


def aid(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 18,
    *,
    module: Guidance | None = None,
    solver: Solver = "heun",
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Inpaint by AID; arguments, result and errors as `task.Method`, ``solver`` as `inpaint.inpaint`.

    Args:
        backbone: frozen denoiser.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: solver steps.
        module: trained guidance; default the shipped one.
        solver: ``"heun"`` or ``"euler"``.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: noise levels.
        callback: called after every step.
    """
    module = module or load_guidance(device=y.device)
    return inpaint(backbone, module, y, mask, steps, solver, seeds, class_labels, clock, callback)
