"""A checkpoint answers a strategy's questions exactly, at any weights, and is left bit for bit where it was."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from tests.bridge.runs import TINY, same_run, same_weights, table
from tradeoff.bridge import landscape, policy
from tradeoff.bridge.checkpoint_engine import CheckpointEngine, fixed
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.finetuning import adapted, finetune
from tradeoff.bridge.objective import Objective
from tradeoff.bridge.trainable import trainable
from tradeoff.strategies import (
    ALIGNMENT,
    EMA,
    SAFETY,
    TASK,
    Ball,
    Loss,
    Penalty,
    Plain,
    SafetyConstraint,
    Strategy,
    Weighted,
    compose,
)
from tradeoff.strategies.losses import Cells
from tradeoff.tolerances import BOUND, IDENTITY, MODEL_GRADIENT, SCORE
from tradeoff.worlds import World

SAME_GRADIENT, SAME_POLICY = MODEL_GRADIENT.relative, SCORE.absolute
PLAIN_DESCENT = dataclasses.replace(TINY, optimiser="sgd", learning_rate=1e-2)
RANKS = pytest.mark.parametrize("rank", [4, None], ids=["factors", "in full"])


@pytest.fixture
def tiny(tiny_folder: Path) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


class Squares(Loss):
    """A loss whose cells depend on the scores of the whole table."""

    def value(self, data, log_policy):
        return (data.safety * (log_policy - data.start) ** 2).sum() ** 2

    def cells(self, data, log_policy):
        away = log_policy - data.start
        return -4 * (data.safety * away**2).sum() * data.safety * away


class Broken(Loss):
    """A loss that fails once the scores are there."""

    def value(self, data, log_policy):
        raise ZeroDivisionError

    cells = value


@pytest.fixture(params=[4, None], ids=["factors", "in full"])
def asked(request, tiny: Checkpoint, few: World):
    """An engine on a tiny checkpoint, its live parameters, and other weights to ask about; two batches."""
    with trainable(tiny, request.param, 2, seed=0) as parameters:
        objective = Objective(tiny, policy.encode(tiny, few), 2, batch_size=2)
        engine = CheckpointEngine(objective, parameters, few, jax.random.key(0), steps=1)
        noise = engine.normal("elsewhere", 0, engine.start)
        yield engine, parameters, {name: w + 0.1 * noise[name] for name, w in engine.start.items()}


LOSSES = [TASK, ALIGNMENT, Weighted(((0.5, TASK), (2.0, SAFETY))), Weighted(((1.0, TASK), (1.0, Squares())))]


@pytest.mark.parametrize("loss", LOSSES, ids=["task", "alignment", "weighted", "by its scores"])
def test_a_gradient_anywhere_is_that_of_autograd(loss, asked, tiny, few):
    engine, parameters, elsewhere = asked
    before = {name: p.detach().clone() for name, p in parameters.items()}
    found, value = engine.gradient(loss, elsewhere), engine.value(loss, elsewhere)
    assert same_weights(parameters, before)
    assert all(p.grad is None for p in parameters.values())
    at_rest = engine.gradient(loss, engine.start)
    np.testing.assert_allclose(engine.data.start, table(tiny, few).detach(), rtol=0, atol=SAME_POLICY)
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(elsewhere[name])
    written_out = loss.value(engine.data, table(tiny, few))
    expected = dict(zip(parameters, torch.autograd.grad(written_out, list(parameters.values())), strict=True))
    assert abs(float(value - written_out.detach())) < SAME_POLICY
    scale = max(float(g.abs().max()) for g in expected.values())
    furthest = max(float((found[name] - g).abs().max()) for name, g in expected.items())
    assert furthest < SAME_GRADIENT * scale
    assert max(float((at_rest[name] - g).abs().max()) for name, g in expected.items()) > SAME_GRADIENT * scale


@pytest.mark.parametrize("loss", [TASK, Squares()], ids=["fixed", "by its scores"])
def test_a_gradient_costs_one_pass(loss, asked, tiny):
    engine, _, elsewhere = asked
    engine.data  # noqa: B018  (the first to ask has the start scored)
    calls = [0]
    handle = tiny.model.base_model.layers[-1].register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    engine.gradient(loss, elsewhere)
    handle.remove()
    assert calls[0] == 2, "one for each batch"
    assert engine.live.gradients == 1
    assert fixed(loss) == (loss is TASK)


@pytest.mark.parametrize("spoil", ["the loss", "the pass", "a shape", "a name"])
def test_after_an_error_the_live_weights_are_those_before(spoil, asked, monkeypatch):
    engine, parameters, elsewhere = asked
    before = {name: p.detach().clone() for name, p in parameters.items()}
    name = next(iter(elsewhere))
    loss, error = TASK, ValueError
    engine.data  # noqa: B018  (the first to ask has the start scored)
    if spoil == "the loss":
        loss, error = Broken(), ZeroDivisionError
    elif spoil == "the pass":
        error = KeyboardInterrupt
        monkeypatch.setattr(Objective, "_states", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    elif spoil == "a shape":
        elsewhere[name] = elsewhere[name][:1]
    else:
        elsewhere["another"] = elsewhere.pop(name)
    for question in (engine.gradient, engine.value):
        with pytest.raises(error):
            question(loss, elsewhere)
        assert same_weights(parameters, before)
        assert all(p.grad is None for p in parameters.values())


# --- strategies on a checkpoint ----------------------------------------------------------------------------------


class Recorder(Strategy):
    """Changes nothing, and keeps every weight it sees."""

    kind, source = "weights", "framework"

    def __init__(self):
        self.seen = []

    def land(self, state, weights, moved, step, engine):
        self.seen.append(moved)
        return moved, state


@RANKS
def test_a_strategy_that_does_nothing_changes_nothing(rank, tiny, world):
    recipe = dataclasses.replace(TINY, rank=rank)
    none = finetune(tiny, world, recipe, progress=False)
    assert same_run(none, finetune(tiny, world, recipe, progress=False, strategy=Plain()))
    for idle in (SafetyConstraint(1e6), EMA(0.0, reading="through"), Ball(1e6), Recorder()):
        run = finetune(tiny, world, recipe, progress=False, strategy=idle)
        assert same_weights(run.adapter, none.adapter), idle
    held = finetune(tiny, world, recipe, progress=False, strategy=Ball(1e-3))
    assert not same_weights(held.adapter, none.adapter)
    assert none.gradients.tolist() == [1] * TINY.steps
    assert (none.seconds > 0).all()


def test_the_penalty_as_a_strategy_is_the_penalty_of_the_recipe(tiny, world):
    """Under plain descent, where rounding is not amplified; a gradient more at every step."""
    ours = finetune(tiny, world, dataclasses.replace(PLAIN_DESCENT, penalty=2.0), progress=False)
    zero = dataclasses.replace(PLAIN_DESCENT, penalty=0.0)
    run = finetune(tiny, world, zero, progress=False, strategy=Penalty(2.0))
    np.testing.assert_allclose(run.log_policies, ours.log_policies, rtol=0, atol=SAME_POLICY)
    without = finetune(tiny, world, zero, progress=False)
    assert np.abs(without.log_policies - ours.log_policies).max() > SAME_POLICY
    assert run.gradients.tolist() == [2] * TINY.steps


def test_plain_descent_goes_along_the_gradient_and_keeps_its_rate(tiny, world):
    seen = Recorder()
    finetune(tiny, world, PLAIN_DESCENT, progress=False, strategy=seen)
    with trainable(tiny, TINY.rank, TINY.upper_layers, TINY.seed) as parameters:
        objective = Objective(tiny, policy.encode(tiny, world), TINY.upper_layers, TINY.batch_size)
        engine = CheckpointEngine(objective, parameters, world, jax.random.key(0), TINY.steps)
        slope = engine.gradient(Weighted(((1.0, TASK), (TINY.penalty, SAFETY))), seen.seen[-2])
    for name, last in seen.seen[-1].items():
        step = last - seen.seen[-2][name]
        torch.testing.assert_close(step, -PLAIN_DESCENT.learning_rate * slope[name], rtol=SAME_GRADIENT, atol=1e-12)


@RANKS
def test_an_average_is_the_recursion_over_the_live_weights_and_is_what_is_measured(rank, tiny, world):
    recipe, live = dataclasses.replace(TINY, rank=rank), Recorder()
    run = finetune(tiny, world, recipe, progress=False, strategy=compose(live, EMA(0.9)))
    plain = finetune(tiny, world, recipe, progress=False)
    assert same_weights(run.last, plain.adapter), "the training goes on as if there were no average"
    with trainable(tiny, rank, TINY.upper_layers, TINY.seed) as parameters:
        shadow = {name: p.detach().clone() for name, p in parameters.items()}
    for weights in live.seen:
        shadow = {name: 0.9 * m + 0.1 * weights[name] for name, m in shadow.items()}
    for name, average in run.adapter.items():
        torch.testing.assert_close(average, shadow[name], rtol=IDENTITY.relative, atol=IDENTITY.absolute)
    with adapted(tiny, run) as tuned:
        there = policy.log_policy(tuned, world)
    np.testing.assert_allclose(run.log_policies[-1], there, rtol=0, atol=SAME_POLICY)
    np.testing.assert_array_equal(run.log_policies[0], plain.log_policies[0])
    assert np.abs(run.log_policies[1:] - plain.log_policies[1:]).max(axis=(1, 2)).min() > SAME_POLICY
    assert run.gradients.tolist() == [1] * TINY.steps


def test_weights_that_a_strategy_lands_are_those_of_the_next_step(tiny, world):
    held = finetune(tiny, world, dataclasses.replace(TINY, rank=None), progress=False, strategy=Ball(0.05))
    model = dict(tiny.model.named_parameters())
    away = torch.cat([(w - model[name]).ravel() for name, w in held.adapter.items()]).norm()
    assert abs(float(away) / 0.05 - 1) < BOUND.relative
    with adapted(tiny, held) as tuned:
        there = policy.log_policy(tuned, world)
    np.testing.assert_allclose(held.log_policies[-1], there, rtol=0, atol=SAME_POLICY)
    by_recipe = finetune(tiny, world, dataclasses.replace(TINY, rank=None, radius=0.05), progress=False)
    np.testing.assert_allclose(by_recipe.log_policies, held.log_policies, rtol=0, atol=SAME_POLICY)


# --- all weights of the upper layers -----------------------------------------------------------------------------


def test_in_full_the_matrices_of_the_upper_layers_are_trained_and_put_back(tiny, world):
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    run = finetune(tiny, world, dataclasses.replace(TINY, rank=None), progress=False)
    assert {name.split(".")[2] for name in run.adapter} == {"1", "2"}
    assert len(run.adapter) == 14, "seven matrices in each of two layers"
    assert all(value.ndim == 2 for value in run.adapter.values())
    assert same_weights(tiny.model.state_dict(), before)
    assert not any(p.requires_grad for p in tiny.model.parameters())
    objective = np.asarray(run.capability_gap + run.safety_gap)
    assert objective[-1] < objective[0]
    with adapted(tiny, run) as tuned:
        np.testing.assert_allclose(policy.log_policy(tuned, world), run.log_policies[-1], rtol=0, atol=SAME_POLICY)
    assert same_weights(tiny.model.state_dict(), before)


def test_in_full_a_run_is_a_direction_too(tiny, world):
    run = finetune(tiny, world, dataclasses.replace(TINY, rank=None), progress=False)
    found = landscape.line(tiny, world, landscape.displacement(tiny, run), [0.0, 1.0]).gaps
    np.testing.assert_allclose(found.safety, run.safety_gap[jax.numpy.array([0, -1])], rtol=0, atol=SAME_POLICY)


# --- whose step it is --------------------------------------------------------------------------------------------


class Halved(Strategy):
    """Sets the length of its steps."""

    kind, source, owns = "gradient", "framework", "step"

    def gradient(self, inner, state, weights, step, engine):
        return {name: 0.005 * g for name, g in inner(weights).items()}


def test_a_strategy_that_sets_its_step_needs_plain_descent_at_rate_one(tiny, world):
    for recipe in (TINY, dataclasses.replace(TINY, optimiser="sgd")):
        with pytest.raises(ValueError, match=r"Halved sets the length of its steps.*optimiser='sgd', learning_rate=1"):
            finetune(tiny, world, recipe, progress=False, strategy=Halved())
    whole = dataclasses.replace(TINY, optimiser="sgd", learning_rate=1.0)
    run = finetune(tiny, world, whole, progress=False, strategy=Halved())
    slower = finetune(tiny, world, dataclasses.replace(PLAIN_DESCENT, learning_rate=0.005), progress=False)
    np.testing.assert_allclose(run.log_policies, slower.log_policies, rtol=0, atol=SAME_POLICY)


def test_cells_given_by_hand_need_no_laws(asked):
    engine, _, elsewhere = asked
    engine.gradient(Cells(torch.ones(engine._world.safety.P.shape, dtype=torch.float64)), elsewhere)
    assert engine._data is None
