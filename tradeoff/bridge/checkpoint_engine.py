"""What a strategy may ask of a checkpoint: losses and gradients at any weights, by packed passes through the live model."""

import numpy as np
import torch
from jaxtyping import Array

from tradeoff.bridge.corpus import Corpus
from tradeoff.bridge.live import Live, same
from tradeoff.bridge.objective import CellWeights, Objective
from tradeoff.bridge.trainable import Parameters
from tradeoff.bridge.training import Tensors, TorchEngine
from tradeoff.strategies.losses import Cells, CrossEntropy, Loss, Weighted
from tradeoff.worlds.world import World


class CheckpointEngine(TorchEngine):
    """Losses of a checkpoint on a text world, and their gradients, at weights by name.

    A question at other weights than the live ones puts these into the model, and the live ones back bit for bit, also when
    the answer is an error. Weights are known by their tensors, none of which is ever changed in place.

    Args:
        objective: of the checkpoint and world; its probes are weights too.
        parameters: the live parameters; where they are now is where training began.
        world: the world.
        key: a JAX random key.
        steps: how many steps there will be.
        learning_rate: of the optimiser, NaN unless it is plain descent.
        corpus: the examples that are trained on, where a strategy maps them; `None` for the world as it is.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        world: World,
        key: Array,
        steps: int,
        learning_rate: float = float("nan"),
        corpus: Corpus | None = None,
    ) -> None:
        parameters = {**parameters, **objective.probes}
        self.live = Live(parameters)
        """The live parameters."""
        start = self.live.weights
        super().__init__(self._scored, world, start, key, steps, learning_rate)
        self._objective, self._corpus = objective, corpus
        self.maps_examples = corpus is not None
        self._read: tuple[Tensors, torch.Tensor] | None = (
            None  # the last weights that a forward pass scored, and the scores
        )
        self._settled: Tensors = start
        self._passed: np.ndarray | None = None  # the log-policy at the settled weights, from a gradient's pass

    def gradient(self, loss: Loss, weights: Tensors) -> Tensors:
        """Its gradient, by name: one packed pass, whose own scores say what the cells weigh."""
        cells = self._cells(loss)

        def pull() -> None:
            scores = self._objective.pull(cells)
            if same(weights, self._settled):
                self._passed = scores

        return self.live.pulled(pull, weights)

    def descended(self, objective: Loss, weights: Tensors) -> Tensors:
        """The gradient of the objective, or of the examples that stand in its place."""
        return (
            self.gradient(objective, weights) if self._corpus is None else self.live.pulled(self._corpus.pull, weights)
        )

    def settle(self, weights: Tensors) -> None:
        """Let these be the weights that the next step is taken from."""
        self.live.put(weights)
        # Scores of an earlier step's gradient are not there after a restart, and a forward pass may round otherwise.
        self._settled, self._passed = weights, None

    def measured(self, weights: Tensors) -> np.ndarray:
        """The log-policy as it is decoded, shape (X, Y): for nothing where this step took a gradient, else by a forward pass."""
        if self._objective.decoder is not None:
            with self.live.at(weights):
                return self._objective.decoded()
        if self._passed is not None and same(weights, self._settled):
            return self._passed
        return self.log_policy(weights).cpu().numpy()

    def _scored(self, weights: Tensors) -> torch.Tensor:
        if self._read is None or not same(weights, self._read[0]):
            with self.live.at(weights):
                scores = torch.from_numpy(self._objective.scores()).to(next(iter(weights.values())).device)
            self._read = dict(weights), scores
        return self._read[1]

    def _cells(self, loss: Loss) -> CellWeights:
        if isinstance(loss, Cells):
            return loss.weights
        data = self.data  # now, for it may take a pass of its own, and the loss's must not be disturbed
        return loss.cells(data, data.start) if fixed(loss) else lambda scores: loss.cells(data, scores)


def fixed(loss: Loss) -> bool:
    """Whether a loss's cells are known not to depend on the policy, so that they need not wait for its scores.

    Example:
        >>> from tradeoff.strategies import SAFETY, TASK
        >>> fixed(Weighted(((1.0, TASK), (2.0, SAFETY))))
        True
    """
    if isinstance(loss, Weighted):
        return all(fixed(term) for _, term in loss.terms)
    return isinstance(loss, CrossEntropy | Cells)
