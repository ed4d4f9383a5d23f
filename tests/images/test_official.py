"""Official network files: every reference file gives the reference's tensors, and a bad file gives one sentence."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from aid_control.checkpoint import load_tensors
from aid_control.errors import InputError
from aid_control.images.backbones.precond import PRECONDITIONERS
from aid_control.images.backbones.registry import load_backbone
from aid_control.images.convert import convert, main
from aid_control.images.official import read_official
from aid_control.images.official.reader import backbone_arguments

ROOT = Path(__file__).resolve().parents[2]
EDM = ["baseline_ve", "baseline_vp", "song_ve", "song_vp", "song_vp_cond"]
EDM2 = ["latent_cond", "latent_uncond", "pixel_cond"]
TINY = {
    "img_resolution": 8,
    "img_channels": 3,
    "model_type": "SongUNet",
    "model_channels": 8,
    "channel_mult": [1, 1],
    "num_blocks": 1,
    "attn_resolutions": [],
}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def assert_same_tensors(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return PRECONDITIONERS["EDMPrecond"](**TINY).eval()


@pytest.mark.parametrize("name", EDM)
def test_edm_golden(name, golden, shared):
    ref = golden(name)
    official = read_official(shared / "reference" / "edm" / f"{name}.pkl")
    assert (official.class_name, official.kwargs) == (ref.precond, ref.kwargs)
    assert_same_tensors(official.state_dict, ref.weights)
    assert official.encoder is None
    assert official.facts["dataset_kwargs"]["resolution"] == 16

    precond, kwargs = backbone_arguments(official)
    net = PRECONDITIONERS[precond](**kwargs)
    net.load_state_dict(official.state_dict, strict=True)
    net.eval().requires_grad_(False)
    t = ref.tensors
    assert relative(net(t["in/x"], t["in/sigma"], t.get("in/class_labels")), t["out/denoised"]) <= 1e-5


@pytest.mark.parametrize("name", EDM2)
def test_edm2_golden(name, shared):
    official = read_official(shared / "reference" / "edm2" / f"{name}.pkl")
    tensors, metadata = load_tensors(shared / "reference" / "edm2" / f"{name}.safetensors")
    assert official.class_name == "Precond"
    assert backbone_arguments(official) == ("EDM2Precond", json.loads(metadata["kwargs"]))
    # these files hold half precision, the reference the float32 values they were rounded from
    weights = {k.removeprefix("param/"): v.half() for k, v in tensors.items() if k.startswith("param/")}
    assert_same_tensors(official.state_dict, weights)
    assert official.facts["dataset_kwargs"]["class_name"] == "training.dataset.ImageFolderDataset"
    encoder, state = official.encoder
    assert encoder == ("StandardRGBEncoder" if name.startswith("pixel") else "StabilityVAEEncoder")
    if name.startswith("latent"):
        assert state["scale"] == pytest.approx([0.1199, 0.1082, 0.1348, 0.1524], abs=1e-4)
        assert state["bias"] == pytest.approx([-0.6966, -0.3517, -0.0162, 0.3277], abs=1e-4)


def test_no_reference_file_is_forgotten(shared):
    for folder, names in (("edm", EDM), ("edm2", EDM2)):
        assert sorted(p.stem for p in (shared / "reference" / folder).glob("*.pkl")) == names


@pytest.mark.parametrize("new_layout", [False, True], ids=["old", "zip"])
@pytest.mark.parametrize("numpy_name", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_own_file(new_layout, numpy_name, tiny, official_file, tmp_path):
    data = official_file(tiny, TINY, new_layout=new_layout)
    for other in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        data = data.replace(bytes([0x8C, len(other)]) + other, bytes([0x8C, len(numpy_name)]) + numpy_name.encode())
    assert numpy_name.encode() in data
    (tmp_path / "net.pkl").write_bytes(data)
    official = read_official(tmp_path / "net.pkl")
    assert (official.class_name, official.kwargs) == ("EDMPrecond", TINY)
    assert list(official.state_dict) == list(tiny.state_dict())
    assert_same_tensors(official.state_dict, tiny.state_dict())
    assert "torch_utils" not in sys.modules
    assert "dnnlib" not in sys.modules


def test_latent_file(tiny, official_file, tmp_path):
    (tmp_path / "net.pkl").write_bytes(official_file(tiny, TINY, class_name="Precond", latent=True))
    official = read_official(tmp_path / "net.pkl")
    name, state = official.encoder
    assert (name, state["_init_kwargs"]) == ("StabilityVAEEncoder", {"batch_size": 8})
    assert state["scale"] == pytest.approx([0.12, 0.11, 0.13, 0.15])
    assert official.facts["dataset_kwargs"] == {"path": "data.zip", "use_labels": False, "max_size": 100}
    assert backbone_arguments(official) == ("EDM2Precond", TINY)


class Odd(nn.Module):
    """Every kind of tensor a state dict may hold."""

    def __init__(self) -> None:
        super().__init__()
        kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16)
        for kind in (*kinds, torch.int8, torch.uint8, torch.bool):
            self.register_buffer(f"of_{str(kind)[6:]}", torch.arange(6).reshape(2, 3).to(kind))
        whole = torch.arange(24.0).reshape(2, 3, 4)
        self.transposed = nn.Parameter(whole.permute(2, 0, 1))
        self.part = nn.Parameter(whole[1, :, 1:3])
        self.scalar = nn.Parameter(torch.tensor(3.5))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("absent", None)
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.register_parameter("bias", None)


@pytest.mark.parametrize("new_layout", [False, True], ids=["old", "zip"])
def test_every_kind_of_tensor(new_layout, official_file, tmp_path):
    net = Odd()
    (tmp_path / "net.pkl").write_bytes(official_file(net, {}, new_layout=new_layout))
    found = read_official(tmp_path / "net.pkl").state_dict
    assert_same_tensors(found, net.state_dict())
    assert all(tensor.is_contiguous() for tensor in found.values())


def test_unknown_network_is_named(official_file, tmp_path):
    (tmp_path / "net.pkl").write_bytes(official_file(Odd(), {}, class_name="Generator"))
    official = read_official(tmp_path / "net.pkl")
    with pytest.raises(InputError, match="Generator.*EDMPrecond"):
        backbone_arguments(official)


def test_missing_network_is_named(tiny, official_file, tmp_path):
    (tmp_path / "net.pkl").write_bytes(official_file(tiny, TINY))
    with pytest.raises(InputError, match=r"net\.pkl.*ema.*'model'"):
        read_official(tmp_path / "net.pkl", key="model")


def test_positional_arguments_are_refused(tiny, official_file, tmp_path):
    (tmp_path / "net.pkl").write_bytes(official_file(tiny, TINY, _init_args=(8, 3)))
    with pytest.raises(InputError, match="positional"):
        read_official(tmp_path / "net.pkl")


@pytest.mark.parametrize("damage", ["missing", "empty", "half", "text", "folder", "safetensors"])
def test_bad_files_are_named(damage, tiny, official_file, tmp_path):
    path, whole = tmp_path / "net.pkl", official_file(tiny, TINY)
    if damage == "folder":
        path.mkdir()
    elif damage != "missing":
        contents = {"empty": b"", "half": whole[: len(whole) // 2], "text": b"no network\n" * 50}
        path.write_bytes(contents.get(damage, (8).to_bytes(8, "little") + b"{}      "))
    with pytest.raises(InputError) as error:
        read_official(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_device_is_no_file():
    """Its size says nothing about what would be read from it."""
    with pytest.raises(InputError, match="/dev/null.*no file"):
        read_official("/dev/null")


def test_converted_file_is_the_same_network(tiny, official_file, tmp_path, capsys):
    source, target = tmp_path / "net.pkl", tmp_path / "net.safetensors"
    source.write_bytes(official_file(tiny, TINY))
    assert main([str(source), str(target)]) == 0
    assert "EDMPrecond" in capsys.readouterr().out
    again, x = load_backbone(target), torch.randn(2, 3, 8, 8)
    assert torch.equal(again(x, 1.0), tiny(x, 1.0))
    tensors, metadata = load_tensors(target)
    assert_same_tensors(tensors, tiny.state_dict())
    assert json.loads(metadata["official"])["facts"]["dataset_kwargs"]["max_size"] == 100
    assert sorted(os.listdir(tmp_path)) == ["net.pkl", "net.safetensors"]


def test_converted_file_keeps_the_encoder(tiny, official_file, tmp_path):
    (tmp_path / "net.pkl").write_bytes(official_file(tiny, TINY, class_name="Precond", latent=True))
    convert(tmp_path / "net.pkl", tmp_path / "net.safetensors")
    metadata = load_tensors(tmp_path / "net.safetensors")[1]
    assert metadata["precond"] == "EDM2Precond"
    assert json.loads(metadata["official"])["encoder"][0] == "StabilityVAEEncoder"


class Weightless(nn.Module):
    """No weights."""


class Reserved(nn.Module):
    """A tensor under the name the target format keeps for itself, or under one that is no text."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.register_buffer(name, torch.zeros(1))


@pytest.mark.parametrize("net", [Weightless(), Reserved("__metadata__"), Reserved("\ud800")], ids=["0", "1", "2"])
def test_what_cannot_be_stored_is_refused(net, official_file, tmp_path, capsys):
    (tmp_path / "net.pkl").write_bytes(official_file(net, {}, class_name="EDMPrecond"))
    assert main([str(tmp_path / "net.pkl"), str(tmp_path / "net.safetensors")]) == 2
    assert "net.pkl" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["net.pkl"]


def test_program_says_one_sentence_and_exits_with_2(tmp_path):
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'exit'\ntR.")
    for source, target, word in (
        (tmp_path / "evil.pkl", tmp_path / "out.safetensors", "os.system"),
        (tmp_path / "absent.pkl", tmp_path / "out.safetensors", "absent.pkl"),
        (tmp_path / "evil.pkl", tmp_path / "out.pkl", "out.pkl"),
    ):
        command = [sys.executable, "-m", "aid_control.images.convert", str(source), str(target)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert word in done.stderr


def test_unwritable_target_is_named(tiny, official_file, tmp_path, capsys):
    (tmp_path / "net.pkl").write_bytes(official_file(tiny, TINY))
    assert main([str(tmp_path / "net.pkl"), str(tmp_path / "net.pkl" / "out.safetensors")]) == 2
    assert "out.safetensors" in capsys.readouterr().err


def test_reader_can_execute_nothing():
    """The reader imports no machinery that runs what it reads; ``pickletools`` only names opcodes."""
    harmless = {"__future__", "collections", "dataclasses", "io", "math", "os", "pathlib", "pickletools", "struct"}
    harmless |= {"typing", "zipfile", "numpy", "torch"}
    for path in (ROOT / "aid_control" / "images" / "official").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= harmless, path.name
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").split(".")[0] in harmless, path.name
            elif isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                banned = {"exec", "eval", "compile", "getattr", "setattr", "load", "loads", "import_module"}
                assert called not in banned | {"__import__"}, f"{path.name}:{node.lineno}"


@pytest.mark.parametrize("value", [float("inf"), float("nan"), torch.zeros(2)])
def test_arguments_that_are_no_plain_values_are_refused(tmp_path, official_file, value):
    net = torch.nn.Linear(2, 2)
    (tmp_path / "net.pkl").write_bytes(official_file(net, {"sigma_max": value}, class_name="EDMPrecond"))
    with pytest.raises(InputError, match="argument sigma_max of the network is no plain value"):
        read_official(tmp_path / "net.pkl")
