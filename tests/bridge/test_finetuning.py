"""The gradient is the objective's, the frontier is never crossed, and the checkpoint is left as it was."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import tradeoff as to
from tests.bridge.runs import TINY, same_run, table
from tests.bridge.tiny_models import make_tokenizer, save_tiny
from tradeoff.bridge import finetuning as module
from tradeoff.bridge import policy
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.finetuning import FineTuned, Recipe, adapted, finetune
from tradeoff.bridge.objective import Objective
from tradeoff.bridge.projection import lora_factors
from tradeoff.tolerances import BOUND, IDENTITY, MODEL_GRADIENT, SCORE
from tradeoff.worlds import World
from tradeoff.worlds.text import requests

SAME_GRADIENT = MODEL_GRADIENT.relative
SAME_POLICY = {torch.float64: IDENTITY.relative, torch.float32: SCORE.absolute}
NEVER_BELOW = BOUND.relative
CLOSE = 0.1  # nats above the best possible, for a tiny model trained in seconds; it starts more than fifty above
F64, F32 = torch.float64, torch.float32


@pytest.fixture
def tiny(tiny_folder: Path) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


# --- the objective and its gradient ------------------------------------------------------------------------------


def plain_objective(checkpoint: Checkpoint, world: World, penalty: float) -> torch.Tensor:
    """J written out."""
    capability, seen = world.capability, world.training_safety
    cost = np.asarray(capability.p)[:, None] * capability.P + penalty * np.asarray(seen.p)[:, None] * seen.P
    return -(torch.tensor(np.asarray(cost)) * table(checkpoint, world)).sum()


@pytest.mark.parametrize("architecture", policy.PACKED_ARCHITECTURES)
@pytest.mark.parametrize(("upper_layers", "dtype"), [(1, F64), (2, F64), (None, F64), (2, F32)])
def test_the_gradient_is_that_of_the_objective_recomputed_in_full(
    architecture: str, upper_layers: int | None, dtype: torch.dtype, tmp_path: Path, few: World
) -> None:
    checkpoint = load(save_tiny(tmp_path, architecture), device="cpu", dtype=dtype)
    recipe = dataclasses.replace(TINY, upper_layers=upper_layers)
    with module._trained(checkpoint, recipe) as parameters:
        torch.manual_seed(1)
        for p in parameters.values():  # at the start half of the adapters are 0, and so is the gradient of the others
            p.data.normal_(std=0.1)
        objective = Objective(checkpoint, policy.encode(checkpoint, few), upper_layers, batch_size=3)
        found = objective.pull(module._cell_weights(few, recipe.penalty))
        expected = torch.autograd.grad(plain_objective(checkpoint, few, recipe.penalty), list(parameters.values()))
        scale = max(float(g.abs().max()) for g in expected)
        for p, gradient in zip(parameters.values(), expected, strict=True):
            assert p.grad is not None
            assert float((p.grad - gradient).abs().max()) < SAME_GRADIENT * scale
        assert np.abs(found - policy.reference_log_policy(checkpoint, few)).max() < SAME_POLICY[dtype]


def test_adapters_sit_on_every_linear_map_of_the_upper_layers_only(tiny: Checkpoint) -> None:
    with module._trained(tiny, TINY) as parameters:
        layers = {name.split(".layers.")[1].split(".")[0] for name in parameters}
        maps = {name.split(".lora_")[0].split(".")[-1] for name in parameters}
    assert layers == {"1", "2"}
    assert maps == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_weights_of_the_objective_are_those_of_the_theory(world: World) -> None:
    """J = Σ m M (-log π): its minimiser is T1's mixture, with the proxy in place of the safety data."""
    weights = module._cell_weights(world, 2.0)
    mixture = weights / weights.sum(axis=1, keepdims=True)
    assert np.allclose(np.log(mixture), to.loss_constraint.optimal_policy(world, 2.0), rtol=0, atol=1e-12)


def test_the_lower_layers_are_computed_once(tiny: Checkpoint, world: World) -> None:
    calls = [0, 0, 0]
    handles = [
        layer.register_forward_hook(lambda *_, i=i: calls.__setitem__(i, calls[i] + 1))
        for i, layer in enumerate(tiny.model.base_model.layers)
    ]
    finetune(tiny, world, TINY, progress=False)
    for handle in handles:
        handle.remove()
    assert calls == [1, TINY.steps + 1, TINY.steps + 1]


@pytest.fixture
def able(world: World) -> Checkpoint:
    """A random Llama wide enough for adapters to steer."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(world)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).double().eval().requires_grad_(False)
    return Checkpoint("able", model, tokenizer, {})


ABLE = Recipe(penalty=1.0, steps=120, upper_layers=None, rank=32, learning_rate=2e-2)


@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_a_model_descends_to_its_exact_optimum_and_never_below(penalty: float, able: Checkpoint) -> None:
    world = requests(safety_prompts=2, task_prompts=2)
    run = finetune(able, world, dataclasses.replace(ABLE, penalty=penalty), progress=False)
    total = np.asarray(run.capability_gap + penalty * run.safety_gap)
    assert total.min() > float(to.loss_constraint.value(world, penalty)) - NEVER_BELOW
    points = np.stack([run.safety_gap, run.capability_gap], axis=-1)
    distance = to.frontier.exact(world, [1.0]).distance(points)
    assert distance[-1] < CLOSE < distance[0]
    assert float(distance.min()) > -NEVER_BELOW
    assert (run.capability_gap >= to.frontier.lower_limit(world, run.safety_gap) - NEVER_BELOW).all()


def test_the_penalty_acts_on_the_proxy_and_the_safety_gap_is_the_true_one(able: Checkpoint) -> None:
    """With a far proxy and a large penalty the proxy gap goes to 0 and the true one to about Φ, as T6(c) says."""
    world = requests(safety_prompts=2, task_prompts=2, similarity=0.0)
    run = finetune(able, world, dataclasses.replace(ABLE, penalty=10.0), progress=False)
    exact = to.loss_constraint.gaps(world, 10.0)
    assert run.proxy_gap[-1] < CLOSE < float(exact.safety) / 2
    assert abs(float(run.safety_gap[-1] - exact.safety)) < CLOSE


def test_a_ball_holds_the_update_and_keeps_more_safety(tiny: Checkpoint, world: World) -> None:
    """Case II: the update of the weights ends on the ball that binds; one that does not bind changes nothing."""
    plain = dataclasses.replace(TINY, penalty=0.0)
    free, wide = (finetune(tiny, world, r, progress=False) for r in (plain, dataclasses.replace(plain, radius=1e6)))
    assert same_run(free, wide)
    far = update_length(free)
    held = finetune(tiny, world, dataclasses.replace(plain, radius=far / 4), progress=False)
    assert abs(update_length(held) / (far / 4) - 1) < BOUND.relative
    assert abs(held.safety_gap[-1] - held.safety_gap[0]) < abs(free.safety_gap[-1] - free.safety_gap[0])


def update_length(run: FineTuned) -> float:
    return float(torch.cat([(run.adapter[b] @ run.adapter[a]).ravel() for b, a in lora_factors(run.adapter)]).norm())


def test_the_gaps_are_those_of_the_measured_policies(tiny: Checkpoint, world: World) -> None:
    run = finetune(tiny, world, TINY, progress=False)
    assert run.log_policies.shape == (TINY.steps + 1, *world.safety.P.shape)
    for step in (0, 3, TINY.steps):
        assert run.safety_gap[step] == to.safety_gap(world, run.log_policies[step])
        assert run.capability_gap[step] == to.capability_gap(world, run.log_policies[step])
        assert run.proxy_gap[step] == to.proxy_gap(world, run.log_policies[step])


def test_the_first_policy_is_the_checkpoints_and_the_last_the_adapted_ones(tiny: Checkpoint, world: World) -> None:
    before = policy.log_policy(tiny, world)
    run = finetune(tiny, world, TINY, progress=False)
    assert np.abs(run.log_policies[0] - before).max() < SAME_POLICY[torch.float64]
    with adapted(tiny, run) as tuned:
        assert np.abs(policy.log_policy(tuned, world) - run.log_policies[-1]).max() < SAME_POLICY[torch.float64]
        assert "fine-tuned at λ = 1" in tuned.name
        assert tuned.digest != tiny.digest


def test_the_checkpoint_is_left_as_it_was(tiny: Checkpoint, world: World) -> None:
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    finetune(tiny, world, TINY, progress=False)
    after = tiny.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad for p in tiny.model.parameters())


def test_a_run_is_a_function_of_its_recipe(tiny: Checkpoint, world: World) -> None:
    run = finetune(tiny, world, TINY, progress=False)
    torch.manual_seed(99)  # the seed is the recipe's, not the process's
    assert same_run(run, finetune(tiny, world, TINY, progress=False))
    assert not same_run(run, finetune(tiny, world, dataclasses.replace(TINY, seed=1), progress=False))


def test_the_global_random_stream_is_left_alone(tiny: Checkpoint, world: World) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    finetune(tiny, world, TINY, progress=False)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_size_changes_nothing(batch_size: int, tiny: Checkpoint, world: World) -> None:
    whole = finetune(tiny, world, TINY, progress=False)
    parts = finetune(tiny, world, dataclasses.replace(TINY, batch_size=batch_size), progress=False)
    assert np.abs(whole.log_policies - parts.log_policies).max() < SAME_POLICY[torch.float64]


# --- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"penalty": -1.0}, "penalty=-1.0; the penalty λ must be finite and not negative"),
        ({"penalty": float("nan")}, "penalty=nan"),
        ({"penalty": float("inf")}, "penalty=inf"),
        ({"learning_rate": 0.0}, "learning_rate=0.0; it must be finite and positive"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"steps": 0}, "steps=0; it must be at least 1"),
        ({"rank": 0}, "rank=0"),
        ({"save_every": 0}, "save_every=0"),
        ({"upper_layers": 0}, "upper_layers=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"radius": 0.0}, "radius=0.0; ε must be finite and positive, or None"),
        ({"optimiser": "adam"}, "optimiser='adam'; give one of adamw, sgd"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_an_error(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**{"penalty": 1.0, **settings})


def test_more_upper_layers_than_there_are_is_an_error(tiny: Checkpoint, world: World) -> None:
    with pytest.raises(ValueError, match=r"upper_layers=4 for a model of 3 layers; give at most 3, or None"):
        finetune(tiny, world, dataclasses.replace(TINY, upper_layers=4), progress=False)


def test_an_architecture_without_packed_rows_is_an_error(tmp_path: Path, world: World) -> None:
    with pytest.raises(ValueError, match=r"trains on packed rows, and architecture 'gpt2' is not among.*llama"):
        finetune(load(save_tiny(tmp_path, "gpt2"), device="cpu"), world, TINY, progress=False)


def test_a_world_without_texts_is_an_error_and_leaves_the_model_alone(tiny: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"has no texts"):
        finetune(tiny, to.worlds.golden(), TINY, progress=False)
    assert not any("lora" in name for name, _ in tiny.model.named_modules())


def test_adapters_on_adapters_are_an_error_and_the_first_ones_stay(tiny: Checkpoint, world: World) -> None:
    run = finetune(tiny, world, TINY, progress=False)
    with adapted(tiny, run) as tuned:
        with pytest.raises(ValueError, match=r"has adapters on already.*Leave the `with adapted"):
            finetune(tuned, world, TINY, progress=False)
        assert np.abs(policy.log_policy(tuned, world) - run.log_policies[-1]).max() < SAME_POLICY[torch.float64]


def test_training_that_diverges_is_an_error(tiny: Checkpoint, world: World) -> None:
    with pytest.raises(ValueError, match=r"must be finite.*did not diverge"):
        finetune(tiny, world, dataclasses.replace(TINY, learning_rate=1e200), progress=False)
