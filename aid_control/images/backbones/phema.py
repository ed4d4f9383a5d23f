r"""Post-hoc EMA: averages of the weights whose length is chosen after training (Karras et al. 2024, section 3).

*Power-function profiles.*  The average after training time $T$ (in images) weighs the weights of time $t$ by

$$
p(t; \gamma, T) = (\gamma + 1)\, t^\gamma / T^{\gamma + 1}, \quad 0 \le t \le T ,
$$

which a running average follows exactly: $\hat\theta \leftarrow \beta \hat\theta + (1 - \beta) \theta$ with
$\beta = (1 - \Delta/t)^{\gamma + 1}$ at the step that ends at $t$ and lasted $\Delta$ (the first one,
$t = \Delta$, forgets the start).  A profile is named by its standard deviation in units of $T$,

$$
s^2 = \frac{\gamma + 1}{(\gamma + 2)^2 (\gamma + 3)}
\iff \gamma^3 + 7 \gamma^2 + (16 - s^{-2}) \gamma + 12 - s^{-2} = 0 ,
$$

from 0 (no averaging) to $1/\sqrt{12}$ ($\gamma = 0$: the plain mean).

*Reconstruction.*  Averages are linear in the profile: of stored ones $p_i$, the combination nearest to a
wanted $p$ in least squares solves $A c = b$, $A_{ij} = \langle p_i, p_j \rangle$,
$b_i = \langle p_i, p \rangle$, with

$$
\langle p_a, p_b \rangle = \frac{(\gamma_a + 1)(\gamma_b + 1)}{\gamma_a + \gamma_b + 1}\,
\frac{(T_a/T_b)^{\gamma_b}}{T_b} \qquad (T_a \le T_b);
$$

$c$ is scaled to sum 1, so that constants (and constant buffers) come out as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ...errors import InputError

__all__ = [
    "PowerEMA",
    "Snapshot",
    "beta_at",
    "exp_to_std",
    "posthoc_coefficients",
    "profile_product",
    "reconstruct",
    "std_to_exp",
]

WIDEST = 1 / math.sqrt(12)
Array = NDArray[np.float64]


def std_to_exp(std: float) -> float:
    """The exponent gamma of a profile.

    Args:
        std: its relative standard deviation s.

    Returns:
        The largest real root of the module's cubic, 0 or more.

    Raises:
        InputError: outside (0, 1/sqrt(12)].
    """
    if not 0 < std <= WIDEST + 1e-12:
        raise InputError(f"std is {std}; expected more than 0 and at most 1/sqrt(12) = {WIDEST:.4f}")
    peak = float(std) ** -2
    roots = np.roots([1.0, 7.0, 16.0 - peak, 12.0 - peak])
    return max(float(roots.real.max()), 0.0)


def exp_to_std(gamma: float) -> float:
    """The relative standard deviation s of a profile; the inverse of `std_to_exp`.

    Args:
        gamma: its exponent, 0 or more.

    Raises:
        InputError: for a negative exponent.
    """
    if not gamma >= 0:
        raise InputError(f"gamma is {gamma}; expected 0 or more")
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def beta_at(std: float, t: float, delta: float) -> float:
    """Weight beta of the old average in one step.

    Args:
        std: relative standard deviation of the profile.
        t: images seen at the end of the step.
        delta: images of the step.

    Raises:
        InputError: unless 0 < delta <= t, and for a ``std`` out of range.
    """
    if not 0 < delta <= t:
        raise InputError(f"a step of {delta} images that ends after {t}; expected 0 < step <= end")
    return float((1 - delta / t) ** (std_to_exp(std) + 1))


def profile_product(gamma_a: ArrayLike, T_a: ArrayLike, gamma_b: ArrayLike, T_b: ArrayLike) -> Array:
    r"""Inner products $\langle p_a, p_b \rangle$ of profiles; the four arguments are broadcast against one another.

    Args:
        gamma_a: exponents.
        T_a: ends, in images.
        gamma_b: exponents of the others.
        T_b: their ends.

    Returns:
        The products, of the broadcast shape, float64.
    """
    a, end_a, b, end_b = (np.asarray(v, dtype=np.float64) for v in (gamma_a, T_a, gamma_b, T_b))
    fall = np.where(end_a < end_b, b, -a)
    return np.asarray((a + 1) * (b + 1) / (a + b + 1) * (end_a / end_b) ** fall / np.maximum(end_a, end_b))


def posthoc_coefficients(in_ofs: ArrayLike, in_std: ArrayLike, out_ofs: ArrayLike, out_std: ArrayLike) -> Array:
    """Weights of stored averages that synthesise others.

    Args:
        in_ofs: training times of the stored averages; broadcasts with ``in_std``.
        in_std: their profiles.
        out_ofs: times of the wanted averages; broadcasts with ``out_std``.
        out_std: their profiles.

    Returns:
        c, (number stored, number wanted); columns sum to 1.

    Raises:
        InputError: for stds out of range, times that are not positive, or two stored averages that are the same.
    """
    stored, wanted = (
        tuple(v.reshape(-1) for v in np.broadcast_arrays(np.asarray(t, np.float64), np.asarray(s, np.float64)))
        for t, s in ((in_ofs, in_std), (out_ofs, out_std))
    )
    for times in (stored[0], wanted[0]):
        if not len(times) or not np.all(np.isfinite(times) & (times > 0)):
            raise InputError(f"times are {times.tolist()}; expected at least one, positive and finite")
    pairs = list(zip(*stored, strict=True))
    if len(set(pairs)) < len(pairs):
        raise InputError(f"stored averages (time, std) are {pairs}; expected no two alike")
    ends, gammas = stored[0], np.array([std_to_exp(s) for s in stored[1]])
    ends_out, gammas_out = wanted[0], np.array([std_to_exp(s) for s in wanted[1]])
    A = profile_product(gammas[:, None], ends[:, None], gammas, ends)
    b = profile_product(gammas[:, None], ends[:, None], gammas_out, ends_out)
    c = np.linalg.solve(A, b)
    return np.asarray(c / c.sum(axis=0))


@dataclass(frozen=True)
class Snapshot:
    """A stored average.

    Attributes:
        t: training time, in images.
        std: relative standard deviation of its profile.
        weights: averaged state dict, shapes as in the network's.
    """

    t: float
    std: float
    weights: dict[str, Tensor]


def reconstruct(snapshots: Sequence[Snapshot], std: float, t: float | None = None) -> dict[str, Tensor]:
    """The average with another profile.

    Args:
        snapshots: stored averages, of any times and profiles (two profiles at each of several times, usually).
        std: the wanted profile.
        t: the wanted training time; default the latest stored.

    Returns:
        A state dict in the precision of the stored ones, summed in float64; what is not floating point is taken
        from the latest snapshot.

    Raises:
        InputError: for no snapshots, state dicts that differ in names or shapes, a time after the latest one, or
            arguments that `posthoc_coefficients` refuses.
    """
    if not snapshots:
        raise InputError("no snapshots; expected at least one stored average")
    latest = max(snapshots, key=lambda s: s.t)
    t = latest.t if t is None else t
    if t > latest.t:
        raise InputError(f"t is {t:g}, the latest snapshot is of {latest.t:g}; expected a time that was reached")
    sizes = {name: value.shape for name, value in latest.weights.items()}
    for other in snapshots:
        if {name: value.shape for name, value in other.weights.items()} != sizes:
            raise InputError(f"snapshots of {other.t:g} and {latest.t:g} images differ in names or shapes of weights")
    c = posthoc_coefficients([s.t for s in snapshots], [s.std for s in snapshots], t, std)[:, 0]
    out: dict[str, Tensor] = {}
    for name, value in latest.weights.items():
        if not value.is_floating_point():
            out[name] = value.clone()
            continue
        total = torch.zeros_like(value, dtype=torch.float64)
        for weight, snapshot in zip(c.tolist(), snapshots, strict=True):
            total.add_(snapshot.weights[name].to(total), alpha=weight)
        out[name] = total.to(value.dtype)
    return out


class PowerEMA:
    """Running averages of a training, one for each profile.

    Args:
        weights: state dict at the start, tensors of any shapes (copied).
        stds: profiles; two, as published, are enough to synthesise the others.

    Attributes:
        t: images seen at the last update.
        averages: std -> averaged state dict.

    Raises:
        InputError: for stds out of range or repeated.
    """

    def __init__(self, weights: Mapping[str, Tensor], stds: Sequence[float] = (0.05, 0.10)) -> None:
        if not stds or len(set(stds)) < len(stds):
            raise InputError(f"stds are {tuple(stds)}; expected at least one, no two alike")
        for std in stds:
            std_to_exp(std)
        self.t = 0.0
        self.averages = {float(s): {k: v.detach().clone() for k, v in weights.items()} for s in stds}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], t: float) -> None:
        """After an optimiser step; what is not floating point is copied.

        Args:
            weights: the state dict now, names and shapes as at the start.
            t: images seen, more than at the last call.

        Raises:
            InputError: if ``t`` has not grown.
        """
        if not t > self.t:
            raise InputError(f"t is {t:g} after {self.t:g}; expected more images than at the last update")
        for std, average in self.averages.items():
            beta = beta_at(std, t, t - self.t)
            for name, value in weights.items():
                if value.is_floating_point():
                    average[name].lerp_(value.detach().to(average[name]), 1 - beta)
                else:
                    average[name].copy_(value)
        self.t = float(t)

    def snapshots(self) -> list[Snapshot]:
        """Copies of the averages, to keep for `reconstruct`; one a profile.

        Raises:
            InputError: before the first update.
        """
        if not self.t:
            raise InputError("no update yet; expected at least one before a snapshot")
        return [Snapshot(self.t, std, {k: v.clone() for k, v in a.items()}) for std, a in self.averages.items()]

    def state(self) -> dict[str, Any]:
        """Everything needed to go on: ``t``, ``stds`` and ``averages`` (not copied)."""
        return {"t": self.t, "stds": list(self.averages), "averages": list(self.averages.values())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state.

        Args:
            state: what `state` gave; copied.
        """
        self.t = float(state["t"])
        self.averages = {
            float(std): {k: v.detach().clone() for k, v in average.items()}
            for std, average in zip(state["stds"], state["averages"], strict=True)
        }
