r"""Fitting mixtures of factor analysers by expectation-maximisation (Ghahramani and Hinton 1996).

*E-step.*  Responsibilities $h_{ik}$ and, in each component, $E[z] = m$ and $E[z z'] = M^{-1} + m m'$ (`exact`).

*M-step.*  With $r = x - \mu_k$ and $\tilde z = (z, 1)$, a regression of the pixels on the factors, for all $i$ at once:

$$
\begin{aligned}
(W, \Delta\mu) &= \Big(\sum h\, r\, E[\tilde z']\Big) \Big(\sum h\, E[\tilde z \tilde z']\Big)^{-1}, \\
\psi &= \max\Big(\tfrac{1}{n_k} \sum h\, E[(r - W z - \Delta\mu)^2],\ \text{floor}\Big), \qquad \pi_k = n_k / n,
\end{aligned}
$$

with $n_k = \sum h$.  Then $z$ is made standard again: its fitted mean and covariance are moved into $\mu$ and $W$
(parameter expansion, Liu, Rubin and Wu 1998).  The likelihood still never falls, and far fewer steps do.

*Sparse steps.*  In thousands of dimensions responsibilities are nearly 0 or 1.  All $K$ components see all images
only every ``refresh`` iterations; between, a component sees the images whose $h_{ik}$ was above $10^{-6}$.  That is EM
on a lower bound of the likelihood (Neal and Hinton 1998), which touches it at every full step: the likelihoods
of full steps never fall, up to the dropped responsibilities (about $10^{-6}$ nats an image each).

*The floor* of $\psi$ keeps constant pixels from infinite density.  A larger one is a statement about the residual
$u$: the model takes it as independent between pixels, real residuals are not, and inpainting then trusts thousands
of agreeing neighbours too much.  Rank, components and floor are to be chosen by held-out numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from tqdm import tqdm

from ...errors import InputError
from ...noise import generator
from ..data import ImageSource, to_float
from .exact import infer, small
from .gaussian import GaussianBackbone
from .mixture import MixtureBackbone, held_out

__all__ = ["EMSettings", "Fit", "fit_mixture", "k_means"]

KEY = 0xE111
SUPPORT = 1e-6  # responsibilities below this are dropped between full steps


@dataclass(frozen=True)
class EMSettings:
    """How a mixture is fitted.

    Attributes:
        components: K.
        rank: columns of each W.
        iterations: at most this many M-steps.
        refresh: every how many of them all components see all images.
        floor: smallest psi.
        mirror: add every image's mirror image.
        init: ``"kmeans"`` (on images shrunk to 8x8) or ``"random"`` (labels by lot: slow to part).
        batch: images a piece.
        patience: full steps without a better held-out likelihood before stopping.
        seed: of the initialisation; a fit is a function of images, settings and threads.

    Raises:
        InputError: for counts that are not whole or too small, a floor that is not positive, or an unknown ``init``.
    """

    components: int = 2
    rank: int = 250
    iterations: int = 20
    refresh: int = 5
    floor: float = 0.05
    mirror: bool = True
    init: str = "kmeans"
    batch: int = 250
    patience: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        lows = {"components": 1, "rank": 0, "iterations": 1, "refresh": 1, "batch": 1, "patience": 1}
        for name, low in lows.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise InputError(f"{name} is {value}; expected a whole number of at least {low}")
        if not isinstance(self.floor, int | float) or not 0 < self.floor < math.inf:
            raise InputError(f"floor is {self.floor}; expected a positive variance")
        if self.init not in ("kmeans", "random"):
            raise InputError(f"init is {self.init!r}; expected kmeans or random")


def k_means(points: Tensor, k: int, rng: torch.Generator, iterations: int = 25) -> Tensor:
    """Lloyd's algorithm from k-means++ seeds.

    Args:
        points: (n, p).
        k: clusters, at most n.
        rng: of the seeds.
        iterations: at most.

    Returns:
        Labels (n,) int64, from 0.
    """
    centres = points[torch.randint(len(points), (1,), generator=rng)]
    for _ in range(1, k):
        distance = torch.cdist(points, centres).square().amin(1)
        weights = distance if bool((distance > 0).any()) else torch.ones_like(distance)
        centres = torch.cat([centres, points[torch.multinomial(weights, 1, generator=rng)]])
    labels = torch.cdist(points, centres).argmin(1)
    for _ in range(iterations):
        # an empty cluster keeps its centre
        centres = torch.stack(
            [points[labels == j].mean(0) if bool((labels == j).any()) else c for j, c in enumerate(centres)]
        )
        old, labels = labels, torch.cdist(points, centres).argmin(1)
        if bool((old == labels).all()):
            break
    return labels


def _pieces(images: Tensor, mirror: bool, batch: int) -> Iterator[tuple[slice, Tensor]]:
    """Of uint8 images, then of their mirror images: (place among all, float images (b, C, H, W))."""
    for flip in (False, True) if mirror else (False,):
        for i in range(0, len(images), batch):
            x = to_float(images[i : i + batch])
            place = i + (len(images) if flip else 0)
            yield slice(place, place + len(x)), x.flip(3) if flip else x


class _Statistics:
    """What the M-step of one component needs: float64 sums over its images."""

    def __init__(self, d: int, r: int) -> None:
        self.cross = torch.zeros(r + 1, d, dtype=torch.float64)  # sum h E[z~] r'
        self.gram = torch.zeros(r + 1, r + 1, dtype=torch.float64)  # sum h E[z~ z~']
        self.square = torch.zeros(d, dtype=torch.float64)  # sum h r^2

    def add(self, h: Tensor, z: Tensor, centred: Tensor, inverse: Tensor) -> None:
        tilde = torch.cat([z, z.new_ones(len(z), 1)], 1)
        weighted = h[:, None] * tilde
        self.cross += (weighted.to(centred.dtype).T @ centred).double()
        self.gram += weighted.T @ tilde
        self.gram[:-1, :-1] += h.sum() * inverse
        self.square += h.to(centred.dtype) @ centred.square()

    def solve(self, floor: float) -> tuple[Tensor, Tensor, Tensor]:
        """(shift of mu (d,), new W' (r, d), new psi (d,))."""
        n = float(self.gram[-1, -1])
        both = torch.linalg.solve(self.gram, self.cross)
        psi = ((self.square - (both * self.cross).sum(0)) / n).clamp_min(floor)
        factor, shift = both[:-1], both[-1]
        z_mean = self.gram[-1, :-1] / n
        spread = torch.linalg.cholesky(self.gram[:-1, :-1] / n - z_mean[:, None] * z_mean)
        return shift + z_mean @ factor, spread.T @ factor, psi


class _EM:
    def __init__(self, images: Tensor, settings: EMSettings) -> None:
        s = self.settings = settings
        self.images, self.n = images, len(images) * (2 if s.mirror else 1)
        shape, many = images.shape[1:], s.components > 1
        self.net = MixtureBackbone(shape, s.components, s.rank) if many else GaussianBackbone(shape, s.rank)
        self.support = torch.ones(self.n, s.components, dtype=torch.bool)
        self.start()

    def rows(self) -> Iterator[tuple[slice, Tensor]]:
        """(place, rows (b, d))."""
        for place, x in _pieces(self.images, self.settings.mirror, self.settings.batch):
            yield place, x.flatten(1)

    @torch.no_grad()
    def start(self) -> None:
        """Means of the clusters; W from random combinations of their images; psi half the variance around them."""
        s, net, d = self.settings, self.net, self.net.pixels
        rng = generator(s.seed, KEY)
        if s.init == "kmeans":
            size = (min(self.images.shape[2], 8), min(self.images.shape[3], 8))
            shrunk = [adaptive_avg_pool2d(x, size).flatten(1) for _, x in _pieces(self.images, s.mirror, s.batch)]
            labels = k_means(torch.cat(shrunk), s.components, rng)
        else:
            labels = torch.randint(s.components, (self.n,), generator=rng)
        counts = torch.bincount(labels, minlength=s.components).double()
        sums = torch.zeros(s.components, d, dtype=torch.float64)
        for rows, x in self.rows():
            sums.index_add_(0, labels[rows], x.double())
        mean = (sums / counts.clamp_min(1)[:, None]).float()
        variance = torch.zeros(d, dtype=torch.float64)
        factor = torch.zeros_like(net.factor)
        for rows, x in self.rows():
            centred = x - mean[labels[rows]]
            variance += centred.square().sum(0)
            mixing = torch.randn(len(x), s.rank, generator=rng)
            for k in range(s.components):
                own = labels[rows] == k
                factor[k] += mixing[own].T @ centred[own]
        factor /= (2 * max(s.rank, 1) * counts.clamp_min(1)).sqrt().float()[:, None, None]
        psi = (variance / (2 * self.n)).clamp_min(s.floor).float().expand_as(mean)
        net.assign(mean, factor, psi, counts.clamp_min(0.5).log())

    @torch.no_grad()
    def step(self, full: bool, bar: tqdm) -> float:
        """One E-step and M-step; returns the mean log-likelihood an image before it (its bound, if not full)."""
        s, net = self.settings, self.net
        if full:
            self.support.fill_(True)
        precision = 1 / net.noise
        parts = [small(net.factor[k], precision[k]) for k in range(s.components)]
        prior = net.log_weights.double().log_softmax(0)
        statistics = [_Statistics(net.pixels, s.rank) for _ in range(s.components)]
        total = 0.0
        for rows, x in self.rows():
            support = self.support[rows]
            logs = torch.full(support.shape, -math.inf, dtype=torch.float64)
            zs: dict[int, Tensor] = {}
            for k in range(s.components):
                own = support[:, k]
                if bool(own.any()):
                    found = infer(x[own], net.mean[k], net.factor[k], precision[k], parts[k])
                    logs[own, k] = prior[k] + found.log
                    zs[k] = found.z.new_zeros(len(x), s.rank)
                    zs[k][own] = found.z
            total += float(logs.logsumexp(1).sum())
            h = logs.softmax(1)
            h = torch.where(h > SUPPORT, h, 0.0)
            h = h / h.sum(1, keepdim=True)
            self.support[rows] = h > 0
            for k, z in zs.items():
                own = h[:, k] > 0
                if bool(own.any()):
                    statistics[k].add(h[own, k], z[own], x[own] - net.mean[k], parts[k].inverse)
            bar.update(len(x))
        counts = torch.ones(s.components, dtype=torch.float64)
        mean, factor, noise = net.mean.clone(), net.factor.clone(), net.noise.clone()
        for k, sums in enumerate(statistics):
            counts[k] = sums.gram[-1, -1]
            if counts[k] > 1e-3:  # a component that lost its images stays where it was
                shift, factor[k], noise[k] = sums.solve(s.floor)
                mean[k] += shift
        net.assign(mean, factor, noise, counts.clamp_min(1e-3).log())
        return total / self.n


@dataclass(frozen=True)
class Fit:
    """A fitted mixture.

    Attributes:
        net: the model (a GaussianBackbone if it has one component): the best on the held-out images, else the last.
        history: rows of ``iteration`` (M-steps done), ``train`` (nats a dimension of the training images, where a
            full E-step followed) and ``held_out`` (`mixture.held_out`, if images were given).
        best: the number of M-steps of ``net``.
    """

    net: MixtureBackbone
    history: list[dict[str, Any]]
    best: int


def fit_mixture(
    images: Tensor | ImageSource,
    settings: EMSettings | None = None,
    validation: Tensor | ImageSource | None = None,
    progress: bool = True,
) -> Fit:
    """Fit a mixture of factor analysers; one component is factor analysis.

    Memory: the images (N d bytes, twice that while a source is read), N K flags, about 10 ``batch`` d floats for a
    piece, four copies of the weights (4 K d (r + 2) bytes each) with float64 sums of twice that size, and 0.5 GB at
    most for held-out likelihoods; whatever the number of images besides.  The defaults on 9,000 images of 64x64x3
    peak at 1.7 GB, libraries included, and take two and a half minutes on one core.

    Args:
        images: uint8 (N, C, H, W), or a source of them (read into memory).
        settings: see `EMSettings`.
        validation: held-out images of the same kind: measured every ``refresh`` steps, and reason to stop.
        progress: show a bar.

    Returns:
        The model (with ``validation`` the best on it, else the last) and its history.

    Raises:
        InputError: for images of another kind, or fewer of them than components.
    """
    s = settings or EMSettings()
    train, test = _stack(images), None if validation is None else _stack(validation)
    if len(train) < s.components:
        raise InputError(f"{len(train)} images for {s.components} components; expected at least one a component")
    if test is not None and test.shape[1:] != train.shape[1:]:
        raise InputError(f"held-out images of shape {tuple(test.shape[1:])}; expected {tuple(train.shape[1:])}")
    em = _EM(train, s)
    history: list[dict[str, Any]] = []
    best, best_value, best_weights, stale = 0, -math.inf, em.net.state_dict(), 0
    with tqdm(total=s.iterations * em.n, unit="img", disable=not progress, smoothing=0.05) as bar:
        for i in range(s.iterations + 1):
            if i % s.refresh == 0 or i == s.iterations:
                row: dict[str, Any] = {"iteration": i}
                history.append(row)
                if test is not None and i > 0:
                    row["held_out"] = held_out(em.net, test, s.seed)
                    value = row["held_out"]["nats_per_dim"]
                    bar.set_postfix(held_out_bits=f"{row['held_out']['bits_per_dim']:.4f}")
                    stale = 0 if value > best_value else stale + 1
                    if value > best_value:
                        best, best_value = i, value
                        best_weights = {k: v.clone() for k, v in em.net.state_dict().items()}
            if i == s.iterations or stale >= s.patience:
                break
            value = em.step(i % s.refresh == 0, bar) / em.net.pixels
            if i % s.refresh == 0:
                row["train"] = value
    if test is None:
        return Fit(em.net.eval(), history, i)
    em.net.load_state_dict(best_weights)
    return Fit(em.net.eval(), history, best)


def _stack(images: Tensor | ImageSource) -> Tensor:
    stack = images.stack() if isinstance(images, ImageSource) else images
    if stack.dtype != torch.uint8 or stack.dim() != 4 or not len(stack):
        raise InputError(f"images of {stack.dtype}, shape {tuple(stack.shape)}; expected uint8 (N, C, H, W)")
    return stack
