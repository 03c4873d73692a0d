"""Random numbers for random instances: cheap to compile and to draw, and the same however a program is compiled."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff._random import words

DECADES = 6.0
"""Penalties are drawn log-uniformly from 10^-6 to 10^6."""
BINOMIAL_SCALE = (32 / 4 + 1 / 12) ** -0.5
"""One over the standard deviation of the number of ones among 32 bits plus a uniform."""


class Draws:
    """Random numbers of many kinds out of one block of random bits, whatever is drawn.

    Drawing should cost less than checking. A normal is the number of ones among 32 bits, smoothed by 32 others and scaled:
    an instance needs variety, not the tails of a normal.

    Args:
        key: a JAX random key.
        count: how many uniforms and how many normals the block holds; asking for more is an error.
    """

    def __init__(self, key: Array, count: int = 80) -> None:
        first, second = jnp.split(words(key, 2 * count), 2)
        uniforms = ((first >> 11).astype(jnp.float64) + 0.5) * 2.0**-53
        ones = jax.lax.population_count(second >> 32).astype(jnp.float64)
        between = (second & jnp.uint64(2**32 - 1)).astype(jnp.float64) * 2.0**-32
        normals = (ones + between - 16.5) * BINOMIAL_SCALE
        # Held, because XLA would otherwise compile the generator again into every place where a number is used.
        self._uniforms, self._normals = jax.lax.optimization_barrier((uniforms, normals))

    def uniform(self, low: float = 0.0, high: float = 1.0, shape: tuple[int, ...] = ()) -> Array:
        """Uniform on (low, high)."""
        count = math.prod(shape)
        self._enough(self._uniforms, count)
        taken, self._uniforms = self._uniforms[:count], self._uniforms[count:]
        return low + (high - low) * taken.reshape(shape)

    def normal(self, shape: tuple[int, ...] = ()) -> Array:
        """Standard normal, nearly: mean 0, variance 1, cut at 5.8 standard deviations."""
        count = math.prod(shape)
        self._enough(self._normals, count)
        taken, self._normals = self._normals[:count], self._normals[count:]
        return taken.reshape(shape)

    def flip(self, probability: float, shape: tuple[int, ...] = ()) -> Array:
        """True with the given probability."""
        return self.uniform(shape=shape) < probability

    def index(self, count: int, shape: tuple[int, ...] = ()) -> Array:
        """An integer in 0, ..., count-1."""
        return jnp.floor(self.uniform(0, count, shape)).astype(int)

    def log_penalty(self, shape: tuple[int, ...] = ()) -> Array:
        """The log of a penalty, uniform over twelve decades."""
        return self.uniform(-DECADES, DECADES, shape) * jnp.log(10.0)

    @staticmethod
    def _enough(left: Array, count: int) -> None:
        if count > left.size:
            raise ValueError(f"Draws has {left.size} numbers left and {count} were asked for; give it a larger count.")
