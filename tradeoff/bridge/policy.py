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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.worlds.world import World

PACKED_ARCHITECTURES = ("llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
"""Architectures whose packed scores the tests compare with one sequence at a time, and find equal."""

CHUNK_BYTES = 40 * 2**20
"""Memory for the logits that exist at one time, whatever the vocabulary and the number of positions."""

PLAIN_TEMPLATE = "{prompt}\n"
"""How a prompt is put to a checkpoint that has no chat template."""

COUNTED = "every response token and the end-of-turn token after it; no prompt token"


@dataclass(frozen=True)
class Contract:
    """What exactly a log-policy of a checkpoint measures.

    Attributes:
        format: what the model reads before the response, with `{prompt}` in the place of the prompt.
        template_sha256: digest of the chat template (of `PLAIN_TEMPLATE` where there is none).
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
    checkpoint: Checkpoint, world: World, batch_size: int = 16, progress: bool = False
) -> Float[Array, "X Y"]:
    r"""The log-probability of every response under every prompt, $\log\pi(y|x)=\sum_t\log\pi(y_t|x,y_{<t})$.

    Args:
        checkpoint: the language model.
        world: a text world: its contexts are prompts and its responses strings.
        batch_size: prompts in one forward pass; it changes speed and memory, not results.
        progress: whether to show a progress bar.

    Returns:
        Natural logs, float64, shape (X, Y); a row's probabilities sum to at most one, and the rest is what the model
        would say instead.

    Raises:
        ValueError: when the world has no texts, a response is not plain text for this tokenizer, a row is longer than
        the
            model's context, or the model gives NaN.

    Source: DESIGN section 2 (a model is a table of log-probabilities); scores are those of `reference_log_policy`.
    """
    if batch_size < 1:
        raise ValueError(f"log_policy was given batch_size={batch_size}; it must be at least 1.")
    encoding = encode(checkpoint, world)
    if not_packed_because(checkpoint, encoding):
        return reference_log_policy(checkpoint, world, progress)
    batches = pack(encoding, checkpoint, batch_size)
    scorer = Scorer(encoding.responses, checkpoint.model.get_output_embeddings())
    scores = []
    with torch.inference_mode():
        for batch in tqdm(batches, desc="scoring prompts", disable=not progress):
            trunk = checkpoint.model.base_model
            hidden = trunk(batch.tokens, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False)[0]
            scores.append(scorer.scores(batch.scored(hidden)).cpu().numpy())
    return checked(np.concatenate(scores))


def reference_log_policy(checkpoint: Checkpoint, world: World, progress: bool = False) -> Float[Array, "X Y"]:
    r"""As `log_policy`, one unpadded sequence at a time through the model's own forward pass: any architecture, slowly.

    Args:
        checkpoint: the language model.
        world: a text world.
        progress: whether to show a progress bar.

    Returns:
        Natural logs, float64, shape (X, Y).

    Raises:
        ValueError: as `log_policy`.
    """
    encoding = encode(checkpoint, world)
    model = checkpoint.model
    trims = "logits_to_keep" in inspect.signature(model.forward).parameters
    scores = np.zeros((len(encoding.prompts), len(encoding.responses)))
    with torch.inference_mode():
        for x, prompt in enumerate(tqdm(encoding.prompts, desc="scoring prompts", disable=not progress)):
            for y, response in enumerate(encoding.responses):
                tokens = torch.tensor([prompt + response[:-1]], device=checkpoint.device)
                options = {"logits_to_keep": len(response)} if trims else {}
                logits = model(tokens, use_cache=False, **options).logits[0, -len(response) :]
                targets = torch.tensor(response, device=checkpoint.device)
                scores[x, y] = _log_probabilities(_wide(logits), targets).sum().item()
    return checked(scores)


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
    special = set(tokenizer.all_special_ids)
    end = _end_of_turn(tokenizer)
    obstacle = not_packed_because(checkpoint, encode(checkpoint, world))
    return Contract(
        format=_render(tokenizer, "{prompt}"),
        template_sha256=hashlib.sha256(_template(tokenizer).encode()).hexdigest(),
        end_of_turn=tokenizer.decode([end]),
        end_of_turn_id=end,
        special_ids=tuple(t for t in _prompt_tokens(tokenizer, "") if t in special),
        counted=COUNTED,
        layout="one sequence at a time" if obstacle else "packed",
        reason=obstacle or "packed rows are tested to be exact for this architecture",
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
    end = _end_of_turn(tokenizer)
    special = set(tokenizer.all_special_ids)
    prompts = tuple(_prompt_tokens(tokenizer, prompt) for prompt in world.contexts)
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


def _template(tokenizer: Any) -> str:
    return tokenizer.chat_template or PLAIN_TEMPLATE


def _render(tokenizer: Any, prompt: str) -> str:
    if not tokenizer.chat_template:
        return PLAIN_TEMPLATE.format(prompt=prompt)
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )


def _prompt_tokens(tokenizer: Any, prompt: str) -> tuple[int, ...]:
    # A chat template writes its own special tokens; without one the tokenizer adds what the model expects.
    return tuple(tokenizer(_render(tokenizer, prompt), add_special_tokens=not tokenizer.chat_template).input_ids)


def _end_of_turn(tokenizer: Any) -> int:
    """The first special token that the template writes after the assistant's words, else the end-of-text token."""
    if tokenizer.chat_template:
        words = "a response"
        turns = [{"role": "user", "content": "a prompt"}, {"role": "assistant", "content": words}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        after = tokenizer(text[text.rindex(words) + len(words) :], add_special_tokens=False).input_ids
        for token in after:
            if token in tokenizer.all_special_ids:
                return token
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no end-of-text token and its chat template marks no end of turn, so the end of a "
            "response cannot be scored. Set tokenizer.eos_token."
        )
    return tokenizer.eos_token_id


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

    Logits are made for a chunk of positions, turned in place into probabilities and dropped, so that at most
    `CHUNK_BYTES` of them exist at any time; log-probabilities are summed in float64.
    """

    def __init__(self, responses: Sequence[Sequence[int]], head: torch.nn.Linear) -> None:
        nodes, paths = prefix_tree(responses)
        steps = [
            (path[t] + 1, token, y)
            for y, (path, response) in enumerate(zip(paths, responses, strict=True))
            for t, token in enumerate(response)
        ]
        device = head.weight.device
        self.head = head
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

    @torch.no_grad()
    def _run(self, states: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        rows = states.shape[0]
        flat = states.detach().reshape(-1, states.shape[-1])
        # Every scored token of every row: which flat state predicts it, its id, and its cell of the table.
        row = torch.arange(rows, device=flat.device)[:, None]
        at = (row * self.positions + self.at).flatten()
        target = self.target.repeat(rows)
        cell = (row * self.count + self.response).flatten()
        scores = torch.zeros(rows * self.count, dtype=torch.float64, device=flat.device)
        gradient = torch.empty_like(flat) if weights is not None else flat
        cost = None if weights is None else weights.flatten()[cell]
        size = max(1, CHUNK_BYTES // (self.head.weight.shape[0] * max(4, flat.element_size())))
        for low in range(0, len(flat), size):
            high = min(low + size, len(flat))
            first, last = torch.searchsorted(at, torch.tensor([low, high], device=at.device)).tolist()
            here, token = at[first:last] - low, target[first:last]
            logits = _wide(self.head(flat[low:high]))
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
                gradient[low:high] = exponentials.to(flat.dtype) @ self.head.weight
        return scores.reshape(rows, self.count), gradient.reshape(states.shape)


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
