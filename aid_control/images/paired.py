r"""Is method a better than method b on the same images?  Paired tests, and Holm's correction for a family of them.

With differences $d_i = a_i - b_i$ of $n$ images: the mean with its bootstrap interval (`metrics.bootstrap`),
and a two-sided p-value.

*Sign flips*: if the methods are exchangeable image by image, $d$ has the law of $(\pm d_i)$, so

$$
p = 2 \Pr_{\epsilon} \Big( \sum_i \epsilon_i d_i \ge \big| \sum_i d_i \big| \Big), \qquad
\hat p = 2\, \frac{1 + \#\{\ldots\}}{1 + \text{flips}},
$$

exactly over all $2^n$ signs where those are at most ``flips``, otherwise by drawing, counting the observed one
(Phipson & Smyth 2010), so that p is never below 2 / (1 + flips); at most 1.

*Wilcoxon* (1945): signed ranks, for differences with heavy tails; zeros take part in the ranking (Pratt 1959).

*Holm* (1979): the sorted $p_{(1)} \le \dots \le p_{(m)}$ become $\max_{j \le i} \min(1, (m - j + 1) p_{(j)})$, which
bounds the chance of any false claim in the family.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from ..errors import InputError
from .metrics import bootstrap

__all__ = ["Comparison", "compare", "compare_family", "holm", "sign_flip", "wilcoxon"]

Test = Literal["sign_flip", "wilcoxon"]
KEY = 0xF11B
AT_ONCE = 1 << 22  # numbers held while signs are drawn


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of a and b.

    Args:
        n: images.
        mean: of a - b.
        low: lower end of its 95 % bootstrap interval.
        high: upper end.
        p: two-sided p-value of no difference.
        p_holm: the same after Holm's correction over a family; ``None`` outside one.
    """

    n: int
    mean: float
    low: float
    high: float
    p: float
    p_holm: float | None = None


def _numbers(values: Tensor) -> NDArray[np.float64]:
    v = values.detach().double().flatten().cpu().numpy()
    bad = int((~np.isfinite(v)).sum())
    if len(v) < 2 or bad:
        raise InputError(f"{bad} of {len(v)} differences are not finite; expected at least 2 numbers, all finite")
    return v


def sign_flip(differences: Tensor, flips: int = 20_000, seed: int = 0) -> float:
    """Two-sided p-value of the mean difference by flipping signs.

    Args:
        differences: (n,), finite, n >= 2.
        flips: drawn sign patterns; all 2^n are taken if there are no more than that.
        seed: of the drawing.

    Returns:
        p in (0, 1]; 1 for differences that are all zero.

    Raises:
        InputError: for too few or non-finite differences, or no flips.
    """
    d = _numbers(differences)
    if flips < 1:
        raise InputError(f"{flips} flips; expected at least 1")
    rng = np.random.default_rng([KEY, seed % 2**32])
    found = stats.permutation_test(
        (d,), np.mean, permutation_type="samples", vectorized=True, n_resamples=flips,
        batch=max(1, AT_ONCE // len(d)), alternative="two-sided", rng=rng,
    )  # fmt: skip
    return float(found.pvalue)


def wilcoxon(differences: Tensor) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test.

    Args:
        differences: (n,), finite, n >= 2.

    Returns:
        p in (0, 1]; 1 for differences that are all zero.

    Raises:
        InputError: for too few or non-finite differences.
    """
    d = _numbers(differences)
    return float(stats.wilcoxon(d, zero_method="pratt").pvalue) if d.any() else 1.0


def compare(
    a: Tensor, b: Tensor, test: Test = "sign_flip", resamples: int = 2000, flips: int = 20_000, seed: int = 0
) -> Comparison:
    """Mean of a - b over the images, its interval and its p-value.

    Args:
        a: one number an image, (n,), finite (leave out images of infinite PSNR in both).
        b: those of the other method, like ``a``: on the same images in the same order.
        test: ``"sign_flip"`` or ``"wilcoxon"``.
        resamples: of the bootstrap.
        flips: of signs, for ``"sign_flip"``.
        seed: of both.

    Raises:
        InputError: for unequal lengths, fewer than two images, values that are not finite, another test.
    """
    if a.shape != b.shape:
        raise InputError(f"{tuple(a.shape)} and {tuple(b.shape)} numbers; expected one of each for every image")
    d = torch.as_tensor(_numbers(a.double() - b.double()))
    if test == "sign_flip":
        p = sign_flip(d, flips, seed)
    elif test == "wilcoxon":
        p = wilcoxon(d)
    else:
        raise InputError(f"test {test!r}; expected 'sign_flip' or 'wilcoxon'")
    mean, low, high = bootstrap(d, resamples, seed)
    return Comparison(len(d), mean, low, high, p)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    Args:
        p: the family's p-values.

    Raises:
        InputError: for a value outside [0, 1].
    """
    wrong = [value for value in p if not 0 <= value <= 1]
    if wrong:
        raise InputError(f"p-value {wrong[0]}; expected numbers from 0 to 1")
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def compare_family(
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    test: Test = "sign_flip",
    resamples: int = 2000,
    flips: int = 20_000,
    seed: int = 0,
) -> dict[str, Comparison]:
    """`compare` for every pair, with Holm's correction over all of them.

    Args:
        pairs: name -> (a, b), e.g. one for every metric, mask or rival.
        test: as in `compare`.
        resamples: as there.
        flips: as there; with m pairs the smallest p_holm is at least 2 m / (1 + flips).
        seed: as there.

    Raises:
        InputError: as there.
    """
    found = {name: compare(a, b, test, resamples, flips, seed) for name, (a, b) in pairs.items()}
    adjusted = holm([c.p for c in found.values()])
    return {name: dataclasses.replace(c, p_holm=q) for (name, c), q in zip(found.items(), adjusted, strict=True)}
