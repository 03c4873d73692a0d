"""The loss of weighted sequences for a checkpoint, in packed rows: what sequences have in common is computed once."""

from collections.abc import Sequence

import torch

from tradeoff.bridge import policy, scoring
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.examples import Line
from tradeoff.bridge.objective import Rows
from tradeoff.strategies.examples import IGNORED

ROOM = 256
"""Tokens in a packed row, unless one sequence alone has more: the memory of attention grows with their square."""

Nodes = dict[tuple[int, int], int]
"""The beginnings of sequences: from the number of one (-1 for the empty one) and the next token to the number of both."""
Costs = dict[tuple[int, int], float]
"""What it weighs that a token follows a beginning."""


class Corpus:
    r"""The loss $-\sum_i w_i\sum_t\log\pi(\text{label}_{it}|\text{tokens}_{i,<t})$ of weighted sequences.

    Args:
        checkpoint: the language model.
        lines: the sequences.
        upper_layers: how many layers, counted from the top, are trained; `None` for all.
        batch_size: packed rows in one forward pass.
    """

    def __init__(
        self, checkpoint: Checkpoint, lines: Sequence[Line], upper_layers: int | None, batch_size: int
    ) -> None:
        self.head = checkpoint.model.get_output_embeddings()
        trees = _trees(lines)
        packed = [
            _packed(trees[i : i + batch_size], checkpoint.device, checkpoint.dtype)
            for i in range(0, len(trees), batch_size)
        ]
        self.rows = Rows(checkpoint, [batch for batch, _, _ in packed], upper_layers)
        self.predicted = [(tokens, costs) for _, tokens, costs in packed]

    def pull(self) -> None:
        """Add the gradient of the loss to the parameters' gradients."""
        for number, (tokens, costs) in enumerate(self.predicted):
            states = self.rows.states(number)
            flat = states.detach().reshape(-1, states.shape[-1])
            gradient = scoring.score_tokens(self.head, flat, tokens, torch.zeros_like(costs), costs)
            states.backward(gradient.reshape(states.shape))


def _trees(lines: Sequence[Line]) -> list[tuple[Nodes, Costs]]:
    """Sequences in order, as many in a tree as there is room for."""
    nodes, costs = {}, {}
    trees = [(nodes, costs)]
    for line in sorted(lines):
        if nodes and len(nodes) + _missing(nodes, line.tokens[:-1]) > ROOM:
            nodes, costs = {}, {}
            trees.append((nodes, costs))
        at = -1
        for token, label in zip(line.tokens[:-1], line.labels[1:], strict=True):
            at = nodes.setdefault((at, token), len(nodes))
            if label != IGNORED:
                costs[at, label] = costs.get((at, label), 0.0) + line.weight
    return trees


def _missing(nodes: Nodes, tokens: Sequence[int]) -> int:
    at = -1
    for place, token in enumerate(tokens):
        if (at, token) not in nodes:
            return len(tokens) - place
        at = nodes[at, token]
    return 0


def _packed(
    trees: Sequence[tuple[Nodes, Costs]], device: torch.device, dtype: torch.dtype
) -> tuple[policy.Batch, scoring.Predicted, torch.Tensor]:
    """One row for each tree, what is scored of them, and what that weighs."""
    longest = max(len(nodes) for nodes, _ in trees)
    predictors = [sorted({node for node, _ in costs}) for _, costs in trees]
    width = max(map(len, predictors))
    tokens, positions = torch.zeros(2, len(trees), longest, dtype=torch.long)
    sees = torch.eye(longest, dtype=torch.bool).repeat(len(trees), 1, 1)
    scored_at = torch.zeros(len(trees), width, dtype=torch.long)
    steps = []
    for row, (nodes, costs) in enumerate(trees):
        for (parent, token), node in nodes.items():
            tokens[row, node] = token
            if parent >= 0:
                positions[row, node] = positions[row, parent] + 1
                sees[row, node] |= sees[row, parent]
        scored_at[row, : len(predictors[row])] = torch.tensor(predictors[row])
        place = {node: row * width + i for i, node in enumerate(predictors[row])}
        steps += [(place[node], target, cost) for (node, target), cost in costs.items()]
    at, target, cost = zip(*sorted(steps), strict=True)
    mask = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)[:, None]
    batch = policy.Batch(*(each.to(device) for each in (tokens, positions, mask, scored_at)))
    cells = torch.arange(len(steps), device=device)
    predicted = scoring.Predicted(torch.tensor(at, device=device), torch.tensor(target, device=device), cells)
    return batch, predicted, torch.tensor(cost, dtype=torch.float64, device=device)
