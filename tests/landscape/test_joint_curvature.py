"""Angles between curvatures and what one buys for the other, against SciPy and the golden pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from tests.problems import WORLDS
from tradeoff.landscape import (
    curvature_overlap,
    dense,
    fisher,
    from_matrix,
    generalised_eigenvalues,
    principal_angles,
)
from tradeoff.problems import SoftmaxLinear, quadratic
from tradeoff.tolerances import DERIVATIVE, IDENTITY, ROOT

KEY = jax.random.key(0)


def test_principal_angles_are_those_they_were_built_with():
    angles = np.array([1e-9, 0.3, np.pi / 2])
    first = np.eye(6)[:3]
    second = np.cos(angles)[:, None] * np.eye(6)[:3] + np.sin(angles)[:, None] * np.eye(6)[3:]
    mixed = np.random.default_rng(0).normal(size=(3, 3)) @ second  # any rows of the same span
    np.testing.assert_allclose(
        principal_angles(jnp.asarray(first), jnp.asarray(mixed)), angles, rtol=ROOT.relative, atol=0
    )


def test_generalised_eigenvalues_are_scipys_and_reach_the_ends():
    rng = np.random.default_rng(1)
    A, B = (M @ M.T for M in rng.normal(size=(2, 8, 8)))
    expected = scipy.linalg.eigh(A, B, eigvals_only=True)[::-1]
    np.testing.assert_allclose(generalised_eigenvalues(A, B), expected, rtol=DERIVATIVE.relative)
    flat = generalised_eigenvalues(np.diag([2.0, 1e-9, 0.0, 0.0]), np.diag([0.0, 1.0, 1.0, 0.0]))
    np.testing.assert_allclose(flat, [np.inf, 1e-9, 0.0], rtol=DERIVATIVE.relative)


def test_the_golden_pair_has_the_ratios_of_case_one():
    quad = quadratic.golden()
    expected = scipy.linalg.eigh(quad.H_f, quad.H_s, eigvals_only=True)[::-1]
    np.testing.assert_allclose(generalised_eigenvalues(quad.H_f, quad.H_s), expected, rtol=IDENTITY.relative)


def test_the_overlap_of_two_policies_curvatures():
    problem = SoftmaxLinear(WORLDS["random"], np.random.default_rng(0).normal(size=(6, 4)))
    at = problem.zero()
    first, second = fisher(problem, at, "capability"), fisher(problem, at, "safety")
    found = curvature_overlap(first, second, KEY, pairs=3, steps=16)
    tops = [np.linalg.eigh(dense(operator))[1][:, -3:] for operator in (first, second)]
    expected = np.sort(scipy.linalg.subspace_angles(*tops))
    assert bool(jnp.all(found.first.converged) & jnp.all(found.second.converged))
    np.testing.assert_allclose(found.angles, expected, rtol=ROOT.relative, atol=ROOT.absolute)
    whole = generalised_eigenvalues(dense(first), dense(second))
    assert float(found.ratios[0]) <= float(whole[0]) * (1 + DERIVATIVE.relative)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: principal_angles(jnp.ones((1, 3)), jnp.ones((1, 2))), "have 3 and 2 entries"),
        (lambda: principal_angles(jnp.ones((1, 3)), jnp.ones((1, 3)) * jnp.nan), "NaN or infinite entries"),
        (lambda: generalised_eigenvalues(np.eye(2), np.eye(3)), r"first has shape \(2, 2\) and second \(3, 3\)"),
        (lambda: generalised_eigenvalues(np.eye(2), -np.eye(2)), "second has eigenvalue -1"),
        (
            lambda: curvature_overlap(from_matrix(np.eye(2)), from_matrix(np.eye(3)), KEY, 1, 1),
            "act on 2 and 3 parameters",
        ),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
