"""The falsifier: it reaches what is attained, breaks what is false, and calls off what is only rounding."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tradeoff as to
from tradeoff import loss_constraint as case_one
from tradeoff import theorems
from tradeoff.theorems import falsification, falsify, instances
from tradeoff.tolerances import EXACT

KEY = jax.random.key(0)


@pytest.fixture
def guess():
    """A plausible conjecture that is false (inside a fixture, or the plugin would collect it and fail)."""

    @to.theorem("guess", title="twice as fast", statement=r"G_s\le\Delta_f/(2\lambda)", family=instances.at_penalty())
    def claim(instance):
        """The safety gap closes twice as fast as the bound."""
        gap = case_one.gaps(instance.world, instance.lam).safety
        return gap, 0.5 * instance.world.conflict_capability / instance.lam

    return claim


def test_a_plausible_conjecture_is_broken_with_a_counterexample_that_one_can_read(guess):
    attack = falsify(guess, KEY)
    assert attack.broken
    left, right = attack.precise
    assert left > right
    world = attack.instance.world
    assert int(jnp.sum(world.shared)) == 1  # one context is enough, and it is all that is left
    assert float(attack.instance.lam) == np.round(attack.instance.lam, 2)
    assert "is FALSE" in str(attack)
    assert "in 80 digits" in str(attack)


@pytest.mark.parametrize("name", ["T4a", "T8a"])
def test_an_attained_bound_is_reached_from_random_starts(name):
    attack = falsify(to.theorems.get(name), KEY, restarts=24)
    assert not attack.broken
    assert attack.ratio > 0.99
    assert "was not broken" in str(attack)


def test_a_loose_constant_is_reported():
    def sides(instance):
        left, right = to.theorems.get("T4b").sides(instance)
        return left, 3 * right

    loose = dataclasses.replace(to.theorems.get("T4b"), name="loose", sides=sides)
    attack = falsify(loose, KEY, restarts=16)
    assert not attack.broken
    assert "the constant looks loose by 3" in str(attack)
    assert "the bound is never approached" in str(dataclasses.replace(attack, ratio=0.0))


def test_an_ascent_climbs_a_ratio_above_one_wherever_a_claim_fails():
    """Also where a side is negative or zero, and the quotient of the two says nothing."""
    for low, high in ((1.0, 2.0), (-2.0, -1.0), (-1.0, 2.0), (0.0, 1.0), (-3.0, 0.0)):
        small, large = jnp.float64(low), jnp.float64(high)
        assert falsification._ratio(small, large, "<=") < 1 < falsification._ratio(large, small, "<=")
        assert falsification._ratio(large, small, ">=") < 1 < falsification._ratio(small, large, ">=")
    for left in (1.5, 4.0):
        assert falsification._ratio(jnp.float64(left), jnp.float64(2.0), "<=") == left / 2


@pytest.mark.parametrize("relation", ["==", "<=", ">="])
def test_rounding_is_not_a_counterexample(relation):
    """A negative control: an identity that float64 cannot see is called off by high precision."""

    @to.theorem(
        "rounding",
        title="rounding",
        statement=r"1-\cos g=2\sin^2(g/2)",
        family=instances.at_penalty(),
        relation=relation,
        tolerance=EXACT,
    )
    def rounding(instance):
        """The half-angle formula, whose left side loses its digits."""
        gap = case_one.gaps(instance.world, instance.lam).safety
        return 1 - jnp.cos(gap / 100), 2 * jnp.sin(gap / 200) ** 2

    assert not to.theorems.verify(rounding, KEY, 1000).holds  # random instances show the rounding ...
    attack = falsify(rounding, KEY, restarts=8)
    assert not attack.broken  # ... and the falsifier knows it for what it is
    assert attack.refuted == 8
    if relation != "==":
        shown = falsification._ratio(*rounding.at(attack.instance), relation)[0]
        assert float(shown) == pytest.approx(attack.ratio, rel=EXACT.relative)  # of the instance that is shown


def test_rounding_of_large_sides_is_no_counterexample_to_an_equality():
    @to.theorem(
        "absorbed",
        title="absorbed",
        statement=r"1-\cos g=2\sin^2(g/2)",
        family=instances.at_penalty(),
        relation="==",
        tolerance=EXACT,
    )
    def absorbed(instance):
        """The half-angle formula again, with sides of order one and more."""
        gap = case_one.gaps(instance.world, instance.lam).safety
        return 1 + 1e8 * (1 - jnp.cos(gap / 100)), 1 + 2e8 * jnp.sin(gap / 200) ** 2

    attack = falsify(absorbed, KEY, restarts=4)
    assert attack.refuted
    assert not attack.broken


def hill(height):
    """A claim that this is nowhere above 1, begun 20 to 40 away from where it is 1."""
    family = theorems.Family(lambda key: 20 * (1 + jax.random.uniform(key, (3,))), lambda x: x)
    return theorems.Theorem("hill", "", r"h\le1", lambda x: (height(x), jnp.float64(1)), family)


def test_an_ascent_goes_far_and_then_settles():
    """Also at a ridge, as maxima and absolute values make them, where a slope never tells that the top is near."""
    slopes = jnp.array([1.0, 3.0, 10.0])
    smooth = falsify(hill(lambda x: jnp.exp(-jnp.sum(x**2) / 800)), KEY, restarts=4)
    ridge = falsify(hill(lambda x: 1 / (1 + jnp.sum(slopes * jnp.abs(x - 0.3)))), KEY, restarts=4)
    assert not smooth.broken
    assert smooth.ratio > 1 - 1e-12
    assert not ridge.broken
    assert ridge.ratio > 0.999


SMALL = theorems.Assumption("small", "x is at most 1", lambda x: x <= 1)


def at_most_one(low: float, high: float) -> theorems.Theorem:
    """A claim about numbers at most 1, with a family that draws between two numbers and that the falsifier can leave."""
    family = theorems.Family(lambda key: jax.random.uniform(key, minval=low, maxval=high), lambda x: x)
    return theorems.Theorem("at-most-one", "", r"x\le1", lambda x: (x, jnp.ones_like(x)), family, assumptions=(SMALL,))


def test_what_an_ascent_finds_outside_the_assumptions_is_no_counterexample():
    attack = falsify(at_most_one(0.0, 0.9), KEY, restarts=4)
    assert not attack.broken
    assert 0.9 < attack.ratio <= 1
    assert attack.instance <= 1
    free = dataclasses.replace(at_most_one(0.0, 0.9), assumptions=())
    assert falsify(free, KEY, restarts=4).broken  # negative control: the ascent does go there


def test_a_family_outside_its_own_assumptions_is_refused():
    with pytest.raises(ValueError, match="none of 4 ascents of at-most-one began at an instance of the claim"):
        falsify(at_most_one(2.0, 3.0), KEY, restarts=4)


def test_at_least_one_restart(guess, monkeypatch):
    with pytest.raises(ValueError, match="restarts=0; at least 1"):
        falsify(guess, KEY, restarts=0)
    monkeypatch.setattr(falsification, "time", SimpleNamespace(perf_counter=iter([10.0, 12.5]).__next__))
    attack = falsify(guess, KEY, restarts=1)
    assert (attack.restarts, attack.seconds) == (1, 2.5)
