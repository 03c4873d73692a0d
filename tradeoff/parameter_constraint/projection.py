r"""Projections on a ball around the aligned parameters: one rule for the toys and for checkpoints.

The rules use nothing but the arithmetic of the arrays they are given, named arrays of JAX, NumPy or torch alike, so the lines
that the solvers here are checked with are the lines that hold a checkpoint. A point inside comes back bit for bit.
"""

from collections.abc import Mapping, Sequence
from typing import Any

Arrays = Mapping[str, Any]
"""Named arrays of one engine."""


def ball(parameters: Arrays, start: Arrays, radius: float) -> dict[str, Any]:
    r"""The nearest parameters with $\|\theta-\theta_s\|\le\varepsilon$, the distance taken over all arrays together.

    Args:
        parameters: named arrays, of any shapes.
        start: the aligned parameters, the same names and shapes.
        radius: ε in (0, inf].

    Returns:
        The projected arrays by name.

    Raises:
        ValueError: when the names differ, or the radius is not positive.

    Example:
        >>> ball({"w": jnp.array([3.0, 4.0])}, {"w": jnp.zeros(2)}, 1.0)["w"]
        Array([0.6, 0.8], dtype=float64)

    Source: T14 (framework).
    """
    check_radius(radius)
    if parameters.keys() != start.keys():
        raise ValueError(
            f"the parameters and their start differ in the names {sorted(parameters.keys() ^ start.keys())}; a ball needs "
            "the start of every array that is trained, and of no other."
        )
    inward = [start[name] - parameters[name] for name in parameters]
    back = 1 - 1 / over(inward, radius)
    return {name: parameters[name] + back * move for name, move in zip(parameters, inward, strict=True)}


def product_ball(parameters: Arrays, factors: Sequence[tuple[str, str]], radius: float) -> dict[str, Any]:
    r"""The nearest weight updates with $\|(B_lA_l)_l\|_F\le\varepsilon$, all layers together, in factors.

    A ball in the product is a ball in the weights themselves, whatever the factors that make it. The nearest update is the
    same one shortened; the left factors B, which start at zero, are shortened for it, and the right ones keep their start.

    Args:
        parameters: named arrays.
        factors: the names of B, shape (m, r), and A, shape (r, n), of every update.
        radius: ε in (0, inf].

    Returns:
        All arrays by name, with the left factors projected.

    Raises:
        ValueError: when the radius is not positive, or there are no factors.

    Example:
        >>> halved = product_ball({"B": jnp.array([[2.0]]), "A": jnp.array([[3.0]])}, [("B", "A")], 3.0)
        >>> float(halved["B"][0, 0]), float(halved["A"][0, 0])
        (1.0, 3.0)

    Source: T19(a) (framework).
    """
    check_radius(radius)
    if not factors:
        raise ValueError("product_ball was given no factors; name the two factors of every update, as (B, A).")
    longer = over([parameters[left] @ parameters[right] for left, right in factors], radius)
    return {**parameters, **{left: parameters[left] / longer for left, _ in factors}}


def over(moves: Sequence[Any], radius: Any) -> Any:
    """How many radii long some arrays are together, at least 1."""
    return (length(moves) / radius).clip(min=1)


def length(moves: Sequence[Any]) -> Any:
    """The Euclidean length of some arrays together."""
    first, *rest = ((move * move).sum() for move in moves)
    return sum(rest, start=first) ** 0.5


def check_radius(radius: float) -> None:
    """Refuse a radius that is not positive."""
    if not radius > 0:
        raise ValueError(f"radius ε is {radius}; it must be a number in (0, inf].")
