r"""The exact optimum of guidance where images are Gaussian: the yardstick of "the module approximates the optimum".

Images are $N(\mu, C)$ with $C = U\,\mathrm{diag}(l)\,U'$.  The denoiser
$D = \mu + U\,\mathrm{diag}\big(\tfrac{l}{l+\sigma^2}\big)\,U'(x - \mu)$ is affine, so the *discrete* problem that the
Euler sampler runs,

$$
x_{k+1} = x_k + f_k (D_k + v_k - x_k), \qquad
J = \sum_k \tfrac12 w_k |v_k|^2 + \tfrac{1}{2d} |x_K - m|^2 ,
$$

($f_k = 1 - \sigma_{k+1}/\sigma_k$ the fall, $w_k$ the control's weight times the step) splits into scalar
linear-quadratic problems along $U$.  With $x$ and $m$ measured from $\mu$ in the eigenbasis,
$a_k = 1 - f_k \sigma_k^2/(l + \sigma_k^2)$, $A_k = \prod_{j \ge k} a_j$ (the rest of the unguided flow, $A_K = 1$),
dynamic programming gives

$$
c_k = 1 + \sum_{j \ge k} \frac{(A_{j+1} f_j)^2}{d\, w_j}, \qquad
V_k = \frac{1}{2d} \sum_i \frac{(A_k x - m)_i^2}{c_{k,i}}, \qquad
v_k^* = -\frac{A_{k+1} f_k}{d\, w_k}\, \frac{A_k x - m}{c_k} .
$$

one entry $i$ an eigenvector.  Directions outside a thin $U$ share one eigenvalue and are treated together.
No division by $a_k$, which is 0 for $l = 0$ in the last step.  A policy sees $\xi = (y, M)$, not the clean image; as
$E[|x - x_0|^2 \mid \xi] = |x - m(\xi)|^2 + \mathrm{const}$, the target is the posterior mean
$m(\xi) = E[x_0 \mid y, M]$, exact for every mask.  Any clock and either running cost enter through $f$ and $w$ alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .problem import GuidanceProblem

__all__ = ["GaussianOptimum"]


class GaussianOptimum:
    """The optimal discrete control on one grid, a policy's mean: (t, x, context, probe) -> v.

    Args:
        problem: on a Gaussian backbone, with ``mean`` and ``thin_spectrum()`` -> U (d, r), l (r,), rest; terminal
            cost the plain squared distance, base drift the flow.
        grid: times (K + 1,) of the sampler.
        target: m(xi), images (B, C, H, W).

    Raises:
        ValueError: for another terminal cost or base drift.
    """

    def __init__(self, problem: GuidanceProblem, grid: Tensor, target: Tensor) -> None:
        if not problem.terminal.plain or problem.base != "flow":
            raise ValueError(f"base is {problem.base}, {problem.terminal}; expected the flow and the plain distance")
        self.problem, self.grid = problem, grid.double()
        backbone: Any = problem.backbone
        self.basis, l, rest_of_space = backbone.thin_spectrum()
        l = torch.cat([l, rest_of_space.reshape(1)])  # one entry more: everything orthogonal to U
        self.mean = backbone.mean.flatten().double()
        self.target = target.flatten(1).double() - self.mean
        falls, weights = problem.discrete(self.grid)
        d = problem.pixels
        rest, cost = torch.ones_like(l), torch.ones_like(l)
        self.rest, self.cost, self.gain = [rest], [cost], []
        for t, fall, weight in zip(self.grid[:-1].flip(0), falls[::-1], weights[::-1], strict=True):
            s2 = float(problem.clock.sigma(t)) ** 2
            cost = cost + (rest * fall) ** 2 / (d * weight)
            self.gain.append(rest * fall / (d * weight))
            rest = rest * (1 - fall * s2 / (l + s2))
            self.rest.append(rest)
            self.cost.append(cost)
        for series in (self.rest, self.cost, self.gain):
            series.reverse()

    def _index(self, t: Tensor) -> int:
        return int((self.grid - t.double()).abs().argmin())

    def _scaled(self, factors: Tensor, z: Tensor) -> Tensor:
        """U diag(f) U' z + f_rest (z - U U' z)."""
        return ((z @ self.basis) * (factors[:-1] - factors[-1])) @ self.basis.T + factors[-1] * z

    def _gap(self, k: int, x: Tensor) -> Tensor:
        return self._scaled(self.rest[k], x.flatten(1).double() - self.mean) - self.target

    def __call__(self, t: Tensor, x: Tensor, context: Any = None, probe: Any = None) -> Tensor:
        """v*_k, like x, at a time of the grid."""
        k = self._index(t)
        return self._scaled(-self.gain[k] / self.cost[k], self._gap(k, x)).reshape(x.shape).to(x.dtype)

    def value(self, t: Tensor, x: Tensor) -> Tensor:
        r"""$V_k$, up to the constant $E|x_0 - m|^2 / (2d)$.

        Args:
            t: scalar time; the nearest one of the grid counts.
            x: states (B, C, H, W).

        Returns:
            (B,) float64.
        """
        k = self._index(t)
        gap = self._gap(k, x)
        return 0.5 * (gap * self._scaled(1 / self.cost[k], gap)).sum(1) / self.problem.pixels
