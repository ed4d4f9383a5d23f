"""What single images do not show: FID and KID of a cell's results, and how results differ between seeds.

FID and KID compare the results under one mask with the originals (`realism`); diversity is over the draws of
the first few images (`diversity`), by LPIPS where its network is given and by the deviation of pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..data import to_float
from ..diversity import hole_deviation, pairwise_distance
from ..realism import InceptionFeatures, fid, kid
from .inputs import Inputs
from .table import Cell, Table

__all__ = ["FID", "PACKAGE", "distributions", "inception"]

PACKAGE = "package"  # the option's word for the network of an installed package
SUBSET = 1000  # images of a subset of KID
FID = "FID"

Key = tuple[str, int, str]


def inception(path: str | None, device: torch.device | str) -> InceptionFeatures | None:
    """The feature network that an option names; ``None`` for none.

    Args:
        path: its file, ``"package"`` for that of an installed package, or ``None``.
        device: where to put it.

    Raises:
        InputError: if it is not there, or is not the FID Inception network.
    """
    if path is None:
        return None
    return InceptionFeatures(None if path == PACKAGE else path, device=device)


def distributions(
    table: Table,
    inputs: Inputs,
    lpips: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> dict[Key, dict[str, float]]:
    """Numbers of sets, a cell: FID, KID, diversity; without entries where nothing was asked for.

    Args:
        table: all results.
        inputs: masks.
        lpips: the distance for diversity, (a, b, region) -> (N,); ``None`` = deviations only.

    Returns:
        (method, steps, mask) -> name -> number.
    """
    found: dict[Key, dict[str, float]] = {}
    for key, cell in table.cells.items():
        row = {**_realism(cell, table.originals), **_diversity(cell, inputs, lpips)}
        if row:
            found[key] = row
    return found


def _realism(cell: Cell, originals: Tensor | None) -> dict[str, float]:
    if cell.features is None or originals is None:
        return {}
    size = min(SUBSET, len(originals))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # few images: the table says how many
        return {
            FID: fid(originals, cell.features),
            # one subset of everything, unless there are more: others would be the same again
            "KID": kid(originals, cell.features, 100 if len(originals) > size else 1, size)[0],
        }


def _diversity(
    cell: Cell, inputs: Inputs, lpips: Callable[[Tensor, Tensor, Tensor], Tensor] | None
) -> dict[str, float]:
    if len(cell.pictures) < 2:
        return {}
    few = len(cell.pictures[1])
    draws = torch.stack([to_float(pictures[:few]) for _, pictures in sorted(cell.pictures.items())])
    masks = inputs.masks(cell.mask, range(few))
    row = {"deviation between seeds": float(hole_deviation(draws, masks).mean())}
    if lpips is not None:
        # an image at a time, as everything that is measured
        each = [pairwise_distance(draws[:, i : i + 1], masks[i : i + 1], lpips) for i in range(few)]
        row["LPIPS between seeds"] = float(torch.cat(each).double().mean())
    return row
