"""The grid of measurements, cut into shards that are known by a digest of all that determines them.

A shard is a method, a number of steps, a mask, a chunk of images and a draw.  Its file is called after a hash of the
method with all its options, defaults included, the source of its module, the weights of its networks, the very images,
masks, labels and seeds, the feature networks that measure it, and the versions of this package and of torch.  Whatever
changes one of these changes the name: a file that is there is the result, and a restart takes it.

The list is ordered by method, and process i of n takes every n-th shard from the i-th: all get their share of every
method, without talking to each other.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import __version__
from ..methods.registry import METHODS
from .inputs import Inputs
from .settings import Settings

__all__ = ["ORIGINALS", "Shard", "file_hash", "lay_out", "own_options", "tensor_hash"]

FORMAT = 1  # of the files; a change makes all results new
ORIGINALS = "originals"  # in the place of a method: features of the images themselves


@dataclass(frozen=True)
class Shard:
    """One unit of work.

    Attributes:
        method: name.
        steps: noise levels.
        mask: kind, or a file.
        start: first image.
        stop: one behind the last.
        draw: 0 = the comparison, 1, 2, ... = further seeds of the same images, for diversity.
        pictures: how many of the shard's first results are kept as pictures.
        digest: of all that determines the result.
    """

    method: str
    steps: int
    mask: str
    start: int
    stop: int
    draw: int
    pictures: int
    digest: str

    @property
    def rows(self) -> range:
        """The images."""
        return range(self.start, self.stop)

    @property
    def file(self) -> str:
        """Name of the file of results."""
        mask = re.sub(r"[^\w-]", "_", Path(self.mask).stem)
        draw = f"-draw{self.draw}" if self.draw else ""
        return f"{self.method}-{self.steps}-{mask}-{self.start:06d}{draw}-{self.digest}.safetensors"


def tensor_hash(tensor: Tensor | None) -> str:
    """SHA-256 of a tensor's precision, shape and bytes.

    Args:
        tensor: of any shape; ``None`` has the hash ``""``.
    """
    if tensor is None:
        return ""
    data = tensor.detach().cpu().contiguous()
    return hashlib.sha256(f"{data.dtype}{tuple(data.shape)}".encode() + data.numpy().tobytes()).hexdigest()


def file_hash(path: str | None) -> str:
    """SHA-256 of a file's bytes.

    Args:
        path: of the file; ``None`` has the hash ``""``.
    """
    if path is None:
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def own_options(method: str, settings: Settings) -> dict[str, Any]:
    """The options a method is called with: those given, and the solver where it has one.

    Args:
        method: name.
        settings: options of the benchmark.
    """
    given = dict(settings.options.get(method, {}))
    if "solver" in METHODS[method].defaults:
        given.setdefault("solver", settings.solver)
    return given


def lay_out(
    settings: Settings,
    inputs: Inputs,
    methods: Sequence[str],
    networks: dict[str, str],
    measures: dict[str, str],
) -> list[Shard]:
    """All shards, in the order of the table.

    Args:
        settings: options.
        inputs: images, masks and seeds; every image is read here, so that a bad one is refused before the work.
        methods: names.
        networks: fingerprint of the backbone (key ``""``), and of the module of each method that has one.
        measures: hashes of the feature networks by name.

    Raises:
        InputError: for images or masks that do not fit.
    """
    common: dict[str, Any] = {
        "format": FORMAT, "aid_control": __version__, "torch": torch.__version__, "backbone": networks[""],
        "batch": None if settings.one_by_one else settings.batch,
        "device": settings.device.split(":")[0], "threads": settings.threads, **measures,
    }  # fmt: skip
    few = min(inputs.n, settings.diversity_images)
    # draw 0 is the comparison over all images; further draws are for diversity, on the first few
    draws = [(0, _pieces(settings, inputs, inputs.n))]
    draws += [(draw, _pieces(settings, inputs, few)) for draw in range(1, 1 + settings.diversity_seeds)]
    shards = []
    if settings.inception is not None:
        for rows, hashes in draws[0][1]:
            facts = {"format": FORMAT, "images": hashes[""], "inception": measures["inception"]}
            shards.append(Shard(ORIGINALS, 0, "", rows.start, rows.stop, 0, 0, _digest(facts)))
    for method in methods:
        about = {
            **common, "method": method, "options": {**METHODS[method].defaults, **own_options(method, settings)},
            "source": file_hash(inspect.getsourcefile(METHODS[method].function)), "module": networks.get(method, ""),
        }  # fmt: skip
        for steps, (draw, pieces), mask in product(settings.steps_of(method), draws, settings.masks):
            for rows, hashes in pieces:
                kept = max(0, min(rows.stop, _kept(settings)) - rows.start)
                facts = {
                    **about, "steps": steps, "images": hashes[""], "masks": hashes[mask], "kept": kept,
                    "labels": tensor_hash(inputs.labels(rows)), "seeds": inputs.seeds(rows, draw),
                }  # fmt: skip
                shards.append(Shard(method, steps, mask, rows.start, rows.stop, draw, kept, _digest(facts)))
    return shards


def _pieces(settings: Settings, inputs: Inputs, n: int) -> list[tuple[range, dict[str, str]]]:
    """The first n images in chunks: their rows, and hashes of images (key ``""``) and of every kind of masks."""
    pieces = []
    for rows in (range(i, min(i + settings.chunk, n)) for i in range(0, n, settings.chunk)):
        images = inputs.images(rows)
        hashes = {"": tensor_hash(images)}
        for mask in settings.masks:
            inputs.check(images, mask, rows)
            hashes[mask] = tensor_hash(inputs.masks(mask, rows))
        pieces.append((rows, hashes))
    return pieces


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _kept(settings: Settings) -> int:
    """How many images leave pictures: those shown, and those whose draws are compared."""
    return max(settings.pictures, settings.diversity_images if settings.diversity_seeds else 0)
