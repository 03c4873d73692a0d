r"""The losses of a model on a small subspace around where it stands, to second order: solved exactly, as small as they are.

What is trained has millions of coordinates; what decides the first stretch of a run are few: the gradients of the losses
and the images of these under the losses' curvatures (a block Krylov subspace). On its orthonormal basis D each loss is

$$ L(z)=L(0)+b^\top z+\tfrac12z^\top Cz,\qquad b=D^\top\nabla L,\quad C=D^\top F D, $$

and the strategies are problems of `parameter_constraint`. The first coordinate is the unit task direction $v=-g_f/\|g_f\|$.

F is the Gauss-Newton matrix, not the Hessian. A task that is still to be learnt curves downwards in places, and the best of
a quadratic that does lies as far as one lets it, where the loss itself has long turned; Gauss-Newton has what the law of the
next token contributes, never bends down, and at an aligned model that says what the data say it is the Hessian.
"""

from collections import deque
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from tradeoff import parameter_constraint
from tradeoff.problems.quadratic import LocalModel

INDEPENDENT = 1e-3
"""A vector of which less than this is left beside the basis adds no direction that rounding has not made."""

SEEN = 1e-6
"""A curvature below this times the loss's largest is rounding of a float32 model, and counts as this much."""

KINDS = ("capability", "safety", "proxy")
"""Whose loss: the task's, the true safety data's, and that of the safety data which training sees."""

Vector = Float[np.ndarray, " d"]


@runtime_checkable
class Tangents(Protocol):
    """What is asked of a model: the losses around where it stands, over the flat vector of what is trained."""

    kinds: tuple[str, ...]
    """Those of `KINDS` that differ: without `proxy` where the proxy is exact."""

    def values(self, move: Vector | None = None) -> dict[str, float]:
        """Every gap of `KINDS`, nats, where the model stands or a move away from there."""
        ...

    def gradient(self, kind: str) -> Vector:
        """Of one loss."""
        ...

    def product(self, kind: str, v: Vector) -> Vector:
        """Of one loss's Gauss-Newton matrix with a vector."""
        ...

    def hessian_product(self, kind: str, v: Vector) -> Vector:
        """Of one loss's Hessian with a vector."""
        ...

    def inner(self, v: Vector, w: Vector) -> float:
        """The inner product of the changes of the weights that two vectors make to first order."""
        ...


@dataclass(frozen=True)
class LocalLoss:
    """One loss on the subspace.

    Attributes:
        value: the gap at its origin, nats.
        slope: b, nats per unit, shape (k,).
        curvature: C, symmetric, positive semidefinite, shape (k, k).
    """

    value: float
    slope: Float[np.ndarray, " k"]
    curvature: Float[np.ndarray, "k k"]

    def at(self, z: Float[np.ndarray, "*n k"]) -> Float[np.ndarray, " *n"]:
        """The gap as the quadratic has it, nats: it may be negative where that is no longer true of the loss."""
        return np.asarray(self.value + z @ self.slope + np.einsum("...i,ij,...j->...", z, self.curvature, z) / 2)


@dataclass(frozen=True)
class LocalLosses:
    r"""The losses of a model on a subspace of what is trained.

    Attributes:
        capability: the task's.
        safety: that of the true safety data.
        proxy: that of the safety data which training sees.
        metric: M: the change of the weights is $\sqrt{z^\top Mz}$ long, shape (k, k).
        basis: D, orthonormal rows, shape (k, d).
    """

    capability: LocalLoss
    safety: LocalLoss
    proxy: LocalLoss
    metric: Float[np.ndarray, "k k"]
    basis: Float[np.ndarray, "k d"]

    def solve(self, penalty: float, radius: float) -> Float[np.ndarray, " k"]:
        r"""The best of the quadratics within a ball: $\min\,L_f+\lambda\hat L_s$ over $\|\delta W\|\le\varepsilon$.

        Args:
            penalty: λ ≥ 0; 0 is plain fine-tuning, or Case II.
            radius: ε in (0, inf], of the change of the weights; inf is no ball.

        Returns:
            z, shape (k,).

        Raises:
            ValueError: as `parameter_constraint.solve`.

        Source: T14, T15(b), T19(b) (framework).
        """
        curvature = self.capability.curvature + penalty * self.proxy.curvature
        pull = -(self.capability.slope + penalty * self.proxy.slope)
        # The solver has a place for a second loss, which has no part in where the point is.
        model = LocalModel(curvature, pull, np.zeros_like(curvature), np.zeros_like(pull))
        at = parameter_constraint.solve(model, radius, self.metric)
        return np.asarray(at.displacement)

    def distance(self, z: Float[np.ndarray, "*n k"]) -> Float[np.ndarray, " *n"]:
        """How far the weights move, in the Frobenius norm over all layers together."""
        return np.asarray(np.sqrt(np.einsum("...i,ij,...j->...", z, self.metric, z)))

    def lift(self, z: Float[np.ndarray, " k"]) -> Vector:
        """The move in what is trained, shape (d,)."""
        return (z @ self.basis).astype(self.basis.dtype)


def expand(tangents: Tangents, dimensions: int) -> LocalLosses:
    r"""The losses on the block Krylov subspace of their gradients and curvatures.

    The basis takes the gradients, then the images of each of its vectors under the curvature of each loss, in turn, orthonormal
    to what it has, until it is full or closed. It costs one gradient for each loss, and one product for each loss and dimension.

    Args:
        tangents: the model.
        dimensions: k, at most; at least the number of losses, so that their gradients are in.

    Returns:
        `LocalLosses`, exact for quadratic losses whose reachable subspace is no larger.

    Raises:
        ValueError: when there are too few dimensions, a gradient is not finite, or the task's is zero.
    """
    if dimensions < len(tangents.kinds):
        raise ValueError(
            f"dimensions is {dimensions}; the gradients of {', '.join(tangents.kinds)} alone need {len(tangents.kinds)}."
        )
    gradients = {kind: tangents.gradient(kind) for kind in tangents.kinds}
    for kind, gradient in gradients.items():
        if not np.all(np.isfinite(gradient)) or (kind == "capability" and not gradient.any()):
            raise ValueError(
                f"the gradient of the {kind} loss is {'zero' if np.all(gradient == 0) else 'not finite'} at this "
                "checkpoint; a forecast needs a task that pulls, from a model whose numbers are finite."
            )
    basis: list[Vector] = []
    curvatures: dict[str, list[list[float]]] = {kind: [] for kind in tangents.kinds}
    waiting = deque([-gradients["capability"], *(gradients[kind] for kind in tangents.kinds[1:])])
    while waiting and len(basis) < dimensions:
        fresh = _beside(basis, waiting.popleft())
        if fresh is None:
            continue
        basis.append(fresh)
        for kind in tangents.kinds:
            image = tangents.product(kind, fresh)
            curvatures[kind].append([_dot(each, image) for each in basis])
            waiting.append(image)
    at_rest = tangents.values()
    losses = {
        kind: LocalLoss(
            at_rest[kind], np.array([_dot(each, gradients[kind]) for each in basis]), _semidefinite(curvatures[kind])
        )
        for kind in tangents.kinds
    }
    metric = np.array([[tangents.inner(one, other) for other in basis] for one in basis])
    proxy = losses.get("proxy", losses["safety"])
    return LocalLosses(losses["capability"], losses["safety"], proxy, (metric + metric.T) / 2, np.stack(basis))


def _beside(basis: list[Vector], v: Vector) -> Vector | None:
    """The unit vector of what a vector has beside the basis, or nothing where that is rounding."""
    length = np.sqrt(_dot(v, v))
    if length == 0:
        return None
    left = v / length
    for _ in range(2):  # once more, for the first pass leaves the rounding of what it takes away
        for each in basis:
            left = left - _dot(each, left) * each
    rest = np.sqrt(_dot(left, left))
    return (left / rest).astype(v.dtype) if rest > INDEPENDENT else None


def _dot(v: Vector, w: Vector) -> float:
    return float(np.dot(v.astype(np.float64), w.astype(np.float64)))


def _semidefinite(rows: list[list[float]]) -> Float[np.ndarray, "k k"]:
    """The matrix of a lower triangle, with no curvature below what is seen of it."""
    lower = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        lower[i, : i + 1] = row
    whole = lower + np.tril(lower, -1).T
    values, vectors = np.linalg.eigh(whole)
    lift = np.maximum(SEEN * values[-1] - values, 0)
    return whole + (vectors * lift) @ vectors.T
