r"""Flows of two quadratics at many penalties by one polynomial, $\delta(t)=\varphi_t(A)\,g$, $\varphi_t(x)=(1-e^{-xt})/x$.

$A=H_f+\lambda H_s$ has other eigenvectors for every λ, but its Chebyshev polynomials on $[0,a]$ take one product with $[H_f\,H_s]$
per degree for all penalties at once, and every time reads the same vectors with other coefficients. The degree grows
with $\sqrt{a\,t}$; a flow too long for that is cheaper in the eigenbasis of each penalty.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array

from tradeoff._compiling import BRIEF, compiled
from tradeoff.gaps import Gaps
from tradeoff.problems.quadratic import Quadratic

NEGLIGIBLE = 2.0**-54
"""The coefficient, relative to the sum, after which a series is cut."""
DEGREES = 4
"""Degrees come in multiples of this, so that few programs are compiled."""
LANES, NUMBERS, INSTANTS = 32, 2048, 128
"""So many penalties (more where these have fewer numbers) and times are worked on at once: they stay in the cache."""
SMALL, NOT_LARGE, ROUNDED_UP = 32, 64, 1 + 2.0**-40
"""Up to so many parameters the largest eigenvalue, and then a norm, is had for less than a call to the device; what rounding may take."""
EIGEN, EIGEN_CALL, STEP_CALL = 64.0, 2.0**20, 2.0**19
"""The cost of an eigendecomposition, in multiples of d³, and what calling one and starting one product cost beside it, flops."""


def degree_for(quad: Quadratic, lams: np.ndarray, times: np.ndarray) -> tuple[int, float] | None:
    """The number of terms and the interval's end where the polynomial is the cheaper way, else None.

    Args:
        quad: the pair of losses, its values known.
        lams: finite penalties.
        times: times.
    """
    d, lanes, instants = quad.theta_s.shape[-1], lams.size, times.size
    flops_by_eigen = lanes * (EIGEN * d**3 + EIGEN_CALL + 2 * instants * d**2)
    batches = -(-lanes // _most_lanes(d))
    each = lanes * (4 * d**2 + 2 * instants * d) + batches * STEP_CALL
    most = int(flops_by_eigen / each) // DEGREES * DEGREES
    last = float(times.max(initial=0))
    if most < DEGREES or not 0 < last < np.inf:
        return None
    reach = _reach(quad, float(lams.max()))
    terms = np.arange(DEGREES, most + 1, DEGREES)
    small = scipy.special.ive(terms, reach * last / 2) <= NEGLIGIBLE
    # Beyond 1e9 or so the scaled Bessel function is a NaN; no polynomial is short enough there.
    return (int(terms[np.argmax(small)]), reach) if reach > 0 and small.any() else None


def _reach(quad: Quadratic, lam: float) -> float:
    r"""A number at least $\lambda_{\max}(A)$, which grows with λ, and not much above it."""
    d = quad.theta_s.shape[-1]
    if d > NOT_LARGE:
        return float(_norm_on_device(quad, lam))
    A = np.asarray(quad.H_f) + lam * np.asarray(quad.H_s)
    return float(np.linalg.eigvalsh(A)[-1] * ROUNDED_UP if d <= SMALL else _power_norm(A))


@compiled(BRIEF)
def _norm_on_device(quad: Quadratic, lam: Array) -> Array:
    return _power_norm(quad.H_f + lam * quad.H_s)


def _power_norm(A: Any) -> Any:
    r"""$\|A^8\|_F^{1/8}$, of an array of either library."""
    size = abs(A).max()
    power = A / (size + (size == 0))
    for _ in range(3):
        power = power @ power
    return size * (power**2).sum() ** (1 / 16)


@compiled(BRIEF, static_argnames=("terms", "gaps", "states"))
def propagate(
    quad: Quadratic, lams: Array, times: Array, reach: Array, *, terms: int, gaps: bool, states: bool
) -> tuple[Gaps | None, Array | None]:
    """Gaps, shape (...L, ...T), and displacements, shape (...L, ...T, d), as asked, by what `degree_for` says."""
    shape = lams.shape + times.shape
    lams, times = lams.ravel(), times.ravel()
    d, pull = quad.displacement, quad.pull
    both = jnp.concatenate([quad.H_f, quad.H_s], axis=1) * (2 / reach)
    # φ_t at the Chebyshev nodes of [0, a], and from there to its coefficients.
    angles = (np.arange(terms) + 0.5) * np.pi / terms
    nodes = jnp.asarray((1 + np.cos(angles)) / 2) * reach
    transform = np.cos(np.outer(angles, np.arange(terms))) * (2 / terms)
    transform[:, 0] /= 2

    def lanes(lams: Array) -> tuple[Gaps | None, Array | None]:
        def turned(Y: Array) -> Array:
            Z = Y @ both
            return Z[:, : len(d)] + lams[:, None] * Z[:, len(d) :] - Y

        def step(last: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
            before, now = last
            after = 2 * turned(now) - before
            return (now, after), after

        zeroth = jnp.broadcast_to(pull, (len(lams), len(d)))
        first = turned(zeroth)
        _, others = jax.lax.scan(step, (zeroth, first), None, terms - 2)

        def instants(times: Array) -> tuple[Gaps | None, Array | None]:
            c = (-jnp.expm1(-times[:, None] * nodes[None, :]) / nodes[None, :]) @ transform
            delta = jnp.einsum("tk,kld->tld", c[:, 2:], others)
            delta = delta + c[:, 0, None, None] * zeroth[None] + c[:, 1, None, None] * first[None]
            moved = jnp.moveaxis(delta, 1, 0) if states else None
            if not gaps:
                return None, moved
            left = delta - d[None, None, :]
            safety, capability = (
                jnp.maximum(jnp.sum(v * (v @ H), axis=-1) / 2, 0).T for v, H in ((delta, quad.H_s), (left, quad.H_f))
            )
            return Gaps(safety, capability), moved

        by_time = _in_batches(instants, times, INSTANTS)  # (batches, L, T, ...)
        return jax.tree.map(lambda leaf: _joined(jnp.moveaxis(leaf, 0, 1), 1)[:, : len(times)], by_time)

    by_lane = _in_batches(lanes, lams, _most_lanes(len(d)))
    flat = jax.tree.map(lambda leaf: _joined(leaf, 0)[: len(lams)], by_lane)
    return jax.tree.map(lambda leaf: leaf.reshape(shape + leaf.shape[2:]), flat)


def _most_lanes(d: int) -> int:
    return max(LANES, NUMBERS // d)


def _in_batches(work: Callable[[Array], Any], values: Array, most: int) -> Any:
    """`work` on the values in batches of equal size, at most `most`; the last value fills the last batch up."""
    count = len(values)
    batches = -(-count // most)
    if batches == 1:
        return jax.tree.map(lambda leaf: leaf[None], work(values))
    # A few more batches of a size that divides the number save the copy that cuts the filling off.
    batches = next((more for more in range(batches, 2 * batches) if count % more == 0), batches)
    size = -(-count // batches)
    padded = jnp.concatenate([values, jnp.broadcast_to(values[-1], (batches * size - count,))])
    return jax.lax.map(work, padded.reshape(batches, size))


def _joined(leaf: Array, axis: int) -> Array:
    """An axis and the one after it as one."""
    shape = leaf.shape
    return leaf.reshape(*shape[:axis], shape[axis] * shape[axis + 1], *shape[axis + 2 :])
