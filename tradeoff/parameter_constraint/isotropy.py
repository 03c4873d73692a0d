"""The price of isotropy: what a small ball costs above the best parameters of equal gain."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tradeoff._compiling import BRIEF, compiled
from tradeoff._records import Numbers, is_concrete
from tradeoff.parameter_constraint._spectral import RANK_WITHIN, congruent, eigen
from tradeoff.parameter_constraint.ball import check_metric
from tradeoff.parameter_constraint.records import IsotropyPrice
from tradeoff.problems.quadratic import checked_hessian


def price_of_isotropy(H_s: Numbers, g: Numbers, metric: Numbers | None = None) -> IsotropyPrice:
    r"""What a small ball costs above the best: $(g^\top H_sg)(g^\top H_s^{-1}g)/\|g\|^4\in[1,(\kappa+1)^2/(4\kappa)]$.

    The ratio of the safety gaps of Case II and of the best parameters, at equal small gain. It is 1 exactly when g is an
    eigenvector of $H_s$, and infinite when g leaves the range of a singular $H_s$: capability is free there, and a ball
    pays for it all the same. It holds around a minimiser of the safety loss; `problems.quadratic.LocalModel.of` takes
    H_s and g from any problem and refuses parameters that are not one.

    Args:
        H_s: Hessian of the safety loss at the aligned parameters, shape (d, d), positive semidefinite.
        g: minus the gradient of the capability loss there, shape (d,), not zero.
        metric: A of an ellipsoidal constraint, shape (d, d), positive definite; the price is 1 for A = H_s.

    Returns:
        An `IsotropyPrice`.

    Raises:
        ValueError: when H_s is not a Hessian, g is zero or not finite, or the metric is not positive definite.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> quad = quadratic.golden()
        >>> paid = price_of_isotropy(quad.H_s, quad.pull)
        >>> round(float(paid.price), 12), round(float(paid.most), 10)
        (1.28, 1.2857142857)

    Source: T15 (framework).
    """
    if is_concrete(H_s, g):
        H_s, vector = checked_hessian("H_s", H_s), np.asarray(g, np.float64)
        if vector.shape != H_s.shape[:1] or not np.all(np.isfinite(vector)) or not vector.any():
            raise ValueError(
                f"g is {vector} and H_s has shape {H_s.shape}; g must be finite, of shape (d,), and not zero: where the "
                "task does not pull there is nothing to pay for."
            )
    return _price(jnp.asarray(H_s, jnp.float64), jnp.asarray(g, jnp.float64), check_metric(metric))


@compiled(BRIEF)
def _price(H_s: Array, g: Array, metric: Array | None) -> IsotropyPrice:
    if metric is not None:
        L = jnp.linalg.cholesky(metric)
        H_s, g = congruent(L, H_s), jax.scipy.linalg.solve_triangular(L, g, lower=True)
    h, U = eigen(H_s)
    w = (g @ U) ** 2
    w = w / jnp.sum(w)
    curved = h > 0
    # What rounding leaves in the flat directions of a gradient inside the range is no free capability.
    free = jnp.sum(jnp.where(curved, 0, w))
    w = jnp.where(curved, w, 0)
    safe = jnp.where(curved, h, 1)
    # (Σwh)(Σw/h) - (Σw)² = Σ_{i<j} w_i w_j (h_i - h_j)²/(h_i h_j): the excess over 1 is exact when tiny.
    spread = (h[:, None] - h[None, :]) ** 2 / (safe[:, None] * safe[None, :])
    price = 1 + jnp.sum(w[:, None] * w[None, :] * spread) / 2
    escapes = free > (RANK_WITHIN * len(h)) ** 2
    pays = jnp.sum(w) > 0
    price = jnp.where(escapes & pays, jnp.inf, price)
    kappa = jnp.where(curved[0], h[-1] / safe[0], jnp.inf)
    most = jnp.where(
        jnp.isfinite(kappa), 1 + (kappa - 1) ** 2 / (4 * jnp.where(jnp.isfinite(kappa), kappa, 1)), jnp.inf
    )
    return IsotropyPrice(price, most)
