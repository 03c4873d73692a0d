"""The loss of a text world for a checkpoint whose lower layers are frozen: scores and gradients in one packed pass."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from tradeoff.bridge import policy, scoring
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.probes import Probes, Probing

CellWeights = np.ndarray | torch.Tensor | Callable[[torch.Tensor], torch.Tensor]
"""What each cell weighs, shape (X, Y), or a function from the scores of the pass to that."""


class Rows:
    """Packed rows and a checkpoint's layers over them; what the frozen lower layers compute is computed once."""

    def __init__(self, checkpoint: Checkpoint, batches: Sequence[policy.Batch], upper_layers: int | None) -> None:
        trunk = checkpoint.model.base_model
        self.batches, self.norm = batches, trunk.norm
        self.layers = trunk.layers[first_adapted(checkpoint, upper_layers) :]
        self.below = []
        with torch.no_grad():
            for batch in batches:
                lower = trunk.embed_tokens(batch.tokens)
                rotation = trunk.rotary_emb(lower, position_ids=batch.positions)
                lower = through(
                    trunk.layers[: len(trunk.layers) - len(self.layers)], lower, batch.mask, batch.positions, rotation
                )
                self.below.append((lower, rotation))

    def states(self, number: int) -> torch.Tensor:
        """The states of a batch that predict what is scored."""
        batch, (lower, rotation) = self.batches[number], self.below[number]
        # The final norm acts on each position by itself, so only scored positions go through it.
        return self.norm(batch.scored(through(self.layers, lower, batch.mask, batch.positions, rotation)))


class Objective:
    r"""The weighted cross-entropy $-\sum c\log\pi$ of a text world.

    Args:
        checkpoint: the language model.
        encoding: the world in its tokens.
        upper_layers: how many layers, counted from the top, are trained; `None` for all.
        batch_size: prompts in one forward pass.
        probing: which hidden states have probes, in `probes`; `None` for none.
        decode: what makes of the model's logits those that are decoded from, for `decoded`; `None` for nothing.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        encoding: policy.Encoding,
        upper_layers: int | None,
        batch_size: int,
        probing: Probing | None = None,
        decode: scoring.Decode | None = None,
    ) -> None:
        head = checkpoint.model.get_output_embeddings()
        self.scorer = scoring.Scorer(encoding.responses, head)
        self.decoder = None if decode is None else scoring.Scorer(encoding.responses, head, decode)
        self.rows = Rows(checkpoint, policy.pack(encoding, checkpoint, batch_size), upper_layers)
        self._probes = None
        if probing is not None:
            self._probes = Probes(probing, self.rows.layers, self.rows.batches, self.rows.below[0][0])

    @property
    def probes(self) -> dict[str, torch.nn.Parameter]:
        """The probes by name."""
        return {} if self._probes is None else self._probes.parameters

    def scores(self) -> np.ndarray:
        """The log-policy as it is now, shape (X, Y)."""
        return self._scores(self.scorer)

    def decoded(self) -> np.ndarray:
        """The log-policy as it is decoded now, shape (X, Y), if there is `decode`."""
        assert self.decoder is not None
        return self._scores(self.decoder)

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
        for number in range(len(self.rows.batches)):
            states = self._states(number)
            rows = table[sum(map(len, scores)) :][: len(states)].to(states.device)
            found, gradient = self.scorer.scores_and_pull(states, rows)
            states.backward(gradient)
            scores.append(found)
        return torch.cat(scores).cpu().numpy()

    def _pull_by_scores(self, weights: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
        states = [self._states(number) for number in range(len(self.rows.batches))]
        scores = torch.cat([self.scorer.scores(each) for each in states])
        for each, rows in zip(states, weights(scores).split([len(s) for s in states]), strict=True):
            each.backward(self.scorer.scores_and_pull(each, rows)[1])
        return scores.cpu().numpy()

    def _scores(self, scorer: scoring.Scorer) -> np.ndarray:
        with torch.no_grad():
            return torch.cat([scorer.scores(self._states(n)) for n in range(len(self.rows.batches))]).cpu().numpy()

    def _states(self, number: int) -> torch.Tensor:
        batches = self.rows.batches
        before = sum(len(batch.tokens) for batch in batches[:number])
        with nullcontext() if self._probes is None else self._probes.added(before, batches[number]):
            return self.rows.states(number)


def first_adapted(checkpoint: Checkpoint, upper_layers: int | None) -> int:
    """The index of the lowest layer that is trained, after the check that there are so many layers."""
    layers = checkpoint.model.config.num_hidden_layers
    if upper_layers is not None and upper_layers > layers:
        raise ValueError(
            f"finetune was given upper_layers={upper_layers} for a model of {layers} layers; give at most {layers}, or "
            "None for all."
        )
    return 0 if upper_layers is None else layers - upper_layers


def through(
    layers: Any, hidden: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, rotation: Any
) -> torch.Tensor:
    """Hidden states behind some layers, under a mask that is added to the attention's scores."""
    for layer in layers:
        hidden = layer(
            hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotation, use_cache=False
        )
    return hidden
