"""The tool that makes data sets: what comes out, and what is refused without leaving a file behind."""

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aid_control.errors import InputError
from aid_control.images.archive import DatasetWriter, label_table, read_member
from aid_control.images.data import ImageSource
from aid_control.images.prepare import main, prepare, read_labels, square

ROOT = Path(__file__).resolve().parents[2]


def picture(seed, width=16, height=16):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def as_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def as_folder(path, files):
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def left_over(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(params=["zip", "folder"])
def make(request, tmp_path):
    if request.param == "zip":
        return lambda files: as_zip(tmp_path / "in.zip", files)
    return lambda files: as_folder(tmp_path / "in", files)


def test_layout_pixels_and_class_folders(make, tmp_path):
    pictures = {f"{c}/{i}.png": picture(10 * i + j) for j, c in enumerate(("dog", "ant", "cat")) for i in range(2)}
    dest = tmp_path / "deep" / "out.zip"
    done = prepare(make({k: png(v) for k, v in pictures.items()}), dest)
    assert done == {"images": 6, "enlarged": 0, "classes": 3}
    source = ImageSource(dest, 16)
    assert source.names == [f"00000/img{i:08d}.png" for i in range(6)]
    assert torch.equal(source.stack(), torch.stack([tensor(pictures[k]) for k in sorted(pictures)]))
    labels = read_labels(dest)
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 0, 1, 1, 2, 2]
    with zipfile.ZipFile(dest) as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert json.loads(archive.read("dataset.json"))["labels"][2] == ["00000/img00000002.png", 1]
    # what it wrote can be read again, with the same labels, and gives the same bytes
    prepare(dest, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == dest.read_bytes()


def test_labels_from_json_by_name_and_not_by_order(make, tmp_path):
    rows = [["b.png", [0.5, 2]], ["a.png", [1, 0]]]
    path = make(
        {"a.png": png(picture(0)), "b.png": png(picture(1)), "dataset.json": json.dumps({"labels": rows}).encode()}
    )
    assert prepare(path, tmp_path / "out.zip")["classes"] == 0
    assert torch.equal(read_labels(tmp_path / "out.zip"), torch.tensor([[1, 0], [0.5, 2]]))
    assert torch.equal(read_labels(path), torch.tensor([[1, 0], [0.5, 2]]))
    prepare(path, tmp_path / "bare.zip", labels="none")
    assert read_labels(tmp_path / "bare.zip") is None and label_table(tmp_path / "bare.zip") is None


def test_thousand_members_make_a_second_folder(tmp_path):
    with DatasetWriter(tmp_path / "x.zip", "img{:08d}.png") as writer:
        for _ in range(1001):
            writer.add(b"")
    assert writer.names[999:] == ["00000/img00000999.png", "00001/img00001000.png"]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24), st.sampled_from(["center", "adm"]))
def test_any_shape_becomes_the_square_that_was_asked_for(width, height, resolution, crop):
    assert square(picture(0, width, height), resolution, crop).size == (resolution, resolution)


@settings(deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 255))
def test_crop_is_centred_and_constant_pictures_stay_constant(width, height, value):
    flat = Image.new("RGB", (width, height), (value, value, value))
    for crop in ("center", "adm"):
        assert set(np.array(square(flat, 5, crop)).ravel().tolist()) == {value}
    image = picture(1, width, height)
    cut, side = tensor(square(image, None, "center")), min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    assert torch.equal(cut, tensor(image)[:, top : top + side, left : left + side])


def test_filters():
    image = picture(0, 12, 12)
    means = np.array(image).reshape(4, 3, 4, 3, 3).mean((1, 3))
    for filter in ("auto", "box"):
        assert np.abs(np.array(square(image, 4, filter=filter)) - means).max() < 1  # Pillow rounds twice
    lanczos = image.resize((4, 4), Image.Resampling.LANCZOS)
    assert square(image, 4, filter="lanczos").tobytes() == lanczos.tobytes() != square(image, 4).tobytes()
    assert square(image, 5).tobytes() == image.resize((5, 5), Image.Resampling.LANCZOS).tobytes()
    with pytest.raises(InputError, match=r"multiple of 5"):
        square(image, 5, filter="box")


def test_adm_crop_halves_by_block_means_first():
    image = picture(0, 40, 32)
    halved = image.resize((20, 16), Image.Resampling.BOX).resize((10, 8), Image.Resampling.BOX)
    assert square(image, 8, "adm").tobytes() == halved.crop((1, 0, 9, 8)).tobytes()
    reduced = image.resize((20, 16), Image.Resampling.BOX).resize((11, 9), Image.Resampling.BICUBIC)
    assert square(image, 9, "adm").tobytes() == reduced.crop((1, 0, 10, 9)).tobytes()


def test_pictures_are_stored_uncompressed_as_colour(tmp_path):
    path = as_folder(tmp_path / "in", {"a.png": png(Image.new("L", (16, 16), 7))})
    prepare(path, tmp_path / "out.zip")
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        assert archive.getinfo("00000/img00000000.png").file_size > 3 * 16 * 16
    assert torch.equal(ImageSource(tmp_path / "out.zip")[0], torch.full((3, 16, 16), 7, dtype=torch.uint8))


def test_enlarging_is_counted_and_limit_takes_the_first(tmp_path):
    path = as_folder(tmp_path / "in", {"a.png": png(picture(0, 8, 8)), "b.png": png(picture(1)), "c.png": b"broken"})
    assert prepare(path, tmp_path / "out.zip", 16, limit=2) == {"images": 2, "enlarged": 1, "classes": 0}
    assert len(ImageSource(tmp_path / "out.zip", 16)) == 2


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"a.png": b"no picture"}, {}, r"a\.png: not a readable image"),
        ({"a.png": png(picture(0))[:200]}, {}, r"a\.png: not a readable image"),
        ({"a.png": png(picture(0, 20, 16))}, {}, r"a\.png: is 20x16 pixels; expected a square"),
        ({"a.png": png(picture(0)), "b.png": png(picture(0, 8, 8))}, {}, r"b\.png: is 8 pixels wide, the first 16"),
        ({"a.png": png(picture(0))}, {"resolution": 5, "filter": "box"}, r"a\.png: has a side of 16"),
        ({"a.png": png(picture(0))}, {"resolution": 0}, "resolution is 0"),
        ({"a.png": png(picture(0))}, {"limit": 0}, "limit is 0"),
        ({"a.png": png(picture(0))}, {"crop": "middle"}, "crop is 'middle'"),
        ({"a.png": png(picture(0))}, {"crop": "adm"}, "crop=adm needs a resolution"),
        ({"a.png": png(picture(0))}, {"labels": "folders"}, "not in two or more folders"),
        ({"a.png": png(picture(0))}, {"labels": "json"}, "no labels in dataset.json"),
        ({"a.txt": b"text"}, {}, "holds no image"),
        ({"a.png": png(picture(0)), "dataset.json": b"{"}, {}, r"dataset\.json: not JSON"),
        ({"a.png": png(picture(0)), "dataset.json": b"[" * 100_000}, {}, r"dataset\.json: not JSON"),
        ({"a.png": png(picture(0)), "dataset.json": b'{"labels": [["b.png", 1]]}'}, {}, r"no label for a\.png"),
        ({"a.png": png(picture(0)), "dataset.json": b'{"a":' * 100_000}, {}, "nested too deeply"),
        ({"a.png": png(picture(0)), "dataset.json": b"[" + b"[]," * 9_000_000}, {}, "18000001 values; expected at"),
        ({"a.png": png(picture(0)), "dataset.json": b'{"labels": [["a.png", NaN]]}'}, {}, "expected rows"),
        ({"a.png": png(picture(0)), "dataset.json": b'{"labels": [["a.png", [NaN]]]}'}, {}, "expected rows"),
        ({"a.png": png(picture(0)), "dataset.json": b'{"labels": [["a.png", -1]]}'}, {}, "expected rows"),
        ({"a.png": png(picture(0)), "dataset.json": b'{"labels": [["a.png", true]]}'}, {}, "expected rows"),
        ({"a.png": png(picture(0)), "dataset.json": b'{"labels": 7}'}, {}, "expected rows"),
        ({"a.png": png(picture(0)), "dataset.json": b'{"labels": [["a.png", 1], ["b", [1]]]}'}, {}, "different kinds"),
    ],
)  # fmt: skip
def test_what_is_refused_leaves_nothing_behind(make, tmp_path, files, options, message):
    path = make(files)
    before = left_over(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        prepare(path, tmp_path / "out.zip", **options)
    assert "\n" not in str(error.value) and left_over(tmp_path) == before


def test_damaged_archives(tmp_path):
    whole = as_zip(tmp_path / "in.zip", {"a.png": png(picture(0))}).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    hurt = bytearray(whole)
    hurt[100] ^= 0xFF
    (tmp_path / "hurt.zip").write_bytes(hurt)
    for name in ("cut.zip", "hurt.zip", "gone.zip"):
        with pytest.raises(InputError, match=name):
            prepare(tmp_path / name, tmp_path / "out.zip")
    with pytest.raises(InputError, match=r"cut\.zip"):
        read_labels(tmp_path / "cut.zip")
    with zipfile.ZipFile(as_zip(tmp_path / "bomb.zip", {"a": b"0" * 1000})) as archive:
        with pytest.raises(InputError, match="1000 bytes; expected at most 10"):
            read_member(archive, "a", limit=10)
        with pytest.raises(InputError, match="cannot be read"):
            read_member(archive, "b")


def test_destination(tmp_path):
    path = as_folder(tmp_path / "in", {"a.png": png(picture(0))})
    (tmp_path / "old.zip").write_bytes(b"precious")
    for name, message in (
        ("old.zip", "exists already"),
        ("out.png", r"ending in \.zip"),
        ("in/a.png/x.zip", "written"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(path, tmp_path / name)
    assert (tmp_path / "old.zip").read_bytes() == b"precious"


def test_writer_wants_all_labels_or_none_and_something_at_all(tmp_path):
    with pytest.raises(InputError, match="1 of 2 members"), DatasetWriter(tmp_path / "x.zip", "{}.png") as writer:
        writer.add(b"", 1)
        writer.add(b"")
    with pytest.raises(InputError, match="nothing was added"), DatasetWriter(tmp_path / "x.zip", "{}.png"):
        pass
    with pytest.raises(KeyboardInterrupt), DatasetWriter(tmp_path / "x.zip", "{}.png") as writer:
        writer.add(b"")
        raise KeyboardInterrupt
    assert not left_over(tmp_path)


def test_labels_must_cover_the_members(tmp_path):
    rows = {"labels": [["a.png", 0], ["gone.png", 1]]}
    path = as_zip(tmp_path / "x.zip", {"a.png": b"", "dataset.json": json.dumps(rows)})
    assert read_labels(path).tolist() == [0]
    with pytest.raises(InputError, match=r"no label for b\.png"):
        read_labels(path, ["b.png"])
    with pytest.raises(InputError, match="labels but no data"):
        read_labels(as_zip(tmp_path / "y.zip", {"dataset.json": json.dumps(rows)}))


def test_program(tmp_path, capsys):
    path = as_folder(tmp_path / "in", {"a/0.png": png(picture(0, 20, 16)), "b/0.png": png(picture(1))})
    out = str(tmp_path / "out.zip")
    assert main([str(path), out, "resolution=8", "crop=center", "labels=folders"]) == 0
    assert "2 images (2 classes)" in capsys.readouterr().out and len(ImageSource(out, 8)) == 2
    for arguments, message in (
        ([], None),
        ([str(path)], "1 paths given"),
        ([str(path), out], "exists already"),
        ([str(path), out + ".zip", "resolution=big"], "resolution is 'big'"),
        ([str(path), out + ".zip", "size=3"], "size=3: no such option"),
        ([str(tmp_path / "gone"), out + ".zip"], "no such file or folder"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert message is None or (message in said.err and said.err.count("error:") == 1 and "Trace" not in said.err)
    assert main(["--help"]) == 0 and "resolution" in capsys.readouterr().out


def test_program_as_a_module(tmp_path):
    run = [sys.executable, "-m", "aid_control.images.prepare", str(tmp_path / "gone"), str(tmp_path / "out.zip")]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
