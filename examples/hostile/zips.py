"""Archives: names that lead elsewhere, bombs, lying directories, wrong check sums, encryption, links, many members."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from typing import Any

import torch

from aid_control.images.archive import label_table, open_zip, read_labels, read_member
from aid_control.images.data import ImageSource
from aid_control.images.latents.dataset import LatentSource
from aid_control.images.prepare import prepare

from .damage import damage
from .harness import Fuzzer
from .images import pictures

__all__ = ["Zips"]

NAMES = [
    "../../escaped.png", "/tmp/escaped.png", "..\\..\\escaped.png", "C:\\escaped.png", "a\0b.png",
    "x" * 60_000 + ".png",
    "\x1b[2Jcleared.png", "new\nline.png", "\N{RIGHT-TO-LEFT OVERRIDE}gnp.png", ".png", "a/../../b.png", "con.png",
    "~/x.png", "$HOME/x.png", "dir.png/", "img.PNG", "é\N{SNOWMAN}.png", "//server/share/x.png", "a//b.png", "./c.png",
]  # fmt: skip
METHODS = [1, 6, 9, 12, 14, 93, 95, 97, 98, 99, 255]
LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"


def built(members: list[tuple[str, bytes, int]], mode: int = 0) -> bytes:
    """An archive of (name, data, method); names go in as they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data, method in members:
            info = zipfile.ZipInfo("placeholder")
            info.filename, info.compress_type, info.external_attr = name, method, mode << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def field(data: bytes, marker: bytes, offset: int, value: bytes, which: int = 0) -> bytes:
    """Overwrite a field of the which-th record that begins with a marker."""
    at = -1
    for _ in range(which + 1):
        found = data.find(marker, at + 1)
        at = found if found >= 0 else at
    return data if at < 0 else data[: at + offset] + value + data[at + offset + len(value) :]


class Zips(Fuzzer):
    """Each archive goes through a reader: pictures, labels, single members, latents, the maker of data sets."""

    name = "zip"
    share = 10.0

    def prepare(self) -> None:
        self.png = pictures()["rgb.png"]
        table = b'{"labels": [["00000/a.png", 1], ["00000/b.png", 2]]}'
        self.members = [("00000/a.png", self.png, 0), ("00000/b.png", self.png, 8), ("dataset.json", table, 8)]
        # a megabyte, and a gigabyte in a thousandth of its size: the ratio is what deflate can do
        self.small, self.large = zlib.compress(bytes(1 << 20), 9), None
        (self.inputs / "set.zip").write_bytes(built(self.members))
        for way in ("pictures", "labels", "prepare", "members"):
            self.attempt(way)

    def bomb(self, size: int, claimed: int | None = None) -> bytes:
        """An archive with a member of so many zero bytes; it may claim another number."""
        if size > 1 << 24:
            if self.large is None:
                packer = zlib.compressobj(9, zlib.DEFLATED, -15)
                piece = bytes(1 << 20)
                self.large = b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()
            raw = self.large
        else:
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            raw = packer.compress(bytes(size)) + packer.flush()
        name, claim = b"00000/a.png", size if claimed is None else claimed
        numbers = struct.pack("<III", zlib.crc32(b""), len(raw), claim & 0xFFFFFFFF)
        local = LOCAL + struct.pack("<HHHHH", 20, 0, 8, 0, 33) + numbers + struct.pack("<HH", len(name), 0) + name + raw
        central = CENTRAL + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 33) + numbers
        central += struct.pack("<HHHHHII", len(name), 0, 0, 0, 0, 0, 0) + name
        return local + central + END + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central), len(local), 0)

    def shared(self, count: int) -> bytes:
        """An archive with one member's bytes under many names."""
        local, name = self.bomb(1 << 20).partition(CENTRAL)[0], b"00000/a.png"
        raw = len(local) - 30 - len(name)
        numbers = struct.pack("<III", zlib.crc32(bytes(1 << 20)), raw, 1 << 20)
        central = b"".join(
            CENTRAL + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 33) + numbers
            + struct.pack("<HHHHHII", 11, 0, 0, 0, 0, 0, 0) + f"{i:05d}/a.png".encode()
            for i in range(count)
        )  # fmt: skip
        return local + central + END + struct.pack("<HHHHIIH", 0, 0, count, count, len(central), len(local), 0)

    def data(self, rng: random.Random) -> bytes:
        """Bytes of an archive."""
        members, kind = list(self.members), rng.randrange(18)
        if kind == 0:
            members[rng.randrange(2)] = (rng.choice(NAMES), self.png, rng.choice([0, 8]))
        elif kind == 1:
            members += [rng.choice(members)] * rng.choice([1, 3])  # the same name again
        elif kind == 2:
            return self.bomb(rng.choice([1 << 16, 1 << 20, 1 << 24] if rng.random() < 0.98 else [1 << 30]))
        elif kind == 3:
            return self.bomb(1 << 20, rng.choice([0, 1, 1 << 10, (1 << 28) - 1, 1 << 28, (1 << 28) + 1, (1 << 32) - 1]))
        elif kind == 4:  # an archive in an archive in an archive, called a picture
            inner = built(members)
            for _ in range(rng.choice([1, 2, 5])):
                inner = built([("inner.png", inner, 8)])
            return inner
        elif kind == 5:
            return field(built(members), CENTRAL, 16, rng.randbytes(4), rng.randrange(3))  # check sum
        elif kind == 6:
            flag = struct.pack("<H", rng.choice([1, 1, 0x41, 0x8, 0x20, 0x800, 0xFFFF]))
            out = field(built(members), CENTRAL, 8, flag, 0)
            return field(out, LOCAL, 6, flag, 0)
        elif kind == 7:
            method = struct.pack("<H", rng.choice(METHODS))
            return field(field(built(members), CENTRAL, 10, method, 0), LOCAL, 8, method, 0)
        elif kind == 8:
            members[0] = ("00000/a.png", rng.choice([b"/etc/passwd", b"../../outside/precious.txt"]), 0)
            return built(members, 0o120777)  # a symbolic link
        elif kind == 9:
            many = rng.choice([10, 100, 500] if rng.random() < 0.97 else [5_000])
            return built([(f"{i}.png", b"", 0) for i in range(many)])
        elif kind == 10:  # the directory's own numbers
            out, offset = built(members), rng.choice([4, 6, 8, 10, 12, 16, 20])
            value = rng.choice([0, 1, 2, 0xFFFF, 0xFFFFFFFF, rng.randrange(1 << 16)])
            return field(out, END, offset, struct.pack("<I", value)[: 4 if offset in (12, 16) else 2])
        elif kind == 11:  # a member's sizes, name length, offset
            offset, width = rng.choice([(20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)])
            value = rng.choice([0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(1 << 12)])
            return field(built(members), CENTRAL, offset, struct.pack("<I", value)[:width], rng.randrange(3))
        elif kind == 12:
            out = built(members)
            return out[: rng.randrange(len(out))]
        elif kind == 13:
            return rng.choice([b"", b"PK", rng.randbytes(100), self.png, built(members) + rng.randbytes(30)])
        elif kind == 14:
            return rng.randbytes(rng.choice([1, 100])) + built(members)  # something before it
        elif kind == 15:
            return self.shared(rng.choice([2, 100, 1000]))
        elif kind in (16, 17):
            return damage(built(members), rng)
        return built(members)

    def make(self, rng: random.Random) -> str:
        (self.inputs / "set.zip").write_bytes(self.data(rng))
        return rng.choice(["pictures", "pictures", "labels", "prepare", "members", "latents"])

    def attempt(self, made: str) -> None:
        path, found = self.inputs / "set.zip", Any
        if made == "pictures":
            found = ImageSource(path).stack()
            assert found.dtype == torch.uint8 and found.dim() == 4
        elif made == "labels":
            found = read_labels(path)
            assert found is None or found.dtype in (torch.int64, torch.float32)
            label_table(path)
        elif made == "prepare":
            done = prepare(path, self.out / "set.zip", 8, crop="center")
            assert done["images"] == len(ImageSource(self.out / "set.zip", 8))
        elif made == "members":
            with open_zip(path) as archive:
                for name in archive.namelist()[:20]:
                    assert isinstance(read_member(archive, name), bytes)
        else:
            LatentSource(path).moments()
