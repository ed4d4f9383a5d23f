"""Blind damage to bytes, shared by the fuzzers."""

from __future__ import annotations

import random

__all__ = ["damage"]

INTERESTING = [0, 1, 0x7F, 0x80, 0xFF]


def damage(data: bytes, rng: random.Random) -> bytes:
    """Flipped bits, cuts, holes, doubled pieces, inserted bytes, overwritten numbers: one to four of them."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if not out:
            return bytes(out)
        at, kind = rng.randrange(len(out)), rng.randrange(7)
        if kind == 0:
            for _ in range(rng.choice([1, 1, 2, 8])):
                out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at:]
        elif kind == 2:
            del out[at : at + rng.choice([1, 2, 8, 64])]
        elif kind == 3:
            out[at:at] = out[at : at + rng.choice([1, 4, 64])] * rng.choice([1, 2, 16])
        elif kind == 4:
            out[at:at] = rng.randbytes(rng.choice([1, 1, 4]))
        elif kind == 5:
            out[at : at + 4] = bytes(rng.choice(INTERESTING) for _ in range(rng.choice([1, 2, 4])))
        else:
            # headers are at the start: half of the damage belongs there
            out[rng.randrange(min(64, len(out)))] = rng.choice([*INTERESTING, rng.randrange(256)])
    return bytes(out)
