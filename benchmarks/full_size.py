"""Every published architecture at full size, random weights: what the guidance module adds to it.

``python benchmarks/full_size.py [threads] [largest]``.  All networks are counted (without memory); those of 64x64
images or latents up to ``largest`` million parameters are built and run once, with the guidance module (same channels)
beside them: its parameters over theirs, and the time of its steps over theirs for an image of 18 Heun steps (35 calls
of the backbone, 18 of the module, the encoder once).
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable

import torch

from aid_control.images.backbones.registry import CLASSES
from aid_control.images.guidance import Guidance
from aid_control.images.published import names, published

NAMES = [
    *(name for name in names() if name.startswith("edm-")),
    *(f"edm2-img512-{size}-2147483-0.100" for size in ("xxs", "xs", "s", "m", "l", "xl", "xxl")),
]
STEPS, CALLS = 18, 35


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one that warms up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


@torch.no_grad()
def main(threads: int = 1, largest: int = 300) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    print(f"{'network':32s}{'parameters':>16s}{'module':>10s}{'share':>8s}{'s a call':>10s}{'AID time':>10s}")
    for name in NAMES:
        known = published(name)
        cls = CLASSES["EDM2Precond" if known.family == "edm2" else known.class_name]
        with torch.device("meta"):
            net = cls(**known.kwargs)
        count = sum(p.numel() for p in net.parameters())
        assert count == known.parameters, f"{name}: {count} parameters, {known.parameters} known"
        if known.shape[1] != 64:
            print(f"{name:32s}{count:16,d}")
            continue
        module = Guidance(64, known.shape[0]).eval()
        share = module.parameter_count() / count
        line = f"{name:32s}{count:16,d}{module.parameter_count():10,d}{share:8.2%}"
        if count > largest * 1e6:
            print(line)
            continue
        net = cls(**known.kwargs).eval()
        x, mask = torch.randn(1, *known.shape), torch.ones(1, 1, 64, 64)
        labels = torch.eye(known.label_dim)[:1] if known.label_dim else None
        denoised = net(x, torch.tensor(1.0), labels)
        assert denoised.shape == x.shape and bool(denoised.isfinite().all())
        call = seconds(lambda net=net, x=x, labels=labels: net(x, torch.tensor(1.0), labels), 3)
        context = module.observe(x, mask)
        start = torch.tensor(79.0)
        step = seconds(lambda m=module, t=start, x=x, c=context, d=denoised: m(t, x, c, d), 9)
        guess = seconds(lambda m=module, x=x, mask=mask: m.encoder(x, mask), 9)
        added = (STEPS * step + guess) / (CALLS * call)
        print(f"{line}{call:10.3f}{added:10.2%}", flush=True)
        del net
        gc.collect()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
