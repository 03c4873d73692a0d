"""Lisa: the fixed point of its alternation on quadratics, its limits, and which state is exported when."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.strategies import probed
from tradeoff.dynamics import descend
from tradeoff.dynamics.engine import WHOLE
from tradeoff.problems import Quadratic, quadratic
from tradeoff.strategies import Lisa, Penalty, compose
from tradeoff.tolerances import IDENTITY, LIMIT

QUAD = quadratic.golden()
RATE = 0.2


def close(a, b, tolerance=IDENTITY):
    np.testing.assert_allclose(a, b, rtol=tolerance.relative, atol=tolerance.relative)


def states(quad, rho, stretch=60, rounds=40, rate=RATE):
    """Both states after many stretches, each long enough to be solved."""
    steps = 2 * stretch * rounds
    strategy = Lisa(rho, aligning=stretch, tuning=stretch)
    run = descend(quad, strategy, learning_rate=rate, steps=steps, every=steps)
    return np.asarray(run.last.state["aligned"][WHOLE]), np.asarray(run.last.state["tuned"][WHOLE])


def solved(quad, rho):
    """The fixed point of exact inner solves, by one linear system."""
    d, eye = len(quad.theta_s), rho * np.eye(len(quad.theta_s))
    system = np.block([[quad.H_s + eye, -eye], [-eye, quad.H_f + eye]])
    both = np.linalg.solve(system, np.concatenate([quad.H_s @ quad.theta_s, quad.H_f @ quad.theta_f]))
    return both[:d], both[d:]


def test_the_states_are_the_fixed_point_of_the_alternation():
    aligned, tuned = states(QUAD, 1.0)
    close(QUAD.H_s @ (aligned - QUAD.theta_s) + (aligned - tuned), 0)
    close(QUAD.H_f @ (tuned - QUAD.theta_f) + (tuned - aligned), 0)
    close(np.concatenate([aligned, tuned]), np.concatenate(solved(QUAD, 1.0)))
    elsewhere = np.concatenate(solved(QUAD, 1.1))
    assert np.max(np.abs(np.concatenate([aligned, tuned]) - elsewhere)) > 1e3 * IDENTITY.relative


def test_without_pull_each_state_is_its_own_loss_s_optimum():
    aligned, tuned = states(QUAD, 0.0, stretch=200, rounds=2)
    close(aligned, QUAD.theta_s)
    close(tuned, QUAD.theta_f)


def test_where_the_task_is_flat_the_tuned_state_stays_with_the_aligned_one():
    """A singular task Hessian: as ρ → 0, the task's optimum nearest to the aligned parameters."""
    flat = Quadratic([[2.0, 0.0], [0.0, 0.0]], [1.0, -1.0], QUAD.H_s, [0.3, 0.4])
    _, tuned = states(flat, 0.0, stretch=200, rounds=2)
    close(tuned, [1.0, 0.4])
    close(solved(flat, 1e-6)[1], tuned, LIMIT)
    assert abs(tuned[1] - flat.theta_f[1]) > 1


def test_an_endless_pull_leads_both_states_to_the_point_of_equal_weights():
    """The distance falls like 1/ρ; at ρ = 1 it is not small."""
    pareto = np.linalg.solve(QUAD.H_f + QUAD.H_s, QUAD.H_f @ QUAD.theta_f + QUAD.H_s @ QUAD.theta_s)
    aligned, tuned = states(QUAD, 40.0, stretch=20, rounds=700, rate=1 / 44)
    close(np.concatenate([aligned, tuned]), np.concatenate(solved(QUAD, 40.0)))
    for place in range(2):
        far, near, nearer = (np.linalg.norm(solved(QUAD, rho)[place] - pareto) for rho in (1.0, 1e5, 1e6))
        assert near < LIMIT.relative < far
        close(near / nearer, 10, LIMIT)


def test_at_a_finite_pull_neither_state_is_on_the_frontier():
    for place in range(2):
        at = QUAD.gaps(jnp.asarray(solved(QUAD, 1.0)[place]))
        best = best_capability(float(at.safety))
        assert float(at.capability) > best * (1 + 1e3 * IDENTITY.relative)
    pareto = QUAD.gaps(jnp.asarray(solved(QUAD, 1e9)[0]))
    assert abs(float(pareto.capability) / best_capability(float(pareto.safety)) - 1) < LIMIT.relative


def best_capability(safety):
    """The smallest capability gap at a safety gap, along the front that penalties trace."""
    low, high = 1e-9, 1e9
    for _ in range(200):
        lam = (low * high) ** 0.5
        theta = np.linalg.solve(QUAD.H_f + lam * QUAD.H_s, QUAD.H_f @ QUAD.theta_f + lam * QUAD.H_s @ QUAD.theta_s)
        at = QUAD.gaps(jnp.asarray(theta))
        low, high = (lam, high) if float(at.safety) > safety else (low, lam)
    return float(at.capability)


def test_nothing_pulls_in_the_first_tenth_of_the_steps():
    start = {WHOLE: jnp.array([1.0, 2.0])}
    other = {WHOLE: jnp.zeros(2)}
    flat = probed.Given(start, steps=20, safety=lambda at: 0 * jnp.sum(at[WHOLE]))
    strategy = Lisa(rho=3.0, aligning=1, tuning=1)

    def gradient(step):
        inner = lambda at: {WHOLE: jnp.zeros(2)}  # noqa: E731
        return strategy.gradient(inner, {"aligned": other, "tuned": other}, start, step, flat)[WHOLE].tolist()

    assert [gradient(step) for step in (0, 1, 2)] == [[0, 0]] * 3
    assert [gradient(step) for step in (3, 4, 19)] == [[3, 6]] * 3


def test_the_turns_and_the_states_that_they_leave():
    """Two steps on the safety data, three on the task; each is marked by its own constant gradient."""
    start = {WHOLE: jnp.zeros(())}
    toy = probed.Given(start, steps=1000, safety=lambda at: 1.0 * at[WHOLE])
    strategy = Lisa(aligning=2, tuning=3)
    state, weights, turns, kept = strategy.init(start, toy), start, "", []
    for step in range(10):
        slope = strategy.gradient(lambda at: {WHOLE: jnp.array(10.0)}, state, weights, step, toy)[WHOLE]
        turns += "s" if slope == 1 else "u"
        weights, state = strategy.land(state, weights, {WHOLE: weights[WHOLE] + slope}, step, toy)
        kept.append((float(state["aligned"][WHOLE]), float(state["tuned"][WHOLE])))
    assert turns == "ssuuussuuu"
    assert kept == [(0, 0), (2, 0), (2, 0), (2, 0), (2, 32), (2, 32), (34, 32), (34, 32), (34, 32), (34, 64)]


def test_which_state_is_exported_is_said():
    state, toy = {"aligned": {WHOLE: 1}, "tuned": {WHOLE: 2}}, probed.Given({WHOLE: 0})
    exported = {which: Lisa(exported=which).export(state, {WHOLE: 3}, toy) for which in ("last", "aligned", "tuned")}
    assert {which: weights[WHOLE] for which, weights in exported.items()} == {"last": 3, "aligned": 1, "tuned": 2}


def test_it_replaces_the_loss_on_its_turns_so_it_comes_first():
    with pytest.raises(ValueError, match="Lisa replaces the loss and would discard what Penalty does to it"):
        compose(Penalty(), Lisa())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Lisa(-1.0), "rho=-1.0"),
        (lambda: Lisa(aligning=-1), "aligning=-1 and tuning=900 steps"),
        (lambda: Lisa(tuning=0), "aligning=100 and tuning=0 steps"),
        (lambda: Lisa(free=1.0), "free=1.0"),
        (lambda: Lisa(exported="best"), "exported='best'; give 'last', 'aligned' or 'tuned'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
