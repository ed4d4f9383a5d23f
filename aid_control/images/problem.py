r"""Guided image generation as a control problem, and nothing more.

Frozen drift: the probability-flow ODE of a denoiser under a clock (`clock`).  Control: a correction $v$ of
the denoised image, in image units, so that the guided drift uses $D + v$,

$$
\dot x = r(t)\,\big(D(x; \sigma(t)) + v - x\big), \qquad r = 1/\sigma,\; t = \sigma_{max} - \sigma .
$$

The frozen drift may be the pretrained flow (``base="flow"``, the paper) or the *projected* flow
(``base="projected"``), in which the known part of $D$ is replaced by the observation, $M y + (1 - M) D$ (the
drift of DDNM, Wang et al. 2023): then known pixels arrive by themselves, and only the hole is left to learn.

Costs are means over the $d$ pixels and channels: $\Psi$ is a `terminal.TerminalCost`,
$|x - x_0|^2 / (2d)$ unless said otherwise, and the control's cost is one of

- ``levels``: $\tfrac{\beta}{2d} |v|^2 r\,dt = \tfrac{\beta}{2d} |v|^2\, |d\log\sigma|$, the same in every clock;
- ``drift``: $\tfrac{\beta}{2d} |u|^2 dt$ with $u = r v$, the correction of the drift itself, which depends on
  what is called time: here the fallen noise, for every clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..problem import ControlProblem
from .backbones.precond import Denoiser
from .clock import Clock, KarrasClock
from .terminal import Goal, TerminalCost

__all__ = ["GuidanceProblem", "Observation"]


@dataclass
class Observation:
    """What a policy sees of an image: xi = (y, M), and the guidance's guess of the whole image.

    Attributes:
        y: observed image (B, C, H, W), zero in the hole.
        mask: (B, 1, H, W), 1 = known.
        guess: estimate of E[x0 | y, M], like ``y``, once it has been made.
        class_labels: one-hot (B, n) or ``None``.
    """

    y: Tensor
    mask: Tensor
    guess: Tensor | None = None
    class_labels: Tensor | None = None


class GuidanceProblem(ControlProblem):
    """A ControlProblem whose drift is a denoiser's probability flow.

    Args:
        backbone: frozen denoiser.
        clock: noise range and grids.
        beta: weight of the control cost.
        cost: ``"levels"`` or ``"drift"`` (see the module).
        base: ``"flow"`` or ``"projected"``.
        terminal: Psi.

    Raises:
        ValueError: for an unknown cost or base.
    """

    def __init__(
        self,
        backbone: Denoiser,
        clock: Clock | None = None,
        beta: float = 3.0,
        cost: str = "levels",
        base: str = "flow",
        terminal: TerminalCost | None = None,
    ) -> None:
        if cost not in ("levels", "drift"):
            raise ValueError(f"cost is {cost!r}; expected levels or drift")
        if base not in ("flow", "projected"):
            raise ValueError(f"base is {base!r}; expected flow or projected")
        self.base, self.terminal = base, terminal or TerminalCost()
        self.backbone, self.clock, self.beta, self.cost = backbone, clock or KarrasClock(), beta, cost
        self.horizon = self.clock.sigma_max
        self.pixels = math.prod(backbone.shape)

    def probe(self, t: Tensor, x: Tensor, context: Observation) -> Tensor:
        """The denoised image D(x; sigma(t)), its known part replaced by y for the projected flow.

        Args:
            t: scalar time.
            x: states (B, C, H, W).
            context: gives class labels, and for the projected flow y and the mask; ``None`` = no labels (flow only).

        Returns:
            (B, C, H, W).
        """
        labels = None if context is None else context.class_labels
        denoised = self.backbone(x, self.clock.sigma(t), labels).to(x.dtype)  # states keep their precision
        return denoised if self.base == "flow" else torch.where(context.mask.bool(), context.y, denoised)

    def drift(self, t: Tensor, x: Tensor, context: Observation, probe: Tensor) -> Tensor:
        return self.gain(t) * (probe - x)

    def singular(self, t: Tensor, s: Tensor) -> bool:
        """At sigma = 0, and where sigma falls by a factor of 30 or more: Heun then steps by Euler.

        The slope at s is (x - D - v)/sigma(s): Heun multiplies what D and v say differently at t and s by
        sigma(t)/(2 sigma(s)).

        Args:
            t: scalar time at the start of a step.
            s: scalar time at its end.
        """
        return bool(self.clock.sigma(s) * 30 <= self.clock.sigma(t))

    def gain(self, t: Tensor) -> Tensor:
        return 1 / self.clock.sigma(t)

    def control_weight(self, t: Tensor) -> Tensor:
        r = self.gain(t)
        return self.beta / self.pixels * (r if self.cost == "levels" else r**2)

    def terminal_cost(self, x: Tensor, target: Tensor | Goal) -> Tensor:
        return self.terminal(x, target)

    def discrete(self, grid: Tensor) -> tuple[list[float], list[float]]:
        r"""What the Euler steps of a grid are.

        Args:
            grid: increasing times (K + 1,).

        Returns:
            Falls $f_k$, and weights $w_k$ of $\tfrac12 |v_k|^2$ in the cost, K each.
        """
        pairs = list(zip(grid[:-1], grid[1:], strict=True))
        falls = [float(self.fall(t, s - t)) for t, s in pairs]
        return falls, [float(self.control_weight(t) * (s - t)) for t, s in pairs]

    def fall(self, t: Tensor, dt: Tensor) -> Tensor:
        r"""How far an Euler step moves towards D + v: $r(t)\,\Delta t = 1 - \sigma_{k+1}/\sigma_k$.

        Args:
            t: scalar time at the start of the step.
            dt: its length, a scalar.

        Returns:
            A scalar in (0, 1].
        """
        return self.gain(t) * dt


def levels_of(problem: GuidanceProblem, steps: int) -> Tensor:
    """The times of ``steps`` solver steps from sigma_max to 0, at levels that the backbone knows.

    Args:
        problem: gives the clock and the backbone's rounding of levels.
        steps: K, at least 1.

    Returns:
        (K + 1,) increasing times sigma_max - sigma_k, float64.
    """
    clock = problem.clock
    return clock.sigma_max - clock.sigmas(steps, rounding=problem.backbone.round_sigma).to(torch.float64)
