r"""The spectral side of Case II: eigenvalues with exact zeros, filters, another metric, and the secular equation.

In the eigenbasis a constrained step is $b_i/(a_i+s)$ with curvatures $a_i\ge0$ above the lowest and s the multiplier above
its least value. $1/\|\delta(s)\|$ is concave and rises, so Newton's method on it comes to the root from below without
ever passing it.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg as scipy_linalg  # noqa: F401  JAX would load it amid the first eigendecomposition.
from jaxtyping import Array, Float

from tradeoff.problems.quadratic import length, spectrum

RANK_WITHIN = 64 * 2.0**-52
"""An eigenvalue below this times the largest one, per dimension, is zero: such a direction is flat."""
STEPS = 60
"""At most so many steps of the secular solve; about six are needed."""


def eigen(H: Array) -> tuple[Array, Array]:
    """Eigenvalues, those of flat directions exactly zero, and eigenvectors in columns."""
    values, vectors = spectrum(H)
    return jnp.where(values > RANK_WITHIN * len(H) * values[-1], values, 0), vectors


def congruent(L: Array, H: Array) -> Array:
    """L⁻¹ H L⁻ᵀ, symmetric: a Hessian in coordinates in which the metric LLᵀ is the identity."""
    half = jax.scipy.linalg.solve_triangular(L, H, lower=True)
    whole = jax.scipy.linalg.solve_triangular(L, half.T, lower=True)
    return (whole + whole.T) / 2


def unwhitened(L: Array | None, inside: Array) -> Array:
    """A displacement in the parameters, from the coordinates in which the metric is the identity."""
    return inside if L is None else jax.scipy.linalg.solve_triangular(L.T, inside, lower=False)


def filters(rates: Array, mu: Array) -> tuple[Array, Array]:
    r"""$\lambda_i/(\lambda_i+\mu)$ and $\mu/(\lambda_i+\mu)$, each exact when tiny; (0, 1) in flat directions."""
    curved = rates > 0
    moved, rest = shares(mu / jnp.where(curved, rates, 1))
    return jnp.where(curved, moved, 0), jnp.where(curved, rest, 1)


@jax.custom_jvp
def shares(odds: Array) -> tuple[Array, Array]:
    """`1/(1+odds)` and `odds/(1+odds)` for odds in [0, inf], with finite derivatives at both ends."""
    return 1 / (1 + odds), 1 / (1 + 1 / odds)


@shares.defjvp
def _shares_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    share, rest = shares(*primals)
    moved = share * share * tangents[0]
    return (share, rest), (-moved, moved)


def newton(delta: Array, stiffness: Array) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""$\|\delta(s)\|$ and the factor of $\|\delta\|/\varepsilon-1$ in Newton's step on $1/\|\delta(s)\|$.

    Args:
        delta: the step along each axis, shape (d,).
        stiffness: $a_i+s$ along each axis, positive wherever the step is not zero, shape (d,).
    """
    square = delta**2
    total = jnp.sum(square)
    slope = jnp.sum(jnp.where(stiffness > 0, square / jnp.where(stiffness > 0, stiffness, 1), 0))
    positive = slope > 0
    return jnp.sqrt(jnp.where(positive, total, 1)), jnp.where(positive, total / jnp.where(positive, slope, 1), 0)


def implicit(
    length_at_root: Callable[[Array, Array], tuple[Array, Array]], primals: tuple, tangents: tuple, settled: Array
) -> tuple[Array, Any]:
    r"""The tangents of a root s of $\|\delta(s)\|=\varepsilon$ and of whether it was found, by the implicit function theorem.

    Args:
        length_at_root: what `newton` says at the root, from the two arrays that set the step.
        primals: the two arrays and ε.
        tangents: theirs.
        settled: whether the root was found.
    """
    (norm, step), (moved, _) = jax.jvp(length_at_root, primals[:2], tangents[:2])
    radius, d_radius = primals[2], tangents[2]
    return step * (moved - norm / radius * d_radius) / radius, np.zeros(settled.shape, jax.dtypes.float0)


def secular_root(a: Array, b: Array, radius: Array) -> tuple[Float[Array, ""], Array]:
    r"""The root s > 0 of $\sum_ib_i^2/(a_i+s)^2=\varepsilon^2$, and whether it was found to rounding.

    Args:
        a: curvatures above the lowest, not negative, shape (d,).
        b: the pull along each axis, shape (d,).
        radius: ε, below the length of the step at s = 0.
    """
    # In units in which the pull and the radius are one, the root lies in [0, 1] and nothing over- or underflows.
    most = jnp.max(jnp.abs(b))
    most = jnp.where(most > 0, most, 1)
    size = length(b / most)  # by the largest first, whose square may be no number
    size = jnp.where(size > 0, size, 1)
    unit = radius / most / size
    pulls = jnp.abs(b) / most / size
    x = jnp.where(pulls > 0, a * unit, 1)
    square = pulls**2
    low = jnp.clip(jnp.max(pulls - x), 0, 1)  # there one axis alone makes a step as long as the radius

    def climbs(state: tuple[Array, Array, Array]) -> Array:
        _, climbing, count = state
        return climbing & (count < STEPS)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        s, _, count = state
        inverse = 1 / (x + s)
        weighted = square * inverse * inverse
        total, slope = jnp.sum(weighted), jnp.sum(weighted * inverse)
        new = s + total / jnp.where(slope > 0, slope, 1) * (jnp.sqrt(total) - 1)
        new = jnp.clip(new, s, 1)
        return new, new > s * (1 + 4 * jnp.finfo(s.dtype).eps), count + 1

    s, climbing, _ = jax.lax.while_loop(climbs, step, (low, jnp.bool_(True), jnp.int64(0)))
    return s / unit, ~climbing
