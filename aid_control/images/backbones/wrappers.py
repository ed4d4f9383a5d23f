"""Denoisers around a denoiser: evaluated one image at a time, or with every evaluation counted."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .precond import Denoiser

__all__ = ["Counted", "OneByOne", "Wrapped"]


class Wrapped(Denoiser):
    """A denoiser that answers for another one: same images, levels, classes and fingerprint.

    Args:
        inner: the denoiser that does the work.
    """

    def __init__(self, inner: Denoiser) -> None:
        # Not Denoiser.__init__: there is no U-Net of its own.
        nn.Module.__init__(self)
        self.inner = inner
        for name in ("shape", "img_channels", "img_resolution", "label_dim", "use_fp16", "sigma_min", "sigma_max",
                     "fingerprint"):  # fmt: skip
            if hasattr(inner, name):  # signals have no resolution
                setattr(self, name, getattr(inner, name))
        self.training = inner.training

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.inner.round_sigma(sigma)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        return self.inner(x, sigma, class_labels, augment_labels)


class OneByOne(Wrapped):
    """Calls the denoiser with one image at a time: an image's result does not depend on its batch in any bit.

    Kernels for matrices and convolutions order their sums by the size of the batch; here they never see one.  On a CPU
    that costs little; on a GPU most of its use is lost.
    """

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        level = torch.as_tensor(sigma, dtype=torch.float64).reshape(-1).expand(len(x))

        def row(labels: Tensor | None, i: int) -> Tensor | None:
            return labels if labels is None or len(labels) != len(x) else labels[i : i + 1]

        parts = [
            self.inner(x[i : i + 1], level[i : i + 1], row(class_labels, i), row(augment_labels, i))
            for i in range(len(x))
        ]
        return torch.cat(parts)


class Counted(Wrapped):
    """Counts the images that pass forth and, for gradients, back.

    Args:
        inner: the denoiser that does the work.

    Attributes:
        forward_calls: images denoised so far.
        backward_calls: images whose gradient was taken (vector-Jacobian products).
    """

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.forward_calls, self.backward_calls = 0, 0

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        self.forward_calls += len(x)
        out: Tensor = super().forward(x, sigma, class_labels, augment_labels)
        if out.requires_grad:
            out.register_hook(self._back)  # type: ignore[no-untyped-call]
        return out

    def _back(self, gradient: Tensor) -> None:
        self.backward_calls += len(gradient)
