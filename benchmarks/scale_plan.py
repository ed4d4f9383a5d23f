r"""A plan on paper for FFHQ-64 and ImageNet-512 with the official networks: counted, not run.

``python benchmarks/scale_plan.py [tables=calls,plans]`` prints the tables of ``docs/how-to/scale-plan.md``.  Networks
are built at full size without memory (torch's *meta* device: operations have shapes and no numbers), so that

- operations are counted by `torch.utils.flop_counter.FlopCounterMode`: matrix products, convolutions and attention, a
  multiplication and an addition as two; the rest (norms, sums) is not counted;
- memory is the largest sum of the bytes of all tensors alive at once, float32, weights apart.  The allocator's gaps and
  the kernels' own buffers are not in it.

A training iteration is made of the very calls that `aid_control.trainer.ActorCritic` makes (a test compares the count
with that of its ``iterate``).  Times are the counts over ``UTILISATION`` of ``PEAK``: an assumption, not a measurement.
"""

from __future__ import annotations

import copy
import math
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from aid_control.evaluation import STEPWISE, terminal_gradient_loss
from aid_control.images import load_backbone
from aid_control.images.backbones.precond import Denoiser
from aid_control.images.backbones.registry import CLASSES
from aid_control.images.guidance import Guidance, PyramidCritic
from aid_control.images.masks import make_mask
from aid_control.images.methods.registry import METHODS, bind
from aid_control.images.problem import GuidanceProblem, Observation, levels_of
from aid_control.images.published import published
from aid_control.improvement import backprop_loss
from aid_control.trainer import ActorCritic, Batch

PEAK = 312e12  # A100, dense 16-bit products a second (data sheet)
UTILISATION = 0.4  # share of it, assumed
MEMORY = 80e9  # bytes of an A100 80GB
LINK = 25e9  # bytes a second between machines, assumed (200 Gbit/s)
GPUS = (1, 8, 64)
STEPS = 18  # of a rollout, as examples/conf/train_guidance.yaml
# estimator: whether steps are checkpointed
TRAINERS = {
    "stein": ("stein", False),
    "adjoint": ("adjoint", False),
    "backprop": ("backprop", False),
    "backprop, checkpointing": ("backprop", True),
}


@dataclass(frozen=True)
class Plan:
    """What would be trained.

    Attributes:
        title: for tables.
        network: published name.
        encoder: iterations of phase 1.
        encoder_batch: global batch of phase 1.
        iterations: of phase 2.
        batch: global batch of phase 2.
        scratch: images that the published network saw in training.
    """

    title: str
    network: str
    encoder: int
    encoder_batch: int
    iterations: int
    batch: int
    scratch: float


EDM2 = "edm2-img512-{}-{}-{}"
PLANS = (
    Plan("FFHQ-64, as shipped", "edm-ffhq-64x64-uncond-vp", 9000, 32, 60, 8, 200e6),
    Plan("FFHQ-64", "edm-ffhq-64x64-uncond-vp", 100_000, 256, 2000, 256, 200e6),
    Plan("ImageNet-512, S", EDM2.format("s", "2147483", "0.130"), 200_000, 256, 4000, 256, 2147.483e6),
    Plan("ImageNet-512, XXL", EDM2.format("xxl", "0939524", "0.150"), 200_000, 256, 4000, 256, 939.524e6),
)
NETWORKS = (
    "edm-ffhq-64x64-uncond-vp",
    "edm-ffhq-64x64-uncond-ve",
    *(EDM2.format(size, "2147483", "0.100") for size in ("xs", "s", "m", "l", "xl", "xxl")),
)
VAE: dict[str, Any] = dict(  # of EDM2's latents
    block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=4, norm_num_groups=32,
    down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
)  # fmt: skip


class Whole:
    """In place of the counter's tracker of modules, whose hooks on inputs stop `torch.autograd.grad`."""

    parents = ("Global",)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


@contextmanager
def counting() -> Iterator[list[int]]:
    """Operations of what runs inside, in the list's only entry afterwards."""
    found: list[int] = []
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Whole()  # type: ignore[assignment]
    # attention as two matrix products: the processor's kernel for it is unknown to the counter
    with counter, sdpa_kernel(SDPBackend.MATH):
        yield found
    found.append(int(counter.get_total_flops()))


class Alive(TorchDispatchMode):
    """Bytes of the tensors made inside that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(r.alias_info is not None for r in func._schema.returns):  # views and results in place take nothing
            return out
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


def network(name: str) -> Denoiser:
    """A published architecture, frozen, without memory."""
    known = published(name)
    with torch.device("meta"):
        net = CLASSES["EDM2Precond" if known.family == "edm2" else known.class_name](**known.kwargs)  # type: ignore[arg-type]
    frozen: Denoiser = net.eval().requires_grad_(False)
    return frozen


def trainer_of(net: Denoiser, estimator: str, checkpointing: bool) -> ActorCritic:
    """The trainer of phase 2, its module fresh and on the backbone's device; its encoder frozen by `observe`."""
    with torch.device(next(net.parameters()).device):
        guidance = Guidance(net.img_resolution, net.img_channels, base="projected")
        critic = PyramidCritic(guidance.encoder, 3.0, math.prod(net.shape), torch.ones(6))
    problem = GuidanceProblem(net, base="projected")
    return ActorCritic(
        problem, guidance, critic, 1e-4, estimator, step_weight=problem.fall, value_scale=0.1,
        checkpointing=checkpointing,
    )  # fmt: skip


def batch_of(trainer: ActorCritic, batch: int, steps: int) -> Batch:
    """Where rollouts start: nothing but shapes, where the backbone has no memory."""
    problem: Any = trainer.problem
    net = problem.backbone
    x = torch.zeros(batch, *net.shape, device=next(net.parameters()).device)
    labels = x.new_zeros(batch, net.label_dim) if net.label_dim else None
    context = trainer.actor.observe(x, x[:, :1], labels)  # type: ignore[operator]
    return Batch(x, levels_of(problem, steps), context, x)


def iteration(trainer: ActorCritic, batch: Batch) -> None:
    """The calls of `ActorCritic.iterate`, without what needs numbers (clipping, the optimiser's step, logs)."""
    if trainer.estimator == "backprop":
        cost, _ = backprop_loss(
            trainer.problem, trainer.actor, batch.x, batch.grid, batch.context, batch.target, trainer.checkpointing
        )
        cost.mean().backward()
        return
    path = trainer.collect(batch)
    path.total_cost()
    torch.stack(list(STEPWISE["ctd"](trainer.value, path))).sum().backward()
    assert trainer.targets is not None
    targets = trainer.targets(trainer.problem, trainer.policy, trainer.value, path)
    torch.stack(list(trainer.actor_losses(path, targets))).sum().backward()


def counted_iteration(net: Denoiser, name: str, batch: int, steps: int) -> tuple[int, int]:
    """Operations and bytes of an iteration of one of ``TRAINERS``, the guess of the images included."""
    trainer = trainer_of(net, *TRAINERS[name])
    with counting() as operations, Alive() as memory:
        iteration(trainer, batch_of(trainer, batch, steps))
    return operations[0], memory.most


@cache
def iteration_cost(net: Denoiser, name: str, steps: int = STEPS) -> tuple[int, int]:
    """The same for one image and many steps: from the second on every step adds the same (checked by a test)."""
    few, more = counted_iteration(net, name, 1, 2), counted_iteration(net, name, 1, 3)
    operations, most = (a + (steps - 2) * (b - a) for a, b in zip(few, more, strict=True))
    return operations, most


@cache
def encoder_cost(net: Denoiser) -> int:
    """Operations of an iteration of phase 1, an image."""
    trainer = trainer_of(net, "stein", False)
    problem: Any = trainer.problem
    x = torch.zeros(1, *net.shape, device=next(net.parameters()).device)
    with counting() as operations:
        terminal_gradient_loss(problem, trainer.critic, x, Observation(x, x[:, :1]), x).backward()
    return operations[0]


@cache
def call_cost(net: Denoiser, backward: str = "") -> int:
    """Operations of one call for one image: alone, with its gradient in ``"x"``, or in the ``"weights"``."""
    x = torch.zeros(1, *net.shape, device=next(net.parameters()).device, requires_grad=backward == "x")
    labels = torch.zeros(1, net.label_dim, device=x.device) if net.label_dim else None
    net.requires_grad_(backward == "weights")
    with counting() as operations:
        out = net(x, torch.tensor(1.0), labels)
        if backward:
            out.sum().backward()
    net.requires_grad_(False)
    return operations[0]


def hours(operations: float, gpus: int = 1) -> float:
    """At the assumed rate."""
    return operations / (PEAK * UTILISATION * gpus) / 3600


def weights(net: torch.nn.Module) -> int:
    """How many."""
    return sum(p.numel() for p in net.parameters())


def table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """A Markdown table on the standard output."""
    print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def short(name: str) -> str:
    parts = name.split("-")
    return f"EDM2-{parts[2].upper()}, 64x64x4" if parts[0] == "edm2" else f"EDM {parts[1].upper()} {parts[-1]}, 64x64x3"


def tabulate_calls(nets: dict[str, Denoiser]) -> None:
    rows = []
    for name, net in nets.items():
        forth, input_, all_ = (call_cost(net, b) for b in ("", "x", "weights"))
        module = trainer_of(net, "stein", False).actor
        one = module_cost(net)
        rows.append([
            f"`{name}`" if not name.startswith("edm2") else short(name), f"{weights(net):,}", f"{forth / 1e9:.2f}",
            f"{(input_ - forth) / forth:.3f}", f"{(all_ - forth) / forth:.3f}", f"{weights(module):,}",
            f"{weights(module) / weights(net):.2%}", f"{one / forth:.4%}",
        ])  # fmt: skip
    table(
        "One call for one image",
        ["network", "weights", "GFLOP forth", "back to x, of forth", "back to x and weights", "weights of the module",
         "of the network's", "GFLOP of the module, of the network's"], rows,
    )  # fmt: skip


def module_cost(net: Denoiser) -> int:
    """Operations of one call of the module."""
    trainer = trainer_of(net, "stein", False)
    batch = batch_of(trainer, 1, 1)
    with torch.no_grad(), counting() as operations:
        trainer.actor(batch.grid[0], batch.x, batch.context, batch.x)
    return operations[0]


def tabulate_iterations(nets: dict[str, Denoiser]) -> None:
    rows = []
    for name in dict.fromkeys(plan.network for plan in PLANS):
        net = nets[name]
        forth = call_cost(net)
        for trainer in TRAINERS:
            operations, most = iteration_cost(net, trainer)
            held = 4 * weights(net)
            rows.append([
                short(name), trainer, f"{operations / 1e12:.2f}", f"{operations / forth:.2f}", f"{most / 1e9:.2f}",
                f"{held / 1e9:.2f}", f"{int((MEMORY - held) / most):,}",
            ])  # fmt: skip
        rows.append([short(name), "phase 1 (encoder)", f"{encoder_cost(net) / 1e12:.4f}",
                     f"{encoder_cost(net) / forth:.4f}", "", "", ""])  # fmt: skip
    table(
        f"An iteration of guidance training, an image, {STEPS} steps",
        ["network", "trainer", "TFLOP", "in calls forth", "GB an image", "GB of the network", "images in 80 GB"], rows,
    )  # fmt: skip


def tabulate_plans(nets: dict[str, Denoiser]) -> None:
    rows = []
    for plan in PLANS:
        net = nets[plan.network]
        first = encoder_cost(net) * plan.encoder * plan.encoder_batch
        second = iteration_cost(net, "backprop, checkpointing")[0] * plan.iterations * plan.batch
        rows.append([
            plan.title, f"{plan.encoder:,} x {plan.encoder_batch}", f"{plan.iterations:,} x {plan.batch}",
            f"{plan.encoder * plan.encoder_batch / 1e6:.2f}, {plan.iterations * plan.batch / 1e6:.4f}",
            f"{first:.2e}", f"{second:.2e}", f"{hours(first):.2g}",
            *(f"{hours(second, n):.3g}" if n <= plan.batch else "-" for n in GPUS),
        ])  # fmt: skip
    table(
        "Guidance: phase 1 on one GPU, then backprop with checkpointing",
        ["plan", "phase 1: iterations x batch", "phase 2", "images seen (millions)", "FLOP of phase 1", "of phase 2",
         "hours of phase 1", *(f"of phase 2 on {n}" for n in GPUS)], rows,
    )  # fmt: skip


def tabulate_sums(nets: dict[str, Denoiser]) -> None:
    rows = []
    for plan in PLANS[1:]:
        net = nets[plan.network]
        trainer = trainer_of(net, "backprop", True)
        iteration(trainer, batch_of(trainer, 1, 2))
        phases = (
            ("1", plan.encoder_batch, encoder_cost(net), list(trainer.actor.encoder.parameters())),  # type: ignore
            ("2", plan.batch, iteration_cost(net, "backprop, checkpointing")[0],
             [p for p in trainer.actor.parameters() if p.grad is not None]),
        )  # fmt: skip
        for (phase, batch, one, moved), n in product(phases, GPUS[1:]):
            size = 4 * sum(p.numel() for p in moved)
            work, wire = batch * one / (PEAK * UTILISATION * n), 2 * (n - 1) / n * size / LINK
            rows.append([plan.title, phase, str(n), f"{batch / n:g}", f"{size / 1e6:.3f}", f"{1e3 * work:.3g}",
                         f"{1e3 * wire:.2g}"])  # fmt: skip
    table(
        "What the GPUs tell each other: gradients, summed once an iteration",
        ["plan", "phase", "GPUs", "images a GPU", "MB of gradients", "ms of arithmetic", "ms of the sum"], rows,
    )  # fmt: skip


def tabulate_scratch(nets: dict[str, Denoiser]) -> None:
    rows = []
    for plan in PLANS[1:]:
        net = nets[plan.network]
        total = call_cost(net, "weights") * plan.scratch
        guidance = iteration_cost(net, "backprop, checkpointing")[0] * plan.iterations * plan.batch
        guidance += encoder_cost(net) * plan.encoder * plan.encoder_batch
        rows.append([plan.title, f"{plan.scratch / 1e6:,.0f}", f"{total:.2e}",
                     *(f"{hours(total, n):,.3g}" for n in GPUS), f"{guidance / total:.2%}"])  # fmt: skip
    table(
        "The backbone from nothing, for comparison",
        ["network", "images seen (millions)", "FLOP", *(f"hours on {n}" for n in GPUS), "guidance over it"], rows,
    )  # fmt: skip


def tabulate_codec() -> None:
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        print("\nlatent codec: left out, the package diffusers is not installed")
        return
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE).eval().requires_grad_(False)
    with counting() as encode:
        vae.encode(torch.zeros(1, 3, 512, 512, device="meta"))
    with counting() as decode:
        vae.decode(torch.zeros(1, 4, 64, 64, device="meta"))
    train = encode[0] * 1_281_167
    table(
        "Latents of 512x512 pictures: Stability's VAE",
        ["weights", "TFLOP to encode", "to decode", "hours of one GPU to encode 1,281,167 pictures once"],
        [[f"{weights(vae):,}", f"{encode[0] / 1e12:.2f}", f"{decode[0] / 1e12:.2f}", f"{hours(train):.2f}"]],
    )


class Echo(torch.nn.Module):
    """A network that costs nothing, to count how often a method asks."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x: Tensor, *conditions: Any, **augment: Any) -> Tensor:
        return x * self.weight


def method_calls(name: str) -> tuple[int, int]:
    """Calls forth and back of a method at its defaults on one image."""
    net = load_backbone()
    if name != "latentpaint":  # works on the features of the network itself
        net.model = Echo()
    method = bind(name, net)
    method(torch.zeros(1, *net.shape), make_mask("box", 64, 0)[None], STEPS, [0])
    return method.forward_calls, method.backward_calls


def tabulate_methods(nets: dict[str, Denoiser], pictures: int = 10_000) -> None:
    used = [plan.network for plan in PLANS[1:]]
    each = [(call_cost(nets[name]), call_cost(nets[name], "x") - call_cost(nets[name])) for name in used]
    rows, whole = [], [0.0] * len(used)
    for name, entry in METHODS.items():
        forth, back = method_calls(name)
        costs = [hours(pictures * (forth * one + back * other)) for one, other in each]
        whole = [a + b for a, b in zip(whole, costs, strict=True)]
        rows.append([entry.label, str(forth), str(back), *(f"{cost:.3g}" for cost in costs)])
    rows.append(["all", "", "", *(f"{cost:,.3g}" for cost in whole)])
    table(
        f"Benchmark: {len(METHODS)} methods at their defaults, {STEPS} levels, one mask, {pictures:,} pictures, "
        "hours of one GPU",
        ["method", "calls forth", "back", *map(short, used)], rows,
    )  # fmt: skip


def tabulate_mini(batch: int = 2, steps: int = 9) -> None:
    """To be held against what ``benchmarks/training.py memory`` measures."""
    net = copy.deepcopy(load_backbone()).to("meta").requires_grad_(False)
    rows = [[name, f"{counted_iteration(net, name, batch, steps)[1] / 2**20:.1f}"] for name in TRAINERS]
    table(f"The mini backbone, batch {batch}, {steps} steps", ["trainer", "MB counted"], rows)


TABLES = {
    "calls": lambda nets: tabulate_calls({name: nets[name] for name in NETWORKS}),
    "iterations": tabulate_iterations,
    "plans": tabulate_plans,
    "sums": tabulate_sums,
    "scratch": tabulate_scratch,
    "codec": lambda nets: tabulate_codec(),
    "methods": tabulate_methods,
    "mini": lambda nets: tabulate_mini(),
}


def main(tables: str = ",".join(TABLES)) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    nets = {name: network(name) for name in dict.fromkeys([*NETWORKS, *(plan.network for plan in PLANS)])}
    print(f"assumed: {UTILISATION:.0%} of {PEAK / 1e12:.0f} TFLOP/s a GPU, {LINK / 1e9:.0f} GB/s between machines")
    for name in tables.split(","):
        TABLES[name](nets)


if __name__ == "__main__":
    main(**dict(option.split("=", 1) for option in sys.argv[1:]))
