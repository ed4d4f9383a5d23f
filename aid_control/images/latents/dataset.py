"""Data sets of latents: the moments of encoded pictures, in EDM2's layout.

A zip archive holds, for C channels of h x w cells,

    00000/img-mean-std-00000000.npy    float32 (2C, h, w): C raw means, then C raw standard deviations
    dataset.json                       labels, as for pictures (`archive`)

Every look at a picture can take another draw; the scale of final latents is the codec's business
(`codec.Codec.draw`, which needs no VAE).  Arrays are read without unpickling.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ...errors import InputError
from ..archive import DatasetWriter, Label, open_zip, read_labels, read_member
from ..data import ImageSource, to_float
from .codec import Codec

__all__ = ["LatentSource", "encode_dataset", "write_latents"]

PATTERN = "img-mean-std-{:08d}.npy"
MAX_BYTES = 1 << 26


def _check(array: np.ndarray, name: str, shape: tuple[int, ...] | None) -> None:
    if array.dtype.kind != "f" or array.ndim != 3 or array.shape[0] % 2 or not array.size:
        raise InputError(f"{name}: {array.dtype} of shape {array.shape}; expected floats (2C, h, w)")
    if shape is not None and array.shape != shape:
        raise InputError(f"{name}: shape {array.shape}; expected {shape} like the others")
    if not np.isfinite(array).all() or (array[len(array) // 2 :] < 0).any():
        raise InputError(f"{name}: holds NaN, infinity or a negative deviation; expected means and deviations")


def write_latents(
    path: str | os.PathLike[str], moments: Iterable[Tensor], labels: Sequence[Label] | None = None
) -> int:
    """Write moments, one picture after another, atomically.

    Args:
        path: the archive, ending in ``.zip``.
        moments: each (2C, h, w), all of one shape.
        labels: one a picture.

    Returns:
        How many were written.

    Raises:
        InputError: for moments that are none, too few labels, or a file that exists or cannot be written.
    """
    shape: tuple[int, ...] | None = None
    with DatasetWriter(path, PATTERN) as writer:
        for i, one in enumerate(moments):
            array = one.detach().cpu().float().numpy()
            _check(array, f"moments {i}", shape)
            if labels is not None and i >= len(labels):
                raise InputError(f"{len(labels)} labels, but more latents; expected one a picture")
            shape = array.shape
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            writer.add(buffer.getvalue(), None if labels is None else labels[i])
    if labels is not None and len(labels) != len(writer.names):
        # the file is there already: take it back
        writer.path.unlink()
        raise InputError(f"{len(labels)} labels for {len(writer.names)} latents; expected one a picture")
    return len(writer.names)


def encode_dataset(
    source: ImageSource, codec: Codec, path: str | os.PathLike[str], batch: int = 8, progress: bool = False
) -> int:
    """Encode a data set of pictures; labels go along.

    Args:
        source: the pictures.
        codec: the encoder.
        path: the archive to write.
        batch: pictures encoded at a time.
        progress: show a bar.

    Returns:
        How many were written.

    Raises:
        InputError: for pictures or labels that cannot be read, pictures that do not fit the codec, or a file that
            exists or cannot be written.
    """
    can_hold = source.path.is_dir() or source.path.suffix.lower() == ".zip"
    found = read_labels(source.path, source.names) if can_hold else None

    def encoded() -> Iterable[Tensor]:
        with tqdm(total=len(source), desc="encoding", unit="img", disable=not progress) as bar:
            for start in range(0, len(source), batch):
                images = to_float(source.stack(range(start, min(start + batch, len(source)))))
                yield from codec.moments(images.to(codec.scale.device))
                bar.update(len(images))

    return write_latents(path, encoded(), None if found is None else found.tolist())


class LatentSource:
    """Moments of encoded pictures from an archive, sorted by name: ``source[i]`` is (2C, h, w) float32.

    Args:
        path: the archive.
        channels: expected latent channels C; ``None`` takes what comes.

    Attributes:
        names: of the members.

    Raises:
        InputError: if there is no archive, or it holds no latents.
    """

    def __init__(self, path: str | os.PathLike[str], channels: int | None = None) -> None:
        self.path, self.channels = path, channels
        self._archive = open_zip(path)
        self.names = sorted(n for n in self._archive.namelist() if n.endswith(".npy"))
        if not self.names:
            raise InputError(f"{path}: holds no latents; expected members ending in .npy")
        self._shape: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Moments (2C, h, w), float32."""
        name = self.names[index]
        label = f"{self.path}:{name}"
        data = read_member(self._archive, name, MAX_BYTES)
        try:
            array = np.load(io.BytesIO(data), allow_pickle=False)
        except Exception as error:  # numpy's header is Python text: its parser raises whatever Python's parsers raise
            raise InputError(f"{label}: not a readable array ({error}); expected .npy of plain numbers") from error
        _check(array, label, self._shape)
        if self.channels is not None and len(array) != 2 * self.channels:
            raise InputError(f"{label}: {len(array)} channels; expected {2 * self.channels}, means and deviations")
        self._shape = array.shape
        return torch.from_numpy(array.astype(np.float32))

    def moments(self, indices: Sequence[int] | None = None) -> Tensor:
        """Moments of chosen pictures.

        Args:
            indices: N of them; ``None`` = all.

        Returns:
            (N, 2C, h, w) float32.

        Raises:
            InputError: for a damaged array, another shape than the others', or another number of channels.
        """
        return torch.stack([self[i] for i in (range(len(self)) if indices is None else indices)])

    def draw(self, codec: Codec, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Tensor:
        """Latents of chosen pictures.

        Args:
            codec: gives the scale.
            indices: N of them.
            seeds: one a picture; ``None`` takes the means.

        Returns:
            (N, C, h, w).

        Raises:
            InputError: as `moments` and `Codec.draw`.
        """
        return codec.draw(self.moments(indices), seeds)

    def labels(self) -> Tensor | None:
        """Classes (N,) int64, vectors (N, n) float32, or ``None`` without labels; errors as `archive.read_labels`."""
        return read_labels(self.path, self.names)
