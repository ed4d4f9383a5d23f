"""Helpers of the symbolic checks: is an expression zero, is it not, Gaussian expectations, hard and soft minima.

Found by `from symbolic import ...` (`pythonpath` in pyproject.toml).
"""

from __future__ import annotations

import sympy as sp

tau = sp.Symbol("tau", positive=True)


def zero(expression) -> bool:
    """Identically zero; every argument of a logarithm is taken to be positive."""
    flat = sp.expand(sp.expand_log(sp.expand(expression), force=True))
    return flat == 0 or sp.expand(sp.fraction(sp.together(flat))[0]) == 0 or sp.simplify(flat) == 0


def differs(expression) -> bool:
    """Not identically zero, seen at one point: the same unequal numbers for the symbols every time."""
    names = sorted(expression.free_symbols, key=str)
    point = {name: sp.Rational(17 + 5 * i, 29 - i) for i, name in enumerate(names)}
    return abs(sp.N(expression.subs(point))) > 1e-6


def expect(expression, z, mean, variance):
    """E of a polynomial in z ~ N(mean, variance)."""
    y = sp.Dummy()
    terms = sp.Poly(sp.expand(expression.subs(z, mean + y)), y).terms()
    return sum(c * variance ** (n // 2) * sp.factorial2(n - 1) for (n,), c in terms if n % 2 == 0)


def soft_min(hamiltonian, controls):
    """-tau log int exp(-H / tau) du for a quadratic H, one control after the other (Fubini)."""
    for z in controls:
        hamiltonian = sp.expand(hamiltonian)
        a, b, c = 2 * hamiltonian.coeff(z, 2), hamiltonian.coeff(z, 1), hamiltonian.coeff(z, 0)
        hamiltonian = c - b**2 / (2 * a) - tau / 2 * sp.log(2 * sp.pi * tau / a)
    return hamiltonian


def hard_min(hamiltonian, controls):
    """min over u of a quadratic H, by its stationarity equations."""
    return hamiltonian.subs(sp.solve([sp.diff(hamiltonian, z) for z in controls], controls, dict=True)[0])
