"""The loss of a text world for a checkpoint whose lower layers are frozen: scores and gradients in one packed pass."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tradeoff.bridge import policy
from tradeoff.bridge.checkpoints import Checkpoint

CellWeights = np.ndarray | torch.Tensor | Callable[[torch.Tensor], torch.Tensor]
"""What each cell weighs, shape (X, Y), or a function from the scores of the pass to that."""


class Objective:
    r"""The weighted cross-entropy $-\sum c\log\pi$ of a text world; what the lower layers compute is computed once."""

    def __init__(
        self, checkpoint: Checkpoint, encoding: policy.Encoding, upper_layers: int | None, batch_size: int
    ) -> None:
        trunk = checkpoint.model.base_model
        self.scorer = policy.Scorer(encoding.responses, checkpoint.model.get_output_embeddings())
        self.norm = trunk.norm
        self.layers = trunk.layers[first_adapted(checkpoint, upper_layers) :]
        self.batches = []
        with torch.no_grad():
            for batch in policy.pack(encoding, checkpoint, batch_size):
                lower = trunk.embed_tokens(batch.tokens)
                rotation = trunk.rotary_emb(lower, position_ids=batch.positions)
                lower = _through(trunk.layers[: len(trunk.layers) - len(self.layers)], lower, batch, rotation)
                self.batches.append((batch, lower, rotation))

    def scores(self) -> np.ndarray:
        """The log-policy as it is now, shape (X, Y)."""
        with torch.no_grad():
            return torch.cat([self.scorer.scores(self._states(*each)) for each in self.batches]).cpu().numpy()

    def pull(self, weights: CellWeights) -> np.ndarray:
        r"""The log-policy, shape (X, Y), after adding the gradient of $-\sum c\log\pi$ to the parameters' gradients.

        Args:
            weights: c, shape (X, Y). A function of the scores is called once, with all of them, before anything is
                differentiated: then the graphs of all batches exist at one time, and the head is applied twice.
        """
        if callable(weights):
            return self._pull_by_scores(weights)
        table = weights if isinstance(weights, torch.Tensor) else torch.tensor(weights)
        scores = []
        for each in self.batches:
            states = self._states(*each)
            rows = table[sum(map(len, scores)) :][: len(states)].to(states.device)
            found, gradient = self.scorer.scores_and_pull(states, rows)
            states.backward(gradient)
            scores.append(found)
        return torch.cat(scores).cpu().numpy()

    def _pull_by_scores(self, weights: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        states = [self._states(*each) for each in self.batches]
        scores = torch.cat([self.scorer.scores(each) for each in states])
        for each, rows in zip(states, weights(scores).split([len(s) for s in states]), strict=True):
            each.backward(self.scorer.scores_and_pull(each, rows)[1])
        return scores.cpu().numpy()

    def _states(self, batch: policy.Batch, lower: torch.Tensor, rotation: Any) -> torch.Tensor:
        # The final norm acts on each position by itself, so only scored positions go through it.
        return self.norm(batch.scored(_through(self.layers, lower, batch, rotation)))


def first_adapted(checkpoint: Checkpoint, upper_layers: int | None) -> int:
    """The index of the lowest layer that is trained, after the check that there are so many layers."""
    layers = checkpoint.model.config.num_hidden_layers
    if upper_layers is not None and upper_layers > layers:
        raise ValueError(
            f"finetune was given upper_layers={upper_layers} for a model of {layers} layers; give at most {layers}, or "
            "None for all."
        )
    return 0 if upper_layers is None else layers - upper_layers


def _through(layers: Any, hidden: torch.Tensor, batch: policy.Batch, rotation: Any) -> torch.Tensor:
    for layer in layers:
        hidden = layer(
            hidden,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            position_embeddings=rotation,
            use_cache=False,
        )
    return hidden
