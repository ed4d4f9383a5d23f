"""Images in and out: an EDM-layout zip, a folder, or one file; float images are (C, H, W) in [-1, 1].

``uint8 = round(127.5 x + 127.5)`` clipped to [0, 255], as in EDM.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..checkpoint import atomic_write
from ..errors import InputError
from ..noise import generator
from .archive import EXTENSIONS, READ_ERRORS, open_zip

__all__ = ["ImageSource", "batch_indices", "read_image", "to_float", "to_uint8", "write_png"]

MAX_PIXELS = 1 << 26


def to_float(image: Tensor) -> Tensor:
    """uint8 [0, 255] of any shape -> float32 [-1, 1] of the same."""
    return image.float() / 127.5 - 1


def to_uint8(image: Tensor) -> Tensor:
    """float [-1, 1] of any shape -> uint8 [0, 255] of the same, clipped."""
    return (image * 127.5 + 127.5).round().clip(0, 255).to(torch.uint8)


def _decode(data: bytes, name: str, mode: str = "RGB") -> Tensor:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{name}: {image.width}x{image.height} pixels; expected at most {MAX_PIXELS} in all")
            array = np.array(image.convert(mode))
    except InputError:
        raise
    except (UnidentifiedImageError, ValueError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{name}: not a readable image ({error}); expected a PNG or JPEG file") from error
    return torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1).contiguous()


def read_image(path: str | os.PathLike[str], mode: str = "RGB") -> Tensor:
    """One image file as uint8 (C, H, W).

    Args:
        path: the file.
        mode: ``"RGB"`` or ``"L"`` (one channel).

    Raises:
        InputError: if the file is missing or not an image.
    """
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file; expected an image")
    return _decode(Path(path).read_bytes(), str(path), mode)


def write_png(path: str | os.PathLike[str], image: Tensor) -> None:
    """Write an image atomically; one channel is written as grey.

    Args:
        path: target.
        image: uint8 (1, H, W) or (3, H, W), on the CPU.
    """
    array = image.permute(1, 2, 0).squeeze(-1).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    atomic_write(path, buffer.getvalue())


class ImageSource:
    """Images of one size from a zip archive (EDM layout), a folder, or a single file, sorted by name.

    ``source[i]`` is one of them, square, uint8 (C, H, H); it raises ``InputError`` for another size.

    Args:
        path: archive, folder or file.
        resolution: expected side in pixels; ``None`` takes what comes.
        channels: 3 or 1; what is stored is converted.

    Attributes:
        names: of the images.

    Raises:
        InputError: if nothing is there, or it holds no image.
    """

    def __init__(self, path: str | os.PathLike[str], resolution: int | None = None, channels: int = 3) -> None:
        self.path, self.resolution, self.channels = Path(path), resolution, channels
        self._read: Callable[[str], bytes]
        if self.path.is_dir():
            found = sorted(p for p in self.path.rglob("*") if p.suffix.lower() in EXTENSIONS)
            self.names = [str(p.relative_to(self.path)) for p in found]
            self._read = lambda name: (self.path / name).read_bytes()
        elif self.path.suffix.lower() == ".zip" and self.path.is_file():
            archive = open_zip(self.path)
            self.names = sorted(n for n in archive.namelist() if Path(n).suffix.lower() in EXTENSIONS)
            self._read = archive.read
        elif self.path.is_file():
            self.names = [self.path.name]
            self._read = lambda name: self.path.read_bytes()
        else:
            raise InputError(f"{path}: no such file or folder; expected a zip, a folder or an image")
        if not self.names:
            raise InputError(f"{path}: holds no image; expected files ending in {', '.join(EXTENSIONS)}")

    def __len__(self) -> int:
        return len(self.names)

    def label(self, index: int) -> str:
        """What to call an image in a message.

        Args:
            index: its place among the names.
        """
        name = self.names[index]
        return str(self.path) if self.path.name == name else f"{self.path}:{name}"

    def picture(self, index: int) -> Tensor:
        """One image of whatever size.

        Args:
            index: its place among the names.

        Returns:
            uint8 (C, H, W).

        Raises:
            InputError: if it cannot be read, or has too many pixels.
        """
        try:
            data = self._read(self.names[index])
        except READ_ERRORS as error:
            raise InputError(f"{self.label(index)}: cannot be read ({error})") from error
        return _decode(data, self.label(index), "RGB" if self.channels == 3 else "L")

    def __getitem__(self, index: int) -> Tensor:
        image = self.picture(index)
        side = self.resolution or image.shape[-1]
        if image.shape[1:] != (side, side):
            size = f"{image.shape[2]}x{image.shape[1]}"
            raise InputError(f"{self.label(index)}: is {size} pixels; expected {side}x{side}")
        return image

    def stack(self, indices: Sequence[int] | None = None) -> Tensor:
        """Chosen images as one tensor.

        Args:
            indices: N places among the names; ``None`` = all.

        Returns:
            uint8 (N, C, H, H).

        Raises:
            InputError: for an image that cannot be read, is not square, or has another side than ``resolution``.
        """
        return torch.stack([self[i] for i in (range(len(self)) if indices is None else indices)])


def batch_indices(n: int, batch: int, iteration: int, seed: int) -> Tensor:
    """The data indices of one iteration: successive pieces of reshuffled epochs, a pure function.

    Args:
        n: size of the data set.
        batch: indices wanted.
        iteration: which batch, from 0.
        seed: of the shuffling.

    Returns:
        (batch,) int64.
    """
    out: list[Tensor] = []
    for position in range(iteration * batch, (iteration + 1) * batch):
        epoch, place = divmod(position, n)
        if not out or place == 0:
            order = torch.randperm(n, generator=generator(seed, 0x0DA7A, epoch))
        out.append(order[place])
    return torch.stack(out)
