r"""Flows of two quadratics at many penalties by one polynomial, $\delta(t)=\varphi_t(A)\,g$, $\varphi_t(x)=(1-e^{-xt})/x$.

$A=H_f+\lambda H_s$ has other eigenvectors for every λ, but its Chebyshev polynomials on $[0,a]$ take one product with $[H_f\,H_s]$
per degree for all penalties at once, or, where both Hessians are diagonal (`coordinates`), one with the metric alone; and
every time reads the same vectors with other coefficients. The degree grows with $\sqrt{a\,t}$; a flow too long for that is
cheaper in the eigenbasis of each penalty.
"""

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Array

from tradeoff._compiling import BRIEF, WIDE, compiled
from tradeoff.dynamics.coordinates import Diagonal, Given, both_diagonal
from tradeoff.gaps import Gaps
from tradeoff.problems.quadratic import Quadratic

NEGLIGIBLE = 2.0**-49
"""The series of $e^{-xt}$, from 1, is cut where half a coefficient is less; those of $\varphi_t/t$ are a tenth of it by then, or less."""
DEGREES = 4
"""Degrees come in multiples of this, so that few programs are compiled."""
LANES, NUMBERS, INSTANTS = 32, 4096, 128
"""So many penalties (more where these have fewer numbers) and times are worked on at once: they stay in the cache."""
SQUARINGS, NOT_LARGE, ROUNDED_UP = 5, 128, 1 + 2.0**-40
"""How often A is squared to bound its largest eigenvalue by a norm; up to how many parameters that is cheaper; what rounding takes."""
EIGEN, EIGEN_CALL, STEP_CALL, DIAGONAL_CALL = 64.0, 2.0**20, 2.0**19, 2.0**22
"""The cost of an eigendecomposition, in multiples of d³; what calling one, starting a product, other coordinates cost beside it, flops."""


def degree_for(quad: Quadratic, lams: np.ndarray, times: np.ndarray) -> tuple[int, float] | None:
    """The number of terms and the interval's end where the polynomial is the cheaper way, else None.

    Args:
        quad: the pair of losses, its values known.
        lams: finite penalties.
        times: times.
    """
    d, lanes, instants = quad.theta_s.shape[-1], lams.size, times.size
    last = float(times.max(initial=0))
    if not lanes or not 0 < last < np.inf:
        return None
    flops_by_eigen = lanes * (EIGEN * d**3 + EIGEN_CALL + 2 * instants * d**2)
    batches = -(-lanes // _most_lanes(d))
    each = lanes * (4 * d**2 + 2 * instants * d) + batches * STEP_CALL
    most = int(flops_by_eigen / each) // DEGREES * DEGREES
    if most < DEGREES:
        return None
    reach, choice = _reach(quad, float(lams.max())), range(DEGREES, most + 1, DEGREES)
    # Beyond 1e9 or so the scaled Bessel function is a NaN; no polynomial is short enough there.
    which = bisect_left(choice, True, key=lambda terms: scipy.special.ive(terms, reach * last / 2) <= NEGLIGIBLE)
    return (choice[which], reach) if reach > 0 and which < len(choice) else None


def coordinates_for(quad: Quadratic, lanes: int, instants: int, terms: int, states: bool) -> Given | Diagonal:
    """Coordinates in which both Hessians are diagonal, where there are such and the products they spare cost more, else as given.

    Args:
        quad: the pair of losses, its values known.
        lanes: penalties.
        instants: times.
        terms: of the series.
        states: whether displacements are asked for beside gaps, which come back by a product each.
    """
    d, spared = len(quad.theta_s), terms + (1 if states else 2) * instants
    if 2 * lanes * spared * d**2 <= EIGEN * d**3 + DIAGONAL_CALL:
        return Given(quad)
    return both_diagonal(quad) or Given(quad)


def _reach(quad: Quadratic, lam: float) -> float:
    r"""A number at least $\lambda_{\max}(A)$, which grows with λ, and not much above it."""
    A = np.asarray(quad.H_f) + lam * np.asarray(quad.H_s)
    if len(A) > NOT_LARGE:
        return float(np.linalg.eigvalsh(A)[-1] * ROUNDED_UP)
    size = abs(A).max(initial=np.finfo(float).tiny)
    power = A / size
    for _ in range(SQUARINGS):
        power = power @ power
    # The norm of A³² to the 1/32, at most d^(1/64) times as large.
    return float(size * (power**2).sum() ** (0.5 / 2**SQUARINGS))


@compiled(BRIEF | WIDE, static_argnames=("terms", "gaps", "states"))
def propagate(
    pair: Given | Diagonal, lams: Array, times: Array, reach: Array, *, terms: int, gaps: bool, states: bool
) -> tuple[Gaps | None, Array | None]:
    """Gaps, shape (...L, ...T), and displacements, shape (...L, ...T, d), as asked, by what `degree_for` says."""
    shape = lams.shape + times.shape
    lams, times, pull = lams.ravel(), times.ravel(), pair.pull
    # From values at the Chebyshev nodes of [0, a] to coefficients.
    angles = (np.arange(terms) + 0.5) * np.pi / terms
    nodes = jnp.asarray((1 + np.cos(angles)) / 2)[None, :] * reach
    transform = np.cos(np.outer(angles, np.arange(terms))) * (2 / terms)
    transform[:, 0] /= 2

    def lanes(lams: Array) -> tuple[Gaps | None, Array | None]:
        act = pair.motion(lams)

        def turned(Y: Array) -> Array:
            return 2 / reach * act(Y) - Y

        def step(last: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], Array]:
            before, now = last
            after = 2 * turned(now) - before
            return (now, after), after

        # The vector of degree -1 is that of degree 1; that of degree 0 is the pull at every penalty.
        zeroth = jnp.broadcast_to(pull, (len(lams), len(pull)))
        _, others = jax.lax.scan(step, (turned(zeroth), zeroth), None, terms - 1)

        def series(c: Array) -> Array:
            return jnp.einsum("tk,kld->tld", c[:, 1:], others) + (c[:, :1] * pull[None, :])[:, None, :]

        def instants(times: Array) -> tuple[Gaps | None, Array | None]:
            # 1 - e^(-xt) = xφ_t(x) at the nodes; its hyperbolic form costs half of `expm1`.
            tangent = jnp.tanh(times[:, None] * nodes / 2)
            done = 2 * tangent / (1 + tangent)
            delta = series((done / nodes) @ transform)
            moved = jnp.moveaxis(pair.displacements(delta), 1, 0) if states else None
            return jax.tree.map(jnp.transpose, pair.gaps(delta)) if gaps else None, moved

        by_time = _in_batches(instants, times, INSTANTS)  # (batches, L, T, ...)
        return jax.tree.map(lambda leaf: _joined(jnp.moveaxis(leaf, 0, 1), 1)[:, : len(times)], by_time)

    by_lane = _in_batches(lanes, lams, _most_lanes(len(pull)))
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
