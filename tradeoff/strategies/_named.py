"""Arithmetic on flat dictionaries of named arrays, of any library of the array API: one vector in many pieces."""

from collections.abc import Callable, Mapping
from typing import Any

from array_api_compat import array_namespace

Weights = Mapping[str, Any]
"""Arrays by name, all of one library (JAX or torch): the parameters of a model, a gradient of a loss in them."""


def each(function: Callable[..., Any], *weights: Weights) -> Weights:
    """A function of the arrays of one name, for every name.

    Raises:
        ValueError: when the dictionaries have different names, or arrays of one name have different shapes.
    """
    first = weights[0]
    for other in weights[1:]:
        if other.keys() != first.keys():
            odd = sorted(set(other) ^ set(first))
            raise ValueError(
                f"two models have different weights: {', '.join(odd)} is in one only; give models of one kind."
            )
        for name, array in first.items():
            if array.shape != other[name].shape:
                raise ValueError(
                    f"{name} has shape {tuple(array.shape)} in one model and {tuple(other[name].shape)} in another; give "
                    "models of one shape."
                )
    return {name: function(array, *(other[name] for other in weights[1:])) for name, array in first.items()}


def scaled(factor: Any, weights: Weights) -> Weights:
    """Weights times a number."""
    return each(lambda a: factor * a, weights)


def moved(weights: Weights, factor: Any, direction: Weights) -> Weights:
    """Weights plus a number times a direction."""
    return each(lambda a, d: a + factor * d, weights, direction)


def less(weights: Weights, other: Weights) -> Weights:
    """The difference of two."""
    return each(lambda a, b: a - b, weights, other)


def mixed(weight: Any, one: Weights, other: Weights) -> Weights:
    """`weight` of one and the rest of the other."""
    return each(lambda a, b: weight * a + (1 - weight) * b, one, other)


def zeros(weights: Weights) -> Weights:
    """Zeros of the same names and shapes."""
    return each(lambda a: namespace({"": a}).zeros_like(a), weights)


def dot(one: Weights, other: Weights) -> Any:
    """The inner product over all arrays together, a scalar."""
    xp = namespace(one)
    return sum(xp.sum(product) for product in each(lambda a, b: a * b, one, other).values())


def norm(weights: Weights) -> Any:
    """The Euclidean length of all arrays together, a scalar."""
    return namespace(weights).sqrt(dot(weights, weights))


def unit(weights: Weights) -> Weights:
    """Weights over their length; zeros for zeros."""
    return scaled(ratio(1.0, norm(weights)), weights)


def ratio(above: Any, below: Any) -> Any:
    """`above / below`, and 0 where `below` is 0."""
    xp = array_namespace(below)
    nothing = below == 0
    return xp.where(nothing, xp.zeros_like(below), above / xp.where(nothing, xp.ones_like(below), below))


def namespace(weights: Weights) -> Any:
    """The array library that weights are of."""
    return array_namespace(*weights.values())
