r"""What Euler-Maruyama computes, exactly: the cost of a policy in the *discretised* problem.

One step is linear in x, so $V_k$ stays quadratic and the recursion

$$
V_k(x) = \Delta t\,(\text{stage cost}) + e^{-\rho \Delta t}\, E\, V_{k+1}(\mu(x) + \text{noise}), \qquad
\mu(x) = x + \Delta t\,(A_K x + b_K),
$$

is solved in closed form ($A_K$, $b_K$ as in `evaluate`).  The noise adds
$\tfrac{\Delta t}2 \sum_j c_j(x)'P_{k+1}c_j(x)$ with $c_j(x) = C_{K,j} x + s_{K,j}$; the policy's spread adds
$\tfrac{\Delta t}2\sum_j \mathrm{tr}(D_j'P_{k+1}D_j\Sigma)$ when averaged, and
$\tfrac{\Delta t^2}2 \mathrm{tr}(B'P_{k+1}B\Sigma)$ on top when sampled: the whole difference of the two, of order
$\Delta t$ in the cost.  So a Monte-Carlo estimate can be tested without any allowance for the step, and orders of
convergence can be measured without noise.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import torch
from torch import Tensor

from ..motion import Mode
from .evaluate import closed_loop, law_at, spread_rate
from .problem import LQProblem
from .quadratic import AffineGaussian, QuadraticValue
from .riccati import arrays_of, check_temperature

__all__ = ["scheme_value"]


def scheme_value(
    problem: LQProblem, policy: AffineGaussian, grid: Tensor, mode: Mode = "averaged", temperature: float = 0.0
) -> QuadraticValue:
    """Expected total cost from the grid's first time, as a function of the first state.

    Args:
        problem: the problem.
        policy: an affine Gaussian policy.
        grid: times (K + 1,).
        mode: execution mode of `rollout.rollout`.
        temperature: tau of the entropy in the cost.

    Returns:
        V_0 as a value (the same at every time asked).

    Raises:
        ValueError: for a negative temperature, an unknown mode, or a grid that does not increase.
    """
    tau = check_temperature(temperature)
    if mode not in get_args(Mode):
        raise ValueError(f"mode is {mode!r}; expected one of {get_args(Mode)}")
    if len(grid) < 2 or not bool((grid.diff() > 0).all()):
        raise ValueError(
            f"grid has shape {tuple(grid.shape)} and does not increase; expected increasing times (K + 1,)"
        )
    groups, m = problem.batch or 1, problem.control_dim
    times = grid.to(torch.float64).tolist()
    at = arrays_of(problem)
    c = at(times[-1])
    big, small, constant = c["G"].copy(), c["g"].copy(), np.zeros(groups)
    eye = np.eye(problem.state_dim)
    for t, s in zip(times[-2::-1], times[:0:-1], strict=True):
        dt, c = s - t, at(t)
        gain, offset, sigma = law_at(policy, t, groups, m)
        entropy = spread_rate(np.zeros_like(c["R"]), sigma, tau)  # charged in every mode, as the rollout does
        if mode == "mean":
            sigma = np.zeros_like(sigma)
        loop = closed_loop(c, gain, offset)
        move, shift = eye + dt * loop["A"], dt * loop["b"]
        # at P = 0 the spread costs tr(R Sigma)/2 - tau H; what it adds to the next state is discounted with it
        spread = spread_rate(c["R"], sigma, 0.0) + entropy
        pushed = 0.5 * np.einsum("snim,sij,snjk,skm->s", c["D"], big, c["D"], sigma)
        if mode == "sampled":
            pushed = pushed + 0.5 * dt * np.einsum("sim,sij,sjk,skm->s", c["B"], big, c["B"], sigma)
        p_shift, ps = np.einsum("sij,sj->si", big, shift), np.einsum("sij,snj->sni", big, loop["s"])
        quadratic = move.mT @ big @ move + dt * np.einsum("snki,skl,snlj->sij", loop["C"], big, loop["C"])
        linear = np.einsum("sji,sj->si", move, p_shift + small) + dt * np.einsum("snji,snj->si", loop["C"], ps)
        level = constant + 0.5 * (shift * p_shift).sum(-1) + (small * shift).sum(-1)
        level = level + 0.5 * dt * (loop["s"] * ps).sum((-1, -2))
        factor = np.exp(-problem.discount * dt)
        constant = dt * (loop["constant"] + spread) + factor * (level + dt * pushed)
        big, small = dt * loop["Q"] + factor * quadratic, dt * loop["q"] + factor * linear
    terms = tuple(torch.from_numpy(a) for a in (big, small, constant))
    return QuadraticValue(lambda t: terms, problem.batch is not None)  # type: ignore[arg-type,return-value]
