"""A process of its own that reads official files, and mutations of them, under watch; prints what happened as JSON.

``python official_watch.py FOLDER [MUTATIONS SEED]`` reads every ``.pkl`` file of the folder, or so many mutations of
them; ``.warm`` files are read before, unwatched.  Memory is limited by the operating system, time by an alarm, and an
audit hook writes down everything Python can be made to do: imports, compilation, execution, processes, files other than
the one that is read.
"""

from __future__ import annotations

import codecs
import json
import pickletools
import random
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

MEMORY = 1 << 30  # bytes a read may claim above what the imported libraries take
SECONDS = 10.0
WATCHED = ("exec", "compile", "import", "code.", "marshal.", "pickle.", "os.", "subprocess.", "socket.", "ctypes.")
NAMES = [
    "os",
    "system",
    "builtins",
    "eval",
    "torch_utils.persistence",
    "_reconstruct_persistent_obj",
    "collections",
    "OrderedDict",
    "torch._utils",
    "_rebuild_tensor_v2",
    "_rebuild_parameter",
    "torch.storage",
    "_load_from_bytes",
    "_codecs",
    "encode",
    "numpy",
    "dtype",
    "ndarray",
    "O8",
    "f4",
    "dnnlib.util",
    "EasyDict",
    "ModuleDict",
    "storage",
    "\ud800",
]
WHOLE = [0, 1, 2, 3, 255, 256, 65_535, 2**30, 2**31 - 1, -1, -(2**31)]
LARGE = [2**31, 2**39, 2**61 - 1, 2**63 - 1, 2**63, 2**64, -(2**63), 2**2000]


def integer(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + value.to_bytes(4, "little", signed=True)
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw) % 256]) + raw


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + len(raw).to_bytes(4, "little") + raw


def binary(value: bytes) -> bytes:
    return b"B" + len(value).to_bytes(4, "little") + value


HUGE = [
    b"\x8e" + (2**62).to_bytes(8, "little"),
    b"B\xff\xff\xff\xff",
    b"X\xff\xff\xff\x7f",
    b"\x8d" + (2**63 - 1).to_bytes(8, "little"),
    b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f",
    b"\x8b\xff\xff\xff\x7f",
    b"r\xff\xff\xff\x7f",
    b"j\xff\xff\xff\x7f",
    b"cos\nsystem\n",
    b"cbuiltins\neval\n(X\x05\x00\x00\x001 + 1tR",
    b"((((((((",
    b")R",
    b"}]\x94a",
    b"](h\x00h\x00h\x00e",
    b"2",
    b"0",
    b"b",
    b"Q",
    b".",
]


def operations(data: bytes) -> list[tuple[str, Any, int, int]]:
    """(name, argument, start, end) of every opcode, as far as the pickle is whole."""
    found: list[tuple[str, Any, int]] = []
    with suppress(Exception):  # what is before the damage is what we want
        found.extend((op.name, arg, pos) for op, arg, pos in pickletools.genops(data))
    ends = [pos for _, _, pos in found[1:]] + [len(data)] * bool(found)
    return [(name, arg, pos, end) for (name, arg, pos), end in zip(found, ends, strict=True)]


def raw_mutation(data: bytes, rng: random.Random) -> bytes:
    """Blind damage: flipped bits, lost, doubled, cut and inserted bytes."""
    out, at = bytearray(data), rng.randrange(len(data) or 1)
    kind = rng.randrange(6)
    if kind == 0:
        for _ in range(rng.choice([1, 1, 2, 8])):
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del out[at:]
    elif kind == 2:
        del out[at : at + rng.choice([1, 2, 8, 64])]
    elif kind == 3:
        out[at:at] = out[at : at + rng.choice([1, 4, 64, 1024])] * rng.choice([1, 2, 16])
    elif kind == 4:
        out[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 1, 4])))
    else:
        other = rng.randrange(len(out))
        out[at : at + 32] = out[other : other + 32]
    return bytes(out)


def mutate(data: bytes, rng: random.Random, depth: int = 0) -> bytes:
    """Damage, half of it such that the stream stays a pickle and only its meaning changes."""
    if not data or rng.random() < 0.4:
        return raw_mutation(data, rng) if data else b"."
    ops = operations(data)
    blobs = [op for op in ops if op[0] in ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")]
    if blobs and depth == 0 and rng.random() < 0.4:  # a pickle within the pickle
        _, blob, start, end = rng.choice(blobs)
        return data[:start] + binary(mutate(blob, rng, 1)) + data[end:]
    if not ops:
        return raw_mutation(data, rng)
    name, arg, start, end = rng.choice(ops)
    if rng.random() < 0.6:  # rather a value than a structure
        values = [op for op in ops if isinstance(op[1], (int, float, str)) and op[0] != "PROTO"]
        name, arg, start, end = rng.choice(values or ops)
    if isinstance(arg, str) and rng.random() < 0.8:
        new = text(rng.choice([*NAMES, arg * rng.choice([2, 1000]), arg[:-1]]))
    elif isinstance(arg, int) and rng.random() < 0.7 and not name.endswith(("GET", "PUT", "FRAME")):
        new = integer(rng.choice([*WHOLE, *LARGE, arg + 1, -arg]))
    elif rng.random() < 0.3:
        new = data[start:end] + rng.choice(HUGE)
    elif rng.random() < 0.5:
        _, _, first, last = rng.choice(ops)
        new = data[first:last]
    else:
        new = rng.choice([b"", b"N", b"}", b"]", b"(", b")", b"\x8f", b"h\x00", b"\x93", b"R", b"\x81", b"Q", b"a"])
    return data[:start] + new + data[end:]


class Late(BaseException):
    """Raised by the alarm; no ``except Exception`` swallows it."""


def ring(*_: Any) -> None:
    raise Late


class Watch:
    """Reads files and notes what came of it."""

    def __init__(self) -> None:
        from aid_control.images.official.reader import backbone_arguments, read_official

        self.read, self.arguments = read_official, backbone_arguments
        self.armed, self.allowed, self.seen = False, "", list[str]()
        sys.addaudithook(self.hook)
        signal.signal(signal.SIGALRM, ring)

    def hook(self, event: str, args: tuple) -> None:
        if self.armed and (event.startswith(WATCHED) or (event == "open" and str(args[0]) != self.allowed)):
            self.seen.append(f"{event} {str(args)[:80]}")

    def outcome(self, path: Path) -> dict[str, Any]:
        """What reading one file comes to: ``read``, ``InputError`` or the name of what escaped."""
        self.allowed, self.seen, weights, message = str(path), [], 0, ""
        start = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self.armed = True
        try:
            official = self.read(path)
            json.dumps([official.kwargs, official.encoder, official.facts], allow_nan=False)
            weights = sum(t.numel() * t.element_size() for t in official.state_dict.values())
            kind = "read"
            self.arguments(official)
        except BaseException as error:  # noqa: BLE001 - whatever escapes is the finding
            kind, message = type(error).__name__, str(error)
        finally:
            self.armed = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds = time.perf_counter() - start
        return {"kind": kind, "message": message[-300:], "seconds": seconds, "weights": weights, "events": self.seen}


def peak(restart: bool = False) -> int:
    """The largest memory of the process, in bytes, from here on (with ``restart``) or since that was last said."""
    if restart:
        with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def main(folder: Path, mutations: int = 0, seed: int = 0) -> dict[str, Any]:
    watch = Watch()
    files = sorted(p for p in folder.iterdir() if p.suffix == ".pkl")
    # Libraries import parts of themselves at their first use: codecs of member names and of arguments of opcodes, ...
    for name in ("raw-unicode-escape", "cp437"):
        codecs.lookup(name)
    for path in sorted(folder.glob("*.warm")):
        watch.outcome(path)
    with open("/proc/self/statm") as statm:
        claimed = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (claimed + MEMORY, claimed + MEMORY))
    before, rng, found = peak(restart=True), random.Random(seed), {}
    if not mutations:
        for path in files:
            low = peak(restart=True)
            found[path.stem] = watch.outcome(path) | {"grown": peak() - low}
        return {"files": found}
    counts, bad, slowest, trial = Counter[str](), list[Any](), 0.0, folder / "trial"
    originals = [path.read_bytes() for path in files]
    for number in range(mutations):
        data = rng.choice(originals)
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            data = mutate(data, rng)
        trial.write_bytes(data)
        one = watch.outcome(trial)
        counts[one["kind"]] += 1
        slowest = max(slowest, one["seconds"])
        swallowed = any(word in one["message"] for word in ("MemoryError", "RecursionError"))
        if one["kind"] not in ("read", "InputError") or one["events"] or swallowed or one["weights"] > 2 * len(data):
            bad.append({"number": number, **one, "data": data[:4096].hex()})
    return {"counts": counts, "bad": bad[:10], "slowest": slowest, "grown": peak() - before}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), *map(int, sys.argv[2:]))))
