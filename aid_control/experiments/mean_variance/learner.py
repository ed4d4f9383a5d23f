r"""The actor-critic of Jia and Zhou (2022b, section 4), in units in which it is the same for every multiplier.

**Units.**  $Y = (X - w)/(w - x_0)$ starts at -1 whatever w is.  The problem is homogeneous: with a temperature of
$\gamma\,(w - x_0)^2$, learning the policy does not depend on w.  (With the published constant temperature, exploration
all but vanishes beside positions that grow with w, where the price of risk is small.)  Policy and critic are the
published ones in these units, with a running weight Q added for asset-liability problems:

$$
\pi = N\big(\varphi\, Y,\ \gamma\, e^{\phi_2 + \phi_3(T-t)}\big), \qquad
J = \tfrac12 p(t)\, Y^2 - \gamma\sum_{t_k \ge t} (\eta_0 + \eta_1(T - t_k))h, \qquad
p = He^{-\theta(T-t)} + Q\,\frac{1 - e^{-\theta(T-t)}}{\theta} ,
$$

(the sum is a quadratic in t that ends at 0, as $\theta_2(t^2 - T^2) + \theta_1(t - T)$ is).  p has the right shape for
every $\varphi$: $\theta = -\log(b)/h$ up to O(h), b as in `market`.  Of a market only Q, H and the grid are known here.
Learning is from

$$
\delta_k = J(t_{k+1}, Y_{k+1}) - J(t_k, Y_k) + \big(\tfrac Q2 Y_k^2 + \gamma\log\pi(u_k)\big)h .
$$

**Weights.**  With $\varphi^*$ the best gain of the grid (`market`),

$$
E[\partial_\varphi\log\pi(u_k)\,\delta_k \mid Y_k] = p_{k+1} Y_k^2\,(D^2 + B^2h)\,h\,(\varphi - \varphi^*) :
$$

for *any* p > 0, and in every state, the direction is right.  So every step may be weighted by a function of its state.
The plain sum is ruled by rare large states ($Y^2e^{\theta t}$ is a martingale with moments that no sample sees);
$\omega_k = (1 + q_k/\gamma)^{-2}$ with $q = \tfrac12 pY^2$ bounds their part.

**Actor.**  With $G = \sum_k \omega_k\,\partial\log\pi(u_k)\,\delta_k$, averaged over paths, and the running Fisher
information $F = \sum_k \omega_k\,\partial\log\pi\,\partial\log\pi'$,

$$
(\varphi, \phi_2, \phi_3) \mathrel{-}= \frac{\alpha}{\gamma h}\, F^{-1} G :
$$

the natural gradient over the temperature, which at the optimal spread, $v_k p D^2 = \gamma$, is $\alpha$ times Newton's
step although D is not known.

**Critic.**  Martingale orthogonality, $E\sum_k \zeta_k\delta_k = 0$ (Jia & Zhou 2022a), with the test functions
$\omega_k$, $\omega_k(T - t_k)$ for $\eta$ and $\omega_k (T - t_k)(q_k - \overline{q_k})$ for $\theta$, where
$\overline{q_k}$ is the weighted mean over the paths of the day: functions of time alone then do not disturb $\theta$.
Steps are $\alpha$ times Newton's with running means of the derivatives.

*Offline* a step is taken after every batch of M years, *online* after every trading day of M streams side by side: the
sums then have one term, and nothing else changes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ActorCritic"]

Array = NDArray[np.float64]
LONGEST = 0.5  # of a step: of the gain in standard deviations of the policy; of phi_2, phi_3, theta and eta
SLOPES = (-2.0, 40.0)  # phi_3 is kept in
RATES = 40.0  # |theta| is kept below
MEMORY = 10.0  # of the running means, in years of M paths


def _sum(a: Array, b: Array) -> Array:
    """Over the paths."""
    return np.einsum("k...m,k...m->k...", a, b)


def _solve(matrix: Array, right: Array) -> Array:
    """Of symmetric 2 x 2 systems, entries (11, 12, 22) in front."""
    a, b, c = matrix
    return np.stack([c * right[0] - b * right[1], a * right[1] - b * right[0]]) / (a * c - b * b)


class ActorCritic:
    """Policies and critics of many problems at once, L = (K,) or (S, K).

    Args:
        shape: L.
        steps: n of the grid.
        horizon: T.
        Q: running weight.
        H: terminal weight.
        temperature: gamma, in units of Y^2.
        rate: alpha of the first years.
        decay: alpha falls like this power of the years seen.
        delay: years until it begins to fall.
        weighted: whether large states count less; without, every weight is 1.

    Raises:
        ValueError: for a temperature or a rate that is not positive.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        steps: int = 252,
        horizon: float = 1.0,
        Q: float = 0.0,  # noqa: N803 - the field's letters
        H: float = 2.0,  # noqa: N803
        temperature: float = 0.625,
        rate: float = 0.1,
        decay: float = 0.51,
        delay: float = 1000.0,
        weighted: bool = True,
    ) -> None:
        if not (temperature > 0 and rate > 0):
            raise ValueError(f"temperature is {temperature}, rate {rate}; expected positive numbers")
        self.h, self.Q, self.H, self.steps, self.weighted = horizon / steps, Q, H, steps, weighted
        left = horizon * (1 - np.arange(steps + 1) / steps)
        self.left: Array = left.reshape(-1, *(1,) * len(shape))
        self.rate, self.decay, self.delay = rate, decay, delay
        self.gamma: Array = np.full(shape, temperature)
        self.gain, self.theta = np.zeros(shape), np.zeros(shape)
        self.phi, self.eta = np.zeros((2, *shape)), np.zeros((2, *shape))  # phi_2, phi_3; eta_0, eta_1
        self.seen, self.weight = 0.0, 0.0  # years in all; years of M paths
        # running means: of the Fisher information of the gain, of omega (1, T - t, (T - t)^2), of theta's derivative
        self.means = np.zeros((5, *shape))

    @property
    def alpha(self) -> float:
        """The present rate."""
        return self.rate * ((self.seen + self.delay) / self.delay) ** -self.decay

    def log_variance(self, k: int = 0, steps: int | None = None) -> Array:
        """log v of the steps k, k + 1, ...

        Args:
            k: the first step.
            steps: how many, s; all that are left by default.

        Returns:
            (s, *L).
        """
        left = self.left[k : self.steps if steps is None else k + steps]
        return np.log(self.gamma) + self.phi[0] + self.phi[1] * left

    def curve(self, k: int, steps: int) -> tuple[Array, Array]:
        """p and the derivative of log p in theta at the times k, ..., k + steps.

        Args:
            k: number of the first time.
            steps: s.

        Returns:
            Two arrays, (s + 1, *L).
        """
        left = self.left[k : k + steps + 1]
        fall: Array = np.exp(-self.theta * left)
        p: Array = self.H * fall
        slope: Array = -left * p
        if self.Q:
            small = np.abs(self.theta) < 1e-4  # expansions to the first order
            rate = np.where(small, 1.0, self.theta)
            lost = -np.expm1(-rate * left)
            p = p + self.Q * np.where(small, left - 0.5 * self.theta * left**2, lost / rate)
            series = -0.5 * left**2 + self.theta * left**3 / 3
            slope = slope + self.Q * np.where(small, series, (left * fall * rate - lost) / rate**2)
        return p, slope / p

    def differences(self, k: int, y: Array, xi: Array, log_variance: Array) -> tuple[Array, Array]:
        """The temporal differences and q; arguments as `learn`.

        Returns:
            delta, (s, *L, M), and q, (s + 1, *L, M).
        """
        s = len(xi)
        half = 0.5 * self.curve(k, s)[0]
        q = y * y
        stage = (0.5 * self.Q * self.h) * q[:-1] if self.Q else None
        q *= half[..., None]
        known = self.eta[0] + self.eta[1] * self.left[k : k + s] - 0.5 * (np.log(2 * np.pi) + log_variance)
        delta: Array = q[1:] - q[:-1]
        delta += (self.gamma * self.h * known)[..., None]
        delta -= (0.5 * self.h * self.gamma)[..., None] * (xi * xi)
        if stage is not None:
            delta += stage
        return delta, q

    def learn(self, k: int, y: Array, xi: Array, log_variance: Array) -> None:
        """Use the steps k, k + 1, ... of M paths.

        Args:
            k: number of the first step.
            y: states, (s + 1, *L, M) for s steps; M at least 2.
            xi: standardised actions, (s, *L, M), or 1 in place of problems that share them.
            log_variance: log v with which the actions were made, (s, *L).
        """
        self._step(len(xi) / self.steps, y.shape[-1], *self.sums(k, y, xi, log_variance))

    def sums(self, k: int, y: Array, xi: Array, log_variance: Array) -> tuple[Array, Array]:
        """What a step is made of, summed over the steps and averaged over the paths; arguments as `learn`.

        Returns:
            G of the gain, of phi_2 and of phi_3 and the three orthogonality conditions, of eta_0, eta_1 and theta,
            (6, *L); the Fisher information of the gain, the weights times 1, T - t and (T - t)^2, and the derivative of
            the last condition, (5, *L).
        """
        s, paths = len(xi), y.shape[-1]
        left = self.left[k : k + s]
        delta, q = self.differences(k, y, xi, log_variance)
        p, ratio = self.curve(k, s)
        now = q[:-1]
        if self.weighted:
            weight = now * (1 / self.gamma)[..., None]
            weight += 1
            weight *= weight
            np.reciprocal(weight, out=weight)
            delta *= weight
            weights, first = weight.sum(-1), _sum(weight, now)
            weight *= now
            second = _sum(weight, now)
        else:
            weights, first, second = np.full(q.shape[:-1], float(paths))[:-1], now.sum(-1), _sum(now, now)
        total, centre = delta.sum(-1), first / weights
        spread = 0.5 * (_sum(delta, xi * xi) - total)
        bend = left * (ratio[1:] - ratio[:-1])
        tests = np.stack(
            [
                np.exp(-0.5 * log_variance) * _sum(delta * y[:-1], xi),
                spread,
                spread * left,
                total,
                total * left,
                left * (_sum(delta, now) - centre * total),
            ]
        ).sum(1)
        fisher = 2 * first / p[:-1] * np.exp(-log_variance)
        means = np.stack([fisher, weights, weights * left, weights * left**2, bend * (second - centre * first)]).sum(1)
        return tests / paths, means / paths

    def _step(self, share: float, paths: int, tests: Array, means: Array) -> None:
        """Natural gradient and Newton's step, of a share of a year."""
        self.weight += share
        self.seen += share * paths
        self.means += share / min(self.weight, MEMORY) * (means / share - self.means)
        if self.weight < 1:
            return  # the first year only fills the running means
        fisher, times, bend = self.means[0], self.means[1:4], self.means[4]
        longest = LONGEST * np.sqrt(times[0] / fisher)
        alpha = self.alpha
        scale = alpha / (self.gamma * self.h)
        self.gain = self.gain - np.clip(scale * tests[0] / fisher, -longest, longest)
        self.phi = self.phi - np.clip(2 * scale * _solve(times, tests[1:3]), -LONGEST, LONGEST)
        self.phi[1] = np.clip(self.phi[1], *SLOPES)
        self.eta = self.eta - np.clip(scale * _solve(times, tests[3:5]), -LONGEST, LONGEST)
        self.theta = np.clip(self.theta - np.clip(alpha * tests[5] / bend, -LONGEST, LONGEST), -RATES, RATES)
