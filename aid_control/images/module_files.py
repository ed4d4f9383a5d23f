"""Files of trained modules: weights, and as metadata what they are, of which backbone, and what is known of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from ..checkpoint import load_tensors, save_tensors
from ..errors import InputError
from .backbones.precond import Denoiser
from .backbones.registry import weights_file
from .described import build_described, read_arguments

__all__ = ["TrainedModule", "check_trained_for", "load_module", "save_module"]


class TrainedModule(Protocol):
    """What such a file holds: an ``nn.Module`` that knows its backbone's fingerprint and its own facts.

    Attributes:
        backbone: fingerprint of the backbone it was trained for; empty = any.
        facts: what is known of its training, JSON values by name.
    """

    backbone: str
    facts: dict[str, Any]

    def state_dict(self) -> dict[str, Any]:
        """Weights by name."""

    def load_state_dict(self, state: dict[str, Tensor]) -> Any:
        """Take weights.

        Args:
            state: tensors by name, of the shapes in `state_dict`.
        """

    def train(self, mode: bool) -> Any:
        """Enter or leave training.

        Args:
            mode: ``False`` = evaluation.
        """

    def requires_grad_(self, wanted: bool) -> Any:
        """Freeze, or not.

        Args:
            wanted: whether its weights take gradients.
        """

    def to(self, device: torch.device | str) -> Any:
        """Move it.

        Args:
            device: where to.
        """


M = TypeVar("M", bound=TrainedModule)


def save_module(
    path: str | os.PathLike[str],
    kind: str,
    module: TrainedModule,
    arguments: dict[str, Any],
    weights: dict[str, Tensor] | None = None,
) -> None:
    """Write a module atomically; the inverse of `load_module`.

    Args:
        path: target, ``.safetensors``.
        kind: what it is, as the file says.
        module: gives the backbone's fingerprint, the facts and, without ``weights``, the weights.
        arguments: of its constructor.
        weights: tensors by name, in place of its own and of the same shapes, e.g. averaged ones.
    """
    metadata = {
        "kind": kind, "config": json.dumps(arguments), "backbone": module.backbone, "facts": json.dumps(module.facts)
    }  # fmt: skip
    save_tensors(path, weights or module.state_dict(), metadata)


def load_module(
    name_or_path: str | os.PathLike[str],
    kind: str,
    build: Callable[..., M],
    example: str,
    writer: str,
    device: torch.device | str = "cpu",
    noun: str | None = None,
) -> M:
    """Load a module, frozen.

    Args:
        name_or_path: a shipped name or a ``.safetensors`` file.
        kind: what the file must say it is.
        build: the constructor.
        example: shipped name that messages suggest.
        writer: the program that writes such files, for messages.
        device: where to put it.
        noun: the kind in messages; default ``kind``.

    Raises:
        InputError: if the file is missing, truncated, of another kind, or its weights do not fit.
    """
    noun = noun or kind
    path = weights_file(name_or_path, noun, example)
    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != kind:
        raise InputError(f"{path}: not a {noun} file; expected one written by {writer}")
    try:
        module = build_described(build, read_arguments(metadata["config"]), tensors)
        module.load_state_dict(tensors)
        module.facts = dict(json.loads(metadata.get("facts", "{}")))
    except (InputError, KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: weights do not fit the module they describe ({first})") from error
    module.backbone = metadata.get("backbone", "")
    module.train(False)
    module.requires_grad_(False)
    module.to(device)
    return module


def check_trained_for(module: TrainedModule, backbone: Denoiser, noun: str) -> None:
    """Refuse a module that was trained for another backbone; one of no backbone fits all.

    Args:
        module: trained module.
        backbone: what it is to be used with.
        noun: what messages call the module.

    Raises:
        InputError: if the fingerprints differ.
    """
    if module.backbone and module.backbone != backbone.fingerprint:
        raise InputError(
            f"{noun} was trained for backbone {module.backbone}, this one is {backbone.fingerprint or 'unnamed'}; "
            f"expected {noun} trained for this backbone"
        )
