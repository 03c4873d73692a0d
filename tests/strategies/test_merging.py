"""Merges after training: exact ends, laws on quadratics, what a merge of policies is, and what is projected."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.strategies import toys
from tradeoff.dynamics import descend
from tradeoff.problems import Quadratic, Tabular, quadratic
from tradeoff.strategies import DARE, TASK, Merge, ModelStock, SafeLoRA, TaskArithmetic, merges
from tradeoff.tolerances import IDENTITY, LIMIT

QUAD = quadratic.golden()
DROP = 0.3


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def model(*shape, seed=0):
    return {"w": jnp.asarray(normal(*(shape or (4, 3)), seed=seed))}


def converged(strategy):
    """A run that has reached the task's optimum before it exports."""
    return descend(QUAD, strategy, learning_rate=0.4, steps=200, every=200)


def same(a, b, tolerance=IDENTITY):
    np.testing.assert_allclose(a, b, rtol=tolerance.relative, atol=tolerance.absolute)


def length(v):
    return float(jnp.sqrt(jnp.sum(v**2)))


# --- linear -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", [merges.linear, merges.slerp], ids=["linear", "slerp"])
def test_ends_are_the_models_themselves(merge):
    a, b = {"w": jnp.array([-0.0, 0.1, 3.0])}, {"w": jnp.array([1e300, -0.7, 0.3])}
    for weight, end in ((0.0, a), (1.0, b)):
        assert merge(weight, a, b)["w"].tobytes() == end["w"].tobytes()
        traced = jax.jit(merge)(weight, a, b)["w"]
        assert traced.tobytes() == end["w"].tobytes()
    assert not np.array_equal(merge(0.5, a, b)["w"], a["w"])


def test_a_linear_merge_does_not_mind_the_order_of_entries():
    a, b, order = model(seed=1), model(seed=2), np.array([2, 0, 3, 1])
    merged = merges.linear(0.3, a, b)["w"]
    permuted = merges.linear(0.3, {"w": a["w"][order]}, {"w": b["w"][order]})["w"]
    assert np.array_equal(permuted, merged[order])
    assert not np.array_equal(permuted, merged)


@pytest.mark.parametrize("share", [0.25, 0.6])
def test_a_merge_trades_root_for_root(share):
    run = converged(Merge(share))
    same(run.exported, QUAD.theta_s + share * QUAD.displacement)  # the filter 1 - λ
    whole = QUAD.gaps(QUAD.theta_f).safety, QUAD.gaps(QUAD.theta_s).capability
    roots = jnp.sqrt(run.gaps.safety[-1] / whole[0]) + jnp.sqrt(run.gaps.capability[-1] / whole[1])
    same(roots, 1.0)
    aside = QUAD.gaps(run.exported + jnp.array([0.1, 0.1]))
    assert abs(jnp.sqrt(aside.safety / whole[0]) + jnp.sqrt(aside.capability / whole[1]) - 1) > LIMIT.relative


def test_merging_weights_mixes_policies_geometrically():
    toy, aligned = toys.problem()
    tuned = aligned + normal(*aligned.shape)
    merged = merges.linear(0.4, {"w": aligned}, {"w": tuned})["w"]
    mixture = 0.6 * toy.log_policy(aligned) + 0.4 * toy.log_policy(tuned)
    same(toy.log_policy(merged), jax.nn.log_softmax(mixture))
    arithmetic = jnp.log(0.6 * jnp.exp(toy.log_policy(aligned)) + 0.4 * jnp.exp(toy.log_policy(tuned)))
    assert not np.allclose(toy.log_policy(merged), arithmetic)


def test_scaling_one_factor_of_an_adapter_is_a_merge_and_merging_both_is_not():
    W, B, A, share = normal(4, 4), normal(4, 2, seed=1), normal(2, 4, seed=2), 0.5
    merged = merges.linear(share, {"w": jnp.asarray(W)}, {"w": jnp.asarray(W + B @ A)})["w"]
    same(merged, W + (share * B) @ A)
    assert not np.allclose(merged, W + (share * B) @ (share * A))


def test_models_of_different_shapes_are_refused_by_name():
    with pytest.raises(ValueError, match=r"w has shape \(3, 4\) in one model and \(4, 3\) in another"):
        merges.linear(1.0, model(), model(3, 4))
    with pytest.raises(ValueError, match="two models have different weights: v is in one only"):
        merges.slerp(0.0, model(), model() | {"v": jnp.zeros(2)})
    with pytest.raises(ValueError, match=r"parameters has shape \(2,\) in one model and \(3,\) in another"):
        converged(ModelStock(({"parameters": jnp.zeros(3)},)))


# --- spherical ----------------------------------------------------------------------------------------------------


def circle(angle, size=1.0):
    return {"w": size * jnp.array([np.cos(angle), np.sin(angle), 0.0])}


def test_a_spherical_merge_goes_along_the_circle():
    merged = merges.slerp(0.3, circle(0.2, 2.0), circle(1.7, 2.0))["w"]
    same(merged, circle(0.2 + 0.3 * 1.5, 2.0)["w"])
    same(length(merged), 2.0)
    assert length(merges.linear(0.3, circle(0.2, 2.0), circle(1.7, 2.0))["w"]) < 1.9


def test_at_small_angles_the_merges_differ_by_the_square_of_the_angle():
    share, size = 0.3, 2.0
    for angle in (1e-2, 1e-3):
        a, b = circle(0.5, size), circle(0.5 + angle, size)
        apart = length(merges.slerp(share, a, b)["w"] - merges.linear(share, a, b)["w"])
        same(apart / angle**2, share * (1 - share) * size / 2, LIMIT)


def test_where_there_is_no_angle_the_merge_is_linear():
    a = circle(0.4, 2.0)
    for b in (circle(0.4, 5.0), {"w": jnp.zeros(3)}, {"w": -a["w"]}):
        same(merges.slerp(0.3, a, b)["w"], merges.linear(0.3, a, b)["w"])
    same(length(merges.slerp(0.3, a, {"w": -a["w"]})["w"]), abs(1 - 2 * 0.3) * 2.0)
    assert np.array_equal(merges.slerp(0.3, {"w": jnp.zeros(3)}, {"w": jnp.zeros(3)})["w"], np.zeros(3))


# --- dropping at random -------------------------------------------------------------------------------------------


def test_dropping_at_random_is_right_on_average_and_costs_what_the_law_says():
    """Every mask of a vector of three entries, with its chance."""
    H = jnp.array([[2.0, 0.5, -0.3], [0.5, 1.0, 0.2], [-0.3, 0.2, 3.0]])
    quad, weight = Quadratic(H, jnp.array([1.0, -1.0, 0.5]), jnp.eye(3), jnp.zeros(3)), 0.6
    d, p = quad.displacement, DROP
    kept = np.array(list(product([False, True], repeat=3)))
    chance = np.prod(np.where(kept, 1 - p, p), axis=-1)
    drawn = merges.dare({"d": jnp.tile(d, (8, 1))}, p, {"d": jnp.where(kept, p, 0.5 * p)})["d"]
    same(chance @ drawn, d)

    losses = jax.vmap(lambda v: quad.gaps(quad.theta_s + weight * v).capability)(drawn)
    linear = quad.gaps(quad.theta_s + weight * d).capability
    noise = weight**2 * p / (1 - p) * jnp.sum(jnp.diagonal(H) * d**2) / 2
    same(chance @ losses, linear + noise)
    assert noise > LIMIT.relative
    unscaled = chance @ jnp.where(kept, d, 0.0)
    assert not np.allclose(unscaled, d)


def test_entries_are_dropped_with_their_probability_and_alike_each_time():
    engine = toys.jax_engine()
    start = {name: jnp.zeros((200, 50)) for name in ("a", "b")}
    tuned = {name: jnp.ones((200, 50)) for name in start}
    engine = type(engine)(engine.problem, start, engine.key, 1)
    exported = DARE(DROP, 1.0).export({}, tuned, engine)
    share = np.mean(np.asarray(exported["a"]) == 0)
    assert abs(share - DROP) < 4 * np.sqrt(DROP * (1 - DROP) / 10_000)
    assert np.array_equal(exported["a"], DARE(DROP, 1.0).export({}, tuned, engine)["a"])
    assert not np.array_equal(exported["a"], exported["b"])  # arrays are drawn apart
    other = type(engine)(engine.problem, start, jax.random.key(9), 1)
    assert not np.array_equal(exported["a"], DARE(DROP, 1.0).export({}, tuned, other)["a"])


def test_nothing_dropped_is_the_linear_merge():
    vector = model(seed=3)
    uniforms = {"w": jnp.full((4, 3), 1e-9)}
    assert np.array_equal(merges.dare(vector, 0.0, uniforms)["w"], vector["w"])
    assert np.array_equal(converged(DARE(0.0, 0.7)).exported, converged(Merge(0.7)).exported)


# --- several models -----------------------------------------------------------------------------------------------


def test_model_stock_is_the_point_nearest_to_the_centre():
    """Models and start around 0, at right angles to each other: the published geometry, solved by least squares."""
    number, start = 3, np.array([0, 0, 0, 0.7, -0.4])
    models = [np.eye(5)[i] for i in range(number)]
    plane = np.stack([m - start for m in models], axis=1)
    nearest = start - plane @ np.linalg.lstsq(plane, start, rcond=None)[0]
    found = merges.model_stock({"w": jnp.asarray(start)}, tuple({"w": jnp.asarray(m)} for m in models))["w"]
    same(found, nearest)
    assert length(jnp.mean(jnp.asarray(models), axis=0)) > length(found)  # the plain mean is farther


def test_model_stock_between_agreement_and_none():
    start, w = model(seed=1), model(seed=2)
    same(merges.model_stock(start, (w, w))["w"], w["w"])  # they agree: their mean
    up, right = {"w": jnp.array([0.0, 3.0])}, {"w": jnp.array([2.0, 0.0])}
    zero = {"w": jnp.zeros(2)}
    assert np.array_equal(merges.model_stock(zero, (up, right))["w"], zero["w"])  # at right angles: the start
    assert np.array_equal(merges.model_stock(zero, (up, {"w": -up["w"]}))["w"], zero["w"])
    per_array = merges.model_stock(
        {"a": jnp.zeros(2), "b": zero["w"]}, ({"a": up["w"], "b": up["w"]}, {"a": up["w"], "b": right["w"]})
    )
    assert np.array_equal(per_array["a"], up["w"])
    assert np.array_equal(per_array["b"], zero["w"])


# --- along the safety vector --------------------------------------------------------------------------------------


def test_the_safety_vector_is_added_and_taken_back():
    engine, unaligned, tuned = toys.jax_engine(), model(4, 4, seed=4)["w"], model(4, 4, seed=5)["w"]
    start, name = engine.start[toys.WHOLE], toys.WHOLE

    def moved(weights, scale, source=unaligned, drop=0.0):
        return TaskArithmetic({name: source}, scale, drop).export({}, {name: weights}, engine)[name]

    there = moved(tuned, 0.7)
    same(there, tuned + 0.7 * (start - unaligned))
    same(moved(there, -0.7), tuned)
    assert np.array_equal(moved(tuned, 0.0), tuned)
    assert np.array_equal(moved(tuned, 0.7, source=start), tuned)  # an unaligned model that is the aligned one
    thinned = (moved(tuned, 1.0, drop=0.5) - tuned) / (start - unaligned)
    assert set(np.round(thinned, 9).ravel().tolist()) == {0.0, 2.0}
    same(moved(moved(tuned, 1.0, drop=0.5), -1.0, drop=0.5), tuned)  # one mask for a run


# --- Safe LoRA ----------------------------------------------------------------------------------------------------


def projected(V, update, threshold=1.0, outputs=0):
    start = jnp.zeros(update.shape)
    found = merges.safe_lora({"w": start - V}, {"w": start}, {"w": start + update}, threshold, outputs=outputs)
    return np.asarray(found["w"])


def test_a_projected_update_is_scaled_as_stated():
    u, s, vt = np.linalg.svd(normal(4, 3), full_matrices=False)
    update = jnp.asarray(normal(4, 3, seed=1))
    first = np.outer(u[:, 0], u[:, 0])
    rank_one = jnp.asarray(s[0] * np.outer(u[:, 0], vt[0]))
    same(projected(rank_one, update), s[0] * first @ update)
    twice = projected(rank_one, jnp.asarray(projected(rank_one, update)))
    same(twice, s[0] * projected(rank_one, update))  # C² = ‖V‖ C

    full = jnp.asarray((u * s) @ vt)
    rescaled = (u * s**2 / np.linalg.norm(s)) @ u.T
    same(projected(full, update), rescaled @ update)
    again = projected(full, jnp.asarray(projected(full, update)))
    assert not np.allclose(again, np.linalg.norm(s) * projected(full, update))
    same(projected(full.T, update.T, outputs=1), projected(full, update).T)


def test_what_is_orthogonal_goes_and_what_lies_inside_stays():
    u, _, vt = np.linalg.svd(normal(4, 4))
    V = jnp.asarray(3 * np.outer(u[:, 0], vt[0]))
    outside, inside = jnp.asarray(np.outer(u[:, 1], vt[2])), jnp.asarray(np.outer(u[:, 0], vt[3]))
    same(projected(V, outside), np.zeros((4, 4)))
    same(projected(V, outside, threshold=0.0), np.zeros((4, 4)))
    assert np.array_equal(projected(V, inside, threshold=0.999), inside)  # its cosine is 1
    assert np.array_equal(projected(V, jnp.zeros((4, 4))), np.zeros((4, 4)))
    assert np.array_equal(projected(0 * V, inside), np.zeros((4, 4)))  # no direction of alignment: none is kept


def test_a_threshold_below_every_cosine_changes_nothing():
    start, tuned = model(4, 4, seed=6), model(4, 4, seed=7)
    assert np.array_equal(merges.safe_lora(model(4, 4), start, tuned, -1.0)["w"], tuned["w"])
    assert not np.array_equal(merges.safe_lora(model(4, 4), start, tuned, 1.0)["w"], tuned["w"])


def test_a_number_of_layers_are_those_of_the_smallest_cosines_and_their_ties():
    V = jnp.array([[2.0, 0.0], [0.0, 0.0]])
    updates = {"far": [[0.1, 0], [1, 0]], "near": [[1.0, 0], [0.1, 0]], "far too": [[0.0, 0.1], [0, 1]]}
    tuned = {name: jnp.array(update) for name, update in updates.items()} | {"bias": jnp.ones(2)}
    start = {name: jnp.zeros_like(a) for name, a in tuned.items()}
    base = {name: start[name] - V for name in updates}

    def changed(**options):
        found = merges.safe_lora(base, start, tuned, **options)
        return {name for name in tuned if not np.array_equal(found[name], tuned[name])}

    assert changed(layers=1) == {"far", "far too"}
    assert changed(layers=3) == changed(layers=10) == {"far", "far too", "near"}
    assert changed(threshold=0.5) == {"far", "far too"}
    only = merges.safe_lora({"near": base["near"]}, start, tuned, 1.0)
    assert np.array_equal(only["far"], tuned["far"])  # a layer that `base` does not name


def test_on_a_quadratic_the_update_is_projected_on_the_span_of_the_alignment():
    theta, V = QUAD.theta_f[:, None], jnp.array([[2.0], [1.0]])
    found = projected(V, theta - QUAD.theta_s[:, None])
    same(found, float(jnp.sum(V * theta)) / length(V) * V)


def test_contexts_that_the_task_leaves_alone_stay_alone_unless_contexts_are_projected():
    """The null test of a table: C on the responses keeps an update of no context 0, C on the contexts does not."""
    world = toys.problem()[0].world
    table = Tabular(world)
    start = jnp.log(world.safety.P)
    base = {"parameters": start - normal(*start.shape)}
    unseen = np.asarray(world.capability.p) == 0

    def run(outputs):
        strategy = SafeLoRA(base, 1.0, outputs=outputs)
        options = {"learning_rate": 1.0, "steps": 5, "every": 5, "loss": TASK, "start": start}
        return np.asarray(descend(table, strategy, **options).exported - start)

    assert np.all(run(1)[unseen] == 0)
    assert np.any(run(0)[unseen] != 0)
    assert np.any(run(1)[~unseen] != 0)


# --- settings and engines -----------------------------------------------------------------------------------------


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"DARE was given drop=1.0; the probability p .* must be in \[0, 1\)"):
        DARE(drop=1.0)
    with pytest.raises(ValueError, match="TaskArithmetic was given drop=1"):
        TaskArithmetic({}, drop=1)
    with pytest.raises(ValueError, match="TaskArithmetic was given scale=nan"):
        TaskArithmetic({}, float("nan"))
    with pytest.raises(ValueError, match="Merge was given weight=1.5"):
        Merge(1.5)
    with pytest.raises(ValueError, match="Merge was given way='ties'"):
        Merge(way="ties")
    with pytest.raises(ValueError, match="ModelStock was given no others"):
        ModelStock(())
    with pytest.raises(ValueError, match="at least two"):
        merges.model_stock(model(), (model(),))
    with pytest.raises(ValueError, match="SafeLoRA was given threshold=2.0"):
        SafeLoRA({}, 2.0)
    with pytest.raises(ValueError, match="SafeLoRA was given layers=0"):
        SafeLoRA({}, layers=0)
    with pytest.raises(ValueError, match="SafeLoRA was given outputs=2"):
        SafeLoRA({}, outputs=2)
    with pytest.raises(ValueError, match="names v, which the model has not"):
        merges.safe_lora({"v": jnp.zeros((2, 2))}, model(), model())
    with pytest.raises(ValueError, match="has no matrix among them"):
        merges.safe_lora({"w": jnp.zeros(2)}, {"w": jnp.zeros(2)}, {"w": jnp.zeros(2)})


def test_torch_merges_in_its_own_precision():
    a, b = (torch.randn(3, 3, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    for merge in (merges.linear, merges.slerp):
        merged = merge(0.3, {"w": a}, {"w": b})["w"]
        assert merged.dtype == torch.float32
        twice = merge(0.3, {"w": a.double()}, {"w": b.double()})["w"]
        assert torch.allclose(merged.double(), twice, rtol=LIMIT.relative)
    assert merges.safe_lora({"w": 0 * a}, {"w": a}, {"w": b}, layers=1)["w"].dtype == torch.float32
    assert merges.model_stock({"w": 0 * a}, ({"w": a}, {"w": b}))["w"].dtype == torch.float32
