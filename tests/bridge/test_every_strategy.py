"""Every row of the registry trains a checkpoint in its own stage, is plain where it is off, and leaves the model as it was."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bridge.runs import TINY, same_weights
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.finetuning import finetune
from tradeoff.bridge.trainable import trainable
from tradeoff.strategies import LBSGD, SAFETY, LookAhead, registry
from tradeoff.strategies.barrier import Constraint
from tradeoff.tolerances import SCORE
from tradeoff.worlds import World
from tradeoff.worlds.text import requests

RECIPE = dataclasses.replace(TINY, rank=None, steps=2, optimiser="sgd", learning_rate=1e-3)
TABLES = ("raft", "dpo", "rejection-sampling")
"""Rows that need a judge's marks, of every response."""
OWN_WORDS = {"derta": {"refusal": "sorry"}, "t-vaccine": {"layers": 1}}
"""Settings for a model of three layers and few words."""


@pytest.fixture
def tiny(tiny_folder: Path) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


def made(make, row, tiny, world):
    """A row's strategy for this model and world."""
    with trainable(tiny, RECIPE.rank, RECIPE.upper_layers, RECIPE.seed) as parameters:
        given = {name: p.detach().clone() for name, p in parameters.items()}
    if row.name in TABLES:
        given = {"marks": np.eye(len(world.responses))}
    elif row.name == "tsdi":
        given = {"bias": np.eye(len(tiny.tokenizer))}
    elif row.name == "lb-sgd":
        return LBSGD((Constraint(SAFETY, 1e3, 5.0),), 5.0)
    one = make(given)
    if isinstance(one, LookAhead) and one.connector:
        one = dataclasses.replace(one, connector=" Sure, here", prefix="Of course,")
    return dataclasses.replace(one, **OWN_WORDS.get(row.name, {}))


def recipe_of(row, strategy):
    """Its stage; without a penalty where the strategy brings a loss of its own; with the step that it demands."""
    recipe = RECIPE
    if row.aligns:
        recipe = dataclasses.replace(recipe, stage="alignment", penalty=0.0)
    if strategy.owns == "loss" and not strategy.maps_examples:
        recipe = dataclasses.replace(recipe, penalty=0.0)
    return dataclasses.replace(recipe, learning_rate=1.0) if strategy.owns == "step" else recipe


@pytest.mark.parametrize("row", registry.all(), ids=lambda row: row.name)
def test_it_trains_a_checkpoint(row, tiny: Checkpoint, world: World):
    strategy = made(row.make, row, tiny, world)
    recipe = recipe_of(row, strategy)
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    run = finetune(tiny, world, recipe, progress=False, strategy=strategy)
    assert same_weights(tiny.model.state_dict(), before)
    assert not any(module._forward_hooks for module in tiny.model.modules())
    assert any(not torch.equal(tensor, before[name]) for name, tensor in run.last.items())
    if isinstance(row.off, str):
        return
    idle = made(row.off, row, tiny, world)
    if row.name == "t-vaccine":
        idle = dataclasses.replace(idle, layers=RECIPE.upper_layers)
    off = finetune(tiny, world, recipe, progress=False, strategy=idle)
    plain = finetune(tiny, world, recipe, progress=False)
    # To the bit, but for one that sums a loss of its own in another order or lays its own examples into other rows.
    rounding = SCORE.absolute if idle.owns == "loss" or idle.maps_examples else 0.0
    for name, tensor in off.adapter.items():
        torch.testing.assert_close(tensor, plain.adapter[name], rtol=0, atol=rounding)
    np.testing.assert_allclose(off.log_policies, plain.log_policies, rtol=0, atol=rounding)


def test_the_stage_of_alignment_descends_the_safety_data_alone(tiny: Checkpoint, world: World):
    """To the bit as fine-tuning does whose task is what the safety data say, and with a proxy that is the proxy."""
    far = requests(safety_prompts=5, task_prompts=3, overlap=0.4, similarity=0.0)
    recipe = dataclasses.replace(RECIPE, stage="alignment", penalty=0.0)
    for one in (world, far):
        run = finetune(tiny, one, recipe, progress=False)
        task = World(one.safety, one.training_safety, None, one.contexts, one.responses)
        other = finetune(tiny, task, dataclasses.replace(recipe, stage="fine-tuning"), progress=False)
        assert same_weights(run.adapter, other.adapter)
    assert not same_weights(run.adapter, finetune(tiny, world, recipe, progress=False).adapter)
    for settings in ({"stage": "before"}, {"stage": "alignment", "penalty": 1.0}):
        with pytest.raises(ValueError, match="stage="):
            dataclasses.replace(RECIPE, **settings)
