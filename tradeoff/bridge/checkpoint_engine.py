"""What a strategy may ask of a checkpoint: losses and gradients at any weights, by packed passes through the live model."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Array

from tradeoff.bridge.objective import CellWeights, Objective
from tradeoff.bridge.trainable import Parameters, assign
from tradeoff.bridge.training import Tensors, TorchEngine
from tradeoff.strategies._named import each
from tradeoff.strategies.losses import Cells, CrossEntropy, Loss, Weighted
from tradeoff.worlds.world import World


class CheckpointEngine(TorchEngine):
    """Losses of a checkpoint on a text world, and their gradients, at weights by name.

    A question at other weights than the live ones puts these into the model, and the live ones back bit for bit, also when
    the answer is an error. Weights are known by their tensors, none of which is ever changed in place.

    Args:
        objective: of the checkpoint and world.
        parameters: the live parameters; where they are now is where training began.
        world: the world.
        key: a JAX random key.
        steps: how many steps there will be.
        learning_rate: of the optimiser, NaN unless it is plain descent.
    """

    def __init__(
        self,
        objective: Objective,
        parameters: Parameters,
        world: World,
        key: Array,
        steps: int,
        learning_rate: float = float("nan"),
    ) -> None:
        start = {name: p.detach().clone() for name, p in parameters.items()}
        super().__init__(self._scored, world, start, key, steps, learning_rate)
        self.gradients = 0
        """How many gradients were asked for so far."""
        self._objective, self._parameters = objective, parameters
        self._live: Tensors = start
        self._read: torch.Tensor | None = None  # the log-policy at the live weights, from a forward pass
        self._settled: Tensors = start
        self._passed: np.ndarray | None = None  # the log-policy at the settled weights, from a gradient's pass

    def gradient(self, loss: Loss, weights: Tensors) -> Tensors:
        """Its gradient, by name: one packed pass, whose own scores say what the cells weigh."""
        cells = self._cells(loss)
        self.gradients += 1
        with self._at(weights):
            try:
                scores = self._objective.pull(cells)
                if _same(weights, self._settled):
                    self._passed = scores
                return {name: _gradient(p) for name, p in self._parameters.items()}
            finally:
                for p in self._parameters.values():
                    p.grad = None

    def settle(self, weights: Tensors) -> None:
        """Let these be the weights that the next step is taken from."""
        self.put(weights)
        # Scores of an earlier step's gradient are not there after a restart, and a forward pass may round otherwise.
        self._settled, self._passed = weights, None

    def measured(self, weights: Tensors) -> np.ndarray:
        """The log-policy, shape (X, Y): for nothing where this step took a gradient, else by a forward pass."""
        if self._passed is not None and _same(weights, self._settled):
            return self._passed
        return self.log_policy(weights).cpu().numpy()

    def put(self, weights: Tensors) -> None:
        """Let these be the live weights."""
        if not _same(weights, self._live):
            self._assign(weights)
            self._live, self._read = dict(weights), None

    def taken(self) -> Tensors:
        """The live weights, after an optimiser moved them in place."""
        self._live, self._read = {name: p.detach().clone() for name, p in self._parameters.items()}, None
        return self._live

    def _scored(self, weights: Tensors) -> torch.Tensor:
        if _same(weights, self._live) and self._read is not None:
            return self._read
        with self._at(weights):
            scores = torch.from_numpy(self._objective.scores()).to(next(iter(weights.values())).device)
        if _same(weights, self._live):
            self._read = scores
        return scores

    def _cells(self, loss: Loss) -> CellWeights:
        if isinstance(loss, Cells):
            return loss.weights
        data = self.data  # now, for it may take a pass of its own, and the loss's must not be disturbed
        return loss.cells(data, data.start) if fixed(loss) else lambda scores: loss.cells(data, scores)

    @contextmanager
    def _at(self, weights: Tensors) -> Iterator[None]:
        if _same(weights, self._live):
            yield
            return
        try:
            self._assign(weights)
            yield
        finally:
            assign(self._parameters, self._live)

    def _assign(self, weights: Tensors) -> None:
        each(lambda *_: None, self._live, weights)  # the same names and shapes, before anything is changed
        assign(self._parameters, weights)


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


def _same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
