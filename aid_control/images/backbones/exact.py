r"""Backbones whose denoiser, likelihood and posteriors are known exactly: mixtures of factor analysers.

Images $x_0 \in \mathbb R^d$ come from component $k$ with probability $\pi_k$, and then

$$
x_0 = \mu_k + W_k z + u, \qquad z \sim N(0, I_r), \quad u \sim N(0, \Psi_k), \quad \Psi_k \text{ diagonal} > 0 .
$$

Everything asked of them is one question: what are $z$ and $u$, when some pixels are seen through noise of level $s$?
Let $g = \psi/(\psi + s^2)$ at a seen pixel and 0 at an unseen one, $P = \mathrm{diag}(g/\psi)$ the precision
of what is seen, and $M = I + W' P W$ ($r \times r$; Woodbury).  Then, in every component,

$$
\begin{aligned}
z \mid x &\sim N(m, M^{-1}), \qquad m = M^{-1} W' P (x - \mu), \qquad e = x - \mu - W m, \\
u \mid x, z &\sim N\big(g (x - \mu - W z),\ \psi (1 - g)\big), \qquad E[x_0 \mid x, k] = \mu + W m + g e, \\
-2 \log p(x \mid k) &= \log|M| + \sum_{\mathrm{seen}} \log(2\pi\psi/g) + e' P e + m' m .
\end{aligned}
$$

The last form has no cancellation, and errors of $m$ enter it squared only.  Responsibilities are the softmax of
$\log \pi_k + \log p(x \mid k)$; means are their averages.  All pixels seen, $s > 0$: the denoiser $D(x; s)$;
seen where a mask says so, $s = 0$: inpainting, with the known pixels as exact observations of the image model.

*Accuracy.*  $M$, its inverse and every log-density are float64.  The denoiser's projections $W'(\cdot)$ are in the
precision of the weights: on the shipped faces float32 stays within 5e-6 of float64, at any level.  Likelihoods
and posteriors project in float64: float32 errors would be magnified in the directions a mask leaves open.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ...errors import InputError
from .precond import Denoiser

__all__ = ["ExactBackbone", "Inferred", "Small", "infer", "small"]

CACHED = 64  # factorisations kept: noise levels and masks, the least recently used go first
BLOCK = 1 << 23  # numbers (images x components x pixels) treated at once


class Small(NamedTuple):
    r"""The r x r part of one component for one precision, in float64.

    Attributes:
        root: (r, r), the inverse of the Cholesky factor of $M$: $R$ with $M^{-1} = R' R$.
        inverse: $M^{-1}$, (r, r).
        log_norm: a scalar, $-\tfrac12 \big(\log|M| + \sum_{\mathrm{seen}} \log(2\pi/p)\big)$ with the precisions $p$.
    """

    root: Tensor
    inverse: Tensor
    log_norm: Tensor


def small(factor: Tensor, precision: Tensor) -> Small:
    """Factorise M = I + W' P W.

    Args:
        factor: W', (r, d).
        precision: diagonal of P, (d,); 0 = unseen.

    Returns:
        Its root, inverse and normalisation, in float64.
    """
    w, p = factor.double(), precision.double()
    eye = torch.eye(len(w), dtype=w.dtype, device=w.device)
    lower: Tensor = torch.linalg.cholesky(eye + (w * p) @ w.T)
    root = torch.linalg.solve_triangular(lower, eye, upper=False)
    seen = p[p > 0]
    log_norm = -lower.diagonal().log().sum() - 0.5 * (math.log(2 * math.pi) * len(seen) - seen.log().sum())
    return Small(root, root.T @ root, log_norm)


class Inferred(NamedTuple):
    """One component's posterior of n images, as in the module.

    Attributes:
        z: m, (n, r) float64.
        fitted: W m, (n, d).
        residual: e, (n, d).
        log: log p(x | k), (n,) float64.
    """

    z: Tensor
    fitted: Tensor
    residual: Tensor
    log: Tensor


def infer(x: Tensor, mean: Tensor, factor: Tensor, precision: Tensor, s: Small) -> Inferred:
    """The posterior of one component's z; see the module.

    Args:
        x: (n, d).
        mean: (d,).
        factor: W', (r, d).
        precision: diagonal of P, (d,).
        s: its `small`.

    Returns:
        m, W m, e and log p(x | k) of every row.
    """
    centred = x - mean
    z = ((centred * precision) @ factor.T).double() @ s.inverse
    fitted = z.to(x.dtype) @ factor
    residual = centred - fitted
    misfit = (residual.square() * precision).sum(1, dtype=torch.float64) + z.square().sum(1)
    return Inferred(z, fitted, residual, s.log_norm - 0.5 * misfit)


class _Block(NamedTuple):
    """Images that share noise level and mask: their indices, the level, the mask (d,) and the factorisations."""

    rows: Tensor
    sigma: float
    mask: Tensor | None
    parts: list[Small]


class ExactBackbone(Denoiser):
    """A mixture of factor analysers behind the interface of a denoiser; weights are set by `assign`.

    Frozen by design: gradients flow to x only.  Factorisations are cached by noise level and mask (at most 64,
    of 16 K r^2 bytes each), so a level costs the K r^2 d operations of its matrices M once, whatever the batch.

    Args:
        shape: (C, H, W) of an image.
        components: K.
        rank: r, columns of each W; 0 leaves diagonal covariances.

    Attributes:
        shape: (C, H, W).
        pixels: d = C H W.
        img_resolution: H; absent for images that are not square (signals), which `aid_control.images.inpaint`
            cannot take.
        log_weights: (K,), up to a constant.
        mean: (K, d).
        factor: W', (K, r, d).
        noise: psi, (K, d).

    Raises:
        ValueError: for a shape that is not (C, H, W), no component, or a negative rank.
    """

    def __init__(self, shape: Sequence[int], components: int, rank: int) -> None:
        # Not Denoiser.__init__: there is no U-Net behind this denoiser.
        nn.Module.__init__(self)
        if len(shape) != 3 or min(shape) < 1 or components < 1 or rank < 0:
            raise ValueError(
                f"shape {tuple(shape)}, {components} components, rank {rank}; "
                "expected (C, H, W), at least 1 component, rank 0 or more"
            )
        self.shape = tuple(int(n) for n in shape)
        self.pixels = math.prod(self.shape)
        self.components, self.rank = components, rank
        self.img_channels, self.label_dim, self.use_fp16 = self.shape[0], 0, False
        if self.shape[1] == self.shape[2]:
            self.img_resolution = self.shape[1]

        def weight(*size: int, value: float = 0.0) -> nn.Parameter:
            return nn.Parameter(torch.full(size, value), requires_grad=False)

        self.log_weights = weight(components)
        self.mean = weight(components, self.pixels)
        self.factor = weight(components, rank, self.pixels)
        self.noise = weight(components, self.pixels, value=1.0)
        self._cache: OrderedDict[tuple[float, bytes], list[Small]] = OrderedDict()

    @property
    def kwargs(self) -> dict[str, Any]:
        """The constructor's arguments, for files."""
        return {"shape": list(self.shape), "components": self.components, "rank": self.rank}

    def compact(self) -> dict[str, Tensor]:
        """The state dict with float16 images (means, factors, noise), shapes as they are: what files hold."""
        return {k: v if k == "log_weights" else v.half() for k, v in self.state_dict().items()}

    @torch.no_grad()
    def assign(self, mean: Tensor, factor: Tensor, noise: Tensor, log_weights: Tensor | None = None) -> Self:
        """Set the weights (copies); leading dimensions of K = 1 may be left out.

        Args:
            mean: (K, d) or (K, C, H, W).
            factor: W', (K, r, d).
            noise: psi, as ``mean``.
            log_weights: (K,); ``None`` = equal.

        Returns:
            self.

        Raises:
            InputError: for other sizes, numbers that are not finite, or noise that is not positive.
        """
        given = {"mean": mean, "factor": factor, "noise": noise}
        given["log_weights"] = self.log_weights.new_zeros(self.components) if log_weights is None else log_weights
        for name, value in given.items():
            own = getattr(self, name)
            if value.numel() != own.numel():
                raise InputError(f"{name}: shape {tuple(value.shape)}; expected {tuple(own.shape)}")
            own.copy_(value.reshape(own.shape))
        self._cache.clear()
        self.check_weights()
        return self

    def check_weights(self) -> None:
        """Refuse weights that describe no distribution.

        Raises:
            InputError: for numbers that are not finite, or noise that is not positive.
        """
        for name, value in self.state_dict().items():
            if not bool(torch.isfinite(value).all()):
                raise InputError(f"{name} holds NaN or infinity; expected finite numbers")
        if not bool((self.noise > 0).all()):
            raise InputError(f"noise holds {float(self.noise.min()):g}; expected positive variances")

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._cache.clear()  # another device, or another precision
        return super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._cache.clear()
        super()._load_from_state_dict(*args, **kwargs)

    # --- the one question ---------------------------------------------------------------------------------------

    def _gain(self, k: int, sigma: float, mask: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(g, psi) of a component, each (d,)."""
        psi = self.noise[k].to(dtype)
        gain = psi / (psi + sigma**2)
        return (gain if mask is None else gain * mask.to(dtype)), psi

    def _parts(self, sigma: float, mask: Tensor | None) -> list[Small]:
        key = (sigma, b"" if mask is None else mask.cpu().numpy().tobytes())
        if key not in self._cache:
            # plain tensors even under inference_mode: a later call may want gradients
            with torch.inference_mode(False), torch.no_grad():
                parts = []
                for k in range(self.components):
                    gain, psi = self._gain(k, sigma, mask, torch.float64)
                    parts.append(small(self.factor[k], gain / psi))
            self._cache[key] = parts
            while len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]

    def _blocks(self, n: int, sigma: Tensor | float, mask: Tensor | None) -> Iterator[_Block]:
        levels = torch.as_tensor(sigma, dtype=torch.float64).detach().reshape(-1).tolist()
        if len(levels) not in (1, n) or not all(s >= 0 for s in levels):
            raise InputError(f"sigma holds {len(levels)} levels for {n} images; expected 1 or {n}, none negative")
        seen = None if mask is None else mask.expand(n, *self.shape).reshape(n, -1).bool()
        groups: dict[tuple[float, bytes], list[int]] = {}
        for i in range(n):
            mark = b"" if seen is None else seen[i].cpu().numpy().tobytes()
            groups.setdefault((levels[i % len(levels)], mark), []).append(i)
        at_once = max(1, BLOCK // (self.components * self.pixels))
        for (level, _), rows in groups.items():
            one = None if seen is None else seen[rows[0]]
            for part in torch.split(torch.tensor(rows, device=self.mean.device), at_once):
                yield _Block(part, level, one, self._parts(level, one))

    def _infer(self, x: Tensor, block: _Block) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """For rows x (n, d) of one block: log pi_k + log p(x | k) (n, K), and of each component m and E[x0 | x, k]."""
        logs, zs, images = [], [], []
        prior = self.log_weights.double().log_softmax(0)
        for k, part in enumerate(block.parts):
            gain, psi = self._gain(k, block.sigma, block.mask, x.dtype)
            mean = self.mean[k].to(x.dtype)
            found = infer(x, mean, self.factor[k].to(x.dtype), gain / psi, part)
            logs.append(prior[k] + found.log)
            zs.append(found.z)
            images.append(mean + found.fitted + gain * found.residual)
        return torch.stack(logs, 1), zs, images

    def _blend(self, x: Tensor, sigma: Tensor | float, mask: Tensor | None) -> Tensor:
        """E[x0 | x] (B, d) in the precision of x (B, d)."""
        if not len(x):
            return x
        rows, means = [], []
        for block in self._blocks(len(x), sigma, mask):
            logs, _, images = self._infer(x[block.rows], block)
            weights = logs.softmax(1).to(x.dtype)
            rows.append(block.rows)
            means.append(sum(weights[:, k : k + 1] * image for k, image in enumerate(images)))
        if len(rows) == 1:
            return torch.as_tensor(means[0])
        return torch.cat([torch.as_tensor(m) for m in means])[torch.cat(rows).argsort()]

    # --- what is asked of it ------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """D(x; sigma) = E[x0 | x0 + sigma n = x], differentiable in x (not in sigma).

        Args:
            x: noisy images (B, C, H, W).
            sigma: noise level, a scalar or (B,); 0 or more.
            class_labels: of any shape, ignored: there are no classes.
            augment_labels: of any shape, ignored.

        Returns:
            Denoised images like ``x``, in the precision of the weights.

        Raises:
            InputError: for images of another shape, or levels that are negative or too many.
        """
        if x.dim() != 4 or tuple(x.shape[1:]) != self.shape:
            raise InputError(f"images of shape {tuple(x.shape)}; expected (B, {', '.join(map(str, self.shape))})")
        return self._blend(x.to(self.mean.dtype).flatten(1), sigma, None).reshape(x.shape)
