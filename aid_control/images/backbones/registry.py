"""``load_backbone``: from a name or a file to a denoiser ``net(x, sigma, class_labels=None) -> D``."""

from __future__ import annotations

import hashlib
import json
import os
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...checkpoint import load_tensors, save_tensors
from ...errors import InputError
from .precond import PRECONDITIONERS, Denoiser

__all__ = ["DEFAULT_BACKBONE", "asset", "fingerprint", "load_backbone", "save_backbone", "weights_file"]

DEFAULT_BACKBONE = "edm-faces64-mini"


def asset(name: str) -> Path:
    """Path of a file shipped with :mod:`aid_control.images`."""
    return Path(str(resources.files("aid_control.images") / "assets" / name))


def weights_file(name_or_path: str | os.PathLike[str], kind: str, example: str) -> Path:
    """The file behind a shipped name (no suffix) or a path.

    Raises:
        InputError: for a name that is not shipped; a path is not looked at.
    """
    path = Path(name_or_path)
    if path.suffix:
        return path
    path = asset(f"{name_or_path}.safetensors")
    if not path.is_file():
        raise InputError(f"{name_or_path}: no such {kind}; expected {example} or a .safetensors file")
    return path


def fingerprint(net: torch.nn.Module) -> str:
    """Sixteen hex digits that depend on every weight (names, shapes, float32 values)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode() + str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_backbone(
    name_or_path: str | os.PathLike[str] = DEFAULT_BACKBONE, device: torch.device | str = "cpu"
) -> Denoiser:
    """Load a frozen denoiser.

    Args:
        name_or_path: a shipped name (``"edm-faces64-mini"``) or a ``.safetensors`` file whose metadata hold
            ``precond`` (class name) and ``kwargs`` (JSON of the constructor's arguments).
        device: where to put it.

    Returns:
        The denoiser in evaluation mode, without gradients to its weights; ``net.fingerprint`` identifies
        the weights.

    Raises:
        InputError: if the file is missing, truncated, or not a backbone.
    """
    path = weights_file(name_or_path, "backbone", DEFAULT_BACKBONE)
    tensors, metadata = load_tensors(path)
    try:
        cls = PRECONDITIONERS[metadata["precond"]]
        kwargs: dict[str, Any] = json.loads(metadata["kwargs"])
        net = cls(**kwargs)
    except (KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise InputError(
            f"{path}: describes no EDM backbone ({error}); expected metadata 'precond' "
            f"({', '.join(PRECONDITIONERS)}) and 'kwargs'"
        ) from error
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: weights do not fit the network they describe ({first})") from error
    net.fingerprint = fingerprint(net)
    return net.eval().requires_grad_(False).to(device)


def save_backbone(
    path: str | os.PathLike[str], precond: str, kwargs: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    """Write a backbone file that :func:`load_backbone` reads, atomically.

    Args:
        path: target.
        precond: class name of the preconditioner.
        kwargs: its constructor's arguments.
        weights: its state dict.
    """
    save_tensors(path, weights, {"precond": precond, "kwargs": json.dumps(kwargs)})
