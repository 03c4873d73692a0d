r"""The losses of instruction data around a checkpoint, over what a recipe would train: gradients, curvature products, values.

A loss is a function of the last hidden states s that predict the answers, so with the head's part C of the curvature and r
its slope there, the Gauss-Newton product is $J^\top CJv$ and the Hessian's $J^\top CJv+\sum r\,\partial^2s\,v$. Of the
vocabulary's laws only a chunk exists at any time.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tradeoff.bridge.answers import Answers
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.curvature import PRECISIONS, norms_in_float64
from tradeoff.bridge.data import Data
from tradeoff.bridge.flat import Flat, flattened
from tradeoff.bridge.local_losses import KINDS, Vector
from tradeoff.bridge.lower import LowerStates
from tradeoff.bridge.recipe import Recipe
from tradeoff.bridge.rows import encode
from tradeoff.bridge.trainable import trainable

TOKENS = 1024
"""In one pass of a product, padding included: it holds the graph of a gradient."""


class DataTangents:
    """`local_losses.Tangents` of a checkpoint on data; see `data_tangents`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        data: Mapping[str, Data],
        recipe: Recipe,
        on_product: Callable[[], object],
        lower: LowerStates | None,
    ) -> None:
        self.flat = Flat(checkpoint)
        self.kinds: tuple[str, ...] = tuple(kind for kind in KINDS if kind in data)
        self.gradients = self.products = 0
        self._checkpoint, self._on_product = checkpoint, on_product
        self._answers = {
            kind: Answers(checkpoint, encode(checkpoint, data[kind]), recipe.upper_layers, TOKENS, lower)
            for kind in self.kinds
        }

    def values(self, move: Vector | None = None) -> dict[str, float]:
        """Every mean loss, nats per token, where the checkpoint stands or a move away; the weights are put back bit for bit."""
        with self.flat.moved(move):
            found = {kind: -float(each.log_probabilities(each.places).mean()) for kind, each in self._answers.items()}
        return {"proxy": found["safety"]} | found

    def gradient(self, kind: str) -> Vector:
        """Of one loss."""
        self.gradients += 1
        answers = self._answers[kind]
        answers.pull(answers.places, 1 / answers.count(answers.places))
        return self.flat.taken_gradient()

    def product(self, kind: str, v: Vector) -> Vector:
        """Of one loss's Gauss-Newton matrix with a vector."""
        return self._product(kind, v, whole=False)

    def hessian_product(self, kind: str, v: Vector) -> Vector:
        """Of one loss's Hessian with a vector."""
        return self._product(kind, v, whole=True)

    def inner(self, v: Vector, w: Vector) -> float:
        """The inner product of the changes of the weights that two vectors make to first order."""
        return self.flat.inner(v, w)

    def seconds(self, rows: int) -> float:
        """How long the gradient of one step on rows of the task takes, by a clock: the second of two, for the first warms up."""
        answers = self._answers["capability"]
        for _ in range(2):
            self.gradients += 1
            began = time.perf_counter()
            answers.pull(answers.places[:rows], 1.0)
            self.flat.taken_gradient()
        return time.perf_counter() - began

    def _product(self, kind: str, v: Vector, whole: bool) -> Vector:
        self.products += 1
        self._on_product()
        answers, held, vectors = self._answers[kind], self.flat.parameters(), self.flat.tensors(v)
        weight = 1 / answers.count(answers.places)
        total = [torch.zeros_like(tensor) for tensor in held]
        with self._twice_differentiable():
            for batch in answers.batches(answers.places):
                states = answers.states(batch)
                # The derivative of a pull-back along v is the push-forward of v: two reverse passes make a forward one.
                probe = torch.zeros_like(states, requires_grad=True)
                back = torch.autograd.grad(states, held, probe, create_graph=True, materialize_grads=True)
                (push,) = torch.autograd.grad(back, probe, vectors, retain_graph=True, materialize_grads=True)
                if whole:
                    slope = answers.slope(batch, states.detach(), weight)
                    pulled = torch.autograd.grad(states, held, slope, create_graph=True, materialize_grads=True)
                    bent = torch.autograd.grad(pulled, held, vectors, retain_graph=True, materialize_grads=True)
                    total = [one + more for one, more in zip(total, bent, strict=True)]
                curved = answers.curved(states.detach(), push, weight)
                moved = torch.autograd.grad(states, held, curved, materialize_grads=True)
                total = [one + more for one, more in zip(total, moved, strict=True)]
        return flattened(total)

    @contextmanager
    def _twice_differentiable(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(
                sdpa_kernel(SDPBackend.MATH)
            )  # the fused kernels of attention have no second derivative
            if self._checkpoint.dtype == torch.float64:
                stack.enter_context(norms_in_float64(self._checkpoint.model))
            yield


@contextmanager
def data_tangents(
    checkpoint: Checkpoint,
    data: Mapping[str, Data],
    recipe: Recipe,
    on_product: Callable[[], object] = lambda: None,
    lower: LowerStates | None = None,
) -> Iterator[DataTangents]:
    """The losses of data around a checkpoint, over what a recipe would train; the checkpoint is left as it was.

    Args:
        checkpoint: the language model, in float64 or float32.
        data: "capability", "safety" and, where it differs, "proxy".
        recipe: what is trained: rank, upper layers and seed.
        on_product: called at each product, to show progress.
        lower: what the layers below the trained ones make of rows, shared with others.

    Yields:
        What `local_losses.expand` takes.

    Raises:
        ValueError: when the checkpoint is in half precision, or as `finetune_data`.
    """
    if checkpoint.dtype not in PRECISIONS:
        raise ValueError(
            f"{checkpoint.name} is in {checkpoint.dtype}; second derivatives need float32 or float64: load it with "
            "dtype=torch.float32."
        )
    if lower is not None:
        lower.check(checkpoint, recipe.upper_layers)
    with trainable(checkpoint, recipe.rank, recipe.upper_layers, recipe.seed):
        yield DataTangents(checkpoint, data, recipe, on_product, lower)
