"""A text world's losses around a checkpoint, over what a recipe would train: gradients, curvature products, gaps a move away."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float

from tradeoff import gaps
from tradeoff.bridge import policy
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.curvature import LossOf
from tradeoff.bridge.flat import Flat
from tradeoff.bridge.local_losses import KINDS, Vector
from tradeoff.bridge.objective import Objective
from tradeoff.bridge.recipe import Recipe
from tradeoff.bridge.trainable import trainable
from tradeoff.worlds.world import World


class CheckpointTangents:
    """`local_losses.Tangents` of a checkpoint; see `tangents`."""

    def __init__(self, checkpoint: Checkpoint, world: World, recipe: Recipe, on_product: Callable[[], object]) -> None:
        self.flat = Flat(checkpoint)
        self.kinds: tuple[str, ...] = KINDS[:2] if world.proxy is None else KINDS
        self.gradients = self.products = 0
        self._on_product = on_product
        self._checkpoint, self._world, self._recipe = checkpoint, world, recipe
        self._encoding = policy.encode(checkpoint, world)
        self._objective = Objective(checkpoint, self._encoding, recipe.upper_layers, recipe.batch_size)
        seen = World(world.training_safety, world.capability, None, world.contexts, world.responses)
        worlds = {"capability": (world, "capability"), "safety": (world, "safety"), "proxy": (seen, "safety")}
        self._losses = {
            kind: LossOf(checkpoint, *worlds[kind], self.flat.names, recipe.batch_size) for kind in self.kinds
        }

    def values(self, move: Vector | None = None) -> dict[str, float]:
        """Every gap, nats, where the checkpoint stands or a move away; the weights are put back bit for bit."""
        with self.flat.moved(move):
            scores = policy.checked(self._objective.scores())
        found = {"capability": gaps.capability_gap, "safety": gaps.safety_gap, "proxy": gaps.proxy_gap}
        return {kind: float(gap(self._world, scores)) for kind, gap in found.items()}

    def gradient(self, kind: str) -> Vector:
        """Of one loss."""
        self.gradients += 1
        return self._losses[kind].gradient()

    def product(self, kind: str, v: Vector) -> Vector:
        """Of one loss's Gauss-Newton matrix with a vector."""
        self.products += 1
        self._on_product()
        return self._losses[kind].gauss_newton_product(v)

    def hessian_product(self, kind: str, v: Vector) -> Vector:
        """Of one loss's Hessian with a vector."""
        self.products += 1
        self._on_product()
        return self._losses[kind].hessian_product(v)

    def inner(self, v: Vector, w: Vector) -> float:
        """The inner product of the changes of the weights that two vectors make to first order."""
        return self.flat.inner(v, w)

    def context_gradient(self, x: int, law: Float[np.ndarray, " Y"]) -> Vector:
        r"""The gradient of $-\sum_yP(y)\log\pi(y|x)$ at one context."""
        encoding = policy.Encoding((self._encoding.prompts[x],), self._encoding.responses)
        loss = Objective(self._checkpoint, encoding, self._recipe.upper_layers, 1)
        return self._pulled(loss, law[None])

    def seconds(self) -> float:
        """How long one gradient of training takes, by a clock: the second of two, for the first warms up."""
        law = self._world.capability
        weights = np.asarray(law.p[:, None] * law.P)
        self._pulled(self._objective, weights)
        began = time.perf_counter()
        self._pulled(self._objective, weights)
        return time.perf_counter() - began

    def _pulled(self, objective: Objective, weights: Float[np.ndarray, "R Y"]) -> Vector:
        self.gradients += 1
        objective.pull(weights)
        return self.flat.taken_gradient()


@contextmanager
def tangents(
    checkpoint: Checkpoint, world: World, recipe: Recipe, on_product: Callable[[], object] = lambda: None
) -> Iterator[CheckpointTangents]:
    """The losses of a world around a checkpoint, over what a recipe would train; the checkpoint is left as it was.

    Args:
        checkpoint: the language model, in float64 or float32.
        world: a text world.
        recipe: what is trained: rank, upper layers and seed, and the batch size of every pass.
        on_product: called at each product, to show progress.

    Yields:
        What `local_losses.expand` takes.

    Raises:
        ValueError: as `curvature.hessian` and `finetune`.
    """
    with trainable(checkpoint, recipe.rank, recipe.upper_layers, recipe.seed):
        yield CheckpointTangents(checkpoint, world, recipe, on_product)
