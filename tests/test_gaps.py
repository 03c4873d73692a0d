"""Gaps of any policy: tables, sub-probabilities, and what is not a policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tradeoff as to
from tests.oracle import Oracle, law, relative_error
from tests.problems import WORLDS
from tradeoff import gaps
from tradeoff import loss_constraint as c1
from tradeoff.tolerances import IDENTITY


@pytest.mark.parametrize("name", WORLDS)
def test_gaps_of_a_random_policy_match_high_precision(name):
    world = WORLDS[name]
    log_policy = jax.nn.log_softmax(jax.random.normal(jax.random.key(1), world.safety.P.shape), axis=-1)
    oracle, rows = Oracle(world), [law(row) for row in jnp.exp(log_policy)]
    for role, gap in (("s", to.safety_gap), ("f", to.capability_gap), ("q", to.proxy_gap)):
        assert relative_error(gap(world, log_policy), oracle.gap(role, rows)) < IDENTITY.relative


def test_mass_on_unlisted_responses_counts_as_lost():
    world, log_policy = WORLDS["golden"], c1.optimal_policy(WORLDS["golden"], 1.0)
    lost = to.safety_gap(world, log_policy - jnp.log(4.0)) - to.safety_gap(world, log_policy)
    assert abs(float(lost - jnp.log(4.0))) < IDENTITY.absolute


@pytest.mark.parametrize("lam", [0.0, 0.1, 3.0])
def test_surplus_is_what_is_paid_above_the_value(lam):
    world = WORLDS["random_proxy"]
    log_policy = c1.optimal_policy(world, 1.0)
    paid = gaps.weighted_sum(world, log_policy, lam) - c1.value(world, lam)
    assert abs(float(paid - gaps.surplus(world, log_policy, lam))) < IDENTITY.absolute


def test_a_policy_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 2\) and the world has 4 contexts x 3 responses"):
        to.safety_gap(WORLDS["golden"], jnp.zeros((2, 2)))


def test_what_is_not_a_policy_is_refused_by_row():
    good = np.array(c1.optimal_policy(WORLDS["golden"], 1.0))
    logits, undefined = good.copy(), good.copy()
    logits[2] += 1.0
    undefined[1, 0] = np.nan
    for wrong, says in (
        (logits, r"log_policy\[2\] has mass 2\.7.*jax\.nn\.log_softmax"),
        (undefined, r"log_policy\[1\] has mass nan"),
    ):
        for gap in (to.safety_gap, to.capability_gap, to.proxy_gap):
            with pytest.raises(ValueError, match=says):
                gap(WORLDS["golden"], wrong)


def test_a_weight_that_is_not_a_number_is_no_weight_of_zero():
    """Inside a compiled function nothing can be refused; the gap must say that something went wrong."""
    values = jnp.array([1.0, jnp.inf])
    assert float(gaps.weighted(jnp.array([0.5, 0.0]), values)) == 0.5
    assert np.isnan(gaps.weighted(jnp.array([jnp.nan, 0.0]), values))
