r"""Gaussian images: the mixture of one component, with its spectrum.

Images are $N(\mu, C)$ with $C = W W' + \mathrm{diag}(\psi)$.  With the eigen-decomposition
$C = U\, \mathrm{diag}(l)\, U'$ the denoiser
$D(x; s) = \mu + U\, \mathrm{diag}(l/(l + s^2))\, U' (x - \mu)$ is affine, and control of its flow with quadratic costs
is a linear-quadratic problem, one scalar problem an eigenvector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from .mixture import MixtureBackbone

__all__ = ["GaussianBackbone"]

DENSE = 3000  # pixels up to which d x d matrices are made


class GaussianBackbone(MixtureBackbone):
    r"""$N(\mu, W W' + \mathrm{diag}(\psi))$ behind the interface of a denoiser.

    Args:
        shape: (C, H, W) of an image; a signal of n numbers is (1, 1, n).
        rank: r, columns of W; 0 leaves a diagonal covariance.

    Raises:
        ValueError: for a shape that is not (C, H, W), or a negative rank.
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
        r"""A small dense Gaussian: $\psi$ is the smallest eigenvalue $l_d$, $W = U (l - l_d)^{1/2}$.

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

    @classmethod
    def from_samples(cls, samples: Tensor, rank: int, seed: int = 0) -> GaussianBackbone:
        """Probabilistic PCA (Tipping & Bishop 1999): the likeliest W W' + psi I, in closed form.

        Args:
            samples: (N, C, H, W), more than ``rank``: images or latents.
            rank: r; psi is the mean variance of what the r leading directions leave.
            seed: of the randomised decomposition.

        Returns:
            The backbone of images like ``samples``.

        Raises:
            InputError: for a rank below 1, or not below the number of samples and of pixels.
        """
        n, d = len(samples), samples[0].numel()
        if not 0 < rank < min(n, d):
            raise InputError(f"rank is {rank} for {n} samples of {d} numbers; expected at least 1 and less than either")
        mean = samples.double().mean(0)
        centred = (samples.double() - mean).flatten(1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, s, v = torch.svd_lowrank(centred, q=rank, niter=4)
        l = s.square() / n
        psi = ((centred.square().sum() / n - l.sum()) / (d - rank)).clamp_min(1e-9 * l[0])
        factor = (v * (l - psi).clamp_min(0).sqrt()).T
        return cls(samples.shape[1:], rank).assign(mean, factor, psi.expand(d))

    @classmethod
    def matching(cls, mixture: MixtureBackbone, side: int) -> GaussianBackbone:
        """The Gaussian with the mean and covariance of a mixture, at a lower resolution; its noise levelled.

        Images shrink by block means, under which means and factors shrink alike; the pooled psi, which still differs
        from pixel to pixel, is replaced by its mean, so that `thin_spectrum` is exact at any size.

        Args:
            mixture: of square images.
            side: divides the mixture's resolution.

        Returns:
            The backbone of (C, side, side) images.

        Raises:
            InputError: for another side.
        """
        channels, height, _ = mixture.shape
        if side < 1 or height % side:
            raise InputError(f"side is {side}; expected a divisor of {height}")
        block = height // side

        def shrink(flat: Tensor) -> Tensor:
            images = flat.double().reshape(-1, channels, height, height)
            return nn.functional.avg_pool2d(images, block).flatten(1)

        weights = mixture.log_weights.double().softmax(0)
        means = shrink(mixture.mean)
        mean = weights @ means
        factors = [w.sqrt() * shrink(f) for w, f in zip(weights, mixture.factor, strict=True)]
        spread = torch.cat([*factors, weights.sqrt()[:, None] * (means - mean)])
        _, s, v = torch.linalg.svd(spread, full_matrices=False)
        kept = s > 1e-9 * s[0]
        psi = float((weights @ shrink(mixture.noise)).mean()) / block**2
        shape = (channels, side, side)
        net = cls(shape, int(kept.sum()))
        return net.assign(mean, s[kept, None] * v[kept], torch.full((mean.numel(),), psi, dtype=torch.float64))

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

    def thin_spectrum(self) -> tuple[Tensor, Tensor, Tensor]:
        """C = U diag(l) U' + rest (I - U U') without d x d matrices where psi is the same for all pixels.

        Returns:
            U (d, r), orthonormal columns, l (r,), and the eigenvalue ``rest`` of everything orthogonal to them (0
            where U is square); float64.

        Raises:
            InputError: for more than 3,000 pixels with unequal psi.
        """
        psi = self.noise[0].double()
        if float(psi.max() - psi.min()) > 1e-6 * float(psi.max()):
            u, l = self.spectrum()
            return u, l, l.new_zeros(())
        u, s, _ = torch.linalg.svd(self.factor[0].double().T, full_matrices=False)
        return u, s.square() + psi.mean(), psi.mean()


def _small_enough(d: int) -> None:
    if d > DENSE:
        raise InputError(f"{d} pixels: a dense covariance is made up to {DENSE} only; expected a smaller image")
