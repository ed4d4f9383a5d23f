r"""The terminal cost of guidance: what "a good filling" means.

$$
\Psi(x; x_0) = \frac{1}{2d}\big( w_h\,|(1 - M)(x - x_0)|^2 + w_k\,|M (x - x_0)|^2 \big)
+ w_p\, \mathrm{perceptual}(x, x_0),
$$

a mean over the $d$ pixels and channels, so that its size does not depend on the resolution.  The first term pulls the
hole towards the posterior mean (high PSNR, smooth), the second keeps what is known, the third (any differentiable
distance of images, e.g. LPIPS) towards plausible texture.  With weights 1, 1, 0 it is the plain squared distance, which
needs no mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Goal", "TerminalCost"]


@dataclass
class Goal:
    """What the terminal cost sees and the policy does not.

    Attributes:
        image: the clean image x0 (B, C, H, W).
        mask: M, (B, 1, H, W), 1 = known.
    """

    image: Tensor
    mask: Tensor


@dataclass(frozen=True)
class TerminalCost:
    """Psi of the module's formula, called as ``cost(x, target)``.

    Attributes:
        hole: w_h >= 0.
        known: w_k >= 0.
        perceptual: w_p >= 0.
        distance: (x, x0) -> (B,), differentiable; needed where w_p > 0.

    Raises:
        ValueError: for a negative weight, all weights zero, or w_p > 0 without a distance.
    """

    hole: float = 1.0
    known: float = 1.0
    perceptual: float = 0.0
    distance: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        weights = (self.hole, self.known, self.perceptual)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(f"weights are {weights} (hole, known, perceptual); expected none negative, one positive")
        if self.perceptual and self.distance is None:
            raise ValueError(f"perceptual is {self.perceptual} without a distance; expected a function of two images")

    @property
    def plain(self) -> bool:
        """Whether it is the squared distance over all pixels."""
        return self.hole == self.known == 1.0 and not self.perceptual

    def importance(self, mask: Tensor) -> Tensor:
        """Weights of the pixels, w_h in the hole and w_k where known: (B, 1, H, W) -> (B, 1, H, W)."""
        return torch.where(mask.bool(), self.known, self.hole).to(mask.dtype)

    def __call__(self, x: Tensor, target: Tensor | Goal) -> Tensor:
        """Psi, (B,).

        Args:
            x: (B, C, H, W).
            target: the clean image, or a `Goal` where the weights tell hole from known.

        Raises:
            ValueError: where a mask is needed and there is none.
        """
        image = target.image if isinstance(target, Goal) else target
        square = (x - image).square()
        if not self.hole == self.known == 1.0:
            if not isinstance(target, Goal):
                raise ValueError("target is an image without a mask; expected a Goal for unequal weights")
            square = self.importance(target.mask) * square
        cost = 0.5 * square.flatten(1).mean(1)
        if self.perceptual:
            assert self.distance is not None
            cost = cost + self.perceptual * self.distance(x, image)
        return cost
