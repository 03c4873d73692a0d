"""The training examples of a text world in a checkpoint's tokens, as a strategy maps them."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array

from tradeoff.bridge import policy, template
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.dynamics.engine import random_key
from tradeoff.strategies import Example, Strategy, Triple
from tradeoff.strategies.examples import joined
from tradeoff.strategies.losses import harmful_answers
from tradeoff.worlds.world import World


class Line(NamedTuple):
    """A sequence that is trained on.

    Args:
        tokens: what is read.
        labels: what is to be predicted at each token, by those before it; -100 for nothing.
        weight: of its loss.
    """

    tokens: tuple[int, ...]
    labels: tuple[int, ...]
    weight: float


class Shares(NamedTuple):
    """What the task's loss and the safety data's weigh in what is descended."""

    task: float
    safety: float


def training_lines(checkpoint: Checkpoint, world: World, strategy: Strategy, shares: Shares, key: Array) -> list[Line]:
    r"""What a strategy makes of the data of a text world.

    A row of the task is a prompt with one of its responses, weighing $p_fP_f$; one of the safety data is a prompt with a
    safe and a harmful response, weighing $\hat p_s\hat P_sP_h$ (see `losses.harmful_answers`). Where chance has a say it is
    asked once for each row, before training.

    Args:
        checkpoint: the language model.
        world: a text world.
        strategy: whose map it is.
        shares: of the two laws.
        key: of the draws.

    Returns:
        The lines of weight above 0.

    Raises:
        ValueError: when the map changes rows of weight 0 only, or makes lines that the model cannot read.
        TypeError: when the map needs words where there are tokens.
    """
    tokenizer, encoding = checkpoint.tokenizer, policy.encode(checkpoint, world)
    own = strategy.tokenised(partial(_ids, tokenizer))
    closing, end = closing_tokens(tokenizer, encoding.prompts), encoding.responses[0][-1]
    rows = _rows(world, encoding, len(closing), shares)
    draws = jax.random.uniform(random_key(key, "examples", 0), (len(rows),)).tolist()
    made = [own.examples(row, draw, n) for n, ((row, _), draw) in enumerate(zip(rows, draws, strict=True))]
    changed = [weight > 0 for (row, weight), new in zip(rows, made, strict=True) if new != (row,)]
    if changed and not any(changed):
        raise ValueError(
            f"{strategy} maps examples of weight 0 only: here the task's weigh {shares.task:g} and the safety data's "
            f"{shares.safety:g}. Give the recipe a penalty above 0 for a map of safety data, and stage='fine-tuning' for one of the "
            "task's."
        )
    lines = [
        _line(example, () if isinstance(row, Triple) else closing, end, weight)
        for (row, weight), new in zip(rows, made, strict=True)
        for example in new
        if weight > 0
    ]
    _check(checkpoint, strategy, lines)
    return lines


def closing_tokens(tokenizer: Any, prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens that the chat template puts between the words of a prompt and the response.

    Args:
        tokenizer: the checkpoint's.
        prompts: in tokens, as the model is given them.

    Raises:
        ValueError: when a prompt does not end in them, so that nothing can be put before them.
    """
    words = "{prompt}"
    text = template.rendered(tokenizer, template.asked(words))
    after = tuple(tokenizer(text[text.rindex(words) + len(words) :], add_special_tokens=False).input_ids)
    for prompt in prompts:
        if tuple(prompt[len(prompt) - len(after) :]) != after:
            raise ValueError(
                f"the end of the chat template, {tokenizer.decode(after)!r}, has other tokens by itself than behind a prompt "
                f"({tokenizer.decode(prompt)!r}), so no words can be added to prompts in tokens. Use a template with a special "
                "token behind the prompt."
            )
    return after


def _rows(
    world: World, encoding: policy.Encoding, closing: int, shares: Shares
) -> list[tuple[Example | Triple, float]]:
    seen, prompts = world.training_safety, encoding.prompts
    words = [response[:-1] for response in encoding.responses]
    task = np.asarray(world.capability.p[:, None] * world.capability.P)
    safety = np.asarray(seen.p[:, None] * seen.P)
    harmful = harmful_answers(np.asarray(seen.P))
    triples = safety[:, :, None] * harmful[:, None, :]
    examples: list[tuple[Example | Triple, float]] = [
        (Example(prompts[x][: len(prompts[x]) - closing], words[y]), shares.task * float(task[x, y]))
        for x, y in np.argwhere(task > 0)
    ]
    return examples + [
        (Triple(prompts[x], words[y], words[z]), shares.safety * float(triples[x, y, z]))
        for x, y, z in np.argwhere(triples > 0)
    ]


def _line(example: Example | Triple, closing: tuple[int, ...], end: int, weight: float) -> Line:
    if isinstance(example, Triple):
        example = Example(example.query, example.safe)
    response = example.response if example.targets is not None else joined(example.response, (end,))
    whole = example._replace(prompt=joined(example.prompt, closing), response=response)
    return Line(whole.tokens, whole.labels, weight * float(example.weight))


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    special = set(tokenizer.all_special_ids).intersection(ids)
    if special:
        raise ValueError(
            f"a strategy says {text!r}, which has {tokenizer.decode(sorted(special))} in it for this tokenizer; give the "
            "strategy words that the model knows."
        )
    return ids


def _check(checkpoint: Checkpoint, strategy: Strategy, lines: Sequence[Line]) -> None:
    config = checkpoint.model.config
    limits = [getattr(config, name, None) for name in ("max_position_embeddings", "sliding_window")]
    limit, longest = min(filter(None, limits), default=None), max(len(line.tokens) for line in lines)
    if limit is not None and longest > limit:
        raise ValueError(
            f"{strategy} makes examples of {longest} tokens; the model reads {limit} at most. Shorten them."
        )
    words, highest = config.vocab_size, max(max(line.tokens + line.labels) for line in lines)
    if highest >= words:
        raise ValueError(
            f"{strategy} makes examples with the token {highest}, and the model has {words}; give ids of this model's tokenizer."
        )
