r"""The control as a multilayer perceptron of time and state, in the form of a costate.

$u_\theta(t, x) = -\sigma' \big(N_\theta(t, x) + \gamma_\theta(t) \odot \nabla g(x)\big)$, N with the source's hidden
layers 256, 128, 64 (and smooth units).  The second term is optional, after Zhang and Chen (2022, "Path integral
sampler"): the terminal cost's gradient behind a learned gate, one a coordinate, here

$$
\gamma_i(t) = w_{i0} + \sum_{j=0}^7 w_{i,j+1}\, e^{-2^j (1 - t)} ,
$$

as sharp in time as the relaxation of a stiff drift.  All outputs start at zero.  `Average` keeps the exponential
average of the weights, with which everything is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...noise import generator
from ...problem import ControlProblem

__all__ = ["Average", "Costate"]


class Costate(nn.Module):
    """The network, a mean network of `aid_control.policy.GaussianPolicy`; ``level`` is a free number for a loss.

    Args:
        problem: gives the shape of the control and the terminal cost.
        dim: number of state coordinates.
        widths: hidden units, one number a layer.
        gated: with the second term.
        key: integers of the initial weights.
    """

    def __init__(
        self, problem: ControlProblem, dim: int, widths: Sequence[int], gated: bool, key: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.problem = problem
        sizes, noise = [dim + 1, *widths], generator(*key)
        layers: list[nn.Module] = []
        for a, b in zip(sizes[:-1], sizes[1:], strict=True):
            layer = nn.Linear(a, b, dtype=torch.float64)
            with torch.no_grad():
                layer.weight.copy_(torch.randn(b, a, generator=noise, dtype=torch.float64) * (2 / a) ** 0.5)
                layer.bias.zero_()
            layers += [layer, nn.SiLU()]
        last = nn.Linear(sizes[-1], dim, dtype=torch.float64)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(*layers, last)
        self.gate: nn.Linear | None = None
        if gated:
            self.gate = nn.Linear(9, dim, bias=False, dtype=torch.float64)
            nn.init.zeros_(self.gate.weight)
        self.level = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, context: Any = None, probe: Any = None) -> Tensor:
        """u: t () or (B,), x (B, d) -> (B, m); context and probe are not looked at."""
        time = torch.as_tensor(t).to(x).expand(len(x)).unsqueeze(1)
        costate = self.net(torch.cat([time, x], dim=1))
        if self.gate is not None:
            to_go = (self.problem.horizon - time) * 2.0 ** torch.arange(8)
            features = torch.cat([torch.ones_like(time), torch.exp(-to_go)], dim=1)
            costate = costate + self.gate(features) * self._end_gradient(x)
        # sigma does not depend on time in any of the problems
        return self.problem.response(torch.zeros((), dtype=x.dtype), x, costate)

    def _end_gradient(self, x: Tensor) -> Tensor:
        keep = x.requires_grad  # only backpropagation through the path asks for the second derivative
        with torch.enable_grad():
            here = x if keep else x.detach().requires_grad_()
            out = torch.autograd.grad(self.problem.terminal_cost(here, None).sum(), here, create_graph=keep)[0]
        return out if keep else out.detach()


class Average:
    """Exponential average of a module's weights, corrected for its start.

    Args:
        module: whose weights.
        decay: per update, in [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self.sums = [torch.zeros_like(p) for p in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights as they are now.

        Args:
            module: that of the constructor.
        """
        self.count += 1
        for s, p in zip(self.sums, module.parameters(), strict=True):
            s.lerp_(p, 1 - self.decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Give the average to a module, after at least one update.

        Args:
            module: of the same shape.
        """
        for s, p in zip(self.sums, module.parameters(), strict=True):
            p.copy_(s / (1 - self.decay**self.count))
