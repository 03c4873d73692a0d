"""The live parameters of a model, at whatever weights a question is asked, and bit for bit where they were after it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from tradeoff.bridge.trainable import Parameters, assign
from tradeoff.bridge.training import Tensors
from tradeoff.strategies._named import each


class Live:
    """Live parameters, known by the tensors that were put into them, none of which is ever changed in place.

    Args:
        parameters: where they are now is where training begins.
    """

    def __init__(self, parameters: Parameters) -> None:
        self.weights: Tensors = {name: p.detach().clone() for name, p in parameters.items()}
        """The weights in the model."""
        self.gradients = 0
        """How many gradients were asked for so far."""
        self._parameters = parameters

    def put(self, weights: Tensors) -> None:
        """Let these be the live weights."""
        if not same(weights, self.weights):
            self._assign(weights)
            self.weights = dict(weights)

    def taken(self) -> Tensors:
        """The live weights, after an optimiser moved them in place."""
        self.weights = {name: p.detach().clone() for name, p in self._parameters.items()}
        return self.weights

    @contextmanager
    def at(self, weights: Tensors) -> Iterator[None]:
        """Other weights in the model for a while, also when it ends in an error."""
        if same(weights, self.weights):
            yield
            return
        try:
            self._assign(weights)
            yield
        finally:
            assign(self._parameters, self.weights)

    def pulled(self, pull: Callable[[], None], weights: Tensors) -> Tensors:
        """The gradient, by name, that something adds to the parameters' gradients at these weights."""
        self.gradients += 1
        with self.at(weights):
            try:
                pull()
                return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in self._parameters.items()}
            finally:
                for p in self._parameters.values():
                    p.grad = None

    def _assign(self, weights: Tensors) -> None:
        each(lambda *_: None, self.weights, weights)  # the same names and shapes, before anything is changed
        assign(self._parameters, weights)


def same(one: Tensors, other: Tensors) -> bool:
    """Whether weights by name are the same tensors."""
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)
