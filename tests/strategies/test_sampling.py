"""Small batches: unbiased, quieter by the number of examples, and accumulation is a larger batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.strategies import toys
from tradeoff.strategies import TASK, SmallBatch

Z_SCORE = 4.5


@pytest.fixture(scope="module")
def drawn():
    """Gradients of 4,000 steps on 4 examples, and the exact one."""
    engine = toys.jax_engine()

    def one(step):
        return SmallBatch(2, 2).gradient(lambda at: at, {}, engine.start, step, engine)[toys.WHOLE]

    return jax.jit(jax.vmap(one))(jnp.arange(4000)), engine.gradient(TASK, engine.start)[toys.WHOLE]


def test_the_gradient_of_a_batch_is_unbiased(drawn):
    gradients, exact = drawn
    z = (gradients.mean(0) - exact) / (gradients.std(0, ddof=1) / np.sqrt(len(gradients)))
    assert np.abs(z).max() < Z_SCORE
    assert np.abs(gradients.mean(0) - 1.5 * exact).max() > np.abs(gradients.mean(0) - exact).max()


def test_its_variance_is_that_of_one_example_over_their_number(drawn):
    engine = toys.jax_engine()
    gradients, _ = drawn
    alone = jax.jit(jax.vmap(lambda s: SmallBatch(1).gradient(lambda at: at, {}, engine.start, s, engine)[toys.WHOLE]))(
        jnp.arange(4000)
    )
    ratio = float(jnp.sum(alone.var(0)) / jnp.sum(gradients.var(0)))
    assert 3.6 < ratio < 4.4


def test_accumulation_is_a_larger_batch():
    engine = toys.jax_engine()
    several, one = (
        strategy.gradient(lambda at: at, {}, engine.start, 7, engine)[toys.WHOLE]
        for strategy in (SmallBatch(2, 6), SmallBatch(12))
    )
    np.testing.assert_array_equal(several, one)


def test_counts_must_count():
    with pytest.raises(ValueError, match="batch=0 and accumulation=1"):
        SmallBatch(0)
