r"""Randomness by key, never by global state.

A generator is a pure function of its key, e.g. (seed, image index) or (seed, iteration), so that a result
does not depend on what ran before it, on the batch it was computed in, or on a restart.  Brownian motion of
the engine ``torchsde`` comes with the step size and the entropy always given: without ``dt`` its tree can grow
without bound, and ``torch.manual_seed`` does not fix its paths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torchsde
from torch import Tensor

__all__ = ["brownian", "generator", "normal", "per_image_normal"]


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on the whole key and on nothing else.

    Args:
        *key: integers; each counts modulo ``2**32``.
    """
    state = np.random.SeedSequence([k % 2**32 for k in key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state & np.uint64(2**63 - 1)))


def normal(shape: Sequence[int], *key: int, like: Tensor | None = None) -> Tensor:
    """Standard normal noise, a pure function of shape, key and dtype.

    Args:
        shape: of the noise.
        *key: integers, as in `generator`.
        like: a tensor of any shape that gives dtype and device; default float32 on the CPU.

    Returns:
        Noise of that shape.
    """
    dtype = torch.float32 if like is None else like.dtype
    noise = torch.randn(*shape, generator=generator(*key), dtype=dtype)
    return noise if like is None else noise.to(like.device)


def per_image_normal(seeds: Sequence[int], shape: Sequence[int], *key: int) -> Tensor:
    """Standard normal noise whose row i depends only on ``seeds[i]`` and ``key``.

    Args:
        seeds: one integer a row.
        shape: of one row.
        *key: further integers.

    Returns:
        Rows of that shape, one a seed, in float32.
    """
    return torch.stack([normal(shape, seed, *key) for seed in seeds])


def brownian(
    t0: float, t1: float, dt: float, size: Sequence[int], entropy: int, like: Tensor, area: bool = False
) -> torchsde.BrownianInterval:
    """A Brownian motion on [t0, t1] that is safe to query on a grid of step ``dt``.

    Args:
        t0: start.
        t1: end.
        dt: the solver's (smallest) step.
        size: shape of W, (B, m).
        entropy: the seed of the path.
        like: a tensor of any shape that gives dtype and device.
        area: also its space-time Levy area, for torchsde's srk.
    """
    return torchsde.BrownianInterval(
        t0=t0, t1=t1, size=tuple(size), entropy=entropy, dt=dt, dtype=like.dtype, device=like.device,
        levy_area_approximation="space-time" if area else "none",
    )  # fmt: skip
