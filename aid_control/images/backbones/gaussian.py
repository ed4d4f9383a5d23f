r"""Gaussian images N(mu, C), C = W W' + diag(psi): the mixture of one component, with its spectrum.

With the eigen-decomposition :math:`C = U diag(l) U'` the denoiser
:math:`D(x; s) = \mu + U diag(l/(l + s^2)) U' (x - \mu)` is affine, and control of its flow with quadratic costs is
a linear-quadratic problem, one scalar problem an eigenvector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from .mixture import MixtureBackbone

__all__ = ["GaussianBackbone"]

DENSE = 3000  # pixels up to which d x d matrices are made


class GaussianBackbone(MixtureBackbone):
    """N(mu, W W' + diag(psi)).

    Args:
        shape: (C, H, W) of an image; a signal of n numbers is (1, 1, n).
        rank: r, columns of W; 0 leaves a diagonal covariance.
    """

    def __init__(self, shape: Sequence[int], rank: int) -> None:
        super().__init__(shape, 1, rank)

    @property
    def kwargs(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "rank": self.rank}

    @classmethod
    def from_covariance(
        cls,
        mean: Tensor,
        covariance: Tensor,
        shape: Sequence[int] | None = None,
        floor: float = 1e-6,
        dtype: torch.dtype = torch.float32,
    ) -> GaussianBackbone:
        """A small dense Gaussian: psi is the smallest eigenvalue l_d, W = U (l - l_d)^{1/2}.

        Args:
            mean: (C, H, W), or (d,) with ``shape``, or (d,) for a signal.
            covariance: (d, d), symmetric, positive semi-definite.
            shape: (C, H, W); default that of ``mean``, or (1, 1, d).
            floor: eigenvalues below ``floor`` times the largest are raised to it: the model is that covariance
                (a smooth one is singular to rounding, and could not be conditioned on exact pixels).
            dtype: of the weights; float64 for tests to the last digit.

        Returns:
            The backbone.

        Raises:
            InputError: for sizes that do not fit, more than 3,000 pixels, or a matrix that is no covariance.
        """
        d = mean.numel()
        shape = tuple(shape) if shape is not None else tuple(mean.shape) if mean.dim() == 3 else (1, 1, d)
        if len(shape) != 3 or math.prod(shape) != d or tuple(covariance.shape) != (d, d):
            raise InputError(
                f"mean of shape {tuple(mean.shape)}, covariance {tuple(covariance.shape)}, images {shape}; "
                "expected d numbers, (d, d) and a (C, H, W) of d"
            )
        _small_enough(d)
        c = covariance.double()
        scale = float(c.abs().max())
        if not math.isfinite(scale) or float((c - c.T).abs().max()) > 1e-5 * scale:
            raise InputError("covariance is not finite and symmetric; expected E[(x - mu)(x - mu)']")
        l, u = torch.linalg.eigh((c + c.T) / 2)
        if scale == 0 or float(l[0]) < -1e-5 * float(l[-1]):
            raise InputError(
                f"covariance has eigenvalues in [{float(l[0]):g}, {float(l[-1]):g}]; expected none negative"
            )
        l = l.clamp_min(floor * float(l[-1]))
        kept = l > l[0]
        factor = (u[:, kept] * (l[kept] - l[0]).sqrt()).T.flip(0)
        net = cls(shape, len(factor)).to(dtype)
        return net.assign(mean, factor, l[0].expand(d))

    def covariance(self) -> Tensor:
        """C (d, d) in float64.

        Raises:
            InputError: for more than 3,000 pixels.
        """
        _small_enough(self.pixels)
        w = self.factor[0].double()
        return w.T @ w + self.noise[0].double().diag()

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigen-decomposition C = U diag(l) U' of the weights as they are.

        Returns:
            U (d, d), columns as eigenvectors, and l (d,), largest first; float64.

        Raises:
            InputError: for more than 3,000 pixels.
        """
        l, u = torch.linalg.eigh(self.covariance())
        return u.flip(1), l.flip(0)


def _small_enough(d: int) -> None:
    if d > DENSE:
        raise InputError(f"{d} pixels: a dense covariance is made up to {DENSE} only; expected a smaller image")
