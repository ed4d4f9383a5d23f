"""An image's result is a function of the image, its mask and its seed: not of batch, order, process or history."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from aid_control.images.backbones.conditional import ConditionalDenoiser
from aid_control.images.backbones.precond import EDMPrecond
from aid_control.images.guidance import Guidance
from aid_control.images.masks import COVERED_KINDS, MASK_KINDS, make_mask
from aid_control.images.methods.latentpaint import bottleneck_channels
from aid_control.images.methods.propagation import Propagation
from aid_control.images.methods.registry import METHODS, Bound, bind

SIDE, N = 16, 5
FAST = {"optimal_control": {"iterations": 1}, "repaint": {"jump_length": 2, "resamples": 2}}
UNET = dict(
    img_resolution=SIDE, img_channels=3, model_channels=16, channel_mult=[1, 2], num_blocks=1, attn_resolutions=[8]
)
BOUND = 1e-4  # of pixels in [-1, 1], between batches of different size: float32 sums in another order


def filled(net: nn.Module) -> nn.Module:
    """Weights by their place, no layer zero: the same in every process."""
    rng = torch.Generator().manual_seed(0)
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=rng) / max(p[0].numel(), 4) ** 0.5 if p.dim() else p.data
    return net.eval().requires_grad_(False)


def backbone() -> EDMPrecond:
    return filled(EDMPrecond(**UNET))


def module(name: str, net: EDMPrecond) -> nn.Module | None:
    """What a method was trained to have, untrained and small."""
    if METHODS[name].load is None:
        return None
    if name == "aid":
        return filled(Guidance(SIDE, bands=4))
    if name == "latentpaint":
        return filled(Propagation(bottleneck_channels(net), 8))
    return filled(ConditionalDenoiser(**UNET))


def inputs() -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    y = 0.5 * torch.randn(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    return y, torch.stack([make_mask("mixed", SIDE, i) for i in range(N)]), [5, 0, 123456789, 7, 1]


def bound(name: str, one_by_one: bool = True, dtype: torch.dtype = torch.float32) -> Bound:
    net = backbone().to(dtype)
    own = module(name, net)
    return bind(name, net, None if own is None else own.to(dtype), FAST.get(name), one_by_one)


@pytest.mark.parametrize("name", METHODS)
def test_batch_order_and_history_do_not_matter(name):
    y, mask, seeds = inputs()
    apart, joint = bound(name), bound(name, one_by_one=False)
    whole = apart(y, mask, 3, seeds)
    assert torch.isfinite(whole).all()
    order = [3, 0, 4, 2, 1]
    shuffled = apart(y[order], mask[order], 3, [seeds[i] for i in order])
    assert torch.equal(shuffled, whole[order])  # bit for bit, one by one
    together = joint(y, mask, 3, seeds)
    mixed = joint(y[order], mask[order], 3, [seeds[i] for i in order])
    for other in (together, mixed[torch.tensor(order).argsort()]):
        assert (other - whole).abs().max() <= BOUND
    for rows in (slice(0, 1), slice(1, 4)):  # smaller batches
        assert (joint(y[rows], mask[rows], 3, seeds[rows]) - whole[rows]).abs().max() <= BOUND


@pytest.mark.parametrize("name", METHODS)
def test_global_randomness_is_neither_used_nor_touched(name):
    y, mask, seeds = inputs()
    method = bound(name)

    def run(state: int) -> torch.Tensor:
        torch.manual_seed(state)
        np.random.seed(state)
        random.seed(state)
        before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
        out = method(y[:1], mask[:1], 3, seeds[:1])
        after = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
        return out

    assert torch.equal(run(1), run(2))


@pytest.fixture(scope="module")
def dealt():
    """(method, inputs, results of all)."""
    method, given = bound("ddnm"), inputs()
    return method, given, method(*given[:2], 2, given[2])


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(N)), cuts=st.sets(st.integers(1, N - 1)))
def test_any_division_among_workers_gives_the_same(dealt, order, cuts):
    """Any order, dealt out in any portions, as by workers of any number: bit for bit, one by one."""
    method, (y, mask, seeds), whole = dealt
    parts = []
    for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), N], strict=True):
        rows = order[start:stop]
        parts.append(method(y[rows], mask[rows], 2, [seeds[i] for i in rows]))
    assert torch.equal(torch.cat(parts)[torch.tensor(order).argsort()], whole)


# --- masks ------------------------------------------------------------------------------------------------------


@given(kind=st.sampled_from(MASK_KINDS), seed=st.integers(0, 2**40), other=st.integers(0, 2**40))
def test_a_mask_is_a_function_of_kind_and_seed(kind, seed, other):
    first = make_mask(kind, SIDE, seed)
    torch.manual_seed(other)
    make_mask("mixed", SIDE, other)
    assert torch.equal(make_mask(kind, SIDE, seed), first)


@pytest.mark.parametrize("kind", ["random_box", "random", "mixed", "freeform", "freeform_thick"])
def test_masks_of_other_seeds_and_kinds_differ(kind):
    masks = {make_mask(kind, 64, seed).numpy().tobytes() for seed in range(20)}
    assert len(masks) >= 10  # boxes may meet
    assert not torch.equal(make_mask("random", 64, 0), make_mask("random", 64, 1))


# --- other processes --------------------------------------------------------------------------------------------


def digests(rows: list[int]) -> dict[str, list[str]]:
    """A hash an image: every method, and every mask, computed here."""
    torch.set_num_threads(1)
    y, mask, seeds = inputs()
    out = {name: bound(name)(y[rows], mask[rows], 2, [seeds[i] for i in rows]) for name in METHODS}
    out |= {f"mask {kind}": torch.stack([make_mask(kind, 64, i) for i in rows]) for kind in MASK_KINDS}
    out |= {f"mask {kind} 0.4": torch.stack([make_mask(kind, 64, i, 0.4) for i in rows]) for kind in COVERED_KINDS}
    return {name: [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in v] for name, v in out.items()}


def test_fresh_processes_give_the_same_bits():
    """All images here; three of them, and two backwards, in processes of their own with other hash seeds."""
    here = digests(list(range(N)))
    code = "import json, sys; sys.path.insert(0, {!r}); import test_determinism as t; print(json.dumps(t.digests({})))"
    children = []
    for rows, hash_seed in (([0, 1, 2], "0"), ([4, 3], "4242")):
        environment = os.environ | {
            "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        command = [sys.executable, "-c", code.format(str(Path(__file__).parent), rows)]
        children.append((rows, subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)))
    for rows, child in children:
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0
        assert json.loads(output) == {name: [images[i] for i in rows] for name, images in here.items()}
