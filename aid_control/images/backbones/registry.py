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
from ..described import build_described, read_arguments
from ..official.reader import backbone_arguments, read_official
from ..published import Published, check_hash, published
from .edm2 import EDM2Precond
from .exact import ExactBackbone
from .gaussian import GaussianBackbone
from .mixture import MixtureBackbone
from .precond import PRECONDITIONERS, Denoiser

__all__ = ["DEFAULT_BACKBONE", "asset", "fingerprint", "load_backbone", "save_backbone", "save_exact", "weights_file"]

DEFAULT_BACKBONE = "edm-faces64-mini"
ALIASES = {"mixture": "mixture-faces64"}
CLASSES: dict[str, type[Denoiser]] = {
    **PRECONDITIONERS,
    "EDM2Precond": EDM2Precond,
    "Gaussian": GaussianBackbone,
    "Mixture": MixtureBackbone,
}


def asset(name: str) -> Path:
    """Path of a file shipped with `aid_control.images`.

    Args:
        name: of the file or folder, with its ending; whether it is there is not looked at.
    """
    return Path(str(resources.files("aid_control.images") / "assets" / name))


def weights_file(name_or_path: str | os.PathLike[str], kind: str, example: str) -> Path:
    """The file behind a shipped name (no suffix) or a path.

    Args:
        name_or_path: what the user gave.
        kind: what it should be, for the message, e.g. ``"backbone"``.
        example: what the message suggests.

    Raises:
        InputError: for a name that is not shipped; a path is not looked at.
    """
    path = Path(name_or_path)
    if path.suffix:
        return path
    path = asset(f"{name_or_path}.safetensors")
    if not os.path.isfile(path):  # pathlib raises for a name that is too long
        raise InputError(f"{name_or_path}: no such {kind}; expected {example} or a .safetensors file")
    return path


def fingerprint(net: torch.nn.Module) -> str:
    """Sixteen hex digits of SHA-256 over a network's state dict: names, shapes, float32 values.

    Args:
        net: any module; buffers count as well as parameters.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode() + str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_backbone(
    name_or_path: str | os.PathLike[str] = DEFAULT_BACKBONE,
    device: torch.device | str = "cpu",
    path: str | os.PathLike[str] | None = None,
    sha256: str | None = None,
) -> Denoiser:
    """Load a frozen denoiser.

    Args:
        name_or_path: a shipped name (``"edm-faces64-mini"``, ``"mixture-faces64"`` or short ``"mixture"``) or a
            ``.safetensors`` file whose metadata hold ``precond`` (a class name: one of `precond`, or
            ``Gaussian``, ``Mixture``) and ``kwargs`` (JSON of the constructor's arguments); or an official ``.pkl``
            of EDM or EDM2, read without running it; or, with ``path``, the name of a published network
            (`published`).
        device: where to put it.
        path: file of the published network (``.pkl``, or converted).
        sha256: what the file's hash should be.

    Returns:
        The denoiser in evaluation mode, without gradients to its weights; ``net.fingerprint`` identifies
        the weights.

    Raises:
        InputError: if the file is missing, truncated, not a backbone, or not the one that was named.
    """
    known = _published(str(name_or_path), path)
    if path is None:
        names = f"{DEFAULT_BACKBONE}, {', '.join(ALIASES.values())}"
        path = weights_file(ALIASES.get(str(name_or_path), name_or_path), "backbone", names)
    path = Path(path)
    if sha256 is not None:
        check_hash(path, sha256)
    official = path.suffix == ".pkl"
    precond, kwargs, tensors = _read_official(path) if official else _read_own(path)
    try:
        cls = CLASSES[precond]
        exact = issubclass(cls, ExactBackbone)
        halves = exact or official  # stored in half precision, or as their training left them
        # claim no memory before the tensors are known to fit: a file may describe a network of any size
        net = build_described(cls, kwargs, tensors, meta=halves)
    except (InputError, KeyError) as error:
        raise _no_backbone(path, error) from error
    try:
        net.load_state_dict({k: _single(v) for k, v in tensors.items()} if halves else tensors, assign=halves)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: weights do not fit the network they describe ({first})") from error
    if isinstance(net, ExactBackbone):
        try:
            net.check_weights()
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    if known is not None:
        _check_published(path, known, precond, net)
    net.fingerprint = fingerprint(net)
    # convolutions are 4 to 22 % faster on a CPU with the channels last in memory
    net.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return net.to(device)


def _published(name: str, path: str | os.PathLike[str] | None) -> Published | None:
    """The published network of that name, if there is one; with ``path`` there must be."""
    try:
        known = published(name)
    except InputError:
        if path is None:
            return None
        raise
    if path is None:
        if os.path.exists(name):  # a file that happens to be called so
            return None
        raise InputError(
            f"{name}: not shipped; obtain {known.url} ({known.page}, {known.licence}) and pass path={known.file}"
        )
    return known


def _check_published(path: Path, known: Published, precond: str, net: Denoiser) -> None:
    """Refuse a file that holds another network than the name says."""
    own = precond.removeprefix("EDM2")  # the original calls it Precond
    count = sum(p.numel() for p in net.parameters())
    wanted = (known.class_name, tuple(known.shape), known.label_dim, known.parameters or count)
    found = (own, tuple(net.shape), net.label_dim, count)
    if found != wanted:
        raise InputError(
            f"{path}: a {own} of images {found[1]}, {found[2]} classes, {found[3]:,} parameters; expected "
            f"{known.name}: {wanted[0]}, {wanted[1]}, {wanted[2]} classes, {wanted[3]:,} parameters"
        )


def _no_backbone(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path}: describes no backbone ({error}); expected metadata 'precond' ({', '.join(CLASSES)}) and 'kwargs'"
    )


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _read_own(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Class name, its arguments and the weights of a ``.safetensors`` file."""
    tensors, metadata = load_tensors(path)
    try:
        return metadata["precond"], read_arguments(metadata["kwargs"]), tensors
    except (KeyError, InputError) as error:
        raise _no_backbone(path, error) from error


def _read_official(path: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """The same of an official pickle, which is read without running it (`official`)."""
    official = read_official(path)
    try:
        precond, kwargs = backbone_arguments(official)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return precond, kwargs, official.state_dict


def save_backbone(
    path: str | os.PathLike[str], precond: str, kwargs: dict[str, Any], weights: dict[str, Tensor]
) -> None:
    """Write a backbone file that `load_backbone` reads, atomically.

    Args:
        path: target.
        precond: class name (see `load_backbone`).
        kwargs: its constructor's arguments.
        weights: its state dict, names and shapes as the class makes them.
    """
    save_tensors(path, weights, {"precond": precond, "kwargs": json.dumps(kwargs)})


def save_exact(path: str | os.PathLike[str], net: ExactBackbone) -> None:
    """Write an exact backbone in half precision (float16 images): what is loaded differs by that rounding.

    Args:
        path: target, ``.safetensors``.
        net: a `MixtureBackbone` or a `GaussianBackbone`.
    """
    name = next(name for name, cls in CLASSES.items() if cls is type(net))
    save_backbone(path, name, net.kwargs, net.compact())
