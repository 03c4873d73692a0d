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
beginning are computed once. The language-model head is applied to scored positions only, in chunks of fixed memory.
"""

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from tradeoff.bridge import template
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.worlds.world import World

PACKED_ARCHITECTURES = ("llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
"""Architectures whose packed scores the tests compare with one sequence at a time, and find equal."""

CHUNK_BYTES = 40 * 2**20
"""Memory for the logits that exist at one time, whatever the vocabulary and the number of positions."""

Decode = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits, shape (N, V), and the positions in the response of the tokens that they predict, (N,), to the logits that are
decoded from, such as a strategy's `decode`."""

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

    Source: DESIGN section 2 (a model is a table of log-probabilities); scores are those of `reference_log_policy`.
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
                logits = _wide(model(tokens, use_cache=False, **options).logits[0, -len(response) :])
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


def prefix_tree(responses: Sequence[Sequence[int]]) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """The distinct beginnings of the responses, each a node (parent, token), and each response's path of predictors.

    Args:
        responses: token ids, each ending in the end-of-turn token (which is predicted and never read).

    Returns:
        Nodes in an order that puts parents first, parent -1 being the end of the prompt; and for each response the node
        that predicts each of its tokens.

    Example:
        >>> prefix_tree([(5, 6, 0), (5, 7, 0)])
        ([(-1, 5), (0, 6), (0, 7)], [[-1, 0, 1], [-1, 0, 2]])
    """
    index: dict[tuple[int, int], int] = {}
    paths = []
    for response in responses:
        path = [-1]
        for token in response[:-1]:
            path.append(index.setdefault((path[-1], token), len(index)))
        paths.append(path)
    return list(index), paths


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


# --- scores from states, in fixed memory -------------------------------------------------------------------------


class Scorer:
    """Log-probabilities of the responses from the states that predict them, and their gradient, in fixed memory.

    Args:
        responses: token ids, each ending in the end-of-turn token.
        head: from states to logits.
        decode: what makes of these the logits that are decoded from; scores only, no gradient.
    """

    def __init__(self, responses: Sequence[Sequence[int]], head: torch.nn.Linear, decode: Decode | None = None) -> None:
        nodes, paths = prefix_tree(responses)
        steps = [
            (path[t] + 1, token, y)
            for y, (path, response) in enumerate(zip(paths, responses, strict=True))
            for t, token in enumerate(response)
        ]
        device = head.weight.device
        self.head, self.decode = head, decode
        self.depth = torch.zeros(1 + len(nodes), dtype=torch.long, device=device)
        for path in paths:
            self.depth[torch.tensor(path, device=device) + 1] = torch.arange(len(path), device=device)
        self.positions = 1 + len(nodes)
        self.count = len(responses)
        self.at, self.target, self.response = (
            torch.tensor(column, device=device) for column in zip(*sorted(steps), strict=True)
        )

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        r"""$\log\pi(y|x)$ from states (R, positions, H); float64, shape (R, Y)."""
        return self._run(states, None)[0]

    def scores_and_pull(self, states: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Scores, and the gradient of $J=-\sum_{x,y}c(x,y)\log\pi(y|x)$ with respect to the states.

        The gradient is formed while the chunk's probabilities exist, $\partial J/\partial z=\sum_t c\,(\pi-1_{y_t})$,
        so logits are neither kept nor computed twice. The head itself is held fixed.

        Args:
            states: (R, positions, H).
            weights: c, float64, shape (R, Y).

        Returns:
            Scores, float64, shape (R, Y), and the gradient, of the shape of `states`.
        """
        return self._run(states, weights)

    def _run(self, states: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        rows = states.shape[0]
        flat = states.detach().reshape(-1, states.shape[-1])
        # Every scored token of every row: which flat state predicts it, its id, and its cell of the table.
        row = torch.arange(rows, device=flat.device)[:, None]
        at = (row * self.positions + self.at).flatten()
        target = self.target.repeat(rows)
        cell = (row * self.count + self.response).flatten()
        cost = None if weights is None else weights.flatten()[cell]
        scores = torch.zeros(rows * self.count, dtype=torch.float64, device=flat.device)
        gradient = score_tokens(self.head, flat, Predicted(at, target, cell), scores, cost, self._decode(rows))
        return scores.reshape(rows, self.count), gradient.reshape(states.shape)

    def _decode(self, rows: int) -> Callable[[torch.Tensor, slice], torch.Tensor] | None:
        if self.decode is None:
            return None
        decode, depth = self.decode, self.depth.repeat(rows)
        return lambda logits, where: decode(logits, depth[where])


class Predicted(NamedTuple):
    """Tokens to be scored.

    Args:
        at: for each of M tokens, which state predicts it; in ascending order.
        target: its id, (M,).
        cell: to which score it is added, (M,).
    """

    at: torch.Tensor
    target: torch.Tensor
    cell: torch.Tensor


@torch.no_grad()
def score_tokens(
    head: torch.nn.Linear,
    states: torch.Tensor,
    tokens: Predicted,
    scores: torch.Tensor,
    cost: torch.Tensor | None = None,
    decode: Callable[[torch.Tensor, slice], torch.Tensor] | None = None,
) -> torch.Tensor:
    r"""Add the log-probabilities of tokens to scores, and give the gradient of their weighted sum, in fixed memory.

    Logits are made for a chunk of positions, turned in place into probabilities and dropped, so that at most
    `CHUNK_BYTES` of them exist at any time; log-probabilities are summed in float64.

    Args:
        head: from states to logits.
        states: (N, H).
        tokens: M of them.
        scores: float64; they are changed.
        cost: c, float64, (M,); `None` for no gradient.
        decode: makes of the logits of some states others, where there is no cost.

    Returns:
        The gradient of $-\sum c\log\pi$ in the states, (N, H); the states themselves when there is no cost.
    """
    at, target, cell = tokens
    gradient = torch.empty_like(states) if cost is not None else states
    size = max(1, CHUNK_BYTES // (head.weight.shape[0] * max(4, states.element_size())))
    for low in range(0, len(states), size):
        high = min(low + size, len(states))
        first, last = torch.searchsorted(at, torch.tensor([low, high], device=at.device)).tolist()
        here, token = at[first:last] - low, target[first:last]
        logits = _wide(head(states[low:high]))
        if decode is not None:
            logits = decode(logits, slice(low, high))
        picked = logits[here, token].double()
        highest = logits.amax(-1, keepdim=True)
        exponentials = logits.sub_(highest).exp_()
        mass = exponentials.sum(-1).double()
        log_mass = highest[:, 0].double() + mass.log()
        scores.index_add_(0, cell[first:last], picked - log_mass[here])
        if cost is not None:
            total = torch.zeros_like(mass).index_add_(0, here, cost[first:last]) / mass
            exponentials.mul_(total[:, None].to(logits.dtype))
            exponentials.index_put_((here, token), -cost[first:last].to(logits.dtype), accumulate=True)
            gradient[low:high] = exponentials.to(states.dtype) @ head.weight
        del logits, exponentials  # or they would live on beside the next chunk's
    return gradient


def _wide(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 at least: half precision is for the model's insides, not for normalising."""
    return logits if logits.dtype == torch.float64 else logits.float()


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
