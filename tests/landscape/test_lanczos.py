"""Ritz pairs against dense eigenproblems and ARPACK; residuals are true; what did not converge says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.tree_util import Partial

from tests.problems import WORLDS
from tradeoff.landscape import HostOperator, Operator, dense, from_matrix, hessian, lanczos
from tradeoff.landscape.lanczos import krylov
from tradeoff.problems import Sequence, Tabular
from tradeoff.tolerances import DERIVATIVE, IDENTITY, MODEL_GRADIENT

KEY = jax.random.key(0)
SAME = {"rtol": IDENTITY.relative, "atol": IDENTITY.absolute}


def symmetric(spectrum, seed=0):
    """A matrix of a given spectrum in a random basis."""
    Q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(spectrum),) * 2))[0]
    A = Q @ np.diag(spectrum) @ Q.T
    return (A + A.T) / 2


@pytest.mark.parametrize("name", ["golden", "random"])
def test_all_steps_give_the_whole_spectrum_of_a_small_model(name):
    problem = Tabular(WORLDS[name])
    operator = hessian(problem, jax.random.normal(KEY, problem.aligned().shape))
    found = lanczos(operator, KEY, steps=operator.size)
    # A tabular Hessian has a zero for every context and more where p_s = 0: the Krylov space closes early.
    np.testing.assert_allclose(np.sort(found.values), np.linalg.eigvalsh(dense(operator)), **SAME)
    assert bool(jnp.all(found.converged))


def test_the_top_of_an_indefinite_spectrum_is_arpacks():
    A = symmetric(np.concatenate([[30.0, -25.0, 20.0, 15.0], np.linspace(-1, 1, 196)]))
    found = lanczos(from_matrix(A), KEY, steps=60, pairs=4)
    expected = scipy.sparse.linalg.eigsh(A, k=4, which="LM", tol=0)[0]
    np.testing.assert_allclose(np.sort(found.values), np.sort(expected), **SAME)
    assert found.values.round(6).tolist() == [30.0, -25.0, 20.0, 15.0]
    assert bool(jnp.all(found.converged))
    assert found.products == 60


def test_vectors_are_orthonormal_and_residuals_true():
    A = symmetric(np.linspace(0, 1, 120) ** 2)
    found = lanczos(from_matrix(A), KEY, steps=40)
    V = np.asarray(found.vectors)
    np.testing.assert_allclose(V @ V.T, np.eye(40), atol=DERIVATIVE.relative)
    true = np.linalg.norm(V @ A - np.asarray(found.values)[:, None] * V, axis=1)
    np.testing.assert_allclose(found.residuals, true, rtol=DERIVATIVE.relative, atol=IDENTITY.absolute)


def test_an_operator_that_is_symmetric_to_half_the_digits_still_has_true_residuals():
    A = symmetric(np.linspace(0, 1, 120) ** 2)
    A = A + 1e-9 * np.random.default_rng(2).normal(size=A.shape)
    found = lanczos(HostOperator(lambda v: A @ v, 120, False), KEY, steps=40)
    V = np.asarray(found.vectors)
    true = np.linalg.norm(V @ A.T - np.asarray(found.values)[:, None] * V, axis=1)
    np.testing.assert_allclose(found.residuals, true, rtol=DERIVATIVE.relative, atol=IDENTITY.absolute)
    # Negative control: what leads out of the space alone, the textbook estimate, would be far below for the first pairs.
    assert float(jnp.min(found.residuals)) > 1e-9


def test_a_residual_is_a_proof_that_an_eigenvalue_is_near():
    A = symmetric(np.random.default_rng(1).normal(size=80))
    spectrum = np.linalg.eigvalsh(A)
    for steps in (1, 2, 5, 20):
        found = lanczos(from_matrix(A), jax.random.key(steps), steps=steps)
        distance = np.abs(np.asarray(found.values)[:, None] - spectrum).min(axis=1)
        assert np.all(distance <= np.asarray(found.residuals) + IDENTITY.absolute)


def test_what_has_not_converged_says_so():
    # Negative control: two steps cannot resolve a flat spectrum of 200, and only the residual knows.
    found = lanczos(from_matrix(symmetric(np.linspace(1, 2, 200))), KEY, steps=2)
    assert not bool(jnp.any(found.converged))
    assert bool(jnp.all(lanczos(from_matrix(np.eye(5)), KEY, steps=1).converged))


def test_full_reorthogonalisation_shows_no_ghosts():
    # Without it the isolated top eigenvalue would be found again and again.
    A = symmetric(np.concatenate([[1000.0], np.linspace(0, 1, 99)]))
    found = lanczos(from_matrix(A), KEY, steps=100)
    assert int(jnp.sum(found.values > 500)) == 1
    np.testing.assert_allclose(np.sort(found.values), np.linalg.eigvalsh(A), rtol=0, atol=1000 * IDENTITY.relative)


def test_a_degenerate_eigenvalue_shows_once_until_the_space_closes():
    A = symmetric([3.0] * 4 + [1.0] * 6)
    assert lanczos(from_matrix(A), KEY, steps=2).values.round(9).tolist() == [3.0, 1.0]
    whole = lanczos(from_matrix(A), KEY, steps=10)
    np.testing.assert_allclose(whole.values, [3.0] * 4 + [1.0] * 6, **SAME)
    assert bool(jnp.all(whole.converged))


def test_a_start_in_an_invariant_subspace_goes_on_outside_it():
    A = np.diag([5.0, 4.0, 3.0, 2.0])
    start = jnp.array([0.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(lanczos(from_matrix(A), KEY, steps=2, start=start).values, [4.0, 3.0], **SAME)
    np.testing.assert_allclose(lanczos(from_matrix(A), KEY, steps=4, start=start).values, [5.0, 4.0, 3.0, 2.0], **SAME)


def test_zero_and_one_parameter():
    assert lanczos(from_matrix(np.zeros((3, 3))), KEY, steps=3).values.tolist() == [0.0, 0.0, 0.0]
    assert lanczos(from_matrix([[-2.0]]), KEY, steps=1).values.tolist() == [-2.0]


def test_host_and_traced_operators_take_the_same_steps():
    problem = Sequence(WORLDS["random"], tokens=2)
    operator = hessian(problem, problem.zero() + 0.1)
    A = np.asarray(dense(operator))
    host = lanczos(HostOperator(lambda v: A @ v, len(A), semidefinite=False), KEY, steps=10)
    traced = lanczos(operator, KEY, steps=10)
    np.testing.assert_allclose(host.values, traced.values, rtol=DERIVATIVE.relative, atol=DERIVATIVE.absolute)


def test_float32_stays_float32_and_knows_its_rounding():
    A = jnp.asarray(symmetric(np.concatenate([[10.0, 8.0, 6.0], np.linspace(0, 1, 97)])), jnp.float32)
    found = lanczos(Operator(Partial(jnp.dot, A), 100, True, "float32"), KEY, steps=40, pairs=3)
    assert found.values.dtype == "float32"
    assert bool(jnp.all(found.converged))
    np.testing.assert_allclose(found.values, [10.0, 8.0, 6.0], rtol=MODEL_GRADIENT.relative)
    V, exact = np.asarray(found.vectors, np.float64), np.asarray(A, np.float64)
    true = np.linalg.norm(V @ exact - np.asarray(found.values, np.float64)[:, None] * V, axis=1)
    np.testing.assert_allclose(found.residuals, true, rtol=0, atol=10 * MODEL_GRADIENT.relative)


def one_sided(v):
    return jnp.array([[1.0, 2.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0]]) @ v


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: lanczos(from_matrix(np.eye(3)), KEY, steps=0), "pairs is None and steps 0"),
        (lambda: lanczos(from_matrix(np.eye(3)), KEY, steps=4), "steps is 4 for an operator of 3 parameters"),
        (lambda: lanczos(from_matrix(np.eye(3)), KEY, steps=2, pairs=3), "pairs is 3 and steps 2"),
        (lambda: lanczos(from_matrix(np.eye(3)), KEY, steps=2, start=jnp.zeros(3)), "start is zero or not finite"),
        (lambda: lanczos(from_matrix(np.eye(3)), KEY, steps=2, start=jnp.ones(2)), r"vector of shape \(2,\)"),
        (
            lambda: lanczos(Operator(Partial(one_sided), 3, False, "float64"), KEY, steps=3),
            "the operator is not symmetric",
        ),
        (
            lambda: lanczos(HostOperator(lambda v: v * np.nan, 3, False), KEY, steps=2),
            "product 0 has NaN or infinite entries",
        ),
    ],
)
def test_bad_input_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_the_check_of_symmetry_lets_rounding_pass():
    A = symmetric(np.geomspace(1e-12, 1e6, 60))
    assert float(jnp.abs(krylov(from_matrix(A), KEY, 60).beyond).max()) < 1e6 * DERIVATIVE.relative
