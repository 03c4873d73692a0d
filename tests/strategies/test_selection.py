"""Selection: the flow of the selector in closed form, and what it finds in a world with harmful rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.strategies import toys
from tradeoff import DataLaw, World
from tradeoff.dynamics import descend
from tradeoff.problems import Tabular
from tradeoff.strategies import SEAL
from tradeoff.strategies.selection import importance, selector_gradient
from tradeoff.tolerances import IDENTITY, RATE

RNG = np.random.default_rng(0)
N = 5
UNIFORM = jnp.full(N, 1 / N)
OMEGA, LOSSES = jnp.asarray(RNG.normal(size=N)), jnp.asarray(RNG.uniform(0, 3, N))


def flow(omega, losses):
    """Normalised p and its velocity while ω descends, exact."""
    return jax.jvp(jax.nn.softmax, (omega,), (-selector_gradient(omega, UNIFORM, losses),))


def test_rows_weigh_one_on_average():
    np.testing.assert_allclose(importance(OMEGA, UNIFORM), N * jax.nn.softmax(OMEGA), rtol=IDENTITY.relative)
    p = jnp.array([0.5, 0.2, 0.2, 0.1, 0.0])
    assert jnp.sum(p * importance(OMEGA, p)) == pytest.approx(1, rel=IDENTITY.relative)


def test_its_gradient_is_that_of_the_weighted_loss():
    p = jnp.array([0.5, 0.2, 0.2, 0.1, 0.0])
    slope = jax.grad(lambda omega: jnp.sum(p * importance(omega, p) * LOSSES))(OMEGA)
    np.testing.assert_allclose(selector_gradient(OMEGA, p, LOSSES), slope, rtol=0, atol=IDENTITY.absolute)


def test_equal_losses_leave_the_selector_where_it_is():
    np.testing.assert_allclose(selector_gradient(OMEGA, UNIFORM, jnp.full(N, 1.7)), 0, atol=IDENTITY.absolute)
    assert jnp.max(jnp.abs(selector_gradient(OMEGA, UNIFORM, LOSSES))) > 0.01


def test_the_flow_of_the_weights_is_a_softmax_gradient_flow_and_not_a_replicator():
    p, velocity = flow(OMEGA, LOSSES)
    away = LOSSES - jnp.sum(p * LOSSES)
    np.testing.assert_allclose(velocity, p * (-p * away + jnp.sum(p**2 * away)), rtol=0, atol=IDENTITY.absolute)
    unweighted = LOSSES - jnp.mean(LOSSES)
    assert jnp.max(jnp.abs(velocity - p * (-p * unweighted + jnp.sum(p**2 * unweighted)))) > 1e-3
    assert jnp.max(jnp.abs(velocity + p * away)) > 1e-3  # the replicator


def test_a_bad_row_decays_like_one_over_time_and_not_exponentially():
    """Two rows, losses 1 and 0: p' = -2 p²(1-p)², so p tends to 1/(2t)."""
    omega, half, rate = np.zeros(2), np.array([0.5, 0.5]), 5.0
    at = {}
    for step in range(1, 4001):
        omega = omega - rate * selector_gradient(omega, half, np.array([1.0, 0.0]))
        at[step] = half[0] * importance(omega, half)[0]
    assert at[4000] / at[2000] == pytest.approx(0.5, rel=RATE.relative)
    assert at[4000] * 2 * 4000 * rate == pytest.approx(1, rel=RATE.relative)


def conflicting(answers):
    """Four contexts, of which the safety data say response 0 in all; the task's answers by context."""
    P_s = np.full((4, 3), 0.05) + 0.85 * np.eye(3)[0]
    P_f = np.full((4, 3), 0.05) + 0.85 * np.eye(3)[answers]
    p = np.full(4, 0.25)
    return World(DataLaw(p, P_s), DataLaw(p, P_f))


def selector(world, **options):
    run = descend(Tabular(world), SEAL(rate=1.0, **options), learning_rate=1.0, steps=60, every=60)
    return np.asarray(run.last.state["selector"])


def test_rows_that_conflict_with_the_safety_data_sink_and_are_left_out():
    world = conflicting([0, 1, 0, 0])
    omega = selector(world)
    assert omega[1] < np.min(omega[[0, 2, 3]]) - 0.1
    chosen = SEAL(share=0.75).select(world, omega)
    np.testing.assert_allclose(chosen.capability.p, [1 / 3, 0, 1 / 3, 1 / 3], rtol=IDENTITY.relative)
    np.testing.assert_array_equal(chosen.capability.P, world.capability.P)
    np.testing.assert_array_equal(chosen.safety.p, world.safety.p)


def test_without_conflict_no_row_sinks():
    np.testing.assert_allclose(selector(conflicting([0, 0, 0, 0])), 0, atol=IDENTITY.absolute)


def test_the_safety_data_weigh_less_each_epoch():
    strategy, engine = SEAL(), toys.jax_engine(steps=12)
    weights = [float(strategy._weight(jnp.asarray(step), engine)) for step in range(12)]
    np.testing.assert_allclose(weights, np.repeat([1, 0.97, 0.94], 4), rtol=IDENTITY.relative)


def test_the_gradient_is_that_of_the_joint_loss_at_the_selectors_weights():
    engine = toys.jax_engine(steps=12)
    data, omega = engine.data, jnp.asarray(RNG.normal(size=toys.CONTEXTS))
    weights = {toys.WHOLE: engine.start[toys.WHOLE] * 0.3}
    got = SEAL(safety=0.5).gradient(lambda at: at, {"selector": omega}, weights, jnp.asarray(0), engine)

    def joint(theta):
        log_p = engine.log_policy({toys.WHOLE: theta})
        mass = jnp.sum(data.task, axis=-1)
        rows = importance(omega, mass)[:, None] * data.task
        return -jnp.sum((0.5 * data.safety + 0.5 * rows) * log_p)

    np.testing.assert_allclose(got[toys.WHOLE], jax.grad(joint)(weights[toys.WHOLE]), atol=IDENTITY.absolute)


def test_the_selector_goes_by_the_losses_before_the_step():
    engine = toys.jax_engine()
    zero = SEAL().init(engine.start, engine)
    moved = {toys.WHOLE: 0 * engine.start[toys.WHOLE]}
    _, at_start = SEAL().land(zero, engine.start, moved, jnp.asarray(0), engine)
    _, at_moved = SEAL().land(zero, moved, engine.start, jnp.asarray(0), engine)
    mass = jnp.sum(engine.data.task, axis=-1)
    log_p = engine.log_policy(engine.start)
    losses = jnp.where(mass > 0, -jnp.sum(engine.data.task * log_p, axis=-1) / jnp.where(mass > 0, mass, 1), 0)
    step = -5e-3 * mass * (losses - jnp.sum(mass * losses))
    np.testing.assert_allclose(at_start["selector"], step, rtol=0, atol=IDENTITY.absolute)
    assert jnp.max(jnp.abs(at_start["selector"] - at_moved["selector"])) > 1e-5


@pytest.mark.parametrize(
    ("share", "kept"), [(0.8, [0, 1, 2, 3]), (0.79, [1, 2, 3]), (0.01, [3]), (1.0, [0, 1, 2, 3, 4])]
)
def test_it_keeps_as_many_rows_as_the_share_has_whole_ones(share, kept):
    law = DataLaw(np.full(5, 0.2), np.full((5, 2), 0.5))
    chosen = SEAL(share=share).select(World(law, law), np.array([0.0, 1.0, 1.0, 2.0, -1.0]))
    np.testing.assert_array_equal(np.flatnonzero(chosen.capability.p), kept)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="epochs=0"):
        SEAL(epochs=0)
    with pytest.raises(ValueError, match="must stay within 0 and 1"):
        SEAL(drop=0.6)
    with pytest.raises(ValueError, match="share=0"):
        SEAL(share=0.0)
    with pytest.raises(ValueError, match="rate=-1"):
        SEAL(rate=-1.0)
    with pytest.raises(ValueError, match="for 4 contexts"):
        SEAL().select(conflicting([0, 0, 0, 0]), np.zeros(3))
