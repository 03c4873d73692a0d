"""The torch engine of strategies: the lines that the theory checks in JAX train a torch model."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from jaxtyping import Array

from tradeoff.dynamics.engine import random_key
from tradeoff.strategies import Engine, Loss, Strategy, Weighted
from tradeoff.strategies.losses import SAFETY, TASK, Data, harmful_answers
from tradeoff.worlds.world import World

Tensors = Mapping[str, torch.Tensor]
"""Weights by name."""


class AbstractTorchEngine(Engine):
    """What the torch engines have in common: where training began, and the random numbers of the JAX engine.

    Args:
        start: the aligned weights.
        key: a JAX random key, so that random numbers are those of the JAX engine.
        steps: how many steps there will be.
        learning_rate: of the optimiser.
    """

    def __init__(self, start: Tensors, key: Array, steps: int, learning_rate: float = float("nan")) -> None:
        self.steps, self.learning_rate = steps, learning_rate
        self._start, self._key = dict(start), key

    @property
    def start(self) -> Tensors:
        """The aligned weights."""
        return self._start

    def descended(self, objective: Loss, weights: Tensors) -> Tensors:
        """The gradient of what training descends, by name."""
        return self.gradient(objective, weights)

    def normal(self, label: str, step: Any, like: Tensors) -> Tensors:
        """Standard normals of the shapes of `like`."""
        keys = jax.random.split(random_key(self._key, label, step), len(like))
        return {
            name: self._tensor(jax.random.normal(key, tuple(like[name].shape))).to(like[name].dtype)
            for name, key in zip(sorted(like), keys, strict=True)
        }

    def uniform(self, label: str, step: Any, shape: tuple[int, ...]) -> torch.Tensor:
        """Uniforms on (0, 1)."""
        return self._tensor(jax.random.uniform(random_key(self._key, label, step), shape))

    def either(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """One of two computations."""
        return then() if bool(condition) else otherwise()

    def _tensor(self, values: Array) -> torch.Tensor:
        device = next(iter(self.start.values())).device
        return torch.from_numpy(np.array(values)).to(device)


class TorchEngine(AbstractTorchEngine):
    """Losses of a torch policy on a world, and their gradients, at weights by name.

    Args:
        policy: from weights to log-probabilities, shape (X, Y), differentiable; at any weights, leaving none behind.
        world: the world.
        start: the aligned weights.
        key: a JAX random key, so that random numbers are those of the JAX engine.
        steps: how many steps there will be.
        learning_rate: of the optimiser.
    """

    def __init__(
        self,
        policy: Callable[[Tensors], torch.Tensor],
        world: World,
        start: Tensors,
        key: Array,
        steps: int,
        learning_rate: float = float("nan"),
    ) -> None:
        super().__init__(start, key, steps, learning_rate)
        self.policy = policy
        self._world, self._data = world, None

    @property
    def data(self) -> Data:
        """The laws of the world; the first to ask has the aligned weights scored."""
        if self._data is None:
            self._data = self._laws(self._world)
        return self._data

    def log_policy(self, weights: Tensors) -> torch.Tensor:
        """The policy's log-probabilities, shape (X, Y)."""
        with torch.no_grad():
            return self.policy(weights)

    def value(self, loss: Loss, weights: Tensors) -> torch.Tensor:
        """A loss, nats."""
        return loss.value(self.data, self.log_policy(weights))

    def gradient(self, loss: Loss, weights: Tensors) -> Tensors:
        """Its gradient, by name."""
        at = {name: tensor.detach().clone().requires_grad_() for name, tensor in weights.items()}
        log_policy = self.policy(at)
        cells = loss.cells(self.data, log_policy.detach())
        pulled = torch.autograd.grad(log_policy, list(at.values()), -cells)
        return dict(zip(at, pulled, strict=True))

    def _laws(self, world: World) -> Data:
        seen = world.training_safety
        safety = self._tensor(seen.p[:, None] * seen.P)
        task = self._tensor(world.capability.p[:, None] * world.capability.P)
        return Data(task, safety, harmful_answers(safety), self.log_policy(self.start).to(safety.dtype))


class Trained(NamedTuple):
    """Where a run is.

    Args:
        step: how many steps were done.
        weights: of the training itself.
        exported: the weights that the strategy would have used.
        state: of the strategy.
    """

    step: int
    weights: Tensors
    exported: Tensors
    state: Any


def train(
    engine: AbstractTorchEngine,
    strategy: Strategy,
    update: Callable[[Tensors, Tensors, int], Tensors],
    lam: float = 0.0,
    loss: Loss | None = None,
    resume: Trained | None = None,
) -> Iterator[Trained]:
    r"""Descend $G_f+\lambda\hat G_s$ by a strategy, as `dynamics.descend` does.

    Args:
        engine: what is trained.
        strategy: one of `tradeoff.strategies`.
        update: the optimiser: from weights, gradient and number of the step to the weights after it.
        lam: a finite penalty λ ≥ 0.
        loss: what is descended in place of it.
        resume: where an earlier run was.

    Yields:
        Where the run is, before the first step and after each.
    """
    penalised = TASK if lam == 0 else Weighted(((1.0, TASK), (lam, SAFETY)))
    objective = penalised if loss is None else loss
    if resume is None:
        strategy.check(engine)
        weights: Tensors = dict(engine.start)
        state = strategy.init(weights, engine)
        yield Trained(0, weights, strategy.export(state, weights, engine), state)
    else:
        weights, state = resume.weights, resume.state
    for step in range(0 if resume is None else resume.step, engine.steps):
        state = strategy.refresh(state, weights, step, engine)
        gradient = strategy.gradient(lambda at: engine.descended(objective, at), state, weights, step, engine)
        weights, state = strategy.land(state, weights, update(weights, gradient, step), step, engine)
        yield Trained(step + 1, weights, strategy.export(state, weights, engine), state)


def plain_descent(learning_rate: float) -> Callable[[Tensors, Tensors, int], Tensors]:
    """Plain descent with one learning rate, as `update` of `train`."""

    def update(weights: Tensors, gradient: Tensors, _: int) -> Tensors:
        return {name: tensor - learning_rate * gradient[name] for name, tensor in weights.items()}

    return update
