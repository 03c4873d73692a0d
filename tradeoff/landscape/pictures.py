r"""Pictures of both losses around a model: directions at the scale of its weights, lines and planes.

A direction in the space of weights means little before it is measured against the weights: `direction` draws Gaussian ones
at the scale of each filter (Li et al.), of each tensor (VISAGE) or at unit length, and distances along it are then in
multiples of that scale.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.tree_util import Partial
from jaxtyping import Array, Float

from tradeoff._records import Numbers, record
from tradeoff.gaps import Gaps
from tradeoff.landscape import operators
from tradeoff.landscape.neighbourhood import check_direction, check_distances, moved
from tradeoff.problems import Problem

SCALES = {
    "filter": "multiples of each filter's norm",
    "tensor": "multiples of each tensor's norm",
    "unit": "parameter norm",
}
"""How a direction may be scaled, and the unit of distance along it that follows."""


@record
class Line:
    """Both losses on a line.

    Args:
        distances: in the unit of the direction, shape (T,).
        gaps: safety and capability gap, nats (or the unit of the losses), shape (T,).
    """

    distances: Float[Array, " T"]
    gaps: Gaps


@record
class Plane:
    """Both losses on a plane.

    Args:
        x: distances along the first direction, shape (A,).
        y: distances along the second, shape (B,).
        gaps: safety and capability gap, nats (or the unit of the losses), shape (B, A), rows of equal y.
    """

    x: Float[Array, " A"]
    y: Float[Array, " B"]
    gaps: Gaps


def direction(key: Array, at: Any, scale: str = "filter") -> Any:
    """A random Gaussian direction at the scale of the parameters, as `scaled`.

    Args:
        key: a JAX random key.
        at: the parameters.
        scale: see `scaled`.

    Returns:
        A tree like the parameters.

    Raises:
        ValueError: as `scaled`.

    Example:
        >>> way = direction(jax.random.key(0), {"W": 2 * jnp.ones((3, 4)), "b": jnp.ones(3)})
        >>> [round(float(norm), 9) for norm in jnp.linalg.norm(way["W"], axis=1)], way["b"].tolist()
        ([4.0, 4.0, 4.0], [0.0, 0.0, 0.0])
    """
    flat = operators.check_parameters(at)
    # One draw for all tensors: a compilation for each of their shapes would take longer than the draws.
    return scaled(ravel_pytree(at)[1](jax.random.normal(key, flat.shape, flat.dtype)), at, scale)


def scaled(direction: Any, at: Any, scale: str = "filter") -> Any:
    r"""A direction at the scale of the parameters; its own length does not matter.

    Args:
        direction: a tree like the parameters.
        at: the parameters.
        scale: `filter`: each row of each matrix gets the norm of the same row of the parameters (Li et al.); `tensor`: each
            matrix as a whole does (VISAGE). Both leave out vectors (biases, norm layers), unless there are only vectors,
            each then being one filter. `unit`: the direction as a whole gets length one.

    Returns:
        A tree like the parameters.

    Raises:
        ValueError: when the scale is unknown, the direction does not fit, or nothing would be left of it.

    Example:
        >>> scaled(jnp.array([[3.0, 4.0], [1.0, 0.0]]), jnp.array([[10.0, 0.0], [0.0, 0.5]])).tolist()
        [[6.0, 8.0], [0.5, 0.0]]

    Source: Li et al. (filter normalisation); VISAGE.
    """
    check_scale(scale)
    check_direction(at, direction)
    way = _scaled(direction, at, scale)
    if not any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(way)):
        raise ValueError(
            f"nothing is left of the direction at scale {scale!r}: it is zero, or the parameters are, so that relative "
            "distances have no length. Give a direction that is not zero, or use scale='unit'."
        )
    return way


def line(problem: Problem, at: Any, direction: Any, distances: Numbers) -> Line:
    """Both losses along a direction.

    Args:
        problem: any problem.
        at: the parameters in the middle.
        direction: a tree like them (see `direction` and `scaled`), or where another model is: its parameters minus these.
        distances: multiples of the direction, shape (T,).

    Returns:
        A `Line`.

    Raises:
        ValueError: when the direction does not fit the parameters, or a distance is not finite.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> quad = quadratic.golden()
        >>> line(quad, quad.theta_s, quad.displacement, [0.0, 1.0]).gaps.safety.tolist()
        [0.0, 1.0]
    """
    check_direction(at, direction)
    t = check_distances(distances)
    still = jax.tree.map(jnp.zeros_like, at)
    at_each = _surface(operators.losses(problem), at, direction, still, t, jnp.zeros(1))
    return Line(t, jax.tree.map(lambda values: values[0], at_each))


def plane(problem: Problem, at: Any, first: Any, second: Any, x: Numbers, y: Numbers) -> Plane:
    """Both losses on the plane of two directions.

    Args:
        problem: any problem.
        at: the parameters at (0, 0).
        first: the direction of x, a tree like the parameters.
        second: the direction of y.
        x: multiples of the first, shape (A,).
        y: multiples of the second, shape (B,).

    Returns:
        A `Plane`.

    Raises:
        ValueError: when a direction does not fit the parameters, or a distance is not finite.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> quad = quadratic.golden()
        >>> found = plane(quad, quad.theta_s, jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), [0.0, 1.0], [0.0, -1.0, 1.0])
        >>> found.gaps.safety.tolist(), float(found.gaps.capability[1, 1])
        ([[0.0, 1.0], [0.5, 1.0], [0.5, 2.0]], 0.0)
    """
    check_direction(at, first)
    check_direction(at, second)
    x, y = check_distances(x), check_distances(y)
    return Plane(x, y, _surface(operators.losses(problem), at, first, second, x, y))


# --- kernels ----------------------------------------------------------------------------------------------------


@partial(jax.jit, static_argnums=2)
def _scaled(direction: Any, at: Any, scale: str) -> Any:
    if scale == "unit":
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(direction)))
        return jax.tree.map(lambda leaf: leaf / jnp.where(norm > 0, norm, 1), direction)
    only_vectors = all(jnp.ndim(leaf) < 2 for leaf in jax.tree.leaves(at))

    def one(way: Array, weights: Array) -> Array:
        if way.ndim < 2 and not only_vectors:
            return jnp.zeros_like(way)
        axes = tuple(range(1, way.ndim)) if scale == "filter" and way.ndim > 1 else None
        own, wanted = (jnp.sqrt(jnp.sum(x**2, axis=axes, keepdims=True)) for x in (way, weights))
        return way * (wanted / jnp.where(own > 0, own, 1))

    return jax.tree.map(one, direction, at)


@jax.jit
def _surface(losses: Partial, at: Any, first: Any, second: Any, x: Array, y: Array) -> Gaps:
    return jax.lax.map(lambda b: jax.lax.map(lambda a: losses(moved(moved(at, first, a), second, b)), x), y)


def check_scale(scale: str) -> None:
    """Check that a scale is known."""
    if scale not in SCALES:
        raise ValueError(f"scale is {scale!r}; it must be one of {', '.join(map(repr, SCALES))}.")
