"""Noisy descent after any number of steps: against runs, against its end, and the three readings of an average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tradeoff.dynamics import descend, expected_descent, minibatch_noise, noise_floor
from tradeoff.problems import quadratic
from tradeoff.strategies import EMA
from tradeoff.tolerances import EXACT, IDENTITY

NOISE = np.array([[1.0, 0.4], [0.4, 0.5]])
RATE, ETA, STEPS = 0.2, 0.7, 5
Z_SCORE = 4.5


@pytest.mark.parametrize("average", [0.0, ETA])
def test_it_ends_at_the_noise_floor(average):
    end = expected_descent(quadratic.golden(), NOISE, RATE, 2000, batch=4, average=average)
    floor = noise_floor(quadratic.golden(), NOISE, RATE, batch=4, average=average)
    np.testing.assert_allclose(end.covariance, floor.covariance, rtol=IDENTITY.relative)
    np.testing.assert_allclose(end.mean, floor.mean, rtol=IDENTITY.relative)


@pytest.mark.parametrize("reading", ["tracked", "through", "to the start"])
def test_its_mean_is_descent_without_noise(reading):
    quad = quadratic.golden()
    run = descend(quad, EMA(ETA, reading=reading), learning_rate=RATE, steps=STEPS, every=STEPS, lam=0.5)
    law = expected_descent(quad, NOISE, RATE, STEPS, average=ETA, reading=reading, lam=0.5)
    np.testing.assert_allclose(law.mean, run.exported, rtol=EXACT.relative)


def test_its_covariance_is_that_of_runs():
    """And not that of one more step."""
    quad, noise = quadratic.golden(), minibatch_noise(NOISE, batch=2)
    ends = jax.vmap(
        lambda key: (
            descend(quad, EMA(ETA), learning_rate=RATE, steps=STEPS, every=STEPS, key=key, noise=noise).gaps.safety
        )
    )(jax.random.split(jax.random.key(0), 20_000))[:, -1]

    def z_score(law):
        return float((jnp.mean(ends) - law.gaps.safety) / (jnp.std(ends, ddof=1) / jnp.sqrt(ends.size)))

    assert abs(z_score(expected_descent(quad, NOISE, RATE, STEPS, batch=2, average=ETA))) < Z_SCORE
    assert abs(z_score(expected_descent(quad, NOISE, RATE, STEPS, batch=1, average=ETA))) > Z_SCORE


def test_an_average_trained_through_is_a_smaller_learning_rate_to_rounding():
    quad = quadratic.golden()
    through = expected_descent(quad, NOISE, RATE, STEPS, average=ETA, reading="through")
    smaller = expected_descent(quad, NOISE, (1 - ETA) * RATE, STEPS)
    np.testing.assert_allclose(through.covariance, smaller.covariance, rtol=EXACT.relative)
    np.testing.assert_allclose(through.mean, smaller.mean, rtol=EXACT.relative)


def test_accumulation_is_a_larger_batch():
    one, other = (
        expected_descent(quadratic.golden(), NOISE, RATE, STEPS, batch=n, accumulation=k) for n, k in ((2, 6), (12, 1))
    )
    np.testing.assert_array_equal(one.covariance, other.covariance)


def test_an_unknown_reading_is_refused():
    with pytest.raises(ValueError, match="reading='shadow'; give one of tracked"):
        expected_descent(quadratic.golden(), NOISE, RATE, STEPS, reading="shadow")
