r"""FID and KID of what a sampler makes with each clock, against real images, from the same noise for all clocks.

The features of a set (`images.realism`) are computed once, sixteen images at a time and set by set in turn, and kept in
one file a set: a run that was stopped goes on where it was, and a run of more images adds to what is there.

**Standard errors.**  KID is a U-statistic of two samples, generated $g$ (m images) and real $r$ (n images), and is kept
with its values when one image is left out,

$$
\mathrm{se}^2 = \tfrac{m - 1}m \sum_i (\mathrm{KID}_{-g_i} - \bar{\ })^2 + \tfrac{n - 1}n \sum_j
(\mathrm{KID}_{-r_j} - \bar{\ })^2
$$

(jackknife; Efron and Stein 1981).  Images i of two clocks come from the same noise and are compared with the same real
ones: for a difference of clocks both are left out together, so what they share cancels.  A bootstrap would not do: it
draws an image twice, and the kernel of an image with itself is no sample of the sum over $i \ne j$.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ...checkpoint import load_tensors, save_tensors
from ...errors import InputError
from ...images.backbones.precond import Denoiser
from ...images.backbones.registry import load_backbone
from ...images.benchmark.sets import inception
from ...images.clock import Clock, KarrasClock, LinearClock
from ...images.data import ImageSource, to_uint8
from ...images.inpaint import function_evaluations
from ...images.learned_clock import load_clock
from ...images.realism import fid, kid
from ...rollout import Solver
from .backbones import SOLVERS
from .images import BATCH, sample, steps_within

__all__ = ["Sampler", "Spread", "compare", "features_of_sets", "kernel_distance", "measure", "samplers"]

LEAST = 3  # images of a set: with one left out the sum over pairs needs two


@dataclass(frozen=True)
class Sampler:
    """What makes a set of images.

    Args:
        solver: ``"euler"`` or ``"heun"``.
        budget: calls an image that were allowed; 0 for the fine grid.
        name: of the clock.
        clock: noise levels.
        steps: of the solver.
    """

    solver: Solver
    budget: int
    name: str
    clock: Clock
    steps: int

    @property
    def key(self) -> str:
        """A name of it for files."""
        return f"{self.solver}-{self.budget}-{self.name}" if self.budget else self.name


class Spread(NamedTuple):
    """A kernel distance, or a difference of two, and its values with one image left out.

    Attributes:
        value: of all images.
        without_made: without the generated image i, (m,).
        without_real: without the real image j, (n,).
    """

    value: float
    without_made: Tensor
    without_real: Tensor

    def __sub__(self, other: Spread) -> Spread:
        made, real = self.without_made - other.without_made, self.without_real - other.without_real
        return Spread(self.value - other.value, made, real)

    @property
    def error(self) -> float:
        """Its standard error, by the jackknife."""
        sums = ((len(v) - 1) * v.var(correction=0) for v in (self.without_made, self.without_real))
        return float(sum(sums)) ** 0.5


def kernel_distance(real: Tensor, made: Tensor) -> Spread:
    """KID, all images in one subset, with what the jackknife needs.

    Args:
        real: features (n, D), n >= 3.
        made: features (m, D), m >= 3.

    Returns:
        The value of `realism.kid`, and those with an image left out.
    """
    r, g = real.double(), made.double()
    n, m, d = len(r), len(g), r.shape[1]

    def inner(x: Tensor) -> tuple[Tensor, Tensor]:
        """Sum over pairs of different images, whole and without the pairs of image i."""
        k = (x @ x.T / d + 1) ** 3
        rows = k.sum(1) - k.diagonal()
        return rows.sum(), rows.sum() - 2 * rows

    (all_r, less_r), (all_g, less_g) = inner(r), inner(g)
    cross = (g @ r.T / d + 1) ** 3
    both, own_r, own_g = cross.sum(), all_r / (n * (n - 1)), all_g / (m * (m - 1))
    without_made = less_g / ((m - 1) * (m - 2)) + own_r - 2 * (both - cross.sum(1)) / ((m - 1) * n)
    without_real = own_g + less_r / ((n - 1) * (n - 2)) - 2 * (both - cross.sum(0)) / (m * (n - 1))
    return Spread(float(own_g + own_r - 2 * both / (m * n)), without_made, without_real)


def samplers(net: Denoiser, solvers: Mapping[str, Mapping[str, Any]], fine: int) -> list[Sampler]:
    """Three clocks a solver and budget (Karras' grid, the learned one, uniform in sigma), and a fine grid.

    Args:
        net: gives the rounding of levels.
        solvers: solver to ``clock``, a name or file of a learned clock, and ``budgets``, calls an image.
        fine: Heun steps on Karras' grid; 0 = no such set.

    Returns:
        The fine one first, if there is one.

    Raises:
        InputError: for another solver, or a clock that is not there.
    """
    found = [Sampler("heun", 0, f"fine-{fine}", KarrasClock(), fine)] if fine else []
    for solver, options in solvers.items():
        if solver not in SOLVERS:
            raise InputError(f"fid.solvers names {solver}; expected {' or '.join(SOLVERS)}")
        known: Solver = "heun" if solver == "heun" else "euler"
        clocks = {"karras": KarrasClock(), "learned": load_clock(options["clock"]), "uniform": LinearClock()}
        for budget in options["budgets"]:
            for name, clock in clocks.items():
                found.append(Sampler(known, budget, name, clock, steps_within(net, budget, known, clock)))
    return found


def features_of_sets(
    net: Denoiser,
    made: Sequence[Sampler],
    source: ImageSource,
    features: Callable[[Tensor], Tensor],
    n: int,
    folder: Path,
    about: Mapping[str, str],
) -> tuple[dict[str, Tensor], float]:
    """Features of the first n real images and of images of seeds 0 to n - 1, from their files where they are there.

    Args:
        net: a denoiser.
        made: the samplers.
        source: real images.
        features: uint8 (N, C, H, W) -> (N, D).
        n: images a set.
        folder: of the files.
        about: what else the features depend on.

    Returns:
        Name of the set (``"real"``, or the sampler's key) to (n, D); seconds of the processor behind all files.
    """
    asked, pictures = dict[str, dict[str, str]](), dict[str, Callable[[range], Tensor]]()
    asked["real"] = {**about, "data": str(source.path), "images": str(len(source))}
    pictures["real"] = source.stack
    for s in made:
        levels = ", ".join(f"{v:.7g}" for v in s.clock.sigmas(s.steps).tolist())
        asked[s.key] = {**about, "backbone": str(net.fingerprint), "solver": s.solver, "levels": levels}

        def picture(seeds: range, s: Sampler = s) -> Tensor:
            return to_uint8(sample(net, seeds, s.steps, s.solver, s.clock))

        pictures[s.key] = picture
    found, seconds = dict[str, Tensor](), dict.fromkeys(asked, 0.0)
    for key, settings in asked.items():
        path = folder / f"features-{key}.safetensors"
        tensors, notes = load_tensors(path) if path.is_file() else ({}, {})
        if "features" in tensors and {k: notes.get(k) for k in settings} == settings:
            found[key], seconds[key] = tensors["features"], float(notes["seconds"])
    have = {key: len(found[key]) if key in found else 0 for key in asked}
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=n * len(asked), initial=sum(min(h, n) for h in have.values()), desc="features") as bar:
        # in turn, so that a run that is stopped leaves sets of one size
        while min(have.values()) < n:
            key = min(have, key=lambda k: have[k])
            more, start = range(have[key], min(have[key] + BATCH, n)), time.process_time()
            new = features(pictures[key](more))
            found[key] = torch.cat([found[key], new]) if key in found else new
            have[key], seconds[key] = len(found[key]), seconds[key] + time.process_time() - start
            path, notes = folder / f"features-{key}.safetensors", {**asked[key], "seconds": f"{seconds[key]:.1f}"}
            save_tensors(path, {"features": found[key]}, notes)
            bar.update(len(more))
    return {key: value[:n] for key, value in found.items()}, sum(seconds.values())


def compare(net: Denoiser, made: Sequence[Sampler], found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """FID and KID of every set, and its KID less that of Karras' grid in the same place.

    Args:
        net: counts calls.
        made: the samplers.
        found: features of `features_of_sets`, (n, D) a set.

    Returns:
        Rows: ``solver``, ``budget``, ``clock``, ``steps``, ``calls``, ``fid``, ``kid``, ``kid_error``, and for all but
        Karras' and the fine grid ``difference`` and ``difference_error``, otherwise ``None``.
    """
    real, rows = found["real"], list[dict[str, Any]]()
    spreads = {s.key: kernel_distance(real, found[s.key]) for s in made}
    for s in made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # few images: the page and the report say how many
            distance = fid(real, found[s.key])
        row: dict[str, Any] = {"solver": s.solver, "budget": s.budget, "clock": s.name, "steps": s.steps}
        row |= {"calls": function_evaluations(s.steps, s.solver, net, s.clock), "fid": distance}
        row |= {"kid": kid(real, found[s.key], 1, len(real))[0], "kid_error": spreads[s.key].error}
        gap = spreads[s.key] - spreads[f"{s.solver}-{s.budget}-karras"] if s.budget and s.name != "karras" else None
        rows.append(row | {"difference": gap and gap.value, "difference_error": gap and gap.error})
    return rows


def measure(c: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The part of the experiment, from options to numbers.

    Args:
        c: see ``fid`` in ``examples/conf/experiment/art.yaml``.
        folder: for the features.

    Returns:
        ``n``, ``rows`` of `compare`, and ``seconds`` of the processor behind the features.

    Raises:
        InputError: for options that do not fit, missing images, or a missing feature network.
    """
    if c["data"] is None:
        raise InputError("fid.data is null; expected a zip or a folder of real images")
    net = load_backbone(c["backbone"])
    source = ImageSource(c["data"], net.shape[-1])
    if not LEAST <= c["n"] <= len(source):
        raise InputError(f"fid.n is {c['n']} with {len(source)} real images; expected {LEAST} to {len(source)}")
    made = samplers(net, c["solvers"], c["fine"])
    network = inception(c["inception"], "cpu")
    if network is None:
        raise InputError("fid.inception is null; expected a file of the FID Inception network, or package")
    found, seconds = features_of_sets(net, made, source, network, c["n"], folder, {"inception": str(c["inception"])})
    return {"n": c["n"], "rows": compare(net, made, found), "seconds": seconds}
