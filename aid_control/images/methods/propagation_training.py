r"""Training LatentPaint's propagation module: denoising in the hole, through the frozen network.

.. math::
    L = E\; w(\sigma)\, \frac{\| (1 - M)\, (D_\phi - x_0) \|^2}{C\, |1 - M|}, \qquad
    x = x_0 + \sigma n, \quad q = M x_0 + \sigma n',

D the mixed denoiser (:func:`.latentpaint.mixed_denoise`) of state x and known image q, n and n' independent,
:math:`\log\sigma \sim N(P_{mean}, P_{std}^2)` and w EDM's weight (:mod:`..backbones.training`; EDM's own levels,
-1.2 and 1.2, lie lower: there x shows the hole itself and the module has little to add).  The mean is over each
image's hole, so that small holes count like large ones.  Gradients pass through the decoder into the module; the
network stays as it is.  The loss is ours: the published words that we know name none.

All randomness is keyed by (seed, iteration): a restarted run is the uninterrupted run.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...noise import generator, normal
from ..backbones.precond import Denoiser
from ..training import InpaintingData
from .latentpaint import bottleneck_channels, mixed_denoise, network
from .propagation import Propagation, save_propagation

__all__ = ["PropagationTrainer", "hole_loss"]

KEY = 0x1A70


def hole_loss(denoised: Tensor, x0: Tensor, mask: Tensor, sigma: Tensor, sigma_data: float = 0.5) -> Tensor:
    """The weighted error of each image in its hole, (B,).

    Args:
        denoised: D, (B, C, H, W).
        x0: clean images like ``denoised``.
        mask: (B, 1, H, W), 1 = known; some hole in each.
        sigma: noise levels (B,).
        sigma_data: standard deviation of the data.
    """
    hole = 1 - mask
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    error = (hole * (denoised - x0).square()).flatten(1).sum(1)
    return weight * error / (x0.shape[1] * hole.flatten(1).sum(1))


class PropagationTrainer:
    """Adam on the loss of the module's docstring, with an average of the weights; :meth:`step` is one iteration.

    Args:
        backbone: frozen denoiser with a U-Net.
        data: training images and masks; gives the device.
        batch: images an iteration.
        lr: learning rate.
        P_mean: of log sigma.
        P_std: of log sigma.
        width: of the module.
        ema_halflife: of the average, in images.
        ema_rampup: the half-life is at most this fraction of the images seen.
        clip: bound of the gradient's norm.
        seed: of everything random but the data's own draws; the first weights included.

    Attributes:
        module: what is trained.
        average: its averaged weights.
        iteration: how many are done.

    Raises:
        InputError: for a backbone without features.
    """

    def __init__(
        self,
        backbone: Denoiser,
        data: InpaintingData,
        batch: int = 8,
        lr: float = 2e-3,
        P_mean: float = 0.0,
        P_std: float = 1.5,
        width: int = 64,
        ema_halflife: float = 4_000,
        ema_rampup: float = 0.1,
        clip: float = 1.0,
        seed: int = 0,
    ) -> None:
        channels = bottleneck_channels(backbone)
        if not channels:
            raise InputError(f"{type(network(backbone)).__name__} has no features to propagate; expected a U-Net")
        self.backbone, self.data, self.batch, self.clip, self.seed = backbone, data, batch, clip, seed
        self.ema_halflife, self.ema_rampup = ema_halflife, ema_rampup
        self.P_mean, self.P_std = P_mean, P_std
        with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
            torch.manual_seed(seed)
            self.module = Propagation(channels, width).to(data.device)
        self.module.backbone = network(backbone).fingerprint
        self.average = {k: v.detach().clone() for k, v in self.module.state_dict().items()}
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=lr, betas=(0.9, 0.99))
        self.iteration = 0

    @property
    def images_seen(self) -> int:
        """Training images used so far, repetitions included."""
        return self.iteration * self.batch

    def loss(self, iteration: int) -> Tensor:
        """The mean loss of one iteration's batch."""
        x0, mask = self.data.clean_and_mask(self.batch, iteration)
        draws = torch.randn(self.batch, generator=generator(self.seed, KEY, 0, iteration))
        sigma = (self.P_mean + self.P_std * draws).exp().to(x0)
        n, other = (normal(x0.shape, self.seed, KEY, i, iteration).to(x0) for i in (1, 2))
        s = sigma.reshape(-1, 1, 1, 1)
        x, known = x0 + s * n, mask * x0 + s * other
        denoised = mixed_denoise(self.backbone, x, known, mask, sigma, module=self.module)
        return hole_loss(denoised, x0, mask, sigma, getattr(network(self.backbone), "sigma_data", 0.5)).mean()

    def step(self) -> float:
        """One iteration; returns the loss."""
        self.module.train()
        loss = self.loss(self.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.clip)
        if torch.isfinite(norm):  # a broken batch is skipped, not learned from
            self.optimizer.step()
        self.iteration += 1
        halflife = min(self.ema_halflife, self.ema_rampup * self.images_seen)
        with torch.no_grad():
            for name, value in self.module.state_dict().items():
                self.average[name].lerp_(value, 1 - 0.5 ** (self.batch / max(halflife, 1e-8)))
        return float(loss.detach())

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "module": self.module.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state` (extra keys are ignored).

        Args:
            state: of a trainer with the same settings.
        """
        self.module.load_state_dict(state["module"])
        self.average = {k: v.clone().to(self.data.device) for k, v in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.iteration = int(state["iteration"])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the averaged module, with its facts, for :func:`.propagation.load_propagation`.

        Args:
            path: target, ``.safetensors``.
        """
        self.module.facts = {
            **self.module.facts,
            "iteration": self.iteration, "batch": self.batch, "images": len(self.data.images),
            "mask": self.data.mask_kind, "P_mean": self.P_mean, "P_std": self.P_std, "seed": self.seed,
        }  # fmt: skip
        save_propagation(path, self.module, self.average)
