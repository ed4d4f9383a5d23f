r"""Solutions of ordinary differential equations as functions of time: high order, dense, differentiable.

scipy's DOP853 (Dormand & Prince, order 8) gives a polynomial of degree 7 on each of its steps.  It is recovered
here exactly, in a Chebyshev basis, so that a solution can be evaluated and differentiated in time by torch; the
derivative then comes from the solution, not from the equation's right-hand side, and a residual means something.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

__all__ = ["DenseSolution", "solve_backward"]

_DEGREE = 7
_NODES = np.cos(np.pi * (np.arange(_DEGREE + 1) + 0.5) / (_DEGREE + 1))
_FIT = np.linalg.inv(np.polynomial.chebyshev.chebvander(_NODES, _DEGREE))


class DenseSolution:
    """y(t), a piecewise polynomial.

    Attributes:
        breaks: increasing times (I + 1,).
        coefficients: Chebyshev coefficients (I, 8, size).
    """

    def __init__(self, breaks: Tensor, coefficients: Tensor) -> None:
        self.breaks, self.coefficients = breaks, coefficients

    def __call__(self, t: Tensor | float) -> Tensor:
        """y(t), (size,); differentiable in t.

        Raises:
            ValueError: for a time outside [first break, last break].
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        first, last = float(self.breaks[0]), float(self.breaks[-1])
        here, slack = float(t.detach()), 1e-9 * max(1.0, abs(last))
        if not first - slack <= here <= last + slack:
            raise ValueError(f"t is {here}; expected a time in [{first}, {last}]")
        i = int(torch.searchsorted(self.breaks, t.detach()).clamp(1, len(self.breaks) - 1)) - 1
        a, b = self.breaks[i], self.breaks[i + 1]
        z = (2 * t - a - b) / (b - a)
        c = self.coefficients[i]
        after, now = torch.zeros_like(c[0]), c[-1]
        for k in range(_DEGREE - 1, 0, -1):  # Clenshaw
            after, now = now, c[k] + 2 * z * now - after
        return c[0] + z * now - after


def solve_backward(
    rhs: Callable[[float, np.ndarray], np.ndarray],
    end: np.ndarray,
    horizon: float,
    rtol: float = 1e-12,
    stop: Callable[[float, np.ndarray], float] | None = None,
    pieces: int = 16,
    unit: float = 1.0,
) -> tuple[DenseSolution, float | None]:
    """Solve y' = rhs(t, y), y(T) = end, from T back to 0.

    Args:
        rhs: the right-hand side, of (t, y (size,)), like y.
        end: y(T), (size,).
        horizon: T.
        rtol: relative tolerance of the steps; the absolute one is rtol times the largest entry of y(T), at
            least rtol times ``unit``.
        stop: a function of (t, y) that is positive while the solution makes sense.
        pieces: at least so many steps; the solution's *derivative* is as good as the steps are short.
        unit: the size of what y is measured in.

    Returns:
        The solution on the interval reached and ``None``, or the time at which ``stop`` became zero or the
        solution escaped to infinity.
    """
    event = None
    if stop is not None:

        def event(t: float, y: np.ndarray) -> float:
            return stop(t, y)

        event.terminal = True  # type: ignore[attr-defined]
    scale = rtol * max(unit, float(np.abs(end).max(initial=0.0)))
    out = solve_ivp(
        rhs,
        (horizon, 0.0),
        end,
        "DOP853",
        dense_output=True,
        events=event,
        rtol=rtol,
        atol=scale,
        max_step=horizon / pieces,
    )
    reached = None if out.status == 0 else float(out.t_events[0][0]) if out.status == 1 else float(out.t[-1])
    times = out.sol.ts[::-1]
    # a last step of rounding size is left to its neighbour's polynomial: its own derivative is noise
    keep = [(a, b) for a, b in zip(times[:-1], times[1:], strict=True) if b - a > (0 if reached else 1e-9) * horizon]
    if keep:
        times = np.array([times[0], *(b for _, b in keep)])
    parts = np.stack([_FIT @ out.sol((a + b) / 2 + (b - a) / 2 * _NODES).T for a, b in keep]) if keep else None
    if parts is None:
        parts, times = np.zeros((1, _DEGREE + 1, len(end))), np.array([horizon, horizon])
        parts[0, 0] = end
    return DenseSolution(torch.tensor(times.copy()), torch.tensor(parts)), reached
