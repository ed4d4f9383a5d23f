"""Matrices on grouped rows, against loops over the rows."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aid_control.linear import dot, grouped, matvec, per_row

F64 = torch.float64
SIZES = st.integers(1, 4)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(groups=SIZES, rows=SIZES, d=SIZES, e=SIZES)
def test_a_stack_acts_on_consecutive_groups_of_rows(groups, rows, d, e):
    x = randn(groups * rows, d)
    matrices, vectors, numbers = randn(groups, e, d, seed=1), randn(groups, d, seed=2), randn(groups, seed=3)
    owner = [i // rows for i in range(groups * rows)]  # row i belongs to this group
    assert torch.allclose(matvec(matrices, x), torch.stack([matrices[s] @ x[i] for i, s in enumerate(owner)]))
    assert torch.allclose(dot(vectors, x), torch.stack([vectors[s] @ x[i] for i, s in enumerate(owner)]))
    for value, event in ((numbers, 0), (vectors, 1), (matrices, 2)):
        assert torch.equal(per_row(value, x, event), torch.stack([value[s] for s in owner]))
    assert torch.equal(grouped(x, groups), torch.stack([x[s * rows : (s + 1) * rows] for s in range(groups)]))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(rows=SIZES, d=SIZES, e=SIZES)
def test_one_matrix_acts_on_every_row(rows, d, e):
    x, matrix, vector = randn(rows, d), randn(e, d, seed=1), randn(d, seed=2)
    assert torch.allclose(matvec(matrix, x), torch.stack([matrix @ row for row in x]))
    assert torch.allclose(dot(vector, x), torch.stack([vector @ row for row in x]))
    for value, event in ((vector[0], 0), (vector, 1), (matrix, 2)):
        assert per_row(value, x, event) is value  # left to broadcasting


def test_shapes():
    x = randn(6, 2)
    assert matvec(randn(3, 5, 2), x).shape == matvec(randn(5, 2), x).shape == (6, 5)
    assert dot(randn(3, 2), x).shape == dot(randn(2), x).shape == (6,)
    assert per_row(randn(3, 5, 2), x, 2).shape == (6, 5, 2)
    assert grouped(randn(6, 4, 5), 2).shape == (2, 3, 4, 5)  # any trailing shape


def test_a_stack_of_one_is_the_matrix_itself():
    x, matrix, vector = randn(5, 3), randn(2, 3, seed=1), randn(3, seed=2)
    assert torch.allclose(matvec(matrix[None], x), matvec(matrix, x))
    assert torch.allclose(dot(vector[None], x), dot(vector, x))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: grouped(x, 3),
        lambda x: matvec(randn(3, 2, 2), x),
        lambda x: dot(randn(3, 2), x),
        lambda x: per_row(randn(3), x, 0),
        lambda x: per_row(randn(3, 2), x, 1),
        lambda x: per_row(randn(3, 2, 2), x, 2),
    ],
    ids=["grouped", "matvec", "dot", "number", "vector", "matrix"],
)
def test_rows_that_cannot_be_shared_out_are_refused(call):
    with pytest.raises(ValueError, match=r"x has 4 rows \(shape \(4, 2\)\); expected a multiple of 3"):
        call(randn(4, 2))


def test_gradients_reach_state_and_matrix():
    x, matrix = randn(4, 2).requires_grad_(), randn(2, 2, 2, seed=1).requires_grad_()
    vector, number = randn(2, 2, seed=2).requires_grad_(), randn(2, seed=3).requires_grad_()

    def all_of_them(x, matrix, vector, number):
        return matvec(matrix, x).square().sum(1) + dot(vector, x) * per_row(number, x, 0)

    assert torch.autograd.gradcheck(all_of_them, (x, matrix, vector, number))
