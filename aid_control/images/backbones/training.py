r"""Training a denoiser: the EDM loss, with an exponential moving average of the weights.

$$
L = E\, w(\sigma)\, | D(x_0 + \sigma n; \sigma) - x_0 |^2 / d, \qquad
\log\sigma \sim N(P_{\mathrm{mean}}, P_{\mathrm{std}}^2), \quad w = (\sigma^2 + s^2)/(\sigma s)^2
$$

(Karras et al. 2022, section 5; $s = \sigma_{\mathrm{data}}$).  Every iteration draws from generators keyed by
(seed, iteration): a restarted run is the uninterrupted run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...descent import Descent, Part
from ...noise import generator
from ...parallel import Rows, Team
from ..data import batch_indices, to_float
from .precond import Denoiser

__all__ = ["BackboneTrainer", "edm_loss", "edm_weight", "hole_loss", "move_average", "validate"]


def edm_weight(sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """w(sigma) of the module.

    Args:
        sigma: positive noise levels, of any shape.
        sigma_data: standard deviation of the data.

    Returns:
        Of the shape of ``sigma``.
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def edm_loss(net: Denoiser, images: Tensor, log_sigma: Tensor, noise: Tensor, sigma_data: float = 0.5) -> Tensor:
    """Weighted denoising error a image, (B,).

    Args:
        net: denoiser.
        images: clean (B, C, H, W) in [-1, 1].
        log_sigma: (B,).
        noise: standard normal like ``images``.
        sigma_data: standard deviation of the data.
    """
    sigma = log_sigma.exp()
    error = net(images + sigma.reshape(-1, 1, 1, 1) * noise, sigma) - images
    return edm_weight(sigma, sigma_data) * error.square().mean(dim=(1, 2, 3))


def hole_loss(denoised: Tensor, x0: Tensor, mask: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """The same error in each image's hole only, (B,): small holes count like large ones.

    Args:
        denoised: D, (B, C, H, W).
        x0: clean images like ``denoised``.
        mask: (B, 1, H, W), 1 = known; some hole in each.
        sigma: noise levels (B,).
        sigma_data: standard deviation of the data.
    """
    hole = 1 - mask
    error = (hole * (denoised - x0).square()).flatten(1).sum(1)
    return edm_weight(sigma, sigma_data) * error / (x0.shape[1] * hole.flatten(1).sum(1))


@torch.no_grad()
def move_average(
    average: dict[str, Tensor], net: nn.Module, batch: int, images_seen: int, halflife: float, rampup: float
) -> None:
    """Move averaged weights towards the present ones, by a half-life in images.

    Args:
        average: weights by name, shapes as in the state dict of ``net``; changed in place.
        net: the network; buffers that are not floating point are left out.
        batch: images of the iteration.
        images_seen: so far, these included.
        halflife: of the average.
        rampup: the half-life is at most this share of the images seen.
    """
    decay = 0.5 ** (batch / max(min(halflife, rampup * images_seen), 1e-8))
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)


@torch.no_grad()
def validate(
    net: Denoiser, images: Tensor, P_mean: float = -1.2, P_std: float = 1.2, seed: int = 0, batch: int = 32
) -> dict[str, float]:
    """Mean squared denoising error at fixed noise levels, and the EDM loss, with fixed noise.

    Args:
        net: denoiser.
        images: held-out clean images (N, C, H, W) in [-1, 1].
        P_mean: of log sigma.
        P_std: of log sigma.
        seed: of the noise.
        batch: images a call.

    Returns:
        ``mse_sigma_S`` for S = 0.05, 0.2, 0.5, 1, 3 and 10, and ``edm_loss``: means over images (and pixels).
    """
    out: dict[str, float] = {}
    gen = generator(seed, 0x7A11D)
    noise = torch.randn(images.shape, generator=gen)
    for sigma in (0.05, 0.2, 0.5, 1.0, 3.0, 10.0):
        errors = [
            (net(x + sigma * n, sigma) - x).square().mean(dim=(1, 2, 3))
            for x, n in zip(torch.split(images, batch), torch.split(noise, batch), strict=True)
        ]
        out[f"mse_sigma_{sigma:g}"] = float(torch.cat(errors).mean())
    log_sigma = P_mean + P_std * torch.randn(len(images), generator=gen)
    parts = zip(torch.split(images, batch), torch.split(log_sigma, batch), torch.split(noise, batch), strict=True)
    out["edm_loss"] = float(torch.cat([edm_loss(net, *part) for part in parts]).mean())
    return out


class BackboneTrainer:
    """Adam on the EDM loss, with EMA; `step` is one iteration.

    Args:
        net: denoiser to train (in place).
        images: uint8 training images (N, C, H, W), kept in memory.
        batch: images an iteration, of all processes.
        lr: learning rate.
        ema_halflife: of the average, in images.
        ema_rampup: the half-life is at most this fraction of the images seen.
        clip: bound of the gradient's norm.
        P_mean: of log sigma.
        P_std: of log sigma.
        flip: mirror images at random.
        seed: of everything random.
        team: the processes that train together, parts of a batch, and precision.
        max_skipped: give up after so many iterations in a row without a finite gradient.

    Attributes:
        ema: averaged state dict.
        images_seen: so far.
        descent: counts the iterations that were skipped.
    """

    def __init__(
        self,
        net: Denoiser,
        images: Tensor,
        batch: int = 32,
        lr: float = 1e-3,
        ema_halflife: float = 40_000,
        ema_rampup: float = 0.1,
        clip: float = 1.0,
        P_mean: float = -1.2,
        P_std: float = 1.2,
        flip: bool = True,
        seed: int = 0,
        team: Team | None = None,
        max_skipped: int = 20,
    ) -> None:
        self.net, self.images, self.batch, self.flip, self.seed = net, images, batch, flip, seed
        self.ema_halflife, self.ema_rampup = ema_halflife, ema_rampup
        self.P_mean, self.P_std = P_mean, P_std
        self.ema = {k: v.detach().clone() for k, v in net.state_dict().items()}
        self.optimizer = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99))
        self.images_seen = 0
        self.descent = Descent(clip, team, max_skipped)

    def step(self) -> float:
        """One iteration; returns the mean loss of its images.

        Raises:
            InputError: if the batch has fewer images than there are parts.
            Diverged: after too many iterations in a row without a finite gradient.
        """
        team = self.descent.team
        self.net.train()
        share = self.descent.step(self.optimizer, self.net.parameters(), self._losses(team.parts(self.batch)))
        self.images_seen += self.batch
        move_average(self.ema, self.net, self.batch, self.images_seen, self.ema_halflife, self.ema_rampup)
        return team.sum([share])[0]

    def _losses(self, parts: Sequence[Rows]) -> Iterator[Part]:
        """What is drawn is drawn for the whole batch; a part takes its rows."""
        iteration = self.images_seen // self.batch
        gen = generator(self.seed, 0xB0B, iteration)
        index = batch_indices(len(self.images), self.batch, iteration, self.seed)
        mirrored = torch.rand(self.batch, generator=gen) < 0.5 if self.flip else torch.zeros(self.batch).bool()
        log_sigma = self.P_mean + self.P_std * torch.randn(self.batch, generator=gen)
        noise = torch.randn(self.batch, *self.images.shape[1:], generator=gen)
        device = next(self.net.parameters()).device
        for rows in parts:
            x = to_float(self.images[rows.take(index)])
            turned = rows.take(mirrored)
            x[turned] = x[turned].flip(-1)
            # dropout draws from torch's global state, which no checkpoint holds
            with keyed_dropout(self.net, self.seed, iteration, rows.start), self.descent.team.autocast():
                own, drawn = rows.take(log_sigma).to(device), rows.take(noise).to(device)
                loss = edm_loss(self.net, x.to(device), own, drawn).mean()
            yield rows.weight, [loss]

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: ``net``, ``ema``, ``optimizer``, ``images_seen`` and counts (not copied)."""
        return {
            "net": self.net.state_dict(),
            "ema": self.ema,
            "optimizer": self.optimizer.state_dict(),
            "images_seen": self.images_seen,
            **self.descent.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: what `state` gave; extra keys are ignored.
        """
        self.net.load_state_dict(state["net"])
        self.ema = {k: v.clone() for k, v in state["ema"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.images_seen = int(state["images_seen"])
        self.descent.restore(state)


@contextmanager
def keyed_dropout(net: nn.Module, *key: int) -> Iterator[None]:
    """Within it dropout's noise is a function of the key, on the CPU and on the network's GPU.

    Args:
        net: the network; nothing is done where it has no dropout.
        *key: integers.
    """
    if not any(getattr(m, "dropout", 0) for m in net.modules()):
        yield
        return
    device = next(net.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(generator(*key).initial_seed())
        yield
