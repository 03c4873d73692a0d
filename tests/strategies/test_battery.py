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
from tradeoff.strategies import EMA, SAFETY, TASK, compose, registry
from tradeoff.tolerances import IDENTITY
from tradeoff.worlds import World

TRAINED = [row for row in registry.all() if row.stage in ("fine-tuning", "alignment")]
rows = pytest.mark.parametrize("row", TRAINED, ids=lambda row: row.name)


def run(strategy, row, problem=None, **options):
    toy, aligned = toys.problem() if problem is None else problem
    rate = None if strategy.owns == "step" else toys.RATE
    loss = SAFETY if row.stage == "alignment" else None
    start = aligned if row.stage != "alignment" else jnp.zeros_like(aligned)
    settings = {"steps": toys.STEPS, "every": toys.STEPS, "start": start, "key": toys.KEY} | options
    return descend(toy, strategy, learning_rate=rate, loss=loss, **settings)


@rows
def test_off_it_is_plain(row):
    if isinstance(row.off, str):
        assert len(row.off) > 10
        return
    plain = run(registry.get("plain").make({}), row)
    np.testing.assert_array_equal(run(row.off(toys.jax_engine().start), row).exported, plain.exported)


@rows
def test_both_engines_go_the_same_way(row):
    strategy = toys.strategy(row)
    ours = run(strategy, row)
    rate = 1.0 if strategy.owns == "step" else toys.RATE
    engine = toys.torch_engine(learning_rate=rate)
    if row.stage == "alignment":
        engine = toys.torch_engine(learning_rate=rate, start=torch.zeros_like(engine.start[toys.WHOLE]))
    loss = SAFETY if row.stage == "alignment" else None
    *_, last = train(engine, toys.in_torch(row), plain_descent(rate), loss=loss)
    for name, tensor in last.exported.items():
        np.testing.assert_allclose(tensor.numpy(), ours.exported, rtol=0, atol=IDENTITY.relative, err_msg=name)


@rows
def test_the_engine_is_left_as_it_was(row):
    engine = toys.torch_engine(learning_rate=1.0)
    before = {name: tensor.clone() for name, tensor in engine.start.items()}
    for at in train(engine, toys.in_torch(row), plain_descent(toys.RATE)):
        for name, tensor in engine.start.items():
            assert torch.equal(tensor, before[name])
        assert not any(tensor.requires_grad for tensor in at.weights.values())


@rows
def test_it_goes_the_same_way_twice_and_when_stopped(row):
    strategy = toys.strategy(row)
    whole, again = run(strategy, row), run(strategy, row)
    np.testing.assert_array_equal(whole.exported, again.exported)
    half = run(strategy, row, stop=toys.STEPS // 2, every=toys.STEPS // 2)
    rest = run(strategy, row, resume=half, every=toys.STEPS // 2)
    np.testing.assert_array_equal(rest.exported, whole.exported)
    np.testing.assert_array_equal(rest.parameters, whole.parameters)


@rows
def test_it_composes(row):
    """An average of whatever it does is the average of its own run."""
    if row.name.startswith("ema"):
        return
    strategy = toys.strategy(row)
    averaged = run(compose(strategy, EMA(coefficient=0.5)), row, steps=1, every=1)
    alone = run(strategy, row, steps=1, every=1)
    np.testing.assert_array_equal(averaged.parameters, alone.parameters)


@rows
def test_zero_gradients_make_no_nan(row):
    """The task is the safety data, so at the start every gradient is 0."""
    toy, aligned = toys.problem()
    still = SoftmaxLinear(World(toy.world.safety, toy.world.safety), toy.features)
    loss = {"loss": SAFETY} if row.stage == "alignment" else {}
    strategy = toys.strategy(row)
    rate = None if strategy.owns == "step" else toys.RATE
    end = descend(still, strategy, learning_rate=rate, steps=4, every=4, start=aligned, key=toys.KEY, **loss)
    assert np.all(np.isfinite(end.exported))


@rows
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
