"""What lower layers make of rows is shared by runs on them: nothing changes, nothing is computed twice, nothing false is taken."""

import dataclasses

import pytest
import torch

from tradeoff import bridge
from tradeoff.bridge import LowerStates, Recipe, Sampling, data, rows

RECIPE = Recipe(penalty=0.5, steps=3, rank=2, upper_layers=1, learning_rate=1e-2)
SAMPLING = Sampling(rows=3, safety_rows=2, tokens=40)


@pytest.fixture
def checkpoint(tiny_folder):
    return bridge.load(tiny_folder, dtype=torch.float64)


@pytest.fixture
def task(world):
    return data.sample(world, world.capability, 6, seed=1)


@pytest.fixture
def safety(world):
    return data.sample(world, world.safety, 6, seed=2)


def tuned(start, task, safety, lower):
    return bridge.finetune_data(
        start, RECIPE, task, safety, sampling=SAMPLING, measure={"task": task}, lower=lower, progress=False
    )


def test_runs_that_share_end_where_those_that_do_not_end(checkpoint, task, safety):
    lower = LowerStates(checkpoint, RECIPE.upper_layers)
    alone, first = tuned(checkpoint, task, safety, None), tuned(checkpoint, task, safety, lower)
    known = len(lower)
    second = tuned(bridge.merged(checkpoint, first), task, safety, lower)
    assert len(lower) == known > 0
    again = tuned(bridge.merged(checkpoint, alone), task, safety, None)
    for shared, own in ((first, alone), (second, again)):
        assert all(torch.equal(shared.adapter[name], own.adapter[name]) for name in own.adapter)
        assert shared.losses["task"].tolist() == own.losses["task"].tolist()


def test_a_pre_flight_foretells_the_same_of_shared_states(checkpoint, task, safety):
    lower = LowerStates(checkpoint, RECIPE.upper_layers)
    shared, own = (
        bridge.preflight_data(checkpoint, task, safety, RECIPE, dimensions=2, lower=each) for each in (lower, None)
    )
    assert len(lower) > 0
    assert shared.predict(0.5) == own.predict(0.5)


def test_without_room_rows_are_computed_each_time(checkpoint, task):
    row = rows.encode(checkpoint, task)[0]
    none, some = LowerStates(checkpoint, 1, most_bytes=0), LowerStates(checkpoint, 1)
    assert torch.equal(none.of(row), some.of(row))
    assert (len(none), len(some)) == (0, 1)
    assert some.of(row) is some.of(row)


def test_states_of_other_layers_are_refused(checkpoint, task, safety):
    with pytest.raises(ValueError, match=r"behind 0 layers, and .* trains what lies above \d+; make them with"):
        tuned(checkpoint, task, safety, LowerStates(checkpoint, None))
    run = bridge.finetune_data(
        checkpoint, dataclasses.replace(RECIPE, upper_layers=None), task, safety, sampling=SAMPLING, progress=False
    )
    lower = LowerStates(bridge.merged(checkpoint, run), RECIPE.upper_layers)
    with pytest.raises(ValueError, match="are not those of .* upper layers alone were trained"):
        tuned(checkpoint, task, safety, lower)
    with pytest.raises(ValueError, match="are not those of"):
        bridge.preflight_data(checkpoint, task, safety, RECIPE, dimensions=2, lower=lower)
