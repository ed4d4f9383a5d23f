r"""Training a DAVI generator: the objective of `davi`, three networks.

An iteration draws images, masks and bridge times, generates $x = I_\phi(u_\tau)$ once, and

1. moves $\psi$ down the denoising loss of the generated images,
   $E\, \lambda(s) \|D_\psi(\bar x + s n; s) - \bar x\|^2$ with EDM's weight
   $\lambda = 1/s^2 + 1/s_{data}^2$, where the published code has unit weight on the error of the noise,
   $\lambda = 1/s^2$: at high noise ours is far larger;
2. moves $\phi$ along the objective's gradient, with the moved $D_\psi$ held.

The generated images of 1 and 2 are the same (the published code generates twice).  Both use AdamW.

*Pasting.*  An observation without noise has a posterior whose known part is $y$.  With ``paste`` the generated image is
$M y + (1 - M) I_\phi$, in training as in use: the terms $a$ and $b$ vanish, and the gradient is the hole's.  Without,
the published weights give a known pixel 16 times the weight of one in the hole, and what is learned first is to copy
the observation, which is zero in the hole.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...noise import generator
from ..backbones.conditional import ConditionalDenoiser
from ..backbones.precond import Denoiser
from ..backbones.training import edm_loss
from ..clock import DDPMClock
from ..training import InpaintingData
from .baseline_training import ConditionalTrainer
from .davi import PERTURBATION, SIGMA_MAX, bridge, generate, kl_direction

__all__ = ["DaviLoss", "DaviTrainer", "generator_loss"]

KEY = 0xDA71


@dataclass(frozen=True)
class DaviLoss:
    """Weights of the generator's terms; the defaults are the published ones for inpainting.

    Attributes:
        kl: of the divergence.
        consistency: a, of M (y - x).
        known: b, of M (x0 - x).
        regression: c, of x0 - x.
    """

    kl: float = 1.0
    consistency: float = 0.5
    known: float = 1.0
    regression: float = 0.1


def inverse_level(sigma: Tensor) -> Tensor:
    """w(s) = 1/s, the published code's weight: (B,) -> (B,)."""
    return 1 / sigma


def generator_loss(
    x: Tensor,
    x0: Tensor,
    y: Tensor,
    mask: Tensor,
    direction: Tensor,
    sigma: Tensor,
    loss: DaviLoss = DaviLoss(),  # noqa: B008 - frozen
    weight: Callable[[Tensor], Tensor] = inverse_level,
) -> Tensor:
    """A number whose gradient in x is that of the objective in `davi`.

    Args:
        x: generated images (B, C, H, W), with gradients to the generator.
        x0: clean images (B, C, H, W).
        y: observed images (B, C, H, W), zero in the hole.
        mask: (B, 1, H, W), 1 = known.
        direction: D_psi - D_theta, (B, C, H, W), by `davi.kl_direction`; held constant.
        sigma: its noise levels (B,).
        loss: weights of the terms.
        weight: w(s), (B,) -> (B,).

    Returns:
        A scalar.
    """
    divergence = (weight(sigma).reshape(-1, 1, 1, 1) * direction.detach() * x).mean()
    a, b, c = loss.consistency, loss.known, loss.regression
    fit = a * (mask * (y - x)).square() + b * (mask * (x0 - x)).square() + c * (x0 - x).square()
    return loss.kl * divergence + fit.mean()


class DaviTrainer(ConditionalTrainer):
    """The alternating scheme of the module.

    ``step`` returns the mean squared error in the hole, the loss of D_psi, and the mean square of D_psi - D_theta.

    Args:
        net: generator, starting from the backbone (in place).
        data: training images and masks.
        prior: D_theta, frozen; D_psi starts as its copy.
        batch: images an iteration.
        lr: learning rate of the generator (published: 1e-4).
        score_lr: of D_psi (published: 1e-4).
        perturbation: h.
        loss: weights of the generator's terms.
        paste: known pixels of the generated images are y (see the module); the paper's are not.
        **kwargs: of `baseline_training.BaselineTrainer`.
    """

    kind = "davi"

    def __init__(
        self,
        net: ConditionalDenoiser,
        data: InpaintingData,
        prior: Denoiser,
        batch: int = 8,
        lr: float = 1e-4,
        score_lr: float = 1e-4,
        perturbation: float = PERTURBATION,
        loss: DaviLoss = DaviLoss(),  # noqa: B008 - frozen
        paste: bool = True,
        **kwargs: float,
    ) -> None:
        super().__init__(net, data, batch, **kwargs)  # type: ignore[arg-type]
        self.prior, self.loss, self.perturbation, self.paste = prior, loss, perturbation, paste
        self.learned: Denoiser = copy.deepcopy(prior).requires_grad_(True)
        self.networks["score"] = self.learned
        self.optimizers["net"] = torch.optim.AdamW(net.parameters(), lr=lr)
        self.optimizers["score"] = torch.optim.AdamW(self.learned.parameters(), lr=score_lr)
        # increasing, and within EDM's range
        self.levels = torch.tensor(DDPMClock().levels).flip(0).clip(max=SIGMA_MAX)

    def step(self) -> dict[str, float]:
        x0, mask = self.data.clean_and_mask(self.batch, self.iteration)
        gen = generator(self.seed, KEY, self.iteration)
        n, y = len(x0), x0 * mask
        noises = torch.randn(3, *x0.shape, generator=gen).to(x0)
        tau = torch.rand(n, generator=gen) ** (1 / 3)  # Beta(3, 1)
        level = self.levels[(tau * len(self.levels)).long().clip(max=len(self.levels) - 1)].to(x0)
        sigma, sigma_psi = self.levels[torch.randint(len(self.levels), (2, n), generator=gen)].to(x0)

        self.net.train()
        u = bridge(x0, y, tau.to(x0), level, noises[0], self.perturbation)
        x = generate(self.net, u, y, mask, level)
        if self.paste:
            x = torch.where(mask.bool(), y, x)

        self.learned.train()
        score_loss = edm_loss(self.learned, x.detach(), sigma_psi.log(), noises[1]).mean()
        self.descend("score", score_loss)

        self.learned.eval()
        direction = kl_direction(self.prior, self.learned, x.detach(), sigma, noises[2])
        loss = generator_loss(x, x0, y, mask, direction, sigma, self.loss)
        self.descend("net", loss)
        self.advance()
        hole = (1 - mask).expand_as(x0).bool()
        error = float((x.detach() - x0)[hole].square().mean())
        return {"hole_mse": error, "score": float(score_loss.detach()), "kl": float(direction.square().mean())}
