"""What guidance costs: wall time of AID over the pretrained flow, paired in one run.

``python benchmarks/guidance_overhead.py [pairs] [batch] [threads]`` runs the two in turn (18 Heun steps, the
bundled images repeated) and prints the ratio of every pair and its median.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from aid_control.images import inpaint, load_backbone, load_guidance
from aid_control.images.backbones.registry import asset
from aid_control.images.data import ImageSource, to_float
from aid_control.images.masks import make_mask


def main(pairs: int = 7, batch: int = 8, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    backbone, guidance = load_backbone(), load_guidance()
    faces = to_float(ImageSource(asset("faces"), 64).stack())
    y = faces.repeat(batch // len(faces) + 1, 1, 1, 1)[:batch]
    mask = make_mask("box", 64, 0).expand(batch, 1, 64, 64)

    def seconds(module: object) -> float:
        start = time.perf_counter()
        inpaint(backbone, module, y * mask, mask, steps=18, solver="heun")  # type: ignore[arg-type]
        return time.perf_counter() - start

    seconds(None), seconds(guidance)
    ratios = []
    for i in range(pairs):
        flow, aid = seconds(None), seconds(guidance)
        ratios.append(aid / flow)
        print(f"pair {i}: flow {flow / batch:.3f} s/image, AID {aid / batch:.3f} s/image, ratio {ratios[-1]:.3f}")
    print(f"median ratio {statistics.median(ratios):.3f} (batch {batch}, {threads} threads)")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
