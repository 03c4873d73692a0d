"""Case I of a pair of quadratics: its whole Pareto set, from one generalised eigenproblem."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tradeoff._compiling import BRIEF, compiled
from tradeoff._records import Numbers, is_concrete
from tradeoff.gaps import Gaps
from tradeoff.loss_constraint import check_penalty
from tradeoff.parameter_constraint._spectral import RANK_WITHIN, eigen
from tradeoff.parameter_constraint.records import PenalisedPoint
from tradeoff.problems.quadratic import Quadratic, all_above, half_square, spectrum


def penalised_path(quad: Quadratic, lam: Numbers, proxy: tuple[Numbers, Numbers] | None = None) -> PenalisedPoint:
    r"""Case I of a pair of quadratics: the minimisers of $L_f+\lambda L_s$, from one generalised eigenproblem.

    The pencil is solved against $H_f+H_s$ (each over its trace), so either Hessian may be singular: what is flat for
    safety is free at every penalty, what is flat for the task stays at the aligned parameters.

    Args:
        quad: the pair of losses.
        lam: penalties in [0, inf], any shape; the ends are the limits.
        proxy: Hessian and minimiser of the safety loss that training sees, shapes (d, d) and (d,), where it is not the
            true one; the penalty acts on it, the safety gap is measured on the true loss.

    Returns:
        A `PenalisedPoint` with the shape of `lam` as leading axes.

    Raises:
        ValueError: when a penalty is negative or NaN (its index is named), or the proxy is not a quadratic over the same
            parameters.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> at = penalised_path(quadratic.golden(), [0.1, 1.0, 10.0])
        >>> [round(gap, 12) for gap in at.gaps.safety.tolist()]
        [0.907029478458, 0.444444444444, 0.027777777778]

        A proxy that aims beside the aligned parameters: the largest penalty ends at its mismatch, not at 0.

        >>> aside = penalised_path(quadratic.golden(), jnp.inf, proxy=(jnp.eye(2), [1.0, 0.0]))
        >>> float(aside.gaps.safety)
        1.0

    Source: T14(c) (framework).
    """
    lam = check_penalty(lam)
    gaps, states = _solved(quad, lam, proxy, states=True)
    assert states is not None  # asked for
    return PenalisedPoint(*states, lam, gaps)


def penalised_gaps(quad: Quadratic, lam: Numbers, proxy: tuple[Numbers, Numbers] | None = None) -> Gaps:
    """The gaps of `penalised_path` alone: sums over the eigenvalues, without a product with the eigenvectors.

    Args:
        quad: the pair of losses.
        lam: penalties in [0, inf], any shape; the ends are the limits.
        proxy: as in `penalised_path`.

    Returns:
        Safety and capability gap, in the unit of the losses, with the shape of `lam`.

    Raises:
        ValueError: as `penalised_path`.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> [round(gap, 12) for gap in penalised_gaps(quadratic.golden(), [0.1, 1.0, 10.0]).safety.tolist()]
        [0.907029478458, 0.444444444444, 0.027777777778]

    Source: T14(c) (framework).
    """
    return _solved(quad, check_penalty(lam), proxy, states=False)[0]


def _solved(
    quad: Quadratic, lam: Array, proxy: tuple[Numbers, Numbers] | None, states: bool
) -> tuple[Gaps, tuple[Array, Array] | None]:
    seen = quad if proxy is None else Quadratic(quad.H_f, quad.theta_f, *proxy)
    if not is_concrete(quad, seen, lam):
        return _path(quad, seen, lam, None, definite=False, exact=proxy is None, states=states)
    H_f, H_s = np.asarray(seen.H_f), np.asarray(seen.H_s)
    flats = jnp.asarray([_flat(H_f), _flat(H_s)])
    both = H_f / (np.trace(H_f) or 1.0) + H_s / (np.trace(H_s) or 1.0)
    return _path(quad, seen, lam, flats, definite=_flat(both) == 0, exact=proxy is None, states=states)


def _flat(H: np.ndarray) -> int:
    """How many directions are flat; none where a Cholesky factorisation shows it, which is cheaper than eigenvalues."""
    within = RANK_WITHIN * len(H)
    if all_above(H, within * np.abs(H).sum(axis=0).max()):
        return 0
    values = np.linalg.eigvalsh(H)
    return int(np.sum(values <= within * values[-1]))


def _eigenpairs(task: Array, both: Array, definite: bool) -> tuple[Array, Array, Array]:
    """Shares of the task in the joint curvature, rising; their vectors V with VᵀBV = I; how many directions have none."""
    if definite:
        L = jnp.linalg.cholesky(both)
        half = jax.scipy.linalg.solve_triangular(L, task, lower=True)
        inner = jax.scipy.linalg.solve_triangular(L, half.T, lower=True)
        share, Z = spectrum((inner + inner.T) / 2)
        return share, jax.scipy.linalg.solve_triangular(L.T, Z, lower=False), jnp.zeros((), int)
    curvature, Q = eigen(both)
    curved = curvature > 0
    W = Q * jnp.where(curved, 1 / jnp.sqrt(jnp.where(curved, curvature, 1)), 0)[None, :]
    inner = W.T @ task @ W
    share, Z = spectrum((inner + inner.T) / 2)
    return share, W @ Z, jnp.sum(~curved)


@compiled(BRIEF, static_argnames=("definite", "exact", "states"))
def _path(
    quad: Quadratic, seen: Quadratic, lam: Array, flats: Array | None, definite: bool, exact: bool, states: bool
) -> tuple[Gaps, tuple[Array, Array] | None]:
    size_f, size_s = (jnp.where(jnp.trace(H) > 0, jnp.trace(H), 1) for H in (seen.H_f, seen.H_s))
    task, both = seen.H_f / size_f, seen.H_f / size_f + seen.H_s / size_s
    share, V, hidden = _eigenpairs(task, both, definite)
    # Shares come in rising order: first what is flat for the task (or for both), last what is flat for safety alone.
    # How many there are of each is known from the Hessians themselves, in which rounding is not yet amplified.
    flat_f, flat_s = flats if flats is not None else (jnp.sum(eigen(H)[0] == 0) for H in (seen.H_f, seen.H_s))
    place = jnp.arange(len(share))
    share = jnp.where(place < flat_f, 0, jnp.clip(share, 0, 1))
    share = jnp.where(place >= len(share) - (flat_s - hidden), 1, share)
    a = V.T @ (both @ quad.displacement)
    # Where the proxy's minimiser stands, along the same axes, and the true safety loss there.
    aside = jnp.zeros_like(a) if exact else V.T @ (both @ (seen.theta_s - quad.theta_s))
    true = None if exact else V.T @ quad.H_s @ V

    def one(lam: Array) -> tuple[Gaps, tuple[Array, Array] | None]:
        # L_f + λL_s has curvature share + ν(1 - share) along a column of V; over ν where that is large, so that λ = inf is
        # a penalty like any other.
        nu = lam * size_s / size_f
        task_weight = jnp.where(nu > 1, 1 / jnp.where(nu > 1, nu, 1), 1)
        safety_weight = jnp.where(nu > 1, 1, nu)
        mixed = (share > 0) & (share < 1)
        inverse = 1 / jnp.where(mixed, task_weight * share + safety_weight * (1 - share), 1)
        moved = jnp.where(mixed, task_weight * share * inverse, share)
        rest = jnp.where(mixed, safety_weight * (1 - share) * inverse, 1 - share)
        along = moved * a if exact else moved * a + rest * aside
        safety = size_s * jnp.sum((1 - share) * along**2) / 2 if true is None else half_square(true, along)
        capability = size_f * jnp.sum(share * (rest * (a - aside)) ** 2) / 2
        delta = V @ along
        return Gaps(safety, capability), (quad.theta_s + delta, delta) if states else None

    flat = jax.vmap(one)(lam.ravel())
    return jax.tree.map(lambda leaf: leaf.reshape(lam.shape + leaf.shape[1:]), flat)
