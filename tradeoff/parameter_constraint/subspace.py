r"""Case II within a subspace: $\theta=\theta_s+Bz$, as adapters do, is the same problem in fewer coordinates (T19(b))."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff._records import Numbers, is_concrete, record
from tradeoff.parameter_constraint._spectral import RANK_WITHIN, eigen
from tradeoff.problems.quadratic import LocalModel, Quadratic, half_square


@record
class Restricted:
    r"""Two losses on a subspace through the aligned parameters, in orthonormal coordinates z.

    Args:
        pair: the losses as functions of z, with the aligned parameters at z = 0; any solver takes it.
        basis: orthonormal columns that span the subspace, shape (d, r).
        irreducible: the capability gap that no point of the subspace goes below, to be added to the pair's; `None` for a
            `LocalModel`, which has no gap.
    """

    pair: Any
    basis: Float[Array, "d r"]
    irreducible: Float[Array, ""] | None

    def lift(self, z: Float[Array, "... r"]) -> Float[Array, "... d"]:
        r"""The displacement $Bz$ from the aligned parameters, shape (..., d)."""
        return z @ self.basis.T

    def form(self, A: Numbers) -> Float[Array, "r r"]:
        r"""$B^\top AB$: a metric of the parameters as one of z, shape (r, r)."""
        return _form(self.basis, jnp.asarray(A, jnp.float64))


def restrict(quad: Quadratic | LocalModel, B: Numbers) -> Restricted:
    r"""The two losses on the subspace $\theta_s+\mathrm{span}B$, with all that holds for them.

    $(B^\top H_fB,\,B^\top H_sB,\,B^\top g)$ is a pair of quadratics again: `path`, `soft_path`, `penalised_path` and
    `price_of_isotropy` apply, relative to the best point of the subspace $z_f=(B^\top H_fB)^+B^\top g$.

    Args:
        quad: the pair of losses, or a `LocalModel`.
        B: columns that span the subspace, shape (d, r), linearly independent; they are made orthonormal.

    Returns:
        A `Restricted`.

    Raises:
        ValueError: when B has another height than the parameters, holds NaN or infinity, or has dependent columns.

    Example:
        >>> from tradeoff.parameter_constraint import path
        >>> from tradeoff.problems import quadratic
        >>> one = restrict(quadratic.golden(), [[1.0], [1.0]])
        >>> at = path(one.pair, 0.25)
        >>> round(float(one.irreducible), 12), round(float(at.gaps.capability + one.irreducible), 12)
        (1.5, 1.708946609407)

    Source: T19(b) (framework).
    """
    if is_concrete(B):
        B = _checked_basis(B, quad.theta_s.shape[-1])
    basis = jnp.linalg.qr(jnp.asarray(B, jnp.float64))[0]
    H_f, H_s = _form(basis, quad.H_f), _form(basis, quad.H_s)
    origin = jnp.zeros(basis.shape[1])
    if isinstance(quad, LocalModel):
        return Restricted(LocalModel(H_f, basis.T @ quad.g, H_s, origin), basis, None)
    rates, U = eigen(H_f)
    curved = rates > 0
    best = U @ jnp.where(curved, U.T @ (basis.T @ quad.pull) / jnp.where(curved, rates, 1), 0)
    return Restricted(Quadratic(H_f, best, H_s, origin), basis, half_square(quad.H_f, basis @ best - quad.displacement))


def _form(basis: Array, A: Array) -> Array:
    inner = basis.T @ A @ basis
    return (inner + inner.T) / 2


def _checked_basis(B: Numbers, size: int) -> np.ndarray:
    columns = np.asarray(B, np.float64)
    if columns.ndim != 2 or columns.shape[0] != size or columns.shape[1] == 0 or not np.all(np.isfinite(columns)):
        raise ValueError(
            f"B has shape {columns.shape}; a subspace of {size} parameters needs finite columns, shape ({size}, r) with r "
            "at least 1."
        )
    lengths = np.linalg.norm(columns, axis=0)
    rank = np.linalg.matrix_rank(columns / np.where(lengths > 0, lengths, 1), tol=RANK_WITHIN * max(columns.shape))
    if rank < columns.shape[1]:
        raise ValueError(
            f"B has {columns.shape[1]} columns and rank {rank}; a subspace needs linearly independent columns. Drop the "
            "dependent ones, or give an orthonormal basis of their span."
        )
    return columns
