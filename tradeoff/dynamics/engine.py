"""The JAX engine of strategies: what a problem answers to their questions."""

import dataclasses
import zlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.problems import Problem
from tradeoff.strategies.losses import Data, Loss, Weighted, harmful_answers
from tradeoff.strategies.strategy import Engine, Weights

WHOLE = "parameters"
"""The name of parameters that are one array."""


class JaxEngine(eqx.Module, Engine):
    """Losses of a problem and their gradients, at weights by name.

    Args:
        problem: any problem; without a `log_policy` it answers for the task's and the safety loss only.
        origin: the aligned parameters.
        key: of the random numbers.
        steps: how many steps there will be.
        learning_rate: of the optimiser.
        laws: `data`, once computed; see `prepared`.
    """

    problem: Problem
    origin: Any
    key: Array
    steps: int = eqx.field(static=True)
    learning_rate: float | Array = 1.0
    laws: Data | None = None

    @property
    def start(self) -> Weights:
        """The aligned weights by name."""
        return named(self.origin)

    @property
    def has_policy(self) -> bool:
        """Whether the problem is a policy of a world."""
        return hasattr(self.problem, "log_policy") and hasattr(self.problem, "world")

    @property
    def data(self) -> Data:
        """The laws of the problem's world."""
        if self.laws is not None:
            return self.laws
        world = getattr(self.problem, "world", None)
        if world is None:
            raise ValueError(
                f"{type(self.problem).__name__} has no policy and no world, and the strategy asks for its data; give a "
                "problem with a policy, such as Tabular or SoftmaxLinear."
            )
        seen = world.training_safety
        safety = seen.p[:, None] * seen.P
        task = world.capability.p[:, None] * world.capability.P
        return Data(task, safety, harmful_answers(safety), self.log_policy(self.start))

    def prepared(self) -> "JaxEngine":
        """The same engine with the laws computed: else a compiled loop computes them anew at every step."""
        return dataclasses.replace(self, laws=self.data) if self.has_policy else self

    def log_policy(self, weights: Weights) -> Array:
        """The policy's log-probabilities, shape (X, Y)."""
        return self.problem.log_policy(self.parameters(weights))  # pyright: ignore[reportAttributeAccessIssue]

    def value(self, loss: Loss, weights: Weights) -> Array:
        """A loss, nats."""
        if self.has_policy:
            return loss.value(self.data, self.log_policy(weights))
        return self._of_role(loss, self.parameters(weights))

    def gradient(self, loss: Loss, weights: Weights) -> Weights:
        """Its gradient, by name."""
        if not self.has_policy:
            return jax.grad(lambda at: self.value(loss, at))(dict(weights))
        log_policy, pull = jax.vjp(self.log_policy, dict(weights))
        return pull(-loss.cells(self.data, log_policy))[0]

    def normal(self, label: str, step: Any, like: Weights) -> Weights:
        """Standard normals of the shapes of `like`."""
        keys = jax.random.split(random_key(self.key, label, step), len(like))
        return {name: jax.random.normal(key, like[name].shape) for name, key in zip(sorted(like), keys, strict=True)}

    def uniform(self, label: str, step: Any, shape: tuple[int, ...]) -> Array:
        """Uniforms on (0, 1)."""
        return jax.random.uniform(random_key(self.key, label, step), shape)

    def either(self, condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        """One of two computations."""
        return jax.lax.cond(condition, then, otherwise)

    def parameters(self, weights: Weights) -> Any:
        """The problem's own parameters, from weights by name."""
        return jax.tree.unflatten(jax.tree.structure(self.origin), [weights[name] for name in named(self.origin)])

    def _of_role(self, loss: Loss, parameters: Any) -> Array:
        if isinstance(loss, Weighted):
            return jnp.asarray(sum(weight * self._of_role(term, parameters) for weight, term in loss.terms))
        if loss.role == "task":
            return self.problem.gaps(parameters).capability
        if loss.role == "safety":
            return self.problem.gaps(parameters).safety
        raise ValueError(
            f"{type(self.problem).__name__} has a task loss and a safety loss, and the strategy asks for "
            f"{type(loss).__name__}; give a problem with a policy, such as Tabular or SoftmaxLinear."
        )


def named(parameters: Any) -> dict[str, Array]:
    """The arrays of a pytree by their paths; `WHOLE` is the name of a single one."""
    paths = jax.tree_util.tree_leaves_with_path(parameters)
    return {jax.tree_util.keystr(path, simple=True, separator="/") or WHOLE: jnp.asarray(leaf) for path, leaf in paths}


def random_key(key: Array, label: str, step: Any) -> Array:
    """The key of one use at one step."""
    return jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(label.encode())), step)
