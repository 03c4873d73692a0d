"""LB-SGD: no iterate is infeasible, half of every slack is kept, and small η reaches the Pareto point from inside."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.strategies import toys
from tests.strategies.given import Given
from tradeoff.bridge.training import plain_descent, train
from tradeoff.dynamics import descend
from tradeoff.parameter_constraint import penalised_gaps
from tradeoff.problems import quadratic
from tradeoff.strategies import HARMFUL, LBSGD, SAFETY, TASK, Constraint
from tradeoff.theorems.methods_barrier import Barrier, barrier, barrier_step, barriers
from tradeoff.tolerances import BOUND, EXACT, IDENTITY

LIMIT = 100.0
"""Of every constraint of `around`, whose losses start at this less their slack."""


def around(instance: Barrier):
    """The engine and the rule of a task and two constraints that are quadratics around the point 0."""

    def bent(slope, H, x):
        return jnp.dot(slope, x["x"]) + jnp.dot(x["x"], H @ x["x"]) / 2

    i = instance

    def used(k, x):
        return LIMIT - i.slack[k] + bent(i.slopes[k], i.Hs[k], x)

    losses = {"task": partial(bent, i.slope, i.H), "safety": partial(used, 0), "harmful": partial(used, 1)}
    limits = tuple(Constraint(loss, LIMIT, i.Ms[k]) for k, loss in enumerate((SAFETY, HARMFUL)))
    return Given(losses, {"x": jnp.zeros_like(i.slope)}), LBSGD(limits, i.M, eta=i.eta)


@partial(jax.jit, static_argnums=1)
def path(instance, steps=3):
    """The first step, and the slacks at the start and after every step."""
    engine, rule = around(instance)

    def step(at, number):
        x, state = at
        state = rule.refresh(state, x, number, engine)
        moved = rule.gradient(lambda w: engine.gradient(TASK, w), state, x, number, engine)["x"]
        return ({"x": x["x"] - moved}, state), (moved, jnp.stack(state["slack"]))

    start = (engine.start, rule.init(engine.start, engine))
    (x, state), (moves, slack) = jax.lax.scan(step, start, jnp.arange(steps))
    last = jnp.stack(rule.refresh(state, x, steps, engine)["slack"])
    return moves, jnp.concatenate([slack, last[None, :]])


def test_no_step_over_random_quadratics_leaves_the_constraints_or_uses_more_than_half_of_a_slack():
    """Convex, concave, indefinite and affine ones, from points close to the boundary and far from it."""
    family = barriers()

    @jax.jit
    @jax.vmap
    def run(key):
        instance = family.build(family.sample(key))
        instance = instance._replace(M=instance.M + 0.01)
        expected, _, g = barrier_step(instance)
        return *path(instance, 20), expected, jnp.sqrt(jnp.sum(g**2)) >= instance.eta

    moves, slack, expected, moving = map(np.asarray, run(jax.random.split(jax.random.key(0), 200)))
    assert np.all(slack > 0)
    assert np.all(slack[:, 1:] >= slack[:, :-1] / 2 - BOUND.relative * LIMIT)
    assert moving.sum() > 150
    where = np.where(moving[:, None], -expected, 0)
    np.testing.assert_allclose(moves[:, 0], where, rtol=IDENTITY.relative, atol=IDENTITY.relative)


def test_understated_smoothness_breaks_the_halving_and_beyond_two_the_constraint():
    """What is left of the slack is 1 - κ/2, κ the factor; from outside there is no step and no NaN."""
    for factor in (1.0, 1.5, 3.0):
        instance = barrier(curved=factor, told=1.0)._replace(M=jnp.float64(1e-3))
        moves, slack = path(instance)
        np.testing.assert_allclose(slack[1, 0], 1 - factor / 2, rtol=0, atol=1e-4)
    assert slack[1, 0] < 0
    np.testing.assert_array_equal(moves[1:], 0)
    np.testing.assert_array_equal(slack[2:, 0], slack[1, 0])


def test_steps_shorten_at_the_boundary_and_a_flat_constraint_does_not_shorten_them():
    rises = []
    for slack in (1e-2, 1e-4, 1e-6):
        instance = barrier(curved=0.0, told=0.0, steep=1.0)._replace(
            M=jnp.float64(1.0), slack=jnp.array([slack, 1.0]), eta=jnp.float64(1e-9)
        )
        moves, _ = path(instance)
        rises.append(abs(float(jnp.dot(moves[0], instance.slopes[0]))))
    np.testing.assert_allclose(rises, [5e-3, 5e-5, 5e-7], rtol=IDENTITY.relative, atol=IDENTITY.absolute)
    flat = barrier(curved=0.0, told=0.0)._replace(M=jnp.float64(4.0))
    moves, _ = path(flat)
    np.testing.assert_allclose(moves[0], flat.slope / 4, rtol=EXACT.relative)


def test_behind_a_wall_it_stops_at_the_barrier_point():
    """f₀ = (x-a)²/2 and x ≤ c < a: within η of [(a+c) - √((a-c)² + 4η)]/2, with multiplier η/α."""
    a, c, eta = 2.0, 1.0, 0.05
    rule = LBSGD((Constraint(SAFETY, 5.0, 0.0),), 1.0, eta=eta, every=1000)
    engine = Given(
        {"task": lambda w: (w["x"] - a) ** 2 / 2, "safety": lambda w: w["x"] - c + 5.0}, {"x": jnp.zeros(())}
    )

    def step(number, at):
        x, state = at
        state = rule.refresh(state, x, number, engine)
        moved = rule.gradient(lambda w: engine.gradient(TASK, w), state, x, number, engine)
        return {"x": x["x"] - moved["x"]}, state

    x, _ = jax.lax.fori_loop(0, 200, step, (engine.start, rule.init(engine.start, engine)))
    stops = ((a + c) - np.sqrt((a - c) ** 2 + 4 * eta)) / 2
    assert abs(float(x["x"]) - stops) <= eta
    alpha = c - float(x["x"])
    assert abs(a - float(x["x"]) - eta / alpha) < eta  # its gradient, at the stop level
    assert 0 < float(x["x"] - a) ** 2 / 2 - (c - a) ** 2 / 2 <= eta * (1 + alpha)


def golden_rule(limit, eta=0.1):
    quad = quadratic.golden()
    M_0, M_1 = (float(np.linalg.eigvalsh(H)[-1]) for H in (quad.H_f, quad.H_s))
    return quad, LBSGD((Constraint(SAFETY, limit, M_1),), M_0, eta=eta, every=50)


def test_small_eta_reaches_the_pareto_point_from_inside():
    """Its safety gap is the limit; the multiplier there, η/α, is the penalty λ = 1."""
    front = penalised_gaps(quadratic.golden(), 1.0)
    tau = front.safety
    quad, rule = golden_rule(tau)
    run = descend(quad, rule, steps=1000, every=10)
    assert np.all(run.gaps.safety < tau)
    eta, alpha = float(run.last.state["eta"]), float(tau - run.gaps.safety[-1])
    np.testing.assert_allclose(eta, 0.1 * 0.7**19, rtol=EXACT.relative)
    np.testing.assert_allclose(eta / alpha, 1.0, atol=0.01)
    # A convex task behind a convex constraint: at most η and what the barrier's slope still promises.
    A, B, w = (np.asarray(one) for one in (quad.H_f, quad.H_s, run.exported))
    best = np.linalg.solve(A + B, A @ quad.theta_f + B @ quad.theta_s)
    slope = A @ (w - quad.theta_f) + eta / alpha * B @ (w - quad.theta_s)
    paid = float(run.gaps.capability[-1] - front.capability)
    assert 0 < paid <= eta + slope @ (w - best) < 2 * eta
    early = float(run.gaps.capability[5] - front.capability)  # the first η, 0.1, stops short
    assert early > 100 * paid


def test_where_the_task_s_optimum_is_feasible_it_is_the_limit():
    quad, rule = golden_rule(10.0)
    run = descend(quad, rule, steps=1000, every=1000)
    np.testing.assert_allclose(run.exported, quad.theta_f, rtol=0, atol=float(run.last.state["eta"]))


def test_a_start_outside_is_refused_where_numbers_are_there_and_has_no_step_where_not():
    toy, aligned = toys.problem()
    outside = aligned + 2.0
    outside = outside.at[:, 0].add(3.0)
    rule = LBSGD((Constraint(SAFETY, 0.05, 5.0),), 5.0)
    words = r"at the start CrossEntropy\(law='safety'\) is \d.* with a limit of 0.05; give a larger limit, or descend"
    with pytest.raises(ValueError, match=words):
        descend(toy, rule, steps=3, every=3, start=outside)
    with pytest.raises(ValueError, match=words):
        next(iter(train(toys.torch_engine(start=torch.from_numpy(np.array(outside))), rule, plain_descent(1.0))))
    run = jax.jit(lambda start: descend(toy, rule, steps=3, every=3, start=start))(outside)
    np.testing.assert_array_equal(run.exported, outside)
    assert run.last.state["slack"][0] < 0


def test_it_takes_no_learning_rate_and_no_optimiser():
    quad, rule = golden_rule(1.0)
    with pytest.raises(ValueError, match="LBSGD sets the length of its steps"):
        descend(quad, rule, steps=1, learning_rate=0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Constraint(SAFETY, 0.0, 1.0), "limit=0.0"),
        (lambda: Constraint(SAFETY, float("inf"), 1.0), "limit=inf"),
        (lambda: Constraint(SAFETY, 1.0, -1.0), "smoothness=-1.0"),
        (lambda: LBSGD((), 1.0), "no constraints"),
        (lambda: LBSGD((Constraint(SAFETY, 1.0, 1.0),), 0.0), "smoothness=0.0"),
        (lambda: LBSGD((Constraint(SAFETY, 1.0, 1.0),), 1.0, eta=0.0), "eta=0.0"),
        (lambda: LBSGD((Constraint(SAFETY, 1.0, 1.0),), 1.0, decay=1.0), "decay=1.0"),
        (lambda: LBSGD((Constraint(SAFETY, 1.0, 1.0),), 1.0, every=0), "every=0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
