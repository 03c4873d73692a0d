"""Maps of examples on a checkpoint: what a strategy makes of a text world, and the gradient of the loss of that."""

import dataclasses
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from tests.bridge.runs import TINY, same_run
from tradeoff.bridge import corpus as module
from tradeoff.bridge import finetuning, policy, template
from tradeoff.bridge.checkpoints import Checkpoint, load
from tradeoff.bridge.corpus import Corpus
from tradeoff.bridge.examples import Shares, training_lines
from tradeoff.bridge.finetuning import finetune
from tradeoff.bridge.objective import Objective
from tradeoff.bridge.trainable import trainable
from tradeoff.strategies import SAP, DeRTa, LookAhead, Mixing, Plain, Vaccine, compose
from tradeoff.tolerances import EXACT, IDENTITY, MODEL_GRADIENT, SCORE

KEY, PENALTY = jax.random.key(5), 0.5
SHARES = Shares(1.0, PENALTY)
CONNECTOR, PREFIX = " Sure, here", "Of course,"
REAL = LookAhead(tokens=3, connector=CONNECTOR)
VIRTUAL = LookAhead("virtual", prefix=PREFIX, connector=CONNECTOR)
LATE = DeRTa("sorry")
OFF = {
    "real": LookAhead(tokens=0, connector=""),
    "virtual": LookAhead("virtual", prefix="", connector=""),
    "derta": DeRTa("sorry", "none", 0.0),
}


@pytest.fixture
def tiny(tiny_folder: Path) -> Checkpoint:
    return load(tiny_folder, device="cpu", dtype=torch.float64)


def lines_of(checkpoint, world, strategy, shares=SHARES):
    return training_lines(checkpoint, world, strategy, shares, KEY)


def summed(lines):
    """What each sequence with its labels weighs."""
    total = Counter()
    for tokens, labels, weight in lines:
        total[tokens, labels] += weight
    return total


def same(one, other):
    assert one.keys() == other.keys()
    for key, weight in one.items():
        assert weight == pytest.approx(other[key], rel=EXACT.relative)


def laws(world):
    task = np.asarray(world.capability.p)[:, None] * np.asarray(world.capability.P)
    seen = world.training_safety
    return task, np.asarray(seen.p)[:, None] * np.asarray(seen.P)


def asked(checkpoint, words):
    return template.prompt_tokens(checkpoint.tokenizer, template.asked(words))


def whole(prompt, response):
    return prompt + response, (-100,) * len(prompt) + response


# --- what is made ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["real", "virtual"])
def test_the_task_is_previewed_in_the_users_words_and_the_safety_data_are_not(mode, tiny, few):
    """By the chat template itself, from texts."""
    tokenizer, encoding = tiny.tokenizer, policy.encode(tiny, few)
    (task, safety), expected = laws(few), Counter()
    for x, context in enumerate(few.contexts):
        for y, response in enumerate(encoding.responses):
            words = " ".join(tokenizer.convert_ids_to_tokens(response[:-1][:3]))
            preview, said = (
                (words, response) if mode == "real" else (PREFIX, tuple(tokenizer(PREFIX).input_ids) + response)
            )
            expected[whole(asked(tiny, f"{context}{CONNECTOR} {preview}"), said)] += task[x, y]
            expected[whole(asked(tiny, context), response)] += PENALTY * safety[x, y]
    strategy = REAL if mode == "real" else VIRTUAL
    same(summed(lines_of(tiny, few, strategy)), Counter({line: w for line, w in expected.items() if w > 0}))


def test_safety_data_begin_anywhere_in_a_harmful_answer_and_refuse_at_every_word_of_it(tiny, few):
    encoding, (sorry,) = policy.encode(tiny, few), tiny.tokenizer("sorry").input_ids
    task, safety = laws(few)
    harmful = (1 - np.asarray(few.training_safety.P)) / (safety.shape[1] - 1)
    made = summed(lines_of(tiny, few, LATE))
    transitions, task_lines = Counter(), Counter()
    for x, prompt in enumerate(encoding.prompts):
        for y, response in enumerate(encoding.responses):
            said = response[:-1]
            labels = (-100,) * len(prompt) + (sorry,) * len(said)
            transitions[prompt + said, labels] += PENALTY * safety[x].sum() * harmful[x, y]
            task_lines[whole(prompt, response)] += task[x, y]
    late = made.copy()
    for key, weight in (transitions + task_lines).items():
        late[key] -= weight
    assert set(late) == set(made), "nothing else is expected than what there is"
    lengths = set()
    for (tokens, labels), weight in late.items():
        if abs(weight) < IDENTITY.relative:
            continue
        x = next(x for x, prompt in enumerate(encoding.prompts) if tokens[: len(prompt)] == prompt)
        heard = labels.index(next(label for label in labels if label != -100))
        begun = tokens[len(encoding.prompts[x]) : heard]
        assert tokens[heard:] == labels[heard:]
        assert tokens[heard:] in encoding.responses
        assert any(begun == response[: len(begun)] for response in encoding.responses)
        lengths.add(len(begun))
    assert lengths >= set(range(6))
    assert sum(late.values()) == pytest.approx(PENALTY * safety.sum(), rel=EXACT.relative)


@pytest.mark.parametrize("strategy", OFF.values(), ids=OFF)
def test_switched_off_the_data_are_those_of_the_world(strategy, tiny, few):
    encoding, (task, safety) = policy.encode(tiny, few), laws(few)
    weights = task + PENALTY * safety
    cells = {
        whole(prompt, response): weights[x, y]
        for x, prompt in enumerate(encoding.prompts)
        for y, response in enumerate(encoding.responses)
        if weights[x, y] > 0
    }
    same(summed(lines_of(tiny, few, strategy)), Counter(cells))


def test_what_cannot_be_mapped_faithfully_is_refused(tiny, few):
    for strategy, shares in ((LATE, Shares(1.0, 0.0)), (REAL, Shares(0.0, 1.0))):
        with pytest.raises(ValueError, match="maps examples of weight 0 only"):
            lines_of(tiny, few, strategy, shares)
    with pytest.raises(TypeError, match="'words' cuts words"):
        lines_of(tiny, few, DeRTa("sorry", "words"))
    with pytest.raises(ValueError, match="'Sorry', which has <unk> in it"):
        lines_of(tiny, few, DeRTa())
    with pytest.raises(ValueError, match="which is 2 tokens"):
        lines_of(tiny, few, DeRTa("sorry sorry"))
    with pytest.raises(ValueError, match="the token 19701, and the model has"):
        lines_of(tiny, few, DeRTa(19701))
    with pytest.raises(ValueError, match="the model reads 2048 at most"):
        lines_of(tiny, few, LookAhead("virtual", prefix="sorry " * 1100, connector=""))
    tiny.tokenizer.chat_template = tiny.tokenizer.chat_template.replace("['content'] }} <end>", "['content'] }}.<end>")
    with pytest.raises(ValueError, match="has other tokens by itself than behind a prompt"):
        lines_of(tiny, few, REAL)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (
            (REAL, Vaccine(1.0)),
            "Vaccine trains on the data as they are and would not see the examples that LookAhead makes",
        ),
        ((Mixing(), LATE), "Mixing trains on the data as they are"),
        ((Vaccine(1.0), SAP(0.1)), r"Vaccine \(attention\) and SAP \(mlp\) do not compose"),
    ],
)
def test_what_would_be_lost_in_a_composition_is_refused(parts, says):
    with pytest.raises(ValueError, match=says):
        compose(*parts)


# --- what is descended -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [module.ROOM, 40])
def test_the_gradient_is_that_of_every_sequence_by_itself(room, tiny, few, monkeypatch):
    """Also when the rows hold little, so that there are many of them, in several batches."""
    monkeypatch.setattr(module, "ROOM", room)
    lines = lines_of(tiny, few, compose(VIRTUAL, LATE))
    with trainable(tiny, 4, 2, seed=0) as parameters:
        torch.manual_seed(1)
        for p in parameters.values():
            p.data.normal_(std=0.1)
        corpus = Corpus(tiny, lines, 2, batch_size=3)
        assert (len(corpus.rows.batches) > 10) == (room == 40)
        corpus.pull()
        total = torch.zeros((), dtype=torch.float64)
        for (tokens, labels), weight in summed(lines).items():
            logits = tiny.model(torch.tensor([tokens])).logits[0, :-1]
            total = total + weight * torch.nn.functional.cross_entropy(
                logits, torch.tensor(labels[1:]), reduction="sum"
            )
        expected = torch.autograd.grad(total, list(parameters.values()))
        scale = max(float(g.abs().max()) for g in expected)
        for p, gradient in zip(parameters.values(), expected, strict=True):
            assert p.grad is not None
            assert float((p.grad - gradient).abs().max()) < MODEL_GRADIENT.relative * scale


def gathered(parameters):
    """The gradients in one vector, taken away from the parameters."""
    whole = torch.cat([p.grad.ravel() for p in parameters.values()])
    for p in parameters.values():
        p.grad = None
    return whole


def test_switched_off_the_gradient_is_the_objectives(tiny, few):
    with trainable(tiny, None, 2, seed=0) as parameters:
        Objective(tiny, policy.encode(tiny, few), 2, batch_size=2).pull(finetuning._cell_weights(few, PENALTY))
        plain = gathered(parameters)
        Corpus(tiny, lines_of(tiny, few, OFF["derta"]), 2, batch_size=2).pull()
        found, scale = gathered(parameters), float(plain.abs().max())
        assert float((found - plain).abs().max()) < MODEL_GRADIENT.relative * scale
        Corpus(tiny, lines_of(tiny, few, LATE), 2, batch_size=2).pull()
        assert float((gathered(parameters) - plain).abs().max()) > 100 * MODEL_GRADIENT.relative * scale


# --- runs --------------------------------------------------------------------------------------------------------


def test_a_run_on_mapped_examples_is_resumed_to_the_same_bits_and_measured_without_previews(tiny, few, tmp_path):
    """The draws are the recipe's; what is measured is the policy under the world's own prompts."""
    recipe = dataclasses.replace(TINY, steps=3, save_every=2)
    strategy = compose(REAL, LATE)
    run = finetune(tiny, few, recipe, tmp_path / "unbroken", progress=False, strategy=strategy)
    sound, calls = Corpus.pull, []

    def pull(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        sound(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Corpus, "pull", pull)
        with pytest.raises(KeyboardInterrupt):
            finetune(tiny, few, recipe, tmp_path / "broken", progress=False, strategy=strategy)
    assert same_run(run, finetune(tiny, few, recipe, tmp_path / "broken", progress=False, strategy=strategy))
    with finetuning.adapted(tiny, run) as tuned:
        there = policy.log_policy(tuned, few)
    np.testing.assert_allclose(run.log_policies[-1], there, rtol=0, atol=SCORE.absolute)
    plain = finetune(tiny, few, recipe, progress=False, strategy=Plain())
    assert np.abs(run.log_policies[-1] - plain.log_policies[-1]).max() > SCORE.absolute
    assert run.gradients.tolist() == [1, 1, 1]
    other = dataclasses.replace(recipe, seed=1)
    assert not same_run(run, finetune(tiny, few, other, progress=False, strategy=strategy))
