"""Masks: convention, geometry of each kind, determinism, and refusal of what is not a mask."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from aid_control.errors import InputError
from aid_control.images import masks
from aid_control.images.masks import MASK_KINDS, check_mask, make_mask, read_mask

SEEDS = st.integers(0, 2**31)
SIZES = st.sampled_from([8, 16, 28, 32, 33, 48, 64])


def hole_fraction(mask):
    return 1 - mask.mean().item()


def bounding_box(mask):
    rows, columns = (mask[0] == 0).nonzero(as_tuple=True)
    return rows.min().item(), rows.max().item() + 1, columns.min().item(), columns.max().item() + 1


@given(st.sampled_from(MASK_KINDS), SIZES, SEEDS)
@settings(deadline=None, max_examples=60)
def test_every_kind_gives_a_valid_mask_that_depends_on_its_arguments_only(kind, size, seed):
    mask = make_mask(kind, size, seed)
    assert mask.shape == (1, size, size) and mask.dtype == torch.float32 and mask.is_contiguous()
    check_mask(mask)
    assert 0 < hole_fraction(mask) < 1
    torch.manual_seed(seed % 7)
    torch.rand(3)
    assert torch.equal(mask, make_mask(kind, size, seed))


def test_global_generator_is_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    for kind in MASK_KINDS:
        make_mask(kind, 32, 5)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("kind", ["random_box", "random", "freeform", "mixed"])
def test_seeds_give_different_masks(kind):
    assert len({make_mask(kind, 32, seed).numpy().tobytes() for seed in range(12)}) >= 9


@pytest.mark.parametrize("size", [8, 32, 64])
def test_box_and_half_geometry(size):
    quarter = size // 4
    for seed in (0, 9):
        box = make_mask("box", size, seed)
        assert bounding_box(box) == (quarter, 3 * quarter, quarter, 3 * quarter)
        assert hole_fraction(box) == 0.25
        half = make_mask("half", size, seed)
        assert half[..., : size // 2].min() == 1 and half[..., size // 2 :].max() == 0


@given(SIZES, SEEDS)
@settings(deadline=None)
def test_random_box_is_one_square_within_its_bounds(size, seed):
    mask = make_mask("random_box", size, seed)
    top, bottom, left, right = bounding_box(mask)
    side = bottom - top
    assert side == right - left and (mask == 0).sum() == side**2
    assert size / 4 <= side <= size * 5 / 8
    margin = size // 16
    assert min(top, left) >= margin and max(bottom, right) <= size - margin


def test_random_box_reaches_both_ends_of_its_range():
    boxes = [bounding_box(make_mask("random_box", 32, seed)) for seed in range(400)]
    sides = {bottom - top for top, bottom, _, _ in boxes}
    assert sides == set(range(8, 21))
    assert min(top for top, *_ in boxes) == 2 and max(right for *_, right in boxes) == 30


@given(SIZES, SEEDS, st.floats(0.001, 1))
@settings(deadline=None)
def test_random_has_exactly_the_coverage_asked_for(size, seed, coverage):
    mask = make_mask("random", size, seed, coverage)
    assert (mask == 0).sum() == max(1, round(coverage * size**2))


def test_random_coverage_is_uniform_by_default():
    fractions = np.array([hole_fraction(make_mask("random", 32, seed)) for seed in range(400)])
    assert 0.299 <= fractions.min() < 0.32 and 0.90 < fractions.max() <= 0.921
    assert abs(fractions.mean() - 0.61) < 0.03


def test_random_pixels_have_no_preferred_place():
    mean = torch.stack([make_mask("random", 8, seed, 0.5) for seed in range(400)]).mean(0)
    assert (mean - 0.5).abs().max() < 5 * 0.5 / 400**0.5


def test_freeform_hole_fraction_and_redrawing(monkeypatch):
    def fractions():
        return np.array([hole_fraction(make_mask("freeform", 64, seed)) for seed in range(450)])

    kept = fractions()
    assert kept.min() > 0 and kept.max() <= 0.5
    assert 0.25 < kept.mean() < 0.35 and kept.std() > 0.05
    monkeypatch.setattr(masks, "MAX_FREEFORM_HOLE", 1.0)
    drawn = fractions()
    assert (drawn > 0.5).any(), "no draw was refused: this test would not see a missing refusal"
    assert ((drawn != kept) == (drawn > 0.5)).all()


def test_freeform_is_the_majority_of_the_same_drawing_at_256():
    for seed in range(4):
        fine = 1 - make_mask("freeform", 256, seed)
        coarse = 1 - make_mask("freeform", 64, seed)
        blocks = fine.reshape(64, 4, 64, 4).mean((1, 3))
        # A draw whose hole is near one half may be refused at one size only; these seeds are not such.
        assert torch.equal(coarse[0], (blocks >= 0.5).float())


def test_freeform_strokes_are_strokes_not_dots():
    for seed in range(20):
        hole = make_mask("freeform", 64, seed)[0] == 0
        right_is_hole_too = (hole[:, 1:] & hole[:, :-1]).sum() / hole.sum()
        assert right_is_hole_too > 0.75


def test_mixed_weights_and_all_four_halves():
    size, seen, halves = 16, Counter(), set()
    sides = {torch.rot90(make_mask("half", size, 0), k, (1, 2)).numpy().tobytes() for k in range(4)}
    box = make_mask("box", size, 0)
    n = 600
    for seed in range(n):
        mask = make_mask("mixed", size, seed)
        data = mask.numpy().tobytes()
        if torch.equal(mask, box):
            seen["box"] += 1
        elif data in sides:
            seen["half"] += 1
            halves.add(data)
        else:
            seen["other"] += 1
    assert halves == sides
    assert abs(seen["box"] / n - 0.25) < 0.07 and abs(seen["half"] / n - 0.1) < 0.05


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match=r"'oval'.*box, random_box, half, random, freeform, mixed"):
        make_mask("oval", 32, 0)
    for kind in set(MASK_KINDS) - {"random"}:
        with pytest.raises(InputError, match=f"coverage 0.5.*'{kind}'"):
            make_mask(kind, 32, 0, coverage=0.5)
    for coverage in (0.0, -0.1, 1.01, float("nan")):
        with pytest.raises(InputError, match="coverage is"):
            make_mask("random", 32, 0, coverage)
    with pytest.raises(InputError, match="size is 4"):
        make_mask("box", 4, 0)


def save(path, array):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


@pytest.mark.parametrize("white", [1, 255])
def test_read_mask_white_is_known(tmp_path, white):
    mask = make_mask("freeform", 32, 3)
    path = save(tmp_path / "m.png", mask[0].numpy() * white)
    assert torch.equal(read_mask(path, 32), mask)


def test_read_mask_all_hole_and_all_known(tmp_path):
    assert read_mask(save(tmp_path / "hole.png", np.zeros((8, 8))), 8).sum() == 0
    assert read_mask(save(tmp_path / "known.png", np.full((8, 8), 255)), 8).sum() == 64


@pytest.mark.parametrize("background", [0, 1, 255])
@pytest.mark.parametrize("value", [2, 128, 254])
def test_read_mask_refuses_grey(tmp_path, background, value):
    array = np.full((8, 8), background)
    array[2, 5] = value
    path = save(tmp_path / "grey.png", array)
    with pytest.raises(InputError, match=rf"grey\.png: pixel value {value} at row 2, column 5; expected.*255"):
        read_mask(path, 8)


def test_read_mask_refuses_one_among_255(tmp_path):
    array = np.full((8, 8), 255)
    array[0, 3] = 1
    with pytest.raises(InputError, match=r"pixel value 1 at row 0, column 3"):
        read_mask(save(tmp_path / "m.png", array), 8)


def test_read_mask_names_file_and_sizes(tmp_path):
    path = save(tmp_path / "wide.png", np.zeros((8, 10)))
    with pytest.raises(InputError, match=r"wide\.png: is 10x8 pixels; expected 8x8"):
        read_mask(path, 8)
    with pytest.raises(InputError, match=r"gone\.png"):
        read_mask(tmp_path / "gone.png", 8)


def test_check_mask():
    batch = torch.ones(3, 1, 8, 8)
    batch[:, :, 2] = 0
    check_mask(batch)
    check_mask(torch.zeros(1, 8, 8))  # all hole: plain generation
    batch[1] = 1
    with pytest.raises(InputError, match=r"photo 1 of the batch: .*nothing to inpaint"):
        check_mask(batch, "photo")
    with pytest.raises(InputError, match="nothing to inpaint"):
        check_mask(torch.ones(1, 8, 8))
    for value in (0.5, -1.0, 2.0, float("nan"), float("inf")):
        bad = torch.zeros(1, 8, 8)
        bad[0, 1, 1] = value
        with pytest.raises(InputError, match=f"mask: holds the value {value:g}"):
            check_mask(bad)
