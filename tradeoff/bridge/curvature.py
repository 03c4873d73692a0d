r"""The curvature of a checkpoint: the operators and the local law of `tradeoff.landscape`, by the same names.

The losses are those of a text world, $L(\theta)=\sum_{x,y}p(x)P(y|x)\,(-\log\pi_\theta(y|x))$ for safety or capability: the gaps
plus a constant. Parameters are named tensors of the model; flat vectors take them in the order of their names, as
`jax.flatten_util.ravel_pytree` does with `parameters(checkpoint, tensors)`. What comes back is a
`landscape.HostOperator`, so `landscape.lanczos`, `trace`, `density` and `curvature_overlap` work on it as they are.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float
from torch.nn.attention import SDPBackend, sdpa_kernel

from tradeoff._records import Numbers
from tradeoff.bridge import policy, scoring
from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.landscape import HostOperator, LocalLaw
from tradeoff.landscape.neighbourhood import check_direction, check_distances
from tradeoff.worlds.world import World

Tree = Mapping[str, Float[Array, "..."]]
"""Named tensors as JAX arrays."""

PRECISIONS = {torch.float64: "float64", torch.float32: "float32"}


def parameters(checkpoint: Checkpoint, tensors: Sequence[str] | None = None) -> dict[str, Array]:
    """The tensors over which curvature is taken, as a tree of JAX arrays.

    Args:
        checkpoint: the language model.
        tensors: their names as in `checkpoint.model.named_parameters()`; those that require gradients unless told, which
            inside `with adapted(...)` are the adapters.

    Returns:
        Name to array, at the checkpoint's precision: what `landscape.direction` and `landscape.scaled` take.

    Raises:
        ValueError: when a name is unknown, or none is given and no tensor requires gradients.
    """
    found = _tensors(checkpoint, tensors)
    return {name: jnp.asarray(tensor.detach().cpu().numpy()) for name, tensor in found.items()}


def hessian(
    checkpoint: Checkpoint, world: World, of: str = "safety", tensors: Sequence[str] | None = None, batch_size: int = 16
) -> HostOperator:
    """The Hessian of a loss of a text world, as `landscape.hessian`.

    A product is a gradient of a gradient: about three gradients, and the memory of two.

    Args:
        checkpoint: the language model, in float64 or float32; its weights must stay as they are while the operator is used.
        world: a text world.
        of: `safety` or `capability`: whose true data make the loss.
        tensors: as in `parameters`.
        batch_size: prompts in one pass; it changes memory and speed, not results.

    Returns:
        A `landscape.HostOperator` on the flat parameters.

    Raises:
        ValueError: when `of` or a tensor is unknown, the precision is below float32, or the world cannot be packed for
            this checkpoint.
    """
    curvature = LossOf(checkpoint, world, of, tensors, batch_size)
    return curvature.operator(curvature.hessian_product, semidefinite=False)


def gauss_newton(
    checkpoint: Checkpoint, world: World, of: str = "safety", tensors: Sequence[str] | None = None, batch_size: int = 16
) -> HostOperator:
    r"""The Gauss-Newton matrix of a loss of a text world: its Hessian with the model's logits replaced by their linear part.

    $J^\top\mathrm{diag}\big(c\,[\mathrm{diag}\,\pi-\pi\pi^\top]\big)J$ over every position of the data: J the derivative of the logits
    there, π the model's law of the next token over the whole vocabulary, c how often the data come by. Never indefinite.

    Args:
        checkpoint: as in `hessian`.
        world: as in `hessian`.
        of: as in `hessian`.
        tensors: as in `parameters`.
        batch_size: as in `hessian`.

    Returns:
        A `landscape.HostOperator` on the flat parameters.

    Raises:
        ValueError: as `hessian`.
    """
    curvature = LossOf(checkpoint, world, of, tensors, batch_size)
    return curvature.operator(curvature.gauss_newton_product, semidefinite=True)


def fisher(
    checkpoint: Checkpoint, world: World, of: str = "safety", tensors: Sequence[str] | None = None, batch_size: int = 16
) -> HostOperator:
    r"""The Fisher matrix of the model's law of the next token, at the prefixes that the data contain.

    $\sum_{\text{prefixes}}c\,E_{v\sim\pi}[\nabla\log\pi(v)\nabla\log\pi(v)^\top]$, the expectation over the whole vocabulary taken
    exactly. For log-loss it is the Gauss-Newton matrix, and so computed; it is what `local_law` compares with.

    Args:
        checkpoint: as in `hessian`.
        world: as in `hessian`.
        of: as in `hessian`.
        tensors: as in `parameters`.
        batch_size: as in `hessian`.

    Returns:
        A `landscape.HostOperator` on the flat parameters.

    Raises:
        ValueError: as `hessian`.
    """
    return gauss_newton(checkpoint, world, of, tensors, batch_size)


def local_law(
    checkpoint: Checkpoint,
    world: World,
    direction: Tree,
    distances: Numbers,
    of: str = "safety",
    batch_size: int = 16,
) -> LocalLaw:
    r"""The divergence of small steps of a language model beside its quadratic form, as `landscape.local_law`.

    The divergence is that of the next token over the whole vocabulary, summed over the prefixes of the data with their
    weights, term by term non-negative. In float32 the logits carry rounding of about 1e-6, so steps must move them by more
    than about 1e-3; in float64 steps a thousand times smaller still count.

    Args:
        checkpoint: as in `hessian`.
        world: as in `hessian`.
        direction: δ, named tensors like `parameters(checkpoint, tensors)`; only these are moved, and put back bit for bit.
        distances: t ≠ 0, shape (T,).
        of: as in `hessian`.
        batch_size: as in `hessian`.

    Returns:
        A `landscape.LocalLaw`.

    Raises:
        ValueError: as `hessian`; when the direction does not fit, does not move the model, or a distance is zero.

    Source: framework 3.2.
    """
    names = sorted(direction)
    check_direction(parameters(checkpoint, names), dict(direction))
    steps = check_distances(distances)
    if not bool(jnp.all(steps != 0)):
        raise ValueError(f"distances are {steps}; the law compares steps that are not zero.")
    curvature = LossOf(checkpoint, world, of, names, batch_size)
    delta = np.asarray(ravel_pytree(dict(direction))[0], curvature.precision)
    form = float(delta.astype(np.float64) @ curvature.gauss_newton_product(delta).astype(np.float64))
    if not form > 0:
        raise ValueError("the direction does not move the model at any prefix of these data (δᵀFδ = 0); take another.")
    divergence, quadratic = jnp.asarray(curvature.divergences(direction, steps.tolist())), steps**2 * form / 2
    return LocalLaw(steps, divergence, quadratic, divergence / quadratic)


@contextmanager
def moved(checkpoint: Checkpoint, direction: Tree, t: float) -> Iterator[None]:
    """The checkpoint with its weights moved by t times a direction; put back bit for bit at the end."""
    held = _tensors(checkpoint, sorted(direction))
    before = {name: tensor.detach().clone() for name, tensor in held.items()}
    try:
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.add_(torch.tensor(np.asarray(direction[name])).to(tensor), alpha=t)
        yield
    finally:
        with torch.no_grad():
            for name, tensor in held.items():
                tensor.copy_(before[name])


# --- products ---------------------------------------------------------------------------------------------------


class LossOf:
    """The loss of a text world as a function of some tensors of a model, and products with its second derivatives."""

    def __init__(
        self, checkpoint: Checkpoint, world: World, of: str, tensors: Sequence[str] | None, batch_size: int
    ) -> None:
        if of not in ("safety", "capability"):
            raise ValueError(f"of is {of!r}; it must be one of 'safety', 'capability'.")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1.")
        if checkpoint.dtype not in PRECISIONS:
            raise ValueError(
                f"{checkpoint.name} is in {checkpoint.dtype}; second derivatives need float32 or float64: load it with "
                "dtype=torch.float32."
            )
        encoding = policy.encode(checkpoint, world)
        if obstacle := policy.not_packed_because(checkpoint, encoding):
            raise ValueError(
                f"curvature is taken on packed rows, and {obstacle}. Use a checkpoint of a tested architecture, or "
                "shorter texts."
            )
        law = world.safety if of == "safety" else world.capability
        seen = np.flatnonzero(np.asarray(law.p) > 0)
        encoding = policy.Encoding(tuple(encoding.prompts[x] for x in seen), encoding.responses)
        self.checkpoint = checkpoint
        self.precision = PRECISIONS[checkpoint.dtype]
        self.tensors = _tensors(checkpoint, tensors)
        self.scorer = scoring.Scorer(encoding.responses, checkpoint.model.get_output_embeddings())
        weights = torch.tensor(np.asarray(law.p[:, None] * law.P)[seen], dtype=checkpoint.dtype)
        self.batches, start = [], 0
        for batch in policy.pack(encoding, checkpoint, batch_size):
            rows = len(batch.tokens)
            self.batches.append((batch, *self._scored(weights[start : start + rows].to(checkpoint.device))))
            start += rows

    def operator(self, product: Any, semidefinite: bool) -> HostOperator:
        """A product as an operator on the flat parameters."""
        size = sum(tensor.numel() for tensor in self.tensors.values())
        return HostOperator(product, size, semidefinite, self.precision)

    def hessian_product(self, v: np.ndarray) -> np.ndarray:
        """The product of the Hessian with a vector."""
        return self.gradient_and_product(v)[1]

    def gradient(self) -> np.ndarray:
        """The gradient of the loss."""
        with self._differentiable() as held:
            total = [torch.zeros_like(tensor) for tensor in held]
            for batch, at, target, cost, _ in self.batches:
                _accumulate(total, torch.autograd.grad(self._loss(batch, at, target, cost), held))
        return _joined(total)

    def gradient_and_product(self, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The gradient, and the product of the Hessian with a vector that takes it on the way."""
        with self._differentiable() as held:
            slopes, products = ([torch.zeros_like(tensor) for tensor in held] for _ in range(2))
            vectors = self._split(v)
            for batch, at, target, cost, _ in self.batches:
                slope = torch.autograd.grad(self._loss(batch, at, target, cost), held, create_graph=True)
                _accumulate(slopes, [part.detach() for part in slope])
                _accumulate(products, torch.autograd.grad(slope, held, vectors, materialize_grads=True))
        return _joined(slopes), _joined(products)

    def gauss_newton_product(self, v: np.ndarray) -> np.ndarray:
        """The product of the Gauss-Newton matrix with a vector."""
        with self._differentiable() as held:
            total = [torch.zeros_like(tensor) for tensor in held]
            vectors = self._split(v)
            for batch, _, _, _, mass in self.batches:
                logits = self._logits(batch)
                # The derivative of a pull-back along v is the push-forward of v: two reverse passes make a forward one.
                probe = torch.zeros_like(logits, requires_grad=True)
                back = torch.autograd.grad(logits, held, probe, create_graph=True, materialize_grads=True)
                (push,) = torch.autograd.grad(back, probe, vectors, materialize_grads=True)
                law = torch.softmax(logits.detach(), -1)
                curved = mass[:, None] * law * (push - (law * push).sum(-1, keepdim=True))
                _accumulate(total, torch.autograd.grad(logits, held, curved, materialize_grads=True))
        return _joined(total)

    def divergences(self, direction: Tree, steps: list[float]) -> list[float]:
        """From the model to the model moved by each step, batch by batch so that two tables of laws exist at a time."""
        total = np.zeros(len(steps))
        with self._differentiable(), torch.no_grad():
            for batch, *_, mass in self.batches:
                base = torch.log_softmax(self._logits(batch).double(), -1)
                for i, t in enumerate(steps):
                    with moved(self.checkpoint, direction, t):
                        ratio = torch.log_softmax(self._logits(batch).double(), -1) - base
                    # No term of the sum is negative, so that small divergences are not lost in cancellation.
                    terms = base.exp() * (torch.expm1(ratio) - ratio)
                    total[i] += float(mass.double() @ terms.sum(-1))
        return total.tolist()

    def _loss(self, batch: policy.Batch, at: torch.Tensor, target: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
        return -(cost * torch.log_softmax(self._logits(batch), -1)[at, target]).sum()

    def _logits(self, batch: policy.Batch) -> torch.Tensor:
        trunk = self.checkpoint.model.base_model
        hidden = trunk(batch.tokens, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False)[0]
        return self.scorer.head(batch.scored(hidden).flatten(0, 1))

    def _scored(self, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """For a batch's weights (R, Y): position, token and weight of all that is scored, and the weight of each position."""
        row = torch.arange(len(weights), device=weights.device)[:, None]
        at = (row * self.scorer.positions + self.scorer.at).flatten()
        target = self.scorer.target.repeat(len(weights))
        cost = weights[:, self.scorer.response].flatten()
        mass = torch.zeros(len(weights) * self.scorer.positions, dtype=cost.dtype, device=cost.device)
        return at, target, cost, mass.index_add_(0, at, cost)

    def _split(self, v: np.ndarray) -> list[torch.Tensor]:
        parts = torch.tensor(v).split([tensor.numel() for tensor in self.tensors.values()])
        return [
            part.reshape(tensor.shape).to(tensor) for part, tensor in zip(parts, self.tensors.values(), strict=True)
        ]

    @contextmanager
    def _differentiable(self) -> Iterator[list[torch.nn.Parameter]]:
        """The tensors, requiring gradients, in a model whose every part can be differentiated twice."""
        asked = {name: tensor.requires_grad for name, tensor in self.tensors.items()}
        with ExitStack() as stack:
            # The fused kernels of attention have no second derivative.
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if self.checkpoint.dtype == torch.float64:
                stack.enter_context(norms_in_float64(self.checkpoint.model))
            try:
                for tensor in self.tensors.values():
                    tensor.requires_grad_(True)
                yield list(self.tensors.values())
            finally:
                for name, tensor in self.tensors.items():
                    tensor.requires_grad_(asked[name])


@contextmanager
def norms_in_float64(model: Any) -> Iterator[None]:
    """A float64 model whose norm layers stay in float64; as they come they pass through float32, and lose half the digits."""

    def forward(norm: Any) -> Any:
        def scaled(states: torch.Tensor) -> torch.Tensor:
            return norm.weight * states * torch.rsqrt(states.square().mean(-1, keepdim=True) + norm.variance_epsilon)

        return scaled

    norms = [module for module in model.modules() if hasattr(module, "variance_epsilon")]
    before = [vars(norm).get("forward") for norm in norms]  # set where this is entered a second time
    try:
        for norm in norms:
            norm.forward = forward(norm)
        yield
    finally:
        for norm, set_before in zip(norms, before, strict=True):
            del norm.forward
            if set_before is not None:
                norm.forward = set_before


def _accumulate(total: list[torch.Tensor], more: Sequence[torch.Tensor]) -> None:
    for one, other in zip(total, more, strict=True):
        one.add_(other)


def _joined(tensors: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([tensor.flatten() for tensor in tensors]).cpu().numpy()


def _tensors(checkpoint: Checkpoint, names: Sequence[str] | None) -> dict[str, torch.nn.Parameter]:
    known = dict(checkpoint.model.named_parameters())
    if names is None:
        names = [name for name, tensor in known.items() if tensor.requires_grad]
        if not names:
            raise ValueError(
                f"no tensor of {checkpoint.name} requires gradients; name those over which to differentiate "
                "(tensors=[...], names from checkpoint.model.named_parameters()), or use it inside `with adapted(...)`."
            )
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        some = ", ".join(list(known)[:3])
        raise ValueError(f"{checkpoint.name} has no tensor {unknown or 'of an empty list'}; there are {some}, ...")
    return {name: known[name] for name in sorted(names)}
