"""What every program of the project shares: Hydra configuration, one-sentence errors, exit codes.

Exit codes: 0 = done, 1 = a check of the program failed or it crashed, 2 = unusable input.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import InputError

__all__ = ["check_device", "program", "refuse"]


def refuse(error: Exception) -> int:
    """Print one sentence to the standard error.

    Args:
        error: its message is the sentence.

    Returns:
        2, the exit code of unusable input.
    """
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    return 2


def check_device(name: str) -> None:
    """Refuse a device that cannot be used here, before anything is loaded.

    Args:
        name: ``"cpu"``, ``"cuda"``, ``"cuda:i"``.

    Raises:
        InputError: for a name torch does not know, or hardware that is not there.
    """
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name}: not usable here ({str(error).splitlines()[0]})") from error


def program(config: str, main: Callable[[Any], int | None]) -> None:
    """Run ``main(cfg)`` with a Hydra config and the command line's overrides; exits the process.

    Args:
        config: path of the YAML file, without its ending; relative to the calling script's folder.
        main: the program; what it returns is the exit code (``None`` = 0).
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # Hydra would print a traceback and exit with 1; with this it raises, and we say it in a sentence.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    script = Path(sys.argv[0]).resolve().parent
    codes: list[int] = []

    def run(cfg: Any) -> None:
        # caught here, because Hydra announces every exception that passes through it
        try:
            codes.append(main(cfg) or 0)
        except (InputError, OmegaConfBaseException) as error:
            codes.append(refuse(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            codes.append(130)

    location = script / config
    try:
        hydra.main(version_base=None, config_path=str(location.parent), config_name=location.name)(run)()
    except (HydraException, OmegaConfBaseException) as error:
        codes.append(refuse(error))
    sys.exit(max(codes, default=0))
