"""Who computes what: processes of this machine, and of others through Hugging Face ``accelerate``.

``accelerate launch`` (or ``torchrun``) starts the program several times and tells each its number; every one may start
local workers besides.  Shards are shared by a fixed rule over the full list (`grid`), so that processes never
take the same one, on a shared file system and after a restart too.  Workers end with the process that started them,
also when that is killed.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ...errors import Failed, InputError
from ...parallel import Place
from .grid import Shard
from .measure import Bench
from .settings import Settings

__all__ = ["PATIENCE", "compute", "ready"]

PATIENCE = timedelta(days=30)  # of the first process for the others; the default, 30 minutes, is less than a shard
POLL = 0.2  # seconds between looks at the workers


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
        Failed: if a worker was killed, or crashed.
        InputError, OSError: from this process or a worker.
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


def _nothing() -> None:
    pass


def _work(
    settings: Settings, shards: Sequence[Shard], folder: Path, device: str, look: Callable[[], Any] = _nothing
) -> None:
    if not shards:
        return
    torch.set_num_threads(settings.threads)
    bench = Bench(settings, device)
    for shard in shards:
        bench.run(shard, folder)
        look()


def _worker(settings: Settings, shards: Sequence[Shard], folder: Path, device: str, errors: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _work(settings, shards, folder, device)
    except (InputError, OSError) as error:  # for a sentence of the program; others leave their traceback
        errors.put(error)
        sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _workers(settings: Settings, shards: Sequence[Shard], folder: Path, device: str, look: Callable[[], Any]) -> None:
    """Processes of this machine, one share each."""
    count = min(settings.workers, len(shards))
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    shares = [(settings, shards[i::count], folder, device, errors) for i in range(count)]
    started = [context.Process(target=_worker, args=share) for share in shares]
    try:
        for process in started:
            process.start()
        alive = True
        while alive:
            time.sleep(POLL)
            alive = any(process.is_alive() for process in started)  # before the codes: the last to end counts too
            look()
            failed = [process.exitcode for process in started if process.exitcode]
            if failed and not errors.empty():
                raise errors.get()
            if failed:
                raise Failed(
                    f"a worker ended with exit code {failed[0]}; what is computed is kept, and the same command goes on"
                )
    finally:
        for process in started:
            if process.is_alive():
                process.terminate()
            if process.pid is not None:
                process.join()
    look()
