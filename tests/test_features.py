"""Functions linear in their weights: monomials and Legendre polynomials by hand, and the modules made of them."""

import math

import numpy as np
import pytest
import torch

from aid_control.features import LinearMean, LinearValue, monomials, time_powers
from aid_control.noise import generator

F64 = torch.float64


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, 0xFE), dtype=F64)


def filled(module, seed=1):
    with torch.no_grad():
        module.weights.copy_(randn(*module.weights.shape, seed=seed))
    return module


def test_monomials_by_hand():
    x = torch.tensor([[2.0, 3.0], [-1.0, 5.0]])
    assert torch.equal(monomials(x, 0), torch.tensor([[1.0], [1.0]]))
    assert torch.equal(monomials(x, 1), torch.tensor([[1.0, 2.0, 3.0], [1.0, -1.0, 5.0]]))
    assert torch.equal(monomials(x, 2), torch.tensor([[1.0, 2, 3, 4, 6, 9], [1.0, -1, 5, 1, -5, 25]]))


def test_products_come_row_by_row():
    """x1 x1, x1 x2, x1 x3, x2 x2, x2 x3, x3 x3."""
    out = monomials(torch.tensor([[2.0, 3.0, 5.0]]), 2)
    assert out[0, 4:].tolist() == [4, 6, 10, 9, 15, 25]


@pytest.mark.parametrize("d", [1, 2, 3, 5])
@pytest.mark.parametrize("degree", [0, 1, 2])
def test_as_many_monomials_as_there_are(d, degree):
    out = monomials(randn(50, d), degree)
    assert out.shape == (50, math.comb(d + degree, degree))
    # and they are linearly independent
    assert torch.linalg.matrix_rank(out) == out.shape[1]


def test_another_degree_is_refused():
    for degree in (3, -1):
        with pytest.raises(ValueError, match=f"degree is {degree}"):
            monomials(randn(2, 2), degree)


@pytest.mark.parametrize("horizon", [1.0, 2.5])
def test_time_powers_are_legendre_polynomials(horizon):
    """Against numpy; orthogonal on [0, T] with norms T/(2n + 1), by quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(12)
    times = torch.from_numpy((nodes + 1) * horizon / 2)
    values = torch.stack([time_powers(t, horizon, 5) for t in times])
    assert torch.allclose(values, torch.from_numpy(np.polynomial.legendre.legvander(nodes, 5)), atol=1e-12)
    gram = values.mT @ (torch.from_numpy(weights * horizon / 2)[:, None] * values)
    assert torch.allclose(gram, torch.diag(horizon / (2 * torch.arange(6, dtype=F64) + 1)), atol=1e-12)


def test_time_powers_at_the_ends():
    assert torch.equal(time_powers(0.0, 3.0, 3), torch.tensor([1.0, -1, 1, -1], dtype=F64))
    assert torch.equal(time_powers(3.0, 3.0, 3), torch.ones(4, dtype=F64))
    assert torch.equal(time_powers(torch.tensor(1.5), 3.0, 0), torch.ones(1, dtype=F64))


@pytest.mark.parametrize(("degree", "time_degree"), [(0, 0), (1, 2), (2, 0), (2, 3)])
def test_a_linear_value_is_its_weights_times_its_features(degree, time_degree):
    value, x, t = filled(LinearValue(2, time_degree, 2.0, degree=degree)), randn(5, 2), 0.7
    phi = value.features(t, x)
    size = (time_degree + 1) * math.comb(2 + degree, degree)
    assert phi.shape == (5, size) and value.weights.shape == (size,)
    by_hand = torch.stack([torch.outer(time_powers(t, 2.0, time_degree), m).flatten() for m in monomials(x, degree)])
    assert torch.equal(phi, by_hand)
    assert torch.allclose(value(t, x), phi @ value.weights)
    gradient = torch.autograd.grad(value(t, x).sum(), value.weights)[0]
    assert torch.allclose(gradient, phi.sum(0))


def test_a_linear_value_starts_at_zero_and_can_be_differentiated_in_x():
    value, x = LinearValue(2, 1), randn(5, 2).requires_grad_()
    assert not value(0.3, x).any()
    with torch.no_grad():
        value.weights[3:6] = torch.tensor([1.0, 2.0, 3.0])  # x1^2 + 2 x1 x2 + 3 x2^2 at all times
    gradient = torch.autograd.grad(value(0.3, x).sum(), x)[0]
    assert torch.allclose(gradient, x @ torch.tensor([[2.0, 2.0], [2.0, 6.0]], dtype=F64))


@pytest.mark.parametrize("groups", [None, 3])
@pytest.mark.parametrize("time_degree", [0, 2])
def test_a_linear_mean_is_affine(groups, time_degree):
    """m = K(t) x + kappa(t), W phi(t, x), and what at and gain say are one thing."""
    mean, x, t = filled(LinearMean(2, 3, time_degree, 2.0, groups)), randn(6, 2), torch.tensor(0.7, dtype=F64)
    assert mean.groups == (groups or 1)
    out = mean(t, x)
    assert out.shape == (6, 3)
    both = mean.at(t)
    assert both.shape == ((groups,) if groups else ()) + (3, 3)
    assert torch.equal(mean.gain(t), both[..., 1:])
    phi = mean.features(t, x)
    for row in range(6):
        weights = mean.weights if groups is None else mean.weights[row // 2]
        law = both if groups is None else both[row // 2]
        assert torch.allclose(out[row], weights @ phi[row])
        assert torch.allclose(out[row], law[:, 1:] @ x[row] + law[:, 0])
    assert torch.allclose(mean(0.7, x), out)


def test_a_known_part_is_added():
    class Known(LinearValue):
        def known(self, t, x):
            return t + x[:, 0] ** 3

    value, plain, x = filled(Known(2, 1)), filled(LinearValue(2, 1)), randn(5, 2)
    assert torch.allclose(value(0.4, x), plain(0.4, x) + 0.4 + x[:, 0] ** 3)
    assert torch.equal(value.features(0.4, x), plain.features(0.4, x))


def test_groups_of_values_are_separate_functions():
    value, x = filled(LinearValue(2, 1, groups=3)), randn(6, 2)
    assert value.weights.shape == (3, 12)
    for i in range(3):
        one = LinearValue(2, 1)
        with torch.no_grad():
            one.weights.copy_(value.weights[i])
        assert torch.allclose(value(0.4, x)[2 * i : 2 * i + 2], one(0.4, x[2 * i : 2 * i + 2]))
    with pytest.raises(ValueError, match="expected a multiple of 3"):
        value(0.4, x[:5])


def test_a_group_of_one_keeps_its_dimension():
    assert LinearValue(2, 0, groups=1).weights.shape == (1, 6)
    assert LinearMean(2, 1, 0, groups=1).at(0.0).shape == (1, 1, 3)


def test_time_stays_exact_for_states_of_low_precision():
    value = LinearValue(1, 3, degree=0)
    phi = value.features(torch.tensor(0.3, dtype=F64), torch.zeros(1, 1))
    assert phi.dtype == torch.float32
    assert torch.equal(phi[0], time_powers(0.3, 1.0, 3).float())
