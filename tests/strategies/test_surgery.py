"""SafeGrad, A-GEM, OGPSA and SPAG against what their projections promise, and where the promise ends."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.strategies import toys
from tests.strategies.given import Given
from tradeoff.dynamics import descend
from tradeoff.dynamics.engine import WHOLE, JaxEngine
from tradeoff.problems import Quadratic, quadratic
from tradeoff.strategies import AGEM, HARMFUL, OGPSA, SAFETY, SPAG, TASK, Plain, SafeGrad
from tradeoff.tolerances import BOUND, EXACT, IDENTITY

DRAWS, SIZE = 300, 4


def engine_of(quad, rate=1.0):
    return JaxEngine(quad, quad.theta_s, toys.KEY, 1, rate)


def ruled(strategy, engine, weights, step=0):
    """The gradient that a strategy would descend in place of the task's."""
    state = strategy.refresh(strategy.init(weights, engine), weights, step, engine)
    return strategy.gradient(lambda at: engine.gradient(TASK, at), state, weights, step, engine)


def drawn():
    """Pairs of quadratics, points and positive diagonals."""
    rng = np.random.default_rng(0)
    m = rng.normal(size=(DRAWS, 2, SIZE, SIZE))
    return m @ np.swapaxes(m, -1, -2), rng.normal(size=(DRAWS, 3, SIZE)), np.exp(rng.normal(size=(DRAWS, SIZE)))


@pytest.fixture(scope="module")
def cases():
    """Gradients and safety losses around SafeGrad's and a plain step, over random pairs."""

    @jax.jit
    @jax.vmap
    def case(hessians, points, D):
        quad, w = Quadratic(hessians[0], points[0], hessians[1], points[1]), points[2]
        engine, at = engine_of(quad), {WHOLE: w}
        rules = {
            "plain": Plain(),
            "projected": SafeGrad(rho=0.0),
            "safegrad": SafeGrad(),
            "in metric": SafeGrad(rho=0.0, metric={WHOLE: D}),
        }
        steps = {name: ruled(rule, engine, at)[WHOLE] for name, rule in rules.items()}
        h = 0.1 / jnp.trace(quad.H_s)
        after = {name: engine.value(SAFETY, {WHOLE: w - h * g}) for name, g in steps.items()}
        guard = engine.gradient(SAFETY, at)[WHOLE]
        return steps, after, guard, engine.value(SAFETY, at), h

    hessians, points, D = drawn()
    curved = np.linalg.eigvalsh(hessians[:, 1])[:, -1]
    return *jax.tree.map(np.asarray, case(hessians, points, D)), curved, D


def inner(a, b):
    return np.sum(a * b, axis=-1)


def size(a):
    return np.sqrt(inner(a, a))


def test_without_conflict_the_gradient_is_left_and_with_it_projected(cases):
    steps, _, guard, *_ = cases
    against = inner(steps["plain"], guard) < 0
    assert 20 < against.sum() < DRAWS - 20
    np.testing.assert_array_equal(steps["projected"][~against], steps["plain"][~against])
    left = np.abs(inner(steps["projected"], guard))[against] / (size(steps["plain"]) * size(guard))[against]
    assert np.all(left <= IDENTITY.relative)
    np.testing.assert_allclose(steps["safegrad"], steps["projected"] + guard, rtol=IDENTITY.relative)


def test_a_step_raises_the_alignment_loss_by_its_curvature_at_most(cases):
    steps, after, guard, before, h, curved, _ = cases
    for name, rho in (("projected", 0.0), ("safegrad", 1.0)):
        bend = h**2 * curved * inner(steps[name], steps[name]) / 2
        allowed = before - h * rho * inner(guard, guard) + bend
        assert np.all(after[name] <= allowed * (1 + BOUND.relative))
    bend = h**2 * curved * inner(steps["plain"], steps["plain"]) / 2
    assert np.any(after["plain"] > before + bend)


def test_a_fixed_metric_needs_the_surgery_in_it(cases):
    """In the metric no step raises the alignment loss to first order; rescaled afterwards, many do."""
    steps, _, guard, _, _, _, D = cases
    unit = size(steps["plain"]) * size(guard) * D.max(axis=-1)
    assert np.all(inner(steps["in metric"], guard) >= -IDENTITY.relative * unit)
    afterwards = inner(D * steps["projected"], guard)
    assert np.any(afterwards < -IDENTITY.relative * unit)
    against = inner(steps["plain"], D * guard) < 0
    assert np.all(np.abs(inner(steps["in metric"], guard))[against] <= (IDENTITY.relative * unit)[against])
    np.testing.assert_allclose(
        steps["in metric"][~against], (D * steps["plain"])[~against], rtol=EXACT.relative, atol=IDENTITY.absolute
    )


def test_at_the_aligned_weights_the_first_step_is_free():
    quad = quadratic.golden()
    engine = engine_of(quad)
    np.testing.assert_array_equal(ruled(SafeGrad(), engine, engine.start)[WHOLE], -quad.pull)


def leakage(strategy, quad, h, steps):
    """The largest safety gap on the way."""
    engine = engine_of(quad)

    def step(_, at):
        w, most = at
        w = w - h * ruled(strategy, engine, {WHOLE: w})[WHOLE]
        return w, jnp.maximum(most, quad.gaps(w).safety)

    return jax.lax.fori_loop(0, steps, step, (quad.theta_s, jnp.zeros(())))[1]


@pytest.mark.parametrize(("strategy", "slope", "within"), [(SafeGrad(), 2.0, 0.2), (Plain(), 0.0, 0.01)])
def test_at_fixed_training_time_leakage_goes_with_the_squared_learning_rate(strategy, slope, within):
    """Full batches, a safety Hessian of rank 3 and condition 10 on its range, learning rates far below its scale."""
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    m = rng.normal(size=(6, 6))
    B = turn[:, :3] * np.array([1.0, 3.0, 10.0]) @ turn[:, :3].T
    quad = Quadratic(m @ m.T / 6, rng.normal(size=6), (B + B.T) / 2, np.zeros(6))
    steps = np.array([2000, 4000, 8000, 16000])
    leak = jax.jit(partial(leakage, strategy))
    most = [leak(quad, 4.0 / n, n) for n in steps]
    slopes = np.diff(np.log(most)) / np.diff(np.log(1 / steps))
    np.testing.assert_allclose(slopes, slope, rtol=0, atol=within)


def test_adam_after_the_surgery_raises_the_loss_that_it_guards():
    """A counterexample: the surgery is exact, and the first step of Adam, its signs, climbs at unit rate."""
    start, h = jnp.array([1.0, 2.0]), 1e-3
    quad = Quadratic(np.eye(2), [0.0, 5.0], np.eye(2), [0.0, 0.0])
    run = partial(descend, quad, start=start, steps=1)
    with jax.numpy_dtype_promotion("standard"):  # Adam's own arithmetic
        runs = [run(SafeGrad(rho=0.0), optimiser=optax.adam(h, eps=0.0)), run(SafeGrad(rho=0.0), learning_rate=h)]
    rises = [float(jnp.diff(one.gaps.safety)[0]) for one in runs]
    np.testing.assert_allclose(rises, [h + h**2, 2.5 * h**2], rtol=IDENTITY.relative, atol=IDENTITY.absolute)
    with pytest.raises(ValueError, match="rescales the gradient after the surgery; give plain descent"):
        run(SafeGrad(metric={WHOLE: jnp.ones(2)}), optimiser=optax.adam(h))


def test_a_gem_is_safegrad_without_rho_where_the_start_is_the_safety_law():
    toy, aligned = toys.problem()
    at = {WHOLE: aligned + 0.3 * jax.random.normal(toys.KEY, aligned.shape)}
    engines = [JaxEngine(toy, start, toys.KEY, 1, 1.0) for start in (aligned, jnp.zeros_like(aligned))]
    for engine in engines:
        task, guard = engine.gradient(TASK, at)[WHOLE], engine.gradient(SAFETY, at)[WHOLE]
        assert jnp.sum(task * guard) < 0
        ours = ruled(AGEM(), engine, at)[WHOLE]
        by_hand = task - jnp.sum(task * guard) / jnp.sum(guard**2) * guard
        np.testing.assert_allclose(ours, by_hand, rtol=IDENTITY.relative, atol=IDENTITY.absolute)
    same, other = (ruled(SafeGrad(rho=0.0), engine, at)[WHOLE] for engine in engines)
    np.testing.assert_allclose(same, ours, rtol=IDENTITY.relative, atol=IDENTITY.absolute)
    assert np.max(np.abs(other - ours)) > 1e-3


# --- OGPSA ------------------------------------------------------------------------------------------------------


def two_tensors(seed=2):
    """Linear losses of two tensors: the gradients are what was drawn."""
    rng = np.random.default_rng(seed)
    slopes = {law: {"a": rng.normal(size=(3, 2)), "b": rng.normal(size=4)} for law in ("task", "safety", "harmful")}
    at = {name: jnp.asarray(rng.normal(size=np.shape(array))) for name, array in slopes["task"].items()}
    return Given({law: partial(linear, slope) for law, slope in slopes.items()}, at), at, slopes


def linear(slope, weights):
    return sum(jnp.sum(slope[name] * array) for name, array in weights.items())


def guarded(strategy, engine, weights):
    """What is left of the safety gradient."""
    state = strategy.refresh(strategy.init(weights, engine), weights, 0, engine)
    once = strategy.gradient(lambda at: engine.gradient(SAFETY, at), state, weights, 0, engine)
    twice = strategy.gradient(lambda _: once, state, weights, 0, engine)
    return once, twice


@pytest.mark.parametrize("reading", ["global", "tensor"])
def test_what_is_left_is_orthogonal_to_what_is_protected_and_stays_when_projected_again(reading):
    engine, at, slopes = two_tensors()
    once, twice = guarded(OGPSA((TASK, HARMFUL), reading), engine, at)
    for law in ("task", "harmful"):
        parts = [float(jnp.sum(once[name] * slopes[law][name])) for name in at]
        np.testing.assert_allclose(sum(parts), 0, atol=IDENTITY.relative)
        assert (np.max(np.abs(parts)) < IDENTITY.relative) == (reading == "tensor")
    for name in at:
        np.testing.assert_allclose(twice[name], once[name], rtol=0, atol=IDENTITY.relative)
    # The nearest such gradient: what went is a combination of what is protected.
    if reading == "global":
        flat = [np.concatenate([np.ravel(one[name]) for name in at]) for one in (slopes["task"], slopes["harmful"])]
        gone = np.concatenate([np.ravel(slopes["safety"][name] - once[name]) for name in at])
        fitted = np.linalg.lstsq(np.stack(flat, axis=1), gone, rcond=None)[0]
        np.testing.assert_allclose(np.stack(flat, axis=1) @ fitted, gone, atol=IDENTITY.relative)


def test_on_conflict_only_tensors_that_disagree_are_touched():
    engine, at, slopes = two_tensors()
    slopes["safety"]["a"] *= np.sign(np.sum(slopes["safety"]["a"] * slopes["task"]["a"]))
    slopes["safety"]["b"] *= -np.sign(np.sum(slopes["safety"]["b"] * slopes["task"]["b"]))
    once, _ = guarded(OGPSA(reading="tensor on conflict"), engine, at)
    np.testing.assert_array_equal(once["a"], slopes["safety"]["a"])
    np.testing.assert_allclose(jnp.sum(once["b"] * slopes["task"]["b"]), 0, atol=IDENTITY.relative)


def test_protecting_a_loss_twice_or_one_that_is_flat_changes_nothing():
    engine, at, slopes = two_tensors()
    one, _ = guarded(OGPSA((TASK,)), engine, at)
    slopes["harmful"] |= {name: 0 * array for name, array in slopes["harmful"].items()}
    for protected in ((TASK, TASK), (TASK, HARMFUL)):
        other, _ = guarded(OGPSA(protected), engine, at)
        for name in at:
            np.testing.assert_allclose(other[name], one[name], rtol=0, atol=IDENTITY.relative)


def test_the_protected_loss_is_constant_to_first_order_while_the_subspace_is_fresh():
    quad, h = quadratic.golden(), 1e-3
    engine, rule = engine_of(quad), OGPSA(every=2)
    first, later = {WHOLE: jnp.array([0.5, 0.7])}, {WHOLE: jnp.array([-0.2, 0.4])}
    fresh = rule.refresh(rule.init(first, engine), first, 0, engine)
    stale = rule.refresh(fresh, later, 1, engine)
    anew = rule.refresh(stale, later, 2, engine)

    def change(state, at):
        g = rule.gradient(lambda w: engine.gradient(SAFETY, w), state, at, 0, engine)[WHOLE]
        rise = engine.value(TASK, {WHOLE: at[WHOLE] - h * g}) - engine.value(TASK, at)
        return float(rise), float(h**2 * g @ quad.H_f @ g / 2)

    for state, at in ((fresh, first), (anew, later)):
        rise, second_order = change(state, at)
        np.testing.assert_allclose(rise, second_order, rtol=0, atol=EXACT.relative)
    rise, second_order = change(stale, later)
    assert abs(rise - second_order) > 0.05 * h
    assert abs(change({"basis": ()}, later)[0]) > 0.05 * h


# --- SPAG -------------------------------------------------------------------------------------------------------


def landed(strategy, engine, moved):
    return strategy.land({}, engine.start, moved, 0, engine)[0]


def test_an_affine_constraint_holds_after_one_projection_and_a_feasible_point_is_left():
    engine, at, _ = two_tensors()
    safety = float(engine.value(SAFETY, at))
    at = at if safety > 0 else {name: -array for name, array in at.items()}
    limit = abs(safety) / 3
    down = landed(SPAG(limit), engine, at)
    np.testing.assert_allclose(engine.value(SAFETY, down), limit, rtol=IDENTITY.relative)
    assert engine.value(SAFETY, landed(SPAG(limit, cap=1e-3), engine, at)) > limit
    for name, array in landed(SPAG(3 * limit + 1), engine, at).items():
        np.testing.assert_array_equal(array, at[name])


def test_a_projection_falls_short_of_a_convex_constraint_and_repeats_towards_it():
    quad = quadratic.golden()
    engine, at = engine_of(quad), {WHOLE: jnp.array([1.0, 1.0])}
    values = [float(engine.value(SAFETY, at))]
    for _ in range(3):
        at = landed(SPAG(0.2), engine, at)
        values.append(float(engine.value(SAFETY, at)))
    assert np.all(np.diff(values) < 0)
    assert values[-1] > 0.2


def test_a_flat_constraint_out_of_reach_makes_no_nan():
    at = {"w": jnp.ones(2)}
    engine = Given({"safety": lambda weights: 1.0 + 0 * jnp.sum(weights["w"])}, at)
    np.testing.assert_array_equal(landed(SPAG(0.5), engine, at)["w"], at["w"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SafeGrad(rho=-1.0), "rho=-1.0"),
        (lambda: SafeGrad(metric={"w": jnp.array([1.0, 0.0])}), "not positive in w"),
        (lambda: OGPSA(reading="layer"), "'global', 'tensor' or 'tensor on conflict'"),
        (lambda: OGPSA((TASK, HARMFUL), "tensor on conflict"), "2 protected losses"),
        (lambda: OGPSA(every=0), "every=0"),
        (lambda: SPAG(0.0), "limit=0.0"),
        (lambda: SPAG(0.1, cap=0.0), "cap=0.0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
