"""Descent: its order against the flow, constraints, averages, any problem, and how it says that it diverged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tradeoff._records import record
from tradeoff.dynamics import descend, minibatch_noise, quadratic_flow
from tradeoff.dynamics.engine import WHOLE, JaxEngine
from tradeoff.loss_constraint import gaps
from tradeoff.problems import Quadratic, Tabular, quadratic
from tradeoff.strategies import ALIGNMENT, EMA, HARMFUL, TASK, Ball, SmallBatch, Strategy
from tradeoff.strategies.losses import Weighted
from tradeoff.tolerances import EXACT, FLOW, IDENTITY, PRINTED, agree
from tradeoff.worlds import golden

ORDER = 0.1  # of a fitted slope


def test_descent_with_short_steps_is_the_flow_to_first_order():
    quad, time, lam = quadratic.golden(), 1.0, 0.5
    flow = quadratic_flow(quad, lam, time).gaps
    counts = np.array([40, 80, 160, 320])
    missed = [
        abs(
            float(descend(quad, optax.sgd(time / n), steps=int(n), every=int(n), lam=lam).gaps.safety[-1] - flow.safety)
        )
        for n in counts
    ]
    order = -np.polyfit(np.log(counts), np.log(missed), 1)[0]
    assert abs(order - 1) < ORDER
    assert abs(order - 2) > ORDER  # the control: no second-order rule


def test_descent_multiplies_every_direction():
    """The closed form (I - hA)^n, and gaps at the steps asked for."""
    quad, rate = quadratic.golden(), 0.1
    run = descend(quad, optax.sgd(rate), steps=6, every=3)
    assert run.steps.tolist() == [0, 3, 6]
    M = np.eye(2) - rate * np.asarray(quad.H_f)
    for at, n in enumerate(run.steps.tolist()):
        theta = quad.theta_f - np.linalg.matrix_power(M, n) @ quad.displacement
        np.testing.assert_allclose(run.gaps.safety[at], quad.gaps(theta).safety, rtol=IDENTITY.relative)
    assert run.diverged == -1


def test_the_average_is_the_recursion():
    quad, rate, eta = quadratic.golden(), 0.1, 0.9
    live = [np.asarray(quad.theta_s)]
    for _ in range(6):
        live.append(live[-1] - rate * np.asarray(quad.H_f @ (live[-1] - quad.theta_f)))
    expected = live[0]
    for theta in live[1:]:
        expected = eta * expected + (1 - eta) * theta
    run = descend(quad, EMA(eta), learning_rate=rate, steps=6, every=6)
    np.testing.assert_allclose(run.exported, expected, rtol=IDENTITY.relative)
    np.testing.assert_allclose(run.parameters, live[-1], rtol=IDENTITY.relative)
    np.testing.assert_allclose(run.gaps.safety[-1], quad.gaps(run.exported).safety, rtol=IDENTITY.relative)


def test_a_projection_holds_every_step():
    quad, radius = quadratic.golden(), 0.5
    held = descend(quad, Ball(radius), learning_rate=0.1, steps=200, every=200)
    assert agree(float(held.gaps.safety[-1]), 0.178287182158, PRINTED)  # the golden number of T14(a)
    free = descend(quad, optax.sgd(0.1), steps=200, every=200)
    assert jnp.linalg.norm(free.parameters) > 2 * radius


def test_any_problem_and_any_rule():
    problem = Tabular(golden())
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes its own dtypes
        run = descend(problem, optax.adam(0.1), steps=300, every=100, lam=1.0)
    exact = gaps(problem.world, 1.0)
    assert abs(run.gaps.safety[-1] - exact.safety) < FLOW.absolute
    assert abs(run.gaps.capability[-1] - exact.capability) < FLOW.absolute
    assert abs(run.gaps.capability[1] - exact.capability) > FLOW.absolute


def test_a_run_like_the_last_one_is_not_compiled_again():
    """A strategy's hooks are called while a program is made, and not when it runs."""
    made = []

    @record
    class Counting(Strategy):
        def gradient(self, inner, state, weights, step, engine):
            made.append(step)
            return inner(weights)

    def compiles(start, **options):
        before = len(made)
        descend(quadratic.golden(), Counting(), steps=2, every=2, start=start, **options)
        return len(made) > before

    assert compiles(jnp.zeros(2), learning_rate=0.1)
    assert not compiles(jnp.ones(2), learning_rate=0.1)
    assert compiles(jnp.ones(2), optimiser=optax.sgd(0.1))
    assert compiles(jnp.ones(2), optimiser=optax.sgd(0.1))  # the control: the same rule, made anew


def test_a_key_fixes_the_noise_and_another_changes_it():
    quad, noise = quadratic.golden(), minibatch_noise(np.eye(2))
    one, same, other = (
        descend(quad, optax.sgd(0.1), steps=6, every=6, key=jax.random.key(seed), noise=noise).parameters
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert jnp.all(one != other)


def test_without_a_key_it_is_the_first():
    none, first, second = (
        descend(Tabular(golden()), SmallBatch(1), learning_rate=0.1, steps=3, every=3, key=key).gaps.capability[-1]
        for key in (None, jax.random.key(0), jax.random.key(1))
    )
    assert none == first != second


def test_without_a_policy_losses_are_the_gaps():
    """A quadratic has the two losses of its gaps, their sums, and no other."""
    quad = quadratic.golden()
    engine = JaxEngine(quad, quad.theta_s, jax.random.key(0), 1, 0.1)
    at = jnp.array([0.3, -0.2])
    weights, gaps = {WHOLE: at}, quad.gaps(at)
    assert engine.value(TASK, weights) == gaps.capability
    assert engine.value(ALIGNMENT, weights) == gaps.safety
    both = Weighted(((1.0, TASK), (0.5, ALIGNMENT)))
    np.testing.assert_allclose(
        engine.gradient(both, weights)[WHOLE], jax.grad(quad.objective)(at, 0.5), rtol=EXACT.relative
    )
    with pytest.raises(
        ValueError, match="Quadratic has a task loss and a safety loss, and the strategy asks for Cross"
    ):
        engine.value(HARMFUL, weights)


def test_divergence_is_named_with_its_step_and_marked_in_a_sweep():
    quad = quadratic.golden()
    with pytest.raises(
        FloatingPointError, match=r"no longer finite after step \d+ of 2000; give a smaller learning rate"
    ):
        descend(quad, optax.sgd(3.0), steps=2000, every=2000)
    run = jax.vmap(lambda rate: descend(quad, optax.sgd(rate), steps=2000, every=2000))(jnp.array([0.1, 3.0]))
    assert run.diverged[0] == -1
    assert 0 < run.diverged[1] < 2000
    assert jnp.isfinite(run.gaps.safety[0, -1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"every": 4}, "an `every` that divides its steps"),
        ({"stop": 7}, "from step 0 to 7"),
        ({"learning_rate": 0.1}, "one of the two"),
        ({"lam": -1.0}, "one finite penalty"),
        ({"noise": lambda key, x: x}, "no key"),
    ],
)
def test_bad_input_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        descend(quadratic.golden(), optax.sgd(0.1), **({"steps": 6} | change))


def test_a_problem_without_aligned_parameters_needs_a_start():
    class Bare:
        def gaps(self, parameters):
            return Quadratic.gaps(quadratic.golden(), parameters)

        def objective(self, parameters, lam):
            return Quadratic.objective(quadratic.golden(), parameters, lam)

    with pytest.raises(ValueError, match="Bare has no aligned parameters"):
        descend(Bare(), optax.sgd(0.1), steps=6)
    assert descend(Bare(), optax.sgd(0.1), steps=6, every=6, start=jnp.zeros(2)).gaps.safety[-1] > 0
