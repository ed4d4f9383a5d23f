"""Speed of the EDM networks against a plain reimplementation, paired in one run.

``python benchmarks/networks.py [pairs] [threads]``.  The plain form resamples by zero insertion or at full resolution
and keeps every second pixel, and writes attention as two products and a softmax; weights and results are the same.
For a narrow VP and VE network (32 channels, 64x64, batch 4): median ratio plain / ours of a forward pass and of a
training step, and of channels-last (which ``load_backbone`` chooses) over the usual layout.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from aid_control.images.backbones.layers import Conv2d, UNetBlock
from aid_control.images.backbones.precond import EDMPrecond


def plain_filter(self: Conv2d, x: Tensor, padding: int) -> Tensor:
    """The same FIR filter, by the textbook."""
    assert self.resample_filter is not None
    taps = self.resample_filter.to(x.dtype)
    channels, size = x.shape[1], taps.shape[-1]
    weight = taps.expand(channels, 1, -1, -1)
    if not self.up:
        return F.conv2d(x, weight, padding=padding, groups=channels)[:, :, ::2, ::2]
    spread = x.new_zeros(*x.shape[:2], 2 * x.shape[2] - 1, 2 * x.shape[3] - 1)
    spread[:, :, ::2, ::2] = x
    return F.conv2d(spread, 4 * weight.flip(2, 3), padding=size - 1 - padding, groups=channels)


def plain_attention(self: UNetBlock, x: Tensor) -> Tensor:
    qkv = self.qkv(self.norm2(x)).reshape(x.shape[0] * self.num_heads, -1, 3, x.shape[2] * x.shape[3])
    q, k, v = qkv.unbind(2)
    weights = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(k.shape[1])).softmax(dim=2)
    return self.proj(torch.einsum("nqk,nck->ncq", weights, v).reshape(x.shape))


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Inside, the networks are the plain ones."""
    kept = Conv2d._filter, UNetBlock._attend
    Conv2d._filter, UNetBlock._attend = plain_filter, plain_attention  # type: ignore[method-assign]
    try:
        yield
    finally:
        Conv2d._filter, UNetBlock._attend = kept  # type: ignore[method-assign]


def seconds(work: Callable[[EDMPrecond], object], net: EDMPrecond) -> float:
    start = time.perf_counter()
    work(net)
    return time.perf_counter() - start


def main(pairs: int = 9, threads: int = 1) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    small: dict[str, Any] = dict(img_resolution=64, img_channels=3, model_channels=32, channel_mult=[1, 2, 2])
    vp = dict(embedding_type="positional", encoder_type="standard", channel_mult_noise=1, resample_filter=[1, 1])
    ve = dict(embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=[1, 3, 3, 1])
    print(f"{threads} threads, {pairs} pairs")
    print(f"{'network':8s}{'work':16s}{'plain / ours':>14s}{'channels-last / ours':>22s}")
    for name, kwargs in (("vp", vp), ("ve", ve)):
        net, last = EDMPrecond(**small, **kwargs), EDMPrecond(**small, **kwargs)
        last.load_state_dict(net.state_dict())
        last.to(memory_format=torch.channels_last)
        x = torch.randn(4, 3, 64, 64)
        with torch.no_grad():
            ours = net(x, 1.0)
            with plain():
                assert torch.allclose(net(x, 1.0), ours, atol=1e-5), "the plain network is another one"

        def forward(which: EDMPrecond, x: Tensor = x) -> None:
            with torch.no_grad():
                which(x, 1.0)

        def step(which: EDMPrecond, x: Tensor = x) -> None:
            which.zero_grad()
            which(x, 1.0).square().mean().backward()

        for title, work in (("forward", forward), ("training step", step)):
            slow, layout = [], []
            work(net), work(last)
            for _ in range(pairs):
                own = seconds(work, net)
                with plain():
                    slow.append(seconds(work, net) / own)
                layout.append(seconds(work, last) / own)
            print(f"{name:8s}{title:16s}{statistics.median(slow):14.2f}{statistics.median(layout):22.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
