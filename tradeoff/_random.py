"""Random bits that cost less to compile and to draw than what is made of them: SplitMix64, started from a JAX key."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def words(key: Array, count: int) -> Array:
    """64 random bits each, shape (count,), by the generator of Steele, Lea and Flood (2014)."""
    halves = jax.random.key_data(key).astype(jnp.uint64)
    seed = (halves[0] << 32) | halves[-1]
    z = seed + jnp.arange(1, count + 1, dtype=jnp.uint64) * jnp.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> 30)) * jnp.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> 27)) * jnp.uint64(0x94D049BB133111EB)
    return z ^ (z >> 31)


@partial(jax.jit, static_argnums=(1, 2))
def normals(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    """Standard normals from the words of a key, in at least single precision before they are rounded to the dtype."""
    kind = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
    digits = jnp.finfo(kind).nmant + 1
    # Odd multiples of 2^-digits between -1 and 1, exactly: neither end, whose normal is infinite, is among them.
    uniform = (words(key, math.prod(shape)) >> (64 - digits)).astype(kind) * 2.0 ** (1 - digits) + (2.0**-digits - 1)
    return (jnp.sqrt(2).astype(kind) * jax.lax.erf_inv(uniform)).astype(dtype).reshape(shape)
