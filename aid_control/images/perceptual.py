r"""LPIPS (Zhang et al. 2018) over the whole image or a region such as the hole, with the ``lpips`` package's heads.

$$
d(a, b)(p) = \sum_l \sum_c w_{l,c} \big( \hat f_{l,c}(a) - \hat f_{l,c}(b) \big)^2 (p), \qquad
\mathrm{LPIPS} = \mathrm{mean}_p\, d(a, b)(p),
$$

$\hat f_l$ the normalised features of AlexNet's five layers (unit length over the channels $c$ at every position) and
$w_l \ge 0$ the published weights (version 0.1) of the squares.  Over a region the mean is that of the map, interpolated
to the resolution of the images and weighted.  Without a region it is the published number.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError

__all__ = ["Lpips"]


class Lpips(nn.Module):
    """(a, b, region) -> (B,), differentiable in a and b.

    Args:
        features: file of torchvision's AlexNet weights (``features.*`` keys).
        download: without a file, let torchvision fetch them; nothing else here uses the network.

    Raises:
        InputError: if the package or the file is missing, or the file holds something else.
    """

    def __init__(self, features: str | os.PathLike[str] | None = None, *, download: bool = False) -> None:
        super().__init__()
        if features is None and not download:
            raise InputError(
                "LPIPS needs AlexNet's features; expected torchvision's file alexnet-owt-7be5be79.pth (lpips=FILE of "
                "the programs), or download=True"
            )
        try:
            import lpips
        except ImportError as error:
            raise InputError("LPIPS needs the package lpips; expected pip install 'aid-control[metrics]'") from error
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's deprecated spelling inside the package
            self.net: Any = lpips.LPIPS(net="alex", spatial=True, pnet_rand=features is not None, verbose=False)
        if features is not None:
            _load(self.net.net, features)
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor, region: Tensor | None = None) -> Tensor:
        """LPIPS of images in [-1, 1].

        Args:
            a: images (B, 3, H, W).
            b: images of the same shape.
            region: weights (B, 1, H, W); ``None`` is the whole image, by the layers' own means.

        Returns:
            (B,); NaN where the region is empty.

        Raises:
            InputError: for unequal shapes, or images that have not three channels.
        """
        if a.shape != b.shape or a.dim() != 4 or a.shape[1] != 3:
            raise InputError(f"images of shapes {tuple(a.shape)} and {tuple(b.shape)}; expected two equal (B, 3, H, W)")
        self.net.spatial = region is not None
        value: Tensor = self.net(a.float(), b.float())
        if region is None:
            return value.flatten()
        weights = region.to(value).expand_as(value)
        return (weights * value).flatten(1).sum(1) / weights.flatten(1).sum(1)


def _load(net: nn.Module, path: str | os.PathLike[str]) -> None:
    expected = "torchvision's AlexNet weights (features.0.weight ...)"
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        # the package cuts AlexNet into slices and keeps the layers' numbers: slice2.3.weight is features.3.weight
        own = {name: weights[f"features.{name.split('.', 1)[1]}"] for name in net.state_dict()}
        net.load_state_dict(own)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; expected {expected}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"{path}: not readable as features ({reason}); expected {expected}") from error
