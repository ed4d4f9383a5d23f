"""Reading images: byte round trip, the three kinds of source, shuffled batches, and messages that name the file."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from aid_control.errors import InputError
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
