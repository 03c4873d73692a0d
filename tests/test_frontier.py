"""Frontiers: exact values, distances that are certificates, limits, and sets of points against moocore."""

import jax
import jax.numpy as jnp
import moocore
import numpy as np
import pytest

import tradeoff as to
from tests.problems import WORLDS
from tradeoff import frontier
from tradeoff import loss_constraint as c1
from tradeoff.tolerances import EXACT, IDENTITY, ROOT, SCORE

LAMS = jnp.logspace(-3, 3, 25)


@pytest.mark.parametrize("name", WORLDS)
def test_capability_at_inverts_the_sweep(name):
    front = frontier.exact(WORLDS[name], LAMS)
    np.testing.assert_allclose(
        front.capability_at(front.safety_gap), front.capability_gap, rtol=ROOT.relative, atol=IDENTITY.absolute
    )


def test_no_safety_gap_allowed_leaves_what_only_the_safety_data_permit():
    front = frontier.exact(WORLDS["golden"], LAMS)
    np.testing.assert_allclose(front.capability_at(0.0), c1.gaps(WORLDS["golden"], jnp.inf).capability)
    assert front.capability_at(0.0) > front.capability_at(0.01) > 0


@pytest.mark.parametrize("name", WORLDS)
def test_a_bound_that_does_not_bind_costs_nothing(name):
    front = frontier.exact(WORLDS[name], [1.0])
    most = c1.gaps(front.world, 0.0).safety
    loose = jnp.array([jnp.inf]) if jnp.isinf(most) else jnp.array([2 * most + 1, jnp.inf])
    np.testing.assert_array_equal(front.capability_at(loose), 0)
    np.testing.assert_array_equal(jax.grad(lambda tau: front.capability_at(tau).sum())(loose), 0)


@pytest.mark.parametrize("name", ["golden", "random", "escaping", "over_penalised"])
def test_points_shifted_along_the_diagonal_are_at_their_shift(name):
    front = frontier.exact(WORLDS[name], LAMS)
    for shift in (0.0, 1e-6, 0.1, 5.0):
        points = to.Gaps(front.safety_gap + shift, front.capability_gap + shift)
        np.testing.assert_allclose(front.distance(points), shift, rtol=IDENTITY.relative, atol=IDENTITY.absolute)


@pytest.mark.parametrize("name", WORLDS)
def test_no_policy_is_below_the_frontier_or_the_limit(name):
    world = WORLDS[name]
    front = frontier.exact(world, LAMS)
    noise = (
        jax.random.normal(jax.random.key(0), (200, *world.safety.P.shape)) * jnp.linspace(0.0, 4.0, 200)[:, None, None]
    )
    base = jnp.maximum(c1.optimal_policy(world.with_exact_proxy(), 1.0), -20)
    policies = jax.nn.log_softmax(base[None] + noise, axis=-1)
    at = jax.vmap(lambda policy: to.gaps.both(world, policy))(policies)
    assert jnp.min(front.distance(at)) >= -IDENTITY.absolute
    assert jnp.all(frontier.lower_limit(world, at.safety) <= at.capability + IDENTITY.absolute)
    assert jnp.all(frontier.lower_limit(world, front.safety_gap) <= front.capability_gap + IDENTITY.absolute)


def test_distance_is_the_shift_to_the_curve_and_not_a_supremum_over_penalties():
    """The least t for which the shifted point is on the frontier is an infimum: a supremum would leave the quadrant."""
    front = frontier.exact(WORLDS["golden"], [1.0])
    G_s, G_f = 0.5, 0.3
    t = float(front.distance([G_s, G_f]))
    assert abs(float(front.capability_at(G_s - t)) - (G_f - t)) < ROOT.absolute
    lams = jnp.logspace(-6, 6, 4001)
    ratios = (G_f + lams * G_s - c1.value(WORLDS["golden"], lams)) / (1 + lams)
    assert t <= float(jnp.min(ratios)) + IDENTITY.absolute
    assert float(jnp.min(ratios)) - t < 1e-4 * t  # the grid comes close from above
    assert float(jnp.max(ratios)) > t


def test_an_impossible_point_has_a_negative_distance_and_infinite_gaps_have_a_meaning():
    front = frontier.exact(WORLDS["golden"], [1.0])
    assert front.distance([0.01, 0.01]) < 0
    assert front.distance([jnp.inf, 0.2]) == 0.2
    assert jnp.isinf(front.distance([jnp.inf, jnp.inf]))


def test_the_limit_is_attained_where_answers_never_agree():
    world = WORLDS["disjoint_responses"]
    front = frontier.exact(world, LAMS)
    np.testing.assert_allclose(
        frontier.lower_limit(world, front.safety_gap),
        front.capability_gap,
        rtol=IDENTITY.relative,
        atol=IDENTITY.absolute,
    )
    assert jnp.isinf(frontier.lower_limit(world, 0.0))
    assert frontier.lower_limit(WORLDS["disjoint_contexts"], 0.0) == 0


@pytest.mark.parametrize("count", [1, 2, 10, 1000])
def test_sets_of_points_agree_with_moocore(count):
    points = np.random.default_rng(count).random((count, 2))
    points[: count // 3] = np.round(points[: count // 3], 1)  # ties
    reference = np.array([0.9, 1.1])
    np.testing.assert_array_equal(frontier.nondominated(points), moocore.is_nondominated(points, keep_weakly=True))
    ours, theirs = float(frontier.hypervolume(points, reference)), moocore.hypervolume(points, ref=reference)
    assert abs(ours - theirs) <= EXACT.relative * max(theirs, 1)


def test_among_ties_only_the_least_of_each_is_kept():
    draw = np.random.default_rng(0)
    for points in draw.integers(0, 5, size=(200, 6, 2)).astype(float):
        below = np.all(points[:, None] <= points[None], axis=-1) & np.any(points[:, None] < points[None], axis=-1)
        np.testing.assert_array_equal(frontier.nondominated(points), ~below.any(axis=0))


def test_hypervolume_of_a_frontier_grows_with_its_grid():
    coarse, fine = (frontier.exact(WORLDS["golden"], jnp.logspace(-3, 3, n)).hypervolume([0.6, 0.5]) for n in (5, 50))
    assert coarse < fine < 0.6 * 0.5


@pytest.mark.parametrize("points", [3.0, [1.0, 2.0, 3.0], [[0.1, float("nan")]]])
def test_what_is_not_a_pair_is_refused(points):
    front = frontier.exact(WORLDS["golden"], [1.0])
    for function in (front.distance, frontier.nondominated, lambda p: frontier.hypervolume(p, [1.0, 1.0])):
        with pytest.raises(ValueError, match=r"points have shape .*\(safety gap, capability gap\) pairs"):
            function(points)


def test_negative_gaps_are_refused():
    front = frontier.exact(WORLDS["golden"], [1.0])
    for function in (front.capability_at, lambda tau: frontier.lower_limit(WORLDS["golden"], tau)):
        with pytest.raises(ValueError, match=r"safety_gap is -0\.1"):
            function(-0.1)


def test_a_certificate_says_how_far_points_are_from_both_bounds():
    world = WORLDS["golden"]
    points = to.Gaps(jnp.array([0.1, 2.0]), jnp.array([0.3, 0.5]))
    found = frontier.certify(world, points)
    np.testing.assert_array_equal(found.distance, frontier.exact(world, LAMS).distance(points))
    np.testing.assert_array_equal(found.above_limit, points.capability - frontier.lower_limit(world, points.safety))


@pytest.mark.parametrize(("below", "message"), [(1e-3, "point 1 of those .* lies 0.001 nats below the exact frontier")])
def test_a_point_where_no_model_can_be_is_called_a_bug(below, message):
    world, rounding = WORLDS["golden"], SCORE.absolute / 2
    best = c1.gaps(world, jnp.array([1.0, 2.0]))
    frontier.certify(world, to.Gaps(best.safety - rounding, best.capability - rounding))
    beyond = jnp.array([0.0, below])
    with pytest.raises(RuntimeError, match=message):
        frontier.certify(world, to.Gaps(best.safety - beyond, best.capability - beyond))


def test_a_point_below_the_limit_alone_is_called_a_bug(monkeypatch):
    monkeypatch.setattr(frontier, "_distance", lambda *_: jnp.float64(1.0))
    with pytest.raises(RuntimeError, match="the point measured .* below the fundamental limit"):
        frontier.certify(WORLDS["golden"], [0.0, 0.0])
