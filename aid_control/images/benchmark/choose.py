"""Which methods run: every one is tried on the first image up to its first step before anything is computed.

The trial makes all the checks of a method (options, trained module, backbone, number of steps) and stops at the first
call of the backbone or the first finished step; it costs next to nothing.  Without a list of methods, those that cannot
run here are left out and said so; a method that was asked for is refused.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..backbones.registry import fingerprint
from ..backbones.wrappers import Counted, Wrapped
from ..data import to_float
from ..methods.registry import METHODS, bind
from .grid import own_options
from .inputs import Inputs, Networks
from .settings import Settings

__all__ = ["choose"]


class _Passed(Exception):
    """Raised where a method starts to work: all its checks are behind it."""


class _Trial(Wrapped):
    """A denoiser that is not computed."""

    def forward(self, *inputs: Any, **kwargs: Any) -> Tensor:
        raise _Passed


def choose(
    settings: Settings, networks: Networks, inputs: Inputs, device: torch.device | str
) -> tuple[dict[str, str], list[str]]:
    """The methods that run.

    Args:
        settings: options.
        networks: the backbone they are given.
        inputs: images and masks.
        device: where modules are put.

    Returns:
        Name -> fingerprint of the trained module ("" without one), in the order of the table; and one sentence for
        every method that is left out.

    Raises:
        InputError: for a method that was asked for, by name or by options of its own, and cannot run; or if none can.
    """
    chosen: dict[str, str] = {}
    notes = []
    for name in settings.methods or METHODS:
        asked = settings.methods is not None or any(name in given for given in (settings.options, settings.weights))
        try:
            chosen[name] = _try(name, settings, networks, inputs, device)
        except InputError as error:
            if asked:
                raise InputError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error
            notes.append(f"{name} is left out: {error}")
    if not chosen:
        raise InputError(f"no method can run on this backbone ({notes[0]}); expected one that can")
    return chosen, notes


def _try(name: str, settings: Settings, networks: Networks, inputs: Inputs, device: torch.device | str) -> str:
    # a module made for the main network also stands beside its guided version, if the method itself accepts that
    fingerprints = networks.backbone.fingerprint, networks.main.fingerprint
    options = own_options(name, settings)
    bound = bind(name, _Trial(networks.backbone), settings.weights.get(name), options, device=device)
    module = bound.options.get("module")
    if isinstance(module, Counted):
        module = module.inner
    made_for = getattr(module, "backbone", "")
    if isinstance(made_for, str) and made_for not in ("", *fingerprints):
        raise InputError(f"its module was trained for backbone {made_for}; expected one for {fingerprints[0]}")
    labels = inputs.labels([0])
    labels = None if labels is None else labels.to(device)
    x = to_float(inputs.images([0])).to(device)
    for mask in settings.masks:
        m = inputs.masks(mask, [0]).to(device)
        for steps in settings.steps_of(name):
            with suppress(_Passed):
                bound(x * m, m, steps, inputs.seeds([0]), labels, callback=_stop)
    return fingerprint(module) if isinstance(module, nn.Module) else ""


def _stop(step: int, x: Tensor) -> None:
    raise _Passed
