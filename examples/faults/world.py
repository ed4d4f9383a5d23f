"""What the programs get to work on: generated pictures, and a U-Net of 32x32 pixels without training."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from aid_control.images.backbones.precond import EDMPrecond
from aid_control.images.backbones.registry import save_backbone

__all__ = ["NETWORK", "SIDE", "World"]

SIDE = 32
NETWORK = dict(
    img_resolution=SIDE, img_channels=3, model_channels=8, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[],
    dropout=0.0,
)  # fmt: skip


class World:
    """A folder with pictures, ``backbone.safetensors``, and a fresh folder for every run.

    Args:
        folder: what is there is removed.
        seed: of pictures, weights and moments of faults.
        many: pictures of the largest set.

    Attributes:
        pictures: folder of 24 pictures of 32x32.
        small: of 24 pictures of 16x16.
        many: of ``many`` pictures of 32x32.
        backbone: a file of weights.
        whole: results of undisturbed runs, by program.
    """

    def __init__(self, folder: str | Path, seed: int = 0, many: int = 1000) -> None:
        self.folder, self.seed = Path(folder).resolve(), seed
        self.whole: dict[str, dict[str, str]] = {}
        self._count = itertools.count()
        shutil.rmtree(self.folder, ignore_errors=True)
        (self.folder / "logs").mkdir(parents=True)
        self.backbone = self.folder / "backbone.safetensors"
        self.pictures, self.small, self.many = (self.folder / name for name in ("pictures", "small", "many"))
        rng = np.random.default_rng(seed)
        for folder, side, count in ((self.pictures, SIDE, 24), (self.small, SIDE // 2, 24), (self.many, SIDE, many)):
            folder.mkdir(parents=True)
            for k in range(count):
                coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
                coarse.resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{k:03d}.png")
        torch.manual_seed(seed)
        net = EDMPrecond(**NETWORK)
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.1)
        save_backbone(self.backbone, "EDMPrecond", NETWORK, net.state_dict())

    def number(self) -> int:
        """The next of 0, 1, 2, ..."""
        return next(self._count)

    def fresh(self, name: str) -> Path:
        """A path that no run has used; nothing is there.

        Args:
            name: what it is for.
        """
        return self.folder / "runs" / f"{name}-{self.number():03d}"

    def rng(self, name: str) -> np.random.Generator:
        """Random numbers of one kind of fault.

        Args:
            name: of the kind.
        """
        return np.random.default_rng([self.seed, *name.encode()])
