r"""A small codec of our own, for tests and demonstrations: eight by eight pixels become four numbers.

An autoencoder with encoder $e$ and decoder $G$, trained on $d$-dimensional pictures by

$$
\min\; E\,\big|G(z + s\,\epsilon) - x\big|^2 / d + w\, E|z|^2 / d_z, \qquad z = e(x),\; \epsilon \sim N(0, I).
$$

The noise makes the decoder forgive small errors of a sampler, the penalty keeps $z$ from growing away from the noise.
The moments are $(e(x), s)$; after training, the mean and deviation of its latents over the data become the codec's
constants, so that the final latents have mean 0 and deviation 1/2, as in EDM2.  Training is a pure function of its
arguments.  It blurs: a factor of 48 in numbers is what the Stability VAE has too, with a thousand times its weights.
"""

from __future__ import annotations

import json
import os

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...checkpoint import load_tensors, save_tensors
from ...errors import InputError
from ...noise import generator
from ..data import batch_indices, to_float
from ..described import build_described, read_arguments
from .codec import Codec

__all__ = ["TinyCodec", "fit_codec", "load_codec", "save_codec"]

KEY = 0x71C0
KIND = "aid-tiny-codec"
NOISE = 0.1  # s, in units of raw latents, whose size the penalty keeps near 1
PENALTY = 1e-3


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.GroupNorm(4, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class TinyCodec(Codec):
    """The autoencoder; fresh ones are made by `fit_codec`.

    Args:
        width: channels at a quarter of the resolution; twice that at an eighth; a multiple of 4.
        channels: of the latents.
        raw_mean: their mean over the data; default 0.
        raw_std: their deviation; default 1.

    Raises:
        ValueError: for constants that `Codec.calibrate` refuses.
    """

    def __init__(
        self,
        width: int = 32,
        channels: int = 4,
        raw_mean: list[float] | None = None,
        raw_std: list[float] | None = None,
    ) -> None:
        super().__init__(raw_mean or [0.0] * channels, raw_std or [1.0] * channels, batch=32)
        self.width = width
        # Four by four pixels are one position from the start: convolutions at full resolution cost too much here.
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, width, 3, padding=1), _Block(width),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1), _Block(2 * width),
            nn.GroupNorm(4, 2 * width), nn.SiLU(), nn.Conv2d(2 * width, channels, 3, padding=1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, 2 * width, 3, padding=1), _Block(2 * width), _Block(2 * width),
            nn.Upsample(scale_factor=2.0), nn.Conv2d(2 * width, width, 3, padding=1), _Block(width), _Block(width),
            nn.GroupNorm(4, width), nn.SiLU(), nn.Conv2d(width, 48, 3, padding=1), nn.PixelShuffle(4),
        )  # fmt: skip

    def raw_moments(self, images: Tensor) -> Tensor:
        mean = self.encoder(images)
        return torch.cat([mean, torch.full_like(mean, NOISE)], dim=1)

    def raw_decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)


def fit_codec(
    images: Tensor,
    iterations: int = 1500,
    batch: int = 16,
    lr: float = 2e-3,
    width: int = 32,
    channels: int = 4,
    seed: int = 0,
    progress: bool = False,
) -> TinyCodec:
    """Train a codec (on the CPU).

    Args:
        images: uint8 (N, 3, H, W), H and W multiples of 8.
        iterations: optimisation steps.
        batch: pictures a step.
        lr: peak learning rate; it rises over the first twentieth and falls linearly to 0.
        width: of the network.
        channels: of the latents.
        seed: of the weights, the order and the noise.
        progress: show a bar.

    Returns:
        The codec in evaluation mode, without gradients.

    Raises:
        InputError: for images of another kind, or if training diverged.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3 or not len(images):
        raise InputError(f"images are {images.dtype} of shape {tuple(images.shape)}; expected uint8 (N, 3, H, W)")
    if images.shape[2] % 8 or images.shape[3] % 8 or iterations < 1 or batch < 1:
        raise InputError(
            f"images of {images.shape[3]}x{images.shape[2]} pixels, {iterations} iterations of {batch}; "
            "expected multiples of 8, and at least 1"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # initial weights; the caller's random state is put back
        codec = TinyCodec(width, channels)
    optimizer = torch.optim.Adam(codec.parameters(), lr=lr, betas=(0.9, 0.99))
    warm = max(iterations // 20, 1)
    for k in tqdm(range(iterations), desc="codec", unit="step", disable=not progress):
        rate = lr * min((k + 1) / warm, (iterations - k) / max(iterations - warm, 1))
        optimizer.param_groups[0]["lr"] = rate
        x = to_float(images[batch_indices(len(images), batch, k, seed)])
        z = codec.encoder(x)
        noisy = z + NOISE * torch.randn(z.shape, generator=generator(seed, KEY, k))
        loss = (codec.decoder(noisy) - x).square().mean() + PENALTY * z.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(codec.parameters(), 1.0)
        optimizer.step()
    if not torch.isfinite(loss):
        raise InputError(f"training the codec diverged at learning rate {lr}; expected a smaller one")
    _measure(codec, images)
    return codec.eval().requires_grad_(False)


def _measure(codec: TinyCodec, images: Tensor, most: int = 2048) -> None:
    """Make the mean and deviation of its latents over (the first) pictures the codec's constants."""
    mean, std = codec.moments(to_float(images[:most])).chunk(2, dim=1)
    spread = (mean.var((0, 2, 3), correction=0) + std.square().mean((0, 2, 3))).sqrt()
    codec.calibrate(mean.mean((0, 2, 3)).tolist(), spread.tolist())


def save_codec(path: str | os.PathLike[str], codec: TinyCodec) -> None:
    """Write a codec atomically, constants included.

    Args:
        path: target.
        codec: as `fit_codec` makes it.
    """
    std = (codec.final_std / codec.scale.double()).tolist()
    mean = (-codec.bias.double() / codec.scale.double()).tolist()
    config = {"width": codec.width, "channels": codec.channels, "raw_mean": mean, "raw_std": std}
    save_tensors(path, codec.state_dict(), {"kind": KIND, "config": json.dumps(config)})


def load_codec(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> TinyCodec:
    """Read what `save_codec` wrote.

    Args:
        path: the file.
        device: where to put it.

    Returns:
        The codec in evaluation mode, without gradients.

    Raises:
        InputError: if the file is missing, truncated, or holds no codec.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != KIND:
        raise InputError(f"{path}: not a codec; expected a file written by save_codec")
    try:
        codec = build_described(TinyCodec, read_arguments(metadata["config"]), tensors)
        codec.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: weights do not fit the codec they describe ({reason})") from error
    return codec.eval().requires_grad_(False).to(device)
