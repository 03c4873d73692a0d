"""How the curvatures of two losses lie together: the angles between their strongest directions, and what one buys for the other."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import Array, Float

from tradeoff._records import Numbers, record
from tradeoff.landscape.lanczos import RitzPairs, lanczos
from tradeoff.landscape.operators import AnyOperator
from tradeoff.problems.quadratic import checked_hessian

FLAT_WITHIN = 64 * 2.0**-52
"""A direction whose share of both curvatures is below this, per dimension, is flat."""


@record
class CurvatureOverlap:
    r"""How the strongest curvature of two losses lies together.

    Args:
        first: top Ritz pairs of the first operator.
        second: top Ritz pairs of the second.
        angles: principal angles between their spans, radians in [0, π/2], rising, shape (k,).
        ratios: generalised eigenvalues of the first against the second on the joint span, falling, shape (at most 2k,);
            the largest is at most that of the whole space, the least at least.
    """

    first: RitzPairs
    second: RitzPairs
    angles: Float[Array, " k"]
    ratios: Float[Array, " r"]


def principal_angles(first: Float[Array, "k d"], second: Float[Array, "l e"]) -> Float[Array, " m"]:
    r"""The principal angles between the spans of two sets of rows, exact for the smallest angles.

    Args:
        first: rows that span one subspace (Ritz vectors, say), shape (k, d).
        second: rows that span the other, shape (l, d).

    Returns:
        Radians in [0, π/2], rising, one for each dimension of the smaller span.

    Raises:
        ValueError: when the rows are of different lengths or not finite.

    Example:
        >>> rows = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[1.0, 1.0, 0.0]])
        >>> principal_angles(*rows).round(12).tolist()
        [0.785398163397]
    """
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"the rows have {first.shape[1]} and {second.shape[1]} entries; both subspaces must be of the same parameters."
        )
    if not bool(jnp.all(jnp.isfinite(first)) & jnp.all(jnp.isfinite(second))):
        raise ValueError("a row has NaN or infinite entries; subspaces are spanned by finite vectors.")
    large, small = (scipy.linalg.orth(np.asarray(rows, np.float64).T) for rows in (first, second))
    if large.shape[1] < small.shape[1]:
        large, small = small, large
    # Sines and cosines both: either alone loses angles at one end (as scipy.linalg.subspace_angles does for mixed ones).
    inside = large.T @ small
    cosines = np.linalg.svd(inside, compute_uv=False)
    sines = np.linalg.svd(small - large @ inside, compute_uv=False)[::-1]
    return jnp.asarray(np.arctan2(sines, cosines))


def generalised_eigenvalues(first: Numbers, second: Numbers) -> Float[Array, " r"]:
    r"""The σ of $Av=\sigma Bv$ for semidefinite A and B, either of which may be singular.

    For the curvatures of a task and of safety they are what decides Case I of a pair of quadratics (T14(c)): a direction
    with large σ gives much capability for its safety, and σ = inf is capability for free.

    Args:
        first: A, shape (d, d), symmetric and semidefinite.
        second: B, of the same shape.

    Returns:
        σ in [0, inf], falling, shape (r,); directions flat for both are left out.

    Raises:
        ValueError: when a matrix is not symmetric, not finite or indefinite, or the shapes differ.

    Example:
        >>> generalised_eigenvalues([[4.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]).tolist()
        [inf, 2.0]

    Source: T14(c) (framework).
    """
    A, B = checked_hessian("first", first), checked_hessian("second", second)
    if A.shape != B.shape:
        raise ValueError(f"first has shape {A.shape} and second {B.shape}; both must be over the same parameters.")
    sizes = [max(float(np.trace(M)), np.finfo(float).tiny) for M in (A, B)]
    A, B = A / sizes[0], B / sizes[1]
    rates, U = np.linalg.eigh(A + B)
    tiny = FLAT_WITHIN * len(A)
    kept = rates > tiny * max(rates[-1], 0)
    white = U[:, kept] / np.sqrt(rates[kept])
    V = white @ np.linalg.eigh(white.T @ A @ white)[1]
    # Each share from its own matrix: one minus the other would lose a small one.
    gained, paid = (np.sum(V * (M @ V), axis=0) for M in (A, B))
    gained, paid = (np.where(share > tiny, share, 0.0) for share in (gained, paid))
    ratio = np.divide(gained, paid, out=np.full_like(gained, np.inf), where=paid > 0)
    return jnp.asarray(np.sort(ratio * (sizes[0] / sizes[1]))[::-1].copy())


def curvature_overlap(
    first: AnyOperator, second: AnyOperator, key: Array, pairs: int = 10, steps: int = 40
) -> CurvatureOverlap:
    r"""The strongest curvature of two losses: their spectra, the angles between them, and what one buys for the other.

    Args:
        first: curvature of one loss (capability, say), semidefinite.
        second: curvature of the other (safety, say), of the same parameters, semidefinite.
        key: a JAX random key.
        pairs: k, top eigenpairs of each.
        steps: Lanczos steps for each, at least k.

    Returns:
        A `CurvatureOverlap`; look at `converged` of the pairs before believing the angles.

    Raises:
        ValueError: when the operators differ in size, or as `lanczos`.

    Example:
        >>> from tradeoff.landscape import from_matrix
        >>> A, B = jnp.diag(jnp.array([9.0, 1.0, 1.0])), jnp.diag(jnp.array([1.0, 9.0, 1.0]))
        >>> found = curvature_overlap(from_matrix(A), from_matrix(B), jax.random.key(0), pairs=1, steps=2)
        >>> round(float(found.angles[0]), 6), [round(float(ratio), 6) for ratio in found.ratios]
        (1.570796, [9.0, 0.111111])
    """
    if first.size != second.size:
        raise ValueError(
            f"the operators act on {first.size} and {second.size} parameters; both must be of the same parameters."
        )
    keys = jax.random.split(key)
    tops = [lanczos(operator, k, steps, pairs) for operator, k in zip((first, second), keys, strict=True)]
    angles = principal_angles(tops[0].vectors, tops[1].vectors)
    Q = scipy.linalg.orth(np.concatenate([np.asarray(top.vectors) for top in tops]).T).T
    small = [Q @ np.asarray(operator.rows(jnp.asarray(Q, operator.dtype))).T for operator in (first, second)]
    return CurvatureOverlap(tops[0], tops[1], angles, generalised_eigenvalues(*((M + M.T) / 2 for M in small)))
