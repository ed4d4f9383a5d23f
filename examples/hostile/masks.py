"""Mask files: grey edges, other sizes and modes, everything known, damaged."""

from __future__ import annotations

import io
import random

import numpy as np
import torch
from PIL import Image

from aid_control.images.masks import check_mask, mask_source, read_mask

from .damage import damage
from .harness import Fuzzer
from .images import path_names

__all__ = ["Masks"]

SIDE = 16
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"]


class Masks(Fuzzer):
    """Read and checked as programs do; what is accepted has zeros and ones and a hole."""

    name = "masks"
    share = 7.0

    def prepare(self) -> None:
        for mode in MODES:
            self.picture(np.zeros((SIDE, SIDE), np.uint8), mode, "png")
        (self.inputs / "mask.png").write_bytes(self.picture(np.eye(SIDE, dtype=np.uint8) * 255, "L", "png"))
        read_mask(self.inputs / "mask.png", SIDE)

    @staticmethod
    def picture(values: np.ndarray, mode: str, kind: str) -> bytes:
        """Bytes of a picture in some mode and format, as grey PNG where the format does not have the mode."""
        image, buffer = Image.fromarray(values), io.BytesIO()
        try:
            image = Image.fromarray(values.astype(np.uint16) * 257) if mode == "I;16" else image.convert(mode)
            image.save(buffer, format=kind)
        except (OSError, ValueError):
            buffer = io.BytesIO()
            Image.fromarray(values).save(buffer, format="png")
        return buffer.getvalue()

    def make(self, rng: random.Random) -> str:
        shape = (SIDE, SIDE) if rng.random() < 0.8 else (rng.choice([1, 8, 15, 16, 17]), rng.choice([1, 15, 16, 32]))
        white = rng.choice([1, 255, 255, 255, 128, 254])
        values = (np.frombuffer(rng.randbytes(shape[0] * shape[1]), np.uint8).reshape(shape) % 2) * np.uint8(white)
        kind = rng.random()
        if kind < 0.1:
            values = np.full(shape, rng.choice([0, white]), np.uint8)
        elif kind < 0.3:
            values = values.copy()
            values[rng.randrange(shape[0]), rng.randrange(shape[1])] = rng.randrange(256)
        elif kind < 0.4:
            values = (values // 2) + 64
        mode = rng.choice(MODES) if rng.random() < 0.5 else "L"
        data = self.picture(values.astype(np.uint8), mode, rng.choice(["png", "png", "bmp", "jpeg", "webp", "gif"]))
        if rng.random() < 0.35:
            data = damage(data, rng)
        if rng.random() < 0.02:
            return path_names(rng)
        name = rng.choice(["mask.png", "mask.PNG", "mask.jpg", "mask"])
        (self.inputs / name).write_bytes(data)
        return str(self.inputs / name)

    def attempt(self, made: str) -> None:
        mask = mask_source(made, SIDE)([0, 1])
        assert mask.shape == (2, 1, SIDE, SIDE) and mask.dtype == torch.float32
        assert bool(((mask == 0) | (mask == 1)).all())
        check_mask(mask, made)
        assert bool((mask == 0).any())
