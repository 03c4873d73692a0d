"""Training on instruction data: its gradient is that of the plain loss, one row at a time; its runs resume; it refuses well."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from tradeoff import bridge
from tradeoff.bridge import Recipe, Sampling, data, data_finetuning, rows
from tradeoff.bridge.answers import Answers
from tradeoff.bridge.data_engine import DataEngine, drawn
from tradeoff.bridge.live import Live
from tradeoff.bridge.lower import LowerStates
from tradeoff.bridge.trainable import trainable
from tradeoff.strategies import ALIGNMENT, EMA, EWC, SAFETY, TASK, Booster, SafeGrad, Weighted
from tradeoff.tolerances import EXACT, MODEL_GRADIENT

RECIPE = Recipe(penalty=0.5, steps=4, rank=2, upper_layers=2, learning_rate=1e-2, save_every=2)
HALF_PRECISION = 0.05  # of losses after a dozen steps, in a number format of three digits
SAMPLING = Sampling(rows=3, safety_rows=2, tokens=40)


@pytest.fixture
def checkpoint(tiny_folder: Path) -> bridge.Checkpoint:
    return bridge.load(tiny_folder, dtype=torch.float64)


@pytest.fixture
def task(world):
    return data.sample(world, world.capability, 7, seed=1)


@pytest.fixture
def safety(world):
    return data.sample(world, world.safety, 5, seed=2)


def loss_of(checkpoint, encoded, places):
    """The mean loss of the answers' tokens by the model's own forward pass, one unpadded row at a time."""
    total, count = 0.0, 0
    for place in places:
        row = encoded[place]
        logits = checkpoint.model(torch.tensor([row.read])).logits[0, len(row.prompt) - 1 :]
        total = total + cross_entropy(logits, torch.tensor(row.answer), reduction="sum")
        count += len(row.answer)
    return total / count


@pytest.mark.parametrize("upper_layers", [1, None])
def test_the_gradient_is_that_of_the_mean_loss_of_the_steps_answers(checkpoint, task, safety, upper_layers):
    encoded = {"task": rows.encode(checkpoint, task), "safety": rows.encode(checkpoint, safety)}
    with trainable(checkpoint, None, upper_layers, 0) as parameters:
        answers = {role: Answers(checkpoint, each, upper_layers, 40) for role, each in encoded.items()}
        key = jax.random.key(0)
        engine = DataEngine(answers, Live(parameters), SAMPLING, key, 10)
        engine.step = 3
        found = engine.gradient(Weighted(((1.0, TASK), (0.5, SAFETY))), engine.start)
        seen = {role: drawn(key, role, 3, n, len(encoded[role])) for role, n in (("task", 3), ("safety", 2))}
        losses = {role: loss_of(checkpoint, encoded[role], places) for role, places in seen.items()}
        wanted = torch.autograd.grad(losses["task"] + 0.5 * losses["safety"], list(parameters.values()))
        for name, one in zip(parameters, wanted, strict=True):
            assert float((found[name] - one).abs().max()) <= MODEL_GRADIENT.relative * float(one.abs().max())
        np.testing.assert_allclose(engine.value(TASK, engine.start), losses["task"].item(), rtol=EXACT.relative)


def test_the_pull_towards_the_start_is_the_divergences_gradient(checkpoint, safety):
    encoded = rows.encode(checkpoint, safety)
    places = drawn(jax.random.key(0), "safety", 0, 2, len(encoded))

    def laws(row):
        return torch.log_softmax(checkpoint.model(torch.tensor([row.read])).logits[0, len(row.prompt) - 1 :], -1)

    with trainable(checkpoint, None, 2, 0) as parameters:
        live = Live(parameters)
        engine = DataEngine({"safety": Answers(checkpoint, encoded, 2, 40)}, live, SAMPLING, jax.random.key(0), 10)
        assert all(float(each.abs().max()) == 0 for each in engine.gradient(ALIGNMENT, engine.start).values())
        before = [laws(encoded[place]).detach() for place in places]
        moved = engine.normal("moved", 0, engine.start)
        found = engine.gradient(ALIGNMENT, moved)
        live.put(moved)
        divergences = [(p.exp() * (p - laws(encoded[place]))).sum() for p, place in zip(before, places, strict=True)]
        total = torch.stack(divergences).sum() / sum(map(len, before))
        assert total.item() > 0
        for name, one in zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True):
            assert float((found[name] - one).abs().max()) <= MODEL_GRADIENT.relative * float(one.abs().max())


def test_what_lower_layers_made_is_kept_and_rows_share_batches_freely(checkpoint, task):
    encoded = rows.encode(checkpoint, task)
    lower = LowerStates(checkpoint, 1)
    answers = Answers(checkpoint, encoded, 1, 10_000, lower)
    together = answers.log_probabilities(range(len(encoded)))
    assert len(lower) == len({row.read for row in encoded})
    alone = Answers(checkpoint, encoded, None, 1)
    apart = torch.cat([alone.log_probabilities([place]) for place in range(len(encoded))])
    np.testing.assert_allclose(together, apart, rtol=EXACT.relative)
    oracle = rows.token_log_probabilities(checkpoint, encoded)
    np.testing.assert_allclose(together, np.concatenate(oracle), rtol=EXACT.relative)


def test_a_run_learns_and_leaves_the_checkpoint_as_it_was(checkpoint, task, safety):
    before = checkpoint.digest, [p.clone() for p in checkpoint.model.parameters()]
    run = bridge.finetune_data(
        checkpoint, RECIPE, task, safety, sampling=SAMPLING, measure={"task": task}, measure_every=2, progress=False
    )
    assert run.measured_at.tolist() == [0, 2, 4]
    assert run.losses["task"][-1] < run.losses["task"][0]
    assert run.gradients.tolist() == [1, 1, 1, 1]
    assert all(torch.equal(one, other) for one, other in zip(before[1], checkpoint.model.parameters(), strict=True))
    with bridge.adapted(checkpoint, run) as tuned:
        after = -np.concatenate(rows.token_log_probabilities(tuned, rows.encode(tuned, task))).mean()
    np.testing.assert_allclose(after, run.losses["task"][-1], rtol=EXACT.relative)


@pytest.mark.parametrize("strategy", [EMA(0.5), SafeGrad()])
def test_an_interrupted_run_ends_in_the_same_weights(checkpoint, task, safety, tmp_path, strategy, monkeypatch):
    arguments = {"sampling": SAMPLING, "strategy": strategy, "measure": {"safety": safety}, "progress": False}
    whole = bridge.finetune_data(checkpoint, RECIPE, task, safety, **arguments)
    pull, asked = Live.pulled, []

    def interrupted(*given):
        asked.append(1)
        if len(asked) > 2 * whole.gradients[0] + 1:
            raise KeyboardInterrupt
        return pull(*given)

    monkeypatch.setattr(Live, "pulled", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bridge.finetune_data(checkpoint, RECIPE, task, safety, folder=tmp_path, **arguments)
    monkeypatch.setattr(Live, "pulled", pull)
    resumed = bridge.finetune_data(checkpoint, RECIPE, task, safety, folder=tmp_path, **arguments)
    assert all(torch.equal(resumed.adapter[name], whole.adapter[name]) for name in whole.adapter)
    np.testing.assert_array_equal(resumed.losses["safety"], whole.losses["safety"])
    with pytest.raises(ValueError, match="belongs to another run .*data"):
        bridge.finetune_data(checkpoint, RECIPE, safety, safety, folder=tmp_path, **arguments)


KILLED = """
import os, signal, sys, torch
sys.path.insert(0, sys.argv[3])
torch.set_num_threads(1)
from tests.bridge import test_data_finetuning as here
from tests.bridge.tiny_models import text_world
from tradeoff import bridge
from tradeoff.bridge.live import Live
from tradeoff.bridge.lower import LowerStates
pull, asked = Live.pulled, []
def pulled(*given):
    asked.append(1)
    if len(asked) == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
    return pull(*given)
Live.pulled = pulled
here.measured_run(bridge.load(sys.argv[1], device="cpu", dtype=torch.float64), text_world(), sys.argv[2])
"""


def measured_run(checkpoint, world, folder=None):
    """A run that measures after every step."""
    task, safety = data.sample(world, world.capability, 7, seed=1), data.sample(world, world.safety, 5, seed=2)
    watched = {"measure": {"safety": safety}, "measure_every": 1}
    return bridge.finetune_data(
        checkpoint, RECIPE, task, safety, sampling=SAMPLING, folder=folder, progress=False, **watched
    )


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a POSIX system to kill a process outright")
def test_killed_outright_a_run_loses_no_measurement_that_it_saved(
    tiny_folder, checkpoint, world, tmp_path, monkeypatch
):
    whole = measured_run(checkpoint, world)
    saved, asked = whole.gradients[: RECIPE.save_every].sum(), whole.gradients.sum()
    moment = np.random.default_rng(0).integers(saved + 1, asked + 1)
    command = [sys.executable, "-c", KILLED, tiny_folder, tmp_path, Path(__file__).parents[2], moment]
    assert subprocess.run([*map(str, command)], check=False).returncode == -signal.SIGKILL
    measure, measured = data_finetuning._History.measure, []
    monkeypatch.setattr(data_finetuning._History, "measure", lambda *given: (measured.append(1), measure(*given))[1])
    resumed = measured_run(checkpoint, world, tmp_path)
    assert 0 < len(measured) <= RECIPE.steps - RECIPE.save_every
    np.testing.assert_array_equal(resumed.losses["safety"], whole.losses["safety"])
    assert all(torch.equal(resumed.adapter[name], whole.adapter[name]) for name in whole.adapter)


@pytest.mark.parametrize("rank", [4, None])
def test_half_precision_learns_as_much(tiny_folder, task, rank):
    recipe = dataclasses.replace(RECIPE, penalty=0.0, steps=12, rank=rank)
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        one = bridge.load(tiny_folder, dtype=dtype)
        run = bridge.finetune_data(one, recipe, task, sampling=SAMPLING, measure={"task": task}, progress=False)
        assert {tensor.dtype for tensor in run.adapter.values()} == {dtype}
        ends.append(run.losses["task"])
    assert ends[0][-1] < 0.8 * ends[0][0]
    np.testing.assert_allclose(ends[1], ends[0], rtol=HALF_PRECISION)


def test_the_stage_of_alignment_needs_no_task(checkpoint, safety, task):
    recipe = dataclasses.replace(RECIPE, penalty=0, stage="alignment")
    run = bridge.finetune_data(
        checkpoint, recipe, safety=safety, harmful=task, strategy=Booster(), measure={"safety": safety}, progress=False
    )
    assert run.losses["safety"][-1] < run.losses["safety"][0]


def test_every_row_is_seen_once_before_any_is_seen_again():
    seen = [place for step in range(10) for place in drawn(jax.random.key(1), "task", step, 3, 5)]
    for epoch in range(6):
        assert sorted(seen[5 * epoch : 5 * epoch + 5]) == list(range(5))
    assert seen[:5] != seen[5:10]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"safety": None}, "no safety data, .* give safety="),
        ({"task": None}, "no task data"),
        ({"strategy": EWC(1.0)}, "every answer's probability"),
        ({"strategy": Booster(), "harmful": None}, "asks for harmful data"),
        ({"measure_every": 0}, "measure_every=0"),
    ],
)
def test_what_cannot_be_trained_is_refused(checkpoint, task, safety, change, message):
    arguments = {"task": task, "safety": safety, "progress": False} | change
    with pytest.raises(ValueError, match=message):
        bridge.finetune_data(checkpoint, RECIPE, **arguments)
