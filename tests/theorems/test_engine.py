"""The engine itself: it rejects wrong theorems and ill-formed ones, and what it reports can be drawn again."""

import dataclasses
import json
import math
import re
import time
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.theorems.mutants import MUTANTS
from tradeoff import loss_constraint as c1
from tradeoff import theorems
from tradeoff.theorems import instances, registry, replay, verification, verify
from tradeoff.theorems.claim import Assumption, Theorem, slack
from tradeoff.theorems.draws import Draws
from tradeoff.tolerances import EXACT, agree

KEY = jax.random.key(4)
FAMILY = instances.at_penalty()


def gap(instance):
    """The safety gap, which is positive."""
    return c1.gaps(instance.world, instance.lam).safety


def claim(sides, **rest) -> Theorem:
    """A theorem about the safety gap."""
    return Theorem(name="test", title="a test", statement="", family=FAMILY, sides=sides, **rest)


# --- it rejects wrong theorems ----------------------------------------------------------------------------------


def pytest_generate_tests(metafunc):
    """One wrong version of every theorem, and the whole bank in a deep run."""
    if "what" in metafunc.fixturenames:
        deep = metafunc.config.getoption("--theorem-instances") >= 10_000
        first = {re.match(r"T\d+", name).group(): name for name in reversed(MUTANTS)}
        metafunc.parametrize("what", list(MUTANTS) if deep else list(first.values()))


def test_a_wrong_theorem_is_rejected(what):
    verdict = verify(MUTANTS[what](), KEY, instances=10_000)
    assert not verdict.holds
    assert verdict.violations > 0
    assert "FAILS" in str(verdict)


def test_there_are_mutants_of_every_theorem_that_can_be_mutated():
    mutated = {what.split(":")[0] for what in MUTANTS}
    assert len(MUTANTS) >= 60
    for number in range(1, 20):
        assert any(re.match(rf"T{number}(?!\d)", name) for name in mutated)


def test_one_violation_among_many_instances_is_found_and_shown():
    target = 1_234
    value = float(replay(claim(gap), KEY, target).lam)

    def sides(instance):
        return jnp.where(instance.lam == value, 1.0, 0.0), jnp.float64(0.5)

    verdict = verify(claim(sides), KEY, instances=3_000)
    assert (verdict.violations, verdict.worst_index) == (1, target)
    assert verdict.worst_sides == (1.0, 0.5)
    assert float(verdict.worst_instance.lam) == value


def test_a_violation_outranks_a_worse_slack_within_rounding():
    """A tiny pair of sides can have any ratio; the one that breaks the tolerance is the one to show."""

    def sides(instance):
        first = instance.lam > 1
        broken = jnp.stack([jnp.where(first, 1.0 + 1e-6, 0.0), jnp.where(first, 0.0, 1e-13)])
        return broken, jnp.stack([jnp.where(first, 1.0, 0.0), jnp.float64(0.0)])

    verdict = verify(claim(sides, parts=("broken", "tiny")), KEY, instances=2_000)
    assert verdict.worst_part == "broken"
    assert verdict.worst_sides == (1.0 + 1e-6, 1.0)


def test_a_verdict_says_how_tight_it_came_and_how_long_it_took():
    def three_quarters(instance):
        return 0.75 * gap(instance), gap(instance)

    for _ in range(2):  # the second time nothing is compiled
        began = time.perf_counter()
        verdict = verify(claim(three_quarters), KEY, instances=50)
        elapsed = time.perf_counter() - began
    assert 0 < verdict.seconds <= elapsed
    assert agree(verdict.tightest, 0.75, EXACT)
    assert f"tightest ratio {verdict.tightest:.6f}" in str(verdict)
    equal = verify(claim(lambda instance: (gap(instance), gap(instance)), relation="=="), KEY, instances=50)
    assert math.isnan(equal.tightest)
    assert "ratio" not in str(equal)


@pytest.mark.parametrize("relation", ["<=", ">=", "=="])
def test_infinite_sides_are_compared_and_never_undefined(relation):
    def infinite(instance):
        return jnp.float64(jnp.inf), jnp.float64(jnp.inf)

    verdict = verify(claim(infinite, relation=relation), KEY, instances=10)
    assert verdict.holds
    assert verdict.worst_slack == 0  # equal, though their difference is not a number

    def one_infinite(instance):
        return jnp.float64(jnp.inf), gap(instance)

    assert verify(claim(one_infinite, relation=relation), KEY, instances=10).holds == (relation == ">=")


# --- it refuses what is not a theorem ---------------------------------------------------------------------------


def test_sides_must_be_scalars():
    with pytest.raises(ValueError, match=r"left side of test has shape \(4,\) and \(\) is required"):
        verify(claim(lambda i: (i.world.safety.p, 1.0)), KEY, instances=10)


def test_sides_must_have_one_entry_for_each_part():
    with pytest.raises(ValueError, match=r"right side of test has shape \(\) and \(2,\) is required"):
        verify(claim(lambda _: (jnp.ones(2), 1.0), parts=("a", "b")), KEY, instances=10)


def test_sides_must_be_defined():
    def sides(instance):
        return jnp.where(instance.lam > 1, jnp.nan, 0.0), jnp.float64(1.0)

    with pytest.raises(ValueError, match=r"at instance \d+ the sides of test are nan and 1; both must be defined"):
        verify(claim(sides), KEY, instances=1_000)


def test_sides_must_be_functions_of_the_instance():
    chance = np.random.default_rng(0)

    def sides(instance):
        return instance.lam * chance.uniform(), jnp.inf

    with pytest.raises(ValueError, match="the sides of test differ when they are computed twice"):
        verify(claim(sides), KEY, instances=10)


def test_an_instance_that_breaks_an_assumption_is_refused_by_name():
    low = Assumption("low penalty", "λ is at most one", lambda i: i.lam <= 1)
    with pytest.raises(
        ValueError, match=r"instance \d+ of test breaks its assumption 'low penalty' \(λ is at most one\)"
    ):
        verify(claim(lambda i: (gap(i), jnp.inf), assumptions=(low,), without={"low penalty": "why not"}), KEY, 10)


def test_relations_must_be_known():
    with pytest.raises(ValueError, match=r"relation '<'; each relation must be one of"):
        claim(gap, relation="<")
    with pytest.raises(ValueError, match=r"3 relations for 2 parts"):
        claim(gap, relation=("<=", "==", "<="), parts=("a", "b"))


def test_only_assumptions_can_be_dropped():
    with pytest.raises(ValueError, match=r"drops \['nonsense'\], which it does not assume; it assumes \[\]"):
        claim(gap, without={"nonsense": "why not"})


def test_at_least_one_instance():
    with pytest.raises(ValueError, match="instances=0; at least 1 is required"):
        verify(claim(gap), KEY, instances=0)


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(KeyError, match=r"no theorem is named 'T4aa'; did you mean T4a"):
        theorems.get("T4aa")


def test_names_must_be_unique():
    module = ModuleType("bounds")
    first = claim(gap)
    module.first, module.second = first, dataclasses.replace(first, title="another")
    with pytest.raises(ValueError, match="bounds registers more than one theorem named test"):
        registry.found_in(module)
    names = [one.name for one in theorems.all()]
    assert len(names) == len(set(names))


# --- what it reports can be had again ---------------------------------------------------------------------------


def leaves_of(instance) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(instance)]


@pytest.mark.parametrize("name", ["T4a", "T8a"])
def test_the_worst_instance_is_replayed_bit_for_bit(name):
    theorem = theorems.get(name)
    verdict = verify(theorem, KEY, instances=2_500)
    again = replay(theorem, KEY, verdict.worst_index)
    for one, other in zip(leaves_of(verdict.worst_instance), leaves_of(again), strict=True):
        assert one.tobytes() == other.tobytes()
    sides = theorem.at(again)
    part = theorem.parts.index(verdict.worst_part)
    for value, reported in zip(sides, verdict.worst_sides, strict=True):
        assert agree(float(value[part]), reported, EXACT)


def test_a_verdict_is_the_same_twice():
    one, other = (verify(theorems.get("T4a"), KEY, instances=2_500) for _ in range(2))
    assert same(one, other)


def test_instances_do_not_depend_on_how_many_are_drawn():
    theorem = claim(lambda i: (gap(i), jnp.float64(0.5)))
    few, many = verify(theorem, KEY, instances=900), verify(theorem, KEY, instances=25_000)
    assert few.violations <= many.violations
    counted = sum(float(gap(replay(theorem, KEY, index))) > 0.5 for index in range(20))
    assert verify(theorem, KEY, instances=20).violations == counted


def test_slacks_are_those_of_the_instances_that_are_replayed():
    theorem = claim(lambda i: (gap(i), jnp.float64(0.5)))
    sides = [theorem.at(replay(theorem, KEY, index)) for index in range(20)]
    expected = [np.asarray(slack(side, theorem.terms)) for side in sides]
    found = verification.slacks(theorem, KEY, 20)
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT.relative)


def test_batches_change_nothing(monkeypatch):
    theorem = claim(lambda i: (gap(i), jnp.float64(0.5)))
    whole = verify(theorem, KEY, instances=25_000)
    monkeypatch.setattr(verification, "BATCH", 3_700)
    other = verify(theorem, KEY, instances=25_000)
    assert (whole.violations, whole.worst_index) == (other.violations, other.worst_index)
    assert agree(whole.worst_slack, other.worst_slack, EXACT)
    assert agree(whole.tightest, other.tightest, EXACT)


def test_the_last_batch_counts_only_what_was_asked_for():
    theorem = claim(lambda _: (jnp.float64(1.0), jnp.float64(0.0)))
    assert verify(theorem, KEY, instances=1_001).violations == 1_001


def test_progress_is_told_after_every_batch():
    told = []
    verify(claim(lambda i: (gap(i), jnp.inf)), KEY, instances=2_500, progress=told.append)
    assert told == [1_000, 2_000, 2_500]


def same(one, other) -> bool:
    """Whether two verdicts say the same, but for the time they took."""
    names = [field.name for field in dataclasses.fields(one) if field.name not in ("seconds", "worst_instance")]
    return all(repr(getattr(one, name)) == repr(getattr(other, name)) for name in names)


def test_a_stopped_run_goes_on_where_its_record_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "KEPT_EVERY", 0.0)
    theorem, path = claim(lambda i: (gap(i), jnp.float64(0.5))), tmp_path / "test.json"
    told = []

    def stop(done):
        told.append(done)
        if done == 3_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(theorem, KEY, instances=5_500, progress=stop, record=path)
    resumed = verify(theorem, KEY, instances=5_500, progress=told.append, record=path)
    assert told == [1_000, 2_000, 3_000, 4_000, 5_000, 5_500]
    assert same(resumed, verify(theorem, KEY, instances=5_500))


def test_a_record_holds_the_worst_instance_in_full(tmp_path):
    theorem = claim(lambda i: (gap(i), jnp.float64(0.5)))
    verdict = verify(theorem, KEY, instances=2_000, record=tmp_path / "test.json")
    kept = json.loads((tmp_path / "test.json").read_text())
    assert kept["tally"]["violations"] == verdict.violations
    assert kept["worst_instance"]["lam"] == float(verdict.worst_instance.lam)
    assert kept["worst_instance"]["world.safety.P"] == verdict.worst_instance.world.safety.P.tolist()


def test_the_record_of_another_key_or_claim_is_begun_anew(tmp_path):
    theorem, path = claim(lambda i: (gap(i), jnp.float64(0.5))), tmp_path / "test.json"
    verify(theorem, KEY, instances=2_000, record=path)
    other = jax.random.key(5)
    assert same(verify(theorem, other, instances=1_000, record=path), verify(theorem, other, instances=1_000))
    renamed = dataclasses.replace(theorem, name="renamed")
    assert verify(renamed, other, instances=1_000, record=path).instances == 1_000


def test_a_file_that_is_no_record_is_refused(tmp_path):
    path = tmp_path / "test.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="is no record of a verification"):
        verify(claim(lambda i: (gap(i), jnp.inf)), KEY, instances=10, record=path)


@pytest.mark.parametrize("processes", [1, 2])
def test_claims_checked_together_get_the_verdicts_that_they_get_alone(processes, tmp_path):
    """In order, also when some are checked in other processes and a user's own stays in this one."""
    own = claim(lambda i: (gap(i), jnp.float64(0.5)))
    claims = [theorems.get("T4a"), own, theorems.get("T8b"), theorems.get("T4b")]
    done = []
    tell = lambda theorem, count: done.append((theorem.name, count))  # noqa: E731
    together = list(theorems.verify_each(claims, KEY, 1_000, tell, tmp_path, processes))
    assert all(same(one, verify(theorem, KEY, 1_000)) for one, theorem in zip(together, claims, strict=True))
    assert done == [(name, 1_000) for name in ("T4a", "T4b", "test", "T8b")]  # one family at a time
    assert {file.stem for file in tmp_path.iterdir()} == {theorem.name for theorem in claims}


def test_a_claim_with_a_record_waits_for_the_others_of_its_family(tmp_path):
    pair = [theorems.get("T4a"), theorems.get("T4b")]
    verify(pair[0], KEY, 2_000, record=tmp_path / "T4a.json")
    done = []
    tell = lambda theorem, count: done.append((theorem.name, count))  # noqa: E731
    together = list(theorems.verify_each(pair, KEY, 3_000, tell, tmp_path))
    assert all(same(one, verify(theorem, KEY, 3_000)) for one, theorem in zip(together, pair, strict=True))
    assert done == [("T4b", 1_000), ("T4b", 2_000), ("T4a", 3_000), ("T4b", 3_000)]


def test_another_key_draws_other_instances():
    theorem = claim(gap)
    first, other = (replay(theorem, jax.random.key(seed), 0) for seed in (0, 1))
    assert float(first.lam) != float(other.lam)


def test_replay_needs_a_number_from_zero():
    with pytest.raises(ValueError, match="index=-1; instances are numbered from 0"):
        replay(claim(gap), KEY, -1)


def test_a_block_of_random_numbers_can_run_out():
    with pytest.raises(ValueError, match="give it a larger count"):
        Draws(KEY, count=4).normal((5,))


def test_random_numbers_have_the_moments_they_should():
    draws = jax.jit(jax.vmap(lambda key: (Draws(key).uniform(shape=(64,)), Draws(key).normal((64,)))))
    uniform, normal = draws(jax.random.split(KEY, 4_000))
    for numbers, mean, variance in ((uniform, 0.5, 1 / 12), (normal, 0.0, 1.0)):
        spread = math.sqrt(variance / numbers.size)
        assert abs(float(jnp.mean(numbers)) - mean) < 5 * spread
        assert abs(float(jnp.var(numbers)) - variance) < 5 * spread * 2
    neighbours = np.corrcoef(np.asarray(uniform[:, 0]), np.asarray(uniform[:, 1]))[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(4_000)
