r"""LatentPaint (Corneanu, Gadde and Martinez, WACV 2024): known and unknown are joined in feature space.

With $q = M y + s z$, $z$ fresh, the noised known image (grey in the hole), $h_l(\cdot)$ the output of layer $l$ of the
frozen network's encoder, and $m_l$ the known share of each of its cells,

$$
\begin{aligned}
h_l &\leftarrow m_l\, h_l(q) + (1 - m_l)\, h_l(x), \\
h_L &\leftarrow P_\phi(h_L, m_L; s) \text{ at the last, coarsest layer}, \\
x' &= M (y + s' z') + (1 - M) A(x, D),
\end{aligned}
$$

$D$ what the rest of the network makes of the mixed features, $A$ the ancestral step, $P$ the trained module
(`propagation`).  One pass without RePaint's resampling; two network calls a step.  The noise of $q$ is independent
of that in $x$: with the same noise in known pixels, $x$ would hold all that $q$ does, $D(x)$ without any mixing would
be the best guess already, and there would be nothing for $P$ to learn but to undo the mixing.

*A reimplementation from what is published in words; there is no public code.*  From the paper: the diffusion network
stays frozen, known ("forward") and sampled ("backward") are fused in feature space instead of image space, a
propagation module follows the fusion, and there is no resampling.  Ours, for lack of detail: the layers (below), the
make of the module and its training, grey in the hole of $q$ and its own noise, soft mixing by $m$ in cells that a hole
cuts, replacement in the state as well, the noise levels and their number.

*Layers.*  Every output of the encoder is mixed, the skip connections with it, in the order of the network: later layers
see the mixture.  With the last layer alone nearly all information on the known pixels reaches the decoder past the
mixing, through the skips, and hardly anything changes (below 0.06 dB against RePaint with a single pass, 16 faces).
Where everything is known, the features are those of $q$ to the bit.  The module stands at the last layer: few numbers,
and its reach is the picture.

*What to expect* (small face network, 18 steps, 32 faces, error in the hole).  Mixing alone is 0.1 dB above a single
pass of RePaint, within the spread.  It makes the denoising of true noisy images worse (squared error up by a fifth at
noise level 2): grey enters the features along the edge of the hole.  The module wins 2 % of the error back at that
level, which is its loss, but in sampling loses the 0.1 dB again.

*Denoisers without features* (exact ones): the only latent is $D$ itself, and $D(q)$ mixed into its known pixels is
overwritten at once.  The second call is left out; what remains is RePaint with a single pass.  Of a
`guided.GuidedDenoiser` the main network is mixed (under the null class too, if it is its own guide).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import InputError
from ..backbones.precond import Denoiser
from ..backbones.wrappers import Wrapped
from ..clock import Clock
from ..guided import GuidedDenoiser
from ..module_files import check_trained_for
from .propagation import Propagation
from .task import Callback, ancestral, prepare

__all__ = ["bottleneck_channels", "encoder_layers", "latentpaint", "mixed_denoise", "network"]

KEY = 0x1A7E

Hook = Callable[[nn.Module, Any, Tensor], Tensor | None]


def network(backbone: Denoiser) -> Denoiser:
    """The denoiser at the core of wrappers and guided pairs (of those, the main one).

    Args:
        backbone: a denoiser, wrapped by `backbones.wrappers`, in a `guided.GuidedDenoiser`, or bare.
    """
    while isinstance(backbone, Wrapped | GuidedDenoiser):
        backbone = backbone.inner if isinstance(backbone, Wrapped) else backbone.main
    return backbone


def encoder_layers(backbone: Denoiser) -> list[nn.Module]:
    """The layers whose outputs are mixed, finest first; none for denoisers without an encoder.

    Args:
        backbone: as `network`.
    """
    net = network(backbone)
    encoder = getattr(getattr(net, "model", getattr(net, "unet", None)), "enc", None)
    return list(encoder.values()) if isinstance(encoder, nn.ModuleDict) else []


def bottleneck_channels(backbone: Denoiser) -> int:
    """Channels at the last encoder layer, where the module stands; 0 for denoisers without an encoder.

    Args:
        backbone: as `network`.
    """
    layers = encoder_layers(backbone)
    return int(getattr(layers[-1], "out_channels")) if layers else 0  # noqa: B009 - mypy


def _passes(backbone: Denoiser, net: Denoiser) -> int:
    """How often one evaluation may call ``net``: a guided pair whose guide is its main network calls it twice."""
    if isinstance(backbone, Wrapped):
        return _passes(backbone.inner, net)
    if isinstance(backbone, GuidedDenoiser):
        guide = backbone.main if backbone.guide is None else backbone.guide
        return _passes(backbone.main, net) + _passes(guide, net)
    return int(backbone is net)


def mixed_denoise(
    backbone: Denoiser,
    x: Tensor,
    known: Tensor,
    mask: Tensor,
    sigma: Tensor | float,
    class_labels: Tensor | None = None,
    module: Propagation | None = None,
) -> Tensor:
    """D of x with the features of ``known`` mixed in; gradients reach ``module`` only.

    Args:
        backbone: denoiser with a U-Net in its core.
        x: states (B, C, H, W).
        known: q, noised known images like ``x``.
        mask: (B, 1, H, W), 1 = known.
        sigma: noise level, a scalar or (B,).
        class_labels: one-hot (B, n) or ``None``.
        module: propagation after mixing; ``None`` = mixing only.

    Returns:
        Denoised images like ``x``.

    Raises:
        InputError: if the backbone has no features to mix.
    """
    layers = encoder_layers(backbone)
    if not layers:
        raise InputError(f"{type(network(backbone)).__name__} has no features to mix; expected a U-Net")
    level = torch.as_tensor(sigma, device=x.device, dtype=torch.float64).reshape(-1).expand(len(x))
    if len(x) > 1 and _passes(backbone, network(backbone)) > 1:  # whose call is whose is clear for one image only
        own = class_labels is not None and class_labels.dim() > 1 and len(class_labels) == len(x)
        out = []
        for i in range(len(x)):
            a = slice(i, i + 1)
            labels = class_labels[a] if own and class_labels is not None else class_labels
            out.append(mixed_denoise(backbone, x[a], known[a], mask[a], level[a], labels, module))
        return torch.cat(out)

    # The network may be called whole or in parts (one image at a time), but both times in the same order: features
    # are told by the number of rows that passed their layer before.
    parts: list[list[Tensor]] = [[] for _ in layers]

    def record(i: int) -> Hook:
        def hook(_layer: nn.Module, _inputs: Any, h: Tensor) -> None:
            parts[i].append(h)

        return hook

    with torch.no_grad(), _hooked(layers, record):
        backbone(known, level, class_labels)
    features = [torch.cat(p) for p in parts]

    def mix(i: int) -> Hook:
        passed = 0

        def hook(_layer: nn.Module, _inputs: Any, h: Tensor) -> Tensor:
            nonlocal passed
            rows = torch.arange(passed, passed + len(h), device=h.device)
            passed += len(h)
            image = rows % len(x)  # a single image may pass twice
            m = F.adaptive_avg_pool2d(mask[image].to(h.dtype), (h.shape[-2], h.shape[-1]))
            h = torch.lerp(h, features[i][rows], m)
            return module(h, m, level[image]) if module is not None and i == len(layers) - 1 else h

        return hook

    with _hooked(layers, mix):
        return backbone(x, level, class_labels)


@contextmanager
def _hooked(layers: Sequence[nn.Module], hook: Callable[[int], Hook]) -> Iterator[None]:
    """Forward hooks on all layers, gone afterwards whatever happens."""
    handles = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def latentpaint(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 100,
    *,
    module: Propagation | None = None,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Inpaint by LatentPaint; arguments, result and errors as `task.Method`.

    Args:
        backbone: frozen denoiser.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: noise levels; the default is a guess.
        module: trained propagation; ``None`` = mixing only.  Denoisers without features take none.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: noise levels.
        callback: called after every step.

    Raises:
        InputError: for a module of another network.
    """
    task = prepare(backbone, y, mask, steps, seeds, class_labels, clock, callback)
    channels = bottleneck_channels(backbone)
    _check(backbone, module)
    x = task.start()
    x = task.paste(x, task.y + x)
    for k, s, s_next in task.levels():
        if channels:
            known = task.y + s * task.noise(KEY, k)
            denoised = mixed_denoise(backbone, x, known, task.mask, s, class_labels, module).to(task.y.dtype)
        else:
            denoised = task.denoise(x, s)
        x = ancestral(x, denoised, s, s_next, task.noise(KEY, k, 1))
        x = task.paste(x, task.y + s_next * task.noise(KEY, k, 2))
        task.done(k, x)
    return task.paste(x)


def _check(backbone: Denoiser, module: Propagation | None) -> None:
    """Refuse a module that does not belong to the backbone."""
    if module is None:
        return
    net, channels = network(backbone), bottleneck_channels(backbone)
    if not channels:
        raise InputError(f"{type(net).__name__} has no features to propagate; expected no module for it")
    check_trained_for(module, net, "propagation module")
    if module.config["channels"] != channels:
        raise InputError(f"propagation module of {module.config['channels']} channels; expected {channels}")
