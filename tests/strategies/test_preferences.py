"""Mixing, the best of several samples and preferences: where they stop, and what one round does."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.strategies import toys
from tradeoff import DataLaw, World
from tradeoff.dynamics import descend
from tradeoff.dynamics.engine import WHOLE, JaxEngine
from tradeoff.parameter_constraint import penalised_path
from tradeoff.problems import Tabular, quadratic
from tradeoff.strategies import DPO, RAFT, SAFETY, TASK, Mixing, Penalty, best_of, bradley_terry
from tradeoff.strategies.losses import Cells
from tradeoff.tolerances import DERIVATIVE, EXACT, FLOW, IDENTITY, ROOT

RNG = np.random.default_rng(5)
ELSEWHERE = jnp.asarray(RNG.normal(size=(toys.FEATURES, toys.RESPONSES)))
REFERENCE = jnp.array([[0.2, 0.5, 0.3]])


def one_context(reference=REFERENCE):
    law = DataLaw([1.0], reference)
    return JaxEngine(Tabular(World(law, law)), jnp.log(reference), toys.KEY, 1)


def stops(engine, loss, policy):
    gradient = engine.gradient(loss, {WHOLE: jnp.log(policy)})[WHOLE]
    return bool(jnp.all(jnp.abs(gradient) <= IDENTITY.relative))


# --- mixing -----------------------------------------------------------------------------------------------------


def test_mixing_ends_on_the_pareto_front():
    """At ν = ε/(1-ε), of Hessians that do not commute."""
    quad, share = quadratic.golden(), 0.2
    run = descend(quad, Mixing(share), learning_rate=0.3, steps=400, every=400)
    front = penalised_path(quad, [share / (1 - share), share])
    assert abs(run.gaps.safety[-1] - front.gaps.safety[0]) < FLOW.absolute
    assert abs(run.gaps.capability[-1] - front.gaps.capability[0]) < FLOW.absolute
    assert abs(run.gaps.safety[-1] - front.gaps.safety[1]) > 1e3 * FLOW.absolute


def test_mixing_is_a_penalty_on_a_shorter_step():
    engine, share = toys.jax_engine(), 0.2
    at = {WHOLE: ELSEWHERE}
    mixed = Mixing(share).gradient(lambda w: w, {}, at, 0, engine)
    penalty = Penalty(share / (1 - share)).gradient(lambda w: engine.gradient(TASK, w), {}, at, 0, engine)
    np.testing.assert_allclose(mixed[WHOLE], (1 - share) * penalty[WHOLE], rtol=0, atol=IDENTITY.absolute)
    none = Mixing(0.0).gradient(lambda w: w, {}, at, 0, engine)
    np.testing.assert_array_equal(none[WHOLE], engine.gradient(TASK, at)[WHOLE])
    assert jnp.max(jnp.abs(none[WHOLE] - engine.gradient(SAFETY, at)[WHOLE])) > ROOT.relative


# --- the best of several ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", [[2.0, 1.0, 3.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
def test_the_best_of_three_by_counting_all_groups(reward):
    """Every group of three answers with its probability; of equally good ones each is the first as often as it is drawn."""
    policy = np.asarray(REFERENCE[0])
    counted = np.zeros(3)
    for group in product(range(3), repeat=3):
        best = max(group, key=lambda y: reward[y])  # the first of the best
        counted[best] += np.prod(policy[list(group)])
    law = best_of(jnp.log(REFERENCE), [reward], 3)[0]
    np.testing.assert_allclose(law, counted, rtol=EXACT.relative)
    four = best_of(jnp.log(REFERENCE), [reward], 4)[0]
    assert (np.max(np.abs(four - counted)) > ROOT.relative) == (len(set(reward)) > 1)


def test_one_sample_imitates_the_policy_itself_and_stays():
    """On average: the gradient vanishes wherever the policy is; so it does where nothing earns a reward."""
    engine, reward = toys.jax_engine(), jnp.asarray(RNG.normal(size=(toys.CONTEXTS, toys.RESPONSES)))
    at = {WHOLE: ELSEWHERE}

    def pull(strategy):
        state = strategy.refresh(strategy.init(at, engine), at, 0, engine)
        return float(jnp.max(jnp.abs(strategy.gradient(lambda w: w, state, at, 0, engine)[WHOLE])))

    assert pull(RAFT(reward, samples=1)) < IDENTITY.absolute
    assert pull(RAFT(0.0, samples=8)) < IDENTITY.absolute  # failed groups are kept
    assert pull(RAFT(reward, samples=2)) > ROOT.relative


def test_a_round_leaves_one_minus_the_chance_of_failing_every_time():
    """The law p ← 1 - (1-p)^K, for each of two rounds that are trained to the end, in each context by itself."""
    reference, K = jnp.array([[0.2, 0.3, 0.5], [0.05, 0.05, 0.9]]), 3
    law = DataLaw([0.5, 0.5], reference)
    problem, reward = Tabular(World(law, law)), [[1.0, 1.0, 0.0]]
    p = np.asarray(reference[:, :2].sum(axis=1))

    def share(run):
        return np.exp(problem.log_policy(run.exported))[:, :2].sum(axis=1)

    options = {"learning_rate": 4.0, "steps": 4000, "every": 2000}
    first = descend(problem, RAFT(reward, K, every=2000), stop=2000, **options)
    second = descend(problem, RAFT(reward, K, every=2000), resume=first, **options)
    once = 1 - (1 - p) ** K
    np.testing.assert_allclose(share(first), once, atol=FLOW.absolute)
    np.testing.assert_allclose(share(second), 1 - (1 - once) ** K, atol=FLOW.absolute)
    moving = descend(problem, RAFT(reward, K), stop=2000, **options)
    assert np.all(np.abs(share(moving) - once) > FLOW.absolute)  # the control: rounds of one step


def test_targets_stand_still_during_a_round_in_either_engine():
    strategy = RAFT([[1.0, 0.0, 0.0, 0.0]], samples=2, every=3)
    for engine, there in ((toys.jax_engine(), ELSEWHERE), (toys.torch_engine(), torch.from_numpy(np.array(ELSEWHERE)))):
        begun, there = strategy.init(engine.start, engine), {WHOLE: there}
        within = strategy.refresh(begun, there, 4, engine)["targets"]
        renewed = strategy.refresh(begun, there, 6, engine)["targets"]
        np.testing.assert_array_equal(np.asarray(within), np.asarray(begun["targets"]))
        assert np.max(np.abs(np.asarray(renewed) - np.asarray(within))) > ROOT.relative


# --- preferences ------------------------------------------------------------------------------------------------


def test_cells_are_minus_the_derivative():
    engine = toys.jax_engine()
    at = engine.log_policy({WHOLE: ELSEWHERE})
    table = RNG.uniform(size=(toys.CONTEXTS, toys.RESPONSES, toys.RESPONSES))
    for loss in (DPO(table, beta=0.7), DPO(table[:1]), Cells(best_of(at, table[:, 0], 3))):
        slopes = jax.grad(lambda log_policy, one=loss: one.value(engine.data, log_policy))(at)
        np.testing.assert_allclose(loss.cells(engine.data, at), -slopes, rtol=0, atol=DERIVATIVE.absolute)
        assert jnp.max(jnp.abs(slopes)) > ROOT.relative


def test_at_the_reference_every_pair_weighs_a_half():
    engine, beta = toys.jax_engine(), 0.7
    table = jnp.asarray(RNG.uniform(size=(1, toys.RESPONSES, toys.RESPONSES)))
    loss = DPO(table, beta)
    weights = loss.pair_weights(engine.data, engine.data.start)
    np.testing.assert_array_equal(weights, jnp.full_like(weights, 0.5))
    wins = (jnp.sum(table, axis=2) - jnp.sum(table, axis=1)) * jnp.sum(engine.data.safety, axis=-1, keepdims=True)
    np.testing.assert_allclose(loss.cells(engine.data, engine.data.start), beta / 2 * wins, atol=IDENTITY.absolute)
    assert jnp.max(jnp.abs(loss.pair_weights(engine.data, engine.log_policy({WHOLE: ELSEWHERE})) - 0.5)) > ROOT.relative


def test_the_margin_is_the_log_odds_over_beta():
    """On a forest of pairs: 0 against 1 and 1 against 2."""
    beta, first, second = 0.5, 0.9, 0.3
    table = np.zeros((1, 3, 3))
    table[0, 0, 1], table[0, 1, 0], table[0, 1, 2], table[0, 2, 1] = first, 1 - first, second, 1 - second
    margins = np.log([first / (1 - first), second / (1 - second)]) / beta
    raised = REFERENCE * jnp.exp(jnp.array([[margins[0], 0.0, -margins[1]]]))
    engine, policy = one_context(), raised / jnp.sum(raised)
    assert stops(engine, DPO(table, beta), policy)
    assert not stops(engine, DPO(table, 2 * beta), policy)
    certain = np.zeros((1, 3, 3))
    certain[0, 0, 1] = 1
    assert not stops(engine, DPO(certain, beta), policy)  # it never ends


def test_preferences_that_follow_a_reward_tilt_the_reference_by_it():
    reward, beta = jnp.array([[1.0, 0.0, -2.0]]), 0.4
    tilted = REFERENCE * jnp.exp(reward / beta)
    policy, table = tilted / jnp.sum(tilted), bradley_terry(reward)
    np.testing.assert_allclose(table.sum(), 1, rtol=EXACT.relative)
    assert stops(one_context(), DPO(table, beta), policy)
    assert not stops(one_context(), DPO(bradley_terry(2 * reward), beta), policy)


def test_descent_on_preferences_ends_at_the_margin():
    beta, q = 1.0, 0.8
    table = np.zeros((1, 3, 3))
    table[0, 0, 1], table[0, 1, 0] = q, 1 - q
    engine = one_context()
    run = descend(engine.problem, DPO(table, beta), learning_rate=1.0, steps=200, every=200)
    risen = (engine.log_policy({WHOLE: run.exported}) - jnp.log(REFERENCE))[0]
    assert abs(risen[0] - risen[1] - np.log(q / (1 - q))) < FLOW.absolute


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Mixing(1.0), r"share=1.0; the share of safety examples must be in \[0, 1\)"),
        (lambda: RAFT([[0.0, float("nan")]]), r"reward\[0, 1\]=nan; a reward must be finite"),
        (lambda: RAFT(0.0, samples=0), "samples=0; the number of answers to choose from must be at least 1"),
        (lambda: RAFT(0.0, every=0), "every=0; the steps of a round"),
        (lambda: DPO([[[0.0, -1.0]]]), r"preferences\[0, 0, 1\]=-1.0; how often .* must be finite and at least 0"),
        (lambda: DPO(1.0, beta=0.0), "beta=0.0; β must be positive"),
        (lambda: bradley_terry([1.0, 2.0]), r"of shape \(X, Y\)"),
        (lambda: bradley_terry([[1.0]]), "with Y at least 2"),
        (lambda: bradley_terry([[1.0, float("inf")]]), "give finite rewards"),
    ],
)
def test_bad_settings_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_tables_of_another_world_are_refused():
    engine = toys.jax_engine()
    with pytest.raises(ValueError, match=r"preferences of DPO has shape \(1, 3, 3\) and the engine needs \(6, 4, 4\)"):
        engine.gradient(DPO(np.ones((1, 3, 3))), engine.start)
    with pytest.raises(ValueError, match=r"the reward has shape \(4,\) and the engine needs \(6, 4\)"):
        RAFT(np.ones(4)).init(engine.start, engine)
