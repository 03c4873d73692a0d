"""Case I: the closed forms against 50-digit arithmetic, the edges, the inverses, over-penalising."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tradeoff as to
from tests.oracle import Oracle, relative_error
from tests.problems import WORLDS
from tradeoff import loss_constraint as c1
from tradeoff.tolerances import EXACT, IDENTITY, PRINTED, ROOT

PENALTIES = (1e-9, 1e-4, 0.1, 1.0, 10.0, 1e4, 1e9)
FINITE = [name for name in WORLDS if name != "proxy_off_context"]


@pytest.mark.parametrize("name", WORLDS)
def test_gaps_and_value_match_high_precision(name):
    world = WORLDS[name]
    oracle = Oracle(world)
    at, value = c1.gaps(world, PENALTIES), c1.value(world, PENALTIES)
    for i, lam in enumerate(PENALTIES):
        exact = oracle.gaps(lam)
        for ours, theirs in zip((at.safety[i], at.capability[i], value[i]), exact, strict=True):
            if theirs < 1e-40:  # an exact zero, up to what 50 digits can say of it
                assert abs(float(ours)) < 1e-30
            else:
                assert relative_error(ours, theirs) < EXACT.relative, (lam, float(ours), float(theirs))


@pytest.mark.parametrize("name", WORLDS)
def test_gaps_of_the_optimal_policy_are_the_closed_form(name):
    world = WORLDS[name]
    for lam in (0.0, 0.1, 1.0, 10.0, np.inf):
        policy, at = c1.optimal_policy(world, lam), c1.gaps(world, lam)
        for ours, theirs in (
            (to.safety_gap(world, policy), at.safety),
            (to.capability_gap(world, policy), at.capability),
        ):
            assert (ours == theirs) or abs(ours - theirs) <= IDENTITY.absolute + IDENTITY.relative * abs(theirs)


@pytest.mark.parametrize("name", WORLDS)
def test_a_penalty_gives_the_same_bits_alone_and_in_a_grid(name):
    world = WORLDS[name]
    grid = c1.gaps(world, PENALTIES)
    for i, lam in enumerate(PENALTIES):
        other = c1.gaps(world, [lam, 3.0, 5.0])
        assert grid.safety[i] == other.safety[0]
        assert grid.capability[i] == other.capability[0]


def test_the_ends_are_the_limits_of_theorem_7():
    world = WORLDS["golden"]
    zero, infinite = (jnp.exp(c1.optimal_policy(world, lam)) for lam in (0.0, jnp.inf))
    np.testing.assert_allclose(zero[:2], world.capability.P[:2], rtol=EXACT.relative, atol=0)
    np.testing.assert_allclose(zero[2], world.safety.P[2], rtol=EXACT.relative, atol=0)  # the task is not there
    np.testing.assert_allclose(infinite[:3], world.safety.P[:3], rtol=EXACT.relative, atol=0)
    np.testing.assert_allclose(infinite[3], world.capability.P[3], rtol=EXACT.relative, atol=0)
    ends = c1.gaps(world, [0.0, jnp.inf])
    assert ends.capability[0] == 0
    assert ends.safety[1] == 0


def test_escaping_supports_are_infinite_exactly_where_the_theory_says():
    world = WORLDS["disjoint_responses"]
    ends = c1.gaps(world, [0.0, 1.0, jnp.inf])
    np.testing.assert_array_equal(np.isinf(ends.safety), [True, False, False])
    np.testing.assert_array_equal(np.isinf(ends.capability), [False, False, True])
    np.testing.assert_array_equal(c1.value(world, [0.0, jnp.inf]), [0.0, np.inf])
    assert jnp.isinf(c1.gaps(WORLDS["escaping"], jnp.inf).capability)


def test_without_overlap_nothing_is_traded():
    at = c1.gaps(WORLDS["disjoint_contexts"], PENALTIES)
    assert not jnp.any(at.safety)
    assert not jnp.any(at.capability)


@pytest.mark.parametrize("name", ["golden", "random", "escaping", "one_hot", "tiny_gaps", "disjoint_responses"])
def test_penalty_for_inverts_the_safety_gap(name):
    world = WORLDS[name]
    lams = jnp.array([1e-3, 0.3, 1.0, 7.0, 1e3])
    back = c1.penalty_for(world, safety_gap=c1.gaps(world.with_exact_proxy(), lams).safety)
    np.testing.assert_allclose(back, lams, rtol=ROOT.relative, atol=0)


def test_the_ends_of_penalty_for():
    world = WORLDS["golden"]
    most = c1.gaps(world, 0.0).safety
    np.testing.assert_array_equal(c1.penalty_for(world, safety_gap=[0.0, most, 2 * most]), [np.inf, 0.0, 0.0])
    assert c1.penalty_for(WORLDS["disjoint_contexts"], safety_gap=0.0) == 0
    never_said = to.World(to.DataLaw([1.0], [[0.5, 0.5, 0.0]]), to.DataLaw([1.0], [[0.9, 0.1, 0.0]]))
    assert c1.penalty_for(never_said, safety_gap=2 * c1.gaps(never_said, 0.0).safety) == 0


@pytest.mark.parametrize(("contexts", "responses"), [(4, 3), (32, 16), (512, 16), (1024, 16), (2048, 64), (2560, 64)])
def test_a_sweep_takes_whole_vectors_of_penalties_whose_tables_the_cache_holds(contexts, responses):
    world = to.worlds.random(jax.random.key(0), contexts, responses)
    lanes, size = c1._lanes(world, 10_000), contexts * responses
    if size <= 2**13:
        assert lanes % 8 == 0
        assert 2**15 < lanes * size <= 2**16
    else:  # then one vector comes out of memory, as long as that is faster than one penalty at a time
        assert lanes == (8 if size <= 2**17 else 1)
    assert c1._lanes(world, 1) == (8 if size <= 2**13 else 1)


def test_where_no_penalty_leaves_an_infinite_gap_any_constraint_asks_for_one():
    """Of a response that the task rules out: a gap of 60 nats takes a penalty below 1e-50, and no penalty leaves no bound."""
    world = to.World(to.DataLaw([1.0], [[0.5, 0.5]]), to.DataLaw([1.0], [[0.0, 1.0]]))
    lams = c1.penalty_for(world, safety_gap=[60.0, 340.0, 360.0, jnp.inf])
    assert 0 < lams[2] < lams[1] < lams[0] < 1e-50  # the third lies beyond the range that is searched
    assert lams[3] == 0
    np.testing.assert_allclose(c1.gaps(world, lams[:2]).safety, [60.0, 340.0], rtol=ROOT.relative)


def test_a_penalty_at_a_jump_is_beyond_it():
    """Where a mixture underflows the gap is infinite: no smaller penalty keeps any constraint, and this one is on the right side."""
    world = to.World(to.DataLaw([1e-12, 1.0], [[0.5, 0.5], [0.0, 1.0]]), to.DataLaw([1.0, 0.0], [[0.0, 1.0]] * 2))
    lam = c1.penalty_for(world, safety_gap=1e3)
    assert bool(jnp.isfinite(c1.gaps(world, lam).safety))
    assert bool(jnp.isinf(c1.gaps(world, lam / 4).safety))


@pytest.mark.parametrize("lam", [0.0, 1e-300, 1.0, 1e300, np.inf])
def test_slopes_of_the_gaps_are_finite_at_every_penalty(lam):
    world = WORLDS["random"]
    for which in ("safety", "capability"):
        by_world, by_lam = jax.grad(lambda w, lam: getattr(c1.gaps(w, lam), which), argnums=(0, 1))(world, lam)  # noqa: B023
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(by_world))
        assert bool(jnp.isfinite(by_lam))


@pytest.mark.parametrize(
    ("name", "lam", "gap"),
    [("over_penalised", 1.0, 0.0), ("late_minimum", 0.193884929590, 0.0396078163443), ("golden", np.inf, 0.0)],
)
def test_best_penalty_is_the_global_one(name, lam, gap):
    best = c1.best_penalty(WORLDS[name])
    assert best == lam or abs(best / lam - 1) < ROOT.relative
    assert abs(float(c1.gaps(WORLDS[name], best).safety) - gap) < PRINTED.absolute


def test_a_context_that_no_safety_data_show_decides_nothing():
    """Though the laws written there for them escape the task's, which costs nothing at weight zero."""
    over = WORLDS["over_penalised"]
    beside = to.World(
        *(
            to.DataLaw(jnp.append(share * law.p, 1 - share), jnp.concatenate([law.P, jnp.array([row])]))
            for law, share, row in (
                (over.safety, 1.0, [0.5, 0.5]),
                (over.capability, 0.5, [1.0, 0.0]),
                (over.training_safety, 1.0, [0.5, 0.5]),
            )
        )
    )
    assert c1.best_penalty(beside) == pytest.approx(c1.best_penalty(over) / 2, rel=ROOT.relative)


def test_where_more_is_always_better_the_best_penalty_is_infinite():
    """Though no penalty brings the gap to zero, and a large one is as good as none can tell."""
    laws = ([0.5, 0.5], [0.9, 0.1], [0.6, 0.4])
    assert c1.best_penalty(to.World(*(to.DataLaw([1.0], [row]) for row in laws))) == np.inf


def test_two_equal_minima_are_seen_as_equal():
    world = WORLDS["two_minima"]
    best = c1.best_penalty(world)
    # The world is symmetric under λ -> .0396/λ, so the other minimum is known exactly.
    values = c1.gaps(world, [best, 0.0396 / best]).safety
    assert abs(values[0] - values[1]) < IDENTITY.absolute


@pytest.mark.parametrize("name", FINITE)
def test_no_penalty_of_a_fine_grid_beats_the_best(name):
    world = WORLDS[name]
    grid = jnp.concatenate([jnp.array([0.0, jnp.inf]), jnp.logspace(-12, 12, 2001)])
    least = jnp.min(c1.gaps(world, grid).safety)
    assert c1.gaps(world, c1.best_penalty(world)).safety <= least + IDENTITY.absolute


def test_best_penalty_says_when_every_penalty_is_infinite():
    law, other = to.DataLaw([1.0], [[0.5, 0.5]]), to.DataLaw([1.0], [[1.0, 0.0]])
    with pytest.raises(ValueError, match="infinite at every penalty.*smooth the proxy"):
        c1.best_penalty(to.World(law, other, other))


@pytest.mark.parametrize("function", [c1.gaps, c1.value, c1.optimal_policy, c1.proxy_gap])
def test_a_negative_or_undefined_penalty_is_refused_by_index(function):
    world = WORLDS["golden"]
    with pytest.raises(ValueError, match=r"penalty λ is -1\.0.*\[0, inf\]"):
        function(world, -1.0)
    with pytest.raises(ValueError, match=r"penalty λ is nan at index 1"):
        function(world, [1.0, float("nan")])


def test_one_policy_at_a_time():
    with pytest.raises(ValueError, match=r"λ of shape \(2,\); give one λ, or jax\.vmap"):
        c1.optimal_policy(WORLDS["golden"], [1.0, 2.0])
    many = jax.vmap(lambda lam: c1.optimal_policy(WORLDS["golden"], lam))(jnp.array([1.0, 2.0]))
    np.testing.assert_allclose(many[1], c1.optimal_policy(WORLDS["golden"], 2.0), rtol=EXACT.relative, atol=0)


def test_gaps_are_differentiable_in_the_world_and_the_penalty():
    world = WORLDS["escaping"]
    gradient = jax.grad(lambda w, lam: c1.gaps(w, lam).safety + c1.value(w, lam), argnums=(0, 1))(
        world, jnp.float64(0.7)
    )
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["golden", "random", "over_penalised", "beside"])
@pytest.mark.parametrize("width", [4.0, 0.01])
def test_the_bound_on_an_interval_of_penalties_is_one_and_is_near(name, width):
    """What the certified search prunes by: never above the least gap of the interval, and near it where the interval is short.

    With one context only it is off by the square of the width, also where the least gap lies inside, at λ = 1: zero, or
    positive where every mixture passes beside the safety data.
    """
    one = (to.DataLaw([1.0], [P]) for P in ([0.4, 0.4, 0.2], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]))
    world = to.World(*one) if name == "beside" else WORLDS[name]
    low = jnp.arange(-6.0, 6.0, 0.5) - width / 3
    at_middle, bound = c1._middle_and_bound(world, low, low + width)
    inside = low[:, None] + width * jnp.linspace(0, 1, 101)[None, :]
    found = c1.gaps(world, jnp.exp(inside)).safety
    np.testing.assert_allclose(at_middle, found[:, 50], rtol=IDENTITY.relative)
    assert np.all(bound <= found.min(axis=1) + IDENTITY.absolute)
    if width < 1:
        off = 0 if len(world.safety.p) == 1 else width
        np.testing.assert_allclose(bound, found.min(axis=1), rtol=off, atol=width**2)


def test_where_every_penalty_costs_nothing_none_is_best():
    law = WORLDS["golden"].safety
    assert c1.best_penalty(to.World(law, law)) == 0


def test_the_optimal_policy_is_differentiable_where_it_may_not_say_a_response():
    world = WORLDS["escaping"]
    said = jnp.isfinite(c1.optimal_policy(world, 0.7))
    assert not bool(jnp.all(world.safety.P > 0))
    gradient = jax.grad(lambda w: jnp.sum(jnp.where(said, c1.optimal_policy(w, 0.7), 0)))(world)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(gradient))


def test_best_penalty_is_found_where_the_task_hardly_sees_a_prompt():
    """The odds of task and safety data are e^-92 on the only shared prompt, and so is the best penalty."""
    rare = 1e-40
    over = WORLDS["over_penalised"]
    task = to.DataLaw(jnp.array([rare, 1 - rare]), jnp.concatenate([over.capability.P, over.capability.P]))
    safe, proxy = (
        to.DataLaw(jnp.array([1.0, 0.0]), jnp.concatenate([law.P, law.P]))
        for law in (over.safety, over.training_safety)
    )
    assert over.capability.P.shape[0] == 1
    np.testing.assert_allclose(c1.best_penalty(to.World(safe, task, proxy)) / rare, c1.best_penalty(over), rtol=1e-6)


def test_the_approach_to_the_limit_where_the_proxy_rules_a_response_out():
    """Only the safety data or only the task may contain it: then E_{P_s}[P_f/P̂_s] loses its share, and both make it infinite."""

    def world(safe, task):
        return to.World(*(to.DataLaw(jnp.ones(1), jnp.array([row])) for row in (safe, task, [1.0, 0.0])))

    # P_s = (1, 0), P_f = (1/2, 1/2), P̂_s = (1, 0): E[P_f/P̂_s] - 1 = -1/2.
    np.testing.assert_allclose(c1.first_order_approach(world([1.0, 0.0], [0.5, 0.5])), -0.5)
    assert c1.first_order_approach(world([0.5, 0.5], [0.5, 0.5])) == jnp.inf


UNSEEN = to.World(
    to.DataLaw([0.5, 0.5], [[0.6, 0.4]] * 2),
    to.DataLaw([0.5, 0.5], [[0.1, 0.9]] * 2),
    to.DataLaw([0.0, 1.0], [[0.7, 0.3]] * 2),
)


@pytest.mark.parametrize("world", [WORLDS["over_penalised"], WORLDS["random_proxy"], UNSEEN])
def test_the_approach_is_what_a_large_penalty_still_moves(world):
    """A context that the proxy never shows is out of the penalty's reach, and has no part in it."""
    lam = 1e6
    limit, at = c1.gaps(world, jnp.inf).safety, c1.gaps(world, lam).safety
    np.testing.assert_allclose(lam * (limit - at), c1.first_order_approach(world), rtol=1e-4, atol=1e-8)


def test_the_slope_of_the_approach_is_finite_where_the_proxy_has_zeros():
    slope = jax.grad(c1.first_order_approach)(WORLDS["one_hot"])
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(slope))
