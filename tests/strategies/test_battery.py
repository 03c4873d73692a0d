"""What every strategy must do, whatever it does: one battery over the registry, in both engines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tests.strategies import toys
from tradeoff.bridge.training import plain_descent, train
from tradeoff.dynamics import descend
from tradeoff.problems import SoftmaxLinear
from tradeoff.strategies import EMA, SAFETY, TASK, Ball, Strategy, compose, registry
from tradeoff.tolerances import IDENTITY
from tradeoff.worlds import World

TRAINED = [row for row in registry.all() if row.stage in ("fine-tuning", "alignment")]


@pytest.fixture(params=TRAINED, ids=lambda row: row.name, scope="module")
def row(request):
    """Each row in turn: its tests come one after the other and share what was compiled."""
    return request.param


def remembers(strategy):
    """Whether it has anything beside the weights and the number of the step to go on with, or moves the weights itself."""
    own = (
        getattr(type(strategy), hook) is not getattr(Strategy, hook) for hook in ("init", "refresh", "land", "export")
    )
    return any(own)


def run(strategy, row, problem=None, **options):
    toy, aligned = toys.problem() if problem is None else problem
    rate = None if strategy.owns == "step" else toys.RATE
    loss = SAFETY if row.stage == "alignment" else None
    start = aligned if row.stage != "alignment" else jnp.zeros_like(aligned)
    settings = {"steps": toys.STEPS, "every": toys.STEPS // 2, "start": start, "key": toys.KEY} | options
    return descend(toy, strategy, learning_rate=rate, loss=loss, **settings)


def run_in_torch(strategy, row, resume=None):
    """Every point of a run in torch, which compiles nothing."""
    rate = 1.0 if strategy.owns == "step" else toys.RATE
    engine, loss = toys.torch_engine(learning_rate=rate), None
    if row.stage == "alignment":
        loss, start = SAFETY, torch.zeros_like(engine.start[toys.WHOLE])
        engine = toys.torch_engine(learning_rate=rate, start=start)
    return list(train(engine, strategy, plain_descent(rate), loss=loss, resume=resume))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_off_it_is_plain(row):
    if isinstance(row.off, str):
        assert len(row.off) > 10
        return
    plain = run(registry.get("plain").make({}), row)
    off = row.off(toys.jax_engine().start)
    # One that descends a loss of its own sums its cells in another order.
    rounding = IDENTITY.absolute if off.owns == "loss" else 0.0
    np.testing.assert_allclose(run(off, row).exported, plain.exported, rtol=0, atol=rounding)


def test_both_engines_go_the_same_way(row):
    ours = run(toys.strategy(row), row)
    for name, tensor in run_in_torch(toys.in_torch(row), row)[-1].exported.items():
        np.testing.assert_allclose(tensor.numpy(), ours.exported, rtol=0, atol=IDENTITY.relative, err_msg=name)


def test_the_engine_is_left_as_it_was(row):
    engine = toys.torch_engine(learning_rate=1.0)
    before = {name: tensor.clone() for name, tensor in engine.start.items()}
    for at in train(engine, toys.in_torch(row), plain_descent(toys.RATE)):
        for name, tensor in engine.start.items():
            assert torch.equal(tensor, before[name])
        assert not any(tensor.requires_grad for tensor in at.weights.values())


def test_it_goes_the_same_way_twice_and_when_stopped(row):
    """In torch; in JAX too, where stopping compiles two more programs, if there is something that could be forgotten."""
    strategy = toys.strategy(row)
    whole, again = run(strategy, row), run(strategy, row)
    np.testing.assert_array_equal(whole.exported, again.exported)
    path = run_in_torch(toys.in_torch(row), row)
    end = run_in_torch(toys.in_torch(row), row, resume=path[toys.STEPS // 2])[-1]
    assert same(end.exported, path[-1].exported)
    assert same(end.weights, path[-1].weights)
    if remembers(strategy):
        half = run(strategy, row, stop=toys.STEPS // 2)
        rest = run(strategy, row, resume=half)
        np.testing.assert_array_equal(rest.exported, whole.exported)
        np.testing.assert_array_equal(rest.parameters, whole.parameters)


def test_it_composes(row):
    """With an average beside it, or where that would discard what it exports a ball too large to bind, it trains as alone."""

    def beside(strategy):
        return compose(strategy, Ball(float("inf")) if strategy.exports else EMA(0.5))

    alone = toys.in_torch(row)
    assert same(run_in_torch(beside(alone), row)[-1].weights, run_in_torch(alone, row)[-1].weights)
    strategy = toys.strategy(row)
    if remembers(strategy):  # in JAX too if there are two states to carry
        both = run(beside(strategy), row)
        np.testing.assert_array_equal(both.parameters, run(strategy, row).parameters)


def test_zero_gradients_make_no_nan(row):
    """The task is the safety data, so at the start every gradient is 0."""
    toy, aligned = toys.problem()
    still = SoftmaxLinear(World(toy.world.safety, toy.world.safety), toy.features)
    assert np.all(np.isfinite(run(toys.strategy(row), row, problem=(still, aligned), start=aligned).exported))


def test_it_says_what_it_is(row):
    strategy = toys.strategy(row)
    assert strategy.kind in ("gradient", "loss", "perturb", "data", "weights", "decoding", "schedule", "tuner")
    assert strategy.__doc__ is not None
    assert "Source:" in strategy.__doc__ or row.name == "plain"


def test_names_are_unique_and_an_unknown_one_is_an_error():
    names = [row.name for row in registry.all()]
    assert len(set(names)) == len(names)
    with pytest.raises(KeyError, match="no strategy is named 'emma'"):
        registry.get("emma")


@pytest.mark.parametrize("loss", [TASK, SAFETY], ids=["task", "safety"])
def test_an_engine_differentiates_a_loss_by_its_cells(loss):
    engine = toys.jax_engine()
    by_cells = engine.gradient(loss, engine.start)
    whole = jax.grad(lambda at: loss.value(engine.data, engine.log_policy(at)))(engine.start)
    np.testing.assert_allclose(by_cells[toys.WHOLE], whole[toys.WHOLE], atol=1e-15)
