r"""Lanczos' method with full reorthogonalisation: eigenpairs of an operator from products alone, each with its proof.

After m products the operator is known on a Krylov space, $AV=V(T+C)+\beta_mv_{m+1}e_m^\top$ with T tridiagonal and C what
rounding or asymmetry left on earlier vectors and reorthogonalisation took away. Keeping C makes this exact to rounding, so the
true residual $r=\|Ay-\theta y\|$ of a Ritz pair costs no further product; and for a symmetric operator some eigenvalue lies
within r of θ: no estimate, a theorem. Every vector is made orthogonal to all before it, twice where once is not enough, so no
ghost copies appear; for a symmetric operator C is rounding, and that is the check that it is symmetric.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from tradeoff._records import record, static
from tradeoff.landscape.operators import AnyOperator, Operator, check_vector

BREAKDOWN = 32.0
"""A next vector shorter than this many units of rounding, times √d, beside the operator is none: the space is invariant."""

BLOCK = 8
"""Basis vectors from which a new one is made orthogonal at a time."""
SHORT = 10.0
"""A vector not longer than this many times what was taken away from it is made orthogonal a second time."""


@record
class RitzPairs:
    """Approximate eigenpairs, largest in magnitude first, with what is known about each.

    Args:
        values: Ritz values, shape (k,).
        vectors: their vectors, unit rows, shape (k, d).
        residuals: $‖Ay-θy‖$ and a unit of rounding, shape (k,): an eigenvalue of the operator lies within it of the value.
        converged: whether the residual is at most the tolerance times the largest Ritz value in magnitude, shape (k,).
        products: how often the operator was applied.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k d"]
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]
    products: int = static()


def lanczos(
    operator: AnyOperator,
    key: Key[Array, ""],
    steps: int,
    pairs: int | None = None,
    start: Float[Array, " d"] | None = None,
    tolerance: float | None = None,
) -> RitzPairs:
    r"""The Ritz pairs of an operator after so many Lanczos steps.

    Extreme, separated eigenvalues come first, the error of a value being about the square of its residual over the gap.
    A degenerate eigenvalue shows once for each start: its further copies appear only after the Krylov space has closed,
    when the method goes on from a fresh random vector orthogonal to it. With `steps` = d the whole spectrum is returned,
    copies included.

    Args:
        operator: a symmetric operator of d parameters.
        key: of the random start, and of the fresh vector after the Krylov space closes.
        steps: m in 1..d, products to build the space.
        pairs: how many pairs to return; all m unless told.
        start: where to begin, shape (d,), instead of at random.
        tolerance: for `converged`; the square root of the rounding unit unless told (1.5e-8 in float64).

    Returns:
        `RitzPairs`.

    Raises:
        ValueError: when `steps` or `pairs` is out of range, the start does not fit, or the operator gives NaN or is not
            symmetric.

    Example:
        >>> from tradeoff.landscape import from_matrix
        >>> found = lanczos(from_matrix([[2.0, 1.0], [1.0, 2.0]]), jax.random.key(0), steps=2)
        >>> found.values.round(12).tolist(), found.converged.tolist()
        ([3.0, 1.0], [True, True])

    Source: Paige, Parlett ("twice is enough").
    """
    count = steps if pairs is None else pairs
    if not 1 <= count <= steps:
        raise ValueError(f"pairs is {pairs} and steps {steps}; ask for at least 1 pair and at most as many as steps.")
    space = krylov(operator, key, steps, start)
    values, vectors, residuals = _ritz(space, count)
    within = tolerance if tolerance is not None else float(jnp.finfo(operator.dtype).eps) ** 0.5
    converged = residuals <= within * jnp.max(jnp.abs(values))
    return RitzPairs(values, vectors, residuals, converged, steps)


class Krylov(NamedTuple):
    """An orthonormal basis and what the operator is on it: diagonal and off-diagonal of the tridiagonal matrix.

    The last entry of `beta` is what leads out of the space; column k of `beyond` is what of product k lay on the basis besides.
    """

    basis: Array
    alpha: Array
    beta: Array
    beyond: Array


def krylov(operator: AnyOperator, key: Key[Array, ""], steps: int, start: Float[Array, " d"] | None = None) -> Krylov:
    """The Krylov space of an operator, after the checks of `lanczos`."""
    if not 1 <= steps <= operator.size:
        raise ValueError(
            f"steps is {steps} for an operator of {operator.size} parameters; give at least 1 and at most {operator.size}."
        )
    first_key, key = jax.random.split(key)
    if start is None:
        start = jax.random.normal(first_key, (operator.size,), operator.dtype)
    elif not bool(jnp.all(jnp.isfinite(check_vector(operator, start))) & jnp.any(start != 0)):
        raise ValueError(
            "start is zero or not finite; give a vector with a direction, or leave it out for a random one."
        )
    if isinstance(operator, Operator):
        space = _traced(operator, start, key, steps)
    else:
        space = _begin(start, steps)
        for k in range(steps):
            space = _extend(space, jnp.asarray(k), operator @ space.basis[k], key)
    if not bool(jnp.all(jnp.isfinite(space.alpha))):
        where = int(np.argmin(np.isfinite(space.alpha)))
        raise ValueError(
            f"the operator's product {where} has NaN or infinite entries; curvature needs a loss with finite second "
            "derivatives at the parameters: move off the kink or the overflow, or use float64."
        )
    size = float(jnp.max(jnp.abs(space.alpha)) + jnp.max(space.beta))
    allowed = float(jnp.finfo(operator.dtype).eps) ** 0.5
    uneven = float(jnp.max(jnp.abs(space.beyond)))
    if uneven > allowed * size:
        raise ValueError(
            f"the operator is not symmetric: two products differ by {uneven:.3g} where u·Av and v·Au should be "
            f"equal, beside a size of {size:.3g}. Apply (A + Aᵀ)/2, or evaluate the products in higher precision."
        )
    return space


def tridiagonal(space: Krylov) -> Float[Array, "m m"]:
    """The operator on its Krylov space."""
    return jnp.diag(space.alpha) + jnp.diag(space.beta[:-1], 1) + jnp.diag(space.beta[:-1], -1)


@partial(jax.jit, static_argnums=3)
def _traced(operator: Operator, start: Array, key: Array, steps: int) -> Krylov:
    def step(k: Array, space: Krylov) -> Krylov:
        return _extend(space, k, operator.product(space.basis[k]), key)

    return jax.lax.fori_loop(0, steps, step, _begin(start, steps))


def _begin(start: Array, steps: int) -> Krylov:
    basis = jnp.zeros((steps, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))
    zeros = jnp.zeros(steps, start.dtype)
    return Krylov(basis, zeros, zeros, jnp.zeros((steps, steps), start.dtype))


@jax.jit
def _extend(space: Krylov, k: Array, product: Array, key: Array) -> Krylov:
    """One step: the product with vector k enters the tridiagonal matrix, and what is new in it becomes vector k + 1."""
    basis, alpha, beta, beyond = space
    d = basis.shape[1]
    own = basis[k]
    alpha = alpha.at[k].set(own @ product)
    before = jnp.where(k > 0, beta[k - 1], 0)
    rest = product - alpha[k] * own - before * basis[jnp.maximum(k - 1, 0)]
    rest, first = _taken_away(rest, basis, k + 1)
    # A vector about as short as what was taken away from it holds rounding of its own size.
    again = jnp.linalg.norm(rest) < SHORT * jnp.linalg.norm(first)
    rest, second = jax.lax.cond(again, lambda: _taken_away(rest, basis, k + 1), lambda: (rest, jnp.zeros_like(first)))
    beyond = beyond.at[:, k].set(first + second)
    length = jnp.linalg.norm(rest)
    size = jnp.maximum(jnp.max(jnp.abs(alpha)), jnp.max(beta))
    closed = length <= BREAKDOWN * jnp.finfo(basis.dtype).eps * jnp.sqrt(jnp.asarray(d, basis.dtype)) * size

    def fresh() -> Array:
        v = jax.random.normal(jax.random.fold_in(key, k), (d,), basis.dtype)
        for _ in range(2):
            v, _ = _taken_away(v, basis, k + 1)
        return v / jnp.linalg.norm(v)

    following = jax.lax.cond(closed, fresh, lambda: rest / jnp.where(closed, 1, length))
    # At the last step there is no place for a next vector: out-of-range updates are dropped.
    basis = basis.at[k + 1].set(following, mode="drop")
    beta = beta.at[k].set(jnp.where(closed, 0, length))
    return Krylov(basis, alpha, beta, beyond)


def _taken_away(v: Array, basis: Array, count: Array) -> tuple[Array, Array]:
    """What of a vector is orthogonal to the first rows of the basis, and the coefficients of the rest.

    Block by block: a block is read from memory once for both its products, and rows yet to come are not read at all.
    """
    size = min(BLOCK, len(basis))

    def block(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        v, taken = state
        # The last block is moved back rather than past the end: taking away twice does no harm, nor do rows yet to come (0).
        start = jnp.minimum(i * size, len(basis) - size)
        rows = jax.lax.dynamic_slice_in_dim(basis, start, size)
        on = rows @ v
        return v - on @ rows, taken.at[start + jnp.arange(size)].add(on)

    return jax.lax.fori_loop(0, (count + size - 1) // size, block, (v, jnp.zeros(len(basis), v.dtype)))


@partial(jax.jit, static_argnums=1)
def _ritz(space: Krylov, count: int) -> tuple[Array, Array, Array]:
    """The leading Ritz values, vectors and residuals."""
    values, inside = jnp.linalg.eigh(tridiagonal(space))
    # Equal magnitudes in the order of their signs, so that the same spectrum gives the same order.
    chosen = jnp.lexsort((-values, -jnp.abs(values)))[:count]
    values, inside = values[chosen], inside[:, chosen]
    within = (tridiagonal(space) + space.beyond) @ inside - values[None] * inside
    out = space.beta[-1] * inside[-1]
    rounding = jnp.finfo(values.dtype).eps * jnp.max(jnp.abs(values))
    return values, inside.T @ space.basis, jnp.sqrt(jnp.sum(within**2, axis=0) + out**2) + rounding
