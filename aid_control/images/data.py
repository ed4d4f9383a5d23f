"""Images in and out: an EDM-layout zip, a folder, or one file; float images are (C, H, W) in [-1, 1].

``uint8 = round(127.5 x + 127.5)`` clipped to [0, 255], as in EDM.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checkpoint import atomic_write
from ..errors import InputError
from ..noise import generator
from .archive import EXTENSIONS, is_file, is_folder, open_zip, read_file, read_member

__all__ = ["ImageSource", "batch_indices", "read_image", "to_float", "to_uint8", "write_png"]

MAX_PIXELS = 1 << 26  # 8192 x 8192, the largest side of a data set: half a gigabyte while it is decoded
FORMATS = ("PNG", "JPEG", "BMP", "WEBP")  # by content; of others Pillow's readers run programs (EPS) or are less tested
STRIP = 1 << 20  # pixels converted at once


def to_float(image: Tensor) -> Tensor:
    """uint8 [0, 255] of any shape -> float32 [-1, 1] of the same."""
    return image.float() / 127.5 - 1


def to_uint8(image: Tensor) -> Tensor:
    """float [-1, 1] of any shape -> uint8 [0, 255] of the same, clipped."""
    return (image * 127.5 + 127.5).round().clip(0, 255).to(torch.uint8)


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{name}: {width}x{height} pixels; expected at most {MAX_PIXELS} in all")


def _webp_size(data: bytes) -> tuple[int, int]:
    """Width and height in the header of a WebP file, (0, 0) for another; by its container format and RFC 6386."""
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return 0, 0


def _decode(data: bytes, name: str, mode: str = "RGB") -> Tensor:
    """uint8 (C, H, W) of a file's bytes; ``InputError`` before any pixel is decoded where there are too many."""
    if data[:4] == b"RIFF":  # Pillow's reader of WebP claims memory for the whole canvas when it opens a file
        _check_size(*_webp_size(data), name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files, whose pixels can be read
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                _check_size(image.width, image.height, name)
                image.load()
                return _pixels(image, mode)
    except InputError:
        raise
    except Exception as error:  # on damaged bytes Pillow's readers raise whatever Python raises
        raise InputError(f"{name}: not a readable image ({error}); expected a PNG or JPEG file") from error


def _pixels(image: Image.Image, mode: str) -> Tensor:
    """Converted strip by strip: a copy of the whole picture in another mode is five bytes a pixel and more."""
    out = np.empty((3 if mode == "RGB" else 1, image.height, image.width), dtype=np.uint8)
    rows = max(STRIP // image.width, 1)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))) if rows < image.height else image
        array = np.asarray(strip.convert(mode))
        out[:, top : top + rows] = array.transpose(2, 0, 1) if array.ndim == 3 else array
    return torch.from_numpy(out)


def read_image(path: str | os.PathLike[str], mode: str = "RGB") -> Tensor:
    """One image file as uint8 (C, H, W).

    Args:
        path: the file.
        mode: ``"RGB"`` or ``"L"`` (one channel).

    Raises:
        InputError: if the file is missing, too large, or not an image.
    """
    if not is_file(path):
        raise InputError(f"{path}: no such file; expected an image")
    return _decode(read_file(path), str(path), mode)


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
        if is_folder(path):
            found = sorted(p for p in self.path.rglob("*") if p.suffix.lower() in EXTENSIONS)
            self.names = [str(p.relative_to(self.path)) for p in found]
            self._read = lambda name: read_file(self.path / name)
        elif self.path.suffix.lower() == ".zip" and is_file(path):
            archive = open_zip(self.path)
            self.names = sorted(n for n in archive.namelist() if Path(n).suffix.lower() in EXTENSIONS)
            self._read = lambda name: read_member(archive, name)
        elif is_file(path):
            self.names = [self.path.name]
            self._read = lambda name: read_file(self.path)
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
        data = self._read(self.names[index])
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
