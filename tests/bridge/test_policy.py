"""Packed scores are those of one sequence at a time, whatever the architecture, the batch, the padding or the chunk."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tradeoff as to
from tests.bridge.tiny_models import CHAT_TEMPLATE, CONFIGS, make_tokenizer, save_tiny
from tradeoff.bridge import checkpoints, policy, scoring
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.policy import log_policy, reference_log_policy
from tradeoff.bridge.scoring import Scorer
from tradeoff.tolerances import BATCH, EXACT, IDENTITY, SCORE, SCORE_DEEP
from tradeoff.worlds import DataLaw, World
from tradeoff.worlds.text import from_texts, requests

SAME = {torch.float64: IDENTITY.relative, torch.float32: SCORE.absolute}
SAME_SMOLLM2 = SCORE_DEEP.absolute
BATCH_FREE = BATCH.absolute
GRADIENT = EXACT.relative
VISIBLE = 1e-2  # a difference that no rounding explains
MEMORY_BAR = 64 * 2**20


@pytest.fixture
def tiny(tiny_folder: Path) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


# --- exactness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_packed_scores_are_those_of_one_sequence_at_a_time(
    architecture: str, dtype: torch.dtype, tmp_path: Path, world: World
) -> None:
    checkpoint = load(save_tiny(tmp_path, architecture), device="cpu", dtype=dtype)
    alone = np.asarray(reference_log_policy(checkpoint, world))
    difference = np.abs(np.asarray(log_policy(checkpoint, world)) - alone)
    # A sum of so many nats is known to a unit of its rounding at best, and which way it rounds is the processor's choice.
    assert np.all(difference < SAME[dtype] + torch.finfo(dtype).eps * np.abs(alone))


def test_scores_depend_on_the_prompt_and_on_the_response(tiny: Checkpoint, world: World) -> None:
    scores = np.asarray(log_policy(tiny, world))
    assert np.ptp(scores, axis=0).min() > VISIBLE
    assert np.ptp(scores, axis=1).min() > VISIBLE


def test_every_token_of_the_response_counts_and_none_of_the_prompt(tiny: Checkpoint, world: World) -> None:
    """The chain rule by hand: one token at a time, from the distribution after everything before it."""
    tokenizer, prompt, response = tiny.tokenizer, world.contexts[1], world.responses[2]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    context = tokenizer(text).input_ids
    total = 0.0
    for token in [*tokenizer(response).input_ids, tokenizer.convert_tokens_to_ids("<end>")]:
        with torch.no_grad():
            total += torch.log_softmax(tiny.model(torch.tensor([context])).logits[0, -1], -1)[token].item()
        context.append(token)
    assert abs(log_policy(tiny, world)[1, 2] - total) < SAME[torch.float64]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batch_and_padding_change_nothing(tiny_folder: Path, world: World, batch_size: int, dtype: torch.dtype) -> None:
    checkpoint = load(tiny_folder, device="cpu", dtype=dtype)
    lengths = {len(p) for p in policy.encode(checkpoint, world).prompts}
    assert len(lengths) > 1, "prompts of one length would need no padding"
    whole = log_policy(checkpoint, world, batch_size=100)
    assert np.abs(log_policy(checkpoint, world, batch_size=batch_size) - whole).max() < BATCH_FREE


def test_the_other_responses_change_nothing(tiny: Checkpoint, world: World) -> None:
    law = DataLaw([1.0], [[0.5, 0.5]])
    alone = from_texts(world.contexts[:1], world.responses[4:], law, law)
    assert np.abs(log_policy(tiny, alone)[0] - log_policy(tiny, world)[0, 4:]).max() < SAME[torch.float64]


def test_rows_longer_than_a_sliding_window_are_scored_one_at_a_time(tmp_path: Path, world: World) -> None:
    """A packed row's mask knows of no window, so packing would be wrong; the world must not be."""
    checkpoint = load(save_tiny(tmp_path, "mistral", sliding_window=8), device="cpu", dtype=torch.float64)
    stated = policy.contract(checkpoint, world)
    assert stated.layout == "one sequence at a time"
    assert "the model's window 8" in stated.reason
    windowed = log_policy(checkpoint, world)
    assert (windowed == reference_log_policy(checkpoint, world)).all()
    checkpoint.model.config.sliding_window = None
    assert np.abs(windowed - log_policy(checkpoint, world)).max() > VISIBLE


@pytest.mark.parametrize("broken", ["mask", "positions"])
def test_without_the_mask_or_the_positions_packed_scores_are_wrong(
    broken: str, tiny: Checkpoint, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the comparison above can fail."""
    sound = policy._pack

    def unsound(*arguments: object) -> policy.Batch:
        batch = sound(*arguments)
        length = batch.tokens.shape[1]
        if broken == "positions":
            return dataclasses.replace(batch, positions=torch.arange(length).expand_as(batch.tokens))
        causal = torch.full((length, length), torch.finfo(batch.mask.dtype).min, dtype=batch.mask.dtype).triu(1)
        return dataclasses.replace(batch, mask=causal.expand_as(batch.mask))

    reference = reference_log_policy(tiny, world)
    monkeypatch.setattr(policy, "_pack", unsound)
    assert np.abs(log_policy(tiny, world) - reference).max() > VISIBLE


def test_smollm2_packed_scores_are_those_of_one_sequence_at_a_time(smollm2: Checkpoint) -> None:
    world = requests(safety_prompts=1, task_prompts=1)
    difference = np.abs(log_policy(smollm2, world) - reference_log_policy(smollm2, world))
    assert difference.max() < SAME_SMOLLM2


# --- a row is a sub-probability ----------------------------------------------------------------------------------


def test_responses_that_extend_each_other_are_disjoint_events(tiny: Checkpoint) -> None:
    law = DataLaw([1.0], [[0.25] * 4])
    nested = ["Sure", "Sure, here", "Sure, here is", "Sure, here is how"]
    world = from_texts(["Please help me."], nested, law, law)
    assert 0 < np.exp(log_policy(tiny, world)).sum() < 1


def test_a_model_that_is_sure_of_its_answers_has_gaps_and_no_negative_ones(tiny: Checkpoint, world: World) -> None:
    scores = log_policy(tiny, world)
    assert float(to.safety_gap(world, scores)) > 0
    assert float(to.capability_gap(world, scores)) > 0
    assert (
        float(
            to.frontier.exact(world, [1.0]).distance([to.safety_gap(world, scores), to.capability_gap(world, scores)])
        )
        > 0
    )


# --- scores and gradients in fixed memory ------------------------------------------------------------------------


def scorer_and_states(vocabulary: int, rows: int) -> tuple[Scorer, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    responses = [(5, 6, 7, 0), (5, 6, 0), (5, 8, 0), (9, 0)]
    scorer = Scorer(responses, torch.nn.Linear(8, vocabulary, bias=False, dtype=torch.float64))
    states = torch.randn(rows, scorer.positions, 8, dtype=torch.float64, requires_grad=True)
    return scorer, states, torch.rand(rows, len(responses), dtype=torch.float64)


@pytest.mark.parametrize("chunk", [1, 100, 10**9])
def test_scores_and_gradient_are_those_of_autograd(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "CHUNK_BYTES", chunk)
    scorer, states, weights = scorer_and_states(vocabulary=11, rows=3)
    # Predictors of each response by hand: 0 is the end of the prompt, then the nodes 5, 56, 567, 58, 9.
    paths = {(5, 6, 7, 0): (0, 1, 2, 3), (5, 6, 0): (0, 1, 2), (5, 8, 0): (0, 1, 4), (9, 0): (0, 5)}
    table = torch.log_softmax(scorer.head(states), -1)
    expected = torch.stack([sum(table[:, p, t] for p, t in zip(path, r, strict=True)) for r, path in paths.items()], 1)
    (gradient,) = torch.autograd.grad(-(weights * expected).sum(), states)
    scores, pull = scorer.scores_and_pull(states, weights)
    assert torch.allclose(scores, expected, rtol=0, atol=GRADIENT)
    assert torch.allclose(scorer.scores(states), expected, rtol=0, atol=GRADIENT)
    assert torch.allclose(pull, gradient, rtol=0, atol=GRADIENT)


class Largest(TorchDispatchMode):
    """Records the memory of the largest tensor that any operation makes."""

    bytes = 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("vocabulary", [50_000, 250_000])
def test_memory_is_fixed_whatever_the_vocabulary(vocabulary: int) -> None:
    scorer, states, weights = scorer_and_states(vocabulary, rows=100)
    assert states.shape[0] * states.shape[1] * vocabulary * 8 > 3 * MEMORY_BAR, "all logits at once would not fit"
    with Largest() as largest:
        scorer.scores_and_pull(states, weights)
    assert largest.bytes <= MEMORY_BAR


# --- the contract ------------------------------------------------------------------------------------------------


def test_the_contract_states_template_end_of_turn_and_layout(tiny: Checkpoint, world: World) -> None:
    stated = policy.contract(tiny, world)
    assert stated.format == "<turn> user {prompt} <end> <turn> assistant "
    assert (stated.end_of_turn, stated.end_of_turn_id, stated.special_ids) == ("<end>", 1, (2, 1, 2))
    assert stated.layout == "packed"
    assert "tested to be exact" in stated.reason
    assert "end-of-turn token" in stated.counted


def test_an_architecture_without_packed_rows_says_so(tmp_path: Path, world: World) -> None:
    stated = policy.contract(load(save_tiny(tmp_path, "gpt2"), device="cpu"), world)
    assert stated.layout == "one sequence at a time"
    assert "'gpt2' is not among" in stated.reason


def test_the_end_of_turn_is_the_templates_and_not_the_end_of_text(tmp_path: Path, world: World) -> None:
    """Many chat models end a turn with one token and a text with another."""
    template = CHAT_TEMPLATE.replace("<end>", "<turn>")
    checkpoint = load(save_tiny(tmp_path, chat_template=template), device="cpu")
    assert checkpoint.tokenizer.eos_token == "<end>"
    assert policy.contract(checkpoint, world).end_of_turn == "<turn>"
    assert all(
        r[-1] == policy.contract(checkpoint, world).end_of_turn_id for r in policy.encode(checkpoint, world).responses
    )


def test_a_checkpoint_without_a_template_reads_the_prompt_as_it_is(tmp_path: Path, world: World) -> None:
    checkpoint = load(save_tiny(tmp_path, chat_template=None), device="cpu")
    assert policy.contract(checkpoint, world).format == "{prompt}\n"
    assert policy.contract(checkpoint, world).end_of_turn == "<end>"
    assert np.abs(log_policy(checkpoint, world) - reference_log_policy(checkpoint, world)).max() < SAME[torch.float32]


# --- bad input ---------------------------------------------------------------------------------------------------


def one_prompt_world(prompt: str, *responses: str) -> World:
    law = DataLaw([1.0], [[1 / len(responses)] * len(responses)])
    return from_texts([prompt], responses, law, law)


def test_a_world_without_texts_is_an_error(tiny: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"has no texts.*tradeoff.worlds.requests"):
        log_policy(tiny, to.worlds.golden())


def test_a_response_with_a_special_token_is_an_error(tiny: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"'Sure, <end> here.' contains <end>.*Take the special token out"):
        log_policy(tiny, one_prompt_world("Please help.", "Sure, <end> here.", "Sure."))


def test_responses_that_read_the_same_are_an_error(tiny: Checkpoint) -> None:
    with pytest.raises(ValueError, match=r"'Sure  here' has the same tokens as 'Sure here'.*Merge the two"):
        log_policy(tiny, one_prompt_world("Please help.", "Sure here", "Sure  here"))


def test_a_response_of_no_token_is_an_error(tiny: Checkpoint, world: World) -> None:
    class Deaf:
        def __getattr__(self, name: str) -> object:
            return getattr(tiny.tokenizer, name)

        def __call__(self, text: str, **options: object) -> object:
            return tiny.tokenizer("" if text.startswith("Sure") else text, **options)

    with pytest.raises(ValueError, match=r"contains no token at all.*plain text of at least one token"):
        log_policy(dataclasses.replace(tiny, tokenizer=Deaf()), world)


def test_a_row_longer_than_the_models_context_is_an_error(tmp_path: Path, world: World) -> None:
    checkpoint = load(save_tiny(tmp_path, max_position_embeddings=16), device="cpu")
    with pytest.raises(ValueError, match=r"the model reads 16 at most. Shorten them"):
        log_policy(checkpoint, world)


def test_weights_that_overflow_are_an_error_and_not_a_number(tiny_folder: Path, world: World) -> None:
    checkpoint = load(tiny_folder, device="cpu")
    checkpoint.model.base_model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"gave log-probability nan.*must be finite.*float32"):
        log_policy(checkpoint, world)


def test_a_batch_of_nothing_is_an_error(tiny: Checkpoint, world: World) -> None:
    with pytest.raises(ValueError, match=r"batch_size=0; it must be at least 1"):
        log_policy(tiny, world, batch_size=0)


def test_a_tokenizer_that_marks_no_end_is_an_error(tiny: Checkpoint, world: World) -> None:
    tokenizer = make_tokenizer(world, None)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"no end-of-text token.*Set tokenizer.eos_token"):
        log_policy(dataclasses.replace(tiny, tokenizer=tokenizer), world)


def test_a_gap_of_a_checkpoint_is_the_gap_of_a_table(tiny: Checkpoint, world: World) -> None:
    """The same function for a table and for a transformer."""
    scores = np.asarray(log_policy(tiny, world))
    by_hand = (
        np.asarray(world.safety.p)[:, None] * np.asarray(world.safety.P) * (np.log(np.asarray(world.safety.P)) - scores)
    ).sum()
    assert abs(float(to.safety_gap(world, scores)) - by_hand) < SAME[torch.float64]


def test_names_of_the_bridge_are_public() -> None:
    assert to.bridge.log_policy is log_policy
    assert to.bridge.load is checkpoints.load


def test_without_its_extra_the_bridge_says_which_command_installs_it() -> None:
    code = "import sys; sys.modules['peft'] = None; import tradeoff.bridge"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "tradeoff.bridge needs peft" in done.stderr
    assert "pip install 'tradeoff[lm]'" in done.stderr
