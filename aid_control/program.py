"""What every program of the project shares: Hydra configuration, one-sentence errors, exit codes, sweeps, signals.

Exit codes: 0 = done, 1 = a check of the program failed, a training gave up, or it crashed, 2 = unusable input or
output, 130 = Ctrl-C, 143 = SIGTERM (a scheduler's stop).  A sweep (``-m``) runs all its jobs, in this process or in
others (the joblib and submitit launchers of Hydra), and exits with the largest of their codes.
"""

from __future__ import annotations

import errno
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path
from typing import Any

from .errors import Failed, InputError
from .options import check_options

__all__ = ["check_device", "launched", "program", "refuse"]

Main = Callable[[Any], int | None]
# What a person can put right about a path, and what the program needs instead.
PATH_ERRORS = {
    errno.ENOSPC: "room for the output",
    errno.EDQUOT: "room for the output",
    errno.EFBIG: "room for the output",
    errno.EROFS: "an output folder that can be written to",
    errno.EACCES: "a path that this user may use",
    errno.EPERM: "a path that this user may use",
    errno.EEXIST: "a folder, or nothing yet",
    errno.ENOTDIR: "a folder",
    errno.EISDIR: "a file",
    errno.ENAMETOOLONG: "a shorter name",
}
LONGEST = 1_000  # characters of a sentence: a path or a list of names in it can have any length


def refuse(error: Exception) -> int:
    """Print one sentence to the standard error.

    Args:
        error: its message is the sentence.

    Returns:
        2, the exit code of unusable input.
    """
    # names in files are anybody's: what cannot be printed could move the terminal's cursor or colour its text
    text = "".join(c if c.isprintable() else "?" for c in " ".join(str(error).split()))
    print("error: " + (text if len(text) <= LONGEST else f"{text[:LONGEST]}..."), file=sys.stderr, flush=True)
    return 2


def launched() -> int:
    """How many processes were launched together, as torchrun and accelerate tell it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


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


class _Outcome:
    """Exit code of a job, and the sentence that explains it ("" = none).

    Hydra throws the values that jobs return away.  Where a job ran in another process its outcome is pickled on the
    way back, and arrives in ``_arrived`` when it is read.
    """

    def __init__(self, code: int, reason: str = "") -> None:
        self.code, self.reason = code, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return _arrive, (self.code, self.reason)


_arrived: list[_Outcome] = []


def _arrive(code: int, reason: str) -> _Outcome:
    _arrived.append(_Outcome(code, reason))
    return _arrived[-1]


def _attempt(main: Main, swept: list[str], cfg: Any) -> _Outcome:
    """Run a job; whatever has a sentence becomes one here, because Hydra announces exceptions that pass through it."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(cfg, resolve=False)
        out = plain.get("out") if isinstance(plain, dict) else None
        # two jobs in one folder would overwrite each other, or go on from each other's checkpoints
        if swept and out is not None and "out" not in swept and "${" not in str(out):
            raise InputError(
                f"out is {out} for every job of the sweep; expected one that differs, "
                f"such as 'out={out}-${{{swept[0]}}}' or 'out={out}-${{hydra:job.num}}'"
            )
        return _Outcome(main(_checked(cfg)) or 0)
    except (InputError, OmegaConfBaseException) as error:
        return _Outcome(2, str(error))
    except Failed as error:
        return _Outcome(1, str(error))
    except MemoryError:
        return _Outcome(1, "out of memory; expected more of it, or a smaller job")
    except BrokenExecutor:
        return _Outcome(1, "a worker process died (killed, or out of memory); start the program again")
    except OSError as error:
        if error.errno not in PATH_ERRORS:
            raise
        return _Outcome(2, _about_path(error, cfg.get("out")))


def _checked(cfg: Any) -> Any:
    """The configuration, its options checked against those in the program's own file."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    told = HydraConfig.get()
    folder = next(source.path for source in told.runtime.config_sources if source.provider == "main")
    own: Any = OmegaConf.to_container(OmegaConf.load(Path(folder) / f"{told.job.config_name}.yaml"), resolve=False)
    defaults = {name: value for name, value in own.items() if name not in ("hydra", "defaults")}
    given: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    return OmegaConf.create(check_options(given, defaults))


def _about_path(error: OSError, out: str | None) -> str:
    """The sentence of an error in ``PATH_ERRORS``; one of a write to an open file does not know its path."""
    assert error.errno is not None
    place = error.filename or (f"output {out}" if out else "output")
    return f"{place}: {os.strerror(error.errno).lower()}; expected {PATH_ERRORS[error.errno]}"


class _Job:
    """The task as Hydra calls it: a job of this process; in another process, `_elsewhere`.

    Args:
        main: the program.
        swept: names of the swept options.
    """

    def __init__(self, main: Main, swept: list[str]) -> None:
        self.main, self.swept, self.started = main, swept, False
        self.outcomes: list[_Outcome] = []

    def __call__(self, cfg: Any) -> int:
        self.started = True
        outcome = _attempt(self.main, self.swept, cfg)
        _say([outcome], self.outcomes)
        self.outcomes.append(outcome)
        return outcome.code

    def __reduce__(self) -> tuple[Any, ...]:
        # By its name in an importable module, so that the program can start worker processes of its own over there
        # (a function of a foreign ``__main__`` could not be sent to them).
        module, folder = self.main.__module__, ""
        if module == "__main__":
            script = Path(sys.argv[0]).resolve()
            module, folder = script.stem, str(script.parent)
        return _elsewhere, (module, folder, self.main.__name__, self.swept, sys.argv)


def _elsewhere(module: str, folder: str, name: str, swept: list[str], argv: list[str]) -> Callable[[Any], _Outcome]:
    """The task in a process of a launcher: the same function, imported."""
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)
    sys.argv = list(argv)  # programs note their command
    if multiprocessing.get_start_method() not in multiprocessing.get_all_start_methods():
        # joblib's workers name a way of their own ("loky"), which no process that they start would know
        multiprocessing.set_start_method("spawn", force=True)
    return partial(_attempt, getattr(importlib.import_module(module), name), swept)


def _say(outcomes: list[_Outcome], said: list[_Outcome]) -> None:
    """Print the reasons that have not been printed yet: one sentence each."""
    known = {outcome.reason for outcome in said}
    for outcome in outcomes:
        if outcome.reason and outcome.reason not in known:
            refuse(Exception(outcome.reason))
            known.add(outcome.reason)


class _Stopped(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; its argument is the signal's number."""


def _stop(number: int, frame: Any) -> None:
    # worker processes first: pools wait for theirs before an exception gets any further
    for child in multiprocessing.active_children():
        child.terminate()
    raise _Stopped(number)


def _swept_options(arguments: list[str]) -> list[str]:
    """Names of the options with several values, such as ``seed=1,2``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    plain = [a for a in arguments if "=" in a and not a.startswith("-")]
    found = OverridesParser.create().parse_overrides(plain)
    return [str(o.key_or_group) for o in found if o.is_sweep_override()]


def program(config: str, main: Main, together: bool = False) -> None:
    """Run ``main(cfg)`` with a Hydra config and the command line's overrides; exits the process.

    Args:
        config: path of the YAML file, without its ending; relative to the calling script's folder.
        main: the program, a top-level function of the calling script; what it returns is the exit code (``None`` = 0).
        together: whether several launched processes share its work; if not, being one of several is refused, because
            every copy would do all of it and write the same files.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # Hydra would print a traceback and exit with 1; with this it raises, and we say it in a sentence.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup and shells' background jobs ask for that
            signal.signal(number, _stop)

    count = launched()
    if count > 1 and not together:
        sys.exit(refuse(Exception(f"launched as {count} processes; expected one: this program does not share work")))
    location = Path(sys.argv[0]).resolve().parent / config
    codes: list[int] = []
    job, _arrived[:] = None, []
    try:
        job = _Job(main, _swept_options(sys.argv[1:]))
        hydra.main(version_base=None, config_path=str(location.parent), config_name=location.name)(job)()
    except (HydraException, OmegaConfBaseException) as error:
        codes.append(refuse(error))
    except KeyboardInterrupt as stopped:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + (stopped.args[0] if isinstance(stopped, _Stopped) else signal.SIGINT))
    except BrokenExecutor:  # the launcher's own
        refuse(Exception("a process of the sweep died (killed, or out of memory); start the sweep again"))
        codes.append(1)
    except OSError as error:  # Hydra's notes on a sweep
        if error.errno not in PATH_ERRORS:
            raise
        codes.append(refuse(Exception(_about_path(error, None))))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # before any job has begun these are what Hydra's parser makes of an override; later they are our own mistakes
        if job is not None and (job.started or job.swept):
            raise
        codes.append(refuse(Exception(f"options cannot be read: {error}")))
    finally:
        _say(_arrived, job.outcomes if job else [])
    sys.exit(max([*codes, *(outcome.code for outcome in [*_arrived, *(job.outcomes if job else [])])], default=0))
