"""Who computes what: processes of this machine, and of others through Hugging Face ``accelerate``.

``accelerate launch`` (or ``torchrun``) starts the program several times and tells each its number; every one may start
local workers besides.  Shards are shared by a fixed rule over the full list (`grid`), so that processes never
take the same one, on a shared file system and after a restart too.  Workers end with the process that started them,
also when that is killed.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...errors import InputError
from ...program import check_device
from .grid import Shard
from .measure import Bench
from .settings import Settings

__all__ = ["Place", "compute", "place", "ready"]

PATIENCE = timedelta(days=30)  # of the first process for the others; the default, 30 minutes, is less than a shard
POLL = 0.2  # seconds between looks at the workers


class Place:
    """The place of this process among those that were launched together.

    Args:
        index: number of the process.
        count: how many there are.
        device: what it computes on.
        wait: returns when all processes have called it.
    """

    def __init__(self, index: int, count: int, device: str, wait: Callable[[], Any]) -> None:
        self.index, self.count, self.device, self.wait = index, count, device, wait

    @property
    def first(self) -> bool:
        """Whether it speaks for all."""
        return self.index == 0


def place(device: str) -> Place:
    """Find out how many processes were launched, and which one this is.

    Args:
        device: as the user says; ``cuda`` becomes the process' own GPU.

    Returns:
        This process' place.

    Raises:
        InputError: if several were launched and ``accelerate`` is not installed, or the device is not usable.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    index, count, wait = 0, 1, _alone
    if launched > 1:
        try:
            accelerate = importlib.import_module("accelerate")
        except ImportError as error:
            raise InputError(
                f"launched as {launched} processes, which needs the package accelerate; "
                "expected pip install 'aid-control[benchmark]', or one process with workers=N"
            ) from error
        state = accelerate.PartialState(cpu=not device.startswith("cuda"), timeout=PATIENCE)
        index, count, wait = state.process_index, state.num_processes, state.wait_for_everyone
        device = str(state.device) if device == "cuda" else device
    check_device(device)
    return Place(index, count, device, wait)


def _alone() -> None:
    pass


def ready(shards: Sequence[Shard], folder: Path) -> set[str]:
    """Files of these shards that are there.

    Args:
        shards: those asked for.
        folder: of the files.
    """
    return {shard.file for shard in shards} & set(os.listdir(folder))


def compute(settings: Settings, shards: Sequence[Shard], folder: Path, where: Place) -> None:
    """Compute this process' share of what is missing, with a progress bar over everybody's.

    Args:
        settings: options.
        shards: all, in order.
        folder: of the files.
        where: place of this process.

    Raises:
        RuntimeError: if a worker failed.
    """
    done = ready(shards, folder)
    mine = [shard for shard in shards[where.index :: where.count] if shard.file not in done]
    with tqdm(total=len(shards), initial=len(done), desc="shards", unit="shard", disable=not where.first) as bar:

        def look() -> None:
            bar.update(len(ready(shards, folder)) - bar.n)

        if settings.workers > 1 and len(mine) > 1:
            _workers(settings, mine, folder, where.device, look)
        else:
            _work(settings, mine, folder, where.device, look)


def _work(
    settings: Settings, shards: Sequence[Shard], folder: Path, device: str, look: Callable[[], Any] = _alone
) -> None:
    if not shards:
        return
    torch.set_num_threads(settings.threads)
    bench = Bench(settings, device)
    for shard in shards:
        bench.run(shard, folder)
        look()


def _worker(settings: Settings, shards: Sequence[Shard], folder: Path, device: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _work(settings, shards, folder, device)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _workers(settings: Settings, shards: Sequence[Shard], folder: Path, device: str, look: Callable[[], Any]) -> None:
    """Processes of this machine, one share each."""
    count = min(settings.workers, len(shards))
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=_worker, args=(settings, shards[i::count], folder, device)) for i in range(count)]
    try:
        for process in started:
            process.start()
        while any(process.is_alive() for process in started):
            time.sleep(POLL)
            look()
            failed = [process.exitcode for process in started if process.exitcode]
            if failed:
                raise RuntimeError(f"a worker ended with exit code {failed[0]}; what is computed is kept")
    finally:
        for process in started:
            if process.is_alive():
                process.terminate()
            if process.pid is not None:
                process.join()
    look()
