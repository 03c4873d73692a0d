r"""Case II, the alignment parameter constraint: fine-tune while the weights stay near the aligned ones.

For a pair of quadratics the constrained optimum $\theta_\varepsilon\in\arg\min\{L_f:\|\theta-\theta_s\|\le\varepsilon\}$ is
$\theta_s+(H_f+\mu I)^{-1}H_fd$ with μ the root of the secular equation $\sum_i\lambda_i^2c_i^2/(\lambda_i+\mu)^2=\varepsilon^2$
(T14). One eigendecomposition of $H_f$ serves every radius; the root lies between $\lambda_{\min}r$ and $\lambda_{\max}r$,
$r=\|\Pi d\|/\varepsilon-1$, and is found by Newton's method on $1/\|\delta(\mu)\|$, which is concave in μ, kept inside that
bracket. Weight decay toward $\theta_s$ is the same path in μ; another metric is a change of variable. Case I of the same
pair (`penalised_path`) is one generalised eigenproblem, and the two differ by the price of isotropy (T15).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff._records import Numbers, is_concrete, record
from tradeoff.gaps import Gaps
from tradeoff.loss_constraint import check_penalty, check_scale
from tradeoff.problems.quadratic import Quadratic, checked_hessian, half_square, length, spectrum

RANK_WITHIN = 64 * 2.0**-52
"""An eigenvalue below this times the largest one, per dimension, is zero: such a direction is flat."""
STEPS = 60
"""At most so many steps of the secular solve; about six are needed."""


@record
class TrustRegionPoint:
    r"""The optimum of Case II at one radius or (with a leading axis) at many, with its certificate.

    Args:
        theta: the parameters $\theta_\varepsilon$, shape (..., d).
        displacement: $\theta_\varepsilon-\theta_s$, exact however small, shape (..., d).
        multiplier: μ ≥ 0, the price of the constraint: $dG_f/d\varepsilon=-\mu\varepsilon$; 0 where it does not bind, shape (...).
        radius: the radius ε asked for, shape (...).
        gaps: safety and capability gap, in the unit of the losses, shape (...).
        residual: $\|\nabla L_f(\theta)+\mu A(\theta-\theta_s)\|/\|\nabla L_f(\theta_s)\|$, zero to rounding, shape (...).
        excess: how far the point is outside the ball, relative to the radius, zero to rounding, shape (...).
    """

    theta: Float[Array, "*radii d"]
    displacement: Float[Array, "*radii d"]
    multiplier: Float[Array, "*radii"]
    radius: Float[Array, "*radii"]
    gaps: Gaps
    residual: Float[Array, "*radii"]
    excess: Float[Array, "*radii"]


@record
class PenalisedPoint:
    r"""The optimum of Case I on a pair of quadratics at one penalty or (with a leading axis) at many.

    Args:
        theta: the minimiser of $L_f+\lambda L_s$ nearest to the aligned parameters in the flat directions, shape (..., d).
        displacement: $\theta_\lambda-\theta_s$, shape (..., d).
        lam: the penalty λ, shape (...).
        gaps: safety and capability gap, in the unit of the losses, shape (...).
    """

    theta: Float[Array, "*penalties d"]
    displacement: Float[Array, "*penalties d"]
    lam: Float[Array, "*penalties"]
    gaps: Gaps


@record
class IsotropyPrice:
    r"""What a ball costs above the best, and the most it could.

    Args:
        price: the limit of Case II's safety gap over the best one at equal gain, at least 1.
        most: Kantorovich's bound $(\kappa+1)^2/(4\kappa)$ over all directions of the gradient.
    """

    price: Float[Array, "*batch"]
    most: Float[Array, "*batch"]


# --- Case II ----------------------------------------------------------------------------------------------------


def solve(quad: Quadratic, radius: Numbers, metric: Numbers | None = None) -> TrustRegionPoint:
    r"""The best capability within a ball around the aligned parameters.

    Args:
        quad: the pair of losses; any spectrum, singular Hessians included.
        radius: ε in (0, inf], a scalar. Beyond the reach $\|\Pi_{\mathrm{range}H_f}d\|$ the minimiser of least norm is
            returned, with multiplier 0.
        metric: A of the ellipsoid $\|\theta-\theta_s\|_A\le\varepsilon$, shape (d, d), positive definite; the identity
            unless told. With A = H_s the constraint is the safety loss itself.

    Returns:
        A `TrustRegionPoint`.

    Raises:
        ValueError: when the radius is not a positive scalar, or the metric is not positive definite.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> at = solve(quadratic.golden(), 0.5)
        >>> round(float(at.multiplier), 12), round(float(at.gaps.safety), 12), round(float(at.gaps.capability), 12)
        (3.647097410689, 0.178287182158, 0.759531559938)

    Source: T14(a), T15(b) (framework).
    """
    radius = _check_radius(radius)
    if radius.ndim:
        raise ValueError(f"solve was given a radius of shape {radius.shape}; give one radius, or use path for many.")
    return path(quad, radius, metric)


def path(quad: Quadratic, radii: Numbers, metric: Numbers | None = None) -> TrustRegionPoint:
    r"""Case II at many radii, from one eigendecomposition.

    Args:
        quad: the pair of losses.
        radii: ε in (0, inf], any shape.
        metric: as in `solve`.

    Returns:
        A `TrustRegionPoint` with the shape of `radii` as leading axes.

    Raises:
        ValueError: when a radius is zero, negative or NaN (its index is named), or the metric is not positive definite.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> path(quadratic.golden(), [0.25, 0.5, 1.0]).gaps.safety.round(12).tolist()
        [0.047623818365, 0.178287182158, 0.59035421456]

    Source: T14(a) (framework).
    """
    return _path(quad, _check_radius(radii), _check_metric(metric))


def soft_path(quad: Quadratic, multipliers: Numbers, metric: Numbers | None = None) -> TrustRegionPoint:
    r"""The soft form, $\min L_f+\tfrac\mu2\|\theta-\theta_s\|_A^2$: weight decay toward the aligned parameters.

    It is the same path: `path(quad, soft_path(quad, mu).radius).multiplier` is `mu` for 0 < μ < inf, so the two functions
    are each other's inverse, μ to ε and ε to μ.

    Args:
        quad: the pair of losses.
        multipliers: μ in [0, inf], any shape.
        metric: as in `solve`.

    Returns:
        A `TrustRegionPoint` whose `radius` is the distance travelled.

    Raises:
        ValueError: when a multiplier is negative or NaN, or the metric is not positive definite.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> round(float(soft_path(quadratic.golden(), 3.647097410689).radius), 12)
        0.5

    Source: T14(b) (framework).
    """
    return _soft_path(quad, check_scale("multiplier μ", multipliers), _check_metric(metric))


# --- Case I, and what Case II pays above it ---------------------------------------------------------------------


def penalised_path(quad: Quadratic, lam: Numbers) -> PenalisedPoint:
    r"""Case I of a pair of quadratics: the minimisers of $L_f+\lambda L_s$, from one generalised eigenproblem.

    The pencil is solved against $H_f+H_s$ (each over its trace), so either Hessian may be singular: what is flat for
    safety is free at every penalty, what is flat for the task stays at the aligned parameters.

    Args:
        quad: the pair of losses.
        lam: penalties in [0, inf], any shape; the ends are the limits.

    Returns:
        A `PenalisedPoint` with the shape of `lam` as leading axes.

    Raises:
        ValueError: when a penalty is negative or NaN (its index is named).

    Example:
        >>> from tradeoff.problems import quadratic
        >>> at = penalised_path(quadratic.golden(), [0.1, 1.0, 10.0])
        >>> [round(gap, 12) for gap in at.gaps.safety.tolist()]
        [0.907029478458, 0.444444444444, 0.027777777778]

    Source: T14(c) (framework).
    """
    return _penalised_path(quad, check_penalty(lam))


def price_of_isotropy(H_s: Numbers, g: Numbers, metric: Numbers | None = None) -> IsotropyPrice:
    r"""What a small ball costs above the best: $(g^\top H_sg)(g^\top H_s^{-1}g)/\|g\|^4\in[1,(\kappa+1)^2/(4\kappa)]$.

    The ratio of the safety gaps of Case II and of the best parameters, at equal small gain. It is 1 exactly when g is an
    eigenvector of $H_s$, and infinite when g leaves the range of a singular $H_s$: capability is free there, and a ball
    pays for it all the same.

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
    return _price(jnp.asarray(H_s, jnp.float64), jnp.asarray(g, jnp.float64), _check_metric(metric))


# --- checks -----------------------------------------------------------------------------------------------------


def _check_radius(radii: Numbers) -> Array:
    if is_concrete(radii):
        array = np.asarray(radii, np.float64)
        wrong = ~(array > 0)
        if wrong.any():
            index = np.unravel_index(int(np.argmax(wrong)), array.shape)
            where = f" at index {', '.join(map(str, index))}" if array.ndim else ""
            raise ValueError(f"radius ε is {array[index]}{where}; it must be a number in (0, inf].")
    return jnp.asarray(radii, jnp.float64)


def _check_metric(metric: Numbers | None) -> Array | None:
    if metric is None:
        return None
    if is_concrete(metric):
        matrix = checked_hessian("metric", metric)
        spectrum = np.linalg.eigvalsh(matrix)
        if spectrum[0] <= RANK_WITHIN * len(matrix) * spectrum[-1]:
            raise ValueError(
                f"metric has eigenvalue {spectrum[0]:.6g}; an ellipsoid needs a positive definite metric: add a small "
                "multiple of the identity."
            )
        metric = matrix
    return jnp.asarray(metric, jnp.float64)


# --- kernels ----------------------------------------------------------------------------------------------------


def eigen(H: Array) -> tuple[Array, Array]:
    """Eigenvalues, those of flat directions exactly zero, and eigenvectors in columns."""
    values, vectors = spectrum(H)
    return jnp.where(values > RANK_WITHIN * len(H) * values[-1], values, 0), vectors


def _whitened(quad: Quadratic, metric: Array) -> tuple[Quadratic, Array]:
    """The pair in coordinates in which the metric is the identity, and the factor L of A = LLᵀ."""
    L = jnp.linalg.cholesky(metric)
    H_f, H_s = (_congruent(L, H) for H in (quad.H_f, quad.H_s))
    return Quadratic(H_f, L.T @ quad.theta_f, H_s, L.T @ quad.theta_s), L


def _congruent(L: Array, H: Array) -> Array:
    """L⁻¹ H L⁻ᵀ, symmetric."""
    half = jax.scipy.linalg.solve_triangular(L, H, lower=True)
    whole = jax.scipy.linalg.solve_triangular(L, half.T, lower=True)
    return (whole + whole.T) / 2


@jax.jit
def _path(quad: Quadratic, radii: Array, metric: Array | None) -> TrustRegionPoint:
    white, L = (quad, None) if metric is None else _whitened(quad, metric)
    rates, U = eigen(white.H_f)
    c = jnp.where(rates > 0, U.T @ white.displacement, 0)

    def one(radius: Array) -> TrustRegionPoint:
        return _point(quad, white, (rates, U, c), L, _multiplier(rates, c, radius), radius)

    flat = jax.vmap(one)(radii.ravel())
    return jax.tree.map(lambda leaf: leaf.reshape(radii.shape + leaf.shape[1:]), flat)


@jax.jit
def _soft_path(quad: Quadratic, multipliers: Array, metric: Array | None) -> TrustRegionPoint:
    white, L = (quad, None) if metric is None else _whitened(quad, metric)
    rates, U = eigen(white.H_f)
    c = jnp.where(rates > 0, U.T @ white.displacement, 0)
    flat = jax.vmap(lambda mu: _point(quad, white, (rates, U, c), L, mu, None))(multipliers.ravel())
    return jax.tree.map(lambda leaf: leaf.reshape(multipliers.shape + leaf.shape[1:]), flat)


def _point(
    quad: Quadratic,
    white: Quadratic,
    spectrum: tuple[Array, Array, Array],
    L: Array | None,
    mu: Array,
    radius: Array | None,
) -> TrustRegionPoint:
    """The point of a multiplier: filters in the eigenbasis, so that neither end of the path cancels."""
    rates, U, c = spectrum
    moved, rest = filters(rates, mu)
    inside = U @ (moved * c)
    norm = length(moved * c)
    delta = inside if L is None else jax.scipy.linalg.solve_triangular(L.T, inside, lower=False)
    capability = jnp.sum(rates * (rest * c) ** 2) / 2
    safety = half_square(white.H_s, inside)
    pull = length(rates * c)
    left_over = white.H_f @ (inside - white.displacement) + jnp.where(jnp.isfinite(mu), mu, 0) * inside
    stays = (pull == 0) | ~jnp.isfinite(mu)
    residual = jnp.where(stays, 0, length(left_over) / jnp.where(pull > 0, pull, 1))
    asked = norm if radius is None else radius
    excess = jnp.maximum(jnp.where(asked > 0, norm / jnp.where(asked > 0, asked, 1) - 1, 0), 0)
    return TrustRegionPoint(quad.theta_s + delta, delta, mu, asked, Gaps(safety, capability), residual, excess)


def filters(rates: Array, mu: Array) -> tuple[Array, Array]:
    r"""$\lambda_i/(\lambda_i+\mu)$ and $\mu/(\lambda_i+\mu)$, each exact when tiny; (0, 1) in flat directions."""
    curved = rates > 0
    moved, rest = shares(mu / jnp.where(curved, rates, 1))
    return jnp.where(curved, moved, 0), jnp.where(curved, rest, 1)


def shares(odds: Array) -> tuple[Array, Array]:
    """`1/(1+odds)` and `odds/(1+odds)` for odds in [0, inf], with finite derivatives at both ends."""
    large = odds > 1
    small, inverse = jnp.where(large, 1, odds), 1 / jnp.where(large, odds, 1)
    return jnp.where(large, inverse / (1 + inverse), 1 / (1 + small)), jnp.where(
        large, 1 / (1 + inverse), small / (1 + small)
    )


def _multiplier(rates: Array, c: Array, radius: Array) -> Array:
    """The root of the secular equation; 0 where the ball holds the minimiser of least norm."""
    reach = length(c)
    binds = radius < reach
    # In units of the reach: nothing under- or overflows, and the end of the path is at 1.
    unit = jnp.where(reach > 0, reach, 1)
    c, radius = c / unit, jnp.where(binds, radius / unit, 0.5)
    frozen = jax.lax.stop_gradient((rates, c, radius))
    mu = jnp.where(binds, _secular_root(*frozen), 1.0)
    # One more step of Newton outside the loop carries the derivative of the root.
    norm, step = _newton(rates, c, mu)
    return jnp.where(binds, mu + jax.lax.stop_gradient(step) * (norm / radius - 1), 0)


def _newton(rates: Array, c: Array, mu: Array) -> tuple[Array, Array]:
    r"""$\|\delta(\mu)\|$ and the factor of $\|\delta\|/\varepsilon-1$ in Newton's step on $1/\|\delta(\mu)\|$."""
    moved, _ = filters(rates, mu)
    square = (moved * c) ** 2
    total = jnp.sum(square)
    slope = jnp.sum(jnp.where(rates > 0, square / jnp.where(rates > 0, rates + mu, 1), 0))
    positive = slope > 0
    return jnp.sqrt(jnp.where(positive, total, 1)), jnp.where(positive, total / jnp.where(positive, slope, 1), 0)


def _secular_root(rates: Array, c: Array, radius: Array) -> Array:
    over = 1 / radius - 1
    curved = rates > 0
    low = over * jnp.min(jnp.where(curved, rates, jnp.inf))
    high = over * jnp.max(rates)

    def unsettled(state: tuple[Array, Array, Array, Array, Array]) -> Array:
        *_, settled, count = state
        return ~settled & (count < STEPS)

    def step(state: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array, Array]:
        mu, low, high, _, count = state
        norm, factor = _newton(rates, c, mu)
        outside = norm > radius
        low, high = jnp.where(outside, mu, low), jnp.where(outside, high, mu)
        new = mu + factor * (norm / radius - 1)
        kept = (new >= low) & (new <= high)
        new = jnp.where(kept, new, jnp.sqrt(low) * jnp.sqrt(high))
        return new, low, high, jnp.abs(new - mu) <= 4 * jnp.finfo(mu.dtype).eps * mu, count + 1

    start = (low, low, high, high <= 0, jnp.int64(0))
    return jax.lax.while_loop(unsettled, step, start)[0]


@jax.jit
def _penalised_path(quad: Quadratic, lam: Array) -> PenalisedPoint:
    size_f, size_s = (jnp.where(jnp.trace(H) > 0, jnp.trace(H), 1) for H in (quad.H_f, quad.H_s))
    task, both = quad.H_f / size_f, quad.H_f / size_f + quad.H_s / size_s
    curvature, Q = eigen(both)
    curved = curvature > 0
    W = Q * jnp.where(curved, 1 / jnp.sqrt(jnp.where(curved, curvature, 1)), 0)[None, :]
    inner = W.T @ task @ W
    share, Z = spectrum((inner + inner.T) / 2)
    # Shares come in rising order: first what is flat for the task (or for both), last what is flat for safety alone.
    # How many there are of each is known from the Hessians themselves, in which rounding is not yet amplified.
    flat_f, flat_s = (jnp.sum(eigen(H)[0] == 0) for H in (quad.H_f, quad.H_s))
    place = jnp.arange(len(share))
    share = jnp.where(place < flat_f, 0, jnp.clip(share, 0, 1))
    share = jnp.where(place >= len(share) - (flat_s - jnp.sum(~curved)), 1, share)
    V = W @ Z
    a = V.T @ (both @ quad.displacement)

    def one(lam: Array) -> PenalisedPoint:
        # L_f + λL_s has curvature share + ν(1 - share) along a column of V.
        endless = jnp.isinf(lam)
        nu = jnp.where(endless, 1, lam) * size_s / size_f
        task_side, safety_side = share > 0, share < 1
        odds = jnp.where(task_side, nu * (1 - share) / jnp.where(task_side, share, 1), jnp.inf)
        odds = jnp.where(safety_side, jnp.where(endless, jnp.inf, odds), 0)
        moved, rest = shares(odds)
        delta = V @ (moved * a)
        safety = size_s * jnp.sum((1 - share) * (moved * a) ** 2) / 2
        capability = size_f * jnp.sum(share * (rest * a) ** 2) / 2
        return PenalisedPoint(quad.theta_s + delta, delta, lam, Gaps(safety, capability))

    flat = jax.vmap(one)(lam.ravel())
    return jax.tree.map(lambda leaf: leaf.reshape(lam.shape + leaf.shape[1:]), flat)


@jax.jit
def _price(H_s: Array, g: Array, metric: Array | None) -> IsotropyPrice:
    if metric is not None:
        L = jnp.linalg.cholesky(metric)
        H_s, g = _congruent(L, H_s), jax.scipy.linalg.solve_triangular(L, g, lower=True)
    h, U = eigen(H_s)
    w = (U.T @ g) ** 2
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
    price = jnp.where(escapes, jnp.where(pays, jnp.inf, 1), price)
    kappa = jnp.where(curved[0], h[-1] / safe[0], jnp.inf)
    most = jnp.where(
        jnp.isfinite(kappa), 1 + (kappa - 1) ** 2 / (4 * jnp.where(jnp.isfinite(kappa), kappa, 1)), jnp.inf
    )
    return IsotropyPrice(price, most)
