"""Instruction data in a checkpoint's tokens, and the logits that predict its answers, in fixed memory.

A row is the prompt as the template puts it, then the answer, then the end-of-turn token; prompt and answer are tokenised
apart and joined. Rows are padded on the right, so every token has the position that it has alone, a causal model never sees
the padding, and what shares a batch changes nothing but speed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tqdm.auto import tqdm

from tradeoff.bridge import policy, template
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.data import Data, Example, Prompts
from tradeoff.bridge.policy import Contract
from tradeoff.bridge.scoring import Predicted, score_tokens
from tradeoff.bridge.template import Turn

BATCH_TOKENS = 2048
"""Tokens in one forward pass, padding included, unless told."""

PROBE = (0, 1)
"""Tokens on which a checkpoint's head is compared with its own forward pass."""

HEADS_AGREE_TO = 1e-3
"""Logits of two ways through one head agree to this, relative to the largest; capped or scaled ones are far off."""


@dataclass(frozen=True)
class Row:
    """A prompt and its answer in tokens.

    Attributes:
        prompt: token ids as the model reads them.
        answer: token ids, the end-of-turn token included: these are scored.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def read(self) -> tuple[int, ...]:
        """What the model reads: all but the last token, which is only predicted."""
        return self.prompt + self.answer[:-1]


def encode(checkpoint: Checkpoint, data: Data) -> tuple[Row, ...]:
    """Instruction data in the checkpoint's tokens.

    Args:
        checkpoint: whose tokenizer, template and longest context count.
        data: questions and answers.

    Returns:
        A row for each example.

    Raises:
        ValueError: when a text has one of the tokenizer's special tokens in it, the template refuses a conversation, or a
            row is longer than the model reads; the message names the row.
    """
    tokenizer = checkpoint.tokenizer
    special, end = set(tokenizer.all_special_ids), template.end_of_turn(tokenizer)
    limit = getattr(checkpoint.model.config, "max_position_embeddings", None)
    rows = []
    for example in data.examples:
        try:
            rows.append(_row(tokenizer, special, end, example))
        except ValueError as error:
            raise ValueError(f"{example.place}: {error}") from error
        if limit is not None and len(rows[-1].read) > limit:
            raise ValueError(
                f"{example.place}: question and answer have {len(rows[-1].read)} tokens, and the model reads {limit} at most. "
                "Shorten the row, or leave it out."
            )
    return tuple(rows)


def encode_prompts(checkpoint: Checkpoint, prompts: Prompts) -> tuple[tuple[int, ...], ...]:
    """Prompts in the checkpoint's tokens, as the model reads them; checked as those of `encode`."""
    tokenizer = checkpoint.tokenizer
    special = set(tokenizer.all_special_ids)
    encoded = []
    for number, turns in enumerate(prompts.conversations, 1):
        try:
            encoded.append(_prompt(tokenizer, special, turns))
        except ValueError as error:
            raise ValueError(f"{prompts.name}, prompt {number}: {error}") from error
    return tuple(encoded)


def contract(checkpoint: Checkpoint) -> Contract:
    """What the scores of instruction data measure on this checkpoint: the template, the tokens that count, the layout."""
    if head_is_whole(checkpoint):
        layout, reason = "rows padded on the right", "a causal model does not see what follows"
    else:
        layout, reason = "one sequence at a time", "its logits are more than its head makes of the last states"
    return policy.stated(checkpoint.tokenizer, layout, reason)


def token_log_probabilities(
    checkpoint: Checkpoint, rows: Sequence[Row], batch_tokens: int = BATCH_TOKENS, progress: bool = False
) -> tuple[Float[np.ndarray, " T"], ...]:
    r"""The log-probability of every token of every answer, $\log\pi(y_t|x,y_{<t})$.

    Args:
        checkpoint: the language model.
        rows: of `encode`.
        batch_tokens: tokens in one forward pass; it changes speed and memory, not results.
        progress: whether to show a progress bar.

    Returns:
        For each row, nats, float64, shape (answer tokens,).

    Raises:
        ValueError: when the model gives NaN or infinity, or a row does not fit in memory by itself.
    """
    scores: list[np.ndarray] = [np.zeros(0)] * len(rows)
    whole = head_is_whole(checkpoint)

    def score(batch: Sequence[int]) -> None:
        found = _score([rows[i] for i in batch], checkpoint, whole)
        for i, each in zip(batch, np.split(found, np.cumsum([len(rows[i].answer) for i in batch])[:-1]), strict=True):
            scores[i] = each

    over_batches(score, rows, batch_tokens if whole else 1, progress, "scoring answers")
    for i, each in enumerate(scores):
        if not np.all(np.isfinite(each)):
            raise ValueError(
                f"The model gave row {i + 1} a token of log-probability {each[~np.isfinite(each)][0]}; it must be finite. "
                "Load the model in float32, or check that its training did not diverge."
            )
    return tuple(scores)


def over_batches(
    work: Callable[[Sequence[int]], None], rows: Sequence[Row], batch_tokens: int, progress: bool, title: str
) -> None:
    """Do work on batches of rows of similar length; a batch that does not fit in memory is halved, and that is said.

    Args:
        work: is given the indices of the rows of a batch.
        rows: all of them.
        batch_tokens: tokens in a batch, padding included; a longer row is a batch by itself.
        progress: whether to show a progress bar, in answer tokens.
        title: of the bar.

    Raises:
        ValueError: when `batch_tokens` is less than 1, or a row does not fit by itself.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; at least 1 is required.")
    waiting = _batches(rows, batch_tokens)[::-1]
    with tqdm(total=sum(len(r.answer) for r in rows), unit=" tokens", desc=title, disable=not progress) as bar:
        while waiting:
            batch = waiting.pop()
            try:
                work(batch)
            except RuntimeError as error:  # torch has a class of its own for this on CUDA, and none on the CPU
                if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                    raise
                longest = max(len(rows[i].read) for i in batch)
                if len(batch) == 1:
                    raise ValueError(
                        f"A row of {longest} tokens does not fit in memory by itself. Leave it out, or use a smaller model "
                        "or number format."
                    ) from error
                half = (len(batch) + 1) // 2
                bar.write(
                    f"out of memory at {len(batch)} rows of {longest} tokens; going on with {half} (the same result)"
                )
                waiting += [batch[half:], batch[:half]]
                continue
            bar.update(sum(len(rows[i].answer) for i in batch))


def predicting_states(checkpoint: Checkpoint, rows: Sequence[Row]) -> torch.Tensor:
    """The last hidden states that predict the answers' tokens, row after row, shape (answer tokens, H)."""
    tokens = padded(checkpoint, rows)
    hidden = checkpoint.model.base_model(tokens, use_cache=False)[0]
    return predicting(hidden, rows)


def predicting_logits(checkpoint: Checkpoint, rows: Sequence[Row]) -> torch.Tensor:
    """As `predicting_states`, the logits by the model's own forward pass, all at once."""
    return predicting(checkpoint.model(padded(checkpoint, rows), use_cache=False).logits, rows)


def padded(checkpoint: Checkpoint, rows: Sequence[Row]) -> torch.Tensor:
    """What the model reads of some rows, padded on the right, shape (R, T)."""
    tokens = torch.zeros(len(rows), max(len(row.read) for row in rows), dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row.read)] = torch.tensor(row.read)
    return tokens.to(checkpoint.device)


def head_is_whole(checkpoint: Checkpoint) -> bool:
    """Whether the output embeddings alone make the logits out of the last states; some models cap or scale them after."""
    head = checkpoint.model.get_output_embeddings()
    if head is None or checkpoint.model.config.model_type in policy.PACKED_ARCHITECTURES:
        return head is not None
    states = []
    hook = checkpoint.model.base_model.register_forward_hook(lambda _, __, out: states.append(out[0]))
    try:
        with torch.inference_mode():
            own = checkpoint.model(torch.tensor([PROBE], device=checkpoint.device), use_cache=False).logits.float()
            ours = head(states[0]).float()
    finally:
        hook.remove()
    return bool((own - ours).abs().max() <= HEADS_AGREE_TO * own.abs().max())


def _row(tokenizer: Any, special: set[int], end: int, example: Example) -> Row:
    answer = _plain(tokenizer, special, "the answer", example.answer)
    return Row(_prompt(tokenizer, special, example.prompt), (*answer, end))


def _prompt(tokenizer: Any, special: set[int], turns: Sequence[Turn]) -> tuple[int, ...]:
    for turn in turns:
        _plain(tokenizer, special, f"what the {turn.role} says", turn.content)
    return template.prompt_tokens(tokenizer, turns)


def _plain(tokenizer: Any, special: set[int], what: str, text: str) -> tuple[int, ...]:
    """The tokens of a text that must not pass for the marks of the template."""
    tokens = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    if not tokens or special.intersection(tokens):
        found = repr(tokenizer.decode([t for t in tokens if t in special][:1])) if tokens else "no token at all"
        raise ValueError(
            f"{what} contains {found} for this tokenizer; it must be plain text of at least one token, for special tokens "
            "mark where turns begin and end. Take it out of the text."
        )
    return tokens


def _batches(rows: Sequence[Row], batch_tokens: int) -> list[list[int]]:
    """Indices of the rows, the longest first, so that memory runs out at once if it does."""
    batches: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(rows)), key=lambda i: -len(rows[i].read)):
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
            longest = len(rows[i].read)
        batches[-1].append(i)
    return batches


@torch.inference_mode()
def _score(rows: Sequence[Row], checkpoint: Checkpoint, whole: bool) -> np.ndarray:
    target = torch.tensor([token for row in rows for token in row.answer], device=checkpoint.device)
    each = torch.arange(len(target), device=checkpoint.device)
    if whole:
        states, head = predicting_states(checkpoint, rows), checkpoint.model.get_output_embeddings()
        scores = torch.zeros(len(target), dtype=torch.float64, device=checkpoint.device)
        score_tokens(head, states, Predicted(each, target, each), scores)
    else:
        scores = torch.log_softmax(predicting_logits(checkpoint, rows).double(), dim=-1)[each, target]
    return scores.cpu().numpy()


def predicting(values: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Out of values at every token read, (R, T, ...), those at the tokens that predict the answers, (answer tokens, ...)."""
    return torch.cat([values[i, len(row.prompt) - 1 : len(row.read)] for i, row in enumerate(rows)])
