"""Small linear algebra that derivatives pass through and that any precision can repeat: no library routine inside."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

DOUBLINGS = 44
"""An iteration is squared this often: some 10^13 steps, past every rate that a family draws."""


def length(v: Array) -> Array:
    """The Euclidean length, with derivative 0 at 0; undefined where an entry is, so that no failure reads as zero."""
    square = jnp.sum(v**2)
    return jnp.where(square == 0, 0, jnp.sqrt(jnp.where(square == 0, 1, square)))


def solved(M: Array, v: Array) -> Array:
    """M⁻¹v for a definite matrix, by elimination without pivoting: stable where M is definite."""
    rows = [jnp.append(M[i], v[i]) for i in range(len(M))]
    for i, pivot in enumerate(rows):
        for j in range(i + 1, len(rows)):
            rows[j] = rows[j] - pivot * (rows[j][i] / pivot[i])
    found: list[Array] = []
    for i in reversed(range(len(rows))):
        known = [rows[i][len(rows) - 1 - k] * x for k, x in enumerate(found)]
        found.append((rows[i][-1] - sum(known, jnp.zeros_like(v[0]))) / rows[i][i])
    return jnp.stack(found[::-1])


def end_of(M: Array, c: Array, doublings: int = DOUBLINGS) -> Array:
    """Where the iteration x ← Mx + c from zero ends; infinite where it does not.

    Where M leaves a direction as it is, rounding grows with the number of steps: fewer doublings then.
    """

    def twice(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        M, c = carry
        return (M @ M, M @ c + c), None

    return jax.lax.scan(twice, (M, c), None, doublings)[0][1]


def covariance_of(M: Array, S: Array) -> Array:
    """The covariance at which x ← Mx + ξ settles, with fresh noise ξ of covariance S in every step."""

    def twice(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        M, C = carry
        return (M @ M, M @ C @ M.T + C), None

    return jax.lax.scan(twice, (M, S), None, DOUBLINGS)[0][1]


def power(base: Array, count: Array) -> Array:
    """`base ** count` for a whole number of steps, for bases of either sign and with a derivative at zero."""
    magnitude = jnp.exp(count.astype(jnp.float64) * jnp.log(jnp.maximum(jnp.abs(base), 2.0**-500)))
    return jnp.where((base < 0) & (count % 2 == 1), -magnitude, magnitude)


def turned(mirrors: Array) -> Array:
    """An orthogonal matrix: a product of reflections."""
    axes = jnp.eye(mirrors.shape[-1])
    for v in mirrors:
        axes = axes - 2 * jnp.outer(axes @ v, v) / jnp.dot(v, v)
    return axes
