"""The edit of least norm is where gradient descent ends; the measurements give known numbers on matrices made by hand."""

import numpy as np
import pytest
import torch

from tradeoff.mechanism import nullspace
from tradeoff.tolerances import IDENTITY, ROOT

RNG = np.random.default_rng(0)
OUTPUTS, INPUTS, UNSAFE = 6, 8, 3
W = RNG.normal(size=(OUTPUTS, INPUTS))
U = RNG.normal(size=(INPUTS, UNSAFE))
R = RNG.normal(size=(OUTPUTS, UNSAFE))
NEGLIGIBLE = 1e-6  # of the row-space energy: the bound that methods.md states


def same(a, b, tolerance=IDENTITY):
    np.testing.assert_allclose(a, b, rtol=tolerance.relative, atol=tolerance.relative)


def descended(inputs, outputs, steps=20_000):
    """Gradient descent from W on half the squared error, at the step 1/L."""
    weight, rate = W.copy(), 1 / np.linalg.norm(inputs @ inputs.T, 2)
    for _ in range(steps):
        weight -= rate * (weight @ inputs - outputs) @ inputs.T
    return weight - W


def adam(inputs, outputs, steps=1000):
    weight = torch.tensor(W, requires_grad=True)
    optimiser = torch.optim.Adam([weight], lr=2e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        (weight @ torch.tensor(inputs) - torch.tensor(outputs)).square().sum().mul(0.5).backward()
        optimiser.step()
    return weight.detach().numpy() - W


def test_gradient_descent_ends_at_the_closed_form_and_adam_does_not():
    edit = nullspace.minimum_norm_edit(W, U, R)
    same((W + edit) @ U, R)
    found = descended(U, R)
    same(found, edit, ROOT)
    assert nullspace.row_space_outside(edit, U) < NEGLIGIBLE
    assert nullspace.row_space_outside(found, U) < NEGLIGIBLE
    assert np.linalg.matrix_rank(edit) == UNSAFE
    control = adam(U, R)
    same((W + control) @ U, R, ROOT)  # it fits just as well,
    assert nullspace.row_space_outside(control, U) > 1e-2  # by other means
    assert np.linalg.norm(control) > np.linalg.norm(edit)


def test_what_no_edit_can_reach_is_fitted_by_least_squares():
    inputs = np.column_stack([U, U[:, 0]])  # one input twice, to go to two places
    outputs = np.column_stack([R, -R[:, 0]])
    edit = nullspace.minimum_norm_edit(W, inputs, outputs)
    same(descended(inputs, outputs), edit, ROOT)
    same((W + edit) @ U[:, 0], np.zeros(OUTPUTS))  # halfway


def test_safe_inputs_orthogonal_to_the_unsafe_ones_are_untouched():
    edit = nullspace.minimum_norm_edit(W, U, R)
    safe = RNG.normal(size=INPUTS)
    safe_part = safe - U @ np.linalg.lstsq(U, safe, rcond=None)[0]
    same(edit @ safe_part, np.zeros(OUTPUTS))
    assert np.linalg.norm(edit @ safe) > 1e-2


def test_targets_in_the_kernel_of_the_next_layer_leave_nothing_downstream():
    following = RNG.normal(size=(2, OUTPUTS))
    kernel = np.linalg.svd(following)[2][2:]
    into_kernel = kernel.T @ RNG.normal(size=(len(kernel), UNSAFE))
    edit = nullspace.minimum_norm_edit(W, U, into_kernel)
    same(following @ (W + edit) @ U, np.zeros((2, UNSAFE)))
    assert np.linalg.norm(following @ W @ U) > 1
    # The change itself lies in the kernel only where the old outputs already did.
    assert nullspace.null_space_fraction(edit, following).fraction < 1
    edit = nullspace.minimum_norm_edit(np.zeros_like(W), U, into_kernel)
    same(nullspace.null_space_fraction(edit, following), (1, 1 - 2 / OUTPUTS))


def test_interpolation_moves_unsafe_outputs_on_a_line_and_overshoots():
    edit = nullspace.minimum_norm_edit(W, U, R)
    for s in (0.0, 0.3, 1.0, 1.5):
        same((W + s * edit) @ U, (1 - s) * W @ U + s * R)


def test_clusters_are_told_apart():
    safe, unsafe = np.array([[2.0, 0.0], [4.0, 0.0]]), np.array([[0.0, 1.0], [0.0, 5.0]])
    near = nullspace.nearness([[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]], safe, unsafe)
    same(near.l2, [np.sqrt(18), -np.sqrt(18), 0])
    same(near.cosine, [1, -1, 0])
    l2, cosine = nullspace.separation(safe, unsafe)
    same(cosine, 2.0)
    same(l2, (np.sqrt(13) + 5 - 2) / 2 - (4 - np.sqrt(10) - np.sqrt(34)) / 2)
    assert nullspace.separation(safe, safe) == (0, 0)


def test_angles_of_column_spaces():
    original = np.diag([3.0, 2.0, 0.1])  # two directions hold 99.9 % of the energy
    assert nullspace.leading(original).shape == (3, 2)
    turned = np.array([[1.0, 0.0, 0.0], [0.0, np.cos(0.3), -np.sin(0.3)], [0.0, np.sin(0.3), np.cos(0.3)]])
    same(nullspace.column_space_sines(turned @ original, original), [0, np.sin(0.3)])
    same(nullspace.column_space_sines(original, original), [0, 0])
    same(nullspace.column_space_sines(np.diag([0, 0, 1.0]), original), [1])
    assert nullspace.leading(original, energy=1.0).shape == (3, 3)
    assert nullspace.leading(original, energy=0.5).shape == (3, 1)
    assert nullspace.leading(np.zeros((3, 2))).shape == (3, 0)


def test_rows_that_an_activation_meets():
    weight = np.diag([3.0, 2.0]) @ np.array([[0.6, 0.8], [-0.8, 0.6]])
    same(np.abs(nullspace.row_space(weight, [[6.0, 8.0], [-4.0, 3.0], [0.0, 0.0]])), [[3, 0], [0, 2], [0, 0]])
    same(nullspace.row_space([[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0]], centred=True), [[0, 0]])


def test_shares_and_the_lipschitz_constant():
    change = np.array([[3.0, 4.0], [0.0, 0.0]])
    same(nullspace.row_space_outside(change, np.array([[1.0, -2.0], [0.0, 0.0]])), 0.64)
    assert nullspace.row_space_outside(np.zeros((2, 2)), np.eye(2)) == 0
    assert nullspace.null_space_fraction(change, [[0.0, 1.0]]) == (1, 0.5)
    assert nullspace.null_space_fraction(change, [[1.0, 0.0]]) == (0, 0.5)
    almost = [[1.0, 0.0], [0.0, 1e-3]]
    assert nullspace.null_space_fraction(change, almost).chance == 0
    assert nullspace.null_space_fraction(change, almost, tolerance=1e-2).chance == 0.5
    same(nullspace.local_lipschitz([np.diag([1.0, -3.0]), np.ones((2, 2))]), [3, 2])


def test_bad_matrices_are_refused():
    with pytest.raises(ValueError, match="one column for each sample"):
        nullspace.minimum_norm_edit(W, U, R[:, :2])
    with pytest.raises(ValueError, match="must be a matrix of finite numbers"):
        nullspace.row_space_outside([1.0], U)
    with pytest.raises(ValueError, match="must be a matrix of finite numbers"):
        nullspace.leading([[np.nan]])
    with pytest.raises(ValueError, match="holds no sample"):
        nullspace.separation(np.zeros((0, 2)), [[1.0, 0.0]])
    with pytest.raises(ValueError, match="lies in"):
        nullspace.leading(W, energy=0.0)
