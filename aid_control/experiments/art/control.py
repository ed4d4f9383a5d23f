r"""The clock as a control problem of the package, solved from evaluations of the drift alone.

One clock carries $n$ paths of the frozen flow $dx/d\psi = F(x, \psi)$, so the state is $(x_1, \dots, x_n, \psi)$; with
the speed $\theta$ and $q = \tfrac1n \sum_i |Q(x_i, \psi)|$,

$$
\dot x_i = \theta F(x_i, \psi), \qquad \dot\psi = \theta, \qquad \min \int_0^T q\,\theta^2\,dt, \qquad \psi_T = T .
$$

**Control.** ART explores with $\theta \sim N(\mu, \lambda/q)$, a variance that depends on the state.  The control used
here is $u = \sqrt q\,\theta$:

$$
\dot x_i = \frac{F(x_i, \psi)}{\sqrt q}\, u, \qquad \dot\psi = \frac u{\sqrt q}, \qquad \min \int_0^T u^2\,dt, \qquad
u \sim N(\sqrt q\,\mu, \lambda) .
$$

It is the same policy.  But now the weight, $R = 2$, and the variance are constants: the package's own rollouts, critics
and policy gradients apply, exploring costs $\lambda$ per unit of time, and $N(u^*, \lambda)$ is the optimum of the
problem with an entropy bonus on u at temperature $\tau = 2\lambda$ (`aid_control.lq.recovery` in the linear case).
The entropy of u differs from that of $\theta$ by $\tfrac12 \log q$, which is why the same policy is not optimal
with a bonus on the entropy of $\theta$.

**Data.** A probe asks for the drift twice, at $(x, \psi)$ and a little further along itself:
$Q \approx (F(x + \epsilon F, \psi + \epsilon) - F(x, \psi))/\epsilon$.  Nothing else is known of F.

**Actor.** With a density $w_\phi$ (`warp.LogLinear`) and $I_\phi(\psi) = \int_\psi^T w_\phi$ the mean is

$$
\mu_\phi(t, \psi) = \frac{I_\phi(\psi)}{(T - t)\, w_\phi(\psi)} ,
$$

the feedback of the clock $\theta \propto 1/w_\phi$: along it $I_\phi/(T - t)$ is constant, so it ends at T from
wherever exploration has taken it.  The optimum, $w = \sqrt q$, is in this family up to the knots.

**Critic.** $V_\theta(t, \psi) = (q/w_\theta^2)\, I_\theta(\psi)^2/(T - t)$ with a density of its own.  The value of the
optimum has this form: $q/w^2$ is then the constant by which the paths of this episode differ from others.

What is left at the end, $d = T - \psi_T$, is walked in one more step: $\Psi = q\,d^2/\Delta t$.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...problem import ControlProblem
from .warp import LogLinear

__all__ = ["Asked", "ClockProblem", "ClockValue", "Speed"]


class Asked(NamedTuple):
    """What the frozen flow answered.

    Attributes:
        field: F at the n paths, (B, n).
        root: sqrt(q), (B, 1).
    """

    field: Tensor
    root: Tensor


class ClockProblem(ControlProblem):
    """The problem of this module; states (B, n + 1), the clock in the last column, controls (B, 1).

    Args:
        field: F(x, psi) of paths (B, n) at clocks (B, 1), like x.
        end: T, both of the clock and of the time.
        step: dt of the rollouts, for what is left at the end.
        epsilon: step of the finite difference.
    """

    def __init__(
        self, field: Callable[[Tensor, Tensor], Tensor], end: float, step: float, epsilon: float = 1e-3
    ) -> None:
        self.field, self.horizon, self.step, self.epsilon = field, end, step, epsilon
        self.calls = 0

    def probe(self, t: Tensor, x: Tensor, context: Any) -> Asked:
        """F and sqrt(q): (), (B, n + 1), anything -> (B, n) and (B, 1)."""
        paths, psi = x[:, :-1], x[:, -1:].clamp(0, self.horizon)
        # at the end of the clock the difference is taken backwards: F may not exist beyond
        h = torch.where(psi + self.epsilon <= self.horizon, self.epsilon, -self.epsilon)
        here = self.field(paths, psi)
        second = (self.field(paths + h * here, psi + h) - here) / h
        self.calls += 2
        return Asked(here, second.abs().mean(1, keepdim=True).clamp(min=1e-12).sqrt())

    def velocity(self, t: Tensor, x: Tensor, u: Tensor, context: Any, probe: Asked) -> Tensor:
        """(F, 1) u / sqrt(q): (), (B, n + 1), (B, 1), anything, probe -> (B, n + 1)."""
        return torch.cat([probe.field, torch.ones_like(u)], 1) * (u / probe.root)

    def control_weight(self, t: Tensor) -> float:
        return 2.0

    def terminal_cost(self, x: Tensor, target: Any) -> Tensor:
        root = self.probe(torch.tensor(self.horizon), x, None).root
        return ((x[:, -1] - self.horizon) * root[:, 0]).square() / self.step


class Speed(nn.Module):
    """The actor's mean u = sqrt(q) I(psi)/((T - t) w(psi)).

    Args:
        warp: the density w.
        end: T.
    """

    def __init__(self, warp: LogLinear, end: float) -> None:
        super().__init__()
        self.warp, self.end = warp, end

    def forward(self, t: Tensor, x: Tensor, context: Any, probe: Asked) -> Tensor:
        """(), (B, n + 1), anything, probe -> (B, 1)."""
        psi = x[:, -1:].clamp(0, self.end)
        return probe.root * self.warp.rest(psi) / (self.warp.density(psi) * (self.end - t))


class ClockValue(nn.Module):
    """The critic (q/w(psi)^2) I(psi)^2/(T - t).

    Args:
        warp: the density of I.
        end: T.
    """

    def __init__(self, warp: LogLinear, end: float) -> None:
        super().__init__()
        self.warp, self.end = warp, end

    def forward(self, t: Tensor, x: Tensor, context: Any, probe: Asked) -> Tensor:
        """(), (B, n + 1), anything, probe -> (B,)."""
        psi = x[:, -1:].clamp(0, self.end)
        ratio = probe.root * self.warp.rest(psi) / self.warp.density(psi)
        return (ratio.square() / (self.end - t))[:, 0]
