r"""Signals of a few dozen numbers: guidance where every matrix can be full, and the optimum can be reached.

Data are $N(0, C)$ with the squared-exponential covariance $C_{ij} = e^{-(i-j)^2 / 2\ell^2}$, masks with one random gap.
The networks are those of `guidance` with matrices instead of bands:

$$
\begin{aligned}
v &= G(\sigma)\, \hat m + H(\sigma)\, \frac{x}{\sqrt{1 + \sigma^2}}, \\
V &= \frac1{2d\, c(\sigma)} \Big| S(\sigma) \Big( R(\sigma) \frac{x}{\sqrt{1+\sigma^2}} - \hat m \Big) \Big|^2
+ e(\sigma),
\end{aligned}
$$

with tables over the noise level; at the start $G = H = e = 0$ and $R = S = I$, which with
$c = 1 + (1 + \tfrac12 \log[\sigma^2 (1 + \sigma_{min}^2) / (\sigma_{min}^2 (1 + \sigma^2))]) / \beta$ is the
optimal value for white data (see `guidance`).  At $\sigma = 0$ the critic is $|x - \hat m|^2/(2d)$.  The guess
$\hat m(y, M)$ is a perceptron, learned by the critic's terminal condition.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..noise import generator
from .backbones.gaussian import GaussianBackbone
from .clock import Clock
from .guidance import price
from .problem import Observation
from .pyramid import LevelTable

__all__ = ["MatrixCritic", "MatrixGuidance", "gap_masks", "squared_exponential"]


def squared_exponential(n: int = 32, length: float = 4.0, floor: float = 1e-4) -> GaussianBackbone:
    """The Gaussian backbone of signals (1, 1, n).

    Args:
        n: numbers in a signal.
        length: correlation length in positions.
        floor: smallest eigenvalue over the largest.
    """
    i = torch.arange(n, dtype=torch.float64)
    covariance = torch.exp(-0.5 * ((i[:, None] - i[None, :]) / length) ** 2)
    return GaussianBackbone.from_covariance(torch.zeros(n), covariance, floor=floor)


def gap_masks(batch: int, n: int, *key: int) -> Tensor:
    """Masks with one gap of n/4 to 3n/4 zeros: every length equally likely, and every place for it.

    Args:
        batch: how many.
        n: numbers in a signal.
        *key: integers that fix the draw.

    Returns:
        (batch, 1, 1, n) float32, 1 = known.
    """
    rng = generator(*key)
    width = torch.randint(n // 4, 3 * n // 4 + 1, (batch,), generator=rng)
    start = (torch.rand(batch, generator=rng) * (n - width + 1)).long()
    place = torch.arange(n)
    hole = (place >= start[:, None]) & (place < (start + width)[:, None])
    return (~hole).float()[:, None, None, :]


class _Guess(nn.Module):
    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2 * n, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(), nn.Linear(width, n),
        )  # fmt: skip

    def forward(self, y: Tensor, mask: Tensor) -> Tensor:
        out = self.net(torch.cat([y * mask, mask], dim=1).flatten(1)).reshape(y.shape)
        return mask * y + (1 - mask) * out


class MatrixGuidance(nn.Module):
    """The policy's mean, (t, x, observation, ignored) -> v.

    Args:
        n: numbers in a signal.
        clock: t -> sigma.
        width: of the perceptron.
        knots: of the tables.
    """

    def __init__(self, n: int, clock: Clock, width: int = 512, knots: int = 20) -> None:
        super().__init__()
        self.n, self.clock = n, clock
        self.encoder = _Guess(n, width)
        self.table = LevelTable(2 * n * n, clock.sigma_min, clock.sigma_max, knots)

    @torch.no_grad()
    def observe(self, y: Tensor, mask: Tensor, class_labels: Tensor | None = None) -> Observation:
        """The observation with the guess filled in (no gradients).

        Args:
            y: observed signals (B, 1, 1, n).
            mask: (B, 1, 1, n), 1 = known.
            class_labels: one-hot (B, n) or ``None``; passed on.
        """
        return Observation(y, mask, self.encoder(y, mask), class_labels)

    def forward(self, t: Tensor, x: Tensor, context: Observation, probe: Tensor | None = None) -> Tensor:
        """v of the module's formula.

        Args:
            t: scalar time.
            x: states (B, 1, 1, n).
            context: the observation; without a guess it is made here, without gradients to the encoder.
            probe: D, like ``x``; ignored: it is a linear function of x here.

        Returns:
            v, (B, 1, 1, n).
        """
        sigma = float(self.clock.sigma(t))
        guess = context.guess if context.guess is not None else self.encoder(context.y, context.mask).detach()
        g, h = self.table(sigma).reshape(2, self.n, self.n)
        return guess @ g.T + (x / (1 + sigma**2) ** 0.5) @ h.T


class MatrixCritic(nn.Module):
    """The critic, (t, x, observation, ignored) -> (B,).

    Args:
        encoder: the guess, where the observation has none.
        n: numbers in a signal.
        clock: t -> sigma.
        beta: of the problem.
        knots: of the tables.
    """

    def __init__(self, encoder: nn.Module, n: int, clock: Clock, beta: float, knots: int = 20) -> None:
        super().__init__()
        self.beta = beta
        self.n, self.clock, self.encoder = n, clock, encoder
        self.table = LevelTable(2 * n * n + 1, clock.sigma_min, clock.sigma_max, knots)

    def forward(self, t: Tensor, x: Tensor, context: Observation, probe: Tensor | None = None) -> Tensor:
        """V of the module's formula.

        Args:
            t: scalar time.
            x: states (B, 1, 1, n).
            context: the observation; without a guess it is made here, with gradients to the encoder.
            probe: D, like ``x``; ignored.

        Returns:
            (B,).
        """
        sigma = float(self.clock.sigma(t))
        guess = context.guess if context.guess is not None else self.encoder(context.y, context.mask)
        if sigma <= 0:
            return 0.5 * (x - guess).square().flatten(1).mean(1)
        values = self.table(sigma)
        eye = torch.eye(self.n).to(x)
        r, s = values[:-1].reshape(2, self.n, self.n)
        gap = (x / (1 + sigma**2) ** 0.5) @ (eye + r).T - guess
        c = price(torch.ones((), dtype=torch.float64), sigma, self.clock.sigma_min, self.beta)
        return 0.5 * (gap @ (eye + s).T).square().flatten(1).mean(1) / c + values[-1]
