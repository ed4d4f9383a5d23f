r"""One shard: a method on some images, its numbers an image, what it cost.

For a result $r$ of the image $x$ with mask $M$ (1 = known) the table holds PSNR, SSIM and LPIPS over the hole and over
the whole image (`metrics`, `perceptual`) and

$$
\text{known error} = \max_p M_p \, | r_p - x_p | ,
$$

0 for methods that keep known pixels exactly.  The methods get $M x$, so that nothing in the hole can leak.
Everything is measured an image at a time: kernels order their sums by the size of the batch.  Seconds are those of the
method alone; the peak is the resident memory of the process while the shard ran (of the GPU, if it ran there).
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoint import save_tensors
from ...memory import peak_memory
from ..backbones.precond import Denoiser
from ..data import to_float, to_uint8
from ..diversity import known_error
from ..methods.registry import METHODS, Bound, bind
from ..metrics import psnr, ssim
from ..perceptual import Lpips
from .grid import ORIGINALS, Shard, own_options
from .inputs import Inputs, Networks
from .sets import inception
from .settings import Settings

__all__ = ["Bench"]


class Bench:
    """What one process needs for its shards; every file is read once, when it is first needed.

    Args:
        settings: options.
        device: where networks are.

    Raises:
        InputError: for a backbone, images, masks, labels or feature networks that are not there or do not fit.
    """

    def __init__(self, settings: Settings, device: torch.device | str) -> None:
        self.settings, self.device = settings, device
        self.networks = Networks(settings, device)
        self.inputs = Inputs(settings, self.networks.main)
        self.lpips = Lpips(settings.lpips) if settings.lpips else None
        self.features = inception(settings.inception, device)
        self._bound: dict[str, Bound] = {}
        _warm_up(self.networks.backbone, self.inputs, device)

    def method(self, name: str) -> Bound:
        """A method with its options and module, loaded at the first call.

        Args:
            name: of the method.
        """
        if name not in self._bound:
            weights, options = self.settings.weights.get(name), own_options(name, self.settings)
            self._bound[name] = bind(
                name, self.networks.backbone, weights, options, self.settings.one_by_one, self.device
            )
        return self._bound[name]

    def run(self, shard: Shard, folder: Path) -> None:
        """Compute a shard and write its file: rows and times as JSON, pictures (and features) as tensors.

        Args:
            shard: what to compute.
            folder: of the files.
        """
        if shard.method == ORIGINALS:
            self._originals(shard, folder)
            return
        method, rows = self.method(shard.method), shard.rows
        clean, masks = to_float(self.inputs.images(rows)), self.inputs.masks(shard.mask, rows)
        seeds, labels = self.inputs.seeds(rows, shard.draw), self.inputs.labels(rows)
        size = 1 if self.settings.one_by_one else self.settings.batch
        _reset_peak(self.device)
        table: list[dict[str, Any]] = []
        seconds: list[float] = []
        pictures: list[Tensor] = []
        features: list[Tensor] = []
        for i in range(0, len(clean), size):
            part = slice(i, i + size)
            x, m = clean[part].to(self.device), masks[part].to(self.device)
            given = None if labels is None else labels[part].to(self.device)
            before = self.networks.passes(method)
            start = time.perf_counter()
            result = method(x * m, m, shard.steps, seeds[part], given).cpu()
            seconds += [(time.perf_counter() - start) / len(x)] * len(x)
            forward, backward = ((b - a) / len(x) for a, b in zip(before, self.networks.passes(method), strict=True))
            for j, image in enumerate(result[:, None], i):
                row = {"image": rows[j], "seed": seeds[j], **self.quality(image, clean[j : j + 1], masks[j : j + 1])}
                table.append({**row, "nfe_forward": forward, "nfe_backward": backward})
                if j < shard.pictures:
                    pictures.append(to_uint8(image))
                if self.features is not None and not shard.draw:
                    features.append(self.features(to_uint8(image)))
        tensors = {}
        if pictures:
            tensors["pictures"] = torch.cat(pictures)
        if features:
            tensors["features"] = torch.cat(features)
        facts = {"rows": table, "seconds": seconds, "peak_mb": _peak(self.device)}
        save_tensors(folder / shard.file, tensors, {"shard": json.dumps(facts)})

    def _originals(self, shard: Shard, folder: Path) -> None:
        """Features of the images themselves, for FID."""
        assert self.features is not None
        features = [self.features(image[None]) for image in self.inputs.images(shard.rows)]
        facts = {"rows": [], "seconds": [], "peak_mb": 0.0}
        save_tensors(folder / shard.file, {"features": torch.cat(features)}, {"shard": json.dumps(facts)})

    def quality(self, result: Tensor, clean: Tensor, mask: Tensor) -> dict[str, float | None]:
        """All metrics of one image.

        Args:
            result: (1, C, H, W) in [-1, 1].
            clean: the original, (1, C, H, W).
            mask: (1, 1, H, W), 1 = known.

        Returns:
            Column -> number; LPIPS is ``None`` without its network.
        """
        hole = 1 - mask
        values: dict[str, float | None] = {
            "psnr_hole": float(psnr(result, clean, hole)),
            "psnr_image": float(psnr(result, clean)),
            "ssim_hole": float(ssim(result, clean, hole)),
            "ssim_image": float(ssim(result, clean)),
            "lpips_hole": None,
            "lpips_image": None,
            "known_error": float(known_error(result, clean, mask)[0]),
        }
        if self.lpips is not None:
            values["lpips_hole"] = float(self.lpips(result, clean, hole))
            values["lpips_image"] = float(self.lpips(result, clean))
        return values


def _warm_up(backbone: Denoiser, inputs: Inputs, device: torch.device | str) -> None:
    """Two steps of the plain flow and one pass back: the first call of every kernel pays for its set-up."""
    x = torch.zeros(1, *inputs.shape, device=device, requires_grad=True)
    labels = inputs.labels([0])
    labels = None if labels is None else labels.to(device)
    METHODS["paste"].run(backbone, x.detach(), torch.zeros_like(x[:, :1]), 2, seeds=[0], class_labels=labels)
    with torch.enable_grad():
        out = backbone(x, 1.0, labels)
        if out.requires_grad:
            out.sum().backward()


def _reset_peak(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # Linux: forget the high-water mark, or a hungry shard would be charged to all later ones
        Path("/proc/self/clear_refs").write_text("5")


def _peak(device: torch.device | str) -> float:
    """MB (10^6 bytes)."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return peak_memory() / 1e6
