"""Archives of latents: arrays whose headers lie, of other kinds and shapes, with objects in them."""

from __future__ import annotations

import io
import random
import zipfile

import numpy as np
import torch

from aid_control.images.latents.dataset import LatentSource

from .damage import damage
from .harness import Fuzzer

__all__ = ["Latents"]

KINDS = ["<f4", "<f8", "<f2", ">f4", "<i4", "|u1", "|O", "|S5", "<U3", "<c8", "|V8", "<M8[s]", "f4,f4", "\0", "<f16"]
SHAPES = [
    "(8, 2, 2)", "(7, 2, 2)", "(8,)", "()", "(0, 2, 2)", "(8, -1, 2)", "(10**6, 10**6, 2)", "(8, 2, 2.5)", "None",
    "(1000000, 1000000, 2)",
]  # fmt: skip
WORDS = ["True", "False", "None", "1", "__import__('os').getpid()", "(" * 200, "9" * 5000, "[1] * 10**9"]


class Latents(Fuzzer):
    """Read one by one and all together."""

    name = "latents"
    share = 3.0

    def prepare(self) -> None:
        buffer = io.BytesIO()
        np.save(buffer, np.abs(np.random.default_rng(0).normal(size=(8, 2, 2))).astype(np.float32))
        self.whole = buffer.getvalue()
        self.write([self.whole])
        self.attempt(None)

    def write(self, arrays: list[bytes]) -> None:
        with zipfile.ZipFile(self.inputs / "set.zip", "w") as archive:
            for i, data in enumerate(arrays):
                archive.writestr(zipfile.ZipInfo(f"{i}.npy"), data)

    def array(self, rng: random.Random) -> bytes:
        """Bytes of an array."""
        way = rng.randrange(4)
        if way == 0:
            return self.whole
        if way == 1:
            return damage(self.whole, rng)
        content = self.whole[128:]
        if way == 2:
            values = np.frombuffer(content, np.float32).copy()
            values[rng.randrange(len(values))] = rng.choice([np.nan, np.inf, -np.inf, -1.0, 1e38, 0.0])
            return self.whole[:128] + values.tobytes()
        kind, order, shape = rng.choice(KINDS), rng.choice(WORDS), rng.choice(SHAPES)
        text = f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {shape}, }}"
        header = text.encode().ljust(117) + b"\n"
        version = rng.choice([1, 1, 2, 3, 9])
        length = len(header).to_bytes(2 if version == 1 else 4, "little")
        return b"\x93NUMPY" + bytes([version, 0]) + length + header + content

    def make(self, rng: random.Random) -> None:
        self.write([self.array(rng) for _ in range(rng.choice([1, 1, 2]))])

    def attempt(self, made: None) -> None:
        found = LatentSource(self.inputs / "set.zip").moments()
        assert found.dtype == torch.float32 and found.dim() == 4 and bool(torch.isfinite(found).all())
