"""Averages along a run: what they filter, what they weigh, and what a smaller learning rate or a pull does as well."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.strategies import toys
from tradeoff.dynamics import descend
from tradeoff.problems import Quadratic, quadratic
from tradeoff.strategies import EMA, LAWA, SWA
from tradeoff.tolerances import IDENTITY, LIMIT

RATE, STEPS = 0.2, 10
QUAD = quadratic.golden()
CURVATURES = np.diagonal(QUAD.H_f)  # the golden task's Hessian is diagonal


def run(strategy, *, steps=STEPS, rate: float | None = RATE, every=None, problem=QUAD, **options):
    return descend(problem, strategy, learning_rate=rate, steps=steps, every=every or steps, **options)


def filtered(strategy, **options):
    """What is left of the way to the task's optimum, in each direction of curvature."""
    end = run(strategy, **options).exported
    return np.asarray((end - QUAD.theta_f) / (QUAD.theta_s - QUAD.theta_f))


def coefficients(strategy, steps):
    """How the exported weights weigh start and iterates, the weights being e_0, e_1, ..."""
    iterates, engine = jnp.eye(steps + 1), toys.jax_engine()
    state, at = strategy.init({"": iterates[0]}, engine), {"": iterates[0]}
    for step in range(steps):
        at, state = strategy.land(state, at, {"": iterates[step + 1]}, step, engine)
    return np.asarray(strategy.export(state, at, engine)[""])


def same(a, b, tolerance=IDENTITY):
    np.testing.assert_allclose(a, b, rtol=tolerance.relative, atol=tolerance.absolute)


# --- the tracked average ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [0.9, 0.4], ids=["apart", "at a rate of the run"])
def test_a_tracked_average_filters_as_its_closed_form_says(eta):
    r, t = 1 - RATE * CURVATURES, STEPS
    assert np.any(np.isclose(r, eta)) == (eta == 0.4)
    with np.errstate(all="ignore"):
        closed = eta**t + (1 - eta) * r * (r**t - eta**t) / (r - eta)
    limit = eta**t * (1 + (1 - eta) * t)
    expected = np.where(np.isclose(r, eta), limit, closed)
    found = filtered(EMA(eta))
    same(found, expected)
    assert np.all(np.abs(found - r**t) > LIMIT.relative)  # the run's own filter is another


def test_with_small_steps_the_filter_is_that_of_the_flow():
    rate, steps, k = 1e-5, 100_000, 2.5
    expected = (k * np.exp(-CURVATURES) - CURVATURES * np.exp(-k)) / (k - CURVATURES)
    same(filtered(EMA(float(np.exp(-k * rate))), rate=rate, steps=steps), expected, LIMIT)


def test_a_tracked_average_is_a_convex_combination():
    eta, steps = 0.7, 6
    found = coefficients(EMA(eta), steps)
    s = np.arange(steps + 1)
    same(found, np.where(s == 0, eta**steps, (1 - eta) * eta ** (steps - s)))
    same(found.sum(), 1.0)
    assert not np.allclose(coefficients(EMA(eta, every=2), steps), found)


def test_the_coefficient_goes_from_the_run_to_the_start():
    assert np.array_equal(coefficients(EMA(0.0), 4), np.eye(5)[4])
    same(coefficients(EMA(1 - 1e-14), 4), np.eye(5)[0])
    same(coefficients(EMA(0.5, every=2), 4), [0.25, 0, 0.25, 0, 0.5])


def test_a_tracked_average_quiets_stationary_noise_as_the_law_says():
    """One lane for each step that noise comes in: the squares of what it leaves add up to the variance."""
    eta, r, steps = 0.8, 0.4, 250
    strategy, engine = EMA(eta), toys.jax_engine()
    kicks = np.eye(steps)
    at = {"": jnp.zeros(steps)}
    state = strategy.init(at, engine)
    for step in range(steps):
        at, state = strategy.land(state, at, {"": r * at[""] + kicks[step]}, step, engine)
    variance = float(jnp.sum(at[""] ** 2))
    average = float(jnp.sum(strategy.export(state, at, engine)[""] ** 2))
    same(variance, 1 / (1 - r**2))
    same(average / variance, (1 - eta) * (1 + eta * r) / ((1 + eta) * (1 - eta * r)))


@pytest.mark.parametrize("strategy", [EMA(0.8), LAWA(last=4), SWA(since=3)], ids=["ema", "lawa", "swa"])
def test_a_convex_loss_of_the_average_is_below_the_average_of_the_losses(strategy):
    plain = run(EMA(0.0), every=1).gaps
    weights = coefficients(strategy, STEPS)
    average = run(strategy).gaps
    assert np.all(weights >= 0)
    same(weights.sum(), 1.0)
    assert average.safety[-1] < weights @ plain.safety  # strictly: the losses are strictly convex
    assert average.capability[-1] < weights @ plain.capability


# --- the two readings inside the loop -----------------------------------------------------------------------------


def test_to_train_through_the_average_is_a_smaller_learning_rate():
    eta = 0.6
    same(run(EMA(eta, reading="through")).exported, run(EMA(0.0), rate=(1 - eta) * RATE).exported)
    heavy = run(EMA(eta, reading="through"), rate=None, optimiser=optax.sgd(RATE, momentum=0.5))
    same(heavy.exported, run(EMA(0.0), rate=None, optimiser=optax.sgd((1 - eta) * RATE, momentum=0.5)).exported)
    other = run(EMA(eta, reading="to the start")).exported
    assert not np.allclose(other, run(EMA(0.0), rate=(1 - eta) * RATE).exported)


def test_to_be_drawn_to_the_start_ends_at_the_optimum_of_l2_sp():
    eta = 0.3
    mu = eta / ((1 - eta) * RATE)
    optimum = jnp.linalg.solve(QUAD.H_f + mu * jnp.eye(2), QUAD.pull) + QUAD.theta_s
    same(run(EMA(eta, reading="to the start"), steps=200).exported, optimum)
    assert not np.allclose(run(EMA(eta, reading="through"), steps=200).exported, optimum)


# --- uniform averages ---------------------------------------------------------------------------------------------


def test_the_latest_weights_filter_as_their_closed_form_says():
    r, last, every = 1 - RATE * CURVATURES, 3, 2
    expected = sum(r ** (STEPS - j * every) for j in range(last)) / last
    same(filtered(LAWA(last, every)), expected)
    assert not np.allclose(filtered(LAWA(last)), expected)


def test_the_latest_weights_weigh_alike():
    same(coefficients(LAWA(last=3, every=2), 7), [0, 0, 1 / 3, 0, 1 / 3, 0, 1 / 3, 0])
    same(coefficients(LAWA(last=5), 2), [1 / 3, 1 / 3, 1 / 3])  # as many as there are
    assert np.array_equal(coefficients(LAWA(last=1), 4), np.eye(5)[4])


def test_the_whole_tail_is_the_latest_weights_without_a_last_one():
    same(coefficients(SWA(since=2, every=2), 6), coefficients(LAWA(last=3, every=2), 6))
    same(coefficients(SWA(since=0), 4), np.full(5, 0.2))
    assert np.array_equal(coefficients(SWA(since=9), 4), np.eye(5)[4])  # before the tail nothing is averaged
    same(run(SWA(since=STEPS - 3)).exported, run(LAWA(last=4)).exported)


def test_where_all_directions_curve_alike_every_average_lies_on_one_line():
    ball = Quadratic(2 * np.eye(2), QUAD.theta_f, QUAD.H_s, QUAD.theta_s)
    left = QUAD.theta_f - QUAD.theta_s

    def aside(strategy, problem):
        end = run(strategy, problem=problem).exported - problem.theta_s
        return end[0] * left[1] - end[1] * left[0]

    for strategy in (EMA(0.8), EMA(0.3, reading="to the start"), LAWA(last=4)):
        same(aside(strategy, ball), 0.0)
    assert abs(aside(EMA(0.8), QUAD)) > LIMIT.relative


# --- settings -----------------------------------------------------------------------------------------------------


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"EMA was given coefficient=1.0; η \(0 is no average\) must be in"):
        EMA(1.0)
    with pytest.raises(ValueError, match="EMA was given reading='shadow'"):
        EMA(reading="shadow")
    with pytest.raises(ValueError, match="EMA was given every=2 with reading='through'"):
        EMA(reading="through", every=2)
    with pytest.raises(ValueError, match="LAWA was given last=0"):
        LAWA(last=0)
    with pytest.raises(ValueError, match="SWA was given every=0"):
        SWA(since=1, every=0)
    with pytest.raises(ValueError, match="SWA was given since=-1"):
        SWA(since=-1)
