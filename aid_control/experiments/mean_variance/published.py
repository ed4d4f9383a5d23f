r"""What Jia and Zhou (2022b, section 4) publish of this experiment, as far as we could read it.

Setting: $x_0 = 1$, $z = 1.4$, $T = 1$, $\Delta t = 1/252$, r = 0.02, temperature 0.1, m = 10;
$\mu \in \{0, \pm 0.1, \pm 0.3, \pm 0.5\}$, $\sigma \in \{0.1, 0.2, 0.3, 0.4\}$.  Out-of-sample Sharpe ratios were
readable for six of the 28 pairs.
"""

from __future__ import annotations

__all__ = ["MUS", "SHARPE", "SIGMAS"]

MUS = (-0.5, -0.3, -0.1, 0.0, 0.1, 0.3, 0.5)
SIGMAS = (0.1, 0.2, 0.3, 0.4)

# (mu, sigma): Wang and Zhou's mean-square TD error, offline martingale, online martingale
SHARPE: dict[tuple[float, float], tuple[float, float, float]] = {
    (0.3, 0.2): (1.54, 1.78, 1.94),
    (0.3, 0.3): (1.00, 1.12, 1.05),
    (0.5, 0.4): (1.44, 1.60, 1.52),
    (-0.3, 0.2): (1.81, 2.10, 1.89),
    (-0.1, 0.1): (1.25, 1.37, 1.24),
    (0.1, 0.2): (0.40, 0.35, 0.36),
}
