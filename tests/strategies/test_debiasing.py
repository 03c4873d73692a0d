"""Debiasing at decoding: what is recovered exactly, what is not touched, and what cannot be told from safety."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tradeoff.strategies import TSDI
from tradeoff.strategies.debiasing import estimate, mean_excess
from tradeoff.tolerances import IDENTITY

SAMPLES, L, V = 6, 3, 5
RNG = np.random.default_rng(0)
REFERENCE = RNG.normal(size=(SAMPLES, L, V))
BETA = RNG.normal(size=(L, V))
S = RNG.normal(size=(SAMPLES, L, V))
S -= S.mean(axis=0)
libraries = pytest.mark.parametrize("array", [jnp.asarray, torch.from_numpy], ids=["jax", "torch"])


@libraries
def test_a_model_that_is_its_own_reference_is_left_alone(array):
    z = array(REFERENCE)
    strategy = TSDI(mean_excess(z, z))
    np.testing.assert_array_equal(np.asarray(strategy.bias), np.zeros((L, V)))
    for i in range(L):
        np.testing.assert_array_equal(np.asarray(strategy.decode(z[:, i], i)), REFERENCE[:, i])


@libraries
def test_a_bias_that_all_contexts_share_is_recovered_and_the_rest_is_left(array):
    strategy = TSDI(mean_excess(array(REFERENCE + S + BETA), array(REFERENCE)))
    np.testing.assert_allclose(np.asarray(strategy.bias), BETA, rtol=0, atol=IDENTITY.absolute)
    for i in range(L):
        left = np.asarray(strategy.decode(array((REFERENCE + S + BETA)[:, i]), i))
        np.testing.assert_allclose(left, (REFERENCE + S)[:, i], rtol=0, atol=IDENTITY.absolute)


def test_safety_that_is_the_same_everywhere_is_lost_and_of_one_context_all_is():
    strategy = TSDI(mean_excess(REFERENCE + BETA, REFERENCE))
    np.testing.assert_allclose(strategy.decode((REFERENCE + BETA)[:, 1], 1), REFERENCE[:, 1], atol=IDENTITY.absolute)
    alone = TSDI(mean_excess((REFERENCE + S + BETA)[:1], REFERENCE[:1]))
    np.testing.assert_allclose(alone.decode((REFERENCE + S + BETA)[0, 1], 1), REFERENCE[0, 1], atol=IDENTITY.absolute)


@libraries
def test_positions_beyond_the_first_are_unchanged(array):
    strategy, z = TSDI(array(BETA)), array(REFERENCE[:, 0])
    for position in (L, L + 1, 1000):
        np.testing.assert_array_equal(np.asarray(strategy.decode(z, position)), REFERENCE[:, 0])
    assert np.max(np.abs(np.asarray(strategy.decode(z, L - 1)) - REFERENCE[:, 0])) > 0.1
    np.testing.assert_array_equal(np.asarray(TSDI(array(np.zeros((0, V)))).decode(z, 0)), REFERENCE[:, 0])


@libraries
def test_a_batch_may_be_at_different_positions(array):
    positions = np.array([0, 2, 3, 1, 9, 0])
    together = np.asarray(TSDI(array(BETA)).decode(array(REFERENCE[:, 0]), array(positions)))
    for row, position in enumerate(positions):
        alone = np.asarray(TSDI(array(BETA)).decode(array(REFERENCE[row, 0]), int(position)))
        np.testing.assert_array_equal(together[row], alone)


def test_it_is_traced_with_the_position():
    decode = jax.jit(lambda z, i: TSDI(jnp.asarray(BETA)).decode(z, i))
    for position in (0, L):
        want = TSDI(jnp.asarray(BETA)).decode(jnp.asarray(REFERENCE[:, 0]), position)
        np.testing.assert_array_equal(decode(jnp.asarray(REFERENCE[:, 0]), jnp.asarray(position)), want)


def test_a_shift_of_all_logits_of_a_context_changes_no_policy():
    """Logits and log-probabilities give one answer; probabilities would not."""

    def policy(safe, reference, seen):
        return jax.nn.softmax(jnp.asarray(TSDI(mean_excess(safe, reference)).decode(seen[:, 0], 0)))

    safe = REFERENCE + S + BETA
    want = policy(safe, REFERENCE, safe)
    shifted = safe + RNG.normal(size=(SAMPLES, L, 1))
    np.testing.assert_allclose(policy(shifted, REFERENCE, shifted), want, rtol=0, atol=IDENTITY.absolute)
    logs, reference = (np.asarray(jax.nn.log_softmax(z)) for z in (safe, REFERENCE))
    np.testing.assert_allclose(policy(logs, reference, logs), want, rtol=0, atol=IDENTITY.absolute)
    assert np.max(np.abs(policy(np.exp(logs), np.exp(reference), logs) - want)) > 1e-2


def test_its_error_falls_with_the_root_of_the_number_of_samples_if_the_effect_has_mean_zero():
    """The root mean square of so many errors is known to five of its standard deviations."""
    sd, entries = 2.0, 40 * L * V
    within = 5 / np.sqrt(2 * entries)

    def error(count, mean):
        errors = [
            mean_excess(sd * RNG.normal(size=(count, L, V)) + mean + BETA, np.zeros((count, L, V))) - BETA
            for _ in range(40)
        ]
        return np.sqrt(np.mean(np.square(errors)))

    for count in (25, 2500):
        assert error(count, 0.0) == pytest.approx(sd / np.sqrt(count), rel=within)
    assert error(2500, 0.5) == pytest.approx(0.5, rel=within)


def test_it_is_estimated_in_one_pass_over_the_samples():
    safe = torch.from_numpy(REFERENCE + S + BETA)
    samples = [(number, (0,) * L) for number in range(SAMPLES)]
    strategy = estimate(lambda x, y: safe[x], lambda x, y: torch.from_numpy(REFERENCE)[x], samples, length=2)
    np.testing.assert_allclose(strategy.bias.numpy(), BETA[:2], rtol=0, atol=IDENTITY.absolute)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="shape \\(L, V\\)"):
        TSDI(np.zeros(3))
    with pytest.raises(ValueError, match="same contexts"):
        mean_excess(REFERENCE, REFERENCE[:2])
    with pytest.raises(ValueError, match="no samples"):
        estimate(lambda x, y: x, lambda x, y: x, [], 2)
    with pytest.raises(ValueError, match="3 positions and length is 4"):
        estimate(lambda x, y: REFERENCE[0], lambda x, y: REFERENCE[0], [(0, 0)], 4)
