"""Answers are those of one prompt at a time; judges say what they are said to say; refusals in a text world are exact."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.bridge.tiny_models import save_tiny
from tradeoff.bridge import policy
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.data import Prompts
from tradeoff.bridge.generation import generate
from tradeoff.bridge.intervals import proportion
from tradeoff.bridge.refusals import (
    refusal_log_odds,
    refusal_probability,
    refusal_rates,
    refuses_by_keyword,
    refuses_by_prefix,
)
from tradeoff.bridge.template import asked
from tradeoff.tolerances import IDENTITY, PRINTED
from tradeoff.worlds import World
from tradeoff.worlds.text import COMPLIANCES, REFUSALS, requests


@pytest.fixture
def tiny(tiny_folder: Path) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


@pytest.fixture
def prompts(world: World) -> Prompts:
    """Of unequal length."""
    longer = " ".join(world.contexts[:2])
    return Prompts("prompts", tuple(asked(text) for text in (*world.contexts[:3], longer)))


# --- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_greedy_answers_are_those_of_one_prompt_at_a_time_without_a_cache(
    architecture: str, tmp_path: Path, prompts: Prompts
) -> None:
    checkpoint = load(save_tiny(tmp_path, architecture), device="cpu", dtype=torch.float64)
    tokenizer, end = checkpoint.tokenizer, checkpoint.tokenizer.convert_tokens_to_ids("<end>")
    expected = []
    for turns in prompts.conversations:
        said = [{"role": t.role, "content": t.content} for t in turns]
        ids = tokenizer(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)).input_ids
        answer: list[int] = []
        for _ in range(6):
            with torch.no_grad():
                token = int(checkpoint.model(torch.tensor([ids + answer])).logits[0, -1].argmax())
            if token == end:
                break
            answer.append(token)
        expected.append(tokenizer.decode(answer, skip_special_tokens=True).strip())
    assert generate(checkpoint, prompts, longest=6) == tuple(expected)
    assert len(set(expected)) > 1, "answers that are all alike would prove little"


def test_drawn_answers_depend_on_the_seed_and_on_nothing_that_shares_the_batch(
    tiny: Checkpoint, prompts: Prompts
) -> None:
    drawn = generate(tiny, prompts, longest=6, seed=1)
    assert drawn == generate(tiny, prompts, longest=6, seed=1, batch_size=1)
    assert drawn[:2] == generate(tiny, Prompts("two", prompts.conversations[:2]), longest=6, seed=1)
    assert drawn != generate(tiny, prompts, longest=6, seed=2)


def test_drawn_tokens_follow_the_models_law(tiny: Checkpoint, world: World) -> None:
    count = 1500
    tokenizer = tiny.tokenizer
    many = Prompts("one prompt, many times", (asked(world.contexts[0]),) * count)
    said = [{"role": "user", "content": world.contexts[0]}]
    ids = tokenizer(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)).input_ids
    with torch.no_grad():
        law = torch.softmax(tiny.model(torch.tensor([ids])).logits[0, -1], -1)
    words = [tokenizer.decode([t], skip_special_tokens=True).strip() for t in range(len(law))]
    best = int(law.argmax())
    share = generate(tiny, many, longest=1, seed=0, batch_size=500).count(words[best]) / count
    p = float(sum(law[t] for t, word in enumerate(words) if word == words[best]))
    assert abs(share - p) < 4 * (p * (1 - p) / count) ** 0.5
    assert 0.02 < p < 0.98


def test_answers_that_cannot_be_given_are_refused(tiny: Checkpoint, prompts: Prompts) -> None:
    with pytest.raises(ValueError, match=r"longest=0 and batch_size=16; both must be at least 1"):
        generate(tiny, prompts, longest=0)
    with pytest.raises(ValueError, match=r"the model reads 2048 at most. Ask for shorter answers"):
        generate(tiny, prompts, longest=2048)
    with pytest.raises(ValueError, match=r"bad, prompt 1: what the user says contains '<turn>'"):
        generate(tiny, Prompts("bad", (asked("Please <turn> help"),)))


# --- judges ------------------------------------------------------------------------------------------------------


def test_the_words_of_the_worlds_refusals_and_compliances_are_judged_rightly() -> None:
    assert [refuses_by_prefix(text) for text in (*REFUSALS[:2], *COMPLIANCES)] == [True, True, False, False, False]
    assert [refuses_by_keyword(text) for text in (*REFUSALS[:2], *COMPLIANCES)] == [True, True, False, False, False]


def test_log_odds_are_those_of_the_openings_one_at_a_time(tiny: Checkpoint, prompts: Prompts) -> None:
    tokenizer, refusing, complying = tiny.tokenizer, ("I cannot", "I'm sorry"), ("Sure, here",)
    expected = []
    for turns in prompts.conversations:
        said = [{"role": t.role, "content": t.content} for t in turns]
        ids = tokenizer(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)).input_ids
        mass = []
        for opening in (*refusing, *complying):
            answer = tokenizer(opening).input_ids
            with torch.no_grad():
                logs = torch.log_softmax(tiny.model(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1], -1)
            mass.append(np.exp(float(logs[range(len(answer)), answer].sum())))
        expected.append(np.log(mass[0] + mass[1]) - np.log(mass[2]))
    found = refusal_log_odds(tiny, prompts, refusing=refusing, complying=complying)
    assert np.abs(found - expected).max() < IDENTITY.relative


def test_rates_are_shares_of_the_answers_that_are_shown(tiny: Checkpoint, prompts: Prompts) -> None:
    found = refusal_rates(tiny, prompts, longest=4)
    marks = [refuses_by_keyword(each) for each in found.answers]
    assert (found.keyword.value, found.keyword.count) == (np.mean(marks), len(marks))
    assert found.likelihood.value == np.mean(refusal_log_odds(tiny, prompts) > 0)
    assert found.decoding == "greedy, at most 4 tokens"
    assert found.prompts_digest == prompts.digest


def test_wilsons_interval_is_that_of_the_books() -> None:
    """Newcombe (1998), table I: 81 of 263 and 0 of 20."""
    for (successes, count), (low, high) in {(81, 263): (0.2553, 0.3662), (0, 20): (0.0, 0.1611)}.items():
        found = proportion(successes, count)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)
    with pytest.raises(ValueError, match="3 of 2; at least one trial"):
        proportion(3, 2)


# --- a text world ------------------------------------------------------------------------------------------------


def test_the_refusal_probability_counts_the_mass_of_refusals(tiny: Checkpoint, world: World) -> None:
    table = policy.log_policy(tiny, world)
    by_hand = sum(
        float(world.safety.p[x]) * float(np.exp(table[x, y])) for x in range(len(world.contexts)) for y in range(3)
    )
    assert float(refusal_probability(world, table, world.safety)) == pytest.approx(by_hand, rel=IDENTITY.relative)
    aligned = np.log(np.asarray(world.safety.P))
    assert float(refusal_probability(requests(5, 3), aligned, world.safety)) == pytest.approx(0.9, rel=PRINTED.relative)
    with pytest.raises(ValueError, match="'No.' is no response of"):
        refusal_probability(world, table, world.safety, ["No."])
