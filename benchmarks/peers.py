r"""DPS here, in azula and in deepinv on one denoiser: time of a step, and what an image takes from its batch.

``python benchmarks/peers.py [out=outputs/peers] [steps=10] [batch=8] [reps=7] [threads=1] [seed=0]``

All three run their own loop around ``load_backbone()`` at the levels of deepinv's variance-preserving schedule, which
azula and we take as an argument, t = 1 ... 0 in equal steps,

$$
\sigma(t)^2 = e^{B(t)} - 1, \qquad \alpha(t) = e^{-B(t)/2}, \qquad B(t) = 0.1\, t + 9.95\, t^2 .
$$

*Time.*  The libraries take turns with noise of their own; the order rotates, a row is the median of the turns' ratios
(three times as many turns at batch 1 as the ``reps`` at ``batch``).  The bars of 1.05 hold for processor time, which
does not count the waiting for other programs; on an idle machine with one thread it is the wall time, whose ratios are
reported beside it.  Ours stands in every turn twice: how far the ratio of the two is from 1, and half the middle range
of the turns printed beside each ratio, say what is noise; 5 % allow for it.  How good the images are is not compared:
deepinv weighs the gradient otherwise.

*Same work.*  Before that, on our noise: azula's image at batch 1 is ours; deepinv's is where neither guides (weight 0,
its clipping of the denoiser off).  Calls of the denoiser are counted.

*Coupling.*  Image 0 alone, and in a batch of seven, on the same noise.  azula takes one norm over the batch; deepinv
and we take one an image.  What is left is the order in which kernels sum, and nothing is left image by image
(``registry.bind(one_by_one=True)``, the default there).

A peer that does not import is named, and its rows are left out.  Measured with azula 0.11.1, deepinv 0.5.0 and
torch 2.14.1, in an environment of their own that sees this project's packages too::

    python -m venv peers_env   # a .pth file in its site-packages names this project's site-packages
    peers_env/bin/python -m pip install --no-deps azula deepinv einops natsort h5py
    PYTHONPATH=. OMP_NUM_THREADS=1 peers_env/bin/python benchmarks/peers.py
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import Tensor

from aid_control.images import load_backbone
from aid_control.images.backbones.precond import Denoiser
from aid_control.images.backbones.registry import asset
from aid_control.images.backbones.wrappers import Counted
from aid_control.images.clock import GridClock
from aid_control.images.data import ImageSource, to_float
from aid_control.images.inpaint import starting_noise
from aid_control.images.masks import make_mask
from aid_control.images.methods.dps import KEY, dps
from aid_control.images.methods.registry import bind
from aid_control.noise import per_image_normal
from aid_control.report import Report

ZETA = 0.5
TOGETHER = 7
SAME = 1e-4  # the libraries round otherwise, and one of them keeps the state in other coordinates


class Run(Protocol):
    """(y, mask, seeds) -> images; with seeds, on our noise, else on noise of the library's own."""

    def __call__(self, y: Tensor, mask: Tensor, seeds: Sequence[int] | None = None) -> Tensor: ...


def schedule(t: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise scale at times t in [0, 1]; their ratio is the level sigma."""
    integral = 0.1 * t + 9.95 * t**2
    return torch.exp(-integral / 2), torch.sqrt(-torch.expm1(-integral))


def clock_of(steps: int) -> GridClock:
    """The levels that the peers visit in ``steps`` steps."""
    alpha, sigma = schedule(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1])
    return GridClock(tuple((sigma / alpha).tolist()))


def fixed_noise(seeds: Sequence[int]) -> Callable[..., Tensor]:
    """A ``randn_like`` whose k-th call is the noise our DPS draws in step k."""
    step = itertools.count()
    return lambda x, *_, **__: per_image_normal(seeds, x.shape[1:], KEY, next(step)).to(x)


def ours(net: Denoiser, steps: int, zeta: float = ZETA) -> Run:
    """Our function."""
    clock = clock_of(steps)

    def run(y: Tensor, mask: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        return dps(net, y, mask, steps, seeds=seeds, clock=clock, zeta=zeta)

    return run


def azula(net: Denoiser, steps: int) -> Run:
    """``azula.guidance.DPSSampler``; its zeta is ours, because it works in variance-preserving coordinates."""
    denoise: Any = importlib.import_module("azula.denoise")
    guidance: Any = importlib.import_module("azula.guidance")

    class Wrapped(denoise.Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.schedule = net, schedule

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = schedule(t)
            return denoise.DiracPosterior(mean=self.net(x_t / alpha, sigma / alpha))

    denoiser = Wrapped()

    def run(y: Tensor, mask: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        sampler = guidance.DPSSampler(
            denoiser, y=y * mask, A=lambda x: mask * x, zeta=ZETA, steps=steps, silent=True, dtype=torch.float64
        )
        if seeds is None:
            x = sampler(sampler.init(y.shape, dtype=y.dtype))
        else:
            start = starting_noise(net, seeds, len(y)) * schedule(sampler.timesteps[0])[1]
            with patch.object(torch, "randn_like", fixed_noise(seeds)):
                x = sampler(start.to(y))
        return torch.where(mask.bool(), y, x)

    return run


def deepinv(net: Denoiser, steps: int, guided: bool = True) -> Run:
    """``deepinv.sampling.DPS`` in our range of images (``minus_one_one=False``: nothing to convert).

    Its state is in double precision by default; here it is in single, like the others'.
    """
    models: Any = importlib.import_module("deepinv.models")
    sampling: Any = importlib.import_module("deepinv.sampling")
    physics: Any = importlib.import_module("deepinv.physics")

    class Wrapped(models.Denoiser):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
            denoised: Tensor = self.net(x, sigma)
            return denoised

    # its num_steps are the times, one more than the steps
    sampler = sampling.DPS(
        Wrapped(), num_steps=steps + 1, weight=float(guided), minus_one_one=False, dtype=torch.float32
    )
    if not guided:
        sampler.data_fidelity.clip = None

    def run(y: Tensor, mask: Tensor, seeds: Sequence[int] | None = None) -> Tensor:
        operator = physics.Inpainting(img_size=tuple(y.shape[1:]), mask=mask)
        if seeds is None:
            x = sampler(y * mask, operator, x_init=tuple(y.shape))
        else:
            start = starting_noise(net, seeds, len(y)) * schedule(torch.ones((), dtype=torch.float64))[1]
            with patch.object(type(sampler.solver), "randn_like", staticmethod(fixed_noise(seeds))):
                x = sampler(y * mask, operator, x_init=start.to(y))
        return torch.where(mask.bool(), y, x)

    return run


def importable(make: Callable[[Denoiser, int], Run], net: Denoiser) -> bool:
    """Whether the library is here; says so if it is not."""
    try:
        make(net, 2)
    except (ImportError, OSError, RuntimeError) as error:  # of the latter kinds: what a broken torchvision raises
        print(f"{make.__name__} does not import ({' '.join(str(error).split())[:120]}); its rows are left out.")
        return False
    return True


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def in_turns(runs: dict[str, Run], y: Tensor, mask: Tensor, turns: int) -> dict[str, list[tuple[float, float]]]:
    """Name -> seconds of the processor and of the wall, of each turn."""
    names = list(runs)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for name in names:  # a rehearsal
        runs[name](y, mask)
    for turn in range(turns):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            wall, processor = time.perf_counter(), time.process_time()
            runs[name](y, mask)
            seconds[name].append((time.process_time() - processor, time.perf_counter() - wall))
    return seconds


def compare(report: Report, runs: dict[str, Run], y: Tensor, mask: Tensor, steps: int, turns: int) -> None:
    """Time the runs in turns, print the table and add the rows."""
    seconds, size = in_turns(runs, y, mask, turns), len(y)
    print(
        f"batch {size}, {steps} steps, {turns} turns, medians: ms of processor (wall) a step and image; ours / theirs"
    )
    for name, times in seconds.items():
        ms = [1e3 * statistics.median(column) / steps / size for column in zip(*times, strict=True)]
        pairs = list(zip(seconds["ours"], times, strict=True))
        processor, wall = ([own[i] / theirs[i] for own, theirs in pairs] for i in (0, 1))
        ratio, walls = statistics.median(processor), statistics.median(wall)
        low, _, high = statistics.quantiles(processor, n=4)
        print(f"  {name:12}{ms[0]:8.2f} ({ms[1]:.2f}){ratio:8.3f} +- {(high - low) / 2:.3f} ({walls:.3f})")
        row = f"batch {size}: ours / {name}, processor time of a step"
        if name == "ours again":
            report.near(row, ratio, 1.0, 0.05)
        elif name != "ours":
            report.below(row, ratio, 1.05)
            report.add(f"batch {size}: ours / {name}, wall time of a step", walls, "reported", True)


def main(
    out: str = "outputs/peers",
    steps: int = 10,
    batch: int = 8,
    reps: int = 7,
    threads: int = 1,
    seed: int = 0,
) -> int:
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    net = load_backbone()
    makers = [make for make in (azula, deepinv) if importable(make, net)]
    report = Report(
        program="benchmarks/peers.py", steps=steps, batch=batch, reps=reps, threads=threads, seed=seed,
        peers={make.__name__: version(make.__name__) for make in makers},
    )  # fmt: skip
    size = max(batch, TOGETHER)
    faces = to_float(ImageSource(asset("faces"), 64).stack())
    y = faces.repeat(-(-size // len(faces)), 1, 1, 1)[:size]
    mask = make_mask("box", 64, seed).expand(size, 1, 64, 64)
    seeds = range(seed, seed + TOGETHER)
    one, few = (y[:1], mask[:1], seeds[:1]), (y[:TOGETHER], mask[:TOGETHER], seeds)

    alone: dict[str, Tensor] = {}
    for make in (ours, *makers):
        name, counted = make.__name__, Counted(net)
        run = make(counted, steps)
        alone[name] = run(*one)
        calls = counted.forward_calls / steps
        coupled = difference(run(*few)[:1], alone[name])
        row = f"{name}: image 0 alone and in a batch of {TOGETHER}"
        if make is ours:
            report.near("ours: denoiser calls a step", calls, 1, 0)
            report.below(row, coupled, 1e-4)
        else:
            report.add(f"{name}: denoiser calls a step", calls, "reported", True)
            report.add(row, coupled, "reported", True)
    bound = bind("dps", net, options={"zeta": ZETA}, one_by_one=True)
    rows = [bound(*job[:2], steps, job[2], clock=clock_of(steps)) for job in (one, few)]
    report.below(f"ours, one by one: image 0 alone and in a batch of {TOGETHER}", difference(rows[0], rows[1][:1]), 0)
    if azula in makers:
        report.below("azula: image 0 alone, difference from ours", difference(alone["azula"], alone["ours"]), SAME)
    if deepinv in makers:
        free = difference(deepinv(net, steps, guided=False)(*one), ours(net, steps, zeta=0.0)(*one))
        report.below("deepinv: image 0 alone, unguided, difference from ours", free, SAME)

    runs = {make.__name__: make(net, steps) for make in (ours, *makers)} | {"ours again": ours(net, steps)}
    for size, turns in ((1, 3 * reps), (batch, reps)):
        compare(report, runs, y[:size], mask[:size], steps, turns)
    return report.finish(out)


if __name__ == "__main__":
    least = {"steps": 2, "batch": 1, "reps": 2, "threads": 1}
    try:
        words = dict(word.split("=", 1) for word in sys.argv[1:])
        options: dict[str, Any] = {name: value if name == "out" else int(value) for name, value in words.items()}
        inspect.signature(main).bind(**options)
        for name in least.keys() & options:
            if options[name] < least[name]:
                raise ValueError(f"{name} is {options[name]}, below {least[name]}")
    except (TypeError, ValueError) as error:
        print(f"error: {error}; expected out=DIR steps= batch= reps= threads= seed=", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(**options))
