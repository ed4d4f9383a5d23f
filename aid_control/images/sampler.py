r"""Unguided samplers of Karras et al. (2022): deterministic and churned Heun, and the general solver of section 3.

The probability-flow ODE in the noise level is $dx/d\sigma = (x - D(x; \sigma)) / \sigma$.  `edm_sampler`
solves it (algorithm 2 of the paper); `ablation_sampler` solves

$$
\frac{dx}{dt} = \Big(\frac{\dot\sigma}{\sigma} + \frac{\dot s}{s}\Big) x
- \frac{\dot\sigma s}{\sigma} D\Big(\frac{x}{s}; \sigma\Big)
$$

for the schedules $\sigma(t)$ and scalings $s(t)$ of VP, VE, iDDPM and EDM (algorithm 1).  Both are pure functions
of the starting latents and, where there is churn, of the given noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .backbones.precond import Denoiser
from .clock import KarrasClock, check_clock, within

__all__ = ["ablation_sampler", "edm_sampler"]

Noise = Callable[[int, Tensor], Tensor]
Fn = Callable[[Tensor], Tensor]


def _noise(noise: Tensor | Noise | None, i: int, x: Tensor) -> Tensor:
    if noise is None:
        raise ValueError("churn needs noise: pass a tensor (steps, B, C, H, W) or a function (i, x) -> noise")
    return noise[i].to(x) if isinstance(noise, Tensor) else noise(i, x)


def edm_sampler(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    S_churn: float = 0.0,
    S_min: float = 0.0,
    S_max: float = float("inf"),
    S_noise: float = 1.0,
    noise: Tensor | Noise | None = None,
) -> Tensor:
    """Heun's method with optional churn (algorithm 2); 2 num_steps - 1 calls of the network.

    Args:
        net: a denoiser.
        latents: unit-variance noise (B, C, H, W); the state keeps float64.
        class_labels: one-hot (B, label_dim) or ``None``.
        num_steps: steps.
        sigma_min: last positive noise level, raised to the network's own bound.
        sigma_max: first noise level, lowered to the network's own bound.
        rho: exponent of the grid.
        S_churn: amount of noise added back, over all steps.
        S_min: lowest noise level that churns.
        S_max: highest.
        S_noise: inflation of the added noise.
        noise: standard normal noise for the churn, (num_steps, B, C, H, W) or a function (i, x) -> like x.

    Returns:
        Samples (B, C, H, W) in float64.

    Raises:
        InputError: for noise levels as `clock.check_clock` refuses them.
        ValueError: for fewer than one step, or churn without noise.
    """
    clock = within(net.sigma_min, net.sigma_max, sigma_min, sigma_max, rho)
    check_clock(clock)
    steps = clock.sigmas(num_steps, rounding=net.round_sigma).to(latents.device)
    x = latents.double() * steps[0]
    for i, (s, s_next) in enumerate(zip(steps[:-1], steps[1:], strict=True)):
        gamma = min(S_churn / num_steps, math.sqrt(2) - 1) if S_min <= s <= S_max else 0.0
        s_hat = net.round_sigma(s * (1 + gamma)).to(s)
        if gamma > 0:
            x = x + (s_hat**2 - s**2).clip(min=0).sqrt() * S_noise * _noise(noise, i, x)
        d = (x - net(x, s_hat, class_labels).double()) / s_hat
        x_next = x + (s_next - s_hat) * d
        if i < num_steps - 1:
            d_next = (x_next - net(x_next, s_next, class_labels).double()) / s_next
            x_next = x + (s_next - s_hat) * (d + d_next) / 2
        x = x_next
    return x


def _schedule(kind: str, beta_d: float, beta_min: float) -> tuple[Fn, Fn, Fn]:
    """(sigma, its derivative, its inverse) as functions of t."""
    if kind == "vp":

        def sigma(t: Tensor) -> Tensor:
            return ((0.5 * beta_d * t**2 + beta_min * t).exp() - 1).sqrt()

        return (
            sigma,
            lambda t: 0.5 * (beta_min + beta_d * t) * (sigma(t) + 1 / sigma(t)),
            lambda s: ((beta_min**2 + 2 * beta_d * (s**2 + 1).log()).sqrt() - beta_min) / beta_d,
        )
    if kind == "ve":
        return torch.sqrt, lambda t: 0.5 / t.sqrt(), torch.square
    return lambda t: t, torch.ones_like, lambda s: s


def _levels(kind: str, n: int, lo: float, hi: float, rho: float, beta: tuple[float, float], eps: float) -> Tensor:
    """Noise levels of a discretisation, without the final zero."""
    i = torch.arange(n, dtype=torch.float64)
    if kind == "vp":
        return _schedule("vp", *beta)[0](1 + i / (n - 1) * (eps - 1))
    if kind == "ve":
        return (hi**2 * (lo**2 / hi**2) ** (i / (n - 1))).sqrt()
    if kind == "iddpm":
        M, C_1, C_2 = 1000, 0.001, 0.008
        u = torch.zeros(M + 1, dtype=torch.float64)
        # alpha-bar in float32, because that is what the published levels were computed with
        alpha_bar = (0.5 * math.pi * torch.arange(M + 1, dtype=torch.float32) / M / (C_2 + 1)).sin() ** 2
        ratio = (alpha_bar[:-1] / alpha_bar[1:]).clip(min=C_1)
        for j in range(M, 0, -1):
            u[j - 1] = ((u[j] ** 2 + 1) / ratio[j - 1] - 1).sqrt()
        u = u[(u >= lo) & (u <= hi)]
        return u[((len(u) - 1) / (n - 1) * i).round().long()]
    return KarrasClock(lo, hi, rho).sigmas(n)[:-1]


def ablation_sampler(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    num_steps: int = 18,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    solver: str = "heun",
    discretization: str = "edm",
    schedule: str = "linear",
    scaling: str = "none",
    epsilon_s: float = 1e-3,
    alpha: float = 1.0,
) -> Tensor:
    """The deterministic general solver (algorithm 1) for every combination of the paper's ablation.

    Args:
        net: a denoiser.
        latents: unit-variance noise (B, C, H, W); the state keeps float64.
        class_labels: one-hot (B, label_dim) or ``None``.
        num_steps: steps.
        sigma_min: last positive noise level; ``None`` = the discretisation's published value.
        sigma_max: first noise level; ``None`` = the same.
        rho: exponent of the ``edm`` grid.
        solver: ``"euler"`` or ``"heun"``.
        discretization: ``"vp"``, ``"ve"``, ``"iddpm"`` or ``"edm"``.
        schedule: sigma(t): ``"vp"``, ``"ve"`` or ``"linear"``.
        scaling: s(t): ``"vp"`` or ``"none"``.
        epsilon_s: smallest time of the VP discretisation.
        alpha: position of Heun's second evaluation in the step.

    Returns:
        Samples (B, C, H, W) in float64.

    Raises:
        InputError: for noise levels as `clock.check_clock` refuses them.
        ValueError: for an unknown name, or fewer than two steps.
    """
    allowed = {
        "solver": (solver, ("euler", "heun")),
        "discretization": (discretization, ("vp", "ve", "iddpm", "edm")),
        "schedule": (schedule, ("vp", "ve", "linear")),
        "scaling": (scaling, ("vp", "none")),
    }
    for option, (value, names) in allowed.items():
        if value not in names:
            raise ValueError(f"{option} is {value!r}; expected one of {', '.join(names)}")
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; expected at least 2")
    eps = torch.tensor(epsilon_s, dtype=torch.float64)
    vp = _schedule("vp", 19.9, 0.1)[0]
    lows = {"vp": float(vp(eps)), "ve": 0.02, "iddpm": 0.002, "edm": 0.002}
    highs = {"vp": float(vp(torch.ones_like(eps))), "ve": 100.0, "iddpm": 81.0, "edm": 80.0}
    lo = max(lows[discretization] if sigma_min is None else sigma_min, net.sigma_min)
    hi = min(highs[discretization] if sigma_max is None else sigma_max, net.sigma_max)
    check_clock(KarrasClock(lo, hi))
    log_lo, log_hi = math.log(lo**2 + 1), math.log(hi**2 + 1)
    beta_d = 2 * (log_lo / epsilon_s - log_hi) / (epsilon_s - 1)
    beta = (beta_d, log_hi - 0.5 * beta_d)

    sigma, sigma_dot, sigma_inv = _schedule(schedule, *beta)
    levels = _levels(discretization, num_steps, lo, hi, rho, beta, epsilon_s)
    t_steps = sigma_inv(net.round_sigma(levels)).to(latents.device)
    t_steps = torch.cat([t_steps, t_steps.new_zeros(1)])

    def scale(t: Tensor) -> Tensor:
        return 1 / (1 + sigma(t) ** 2).sqrt() if scaling == "vp" else torch.ones_like(t)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        s, level, rate = scale(t), sigma(t), sigma_dot(t)
        s_dot_over_s = -level * rate * s**2 if scaling == "vp" else torch.zeros_like(t)
        return (rate / level + s_dot_over_s) * x - rate * s / level * net(x / s, level, class_labels).double()

    x = latents.double() * (sigma(t_steps[0]) * scale(t_steps[0]))
    for i, (t, t_next) in enumerate(zip(t_steps[:-1], t_steps[1:], strict=True)):
        # The published solver re-rounds sigma at every step; for continuous networks this is the identity.
        t = sigma_inv(net.round_sigma(sigma(t)).to(t))
        h = t_next - t
        d = velocity(x, t)
        if solver == "euler" or i == num_steps - 1:
            x = x + h * d
        else:
            d_prime = velocity(x + alpha * h * d, t + alpha * h)
            x = x + h * ((1 - 1 / (2 * alpha)) * d + 1 / (2 * alpha) * d_prime)
    return x
