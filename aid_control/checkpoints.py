"""A folder of numbered checkpoints: the last few and the best are kept, a damaged one is passed over.

A file ``00001230.safetensors`` holds what a program gave to `Checkpoints.save` at iteration 1230, and beside it the
iteration, a score, the options of the run, and the versions that wrote it.  Its name alone decides what is newest;
clocks play no part.

Why a kill at any moment does no harm: a checkpoint appears under its name whole (`checkpoint.atomic_write`);
only then are files removed, one by one, and never the newest or the best.  What a killed writer left under a
temporary name is removed by the next run.  A damaged file is not removed: after the run that passed over it
has saved again, it gets the ending ``.damaged``.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .checkpoint import NewerFormatError, clear_temporaries, load_state, read_metadata, save_state
from .errors import InputError

__all__ = ["Checkpoints", "read_checkpoint"]

_NAME = re.compile(r"(\d{8,})\.safetensors")
_FIELDS = {"state", "iteration", "score", "config", "versions"}


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The state in a checkpoint, whatever the options of its run.

    Args:
        path: a file that `Checkpoints.save` wrote, or one of `checkpoint.save_state`, as runs of earlier versions left.

    Returns:
        What was given to the writer; tensors on the CPU.

    Raises:
        InputError: if the file is missing, damaged or of another kind.
    """
    content = load_state(path)
    return dict(content["state"]) if set(content) == _FIELDS else content


def _flat(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options under dotted names, with the values that JSON gives back."""
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = json.loads(json.dumps(value, default=str))
    return found


class Checkpoints:
    """The checkpoints of one run: keeps the last and the best, goes back where the newest is damaged.

    Args:
        folder: theirs; made by the first `save`.
        config: options of the run (nested; JSON values), compared with those of the checkpoint that is read.
        keep: how many of the last are kept.
        free: names of options (dotted; a name stands for all that is below it) that may change between the runs.
        legacy: a single state file of an earlier version, read where the folder has no checkpoint.

    Attributes:
        source: the file that `latest` read; ``None`` = none.
        number: of the checkpoint that was read or written last; ``None`` = none, or a file of an earlier version.

    Raises:
        InputError: if ``keep`` is not a positive integer, or there is a file in place of the folder.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Mapping[str, Any],
        keep: int = 3,
        free: Collection[str] = (),
        legacy: str | os.PathLike[str] | None = None,
    ) -> None:
        if not isinstance(keep, int) or keep < 1:
            raise InputError(f"keep is {keep!r}; expected a positive number of checkpoints")
        self.folder, self.keep, self.free = Path(folder), keep, tuple(free)
        self.config, self.legacy = _flat(config), None if legacy is None else Path(legacy)
        self.source: Path | None = None
        self.number: int | None = None
        self._damaged: list[Path] = []
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder}: is a file; expected a folder of checkpoints, or none")
        clear_temporaries(self.folder)

    def files(self) -> list[Path]:
        """The checkpoints, whole or not, oldest first."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            match = _NAME.fullmatch(path.name)
            if match and path.is_file():
                found.append((int(match[1]), path))
        return [path for _, path in sorted(found)]

    def save(self, state: dict[str, Any], iteration: int, score: float | None = None) -> Path:
        """Write a checkpoint, then remove those that are neither among the last nor the best.

        Args:
            state: nested dicts and lists of tensors and JSON values (`checkpoint.save_state`).
            iteration: its number, which must grow in a run; an equal one is replaced.
            score: the smaller the better; ``None`` or a number that is not finite is never the best.

        Returns:
            The file.

        Raises:
            OSError: if the folder cannot be written; the checkpoints that were there still are.
            ValueError: for a negative number.
        """
        if iteration < 0:
            raise ValueError(f"iteration is {iteration}; expected 0 or more")
        path = self.folder / f"{iteration:08d}.safetensors"
        versions = {"aid_control": __version__, "torch": str(torch.__version__)}
        score = None if score is None else float(score)
        config = json.dumps(self.config)  # as a text: its keys may be any
        content = {"state": state, "iteration": iteration, "score": score, "config": config, "versions": versions}
        save_state(path, content)
        self.number = iteration
        for damaged in self._damaged:  # only now is there a whole checkpoint after them
            if damaged != path and damaged.exists():
                os.replace(damaged, damaged.with_name(damaged.name + ".damaged"))
        self._damaged = []
        self._prune(path)
        return path

    def _prune(self, written: Path) -> None:
        files = self.files()
        kept = {written, self.best(), *files[-self.keep :]}
        for path in files:
            if path not in kept:
                path.unlink(missing_ok=True)

    def best(self) -> Path | None:
        """The file with the smallest score, the newest of equals; ``None`` where none has one.  Reads headers only."""
        scores: list[tuple[float, Path]] = []
        for path in reversed(self.files()):
            try:
                score = json.loads(read_metadata(path)["state"])["score"]
            except (InputError, ValueError, KeyError, TypeError, RecursionError):
                continue  # damaged; `latest` says so
            if isinstance(score, int | float) and math.isfinite(score):
                scores.append((float(score), path))
        return min(scores, key=lambda pair: pair[0], default=(0.0, None))[1]

    def latest(self) -> dict[str, Any] | None:
        """The state of the newest whole checkpoint; a damaged one is passed over, and named on the standard error.

        Returns:
            What was given to `save`, tensors on the CPU; ``None`` where there is no checkpoint.

        Raises:
            InputError: if all are damaged, or the run had other options, which are named.
            NewerFormatError: if the newest was written by a later version of this package.
        """
        files = self.files()
        if not files:
            if self.legacy is None or not self.legacy.is_file():
                return None
            self.source = self.legacy
            return load_state(self.legacy)
        self._damaged = []
        for path in reversed(files):
            try:
                content = load_state(path)
                if set(content) != _FIELDS:
                    raise InputError(f"{path}: a state, but no checkpoint of this package")
            except NewerFormatError:
                raise
            except InputError as error:
                self._damaged.append(path)
                print(f"warning: passed over a checkpoint: {' '.join(str(error).split())}", file=sys.stderr)
                continue
            self._compare(path, json.loads(content["config"]))
            self.source, self.number = path, int(path.stem)
            return dict(content["state"])
        raise InputError(f"{self.folder}: none of its {len(files)} checkpoints is whole; expected one, or another out=")

    def _compare(self, path: Path, then: dict[str, Any]) -> None:
        """Refuse to go on with other options; an option that one of the two does not have counts as null there."""
        changed = [
            f"{name}={json.dumps(old)} then, {name}={json.dumps(new)} now"
            for name in sorted({*then, *self.config})
            if not any(name == free or name.startswith(f"{free}.") for free in self.free)
            # by value, 1 is 1.0; by text, NaN is NaN
            and (old := then.get(name)) != (new := self.config.get(name))
            and json.dumps(old) != json.dumps(new)
        ]
        if changed:
            raise InputError(f"{path}: of a run with {'; '.join(changed)}: expected the same options, or another out=")
