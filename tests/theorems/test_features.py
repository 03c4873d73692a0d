"""T17's family: what it adds to the safety data is truly out of every parameter's sight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tradeoff import theorems
from tradeoff.theorems.feature_instances import STATIONARY, _axes, _unseen

NEARLY = 1e-7


@pytest.mark.parametrize("apart", [1.0, NEARLY, 1e-10])
def test_axes_span_the_vectors_however_nearly_parallel(apart):
    one, other = jnp.array([1.0, 2.0, -1.0, 0.5]), jnp.array([0.3, -1.0, 2.0, 0.0])
    vectors = jnp.stack([one, one + apart * other])
    axes = np.array(_axes(vectors))
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-14)
    np.testing.assert_allclose(vectors @ axes.T @ axes, vectors, rtol=0, atol=1e-15 * np.linalg.norm(vectors))


def test_a_vector_in_the_span_of_others_gets_no_axis():
    axes = _axes(jnp.array([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]]))
    np.testing.assert_allclose(np.abs(axes), [[1, 0], [0, 1], [0, 0], [0, 0]])


def test_the_law_moves_only_where_no_parameters_see_it():
    """Features parallel to 1e-7, which the eigenvalues of a Gram matrix do not tell from parallel."""
    first = np.array([1.0, 2.0, -1.0, 0.5])
    features = jnp.array(np.stack([first, first + NEARLY * np.array([0.3, -1.0, 2.0, 0.0])], axis=1))
    p, law = jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.full((4, 3), 1 / 3)
    change = _unseen(jax.random.normal(jax.random.key(0), (4, 3)), features, p, law)
    assert float(jnp.max(jnp.abs(change))) > 0.1
    assert float(jnp.max(jnp.abs((p[:, None] * features).T @ change))) < 1e-15
    assert float(jnp.min(law + change)) > 0


def test_its_instances_hold_their_assumptions():
    """One of them, under this key, did not: it was stationary only to 1e-10."""
    instance = theorems.replay(theorems.get("T17"), jax.random.key(0), 481917, 1_000_000)
    assert bool(STATIONARY.holds(instance))
