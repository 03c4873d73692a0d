"""Strategies that move hidden states do so on a checkpoint, as autograd would, and leave nothing behind."""

import dataclasses
from contextlib import ExitStack
from pathlib import Path

import jax
import pytest
import torch

from tests.bridge.runs import TINY, same_run, same_weights
from tradeoff.bridge import policy
from tradeoff.bridge.checkpoint_engine import CheckpointEngine
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.finetuning import finetune
from tradeoff.bridge.objective import Objective
from tradeoff.bridge.probes import Probing
from tradeoff.bridge.trainable import layer_names, trainable
from tradeoff.strategies import SAFETY, SAP, TASK, Loss, SAPReleased, TVaccine, Vaccine
from tradeoff.strategies.probing import DIFFERENCE
from tradeoff.tolerances import MODEL_GRADIENT
from tradeoff.worlds import World

RANKS = pytest.mark.parametrize("rank", [4, None], ids=["factors", "in full"])
PROBED = (1, 2)
"""The layers that are trained."""


@pytest.fixture
def tiny(tiny_folder: Path) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


@pytest.fixture
def probed(tiny: Checkpoint, few: World):
    """An engine with probes of a kind, and weights somewhere; two batches."""
    with ExitStack() as stack:

        def make(kind, rank):
            parameters = stack.enter_context(trainable(tiny, rank, len(PROBED), seed=0))
            torch.manual_seed(1)
            for p in parameters.values():
                p.data += 0.1 * torch.randn_like(p)
            probing = Probing(kind, layer_names(parameters))
            objective = Objective(tiny, policy.encode(tiny, few), len(PROBED), 2, probing)
            return CheckpointEngine(objective, parameters, few, jax.random.key(0), steps=1), parameters

        yield make


def loss_with(checkpoint, world, cells, term):
    """A weighted cross-entropy, every sequence by itself, with terms in the hidden states of blocks that `term` gives."""
    encoding, total = policy.encode(checkpoint, world), 0.0
    layers = checkpoint.model.base_model.layers
    for x, prompt in enumerate(encoding.prompts):
        for y, response in enumerate(encoding.responses):
            tokens = prompt + response[:-1]
            handles = []
            for number in PROBED:
                block, added = term(number, x, tokens, layers[number])

                def plus(_module, _inputs, output, added=added):
                    return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

                handles.append(block.register_forward_hook(plus))
            logits = checkpoint.model(torch.tensor([tokens])).logits[0, len(prompt) - 1 :]
            for handle in handles:
                handle.remove()
            said = torch.log_softmax(logits, -1).gather(-1, torch.tensor(response)[:, None]).sum()
            total = total - cells[x, y] * said
    return total


def slopes(loss, at):
    found = torch.autograd.grad(loss, list(at.values()), allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(at.items(), found, strict=True)}


def length(vectors):
    return torch.stack([v.norm() for v in vectors]).norm()


def agree(found, expected, other):
    """Equal to the accuracy of a model's gradient, which `other` is not."""
    scale = max(float(g.abs().max()) for g in expected.values())
    assert max(float((found[name] - g).abs().max()) for name, g in expected.items()) < MODEL_GRADIENT.relative * scale
    away = max(float((other[name] - g).abs().max()) for name, g in expected.items())
    assert away > 100 * MODEL_GRADIENT.relative * scale


@RANKS
def test_vaccine_moves_every_hidden_state_of_every_prompt_behind_the_attention_blocks(rank, probed, tiny, few):
    """A state is known by its layer, its prompt and the tokens that it has seen; the terms are leaves of autograd."""
    engine, parameters = probed("attention", rank)
    rho, leaves = 0.5, {}

    def term(number, x, tokens, layer):
        keys = [(number, x, tokens[: t + 1]) for t in range(len(tokens))]
        mine = [leaves.setdefault(key, torch.zeros(32, dtype=torch.float64, requires_grad=True)) for key in keys]
        return layer.self_attn, torch.stack(mine)

    cells = SAFETY.cells(engine.data, engine.data.start)
    uphill = slopes(loss_with(tiny, few, cells, term), leaves)
    plain = slopes(loss_with(tiny, few, cells, term), parameters)
    size = length(uphill.values())
    leaves = {key: rho * slope / size for key, slope in uphill.items()}
    expected = slopes(loss_with(tiny, few, cells, term), parameters)
    found = Vaccine(rho).gradient(lambda at: engine.gradient(SAFETY, at), {}, engine.start, 0, engine)
    agree(found, expected, plain)
    assert not any(found[name].any() for name in found.keys() - parameters.keys())


def test_sap_moves_a_bias_behind_every_mlp(probed, tiny, few):
    engine, parameters = probed("mlp", 4)
    eps, beta = 0.3, 0.5
    biases = {n: torch.zeros(32, dtype=torch.float64, requires_grad=True) for n in PROBED}

    def loss(of):
        cells = of.cells(engine.data, engine.data.start)
        return loss_with(tiny, few, cells, lambda number, _x, _tokens, layer: (layer.mlp.down_proj, biases[number]))

    harm, plain, here = slopes(loss(DIFFERENCE), parameters), slopes(loss(TASK), parameters), slopes(loss(TASK), biases)
    size = length(harm.values())
    for name, p in parameters.items():
        p.data += eps * harm[name] / size
    there = slopes(loss(TASK), biases)
    for name, p in parameters.items():
        p.data.copy_(engine.start[name])
    biases = {n: beta * (there[n] - here[n]) for n in PROBED}
    expected = slopes(loss(TASK), parameters)
    found = SAP(eps, beta).gradient(lambda at: engine.gradient(TASK, at), {}, engine.start, 0, engine)
    agree(found, expected, plain)


class Broken(Loss):
    """A loss that fails once the scores are there."""

    def value(self, data, log_policy):
        raise ZeroDivisionError

    cells = value


@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_weights_and_activations_are_left_as_they_were_also_by_an_error(kind, probed, tiny):
    engine, parameters = probed(kind, 4)
    live = {**parameters, **engine._objective.probes}
    before, scores = {name: p.detach().clone() for name, p in live.items()}, engine._objective.scores()
    away = {name: p + 0.1 for name, p in before.items()}
    engine.gradient(SAFETY, away)
    with pytest.raises(ZeroDivisionError):
        engine.gradient(Broken(), away)
    assert same_weights(live, before)
    assert (engine._objective.scores() == scores).all()
    assert (engine.log_policy(away).numpy() != scores).any()
    assert not any(module._forward_hooks for module in tiny.model.modules())
    assert all(p.grad is None for p in live.values())


@RANKS
def test_t_vaccine_trains_the_layers_that_are_drawn_and_no_other(rank, tiny, world):
    recipe = dataclasses.replace(TINY, rank=rank, steps=3, penalty=0.0, stage="alignment")
    strategy = TVaccine(0.5, layers=1, redraw=3)
    run = finetune(tiny, world, recipe, progress=False, strategy=strategy)
    with trainable(tiny, rank, TINY.upper_layers, TINY.seed) as parameters:
        moved = {layer_names([name])[0] for name, p in parameters.items() if not torch.equal(run.adapter[name], p)}
        assert run.adapter.keys() == parameters.keys(), "no probe is part of the model"
    assert len(moved) == 1
    both = finetune(tiny, world, recipe, progress=False, strategy=TVaccine(0.5, layers=2))
    assert not same_weights(both.adapter, run.adapter)


def test_a_run_with_probes_is_resumed_to_the_same_bits(tiny, world, tmp_path):
    """The released probing remembers its probe and the moments of it."""
    strategy = SAPReleased()
    unbroken = finetune(tiny, world, TINY, tmp_path / "unbroken", progress=False, strategy=strategy)
    sound, steps = CheckpointEngine.settle, []

    def settle(self, weights):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        sound(self, weights)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointEngine, "settle", settle)
        with pytest.raises(KeyboardInterrupt):
            finetune(tiny, world, TINY, tmp_path / "broken", progress=False, strategy=strategy)
    assert same_run(unbroken, finetune(tiny, world, TINY, tmp_path / "broken", progress=False, strategy=strategy))
    assert not same_weights(unbroken.adapter, finetune(tiny, world, TINY, progress=False).adapter)
