"""T12 to T19 beyond their random families: many parameters, and the comparisons that the framework names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tradeoff as to
from tests.test_parameter_constraint import random_pair
from tradeoff import parameter_constraint as c2
from tradeoff.problems import Quadratic
from tradeoff.theorems import comparison, get
from tradeoff.theorems import landscapes as land
from tradeoff.theorems.landscapes import Landscape
from tradeoff.tolerances import IDENTITY, LIMIT, agree


@pytest.mark.parametrize(
    "name",
    ["T12b", "T12c", "T12d", "T12e", "T13", "T14a", "T14b", "T15", "T15-bracket", "T16c", "T16d", "T18a-quadratic"],
)
@pytest.mark.parametrize("seed", range(3))
def test_it_holds_with_many_parameters(name, seed):
    """Families have three parameters; the theory has any number."""
    quad = random_pair(seed, size=20, decades=3.0)
    rng = np.random.default_rng(seed)
    radius = 0.3 * jnp.linalg.norm(quad.displacement)
    numbers = [jnp.float64(x) for x in 10 ** rng.uniform(-2, 2, 2)]
    instance = Landscape(quad, radius, *numbers, jnp.asarray(rng.normal(size=20)))
    claim = get(name)
    assert all(one.holds(instance) for one in claim.assumptions)
    sides = claim.at(instance)
    assert not claim.violations(sides).any(), sides


def test_a_ball_can_be_safer_than_any_large_penalty_and_need_not_be():
    """T18(b): with a proxy that is off by a little, a small ball is safer than any large penalty, and a large one is not."""
    laws = ([[0.5, 0.5]], [[0.1, 0.9]], [[0.6, 0.4]])
    world = to.World(*(to.DataLaw([1.0], rows) for rows in laws))
    limit = float(to.loss_constraint.gaps(world, jnp.inf).safety)
    safe = float(jnp.sqrt(4 * world.proxy_mismatch))
    for radius, safer in ((0.5 * safe, True), (10 * safe, False)):
        logits = comparison._descend(world, jnp.float64(0), jnp.float64(radius))
        lost = float(to.safety_gap(world, to.problems.Tabular(world).log_policy(logits)))
        assert (lost < limit) == safer


def test_the_limits_name_the_ball_and_not_only_the_start():
    """T13 at the ball of a radius: both gaps by hand, where the pull is along one axis."""
    radius = 0.5
    ball = land.pair(jnp.diag(jnp.array([2.0, 1.0])), [1.0, 0.0], jnp.diag(jnp.array([3.0, 1.0])), radius=radius)
    left, right = get("T13").at(ball)
    assert agree(float(left[4]), (1 - radius) + np.sqrt(2.0) * np.sqrt(1.5) * radius, IDENTITY)
    assert agree(float(right[4]), 1.0, IDENTITY)


def test_a_comparison_of_rounding_is_in_units_of_the_landscape():
    """T14(a)'s sides have no unit: parameters and losses measured in another one give the same numbers."""
    one = land.pair(jnp.diag(jnp.array([2.0, 1.0])), [1.0, -1.0], jnp.diag(jnp.array([1.0, 3.0])), theta=[0.3, -0.3])
    quad = one.quad
    scaled = Quadratic(50 * quad.H_f, 0.01 * quad.theta_f, 70 * quad.H_s, 0.01 * quad.theta_s)
    other = Landscape(scaled, 0.01 * one.radius, 50 * one.lam, one.time, 0.01 * one.theta)
    for side, same in zip(get("T14a").at(one), get("T14a").at(other), strict=True):
        np.testing.assert_allclose(side[:4], same[:4], atol=1e-12)


def test_the_safety_that_a_ball_keeps_goes_with_the_square_of_its_radius():
    """T18(c)'s bound by the ball, in numbers: max p ε²/4."""
    claim = get("T18c")
    instance = claim.family.build(claim.family.sample(jax.random.key(0)))
    bounds = [claim.at(instance._replace(radius=jnp.float64(radius)))[1][0] for radius in (0.1, 0.3)]
    np.testing.assert_allclose(bounds, jnp.max(instance.world.safety.p) * np.array([0.01, 0.09]) / 4, rtol=1e-12)


def test_the_price_is_what_a_small_ball_pays():
    quad = random_pair(2, size=8, decades=2.0)
    radius = 1e-7 * jnp.linalg.norm(quad.displacement)
    ball = c2.solve(quad, radius)
    gain = quad.gain(ball.displacement)
    best = gain**2 / (2 * jnp.dot(quad.pull, jnp.linalg.solve(quad.H_s, quad.pull)))
    paid = c2.price_of_isotropy(quad.H_s, quad.pull)
    assert agree(float(ball.gaps.safety / best), float(paid.price), LIMIT)
    assert 1 < paid.price < paid.most
