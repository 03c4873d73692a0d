"""An engine of losses written down, where a test needs more than one tensor or a loss that is not of a policy."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from tradeoff.strategies import Engine

NO_POLICY = "losses that are written down have no policy and draw nothing: the strategy under test should not ask"


class Given(Engine):
    """Losses by their roles, each a function of weights by name."""

    steps, learning_rate = 1, 1.0

    def __init__(self, losses: Mapping[str, Callable[[Any], Any]], start: Any) -> None:
        self.losses, self._start = losses, start

    @property
    def start(self):
        return self._start

    @property
    def data(self):
        raise AssertionError(NO_POLICY)

    def value(self, loss, weights):
        return self.losses[loss.role](weights)

    def gradient(self, loss, weights):
        return jax.grad(self.losses[loss.role])(dict(weights))

    def log_policy(self, weights):
        raise AssertionError(NO_POLICY)

    def normal(self, label, step, like):
        raise AssertionError(NO_POLICY)

    def uniform(self, label, step, shape):
        raise AssertionError(NO_POLICY)

    def either(self, condition, then, otherwise):
        return then() if condition else otherwise()
