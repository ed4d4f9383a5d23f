r"""The control problem, a minimisation, as the user writes it down.

$$
\begin{aligned}
dX &= \big(b(t, X; \xi) + B(t, X)\, u\big) dt + \sigma(t, X, u)\, dW, \\
J &= E\Big[\int_0^T e^{-\rho t} \big( f(t, X) + c(t, X, u) \big) dt + e^{-\rho T}\, \Psi(X_T)\Big],
\end{aligned}
$$

with the control cost $c = \tfrac12 R_t |u|^2$ unless a problem says otherwise.  The state is any tensor
(B, ...); $|u|^2$ and inner products sum over all but the batch dimension, so the layer knows neither
vectors nor images.  $\xi$ is the context a policy may see.  The terminal cost may use a ``target`` that
the policy must not see (for guidance: the clean image).

A frozen system may be expensive to ask (a network).  What it answers at $(t, x)$ is its *probe*: it is
computed once a step, kept in the trajectory, and handed to drift, policy and critic.

A problem with a scalar gain and a scalar weight overrides `gain` and `control_weight`; one with matrices overrides
`push`, `pull` and `control_cost`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["ControlProblem", "NoiseKind", "inner"]

NoiseKind = Literal["none", "diagonal", "columns"]


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product over all but the batch dimension: (B, ...), (B, ...) -> (B,)."""
    return (a * b).flatten(1).sum(1)


class ControlProblem:
    """Base class; override what differs from "no drift, no running cost, no noise, unit gain, unit weight".

    In every method t (and s) is a scalar tensor (), x are states (B, ...), u controls, p costates like x and xi the
    context; u has the shape of x where `gain` is a number, otherwise the shape that `push` takes, (B, m).

    Attributes:
        horizon: T, ``math.inf`` for an infinite one.
        discount: rho >= 0, per unit of time.
        noise: what `diffusion` returns: ``"none"``; ``"diagonal"``, a tensor like x; or ``"columns"``,
            (B, d, n) for flat states (B, d) and an n-dimensional Brownian motion.
    """

    horizon: float = 1.0
    discount: float = 0.0
    noise: NoiseKind = "none"

    def singular(self, t: Tensor, s: Tensor) -> bool:
        """Whether the drift at s is undefined or too stiff for a step from t: (), () -> bool; Heun then takes Euler."""
        return False

    def probe(self, t: Tensor, x: Tensor, context: Any) -> Any:
        """What the frozen system answers: (), (B, ...), xi -> anything, ``None`` where there is nothing to ask.

        It is called once a drift evaluation.
        """
        return None

    def drift(self, t: Tensor, x: Tensor, context: Any, probe: Any) -> Tensor:
        """b(t, x; xi): (), (B, ...), xi, probe -> like x."""
        return torch.zeros_like(x)

    def gain(self, t: Tensor) -> Tensor | float:
        """The scalar in front of the control: () -> () or a number."""
        return 1.0

    def push(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """B(t, x) u: (), (B, ...), u -> like x."""
        return self.gain(t) * u

    def pull(self, t: Tensor, x: Tensor, p: Tensor) -> Tensor:
        """B(t, x)' p of costates p like x: (), (B, ...), (B, ...) -> like u."""
        return self.gain(t) * p

    def velocity(self, t: Tensor, x: Tensor, u: Tensor, context: Any, probe: Any) -> Tensor:
        """b + B u: (), (B, ...), u, xi, probe -> like x."""
        return self.drift(t, x, context, probe) + self.push(t, x, u)

    def control_weight(self, t: Tensor) -> Tensor | float:
        """R_t > 0: () -> () or a number."""
        return 1.0

    def control_cost(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """c(t, x, u): (), (B, ...), u -> (B,); at most quadratic in u."""
        return 0.5 * self.control_weight(t) * inner(u, u)

    def response(self, t: Tensor, x: Tensor, p: Tensor) -> Tensor:
        r"""The control that minimises $c(t, x, u) + p \cdot Bu$, where sigma is free of u.

        Args:
            t: scalar time.
            x: states (B, ...).
            p: costates, like x.

        Returns:
            $-B'p / R_t$, of the shape of u.
        """
        return -self.pull(t, x, p) / self.control_weight(t)

    def exploration_cost(self, t: Tensor, covariance: Tensor, dim: int) -> Tensor:
        r"""What a Gaussian spread adds to the expected control cost per unit time, $\tfrac12 \mathrm{tr}(R \Sigma)$.

        Args:
            t: scalar time.
            covariance: a scalar v (Sigma = v I), (m, m) or (S, m, m).
            dim: m, the number of control coordinates.

        Returns:
            A scalar, or (S,) for a stack.
        """
        trace = covariance * dim if covariance.dim() == 0 else covariance.diagonal(dim1=-2, dim2=-1).sum(-1)
        return 0.5 * self.control_weight(t) * trace

    def running_cost(self, t: Tensor, x: Tensor, context: Any) -> Tensor | float:
        """f(t, x): (), (B, ...), xi -> (B,), or a number."""
        return 0.0

    def stage_cost(self, t: Tensor, x: Tensor, u: Tensor, context: Any) -> Tensor:
        """f + c: (), (B, ...), u, xi -> (B,)."""
        return self.control_cost(t, x, u) + self.running_cost(t, x, context)

    def terminal_cost(self, x: Tensor, target: Any) -> Tensor:
        """Psi(x), to be written by every problem: (B, ...), target -> (B,)."""
        raise NotImplementedError  # pragma: no cover - abstract

    def diffusion(self, t: Tensor, x: Tensor, u: Tensor) -> Tensor | None:
        """sigma(t, x, u), affine in u: (), (B, ...), u -> like x, (B, d, n) or ``None``, as `noise` says."""
        return None

    def noise_dim(self, x: Tensor) -> tuple[int, ...]:
        """Shape of one path's Brownian motion: (B, ...) -> (n,); override it where `noise` is ``"columns"``."""
        return tuple(x.shape[1:])

    def diffuse(self, t: Tensor, x: Tensor, u: Tensor, dw: Tensor) -> Tensor:
        """sigma(t, x, u) dW: (), (B, ...), u, dw (B, n) or like x -> like x."""
        sigma = self.diffusion(t, x, u)
        assert sigma is not None, "noise is 'none'"
        if self.noise == "diagonal":
            return sigma * dw
        return torch.einsum("bdn,bn->bd", sigma, dw)

    def exploration_columns(self, t: Tensor, x: Tensor, factor: Tensor) -> Tensor | None:
        r"""Columns (B, d, n') that sampling adds to the averaged diffusion, or ``None``.

        With $\sigma_j = \dots + D_j u$ and $\Sigma = F F'$ the relaxed coefficient
        $\tilde\sigma\tilde\sigma' = \int \sigma\sigma' d\pi$ has the extra columns $D_j F$.

        Args:
            t: scalar time.
            x: states (B, d).
            factor: F, a scalar, (m, m) or (S, m, m).
        """
        return None

    def policy_variance(self, t: Tensor, temperature: float, dim: int) -> Tensor | float:
        r"""The fixed variance v with $\tfrac12 R_t v d = \lambda$ (AID, section 2 of its paper).

        It is the variance of the entropy-regularised optimum at $\tau = 2 \lambda / d$, and makes exploration
        cost exactly $\lambda$ per unit time, whatever R.

        Args:
            t: scalar time.
            temperature: lambda, in units of cost per unit time.
            dim: d, the number of control coordinates.
        """
        return 2 * temperature / (dim * self.control_weight(t))
