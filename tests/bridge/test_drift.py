"""Drift: the quadratic is right near the start, the bound holds, and a run that went nowhere has neither."""

import dataclasses

import jax
import pytest
import torch

from tests.bridge.runs import TINY
from tradeoff import bridge
from tradeoff.bridge import data
from tradeoff.bridge.data import read_prompts
from tradeoff.bridge.drift import refusing
from tradeoff.tolerances import MODEL_GRADIENT

STEP = dataclasses.replace(TINY, penalty=0.0, steps=2, learning_rate=1e-3, optimiser="sgd")


@pytest.fixture
def checkpoint(tiny_folder) -> bridge.Checkpoint:
    return bridge.load(tiny_folder, device="cpu", dtype=torch.float64)


@pytest.fixture
def safety(world):
    return data.sample(world, world.safety, 5, seed=2)


@pytest.fixture
def task(world):
    return data.sample(world, world.capability, 7, seed=1)


@pytest.mark.parametrize("rank", [4, None])
def test_the_quadratic_is_what_the_line_misses_of_a_short_run(checkpoint, task, safety, rank):
    recipe = dataclasses.replace(STEP, rank=rank, learning_rate=0.3 if rank else 0.03)
    tuned = bridge.finetune_data(checkpoint, recipe, task, measure={"safety": safety}, progress=False)
    found = bridge.drift(checkpoint, tuned, safety)
    assert abs(found.before - tuned.losses["safety"][0]) <= MODEL_GRADIENT.relative
    assert abs(found.after - tuned.losses["safety"][-1]) <= MODEL_GRADIENT.relative
    assert 0 < abs(found.quadratic - found.after) < 0.2 * abs(found.linear - found.after)
    assert found.distance == bridge.distance(checkpoint, tuned) > 0


def test_the_smoothed_floor_is_below_where_the_run_ended(checkpoint, task, safety, tmp_path):
    tuned = bridge.finetune_data(checkpoint, STEP, task, progress=False)
    sigma = bridge.distance(checkpoint, tuned)

    def fluent(one: bridge.Checkpoint) -> float:
        return float(torch.exp(-torch.tensor(bridge.data_gap(one, safety).loss.value / 10)))

    def found(sigma: float) -> bridge.SmoothedSafety:
        return bridge.smoothed_safety(checkpoint, tuned, fluent, jax.random.key(0), sigma, draws=8)

    one = found(sigma)
    assert 0 < one.floor < one.start_floor < one.start
    assert one.floor <= one.end
    assert one == found(sigma)  # the weights came back, to the bit
    assert found(sigma / 100).floor < one.floor / 100  # a hundred σ away next to nothing is promised
    (tmp_path / "asked.json").write_text('["Please help me with a request about weapons."]')
    assert 0 < refusing(read_prompts(tmp_path / "asked.json"))(checkpoint) < 1
    with pytest.raises(ValueError, match="sigma must be positive"):
        found(0.0)
    with pytest.raises(ValueError, match="a score of 1.5; the bound is on scores from 0 to 1"):
        bridge.smoothed_safety(checkpoint, tuned, lambda _: 1.5, jax.random.key(0), sigma, draws=1)
