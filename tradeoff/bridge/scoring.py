"""Log-probabilities of tokens from the states that predict them, and their gradient, in fixed memory.

The logits of a vocabulary are most of what scoring computes and nearly all of what it could hold: they are made for a chunk of
positions at a time, used and dropped.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

CHUNK_BYTES = 40 * 2**20
"""Memory for the logits that exist at one time, whatever the vocabulary and the number of positions."""

Decode = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From logits, shape (N, V), and the positions in the response of the tokens that they predict, (N,), to the logits that are
decoded from, such as a strategy's `decode`."""


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
    most = max(1, CHUNK_BYTES // (head.weight.shape[0] * max(4, states.element_size())))
    parts = max(1, -(-len(states) // most))  # of one size, so that each takes the memory of the one before
    for low, high in pairwise(len(states) * part // parts for part in range(parts + 1)):
        first, last = torch.searchsorted(at, torch.tensor([low, high], device=at.device)).tolist()
        here, token = at[first:last] - low, target[first:last]
        logits = wide(head(states[low:high]))
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


def wide(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 at least: half precision is for the model's insides, not for normalising."""
    return logits if logits.dtype == torch.float64 else logits.float()
