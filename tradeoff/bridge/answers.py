"""The answers of instruction data under a checkpoint whose upper layers are trained: their loss and its gradient."""

from collections.abc import Iterator, Sequence

import torch

from tradeoff.bridge import policy, scoring
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.lower import LowerStates, causal
from tradeoff.bridge.objective import first_adapted, through
from tradeoff.bridge.rows import Row, head_is_whole, predicting, predicting_states


class Answers:
    r"""Rows of instruction data, and a checkpoint's loss on their answers.

    Args:
        checkpoint: the language model; its layers may have adapters on.
        rows: the data in its tokens.
        upper_layers: how many layers, counted from the top, are trained; `None` for all.
        tokens: in one forward pass, padding included; it changes memory and speed, and results by rounding only.
        lower: what the frozen layers make of rows, shared with others; its own where none is given.

    Raises:
        ValueError: when logits are more than the output embeddings make of the last states.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        rows: Sequence[Row],
        upper_layers: int | None,
        tokens: int,
        lower: LowerStates | None = None,
    ) -> None:
        if not head_is_whole(checkpoint):
            raise ValueError(
                f"{checkpoint.name} caps or scales its logits after its output embeddings, and training on data does not know "
                "how. Use a checkpoint of another architecture."
            )
        self.rows, self.tokens = tuple(rows), tokens
        self._checkpoint, self._head = checkpoint, checkpoint.model.get_output_embeddings()
        self._lowest = first_adapted(checkpoint, upper_layers)
        self._lower = LowerStates(checkpoint, upper_layers) if lower is None else lower
        config, longest = checkpoint.model.config, max(len(row.read) for row in self.rows)
        window = getattr(config, "sliding_window", None)
        self._by_layers = config.model_type in policy.PACKED_ARCHITECTURES and (window is None or longest <= window)

    @property
    def places(self) -> range:
        """All the rows."""
        return range(len(self.rows))

    def count(self, places: Sequence[int]) -> int:
        """How many tokens the answers of some rows have."""
        return sum(len(self.rows[place].answer) for place in places)

    def log_probabilities(self, places: Sequence[int]) -> torch.Tensor:
        """Of every token of the answers of some rows, row after row, nats, float64, shape (answer tokens,)."""
        with torch.no_grad():
            return torch.cat([self._scored(batch, self.states(batch), None)[0] for batch in self.batches(places)])

    def pull(self, places: Sequence[int], weight: float) -> None:
        r"""Add the gradient of $-w\sum\log\pi$ over all tokens of some rows' answers to the parameters' gradients.

        Args:
            places: of the rows.
            weight: w, of each token.
        """
        for batch in self.batches(places):
            states = self.states(batch)
            states.backward(self.slope(batch, states.detach(), weight))

    def pull_towards(self, places: Sequence[int], wanted: Sequence[torch.Tensor], weight: float) -> None:
        r"""Add the gradient of $w\sum\mathrm{KL}(\pi_0\|\pi)$ at every token of some rows' answers to the parameters' gradients.

        Args:
            places: of the rows.
            wanted: the states in which $\pi_0$ was, of each batch of `batches`.
            weight: w, of each token.
        """
        for batch, before in zip(self.batches(places), wanted, strict=True):
            states = self.states(batch)
            states.backward(weight * self._away(states.detach(), before))

    def slope(self, places: Sequence[int], states: torch.Tensor, weight: float) -> torch.Tensor:
        r"""The gradient of $-w\sum\log\pi$ over the tokens of some rows' answers, in the states that predict them."""
        cost = torch.full((len(states),), weight, dtype=torch.float64, device=states.device)
        return self._scored(places, states, cost)[1]

    @torch.no_grad()
    def curved(self, states: torch.Tensor, push: torch.Tensor, weight: float) -> torch.Tensor:
        r"""The curvature of $-w\sum\log\pi$ in the states, times a change of them: $wW^\top(\mathrm{diag}\,\pi-\pi\pi^\top)Wu$."""
        parts = []
        for now, along in zip(states.split(self._chunk(states)), push.split(self._chunk(states)), strict=True):
            law, change = torch.softmax(self._head(now), -1), along @ self._head.weight.T
            change -= (law * change).sum(-1, keepdim=True)
            parts.append(weight * law.mul_(change) @ self._head.weight)
        return torch.cat(parts)

    def states(self, places: Sequence[int]) -> torch.Tensor:
        """The last hidden states that predict the answers' tokens, row after row, shape (answer tokens, H)."""
        rows = [self.rows[place] for place in places]
        if not self._by_layers:
            return predicting_states(self._checkpoint, rows)
        trunk = self._checkpoint.model.base_model
        hidden = torch.nn.utils.rnn.pad_sequence([self._lower.of(row) for row in rows], batch_first=True)
        hidden = through(trunk.layers[self._lowest :], hidden, *causal(trunk, hidden))
        return trunk.norm(predicting(hidden, rows))

    def batches(self, places: Sequence[int]) -> Iterator[list[int]]:
        """Rows, in order, as many at a time as there is room for."""
        batch: list[int] = []
        for place in places:
            longest = max(len(self.rows[other].read) for other in (*batch, place))
            if batch and longest * (len(batch) + 1) > self.tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    def _scored(
        self, places: Sequence[int], states: torch.Tensor, cost: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        target = torch.tensor([token for place in places for token in self.rows[place].answer], device=states.device)
        each = torch.arange(len(target), device=states.device)
        scores = torch.zeros(len(target), dtype=torch.float64, device=states.device)
        gradient = scoring.score_tokens(self._head, states, scoring.Predicted(each, target, each), scores, cost)
        return scores, gradient

    @torch.no_grad()
    def _away(self, states: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        r"""The gradient of the divergence in the states, $(\pi-\pi_0)W$, in fixed memory."""
        size = self._chunk(states)
        parts = [
            torch.softmax(self._head(now).float(), -1).sub_(torch.softmax(self._head(then).float(), -1))
            for now, then in zip(states.split(size), before.split(size), strict=True)
        ]
        return torch.cat([part.to(states.dtype) @ self._head.weight for part in parts])

    def _chunk(self, states: torch.Tensor) -> int:
        """How many states at a time, where two tables over the vocabulary are made of each."""
        return max(1, scoring.CHUNK_BYTES // (2 * self._head.weight.shape[0] * max(4, states.element_size())))
