"""Every registered theorem holds, is tight where it says, needs what it assumes, and can be climbed by a falsifier.

Nobody writes a theorem's test: these run over the registry. `pytest --theorem-instances 1000000` makes it a deep run.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import once
from tradeoff import theorems, worlds
from tradeoff.theorems.instances import AtPenalty
from tradeoff.tolerances import BOUND, agree

KEY = jax.random.key(2)
# Claims of one family one after the other, so that one worker checks them all.
FAMILIES = list(dict.fromkeys(claim.family for claim in theorems.all()))
CLAIMS = {claim.name: claim for claim in sorted(theorems.all(), key=lambda claim: FAMILIES.index(claim.family))}
TIGHT = [name for name, claim in CLAIMS.items() if claim.tight is not None]
DIFFERENT = ["T2b", "T4b", "T5d", "T6c", "T6g", "T7-ends", "T8d"]
"""Claims whose expressions have no like among the others; a falsifier climbs all of them."""
DEEP = 10_000
WITHOUT = [(name, tag) for name, claim in CLAIMS.items() for tag, made in claim.without.items() if callable(made)]


@cache
def verdicts(family, instances):
    """Those on all claims about a family, by name."""
    claims = [claim for claim in CLAIMS.values() if claim.family is family]
    return {verdict.theorem.name: verdict for verdict in theorems.verify_each(claims, KEY, instances)}


@pytest.mark.parametrize("name", CLAIMS)
def test_it_holds_on_random_instances(name, request):
    verdict = verdicts(CLAIMS[name].family, request.config.getoption("--theorem-instances"))[name]
    assert verdict.holds, str(verdict)
    assert np.isfinite(verdict.worst_slack)


def sides_at(claim, instance):
    """Both sides at one instance."""
    return once(claim.at)(instance)


@pytest.mark.parametrize("name", TIGHT)
def test_it_is_tight_where_it_says(name):
    claim = CLAIMS[name]
    sides = sides_at(claim, claim.tight.instance())
    assert not claim.violations(sides).any()
    ratios = [
        min(left, right) / max(left, right)
        for left, right, relation in zip(*(side.tolist() for side in sides), claim.relations, strict=True)
        if relation != "==" and max(left, right) > 0
    ]
    assert agree(max(ratios), claim.tight.ratio, BOUND)


@pytest.mark.parametrize(("name", "tag"), WITHOUT)
def test_it_fails_without_the_assumption_and_only_for_want_of_it(name, tag):
    claim = CLAIMS[name]
    instance = claim.without[tag]()
    assert claim.violations(sides_at(claim, instance)).any()
    assert {one.name for one in claim.assumptions if not one.holds(instance)} == {tag}
    policy = getattr(instance, "log_policy", jnp.zeros((1, 1)))
    np.testing.assert_allclose(jax.nn.logsumexp(policy, axis=-1), 0, atol=1e-12)


@pytest.mark.parametrize("name", CLAIMS)
def test_it_says_what_it_needs_and_why(name):
    claim = CLAIMS[name]
    assert set(claim.without) == {one.name for one in claim.assumptions}
    assert claim.meaning.endswith((".", ":"))
    assert claim.source
    assert claim.statement.count("{") == claim.statement.count("}")


def pytest_generate_tests(metafunc):
    """Derivatives of some claims, and of all in a deep run: compiling one takes longer than everything else."""
    if "climbed" in metafunc.fixturenames:
        deep = metafunc.config.getoption("--theorem-instances") >= DEEP
        metafunc.parametrize("climbed", list(CLAIMS) if deep else DIFFERENT)


def test_its_sides_have_finite_derivatives_wherever_they_are_finite(climbed):
    claim = CLAIMS[climbed]

    def excess(parameters):
        left, right = claim.at(claim.family.build(parameters))
        return jnp.sum(left - right), jnp.all(jnp.isfinite(left) & jnp.isfinite(right))

    parameters = jax.vmap(claim.family.sample)(jax.random.split(KEY, 64))
    slopes, defined = once(jax.vmap(jax.grad(excess, has_aux=True, allow_int=True)))(parameters)
    slopes = [slope[defined] for slope in jax.tree.leaves(slopes) if slope.dtype == jnp.float64]
    assert all(jnp.isfinite(slope).all() for slope in slopes)
    assert any(jnp.any(slope != 0) for slope in slopes)


@pytest.mark.parametrize("name", ["T2d", "T3", "T4a", "T4b", "T4c", "T5d", "T7-constraint"])
def test_it_holds_with_many_contexts(name):
    """Families have four contexts; the theory has any number."""
    claim = CLAIMS[name]
    check = once(claim.at)
    for seed, lam in enumerate((1e-4, 0.3, 1.0, 1e3)):
        world = worlds.random(jax.random.key(seed), contexts=40, responses=6).with_exact_proxy()
        sides = check(AtPenalty(world, jnp.float64(lam)))
        assert not claim.violations(sides).any()
