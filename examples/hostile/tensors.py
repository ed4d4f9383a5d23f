"""Safetensors files: lengths, kinds and offsets that lie, huge shapes, headers that are no JSON, lying descriptions."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from aid_control.checkpoint import load_state, load_tensors, save_state
from aid_control.images.backbones.conditional import ConditionalDenoiser, load_conditional, save_conditional
from aid_control.images.backbones.gaussian import GaussianBackbone
from aid_control.images.backbones.precond import PRECONDITIONERS
from aid_control.images.backbones.registry import load_backbone, save_backbone, save_exact
from aid_control.images.guidance import Guidance, load_guidance, save_guidance
from aid_control.images.latents.tiny import TinyCodec, load_codec, save_codec
from aid_control.images.methods.propagation import Propagation, load_propagation, save_propagation

from .damage import damage
from .harness import Fuzzer
from .images import path_names

__all__ = ["Tensors"]

KINDS = ["F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL", "F8_E4M3", "C64", "F4", "X9", "", 7]
WHOLE = [0, 1, 2, 3, 7, 8, 16, 63, 64, 65, -1, 255, 4096, 1 << 20, 1 << 31, 1 << 32, (1 << 53) + 1, 1 << 63, 1 << 64]
ODD = [None, True, "64", "", [], {}, [1, 2], [1] * 100, 0.5, -0.0, 1e-300, 1e300, math.inf, math.nan, "x" * 10_000]
# files of these writers, each with its reader
Reader = Callable[[str], Any]


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and content of a whole file."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header: Any, content: bytes) -> bytes:
    """A file of a header, whatever it holds, and content."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + content


def _lie(header: dict[str, Any], names: list[str], content: bytes, rng: random.Random) -> None:
    """Damage the entry of one tensor."""
    one, kind = header[rng.choice(names)], rng.randrange(7)
    if kind == 0:
        one["dtype"] = rng.choice(KINDS)
    elif kind == 1:
        huge = [rng.choice(WHOLE)] * rng.choice([1, 2, 5])
        one["shape"] = rng.choice([[], huge, one["shape"][::-1], [0], None, [1] * 500])
    elif kind == 2:
        place = [rng.choice(WHOLE), rng.choice(WHOLE)]
        one["data_offsets"] = rng.choice([[0, 0], place, one["data_offsets"][::-1], [0], None, [0, len(content) + 1]])
    elif kind == 3:
        one["data_offsets"] = header[rng.choice(names)]["data_offsets"]  # two in one place
    elif kind == 4:
        header[rng.choice(["x", "", "\0", "a" * 1000, "__metadata__"])] = header.pop(names.pop())
    elif kind == 5:
        one[rng.choice(list(one))] = rng.choice(ODD)
    else:
        del one[rng.choice(list(one))]


class Tensors(Fuzzer):
    """States, guidance and propagation modules, backbones, codecs, conditional networks, read by their readers."""

    name = "safetensors"
    share = 8.0

    def prepare(self) -> None:
        torch.manual_seed(0)
        small = dict(model_channels=8, channel_mult=[1], num_blocks=1, attn_resolutions=[], embedding_type="positional")
        network = dict(img_resolution=8, img_channels=3, model_type="SongUNet", **small)
        folder = self.folder / "whole"
        folder.mkdir(exist_ok=True)
        state = {"step": 3, "nested": {"list": [torch.ones(2), 1.5, None], 7: "x"}, "w": torch.eye(3)}
        save_state(folder / "state.safetensors", state)
        save_guidance(folder / "guidance.safetensors", Guidance(32, width=8))
        net = PRECONDITIONERS["EDMPrecond"](**network)
        save_backbone(folder / "edm.safetensors", "EDMPrecond", network, net.state_dict())
        net = PRECONDITIONERS["iDDPMPrecond"](M=10, **network)
        save_backbone(folder / "iddpm.safetensors", "iDDPMPrecond", {"M": 10, **network}, net.state_dict())
        save_exact(folder / "exact.safetensors", GaussianBackbone.from_samples(torch.randn(20, 3, 4, 4), 3, 0))
        save_codec(folder / "codec.safetensors", TinyCodec(8, 4))
        save_conditional(folder / "palette.safetensors", "palette", ConditionalDenoiser(**network))
        save_propagation(folder / "propagation.safetensors", Propagation(8, 8))
        self.readers: dict[str, Reader] = {
            "state": load_state, "guidance": load_guidance, "edm": load_backbone, "iddpm": load_backbone,
            "exact": load_backbone, "codec": load_codec, "propagation": load_propagation,
            "palette": lambda path: load_conditional(path, "palette", "palette-faces64-mini"),
        }  # fmt: skip
        self.whole = {name: (folder / f"{name}.safetensors").read_bytes() for name in self.readers}
        for name, reader in self.readers.items():
            reader(str(folder / f"{name}.safetensors"))

    def make(self, rng: random.Random) -> tuple[str, str]:
        name = rng.choice(list(self.readers))
        data, kind = self.whole[name], rng.random()
        if kind < 0.05:
            pass
        elif kind < 0.25:
            data = damage(data, rng)
        elif kind < 0.35:
            data = self.framed(data, rng)
        elif kind < 0.65:
            data = self.tensors(data, rng)
        elif kind < 0.99:
            data = self.described(data, rng)
        else:
            return name, path_names(rng) + rng.choice(["", ".safetensors"])
        path = self.inputs / "file.safetensors"
        path.write_bytes(data)
        return rng.choice([name, name, name, name, "any"]), str(path)

    @staticmethod
    def framed(data: bytes, rng: random.Random) -> bytes:
        """Another length of the header, or a header that is no object."""
        header, content = parts(data)
        kind = rng.randrange(6)
        if kind == 0:
            return struct.pack("<Q", rng.choice(WHOLE) % (1 << 64)) + data[8:]
        if kind == 1:
            return joined(rng.choice([[], 1, None, "x", {}, {"__metadata__": rng.choice(ODD)}]), content)
        if kind == 2:
            return joined(b"[" * rng.choice([10, 100_000]), content)
        if kind == 3:
            return joined(json.dumps(header).encode("utf-16"), content)
        if kind == 4:
            odd = rng.choice([b"\xff", b"\\ud800", b"\0"])
            return joined(json.dumps(header).encode().replace(b"e", odd, 1), content)
        text = json.dumps(header).encode()
        return joined(text[:-1] + b"," + text[1:], content)  # every key twice

    @staticmethod
    def tensors(data: bytes, rng: random.Random) -> bytes:
        """Kinds, shapes and places of tensors that lie."""
        header, content = parts(data)
        for note in ("aid_sha256", "aid_format"):
            if rng.random() < 0.8:
                header.get("__metadata__", {}).pop(note, None)
        names = [n for n in header if n != "__metadata__"]
        for _ in range(rng.choice([1, 1, 2])):
            with suppress(TypeError, KeyError, AttributeError):  # what the first damage left may not bear a second
                _lie(header, names, content, rng)
        return joined(header, content)

    @staticmethod
    def described(data: bytes, rng: random.Random) -> bytes:
        """Descriptions of the network, or of the state, that lie; without check sums, so that they are looked at."""
        header, content = parts(data)
        notes = header.get("__metadata__", {})
        if rng.random() < 0.9:
            notes.pop("aid_sha256", None)
        key = rng.choice(sorted(notes))
        if rng.random() < 0.1:
            texts = ["", "null", "[]", "{", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "x" * 100_000, 5]
            notes[key] = rng.choice(texts)
            return joined(header, content)
        try:
            value = json.loads(notes[key])
        except ValueError:
            names = ["", "aid-guidance", "EDMPrecond", "Gaussian", "Mixture", "EDM2Precond", "VEPrecond", "os"]
            notes[key] = rng.choice(names)
            return joined(header, content)
        for _ in range(rng.choice([1, 1, 2])):
            place = value
            while isinstance(place, dict | list) and place:
                at = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
                if isinstance(place[at], dict | list) and place[at] and rng.random() < 0.7:
                    place = place[at]
                    continue
                if rng.random() < 0.1:
                    del place[at]
                else:
                    place[at] = rng.choice(WHOLE) if rng.random() < 0.6 else rng.choice(ODD)
                break
        if isinstance(value, dict) and rng.random() < 0.2:
            names = ["extra", "__tensor__", "int:x", "self", "label_dim", "augment_dim", "M", "num_blocks"]
            value[rng.choice(names)] = rng.choice(WHOLE)
        notes[key] = json.dumps(value)
        return joined(header, content)

    def attempt(self, made: tuple[str, str]) -> None:
        name, path = made
        if name == "any":
            tensors, notes = load_tensors(path)
            assert all(isinstance(v, str) for v in notes.values())
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            assert size <= Path(path).stat().st_size
            return
        found = self.readers[name](path)
        if name == "state":
            assert isinstance(found, dict)
        else:
            assert isinstance(found, torch.nn.Module) and not any(p.is_meta for p in found.parameters())
