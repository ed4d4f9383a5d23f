"""Fit a mixture of factor analysers, an exact backbone: ``python examples/fit_mixture.py data=faces.zip``.

Writes ``out``, a file that ``load_backbone`` reads (``components=1`` gives a Gaussian), and beside it a picture:
the components' means, largest weight first, then exact samples.  With ``validation=`` it stops by the held-out
likelihood and prints held-out numbers of the written file.  See ``conf/fit_mixture.yaml`` for the options.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aid_control.errors import InputError
from aid_control.images import load_backbone
from aid_control.images.backbones.em import EMSettings, fit_mixture
from aid_control.images.backbones.mixture import MixtureBackbone, held_out
from aid_control.images.backbones.registry import save_exact
from aid_control.images.data import ImageSource, to_float, to_uint8, write_png
from aid_control.images.masks import make_mask
from aid_control.images.metrics import psnr, summary
from aid_control.program import program

COLUMNS = 8
SETTINGS = ("components", "rank", "iterations", "refresh", "floor", "mirror", "init", "batch", "patience", "seed")


def tiles(images: Tensor) -> Tensor:
    """uint8 (C, rows H, 8 W) of float images (N, C, H, W), the last row filled up with grey."""
    n, c, h, w = images.shape
    rows = math.ceil(n / COLUMNS)
    full = torch.cat([images, images.new_zeros(rows * COLUMNS - n, c, h, w)])
    grid = full.reshape(rows, COLUMNS, c, h, w).permute(2, 0, 3, 1, 4)
    return to_uint8(grid.reshape(c, rows * h, COLUMNS * w))


def picture(net: MixtureBackbone, seed: int) -> Tensor:
    """Means over samples, with a grey line between."""
    order = net.log_weights.argsort(descending=True)
    means = tiles(net.mean[order].reshape(-1, *net.shape))
    samples = tiles(net.sample(range(seed, seed + 3 * COLUMNS)))
    return torch.cat([means, torch.full_like(means[:, :4], 128), samples], 1)


def main(cfg: Any) -> None:
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    out = Path(cfg.out)
    if out.suffix != ".safetensors":
        raise InputError(f"out is {cfg.out}; expected a file ending in .safetensors")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        (out.parent / f".{out.name}.touch").touch()
        (out.parent / f".{out.name}.touch").unlink()
    except OSError as error:
        raise InputError(f"{out.parent}: cannot be written ({error.strerror}); expected a writable folder") from error
    if cfg.channels not in (1, 3):
        raise InputError(f"channels is {cfg.channels}; expected 3 or 1")
    if cfg.validation_n is not None and cfg.validation_n < 1:
        raise InputError(f"validation_n is {cfg.validation_n}; expected at least 1")
    settings = EMSettings(**{name: cfg[name] for name in SETTINGS})
    images = ImageSource(cfg.data, cfg.resolution, cfg.channels).stack()
    test = None
    if cfg.validation:
        source = ImageSource(cfg.validation, images.shape[-1], cfg.channels)
        test = source.stack(range(min(len(source), cfg.validation_n or len(source))))
    start = time.monotonic()
    fit = fit_mixture(images, settings, test)
    seconds = time.monotonic() - start
    save_exact(out, fit.net)
    net = load_backbone(out)  # with the rounding of the file
    assert isinstance(net, MixtureBackbone)
    write_png(out.with_suffix(".png"), picture(net, cfg.seed))

    for row in fit.history:
        words = [f"after {row['iteration']:3d} steps"]
        words += [f"train {row['train']:.4f} nats/dim"] if "train" in row else []
        words += [f"held out {row['held_out']['nats_per_dim']:.4f} nats/dim"] if "held_out" in row else []
        print("  ".join(words))
    print(
        f"{out}: {net.components} components of rank {net.rank}, {out.stat().st_size / 1e6:.1f} MB, "
        f"{fit.best} steps, {seconds:.0f} s; picture {out.with_suffix('.png')}"
    )
    if test is not None:
        found = held_out(net, test, cfg.seed)
        print(
            f"held out ({len(test)} images): {found['nats_per_dim']:.4f} nats/dim, "
            f"{found['bits_per_dim']:.4f} ± {found['ci95']:.4f} bits/dim"
        )
        x = to_float(test[:64])
        if x.shape[2] == x.shape[3] >= 8:
            mask = make_mask("box", x.shape[-1], 0).expand(len(x), 1, *x.shape[2:])
            score = summary(psnr(net.posterior_mean(x, mask), x, 1 - mask))
            print(
                f"posterior mean, centre box, {len(x)} images: hole PSNR {score['mean']:.2f} ± {score['ci95']:.2f} dB"
            )


if __name__ == "__main__":
    program("conf/fit_mixture", main)
