"""dataset.json: other types, depth, numbers of any size, NaN, double keys, missing names, texts of a megabyte."""

from __future__ import annotations

import json
import random
import zipfile

import torch

from aid_control.images.archive import read_labels
from aid_control.images.prepare import prepare

from .damage import damage
from .harness import Fuzzer
from .images import pictures

__all__ = ["Labels"]

NUMBERS = [
    "0", "1", "-1", "2147483647", "2147483648", "1e400", "-1e400", "NaN", "Infinity", "1.5", "1e38", "1e39",
    "9" * 400, "9" * 5000, "1" + "0" * 310, "1" + "0" * 30, "9223372036854775808", "-0", "true", "null", '"3"', "3.0",
]  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> str:
    """JSON text of anything."""
    kind = rng.randrange(8 if depth < 4 else 3)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind == 2:
        return json.dumps(rng.choice(["", "a.png", "b.png", "\0", "../a.png", "a\\b.png", "\ud800", "x" * 1000]))
    if kind < 6:
        return "[" + ", ".join(value(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 2, 3]))) + "]"
    keys = ["labels", "labels", "a.png", "", "names"]
    return "{" + ", ".join(f"{json.dumps(rng.choice(keys))}: {value(rng, depth + 1)}" for _ in range(2)) + "}"


class Labels(Fuzzer):
    """Tables of labels beside two pictures, in archives and folders, read alone and by the maker of data sets."""

    name = "dataset.json"
    share = 9.0

    def prepare(self) -> None:
        self.png = pictures()["rgb.png"]
        for way in ("folder", "zip", "prepare"):
            self.write(b'{"labels": [["a.png", 1], ["b.png", 2]]}', way)
            self.attempt(way)

    def write(self, data: bytes, way: str) -> None:
        if way == "zip":
            with zipfile.ZipFile(self.inputs / "set.zip", "w") as archive:
                for name in ("a.png", "b.png"):
                    archive.writestr(zipfile.ZipInfo(name), self.png)
                archive.writestr(zipfile.ZipInfo("dataset.json"), data, 8)
            return
        for name in ("a.png", "b.png"):
            (self.inputs / name).write_bytes(self.png)
        (self.inputs / "dataset.json").write_bytes(data)

    def data(self, rng: random.Random) -> bytes:
        """Bytes of a table."""
        kind = rng.randrange(12) if rng.random() < 0.998 else 12
        a, b = (rng.choice(NUMBERS) for _ in range(2))
        if kind == 0:
            rows = f'["a.png", {rng.randrange(9)}], ["b.png", {rng.randrange(9)}]'
        elif kind == 1:
            rows = f'["a.png", [{a}, 1]], ["b.png", [2, {b}]]'
        elif kind == 2:
            rows = f'["a.png", {a}], ["b.png", {b}]'
        elif kind == 3:
            rows = f"[{value(rng)}, {value(rng)}], {value(rng)}"
        elif kind == 4:
            return value(rng).encode("utf-8", "surrogatepass")
        elif kind == 5:
            depth = rng.choice([10, 500, 5_000, 50_000])
            mark = rng.choice(["[]", "{}"])
            text = '{"labels":' * depth if mark == "{}" else "[" * depth
            return (text + "1" + mark[1] * depth).encode()
        elif kind == 6:
            long = "x" * rng.choice([1_000, 100_000] if rng.random() < 0.9 else [1_000_000])
            rows = f'["{long}", 1], ["a.png", 1], ["b.png", 2]'
        elif kind == 7:
            names = rng.sample(["a.png", "b.png", "c.png", "A.PNG", "./a.png"], 3)
            rows = ", ".join(f'["{name}", 1]' for name in names)
        elif kind == 8:
            return b'{"labels": [["a.png", 1], ["b.png", 2]], "labels": ' + value(rng).encode("utf-8", "ignore") + b"}"
        elif kind == 9:
            rows = ", ".join(['["a.png", 1]'] * rng.choice([10, 2_000])) + ', ["b.png", 2]'
        elif kind == 10:
            rows = f'["a.png", [{", ".join(["1"] * rng.choice([5, 5_000]))}]], ["b.png", [1]]'
        elif kind == 12:  # millions of objects in little space
            piece = rng.choice([b"[],", b"{},", b'"a1",', b"1.5,", b"[[]],"])
            return b"[" + piece * ((1 << rng.choice([24, 26])) // len(piece)) + b"1]"
        else:
            rows = '["a.png", 1], ["b.png", 2]'
            return damage(f'{{"labels": [{rows}]}}'.encode(rng.choice(["utf-8", "utf-16", "utf-8-sig", "utf-32"])), rng)
        return f'{{"labels": [{rows}]}}'.encode("utf-8", "surrogatepass")

    def make(self, rng: random.Random) -> str:
        way = rng.choice(["folder", "zip", "prepare"])
        self.write(self.data(rng), way)
        return way

    def attempt(self, made: str) -> None:
        path = self.inputs / "set.zip" if made == "zip" else self.inputs
        if made == "prepare":
            prepare(path, self.out / "set.zip", 8, crop="center")
            path = self.out / "set.zip"
        found = read_labels(path)
        assert found is None or (len(found) == 2 and found.dtype in (torch.int64, torch.float32))
        assert found is None or bool(torch.isfinite(found.double()).all())
