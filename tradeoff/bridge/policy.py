r"""A language model as a policy of a text world: every response scored under every prompt, exactly, by teacher forcing.

The contract, which `contract` states in full for a given checkpoint:

* the prompt is a user turn rendered by the checkpoint's own chat template, up to where the assistant begins to speak;
* prompt and response are tokenised apart and joined, so a response has the same tokens under every prompt;
* what counts is every response token and the end-of-turn token after it, and no prompt token;
* positions count from 0 at the first prompt token, whatever else shares the batch; rows are padded on the right.

Since every response ends in the end-of-turn token and none contains it, the responses are disjoint events and a row of
probabilities sums to at most one.

All responses to a prompt are computed in one row: the prompt, then the *prefix tree* of the responses, under an
attention mask that lets a token see the prompt and its own prefix and nothing else. The prompt and every shared
beginning are computed once. The language-model head is applied to scored positions only (`scoring`).
"""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from tradeoff.bridge import template
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.scoring import Decode, Scorer, prefix_tree, wide
from tradeoff.worlds.world import World

PACKED_ARCHITECTURES = ("llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
"""Architectures whose packed scores the tests compare with one sequence at a time, and find equal."""

COUNTED = "every response token and the end-of-turn token after it; no prompt token"


@dataclass(frozen=True)
class Contract:
    """What exactly a log-policy of a checkpoint measures.

    Attributes:
        format: what the model reads before the response, with `{prompt}` in the place of the prompt.
        template_sha256: digest of the chat template (of `template.PLAIN_TEMPLATE` where there is none).
        end_of_turn: the token that ends a response, as text.
        end_of_turn_id: its id.
        special_ids: ids of the special tokens in `format`, in order.
        counted: which tokens are scored.
        layout: `packed` (one row per prompt) or `one sequence at a time`.
        reason: why this layout.
    """

    format: str
    template_sha256: str
    end_of_turn: str
    end_of_turn_id: int
    special_ids: tuple[int, ...]
    counted: str
    layout: str
    reason: str


@dataclass(frozen=True)
class Encoding:
    """A text world in tokens: the prompts as the model reads them, and the responses with their end-of-turn token."""

    prompts: tuple[tuple[int, ...], ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def longest(self) -> int:
        """The most tokens that a prompt and a response have together."""
        return max(map(len, self.prompts)) + max(map(len, self.responses))


def log_policy(
    checkpoint: Checkpoint, world: World, batch_size: int = 16, progress: bool = False, decode: Decode | None = None
) -> Float[Array, "X Y"]:
    r"""The log-probability of every response under every prompt, $\log\pi(y|x)=\sum_t\log\pi(y_t|x,y_{<t})$.

    Args:
        checkpoint: the language model.
        world: a text world: its contexts are prompts and its responses strings.
        batch_size: prompts in one forward pass; it changes speed and memory, not results.
        progress: whether to show a progress bar.
        decode: what makes of the model's logits those that are decoded from, such as `TSDI(...).decode`; `None` for nothing.

    Returns:
        Natural logs, float64, shape (X, Y); a row's probabilities sum to at most one, and the rest is what the model
        would say instead.

    Raises:
        ValueError: when the world has no texts, a response is not plain text for this tokenizer, a row is longer than
            the model's context, or the model gives NaN.

    Source: the chain rule, token by token, as `reference_log_policy` applies it.
    """
    if batch_size < 1:
        raise ValueError(f"log_policy was given batch_size={batch_size}; it must be at least 1.")
    return checked(scores(checkpoint, encode(checkpoint, world), batch_size, progress, decode))


def scores(
    checkpoint: Checkpoint,
    encoding: Encoding,
    batch_size: int = 16,
    progress: bool = False,
    decode: Decode | None = None,
) -> np.ndarray:
    """As `log_policy`, of prompts and responses in tokens; a response need not end in the end-of-turn token.

    Args:
        checkpoint: the language model.
        encoding: token ids of prompts and responses, each response different.
        batch_size: as `log_policy`.
        progress: as `log_policy`.
        decode: as `log_policy`.

    Returns:
        Natural logs, float64, shape (X, Y).
    """
    if not_packed_because(checkpoint, encoding):
        return _one_at_a_time(checkpoint, encoding, progress, decode)
    batches = pack(encoding, checkpoint, batch_size)
    scorer = Scorer(encoding.responses, checkpoint.model.get_output_embeddings(), decode)
    found = []
    with torch.inference_mode():
        for batch in tqdm(batches, desc="scoring prompts", disable=not progress):
            trunk = checkpoint.model.base_model
            hidden = trunk(batch.tokens, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False)[0]
            found.append(scorer.scores(batch.scored(hidden)).cpu().numpy())
    return np.concatenate(found)


def reference_log_policy(
    checkpoint: Checkpoint, world: World, progress: bool = False, decode: Decode | None = None
) -> Float[Array, "X Y"]:
    r"""As `log_policy`, one unpadded sequence at a time through the model's own forward pass: any architecture, slowly.

    Args:
        checkpoint: the language model.
        world: a text world.
        progress: whether to show a progress bar.
        decode: as `log_policy`.

    Returns:
        Natural logs, float64, shape (X, Y).

    Raises:
        ValueError: as `log_policy`.
    """
    return checked(_one_at_a_time(checkpoint, encode(checkpoint, world), progress, decode))


def _one_at_a_time(checkpoint: Checkpoint, encoding: Encoding, progress: bool, decode: Decode | None) -> np.ndarray:
    model = checkpoint.model
    trims = "logits_to_keep" in inspect.signature(model.forward).parameters
    found = np.zeros((len(encoding.prompts), len(encoding.responses)))
    with torch.inference_mode():
        for x, prompt in enumerate(tqdm(encoding.prompts, desc="scoring prompts", disable=not progress)):
            for y, response in enumerate(encoding.responses):
                tokens = torch.tensor([prompt + response[:-1]], device=checkpoint.device)
                options = {"logits_to_keep": len(response)} if trims else {}
                logits = wide(model(tokens, use_cache=False, **options).logits[0, -len(response) :])
                if decode is not None:
                    logits = decode(logits, torch.arange(len(response), device=checkpoint.device))
                targets = torch.tensor(response, device=checkpoint.device)
                found[x, y] = _log_probabilities(logits, targets).sum().item()
    return found


def contract(checkpoint: Checkpoint, world: World) -> Contract:
    """State what `log_policy` measures on this checkpoint and world.

    Args:
        checkpoint: the language model.
        world: a text world.

    Returns:
        The template, the special tokens, which tokens count, and how rows are laid out and why.

    Raises:
        ValueError: as `log_policy`.
    """
    tokenizer = checkpoint.tokenizer
    obstacle = not_packed_because(checkpoint, encode(checkpoint, world))
    layout = "one sequence at a time" if obstacle else "packed"
    return stated(tokenizer, layout, obstacle or "packed rows are tested to be exact for this architecture")


def stated(tokenizer: Any, layout: str, reason: str) -> Contract:
    """The contract of a tokenizer's template, with a layout and the reason for it."""
    special, end = set(tokenizer.all_special_ids), template.end_of_turn(tokenizer)
    return Contract(
        format=template.rendered(tokenizer, template.asked("{prompt}")),
        template_sha256=hashlib.sha256(template.source(tokenizer).encode()).hexdigest(),
        end_of_turn=tokenizer.decode([end]),
        end_of_turn_id=end,
        special_ids=tuple(t for t in template.prompt_tokens(tokenizer, template.asked("")) if t in special),
        counted=COUNTED,
        layout=layout,
        reason=reason,
    )


# --- a text world in tokens --------------------------------------------------------------------------------------


def encode(checkpoint: Checkpoint, world: World) -> Encoding:
    """The prompts and responses of a text world in the checkpoint's tokens, after the checks that they can be scored.

    Args:
        checkpoint: the language model.
        world: a text world.

    Returns:
        Token ids of every prompt and every response.

    Raises:
        ValueError: see `log_policy`.
    """
    if world.contexts is None or world.responses is None:
        raise ValueError(
            f"{world} has no texts; a language model needs the prompts in world.contexts and the answers in "
            "world.responses. Make the world with tradeoff.worlds.requests or tradeoff.worlds.from_texts."
        )
    tokenizer = checkpoint.tokenizer
    end = template.end_of_turn(tokenizer)
    special = set(tokenizer.all_special_ids)
    prompts = tuple(template.prompt_tokens(tokenizer, template.asked(prompt)) for prompt in world.contexts)
    responses = []
    for response in world.responses:
        tokens = tuple(tokenizer(response, add_special_tokens=False).input_ids)
        if not tokens or special.intersection(tokens):
            found = tokenizer.decode([t for t in tokens if t in special]) if tokens else "no token at all"
            raise ValueError(
                f"The response {response!r} contains {found} for this tokenizer; a response must be plain text of at "
                "least one token, for its end is marked by the end-of-turn token. Take the special token out of the "
                "text."
            )
        if (*tokens, end) in responses:
            raise ValueError(
                f"The response {response!r} has the same tokens as "
                f"{world.responses[responses.index((*tokens, end))]!r} for this tokenizer; responses must differ as "
                "the model reads them. Merge the two and add their probabilities."
            )
        responses.append((*tokens, end))
    encoding = Encoding(prompts, tuple(responses))
    limit = getattr(checkpoint.model.config, "max_position_embeddings", None)
    if limit is not None and encoding.longest > limit:
        raise ValueError(
            f"The longest prompt and response have {encoding.longest} tokens together; the model reads {limit} at "
            "most. Shorten them."
        )
    return encoding


# --- packed rows: a prompt and the prefix tree of its responses --------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Packed rows of R prompts, padded on the right to T tokens.

    Attributes:
        tokens: ids, shape (R, T).
        positions: as the model counts them, shape (R, T).
        mask: added to attention scores: 0 where a token is seen and the least number where not, shape (R, 1, T, T).
        scored_at: where the scored states are, shape (R, 1 + nodes).
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    scored_at: torch.Tensor

    def scored(self, hidden: torch.Tensor) -> torch.Tensor:
        """The states that predict a scored token: the end of the prompt, then the tree's nodes; (R, 1 + nodes, H)."""
        return torch.gather(hidden, 1, self.scored_at[:, :, None].expand(-1, -1, hidden.shape[-1]))


def not_packed_because(checkpoint: Checkpoint, encoding: Encoding) -> str:
    """Why the world must be scored one sequence at a time, or nothing when its rows can be packed."""
    config = checkpoint.model.config
    if config.model_type not in PACKED_ARCHITECTURES:
        return (
            f"architecture {config.model_type!r} is not among those for which packed rows are tested to be exact "
            f"({', '.join(PACKED_ARCHITECTURES)})"
        )
    # The mask of a packed row is the whole of what a token sees, and knows of no window.
    window = getattr(config, "sliding_window", None)
    if window is not None and encoding.longest > window:
        return f"the longest prompt and response have {encoding.longest} tokens and the model's window {window}"
    return ""


def pack(encoding: Encoding, checkpoint: Checkpoint, batch_size: int) -> list[Batch]:
    """The packed rows of a text world, in batches of prompts."""
    nodes, _ = prefix_tree(encoding.responses)
    prompts = encoding.prompts
    return [
        _pack(prompts[i : i + batch_size], nodes, checkpoint.device, checkpoint.dtype)
        for i in range(0, len(prompts), batch_size)
    ]


def _pack(
    prompts: Sequence[Sequence[int]], nodes: list[tuple[int, int]], device: torch.device, dtype: torch.dtype
) -> Batch:
    longest = max(map(len, prompts)) + len(nodes)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    positions = torch.zeros_like(tokens)
    # Padding sees itself: a row of the mask that forbids everything would be NaN. Nobody reads what padding computes.
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(prompts), 1, 1)
    scored_at = torch.zeros(len(prompts), 1 + len(nodes), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        n = len(prompt)
        tokens[row, :n] = torch.tensor(prompt)
        positions[row, :n] = torch.arange(n)
        sees[row, :n, :n] = torch.ones(n, n, dtype=torch.bool).tril()
        for i, (parent, token) in enumerate(nodes):
            before = n - 1 if parent < 0 else n + parent
            tokens[row, n + i] = token
            positions[row, n + i] = positions[row, before] + 1
            sees[row, n + i] |= sees[row, before]
        scored_at[row] = torch.arange(n - 1, n + len(nodes))
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]
    return Batch(tokens.to(device), positions.to(device), mask.to(device), scored_at.to(device))


def _log_probabilities(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probability of each target, float64, by the plain formula (the reference for `Scorer`)."""
    return torch.log_softmax(logits.double(), dim=-1).gather(-1, targets[:, None])[:, 0]


def checked(scores: np.ndarray) -> Float[Array, "X Y"]:
    """Scores as a JAX array, after the check that the model gave numbers."""
    if not np.all(np.isfinite(scores)):
        x, y = np.argwhere(~np.isfinite(scores))[0]
        raise ValueError(
            f"The model gave log-probability {scores[x, y]} to response {y} under prompt {x}; it must be finite. Its "
            "weights or activations overflow: load it in float32 (dtype=torch.float32), or check that training did not "
            "diverge."
        )
    return jnp.asarray(scores, jnp.float64)
