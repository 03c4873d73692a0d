"""Expressions that several theorems share, written so that nothing cancels and zeros stay silent."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.worlds.world import World


def log_share(a: Array, b: Array) -> Array:
    """`a log(1 + b/a)`, 0 at a = 0."""
    inside = a > 0
    return jnp.where(inside, a * jnp.log1p(b / jnp.where(inside, a, 1)), 0)


def pooled_entropy(a: Array, b: Array) -> Array:
    """`(a+b) h(a/(a+b))`, exact when one of the two is tiny."""
    return log_share(a, b) + log_share(b, a)


def silent(weights: Array, values: Array) -> Array:
    """`weights * values`, 0 where the weight is 0, whatever the value."""
    return jnp.where(weights > 0, weights * jnp.where(weights > 0, values, 0), 0)


def over(a: Array, b: Array) -> Array:
    """`a/b`, 0 where b is 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def log0(P: Array) -> Array:
    """`log P`, 0 where P is 0: the value does not matter there."""
    return jnp.log(jnp.where(P > 0, P, 1))


def log_slope(function: Callable[[World, Array], Array], world: World, lam: Array) -> Array:
    """λ times the derivative in λ."""
    return jax.grad(lambda s: function(world, jnp.exp(s)))(jnp.log(lam))
