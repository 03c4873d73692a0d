"""What the theorems on two quadratics share: families, eigenvalues, and a small step of either case."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.parameter_constraint import penalised_path, soft_path
from tradeoff.problems.quadratic import Quadratic, half_square, spectrum
from tradeoff.theorems import landscapes as land

LANDSCAPE = "the alignment loss landscape around the aligned weights controls safety in Case II"
RESTRICTIVE = "Case II is more restrictive for capability than Case I, and its trade-off curve is steeper"
FAR = 1e6
"""How much larger than its scale the multiplier, or smaller the time, of an asymptotic law is taken."""
PENCIL_NOTHING = 2.0**-34
"""Generalised eigenvalues below this times the largest one are zero: of two Hessians over two and a half decades the least is 1e-5."""
PAIRS = land.quadratics(safety="any")

# Where both sides are computed from eigenvalues, rounding of a Hessian moves them by its condition number, and that of a
# pair by the product of both.
MILD = land.quadratics(decades=4.0, inside=True)

DEFINITE = land.quadratics(decades=4.0, flat_task=False)


def greatest(H: Array) -> Array:
    """The largest eigenvalue."""
    return spectrum(H)[0][-1]


def least(H: Array) -> Array:
    """The least eigenvalue, 0 where it is rounding."""
    values = spectrum(H)[0]
    return jnp.where(values[0] > land.NOTHING * values[-1], values[0], 0)


def solved_along_axes(H: Array, v: Array) -> Array:
    """H⁻¹v for a definite Hessian, or H⁻¹ of every row of v."""
    values, U = spectrum(H)
    return ((v @ U) / values) @ U.T if v.ndim == 1 else (v @ U / values[None, :]) @ U.T


def generalised(quad: Quadratic) -> tuple[Array, Array]:
    """Generalised eigenvalues of H_f against H_s, and the coordinates of the displacement, by Cholesky."""
    L = jnp.linalg.cholesky(quad.H_s)
    half = jax.scipy.linalg.solve_triangular(L, quad.H_f, lower=True)
    inner = jax.scipy.linalg.solve_triangular(L, half.T, lower=True)
    sigma, Z = spectrum((inner + inner.T) / 2)
    return jnp.where(sigma > PENCIL_NOTHING * sigma[-1], sigma, 0), Z.T @ (L.T @ quad.displacement)


def stiffness(quad: Quadratic, metric: Array) -> Array:
    """The multiplier at which the second term of a small step weighs as much as the first."""
    u = solved_along_axes(metric, quad.pull)
    v = solved_along_axes(metric, quad.H_f @ u)
    second, first = half_square(quad.H_s, v), half_square(quad.H_s, u)
    return jnp.trace(solved_along_axes(metric, quad.H_f)) + jnp.sqrt(second / first)


def small_ball(quad: Quadratic, metric: Array | None = None) -> Array:
    """The displacement of Case II at so large a multiplier, that is so small a radius, that only its direction matters."""
    mu = FAR * stiffness(quad, jnp.eye(len(quad.theta_s)) if metric is None else metric)
    return soft_path(quad, mu, metric).displacement


def large_penalty(quad: Quadratic) -> Array:
    """The displacement of Case I at so large a penalty that only its direction matters."""
    sigma, _ = generalised(quad)
    return penalised_path(quad, FAR * jnp.max(sigma)).displacement


def normalised(quad: Quadratic, delta: Array) -> Array:
    """Twice the safety gap over the square of the gain."""
    return 2 * half_square(quad.H_s, delta) / quad.gain(delta) ** 2
