"""What the methods are given: images, masks, seeds and class labels by index, and the backbone (with its guide).

Image i has the mask ``make_mask(kind, size, seed + i)`` and the noise of seed ``seed + i``, whatever the method: all
comparisons are paired.  Images are read a chunk at a time, so that data sets of any size fit into memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ...errors import InputError
from ..archive import read_labels
from ..backbones.precond import Denoiser
from ..backbones.registry import asset, load_backbone
from ..backbones.wrappers import Counted
from ..data import ImageSource, to_float
from ..guided import autoguidance, classifier_free
from ..inpaint import check_shape
from ..masks import mask_source
from ..methods.registry import Bound
from .settings import Settings

__all__ = ["DRAW", "Inputs", "Networks"]

DRAW = 1_000_003  # seeds of draw d begin at seed + d * DRAW: no two draws share one below a million images
MOST = 64  # images, unless n says so


class Networks:
    """The backbone that methods are given, and honest counts of what passes through its networks.

    A guided denoiser calls two networks; each call of either counts.

    Args:
        settings: options.
        device: where to put it.

    Attributes:
        main: the backbone itself.
        backbone: what methods are given: ``main``, or ``main`` with its guide.
        inner: the counted networks of a guided backbone; else empty, and `Bound` counts.

    Raises:
        InputError: for files that are no backbones, networks that do not fit, or guidance without classes.
    """

    def __init__(self, settings: Settings, device: torch.device | str) -> None:
        net = load_backbone(settings.backbone, device, settings.path, settings.sha256)
        self.main, self.backbone, self.inner = net, net, list[Counted]()
        interval = settings.interval or (0.0, math.inf)
        if settings.guide is not None:
            self.inner = [Counted(net), Counted(load_backbone(settings.guide, device))]
            self.backbone = autoguidance(self.inner[0], self.inner[1], settings.guide_weight, interval)
        elif settings.cfg is not None:
            self.inner = [Counted(net)]
            self.backbone = classifier_free(self.inner[0], settings.cfg, interval)

    def passes(self, bound: Bound) -> tuple[int, int]:
        """Images that passed forth, and back, through any network of a method so far.

        Args:
            bound: the method.
        """
        counted = [*self.inner, *bound.counted[1:]] if self.inner else bound.counted
        return sum(net.forward_calls for net in counted), sum(net.backward_calls for net in counted)


class Inputs:
    """Images and what belongs to them, by index.

    Args:
        settings: options.
        backbone: gives the size of images and the classes.

    Attributes:
        n: number of images.
        names: of the images.
        shape: (C, H, W) of an image.

    Raises:
        InputError: for data, masks or labels that are not there or do not fit.
    """

    def __init__(self, settings: Settings, backbone: Denoiser) -> None:
        self.settings, self.shape, self.classes = settings, tuple(backbone.shape), backbone.label_dim
        path = settings.image or settings.data or asset("faces")
        self.source = ImageSource(path, self.shape[-1], self.shape[0])
        self.n = min(len(self.source), MOST if settings.n is None else settings.n)
        self.names = [Path(name).stem for name in self.source.names[: self.n]]
        self.sources = {mask: mask_source(mask, self.shape[-1]) for mask in settings.masks}
        self._labels = self._read_labels(path)

    def images(self, rows: Sequence[int]) -> Tensor:
        """Clean images: N indices -> uint8 (N, C, H, W)."""
        return self.source.stack(rows)

    def masks(self, kind: str, rows: Sequence[int]) -> Tensor:
        """Masks of a kind (one of the settings' ``masks``): N indices -> (N, 1, H, W), 1 = known."""
        return self.sources[kind](self.seeds(rows))

    def seeds(self, rows: Sequence[int], draw: int = 0) -> list[int]:
        """Seeds of the noise: N indices -> N seeds; draw 0 is that of all comparisons and of the masks."""
        return [self.settings.seed + i + draw * DRAW for i in rows]

    def labels(self, rows: Sequence[int]) -> Tensor | None:
        """One-hot class labels: N indices -> (N, n), or ``None``."""
        return None if self._labels is None else self._labels[list(rows)]

    def check(self, images: Tensor, mask: str, rows: Sequence[int]) -> None:
        """Refuse clean images and masks that do not fit the backbone.

        Args:
            images: uint8 (N, C, H, W).
            mask: kind of their masks.
            rows: their N indices.

        Raises:
            InputError: for another size or number of channels, or a bad mask.
        """
        check_shape(self.shape, to_float(images), self.masks(mask, rows), str(self.source.path))

    def _read_labels(self, path: str | os.PathLike[str]) -> Tensor | None:
        wanted = self.settings.labels
        if wanted is None:
            if self.settings.cfg is not None:
                raise InputError("cfg is given without labels; expected labels=data or the number of a class")
            return None
        if not self.classes:
            raise InputError(f"labels is {wanted!r}, but the backbone knows no classes; expected labels=null")
        if isinstance(wanted, int):
            classes: Tensor | None = torch.full((self.n,), wanted)
        elif wanted == "data":
            holds = Path(path).is_dir() or Path(path).suffix.lower() == ".zip"
            names = [name.replace(os.sep, "/") for name in self.source.names[: self.n]]
            classes = read_labels(path, names) if holds else None
            if classes is None:
                raise InputError(f"{path}: holds no labels; expected a dataset.json, or labels=null")
        else:
            raise InputError(f"labels is {wanted!r}; expected null, data or the number of a class")
        assert classes is not None
        if classes.dtype != torch.int64:
            if classes.shape[1] != self.classes:
                raise InputError(f"labels of {classes.shape[1]} numbers; expected {self.classes}")
            return classes
        if int(classes.min()) < 0 or int(classes.max()) >= self.classes:
            raise InputError(f"labels up to {int(classes.max())}; expected 0 to {self.classes - 1}")
        return one_hot(classes, self.classes).float()
