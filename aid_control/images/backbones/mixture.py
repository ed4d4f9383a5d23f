r"""Mixtures of factor analysers as images: likelihood, inpainting and sampling in closed form.

$p(x_0) = \sum_k \pi_k N(\mu_k, \Sigma_k)$, $\Sigma_k = W_k W_k' + \Psi_k$; the algebra is in `exact`.  Given known
pixels $y = x_0$ where the mask is 1 (indices $o$), the responsibilities
$w_k \propto \pi_k N(y; \mu_{k,o}, \Sigma_{k,oo})$ weigh the components' conditional laws, so that the posterior is
again a mixture.  In the hole

$$
E[x_0 \mid y] = \sum_k w_k (\mu_k + W_k m_k), \qquad
x_0 \mid y \;=\; \mu_k + W_k (m_k + M_k^{-1/2} n) + \Psi_k^{1/2} \tilde n, \quad k \sim w,
$$

with independent standard normal $n$, $\tilde n$.

A non-linear backbone of which everything is known: the truth that samplers and guidance are measured against.

Likelihoods of 8-bit images are densities in [-1, 1] units.  Bits a dimension are those of the 256 levels, by
uniform dequantisation: images get noise of one level's width, and $\log_2 127.5$ is added.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...errors import InputError
from ...noise import generator
from ..data import to_float
from .exact import ExactBackbone

__all__ = ["MixtureBackbone", "held_out"]

KEY = 0x6A55  # keeps draws of an exact posterior apart from a sampler's noise of the same seed


class MixtureBackbone(ExactBackbone):
    r"""$\sum_k \pi_k N(\mu_k, W_k W_k' + \Psi_k)$; arguments, weights and errors as `exact.ExactBackbone`."""

    def _observed(self, y: Tensor, mask: Tensor | None) -> Tensor:
        """Checked images as (B, d) float64, zero where unseen."""
        if y.dim() != 4 or tuple(y.shape[1:]) != self.shape:
            raise InputError(f"images of shape {tuple(y.shape)}; expected (B, {', '.join(map(str, self.shape))})")
        if mask is not None:
            if tuple(mask.shape) != (len(y), 1, *self.shape[1:]):
                expected = (len(y), 1, *self.shape[1:])
                raise InputError(f"mask of shape {tuple(mask.shape)}; expected {expected}, 1 = known")
            if not bool(((mask == 0) | (mask == 1)).all()):
                raise InputError("mask holds other values than 1 (known) and 0 (hole)")
            y = torch.where(mask.bool(), y, 0.0)
        if not bool(torch.isfinite(y).all()):
            raise InputError("known pixels hold NaN or infinity; expected numbers")
        return y.double().flatten(1)

    def _joint(self, x: Tensor, sigma: Tensor | float, mask: Tensor | None) -> Tensor:
        """log pi_k + log p(x | k) of images (B, C, H, W): (B, K) float64."""
        flat = self._observed(x, mask)
        blocks = list(self._blocks(len(flat), sigma, mask))
        if not blocks:
            return flat.new_zeros(0, self.components)
        logs = torch.cat([self._infer(flat[block.rows], block)[0] for block in blocks])
        return logs[torch.cat([block.rows for block in blocks]).argsort()]

    def log_likelihood(self, x: Tensor, sigma: Tensor | float = 0.0, mask: Tensor | None = None) -> Tensor:
        """log p of images, or of their known pixels, seen through noise: a density over [-1, 1] units, in nats.

        Args:
            x: images (B, C, H, W).
            sigma: noise level, a scalar or (B,).
            mask: (B, 1, H, W), 1 = known; ``None`` = all.

        Returns:
            (B,) float64, differentiable in x.

        Raises:
            InputError: for images, masks or levels that do not fit.
        """
        return self._joint(x, sigma, mask).logsumexp(1)

    def responsibilities(self, x: Tensor, sigma: Tensor | float = 0.0, mask: Tensor | None = None) -> Tensor:
        """Posterior probabilities of the components, (B, K) float64; arguments and errors as `log_likelihood`."""
        return self._joint(x, sigma, mask).softmax(1)

    def posterior_mean(self, y: Tensor, mask: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """E[x0 | known pixels], exactly: the best filling in mean squared error if images come from this model.

        Args:
            y: images (B, C, H, W); what they hold in the hole is ignored.
            mask: (B, 1, H, W), 1 = known, 0 = hole; any, and each image its own (one factorisation a mask).
            sigma: noise on the known pixels, a scalar or (B,); 0 = they are exact, and returned as they are.

        Returns:
            Images like ``y``.

        Raises:
            InputError: for images, masks or levels that do not fit.
        """
        mean = self._blend(self._observed(y, mask), sigma, mask).reshape(y.shape).to(y.dtype)
        return self._paste(y, mask, sigma, mean)

    @torch.no_grad()
    def posterior_variance(self, y: Tensor, mask: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        r"""Variance of every pixel given the known ones, exactly: within the components, and between them.

        In a component $x_0 = \mu + g (y - \mu) + (1 - g) W z + (\psi (1 - g))^{1/2} n$ with $z \sim N(m, M^{-1})$, so
        that the variances are $(1 - g)^2\, \mathrm{diag}(W M^{-1} W') + \psi (1 - g)$.

        Args:
            y: images (B, C, H, W); what they hold in the hole is ignored.
            mask: (B, 1, H, W), 1 = known, 0 = hole.
            sigma: as in `posterior_mean`.

        Returns:
            Variances (B, C, H, W), float64; 0 at exactly known pixels.

        Raises:
            InputError: for images, masks or levels that do not fit.
        """
        flat = self._observed(y, mask)
        out = torch.empty_like(flat)
        for block in self._blocks(len(flat), sigma, mask):
            logs, _, means = self._infer(flat[block.rows], block)
            weights = logs.softmax(1)
            average = sum(weights[:, k : k + 1] * image for k, image in enumerate(means))
            total = torch.zeros_like(flat[block.rows])
            for k, part in enumerate(block.parts):
                gain, psi = self._gain(k, block.sigma, block.mask, torch.float64)
                within = (part.root @ self.factor[k].double()).square().sum(0)
                within = (1 - gain) ** 2 * within + psi * (1 - gain)
                total += weights[:, k : k + 1] * (within + (means[k] - average) ** 2)
            out[block.rows] = total
        return out.reshape(y.shape)

    @torch.no_grad()
    def posterior_sample(self, y: Tensor, mask: Tensor, seeds: Sequence[int], sigma: Tensor | float = 0.0) -> Tensor:
        """One exact sample an image of p(x0 | known pixels); a function of its seed, whatever its batch.

        Args:
            y: images (B, C, H, W); what they hold in the hole is ignored.
            mask: (B, 1, H, W), 1 = known, 0 = hole.
            seeds: one an image.
            sigma: as in `posterior_mean`.

        Returns:
            Images like ``y``; not clipped to [-1, 1].

        Raises:
            InputError: for images, masks, levels or seeds that do not fit.
        """
        flat = self._observed(y, mask)
        if len(seeds) != len(flat):
            raise InputError(f"{len(seeds)} seeds for {len(flat)} images; expected one an image")
        out = torch.empty_like(flat)
        for block in self._blocks(len(flat), sigma, mask):
            logs, zs, _ = self._infer(flat[block.rows], block)
            cumulative = logs.softmax(1).cumsum(1)
            for j, i in enumerate(block.rows.tolist()):
                rng = generator(seeds[i], KEY)
                u = float(torch.rand((), generator=rng, dtype=torch.float64))
                n = torch.randn(self.rank + self.pixels, generator=rng, dtype=torch.float64).to(flat.device)
                k = min(int((cumulative[j] <= u).sum()), self.components - 1)
                gain, psi = self._gain(k, block.sigma, block.mask, torch.float64)
                z = zs[k][j] + n[: self.rank] @ block.parts[k].root
                image = self.mean[k].double() + z @ self.factor[k].double()
                out[i] = image + gain * (flat[i] - image) + (psi * (1 - gain)).sqrt() * n[self.rank :]
        return self._paste(y, mask, sigma, out.reshape(y.shape).to(y.dtype))

    def sample(self, seeds: Sequence[int]) -> Tensor:
        """Exact samples of the images.

        Args:
            seeds: one an image; a sample is a function of its seed.

        Returns:
            (N, C, H, W) for N seeds, in the precision of the weights; not clipped to [-1, 1].
        """
        y = self.mean.new_zeros(len(seeds), *self.shape)
        return self.posterior_sample(y, y[:, :1], seeds)

    @staticmethod
    def _paste(y: Tensor, mask: Tensor, sigma: Tensor | float, image: Tensor) -> Tensor:
        """Exact known pixels as they came, bit for bit."""
        exact = torch.as_tensor(sigma, device=mask.device).reshape(-1, 1, 1, 1) == 0
        return torch.where(mask.bool() & exact, y, image)


def held_out(net: MixtureBackbone, images: Tensor, seed: int = 0, batch: int = 100) -> dict[str, float]:
    """Log-likelihood of images a fit has not seen, dequantised with fixed noise.

    Args:
        net: a fitted model.
        images: uint8 (N, C, H, W).
        seed: of the dequantisation; image i has its own stream.
        batch: images at once.

    Returns:
        ``nats_per_dim`` and ``bits_per_dim`` (see the module), means over images and pixels, and ``ci95``, the
        half-width of the 95 % interval of the bits over the images.
    """
    values = []
    with torch.no_grad():
        for i in range(0, len(images), batch):
            x = to_float(images[i : i + batch])
            u = torch.stack([torch.rand(x.shape[1:], generator=generator(seed, KEY, i + j)) for j in range(len(x))])
            values.append(net.log_likelihood(x + (u - 0.5) / 127.5) / net.pixels)
    nats = torch.cat(values)
    bits = math.log2(127.5) - nats / math.log(2)
    spread = float(bits.std()) / math.sqrt(len(bits)) if len(bits) > 1 else math.nan
    return {"nats_per_dim": float(nats.mean()), "bits_per_dim": float(bits.mean()), "ci95": 1.96 * spread}
