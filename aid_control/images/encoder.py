r"""The context encoder: a guess of the posterior mean, $m(\xi) = E[x_0 \mid y, M]$, made once an image.

Everything that depends only on the observation is computed here, outside the sampler's loop: a guided step
then costs a small fraction of a backbone call, while the encoder may cost about as much as one.  It is a
U-Net at half, quarter and eighth resolution with learned position maps and a mixing of all positions at the
coarsest level (a hole can be as large as the receptive field of the convolutions).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ContextEncoder"]


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        groups = max(channels // 16, 1)
        self.body = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip
        nn.init.zeros_(self.body[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _Mix(nn.Module):
    """Every position of a small map sees every other: a linear map over positions, shared by the channels."""

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.mix = nn.Linear(side * side, side * side)
        nn.init.zeros_(self.mix.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(self.norm(x).flatten(2)).reshape(x.shape)


class ContextEncoder(nn.Module):
    """(y, M) -> guess of the clean image, equal to y where it is known.

    Args:
        resolution: side of the images, a multiple of 8.
        channels: colour channels.
        widths: channels at 1/2, 1/4 and 1/8 of the resolution.

    Raises:
        ValueError: if the resolution is no multiple of 8.
    """

    def __init__(self, resolution: int, channels: int = 3, widths: tuple[int, int, int] = (32, 64, 76)) -> None:
        super().__init__()
        if resolution % 8:
            raise ValueError(f"resolution is {resolution}; expected a multiple of 8")
        a, b, c = widths
        self.in_conv = nn.Conv2d(4 * (channels + 1), a, 3, padding=1)
        self.fine = _Block(a)
        self.down1 = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.place1 = nn.Parameter(torch.zeros(b, resolution // 4, resolution // 4))
        self.middle = nn.Sequential(_Block(b), _Block(b))
        self.down2 = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.place2 = nn.Parameter(torch.zeros(c, resolution // 8, resolution // 8))
        side = resolution // 8
        self.coarse = nn.Sequential(_Mix(c, side), _Block(c), _Mix(c, side), _Block(c))
        self.up2 = nn.Conv2d(c, b, 1)
        self.middle_out = _Block(b)
        self.up1 = nn.Conv2d(b, a, 1)
        self.fine_out = nn.Sequential(_Block(a), _Block(a))
        self.out_conv = nn.Sequential(nn.GroupNorm(2, a), nn.SiLU(), nn.Conv2d(a, 4 * channels, 3, padding=1))

    def forward(self, y: Tensor, mask: Tensor) -> Tensor:
        """Guess the clean image.

        Args:
            y: observed images (B, C, H, W); what they hold in the hole is ignored.
            mask: (B, 1, H, W), 1 = known, 0 = hole.

        Returns:
            (B, C, H, W), equal to ``y`` where the mask is 1.
        """
        f = self.fine(self.in_conv(F.pixel_unshuffle(torch.cat([y * mask, mask], dim=1), 2)))
        m = self.middle(self.down1(f) + self.place1)
        h = self.coarse(self.down2(m) + self.place2)
        h = self.middle_out(m + F.interpolate(self.up2(h), scale_factor=2.0, mode="bilinear"))
        h = self.fine_out(f + F.interpolate(self.up1(h), scale_factor=2.0, mode="bilinear"))
        out = F.pixel_shuffle(self.out_conv(h), 2)
        return mask * y + (1 - mask) * out
