"""Paired tests against enumeration, scipy and their own guarantees."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from aid_control.errors import InputError
from aid_control.images.metrics import bootstrap
from aid_control.images.paired import compare, compare_family, holm, sign_flip, wilcoxon


def normals(n, seed, mean=0.0):
    return mean + torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8))
@settings(deadline=None, max_examples=40)
def test_few_differences_take_all_signs(values):
    d = torch.tensor(values, dtype=torch.float64)
    sums = [
        sum(e * v for e, v in zip(signs, values, strict=True)) for signs in itertools.product((1, -1), repeat=len(d))
    ]
    upper = sum(s >= abs(sum(values)) for s in sums) / len(sums)
    assert sign_flip(d) == pytest.approx(min(1.0, 2 * upper))


def test_many_differences_are_drawn_and_near_the_t_test():
    d = normals(200, 0, 0.12)
    p = sign_flip(d, 20_000)
    expected = stats.ttest_1samp(d.numpy(), 0).pvalue
    assert 0.01 < expected < 0.5 and abs(p - expected) < 5 * math.sqrt(expected / 20_000) + 0.01
    assert sign_flip(d, 20_000) == p != sign_flip(d, 20_000, seed=1)
    assert sign_flip(-d, 20_000) == pytest.approx(p, abs=0.02)


def test_p_is_never_zero_and_one_without_differences():
    assert sign_flip(normals(500, 0, 5), 999) == pytest.approx(2 / 1000)
    assert sign_flip(torch.zeros(50)) == 1 and wilcoxon(torch.zeros(50)) == 1


def test_p_is_uniform_at_most_where_nothing_differs():
    for test in (lambda d: sign_flip(d, 199), wilcoxon):
        p = np.array([test(normals(30, k)) for k in range(300)])
        for level in (0.05, 0.2):
            assert (p <= level).mean() < level + 3 * math.sqrt(level * (1 - level) / 300)
        assert (p <= 0.5).mean() > 0.35


def test_wilcoxon_is_scipys_and_ranks_zeros():
    d = normals(40, 3, 0.3)
    assert wilcoxon(d) == stats.wilcoxon(d.numpy()).pvalue
    assert wilcoxon(10 * d) == wilcoxon(d) and wilcoxon(-d) == wilcoxon(d)
    assert wilcoxon(torch.cat([d, torch.zeros(200)])) > wilcoxon(d)  # many equal images say that little differs


def test_compare_holds_the_parts():
    a, b = normals(60, 0, 1), normals(60, 1)
    found = compare(a, b, flips=999, seed=4)
    assert (found.mean, found.low, found.high) == bootstrap(a - b, seed=4)
    assert found.n == 60 and found.p == sign_flip(a - b, 999, 4) and found.p_holm is None
    assert found.low < found.mean < found.high and found.p < 0.01
    turned = compare(b, a, flips=999)
    assert turned.mean == -found.mean and turned.p < 0.01
    assert compare(a, b, "wilcoxon").p == wilcoxon(a - b)
    assert compare(a, a).p == 1 and compare(a, a).mean == 0


def test_pairing_sees_what_means_hide():
    level = 10 * normals(50, 0)
    a, b = level + 0.2 + 0.1 * normals(50, 1), level
    assert compare(a, b).p < 0.001 < stats.ttest_ind(a.numpy(), b.numpy()).pvalue


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.9, 0.8]) == [1, 1]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_nothing_and_bonferroni(p):
    adjusted = holm(p)
    for raw, q in zip(p, adjusted, strict=True):
        assert raw <= q <= min(1.0, len(p) * raw) + 1e-15
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
    # the step-down procedure itself: reject while p_(i) <= level / (m - i)
    for level in (0.01, 0.05, 0.3):
        rejected = 0
        while rejected < len(p) and p[order[rejected]] * (len(p) - rejected) <= level:
            rejected += 1
        assert sum(q <= level for q in adjusted) == rejected


def test_a_family():
    pairs = {"psnr": (normals(40, 0, 1), normals(40, 1)), "lpips": (normals(40, 2), normals(40, 3))}
    found = compare_family(pairs, flips=999)
    assert list(found) == ["psnr", "lpips"]
    assert [c.p_holm for c in found.values()] == holm([c.p for c in found.values()])
    assert found["psnr"].p == compare(*pairs["psnr"], flips=999).p
    assert found["psnr"].p_holm == 2 * found["psnr"].p < 0.05 < found["lpips"].p_holm


def test_bad_input():
    a = normals(10, 0)
    with pytest.raises(InputError, match="one of each for every image"):
        compare(a, a[:5])
    with pytest.raises(InputError, match="1 of 10 differences are not finite"):
        compare(torch.cat([a[:9], torch.tensor([math.inf])]), a)
    with pytest.raises(InputError, match="at least 2"):
        compare(a[:1], a[:1])
    with pytest.raises(InputError, match="expected 'sign_flip' or 'wilcoxon'"):
        compare(a, a, "t")
    with pytest.raises(InputError, match="flips"):
        sign_flip(a, 0)
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match="from 0 to 1"):
            holm([0.5, p])
