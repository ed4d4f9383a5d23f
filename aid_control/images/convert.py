r"""From an official network file (``.pkl``) to one of this package (``.safetensors``), executing nothing.

As a program:

    python -m aid_control.images.convert network.pkl network.safetensors

The target holds every tensor of the state dict under its own name and in its own precision; its metadata are
``precond`` and ``kwargs`` (what `backbones.registry.load_backbone` needs to build the network) and ``official``,
a JSON object with the original class name, the encoder's record and the settings beside the network (data set, loss).

Exit codes: 0 = written, 2 = unusable input.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError

from ..checkpoint import save_tensors
from ..errors import InputError
from ..program import refuse
from .official.reader import backbone_arguments, read_official

__all__ = ["convert", "main"]


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], key: str = "ema") -> str:
    """Convert one file; the target is there whole or not at all.

    Args:
        source: an official ``.pkl`` file.
        target: the ``.safetensors`` file to write.
        key: which network of the file.

    Returns:
        One line that says what was written.

    Raises:
        InputError: if the source cannot be read or the target cannot be written.
    """
    target = Path(target)
    if target.suffix != ".safetensors":
        raise InputError(f"{target}: a file of another kind is asked for; expected a name ending in .safetensors")
    official = read_official(source, key)
    try:
        precond, kwargs = backbone_arguments(official)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    if not official.state_dict or "__metadata__" in official.state_dict:
        # the second is the one name the format keeps for itself: a tensor under it would make the file unreadable
        raise InputError(f"{source}: holds no weights that can be stored; expected a network file of EDM or EDM2")
    beside = {"class_name": official.class_name, "encoder": official.encoder, "facts": official.facts}
    try:
        metadata = {"precond": precond, "kwargs": json.dumps(kwargs, allow_nan=False), "official": json.dumps(beside)}
        save_tensors(target, official.state_dict, metadata)
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror}); expected a writable place") from error
    except (TypeError, ValueError, SafetensorError) as error:  # settings that are no JSON, names that are no UTF-8
        raise InputError(f"{source}: cannot be stored ({str(error)[:100]}); expected plain settings") from error
    numbers = sum(tensor.numel() for tensor in official.state_dict.values())
    return f"{target}: {precond}, {len(official.state_dict)} tensors, {numbers:,} numbers"


def main(arguments: Sequence[str] | None = None) -> int:
    """The program.

    Args:
        arguments: of the command line, by default those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m aid_control.images.convert", description="Convert an official network file, executing nothing."
    )
    parser.add_argument("source", help="network file of EDM or EDM2 (.pkl)")
    parser.add_argument("target", help="file to write (.safetensors)")
    parser.add_argument("--key", default="ema", help="which network of the file (default: ema)")
    options = parser.parse_args(arguments)
    try:
        print(convert(options.source, options.target, options.key))
    except InputError as error:
        return refuse(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
