r"""A denoiser that sees what is known of the image, $D(x, y, M; s)$: EDM's preconditioning around a wider U-Net.

$$
D(x, y, M; s) = c_{\mathrm{skip}}(s)\, x + c_{\mathrm{out}}(s)\,
F\big([\,c_{\mathrm{in}}(s)\, x,\; M y,\; M\,];\; c_{\mathrm{noise}}(s)\big)
$$

with EDM's coefficients (`precond.EDMPrecond`).  Conditioning by concatenation is that of Palette (Saharia et
al. 2022); the mask as a channel of its own lets one network serve all masks.

*Interface.*  $x$, $My$ and $M$ travel as one tensor of $2C + 1$ channels (`observed`), so that the network is called
like every other `precond.Denoiser` and whatever wraps one (counting, one image at a time) wraps this one too.
`Given` binds an observation and leaves $D(x; s)$.

*Start.*  `ConditionalDenoiser.from_backbone` takes the weights of a trained unconditional network and puts zeros
where the new channels enter: it equals that network until it is trained.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoint import load_tensors
from ...errors import InputError
from ..module_files import load_module, save_module
from ..official.reader import backbone_arguments, read_official
from .precond import UNETS, Denoiser, EDMPrecond
from .registry import weights_file
from .wrappers import Wrapped

__all__ = [
    "ConditionalDenoiser",
    "Given",
    "load_conditional",
    "network_arguments",
    "observed",
    "save_conditional",
]


def observed(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """What a `ConditionalDenoiser` is called with.

    Args:
        x: noisy images (B, C, H, W).
        y: images (B, C, H, W); what they hold in the hole is ignored.
        mask: (B, 1, H, W), 1 = known.

    Returns:
        [x, M y, M], (B, 2C + 1, H, W), in the precision of ``x``.
    """
    return torch.cat([x, torch.where(mask.bool(), y, 0.0).to(x), mask.to(x)], dim=1)


class ConditionalDenoiser(EDMPrecond):
    """The network of the module; called as ``net(observed(x, y, mask), sigma)``.

    Args:
        model_type: ``"SongUNet"`` or ``"DhariwalUNet"``.
        sigma_min: smallest supported noise level.
        sigma_max: largest.
        sigma_data: standard deviation of the data.
        **kwargs: see `precond.Denoiser`; ``img_channels`` is C, ``shape`` stays (C, H, W).

    Attributes:
        kwargs: the constructor's arguments, as a file stores them.
        backbone: fingerprint of the backbone it started from or is to be compared with; empty = any.
        facts: what is known of its training.

    Raises:
        ValueError: for an unknown ``model_type``.
    """

    def __init__(
        self,
        model_type: str = "SongUNet",
        sigma_min: float = 0.0,
        sigma_max: float = float("inf"),
        sigma_data: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(sigma_min, sigma_max, sigma_data, model_type=model_type, **kwargs)
        names = ("img_resolution", "img_channels", "label_dim", "use_fp16")
        inner = {name: value for name, value in kwargs.items() if name not in names}
        self.model = UNETS[model_type](
            img_resolution=self.img_resolution,
            in_channels=2 * self.img_channels + 1,
            out_channels=self.img_channels,
            label_dim=self.label_dim,
            **inner,
        )
        # as a file stores it; infinity is no JSON number
        self.kwargs: dict[str, Any] = dict(kwargs, model_type=model_type, sigma_data=sigma_data)
        if sigma_min > 0:
            self.kwargs["sigma_min"] = sigma_min
        if sigma_max < float("inf"):
            self.kwargs["sigma_max"] = sigma_max
        self.backbone, self.facts = "", dict[str, Any]()

    @classmethod
    def from_backbone(cls, net: Denoiser, kwargs: dict[str, Any]) -> ConditionalDenoiser:
        """A network that equals ``net`` whatever it is given, ready to be trained.

        Args:
            net: trained unconditional (or class-conditional) EDM network.
            kwargs: its constructor's arguments (`network_arguments`).

        Returns:
            The conditional network, with ``backbone`` set to the fingerprint of ``net``.

        Raises:
            InputError: for another preconditioning, or arguments that are not this network's.
        """
        if not isinstance(net, EDMPrecond):
            raise InputError(f"backbone is a {type(net).__name__}; expected EDMPrecond around a U-Net")
        try:
            out = cls(**kwargs)
            own = out.state_dict()
            trained = {name: _widened(value, own[name]) for name, value in net.state_dict().items()}
            out.load_state_dict(trained)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            first = " ".join(str(error).split())[:200]
            raise InputError(f"arguments {sorted(kwargs)} do not describe this backbone ({first})") from error
        out.backbone = net.fingerprint
        return out

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Denoise.

        Args:
            x: `observed` images (B, 2C + 1, H, W).
            sigma: noise level of the first C channels, a scalar or (B,).
            class_labels: one-hot (B, label_dim); ``None`` means the null class.
            augment_labels: (B, augment_dim) or ``None``.

        Returns:
            Denoised images (B, C, H, W), in the precision of the weights.

        Raises:
            InputError: for another number of channels.
        """
        c = self.img_channels
        if x.shape[1] != 2 * c + 1:
            raise InputError(f"input has {x.shape[1]} channels; expected {2 * c + 1}: noisy image, known part, mask")
        x = x.to(next(self.parameters()).dtype)
        sigma = torch.as_tensor(sigma, device=x.device, dtype=x.dtype).reshape(-1).expand(len(x))
        labels = None
        if self.label_dim:
            labels = x.new_zeros(1, self.label_dim) if class_labels is None else class_labels.to(x.dtype)
        c_skip, c_out, c_in, c_noise = (v.to(x.dtype) for v in self.coefficients(sigma))
        noisy, known = x[:, :c], x[:, c:]
        seen = torch.cat([c_in.reshape(-1, 1, 1, 1) * noisy, known], dim=1)
        with torch.autocast("cuda", torch.float16, enabled=self.use_fp16 and x.device.type == "cuda"):
            out = self.model(seen, c_noise, labels, augment_labels=augment_labels)
        return c_skip.reshape(-1, 1, 1, 1) * noisy + c_out.reshape(-1, 1, 1, 1) * out.to(x.dtype)


def _widened(trained: Tensor, own: Tensor) -> Tensor:
    """Weights of a layer that reads the image, with zeros for the channels that come after it."""
    if trained.shape == own.shape:
        return trained
    out = torch.zeros_like(own)
    out[:, : trained.shape[1]] = trained
    return out


class Given(Wrapped):
    """D(x; s) = D(x, y, M; s): a conditional denoiser, or a wrapper of one, with its observation bound.

    Args:
        inner: called with `observed`.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
    """

    def __init__(self, inner: Denoiser, y: Tensor, mask: Tensor) -> None:
        super().__init__(inner)
        self.y, self.mask = y, mask

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        return self.inner(observed(x, self.y, self.mask), sigma, class_labels, augment_labels)


def network_arguments(
    name_or_path: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """The constructor's arguments of an EDM backbone, as its file tells them.

    Args:
        name_or_path: as `registry.load_backbone` takes it.
        path: file of a published network.

    Returns:
        The keyword arguments, without ``precond``.

    Raises:
        InputError: for a file that is missing or damaged, or a backbone of another class than ``EDMPrecond``.
    """
    file = Path(path) if path is not None else weights_file(name_or_path, "backbone", "edm-faces64-mini")
    if file.suffix == ".pkl":
        precond, kwargs = backbone_arguments(read_official(file))
    else:
        metadata = load_tensors(file)[1]
        try:
            precond, kwargs = metadata["precond"], json.loads(metadata["kwargs"])
        except (KeyError, ValueError) as error:
            raise InputError(f"{file}: describes no backbone; expected metadata 'precond' and 'kwargs'") from error
    if precond != "EDMPrecond":
        raise InputError(f"{file}: is a {precond}; expected EDMPrecond")
    return kwargs


def save_conditional(
    path: str | os.PathLike[str], kind: str, net: ConditionalDenoiser, weights: dict[str, Tensor] | None = None
) -> None:
    """Write a conditional network atomically; the inverse of `load_conditional`.

    Args:
        path: target, ``.safetensors``.
        kind: what it was trained for, e.g. ``"palette"``.
        net: gives the arguments, the backbone's fingerprint, the facts and, without ``weights``, the weights.
        weights: averaged weights, names and shapes as in the state dict of ``net``; ``None`` = those of ``net``.
    """
    save_module(path, kind, net, net.kwargs, weights)


def load_conditional(
    name_or_path: str | os.PathLike[str], kind: str, example: str, device: torch.device | str = "cpu"
) -> ConditionalDenoiser:
    """Load a conditional network, frozen.

    Args:
        name_or_path: a shipped name or a ``.safetensors`` file.
        kind: what it must have been trained for.
        example: shipped name that messages suggest.
        device: where to put it.

    Returns:
        The network in evaluation mode, without gradients to its weights.

    Raises:
        InputError: if the file is missing, truncated, or of another kind.
    """
    net = load_module(name_or_path, kind, ConditionalDenoiser, example, "examples/train_baseline.py", device)
    return net.to(memory_format=torch.channels_last)
