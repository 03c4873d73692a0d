"""Answers of a checkpoint to prompts: greedy, or drawn from its own law, whatever shares the batch.

The checkpoint's own generation settings (temperature, penalties, truncation) are not used: they are another model's law.
"""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from tradeoff.bridge import template
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.data import Prompts
from tradeoff.bridge.rows import encode_prompts

BATCH = 16
"""Prompts answered at one time, unless told."""


def generate(
    checkpoint: Checkpoint,
    prompts: Prompts,
    longest: int = 48,
    seed: int | None = None,
    batch_size: int = BATCH,
    progress: bool = False,
) -> tuple[str, ...]:
    r"""The checkpoint's answers.

    Rows are padded on the left with positions that count from the first token of the prompt. A drawn token is
    $\arg\max_y \pi_y/E_y$ with exponential $E_y$ from a generator of its own for each prompt, so neither the batch nor the
    other prompts change a draw.

    Args:
        checkpoint: the language model.
        prompts: what it is asked.
        longest: tokens of an answer at most; one that is longer is cut off.
        seed: of the draws; `None` for the most likely token at every step.
        batch_size: prompts at one time; it changes speed and memory, not answers.
        progress: whether to show a progress bar.

    Returns:
        One text for each prompt, without special tokens.

    Raises:
        ValueError: when `longest` or `batch_size` is less than 1, a prompt contains special tokens, or prompt and
            answer are longer than the model reads.
    """
    if longest < 1 or batch_size < 1:
        raise ValueError(f"generate was given longest={longest} and batch_size={batch_size}; both must be at least 1.")
    tokens = encode_prompts(checkpoint, prompts)
    limit = getattr(checkpoint.model.config, "max_position_embeddings", None)
    if limit is not None and max(map(len, tokens)) + longest > limit:
        raise ValueError(
            f"The longest prompt has {max(map(len, tokens))} tokens and the answer may have {longest}; the model reads {limit} "
            "at most. Ask for shorter answers, or leave the prompt out."
        )
    answers = [""] * len(tokens)
    order = sorted(range(len(tokens)), key=lambda i: -len(tokens[i]))
    with tqdm(total=len(tokens), unit=" answers", desc="answering", disable=not progress) as bar:
        for at in range(0, len(order), batch_size):
            chosen = order[at : at + batch_size]
            draws = None if seed is None else [np.random.default_rng([seed, i]) for i in chosen]
            for i, ids in zip(chosen, _continue(checkpoint, [tokens[i] for i in chosen], longest, draws), strict=True):
                answers[i] = checkpoint.tokenizer.decode(ids, skip_special_tokens=True).strip()
            bar.update(len(chosen))
    return tuple(answers)


@torch.inference_mode()
def _continue(
    checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], longest: int, draws: Sequence[np.random.Generator] | None
) -> list[list[int]]:
    """Token ids of the answers, up to the end of the turn."""
    end, device = template.end_of_turn(checkpoint.tokenizer), checkpoint.device
    width = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), width, dtype=torch.long)
    seen = torch.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.tensor(prompt)
        seen[row, width - len(prompt) :] = 1
    tokens, seen = tokens.to(device), seen.to(device)
    positions = (seen.cumsum(-1) - 1).clamp_(min=0)
    takes = inspect.signature(checkpoint.model.forward).parameters
    options: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
    answers: list[list[int]] = [[] for _ in prompts]
    open_rows, cache = set(range(len(prompts))), None
    for _ in range(longest):
        if "position_ids" in takes:
            options["position_ids"] = positions
        out = checkpoint.model(tokens, attention_mask=seen, past_key_values=cache, use_cache=True, **options)
        cache = out.past_key_values
        chosen = _choose(out.logits[:, -1], draws)
        for row in list(open_rows):
            token = int(chosen[row])
            if token == end:
                open_rows.remove(row)
            else:
                answers[row].append(token)
        if not open_rows:
            break
        tokens, positions = chosen[:, None], positions[:, -1:] + 1
        seen = torch.cat([seen, torch.ones_like(tokens)], dim=-1)
    return answers


def _choose(logits: torch.Tensor, draws: Sequence[np.random.Generator] | None) -> torch.Tensor:
    if draws is None:
        return logits.argmax(-1)
    noise = torch.from_numpy(np.stack([draw.exponential(size=logits.shape[-1]) for draw in draws])).to(logits.device)
    return (torch.log_softmax(logits.double(), -1) - noise.log()).argmax(-1)
