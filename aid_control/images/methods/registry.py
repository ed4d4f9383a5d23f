"""Methods by name, bound to a backbone and, where there is one, to a trained module; their calls counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InputError
from ..backbones.precond import Denoiser
from ..backbones.wrappers import Counted
from ..clock import Clock
from ..guidance import DEFAULT_GUIDANCE, load_guidance
from .aid import aid
from .daps import daps
from .davi import DEFAULT_DAVI, davi, load_davi
from .ddnm import ddnm
from .dps import dps
from .latentpaint import latentpaint
from .mcg import mcg
from .optimal_control import optimal_control
from .palette import DEFAULT_PALETTE, load_palette, palette
from .paste import paste
from .pigdm import pigdm
from .projection import projection
from .propagation import DEFAULT_PROPAGATION, load_propagation
from .red_diff import red_diff
from .repaint import repaint
from .replacement import replacement
from .sdedit import sdedit

__all__ = ["METHODS", "Bound", "Entry", "bind"]

COMMON = ("seeds", "class_labels", "clock", "callback", "module")  # keywords that are no option of a method


@dataclass(frozen=True)
class Entry:
    """A method as programs list it.

    Attributes:
        label: for tables and figures.
        run: the function, called like `task.Method`.
        load: reads the trained module that ``run`` takes as ``module``, (file or shipped name, device) -> module;
            ``None`` for methods without training.
        shipped: the module's shipped name.
    """

    label: str
    run: Callable[..., Tensor]
    load: Callable[..., nn.Module] | None = None
    shipped: str = ""

    @property
    def function(self) -> Callable[..., Tensor]:
        """``run`` itself, behind decorators such as ``torch.no_grad``."""
        return getattr(self.run, "__wrapped__", self.run)

    @property
    def defaults(self) -> dict[str, Any]:
        """The method's own options and their published values."""
        keywords = getattr(self.function, "__kwdefaults__", None) or {}
        return {name: value for name, value in keywords.items() if name not in COMMON}


METHODS: dict[str, Entry] = {
    "paste": Entry("pretrained flow, pasted", paste),
    "replacement": Entry("replacement", replacement),
    "repaint": Entry("RePaint", repaint),
    "dps": Entry("DPS", dps),
    "mcg": Entry("MCG", mcg),
    "projection": Entry("projection", projection),
    "ddnm": Entry("DDNM", ddnm),
    "pigdm": Entry("PiGDM", pigdm),
    "sdedit": Entry("SDEdit", sdedit),
    "daps": Entry("DAPS", daps),
    "red_diff": Entry("RED-diff", red_diff),
    "latentpaint": Entry("LatentPaint", latentpaint, load_propagation, DEFAULT_PROPAGATION),
    "optimal_control": Entry("optimal control", optimal_control),
    "davi": Entry("DAVI, one step", davi, load_davi, DEFAULT_DAVI),
    "palette": Entry("Palette", palette, load_palette, DEFAULT_PALETTE),
    "aid": Entry("AID", aid, load_guidance, DEFAULT_GUIDANCE),
}


class Bound:
    """A method with its backbone and settings: (y, mask, steps, seeds, ...) -> images; made by `bind`.

    Args:
        entry: the method.
        backbone: frozen denoiser.
        module: the trained module, if the method has one.
        options: of the method.
        one_by_one: give the method one image at a time, so that an image's result does not depend on its batch in any
            bit (kernels order their sums by the size of the batch).
    """

    def __init__(
        self, entry: Entry, backbone: Denoiser, module: nn.Module | None, options: dict[str, Any], one_by_one: bool
    ) -> None:
        self.entry, self.one_by_one, self.options = entry, one_by_one, dict(options)
        self.backbone = Counted(backbone)
        self.counted = [self.backbone]
        if isinstance(module, Denoiser):  # a network of the backbone's size: its calls count like the backbone's
            module = Counted(module)
            self.counted.append(module)
        if module is not None:
            self.options["module"] = module

    @property
    def forward_calls(self) -> int:
        """Images that passed forth through a network so far."""
        return sum(net.forward_calls for net in self.counted)

    @property
    def backward_calls(self) -> int:
        """Images whose gradient was taken so far, one a vector-Jacobian product."""
        return sum(net.backward_calls for net in self.counted)

    def __call__(
        self,
        y: Tensor,
        mask: Tensor,
        steps: int,
        seeds: Sequence[int],
        class_labels: Tensor | None = None,
        clock: Clock | None = None,
        callback: Callable[[int, Tensor], None] | None = None,
    ) -> Tensor:
        """Fill the holes; arguments as `task.Method`."""
        size = 1 if self.one_by_one else max(len(y), 1)
        out = []
        for i in range(0, len(y), size):
            rows = slice(i, i + size)
            labels = None if class_labels is None else class_labels[rows]
            out.append(
                self.entry.run(
                    self.backbone, y[rows], mask[rows], steps, seeds=seeds[rows], class_labels=labels, clock=clock,
                    callback=callback, **self.options,
                )
            )  # fmt: skip
        return torch.cat(out)


def bind(
    name: str,
    backbone: Denoiser,
    weights: str | os.PathLike[str] | nn.Module | None = None,
    options: dict[str, Any] | None = None,
    one_by_one: bool = True,
    device: torch.device | str = "cpu",
) -> Bound:
    """A method by name, bound to a backbone and its options.

    Args:
        name: key of `METHODS`.
        backbone: frozen denoiser.
        weights: the trained module, its file or shipped name; ``None`` = the shipped one.
        options: of the method (its keywords behind ``callback``).
        one_by_one: see `Bound`.
        device: where a module is put.

    Raises:
        InputError: for an unknown name, weights for a method without, options the method does not have, or a file of
            weights that cannot be read.
    """
    if name not in METHODS:
        raise InputError(f"method is {name!r}; expected one of {', '.join(METHODS)}")
    entry, options = METHODS[name], options or {}
    if entry.load is None and weights is not None:
        raise InputError(f"{name} has no trained module; expected no weights for it")
    for option in options:
        if option not in entry.defaults:
            raise InputError(f"{name} has no option {option!r}; expected {', '.join(entry.defaults) or 'none'}")
    module = weights
    if entry.load is not None and not isinstance(weights, nn.Module):
        module = entry.load(weights or entry.shipped, device)
    return Bound(entry, backbone, module if isinstance(module, nn.Module) else None, options, one_by_one)
