"""Pictures: damaged, lying about their size, bombs, odd modes, and other formats under an image's name."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from aid_control.images.data import MAX_PIXELS, ImageSource, read_image
from aid_control.images.prepare import prepare

from .damage import damage
from .harness import Fuzzer

__all__ = ["Images", "pictures"]

SIZES = [0, 1, 2, 255, 256, 8191, 8192, 8193, 16383, 16384, 65535, 65536, 1 << 24, (1 << 31) - 1, 1 << 31, 2**32 - 1]
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) (w) file 0 0 moveto showpage\n%%EOF\n"
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:9/x.png"/></svg>'


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def pictures() -> dict[str, bytes]:
    """Whole files by name: every mode the readers may meet, and animations."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    wide = Image.fromarray(rng.integers(0, 256, (9, 21, 3), dtype=np.uint8))
    rgba, palette, grey = rgb.convert("RGBA"), rgb.quantize(16), rgb.convert("L")
    deep = Image.fromarray(rng.integers(0, 1 << 16, (16, 16), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "turned"  # orientation, description
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "x" * 100, zip=True)
    files = {
        "rgb.png": _saved(rgb, "PNG"), "wide.png": _saved(wide, "PNG"), "rgba.png": _saved(rgba, "PNG"),
        "grey.png": _saved(grey, "PNG"), "bit.png": _saved(grey.convert("1"), "PNG"),
        "alpha.png": _saved(grey.convert("LA"), "PNG"), "deep.png": _saved(deep, "PNG"),
        "palette.png": _saved(palette, "PNG"), "clear.png": _saved(palette, "PNG", transparency=b"\x00\x80\xff"),
        "text.png": _saved(rgb, "PNG", pnginfo=text, exif=exif, icc_profile=b"none" * 50),
        "moving.png": _saved(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)] * 3),
        "rgb.jpg": _saved(rgb, "JPEG"), "late.jpg": _saved(wide, "JPEG", progressive=True),
        "grey.jpeg": _saved(grey, "JPEG"), "cmyk.jpg": _saved(rgb.convert("CMYK"), "JPEG"),
        "turned.jpg": _saved(wide, "JPEG", exif=exif),
        "two.jpg": _saved(rgb, "MPO", save_all=True, append_images=[rgb]),
        "rgb.bmp": _saved(rgb, "BMP"), "palette.bmp": _saved(palette, "BMP"),
        "bit.bmp": _saved(grey.convert("1"), "BMP"),
        "rgb.webp": _saved(rgb, "WEBP"), "whole.webp": _saved(rgba, "WEBP", lossless=True),
        "moving.webp": _saved(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)] * 3, exif=exif),
    }  # fmt: skip
    return files


def foreign() -> dict[str, bytes]:
    """What Pillow would read, and with some formats run a program for, although no image of ours has that format."""
    rgb = Image.new("RGB", (16, 16), (9, 8, 7))
    kinds = ("GIF", "TIFF", "ICO", "PCX", "PPM", "TGA", "EPS", "PDF", "SGI", "DDS", "IM", "MSP", "BLP")
    files = {"eps": EPS, "svg": SVG, "psd": b"8BPS\0\1" + bytes(30), "empty": b"", "zip": b"PK\5\6" + bytes(18)}
    for kind in kinds:
        image = rgb.convert("1") if kind == "MSP" else rgb.convert("P") if kind == "BLP" else rgb
        files[kind.lower()] = _saved(image, kind)
    return files


def chunk(name: bytes, data: bytes) -> bytes:
    """A PNG chunk with the right check sum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a whole PNG file."""
    found, at = [], 8
    while at + 12 <= len(data):
        length = struct.unpack(">I", data[at : at + 4])[0]
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def _png(data: bytes, rng: random.Random) -> bytes:
    """Damage that keeps every check sum right, so that it reaches the decoder."""
    parts, kind = chunks(data), rng.randrange(7)
    if not parts:
        return damage(data, rng)
    if kind == 0:
        width, height = rng.choice(SIZES), rng.choice(SIZES)
        parts[0] = (b"IHDR", struct.pack(">II", width, height) + parts[0][1][8:])
    elif kind == 1:
        header = bytearray(parts[0][1].ljust(13, b"\0"))
        header[rng.randrange(8, 13)] = rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 32, 255])
        parts[0] = (b"IHDR", bytes(header))
    elif kind == 2:
        i = rng.randrange(len(parts))
        parts[i:i] = [parts[rng.randrange(len(parts))]] * rng.choice([1, 2, 50])
    elif kind == 3:
        del parts[rng.randrange(len(parts))]
    elif kind == 4:
        rng.shuffle(parts)
    elif kind == 5:
        i = rng.randrange(len(parts))
        parts[i] = (parts[i][0], damage(parts[i][1], rng))
    else:
        bomb = zlib.compress(bytes(rng.choice([1 << 12, 1 << 22])), 9)
        name = rng.choice([b"iCCP", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"eXIf", b"tRNS", b"PLTE", b"gAMA", b"pHYs"])
        body = {b"iCCP": b"p\0\0" + bomb, b"zTXt": b"k\0\0" + bomb, b"iTXt": b"k\0\1\0\0\0" + bomb}
        parts.insert(rng.randrange(1, len(parts) + 1), (name, body.get(name, rng.randbytes(rng.choice([0, 1, 8, 26])))))
    return data[:8] + b"".join(chunk(*part) for part in parts)


def _bomb(rng: random.Random) -> bytes:
    """A PNG of few bytes and as many pixels as it says; up to the limit these are pictures."""
    side = rng.choice([256, 512, 1024] if rng.random() < 0.96 else [8192, 8193, 20_000])
    row = bytes(side // 8 + 1)
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _header(name: str, data: bytes, rng: random.Random) -> bytes:
    """Another size in the header of a JPEG, BMP or WebP file."""
    out, size = bytearray(data), [rng.choice(SIZES), rng.choice(SIZES)]
    if name.endswith(".bmp"):
        out[18:26] = struct.pack("<II", *size)
        if rng.random() < 0.3:
            out[28:30] = struct.pack("<H", rng.choice([0, 1, 2, 4, 8, 16, 24, 32, 64]))
    elif name.endswith(".webp"):
        at = out.find(b"VP8X")
        if at > 0:
            out[at + 12 : at + 18] = b"".join(struct.pack("<I", v & 0xFFFFFF)[:3] for v in size)
        elif (at := out.find(b"VP8 ")) > 0:
            out[at + 14 : at + 18] = struct.pack("<HH", *(v & 0x3FFF for v in size))
        elif (at := out.find(b"VP8L")) > 0:
            old = struct.unpack("<I", out[at + 9 : at + 13])[0] & 0xF0000000
            out[at + 9 : at + 13] = struct.pack("<I", old | (size[0] & 0x3FFF) | (size[1] & 0x3FFF) << 14)
    else:
        for marker in (b"\xff\xc0", b"\xff\xc2"):
            at = out.find(marker)
            if at > 0:
                out[at + 5 : at + 9] = struct.pack(">HH", *(v & 0xFFFF for v in size))
    return bytes(out)


class Images(Fuzzer):
    """Files, members of archives and of folders, read as colour and as grey, alone and by the maker of data sets."""

    name = "images"
    share = 14.0

    def prepare(self) -> None:
        self.whole, self.foreign = pictures(), foreign()
        for name, data in self.whole.items():
            (self.inputs / name).write_bytes(data)
            for mode in ("RGB", "L"):
                read_image(self.inputs / name, mode)
        prepare(self.inputs / "rgb.png", self.out / "first.zip", 8)

    def data(self, rng: random.Random) -> tuple[str, bytes]:
        """A name and the bytes of a picture, or of what claims to be one."""
        name = rng.choice(list(self.whole))
        data, kind = self.whole[name], rng.random()
        if kind < 0.08:
            return name, data
        if kind < 0.45:
            return name, damage(data, rng)
        if kind < 0.75 and name.endswith(".png"):
            return name, _png(data, rng)
        if kind < 0.80:
            other = rng.choice(list(self.foreign.values()))
            return name, other if rng.random() < 0.5 else damage(other, rng)
        if kind < 0.82:
            return f"bomb{rng.choice(['.png', '.jpg'])}", _bomb(rng)
        if not name.endswith(".png"):
            return name, _header(name, data, rng)
        return name, _png(_png(data, rng), rng) if len(data) > 8 else data

    def make(self, rng: random.Random) -> tuple[str, str]:
        name, data = self.data(rng)
        way = rng.choice(["rgb", "grey", "file", "zip", "folder", "prepare"])
        if way == "zip":
            with zipfile.ZipFile(self.inputs / "set.zip", "w") as archive:
                archive.writestr(zipfile.ZipInfo(name), data, rng.choice([0, 8]))  # without the time of day
        else:
            (self.inputs / name).write_bytes(data)
        if way == "folder" and rng.random() < 0.3:
            special(self.inputs, rng)
        elif rng.random() < 0.01:
            return way, path_names(rng)
        return way, name

    def attempt(self, made: tuple[str, str]) -> None:
        way, name = made
        if way in ("rgb", "grey"):
            image = read_image(self.inputs / name, "RGB" if way == "rgb" else "L")
        elif way == "prepare":
            prepare(self.inputs / name, self.out / "set.zip", 16, crop="center")
            image = ImageSource(self.out / "set.zip", 16)[0]
        else:
            path = {"file": self.inputs / name, "zip": self.inputs / "set.zip", "folder": self.inputs}[way]
            source = ImageSource(path)
            for i in range(len(source)):
                image = source.picture(i)
        assert image.dtype == torch.uint8 and image.dim() == 3 and len(image) == (1 if way == "grey" else 3)
        assert 0 < image.shape[1] * image.shape[2] <= MAX_PIXELS


def special(folder: Path, rng: random.Random) -> None:
    """Something in a folder that has an image's name and is none."""
    target, kind = folder / rng.choice(["0.png", "z.png"]), rng.randrange(6)
    if kind == 0:
        os.mkfifo(target)
    elif kind == 1:
        target.mkdir()
    elif kind == 2:
        target.symlink_to(target)
    elif kind == 3:
        target.symlink_to(rng.choice(["/dev/zero", "/dev/stdin", "/etc/passwd", "nowhere", "..", "/"]))
    elif kind == 4:
        with open(target, "wb") as file:
            file.truncate(rng.choice([1 << 20, 1 << 40]))  # a hole: larger than any disk
    else:
        deep = folder / "/".join(["d" * 200] * rng.choice([1, 10]))
        deep.mkdir(parents=True)
        (deep / "a.png").write_bytes(b"")


def path_names(rng: random.Random) -> str:
    """Names that are no files, for readers that get one."""
    names = ["a" * 300, "a" * 5000, "a\0b", "", ".", "..", "/dev/null/x", "x\ny.png", "\udcff.png", "/dev/fd"]
    return rng.choice(names)
