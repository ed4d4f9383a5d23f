"""Compare inpainting methods on the same images, masks and seeds: ``python examples/benchmark.py n=8 workers=2``.

Every method, mask and number of steps; a table, paired statistics and figures (see ``conf/benchmark.yaml``).  A run
that was stopped goes on where it was: start it again with the same options.  On several processes or machines that
share ``out``: ``torchrun --nproc_per_node 2 examples/benchmark.py ...``, or ``accelerate launch --multi_gpu
--num_processes 2 examples/benchmark.py ...`` (on CPUs too: with ``--cpu`` it starts one process, unless by mpirun).
"""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from aid_control.images.benchmark.run import run
from aid_control.images.benchmark.settings import Settings
from aid_control.program import program


def main(cfg: Any) -> None:
    values = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(values, dict)
    run(Settings.read({str(name): value for name, value in values.items()}))


if __name__ == "__main__":
    program("conf/benchmark", main, together=True)
