"""Reading images: byte round trip, the three kinds of source, shuffled batches, and messages that name the file."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import zipfile
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aid_control.errors import InputError
from aid_control.images import data as module
from aid_control.images.archive import open_zip, read_file, read_member
from aid_control.images.data import ImageSource, batch_indices, read_image, to_float, to_uint8, write_png


def picture(seed, side=8, channels=3):
    return torch.randint(0, 256, (channels, side, side), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def pictures():
    return {f"{i:05d}/img{i:08d}.png": picture(i) for i in range(4)}


def as_zip(path, files, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in reversed(files.items()):
            archive.writestr(name, data)
        archive.writestr("dataset.json", "{}")
    return path


def as_folder(path, files):
    for name, data in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    (path / "notes.txt").write_text("not an image")
    return path


def test_round_trip_of_every_byte():
    every = torch.arange(256, dtype=torch.uint8)
    real = to_float(every)
    assert real.dtype == torch.float32 and real.min() == -1 and real.max() == 1
    assert torch.equal(to_uint8(real), every)
    assert torch.equal(to_uint8(real.double()), every)


def test_to_uint8_rounds_to_nearest_and_clips():
    assert to_uint8(torch.tensor([-3.0, -1.0, 1.0, 3.0])).tolist() == [0, 0, 255, 255]
    level = to_float(torch.tensor([100], dtype=torch.uint8))
    assert to_uint8(level + 0.4 / 127.5).item() == 100 and to_uint8(level + 0.6 / 127.5).item() == 101


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31), st.integers(1, 3))
def test_every_epoch_visits_every_index_once(n, batch, seed, epochs):
    count = -(-epochs * n // batch)
    batches = [batch_indices(n, batch, i, seed) for i in range(count)]
    assert all(b.shape == (batch,) and b.dtype == torch.int64 for b in batches)
    stream = torch.cat(batches)
    for epoch in range(epochs):
        assert stream[epoch * n : (epoch + 1) * n].sort().values.tolist() == list(range(n))


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 20), st.integers(0, 2**31))
def test_batches_are_a_pure_function_and_do_not_depend_on_the_batch_size(n, batch, iteration, seed):
    torch.manual_seed(iteration)
    first = batch_indices(n, batch, iteration, seed)
    torch.manual_seed(iteration + 1)
    assert torch.equal(first, batch_indices(n, batch, iteration, seed))
    single = [batch_indices(n, 1, i, seed) for i in range(iteration * batch, (iteration + 1) * batch)]
    assert torch.equal(first, torch.cat(single))


def test_epochs_and_seeds_are_shuffled_differently():
    orders = [batch_indices(50, 50, i, seed).tolist() for seed in (0, 1) for i in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4 and list(range(50)) not in orders


@pytest.mark.parametrize("kind", ["stored", "deflated", "folder"])
def test_source_is_sorted_and_exact(tmp_path, pictures, kind):
    files = {name: png(image) for name, image in pictures.items()}
    if kind == "folder":
        path = as_folder(tmp_path / "set", files)
    else:
        path = as_zip(tmp_path / "set.zip", files, zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED)
    source = ImageSource(path, resolution=8)
    assert len(source) == 4 and source.names == sorted(pictures)
    expected = torch.stack([pictures[name] for name in sorted(pictures)])
    assert torch.equal(source.stack(), expected) and source.stack().dtype == torch.uint8
    assert torch.equal(source.stack([3, 1, 1]), expected[[3, 1, 1]])


def test_single_file_and_write_png(tmp_path):
    image = picture(0)
    path = tmp_path / "one.png"
    write_png(path, image)
    assert torch.equal(read_image(path), image)
    source = ImageSource(path, 8)
    assert len(source) == 1 and torch.equal(source[0], image)
    grey = picture(1, channels=1)
    write_png(path, grey)
    assert Image.open(path).mode == "L"
    assert torch.equal(read_image(path, "L"), grey) and torch.equal(read_image(path), grey.expand(3, -1, -1))
    assert torch.equal(ImageSource(path, channels=1)[0], grey)


def test_missing_and_empty(tmp_path):
    for name in ("gone", "gone.zip", "gone.png"):
        with pytest.raises(InputError, match=name):
            ImageSource(tmp_path / name)
    with pytest.raises(InputError, match=r"gone\.png"):
        read_image(tmp_path / "gone.png")
    with pytest.raises(InputError, match=r"read.*folder|no such file"):
        read_image(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no image"):
        ImageSource(tmp_path / "empty")
    with pytest.raises(InputError, match=r"bare\.zip: holds no image"):
        ImageSource(as_zip(tmp_path / "bare.zip", {}))


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_truncated_zip(tmp_path, pictures, keep):
    data = as_zip(tmp_path / "whole.zip", {name: png(image) for name, image in pictures.items()}).read_bytes()
    cut = tmp_path / "cut.zip"
    cut.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(InputError, match=r"cut\.zip: not a whole zip"):
        ImageSource(cut)


def test_damaged_member_of_a_stored_zip_is_named(tmp_path):
    content = png(picture(0))
    path = as_zip(tmp_path / "bad.zip", {"a.png": content})
    data = bytearray(path.read_bytes())
    data[data.index(content) + len(content) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"bad\.zip:a\.png"):
        ImageSource(path)[0]


@pytest.mark.parametrize("content", [b"", b"hello, I am text", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, None])
def test_bytes_that_are_no_image(tmp_path, content):
    if content is None:  # a real picture, cut in the middle of its pixels
        content = png(picture(0, side=64))
        content = content[: len(content) // 2]
    path = tmp_path / "fake.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"fake\.png: not a readable image"):
        read_image(path)
    with pytest.raises(InputError, match=r"fake\.png: not a readable image"):
        ImageSource(path)[0]
    with pytest.raises(InputError, match=r"set\.zip:x/fake\.png: not a readable image"):
        ImageSource(as_zip(tmp_path / "set.zip", {"x/fake.png": content}))[0]


def test_wrong_size_names_file_and_both_sizes(tmp_path):
    folder = as_folder(tmp_path / "set", {"a.png": png(picture(0, 8)), "b.png": png(picture(1, 9))})
    source = ImageSource(folder, resolution=8)
    assert source[0].shape == (3, 8, 8)
    with pytest.raises(InputError, match=r"b\.png: is 9x9 pixels; expected 8x8"):
        source.stack()
    wide = np.zeros((4, 6, 3), dtype=np.uint8)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    with pytest.raises(InputError, match=r"wide\.png: is 6x4 pixels"):
        ImageSource(tmp_path / "wide.png")[0]


# --- files that want to do harm -------------------------------------------------------------------------------------


def header_only(width, height):
    """A PNG file that claims a size and has one row of it."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(bytes(width // 8 + 1))) + chunk(b"IEND", b"")
    )  # fmt: skip


def canvas(width, height):
    """An animated WebP file that claims a canvas."""
    frame = Image.new("RGB", (8, 8))
    buffer = io.BytesIO()
    frame.save(buffer, format="WEBP", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    out = bytearray(buffer.getvalue())
    assert out[12:16] == b"VP8X"
    out[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(out)


def still(lossless):
    """A WebP file of one picture that claims 13,000 x 13,000 pixels."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, format="WEBP", lossless=lossless)
    out = bytearray(buffer.getvalue())
    if lossless:
        assert out[12:16] == b"VP8L" and int.from_bytes(out[21:25], "little") & 0x3FFF == 7
        out[21:25] = (12_999 | 12_999 << 14).to_bytes(4, "little")
    else:
        assert out[12:16] == b"VP8 " and out[26] == 8
        out[26:30] = (13_000).to_bytes(2, "little") * 2
    return bytes(out)


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (still(False), "13000x13000"),
        (still(True), "13000x13000"),
        (header_only(8193, 8192), "8193x8192"),
        (header_only(10_000, 10_000), "10000x10000"),  # Pillow warns here
        (header_only(50_000, 50_000), "not a readable"),  # and raises here
        (canvas(16_383, 16_383), "16383x16383"),  # Pillow claims two gigabytes on opening
        (canvas(1 << 24, 1 << 24), "16777216x16777216"),
    ],
)
def test_too_many_pixels_are_refused_before_any_is_decoded(tmp_path, monkeypatch, recwarn, content, size):
    def decoded(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(module, "_pixels", decoded)
    (tmp_path / "huge.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"huge\.png: .*{size}"):
        read_image(tmp_path / "huge.png")
    assert not recwarn.list


def test_no_program_is_run_for_another_format(tmp_path, monkeypatch):
    def started(*_, **__):
        raise AssertionError("started a program")

    monkeypatch.setattr(subprocess, "Popen", started)
    for kind in ("EPS", "GIF", "TIFF", "PPM", "ICO"):
        Image.new("RGB", (16, 16)).save(tmp_path / "a.png", format=kind)
        with pytest.raises(InputError, match=r"a\.png: not a readable image"):
            read_image(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("wanted", ["RGB", "L"])
def test_strips_are_the_whole(tmp_path, monkeypatch, mode, wanted):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (13, 7, 3), dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 1 << 16, (13, 7), dtype=np.uint16))
    image = deep if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    with Image.open(path) as stored:
        whole = np.array(stored.convert(wanted))
    expected = torch.from_numpy(whole.reshape(13, 7, -1)).permute(2, 0, 1)
    for strip in (1, 20, 7 * 12, 7 * 13, 1000):
        monkeypatch.setattr(module, "STRIP", strip)
        assert torch.equal(read_image(path, wanted), expected)


def test_folders_hold_things_that_are_no_files(tmp_path):
    folder = as_folder(tmp_path / "set", {"a.png": png(picture(0))})
    os.mkfifo(folder / "b.png")  # reading it would wait for ever
    (folder / "c.png").mkdir()
    (folder / "d.png").symlink_to("/dev/zero")
    with open(folder / "e.png", "wb") as file:
        file.truncate(1 << 40)
    source = ImageSource(folder)
    assert torch.equal(source[0], picture(0))
    for i, name in enumerate("bcde", 1):
        with pytest.raises(InputError, match=rf"{name}\.png: .*(none that ends|expected at most)"):
            source.picture(i)


@pytest.mark.parametrize("path", ["a" * 300, "a" * 5000, "a\0b", "", "/dev/null/x"])
def test_names_that_no_file_can_have(path):
    for read in (read_image, ImageSource, open_zip, read_file):
        with pytest.raises(InputError):
            read(path)


def shared_members(count, spoil=0, size=1000):
    """An archive in which every name has the same bytes; their number grows by ``spoil``, they claim ``size``."""
    raw, names = zlib.compress(bytes(1000), 9)[2:-4], [f"{i:05d}.png".encode() for i in range(count)]
    numbers = struct.pack("<III", zlib.crc32(bytes(1000)), len(raw) + spoil, size)
    fields = struct.pack("<HHHHH", 20, 0, 8, 0, 33) + numbers
    local = b"PK\3\4" + fields + struct.pack("<HH", 9, 0) + names[0] + raw
    central = b"".join(
        b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHHHII", 9, 0, 0, 0, 0, 0, 0) + n for n in names
    )
    return local + central + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, count, count, len(central), len(local), 0)


def test_archives_that_grow(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(shared_members(1))
    with open_zip(path) as archive:
        assert read_member(archive, "00000.png") == bytes(1000)
    for content in (shared_members(2), shared_members(1, spoil=1 << 30)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.zip: members overlap, or are cut off"):
            open_zip(path)
    as_zip(path, {"a.png": b"0" * 1000}, zipfile.ZIP_LZMA)
    with pytest.raises(InputError, match=r"a\.png: compressed by method 14; expected stored or deflated"):
        ImageSource(path)[0]
    path.write_bytes(shared_members(1, size=(1 << 28) + 1))
    with pytest.raises(InputError, match=r"00000\.png: 268435457 bytes; expected at most 268435456"):
        ImageSource(path)[0]


def test_names_in_archives_lead_nowhere(tmp_path):
    names = ["../../escaped.png", "/escaped.png", "..\\escaped.png", "C:\\escaped.png"]
    (tmp_path / "in").mkdir()
    source = ImageSource(as_zip(tmp_path / "in" / "a.zip", {name: png(picture(0)) for name in names}))
    assert len(source.stack()) == 4
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "in"] and not os.path.exists("/escaped.png")
