r"""Training LatentPaint's propagation module: denoising in the hole, through the frozen network.

$$
L = E\; w(\sigma)\, \frac{\| (1 - M)\, (D_\phi - x_0) \|^2}{C\, |1 - M|}, \qquad
x = x_0 + \sigma n, \quad q = M x_0 + \sigma n',
$$

$D$ the mixed denoiser (`latentpaint.mixed_denoise`) of state $x$ and known image $q$, $n$ and $n'$ independent,
$\log\sigma \sim N(P_{mean}, P_{std}^2)$ and $w$ EDM's weight (`backbones.training`; EDM's own levels,
-1.2 and 1.2, lie lower: there $x$ shows the hole itself and the module has little to add).  The mean is over each
image's hole, so that small holes count like large ones.  Gradients pass through the decoder into the module; the
network stays as it is.  The loss is ours: the published words that we know name none.

All randomness is keyed by (seed, iteration): a restarted run is the uninterrupted run.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ...errors import InputError
from ...noise import generator, normal
from ..backbones.precond import Denoiser
from ..backbones.training import hole_loss
from ..training import InpaintingData
from .baseline_training import BaselineTrainer
from .latentpaint import bottleneck_channels, mixed_denoise, network
from .propagation import Propagation, save_propagation

__all__ = ["PropagationTrainer"]

KEY = 0x1A70


class PropagationTrainer(BaselineTrainer[Propagation]):
    """Adam on the loss of the module's docstring, with an average of the weights; `step` is one iteration.

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
        max_skipped: give up after so many steps in a row without a finite gradient.

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
        max_skipped: int = 20,
    ) -> None:
        channels = bottleneck_channels(backbone)
        if not channels:
            raise InputError(f"{type(network(backbone)).__name__} has no features to propagate; expected a U-Net")
        self.backbone, self.P_mean, self.P_std = backbone, P_mean, P_std
        with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
            torch.manual_seed(seed)
            module = Propagation(channels, width).to(data.device)
        module.backbone = network(backbone).fingerprint
        super().__init__(module, data, batch, ema_halflife, ema_rampup, clip, seed, max_skipped)
        self.optimizers["net"] = torch.optim.Adam(module.parameters(), lr=lr, betas=(0.9, 0.99))

    def loss(self, iteration: int) -> Tensor:
        """The mean loss of one iteration's batch, a scalar with gradients to the module.

        Args:
            iteration: number of the iteration; with the seeds it fixes images, masks, levels and noise.
        """
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
        self.descend("net", loss)
        self.advance()
        return float(loss.detach())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the averaged module, with its facts, for `propagation.load_propagation`.

        Args:
            path: target, ``.safetensors``.
        """
        self.module.facts = {
            **self.module.facts,
            "iteration": self.iteration, "batch": self.batch, "images": len(self.data.images),
            "mask": self.data.mask_kind, "P_mean": self.P_mean, "P_std": self.P_std, "seed": self.seed,
        }  # fmt: skip
        save_propagation(path, self.module, self.average)
