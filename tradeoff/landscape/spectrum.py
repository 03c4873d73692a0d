r"""Traces and spectral densities with intervals that mean what they say.

The usual 95 % interval, a normal law on Hutchinson's samples $z^\top Az$, covers 78 to 90 % of the time at ten products: the
samples are few, and skewed wherever a handful of eigenvalues carries the trace. Three things repair it. Part of the
products finds the directions that carry most (Hutch++), and their trace is then exact. For a semidefinite operator the
rest, B, is given its exact law: with Gaussian z, $\sum_iz_i^\top Bz_i=s\,\chi^2_\nu$ exactly when the non-zero eigenvalues of B
are equal, with scale $s=\mathrm{tr}B^2/\mathrm{tr}B$ estimated by $\sum\|Bz_i\|^2/\sum z_i^\top Bz_i$ from products already made,
and the interval is that of ν (Satterthwaite's law otherwise). An indefinite operator has Student's t.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array, Float

from tradeoff._random import normals
from tradeoff._records import Numbers, record, static
from tradeoff.landscape.lanczos import krylov, tridiagonal
from tradeoff.landscape.operators import AnyOperator, Operator

ROUNDING = 64.0
"""No interval is narrower than this many units of rounding of what was summed."""


@record
class TraceEstimate:
    """The trace of an operator, and the interval that holds it with the confidence asked for.

    Args:
        trace: the estimate, in the unit of the operator.
        lower: lower end of the interval.
        upper: upper end of the interval.
        products: how often the operator was applied.
        law: what the interval rests on: `chi-squared`, `Student t` or `exact`.
    """

    trace: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    products: int = static()
    law: str = static()


@record
class SpectralDensity:
    r"""The spectral density smoothed by a Gaussian, $\frac1d\sum_i\varphi_\sigma(x-\lambda_i)$, with pointwise intervals.

    Args:
        grid: eigenvalues x, shape (G,).
        density: the estimate at x, per unit of eigenvalue, shape (G,).
        lower: lower end of the interval at x, shape (G,).
        upper: upper end of the interval at x, shape (G,).
        width: σ.
        products: how often the operator was applied.
    """

    grid: Float[Array, " G"]
    density: Float[Array, " G"]
    lower: Float[Array, " G"]
    upper: Float[Array, " G"]
    width: float = static()
    products: int = static()


def trace(operator: AnyOperator, key: Array, products: int = 30, confidence: float = 0.95) -> TraceEstimate:
    r"""The trace of an operator from products alone, with a calibrated interval.

    A fifth of the products sketches the strongest directions, a fifth takes their trace exactly, the rest samples what is
    left; unbiased. The chi-squared interval of semidefinite operators covers 93 to 97 % from ten products on, for flat,
    decaying, spiked and low-rank spectra. Student's t, for indefinite ones, covers less (down to 87 % at ten products) where
    after the sketch one or two eigenvalues still carry the trace; if you know the operator to be semidefinite, say so.

    Args:
        operator: a symmetric operator of d parameters.
        key: a JAX random key.
        products: m ≥ 3; with m ≥ d the trace is exact, by d products.
        confidence: of the interval, in (0, 1).

    Returns:
        A `TraceEstimate`.

    Raises:
        ValueError: when there are fewer than 3 products, the confidence is not in (0, 1), or a product is not finite.

    Example:
        >>> from tradeoff.landscape import from_matrix
        >>> found = trace(from_matrix(jnp.diag(jnp.arange(100.0))), jax.random.key(0), products=20)
        >>> bool(found.lower < 4950 < found.upper), found.law, found.products
        (True, 'chi-squared', 20)

    Source: Hutch++ (Meyer, Musco, Musco, Woodruff); Satterthwaite.
    """
    if products < 3:
        raise ValueError(f"products is {products}; an interval needs at least 3.")
    _check_confidence(confidence)
    if products >= operator.size:
        total, slack = (float(x) for x in _diagonal(operator))
        _check_finite(total)
        return _estimate(total, total - slack, total + slack, operator.size, "exact")
    sketch = products // 5
    found, ones, twos = _sampled(operator, key, sketch, products - 2 * sketch)
    found, ones, twos = float(found), np.asarray(ones, np.float64), np.asarray(twos, np.float64)
    _check_finite(found + ones.sum() + twos.sum())
    slack = ROUNDING * float(jnp.finfo(operator.dtype).eps) * (abs(found) + float(np.abs(ones).mean()))
    rest, lower, upper = map(float, _interval(ones, twos, confidence, operator.semidefinite))
    law = "chi-squared" if operator.semidefinite else "Student t"
    return _estimate(found + rest, found + lower - slack, found + upper + slack, products, law)


def density(
    operator: AnyOperator,
    key: Array,
    grid: Numbers,
    width: float,
    steps: int = 30,
    probes: int = 10,
    confidence: float = 0.95,
) -> SpectralDensity:
    r"""The smoothed spectral density by stochastic Lanczos quadrature, with a pointwise interval.

    At each x it is $\frac1d\mathrm{tr}f(A)$ with f = φσ(x - ·) ≥ 0, so `trace`'s chi-squared law holds whatever the signs of
    the operator, and a lone eigenvalue is the case in which it is exact. The interval is for the density at this width;
    quadrature adds an error of its own when `steps` are too few to resolve it: raise them until nothing moves.

    Args:
        operator: a symmetric operator of d parameters.
        key: a JAX random key.
        grid: eigenvalues x to look at, shape (G,), in the unit of the operator.
        width: σ > 0 of the smoothing, in the unit of the operator.
        steps: Lanczos steps of each probe, in 1..d.
        probes: Gaussian start vectors, at least 2.
        confidence: of each interval, in (0, 1).

    Returns:
        A `SpectralDensity`.

    Raises:
        ValueError: when the width is not positive, there are fewer than 2 probes, or as `lanczos`.

    Example:
        >>> from tradeoff.landscape import from_matrix
        >>> found = density(from_matrix(jnp.eye(50)), jax.random.key(1), [0.0, 1.0], width=0.1, steps=1)
        >>> bool(found.density[0] < 1e-12), bool(found.lower[1] < 0.3989422804 / 0.1 < found.upper[1])
        (True, True)

    Source: Ubaru, Chen, Saad; Ghorbani, Krishnan, Xiao.
    """
    points = np.atleast_1d(np.asarray(grid, np.float64))
    if points.ndim != 1 or not np.all(np.isfinite(points)):
        raise ValueError(f"grid has shape {points.shape}; give finite eigenvalues to look at, shape (G,).")
    if not 0 < width < np.inf or probes < 2:
        raise ValueError(f"width is {width} and probes {probes}; the width must be positive, the probes at least 2.")
    _check_confidence(confidence)
    ones, twos = [], []
    for i in range(probes):
        start_key, run_key = jax.random.split(jax.random.fold_in(key, i))
        start = jax.random.normal(start_key, (operator.size,), operator.dtype)
        T = np.asarray(tridiagonal(krylov(operator, run_key, steps, start)), np.float64)
        nodes, vectors = np.linalg.eigh(T)
        weights = vectors[0] ** 2 * float(jnp.sum(start**2)) / operator.size
        kernel = np.exp(-(((points[:, None] - nodes) / width) ** 2) / 2) / (width * np.sqrt(2 * np.pi))
        ones.append(kernel @ weights)
        twos.append(kernel**2 @ weights / operator.size)
    found, lower, upper = _interval(np.stack(ones, -1), np.stack(twos, -1), confidence, semidefinite=True)
    found, lower, upper = map(jnp.asarray, (found, lower, upper))
    return SpectralDensity(jnp.asarray(points), found, lower, upper, float(width), probes * steps)


# --- the law of a sum of samples --------------------------------------------------------------------------------


class _Interval(NamedTuple):
    """Estimate and both ends, each of the shape of the samples without their last axis."""

    mean: np.ndarray
    lower: np.ndarray
    upper: np.ndarray


def _interval(ones: np.ndarray, twos: np.ndarray, confidence: float, semidefinite: bool) -> _Interval:
    r"""The interval for $\mathrm{tr}B$ from samples $z^\top Bz$ and $\|Bz\|^2$ along the last axis."""
    count, mean = ones.shape[-1], ones.mean(-1)
    tail = (1 - confidence) / 2
    if not semidefinite:
        half = scipy.special.stdtrit(count - 1, 1 - tail) * ones.std(-1, ddof=1) / np.sqrt(count)
        return _Interval(mean, mean - half, mean + half)
    total, square = np.maximum(ones.sum(-1), 0.0), twos.sum(-1)
    some = (total > 0) & (square > 0)
    scale = np.where(some, square, 1.0) / np.where(some, total, 1.0)
    turns = np.where(some, total / scale, 1.0)
    # The degrees of freedom at which a sum as small (as large) as the one seen would be as rare as the tail.
    ends = (scale * scipy.special.chdtriv(p, turns) / count for p in (1 - tail, tail))
    lower, upper = (np.where(some, end, mean) for end in ends)
    return _Interval(mean, lower, upper)


@partial(jax.jit, static_argnums=(2, 3))
def _traced_samples(operator: Operator, key: Array, sketch: int, count: int) -> tuple[Array, Array, Array]:
    return _samples(operator, key, sketch, count, jax.lax.map)


def _sampled(operator: AnyOperator, key: Array, sketch: int, count: int) -> tuple[Array, Array, Array]:
    """The exact trace on the sketch, and the samples of the rest."""
    if isinstance(operator, Operator):
        return _traced_samples(operator, key, sketch, count)

    def one_by_one(sample: Callable, keys: Array) -> tuple[Array, Array]:
        ones, twos = zip(*(sample(k) for k in keys), strict=True)
        return jnp.stack(ones), jnp.stack(twos)

    return _samples(operator, key, sketch, count, one_by_one)


def _samples(operator: AnyOperator, key: Array, sketch: int, count: int, over: Callable) -> tuple[Array, Array, Array]:
    sketch_key, key = jax.random.split(key)
    d, dtype = operator.size, operator.dtype
    found, Q = jnp.zeros((), dtype), jnp.zeros((0, d), dtype)
    if sketch:
        Q = _orthonormal(operator.rows(normals(sketch_key, (sketch, d), dtype)))
        found = jnp.sum(Q * operator.rows(Q))

    def sample(one: Array) -> tuple[Array, Array]:
        z = _without(Q, normals(one, (d,), dtype))
        image = operator @ z
        # z has nothing along Q; only the law of a semidefinite operator asks for the square.
        left = _without(Q, image) if operator.semidefinite else image
        return jnp.dot(z, left), jnp.dot(left, left)

    return found, *over(sample, jax.random.split(key, count))


def _orthonormal(rows: Array) -> Array:
    """By Gram and Schmidt, each row twice; a row that is zero stays so. LAPACK's threads would spin on beside the next product."""

    def extend(k: Array, Q: Array) -> Array:
        left = _without(Q, _without(Q, rows[k]))
        length = jnp.linalg.norm(left)
        return Q.at[k].set(left / jnp.where(length > 0, length, 1))

    return jax.lax.fori_loop(0, len(rows), extend, jnp.zeros_like(rows))


def _without(Q: Array, v: Array) -> Array:
    return v - (Q @ v) @ Q


def _diagonal(operator: AnyOperator) -> tuple[Array, Array]:
    entries = jnp.diagonal(operator.rows(jnp.eye(operator.size, dtype=operator.dtype)))
    return jnp.sum(entries), ROUNDING * jnp.finfo(operator.dtype).eps * jnp.sum(jnp.abs(entries))


def _estimate(value: float, lower: float, upper: float, products: int, law: str) -> TraceEstimate:
    return TraceEstimate(jnp.asarray(value), jnp.asarray(lower), jnp.asarray(upper), products, law)


# --- checks -----------------------------------------------------------------------------------------------------


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must be between 0 and 1, for instance 0.95.")


def _check_finite(total: float) -> None:
    if not np.isfinite(total):
        raise ValueError(
            "a product of the operator is NaN or infinite; curvature needs a loss with finite second derivatives at the "
            "parameters: move off the kink or the overflow, or use float64."
        )
