r"""Training a Palette network: the loss of `palette` with Adam.

Noise levels are log-normal, $\log s \sim N(P_{mean}, P_{std}^2)$, higher than EDM's (-1.2, 1.2): at low noise
the network it starts from is good already, and what the observation adds is decided at high noise.
"""

from __future__ import annotations

import torch

from ...noise import generator
from ..backbones.conditional import ConditionalDenoiser
from ..training import InpaintingData
from .baseline_training import ConditionalTrainer
from .palette import palette_loss

__all__ = ["PaletteTrainer"]

KEY = 0x9A1E


class PaletteTrainer(ConditionalTrainer):
    """Adam on `palette.palette_loss`.

    Args:
        net: network to train (in place).
        data: training images and masks.
        batch: images an iteration.
        lr: learning rate.
        P_mean: of log s.
        P_std: of log s.
        **kwargs: of `baseline_training.BaselineTrainer`.
    """

    kind = "palette"

    def __init__(
        self,
        net: ConditionalDenoiser,
        data: InpaintingData,
        batch: int = 16,
        lr: float = 1e-3,
        P_mean: float = 0.5,
        P_std: float = 1.5,
        **kwargs: float,
    ) -> None:
        super().__init__(net, data, batch, **kwargs)  # type: ignore[arg-type]
        self.P_mean, self.P_std = P_mean, P_std
        self.optimizers["net"] = torch.optim.Adam(net.parameters(), lr=lr, betas=(0.9, 0.99))

    def step(self) -> dict[str, float]:
        x0, mask = self.data.clean_and_mask(self.batch, self.iteration)
        gen = generator(self.seed, KEY, self.iteration)
        sigma = (self.P_mean + self.P_std * torch.randn(len(x0), generator=gen)).exp().to(x0)
        noise = torch.randn(x0.shape, generator=gen).to(x0)
        self.net.train()
        loss = palette_loss(self.net, x0, mask, sigma, noise, self.net.sigma_data).mean()
        self.descend("net", loss)
        self.advance()
        return {"loss": float(loss.detach())}
