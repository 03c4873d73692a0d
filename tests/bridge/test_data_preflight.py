"""Pre-flight on instruction data: slopes and curvatures are those of the losses, and a run is laid beside what was foretold."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch

from tests.bridge.runs import DIFFERENCE, LONG, TINY, assert_slopes_and_curvatures_are_differences, same_weights
from tradeoff import bridge, cli
from tradeoff.bridge import data, rows
from tradeoff.bridge.curvature import norms_in_float64
from tradeoff.bridge.data_tangent import data_tangents
from tradeoff.bridge.local_losses import expand
from tradeoff.tolerances import MODEL_GRADIENT


@pytest.fixture
def checkpoint(tiny_folder) -> bridge.Checkpoint:
    return bridge.load(tiny_folder, device="cpu", dtype=torch.float64)


@pytest.fixture
def three(world):
    task, safety, proxy = (
        data.sample(world, law, n, seed=n)
        for law, n in ((world.capability, 6), (world.safety, 5), (world.training_safety, 4))
    )
    return {"capability": task, "safety": safety, "proxy": proxy}


@pytest.mark.parametrize("rank", [4, None])
def test_slopes_and_curvatures_are_differences_of_the_losses_and_the_weights_come_back(checkpoint, three, rank):
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    with (
        norms_in_float64(checkpoint.model),
        data_tangents(checkpoint, three, dataclasses.replace(TINY, rank=rank)) as around,
    ):
        assert_slopes_and_curvatures_are_differences(around, expand(around, dimensions=3), checkpoint.model)
    assert same_weights(checkpoint.model.state_dict(), before)
    assert not any(tensor.requires_grad for tensor in checkpoint.model.parameters())


def test_the_gauss_newton_form_is_the_second_derivative_of_the_divergence(checkpoint, three):
    """Not of the loss, whose Hessian has a part more."""
    encoded = rows.encode(checkpoint, three["capability"])

    def laws() -> torch.Tensor:
        with torch.no_grad():
            found = [checkpoint.model(torch.tensor([row.read])).logits[0, len(row.prompt) - 1 :] for row in encoded]
        return torch.log_softmax(torch.cat(found), -1)

    with norms_in_float64(checkpoint.model), data_tangents(checkpoint, three, TINY) as around:
        v = around.gradient("capability")
        v = v / np.linalg.norm(v)
        form, whole = (float(v @ of("capability", v)) for of in (around.product, around.hessian_product))
        start, divergence = laws(), 0.0
        for t in (-LONG, LONG):
            with around.flat.moved(t * v):
                divergence += float((start.exp() * (start - laws())).sum(-1).mean()) / LONG**2
    np.testing.assert_allclose(form, divergence, rtol=DIFFERENCE)
    assert abs(whole - form) > 100 * DIFFERENCE * abs(form)


def test_products_do_not_depend_on_how_rows_share_passes(checkpoint, three, monkeypatch):
    def product():
        with data_tangents(checkpoint, three, TINY) as around:
            return around.hessian_product("safety", around.gradient("safety"))

    together = product()
    monkeypatch.setattr("tradeoff.bridge.data_tangent.TOKENS", 1)
    alone = product()
    assert np.abs(together - alone).max() <= MODEL_GRADIENT.relative * np.abs(together).max()


def test_a_short_run_ends_where_the_line_said_and_a_run_of_other_data_is_refused(checkpoint, three):
    recipe = dataclasses.replace(TINY, penalty=0.0, steps=3, learning_rate=1e-3, optimiser="sgd")
    flight = bridge.preflight_data(
        checkpoint, three["capability"], three["safety"], recipe, three["proxy"], dimensions=3
    )
    assert "loss per token" in str(flight)
    assert "feature overlap" not in str(flight)
    everything = bridge.Sampling(rows=6, safety_rows=5)
    tuned = bridge.finetune_data(
        checkpoint, recipe, three["capability"], sampling=everything, measure=three, progress=False
    )
    moved = np.sqrt(sum(float((w**2).sum()) for name, w in tuned.adapter.items() if "lora_B" in name))
    line = flight.plain
    for kind in ("capability", "safety", "proxy"):
        foretold = line.slope[kind] * moved + line.curvature[kind] * moved**2 / 2
        change = float(tuned.losses[kind][-1] - tuned.losses[kind][0])
        assert abs(foretold - change) <= 0.05 * abs(change)
    compared = flight.compare(tuned)
    assert compared.safety_gap == tuned.losses["safety"][-1]
    other = bridge.finetune_data(checkpoint, recipe, three["capability"], progress=False)
    with pytest.raises(ValueError, match="the run measured nothing and not capability and safety"):
        flight.compare(other)


def test_the_command_foretells_on_files(tiny_folder, world, tmp_path, capsys, monkeypatch):
    files = {}
    for role, law in (("task", world.capability), ("safety", world.safety)):
        sample = data.sample(world, law, 4, seed=1)
        files[role] = tmp_path / f"{role}.jsonl"
        said = [{"prompt": each.prompt[-1].content, "completion": each.answer} for each in sample.examples]
        files[role].write_text("\n".join(map(json.dumps, said)))
    words = ["tradeoff", "lm", "preflight", "--checkpoint", str(tiny_folder), "--upper-layers", "1", "--rank", "2"]
    told = [*words, "--task", str(files["task"]), "--safety", str(files["safety"]), "--dimensions", "2", "--json"]
    monkeypatch.setattr(sys, "argv", told)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    found = json.loads(capsys.readouterr().out)
    assert found["start"]["safety_loss_per_token"] > 0
    assert found["recommended"] is None or found["recommended"]["penalty"] >= 0
    monkeypatch.setattr(sys, "argv", [*words, "--task", str(files["task"])])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code
    assert "--safety" in capsys.readouterr().err
