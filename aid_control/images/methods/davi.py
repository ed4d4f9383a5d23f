r"""DAVI (Lee et al. 2024): amortised variational inference, one evaluation of a network an image.

A generator maps the observation to a sample of an implicit posterior $q_\phi(x_0 | y)$,

$$
x = I_\phi(y + h z), \qquad z \sim N(0, I),
$$

trained by the integral Kullback-Leibler divergence to the prior, along the noise levels s, and by data terms:

$$
\begin{aligned}
\nabla_\phi L ={}
& E\, w(s) \big(D_\psi(x + s n; s) - D_\theta(x + s n; s)\big)^\top \frac{\partial x}{\partial \phi} \\
& + \nabla_\phi E \big[ a \| M (y - x) \|^2 + b \| M (x_0 - x) \|^2 + c \| x_0 - x \|^2 \big].
\end{aligned}
$$

$D_\theta$ is the frozen backbone and $D_\psi$ a denoiser of the generator's own samples, learned beside
it, so that $(D_\psi - D_\theta)/s^2$ is the difference of the scores of $q$ and of the prior at level $s$; with
$w = 1/s^2$ the first term is the gradient of $KL(q_s \| p_s)$.  Norms are means over pixels.  Published
for inpainting of faces (repository): $w = 1/s$, $s$ uniform over the 1,000 levels of DDPM's linear schedule,
$h = 0.1$, $a = 0.5$, $b = 1$, $c = 0.1$.

*Bridge.*  In training the generator's input is moved from $y$ towards $x_0$ (the paper's perturbed posterior bridge):
at bridge time $\tau \sim Beta(3, 1)$, with $s_\tau$ the schedule's level,

$$
u_\tau = (1 - m_\tau) x_0 + m_\tau y + \frac{s_\tau^2}{1 + s_\tau^2} h z, \qquad
m_\tau = 2 \tau^2 \;(\tau \le 1/2), \quad 1 - 2 (1 - \tau)^2 \;(\tau \ge 1/2);
$$

$\tau = 1$ is the input of inference.

*In sigma form.*  A variance-preserving network sees $u$ itself; a network for $x_0 + s n$ sees the same through
$x = \sqrt{1 + s^2}\, u$, so $I_\phi(u) = D_\phi(\sqrt{1 + s_\tau^2}\, u, y, M; s_\tau)$.

*What differs from the paper.*  One network for all masks instead of one an operator, hence $y$ and $M$ are also given
as channels (`backbones.conditional`, zero weights at the start).  No adversarial loss (the published code adds a patch
discriminator).  No tanh behind the network, so that it starts as the backbone.  Levels end at EDM's 80 instead of
157.4.  The observation has no noise: known pixels are pasted into the generated image, in training too by default
(`davi_training` says why), and $a$ and $b$ then have no effect.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from ..backbones.conditional import ConditionalDenoiser, load_conditional, observed
from ..backbones.precond import Denoiser
from ..clock import Clock
from .task import Callback, prepare

__all__ = ["DEFAULT_DAVI", "SIGMA_MAX", "bridge", "bridge_weight", "davi", "generate", "kl_direction", "load_davi"]

DEFAULT_DAVI = "davi-faces64-mini"
SIGMA_MAX = 80.0
PERTURBATION = 0.1


def load_davi(
    name_or_path: str | os.PathLike[str] = DEFAULT_DAVI, device: torch.device | str = "cpu"
) -> ConditionalDenoiser:
    """Load a generator.

    Args:
        name_or_path: a shipped name (``"davi-faces64-mini"``) or a ``.safetensors`` file.
        device: where to put it.

    Raises:
        InputError: if the file is missing, truncated, or of another kind.
    """
    return load_conditional(name_or_path, "davi", DEFAULT_DAVI, device)


def bridge_weight(tau: Tensor) -> Tensor:
    """m_tau, the weight of y in the bridge's mean, rising from 0 to 1: tau in [0, 1], any shape -> the same shape."""
    return torch.where(tau <= 0.5, 2 * tau**2, 1 - 2 * (1 - tau) ** 2)


def bridge(x0: Tensor, y: Tensor, tau: Tensor, level: Tensor, z: Tensor, h: float = PERTURBATION) -> Tensor:
    """u_tau of the module: the generator's input in training.

    Args:
        x0: clean images (B, C, H, W).
        y: observed images (B, C, H, W), zero in the hole.
        tau: bridge times (B,), in [0, 1].
        level: s_tau (B,).
        z: unit noise like ``x0``.
        h: size of the perturbation.

    Returns:
        Images (B, C, H, W).
    """
    m, s2 = bridge_weight(tau).reshape(-1, 1, 1, 1), level.square().reshape(-1, 1, 1, 1)
    return (1 - m) * x0 + m * y + s2 / (1 + s2) * h * z


def generate(
    net: Denoiser, u: Tensor, y: Tensor, mask: Tensor, level: Tensor, class_labels: Tensor | None = None
) -> Tensor:
    """I_phi(u): one evaluation of the network.

    Args:
        net: conditional denoiser.
        u: perturbed observation (B, C, H, W).
        y: observed images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        level: s_tau (B,).
        class_labels: one-hot (B, n).

    Returns:
        Generated images (B, C, H, W), nothing pasted.
    """
    x = (1 + level.square()).sqrt().reshape(-1, 1, 1, 1) * u
    return net(observed(x, y, mask), level, class_labels)


@torch.no_grad()
def kl_direction(prior: Denoiser, learned: Denoiser, x: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    r"""$D_\psi - D_\theta$ at $x + s n$, which is $s^2\, \nabla \log (q_s/p_s)$ there.

    Args:
        prior: D_theta.
        learned: D_psi.
        x: samples of q (B, C, H, W).
        sigma: noise levels (B,).
        noise: unit noise like ``x``.

    Returns:
        (B, C, H, W), without gradients.
    """
    noisy = x + sigma.reshape(-1, 1, 1, 1) * noise
    return learned(noisy, sigma) - prior(noisy, sigma)


@torch.no_grad()
def davi(
    backbone: Denoiser,
    y: Tensor,
    mask: Tensor,
    steps: int = 1,
    *,
    module: Denoiser | None = None,
    seeds: Sequence[int] | None = None,
    class_labels: Tensor | None = None,
    clock: Clock | None = None,
    callback: Callback | None = None,
    perturbation: float = PERTURBATION,
) -> Tensor:
    """Inpaint in one evaluation; arguments, result and errors as `task.Method`.

    Args:
        backbone: not evaluated; the images must fit it.
        y: images (B, C, H, W).
        mask: (B, 1, H, W), 1 = known.
        steps: without effect, the method has one.
        module: trained generator, called as `backbones.conditional.ConditionalDenoiser`; default the shipped
            one.
        seeds: one an image.
        class_labels: one-hot (B, n).
        clock: without effect.
        callback: called once.
        perturbation: h.
    """
    module = load_davi(device=y.device) if module is None else module
    task = prepare(backbone, y, mask, steps, seeds, class_labels, clock, callback)
    level = torch.full((len(y),), SIGMA_MAX, dtype=y.dtype, device=y.device)
    z = task.start() / float(task.sigmas[0])
    s2 = SIGMA_MAX**2
    u = task.y + s2 / (1 + s2) * perturbation * z
    x = generate(module, u, task.y, task.mask, level, class_labels).to(y.dtype)
    task.done(0, x)
    return task.paste(x)
