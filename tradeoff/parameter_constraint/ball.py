"""Case II in closed form: the best capability within a ball, or an ellipsoid, around the aligned parameters."""

from typing import NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff._compiling import BRIEF, compiled
from tradeoff._records import Numbers, is_concrete
from tradeoff.gaps import Gaps
from tradeoff.loss_constraint import check_scale
from tradeoff.parameter_constraint import _indefinite
from tradeoff.parameter_constraint._spectral import (
    RANK_WITHIN,
    congruent,
    eigen,
    filters,
    implicit,
    newton,
    secular_root,
    unwhitened,
)
from tradeoff.parameter_constraint.records import UNBOUNDED, LocalPoint, TrustRegionPoint, failures, graded
from tradeoff.problems.quadratic import LocalModel, Quadratic, all_above, checked_hessian, half_square, length


@overload
def solve(quad: Quadratic, radius: Numbers, metric: Numbers | None = None) -> TrustRegionPoint: ...
@overload
def solve(quad: LocalModel, radius: Numbers, metric: Numbers | None = None) -> LocalPoint: ...
def solve(
    quad: Quadratic | LocalModel, radius: Numbers, metric: Numbers | None = None
) -> TrustRegionPoint | LocalPoint:
    r"""The best capability within a ball around the aligned parameters.

    Args:
        quad: the pair of losses, singular Hessians included, or a `LocalModel`, whose capability loss may curve downwards.
        radius: ε in (0, inf], a scalar. Beyond the reach $\|\Pi_{\mathrm{range}H_f}d\|$ the minimiser of least norm is
            returned, with multiplier 0.
        metric: A of the ellipsoid $\|\theta-\theta_s\|_A\le\varepsilon$, shape (d, d), positive definite; the identity
            unless told. With A = H_s the constraint is the safety loss itself.

    Returns:
        A `TrustRegionPoint`, of a `LocalModel` a `LocalPoint`.

    Raises:
        ValueError: when the radius is not a positive scalar, the metric is not positive definite, or an infinite radius
            meets a capability loss without a minimum.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> at = solve(quadratic.golden(), 0.5)
        >>> round(float(at.multiplier), 12), round(float(at.gaps.safety), 12), round(float(at.gaps.capability), 12)
        (3.647097410689, 0.178287182158, 0.759531559938)

        A saddle that pulls along its upward axis alone, the hard case: the rest of the radius goes down the other axis.

        >>> saddle = quadratic.LocalModel([[1.0, 0.0], [0.0, -2.0]], [1.0, 0.0], jnp.eye(2), [0.0, 0.0])
        >>> at = solve(saddle, 1.0)
        >>> [round(x, 6) for x in at.displacement.tolist()], float(at.multiplier), bool(at.hard)
        ([0.333333, 0.942809], 2.0, True)

    Source: T14(a), T15(b) (framework); Moré and Sorensen (1983) for the hard case.
    """
    radius = _check_radius(radius)
    if radius.ndim:
        raise ValueError(f"solve was given a radius of shape {radius.shape}; give one radius, or use path for many.")
    at = path(quad, radius, metric)
    if is_concrete(at.result) and at.result == UNBOUNDED:
        raise ValueError(f"solve found no solution: {failures(at)[0]}")
    return at


@overload
def path(quad: Quadratic, radii: Numbers, metric: Numbers | None = None) -> TrustRegionPoint: ...
@overload
def path(quad: LocalModel, radii: Numbers, metric: Numbers | None = None) -> LocalPoint: ...
def path(quad: Quadratic | LocalModel, radii: Numbers, metric: Numbers | None = None) -> TrustRegionPoint | LocalPoint:
    r"""Case II at many radii, from one eigendecomposition.

    Args:
        quad: the pair of losses, or a `LocalModel`.
        radii: ε in (0, inf], any shape.
        metric: as in `solve`.

    Returns:
        A `TrustRegionPoint`, of a `LocalModel` a `LocalPoint`, with the shape of `radii` as leading axes. A radius
        without a solution is marked in `result` and the others are solved; `failures` names it.

    Raises:
        ValueError: when a radius is zero, negative or NaN (its index is named), or the metric is not positive definite.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> path(quadratic.golden(), [0.25, 0.5, 1.0]).gaps.safety.round(12).tolist()
        [0.047623818365, 0.178287182158, 0.59035421456]

    Source: T14(a) (framework).
    """
    kernel = _path if isinstance(quad, Quadratic) else _indefinite.path
    return kernel(quad, _check_radius(radii), check_metric(metric))


@overload
def soft_path(quad: Quadratic, multipliers: Numbers, metric: Numbers | None = None) -> TrustRegionPoint: ...
@overload
def soft_path(quad: LocalModel, multipliers: Numbers, metric: Numbers | None = None) -> LocalPoint: ...
def soft_path(
    quad: Quadratic | LocalModel, multipliers: Numbers, metric: Numbers | None = None
) -> TrustRegionPoint | LocalPoint:
    r"""The soft form, $\min L_f+\tfrac\mu2\|\theta-\theta_s\|_A^2$: weight decay toward the aligned parameters.

    It is the same path: `path(quad, soft_path(quad, mu).radius).multiplier` is `mu` for 0 < μ < inf, so the two functions
    are each other's inverse, μ to ε and ε to μ. On a `LocalModel` the map begins at $\mu=-\lambda_{\min}$; below it there
    is no minimum, and in the hard case the radii beyond it have that one multiplier.

    Args:
        quad: the pair of losses, or a `LocalModel`.
        multipliers: μ in [0, inf], any shape.
        metric: as in `solve`.

    Returns:
        A `TrustRegionPoint`, of a `LocalModel` a `LocalPoint`, whose `radius` is the distance travelled.

    Raises:
        ValueError: when a multiplier is negative or NaN, or the metric is not positive definite.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> round(float(soft_path(quadratic.golden(), 3.647097410689).radius), 12)
        0.5

    Source: T14(b) (framework).
    """
    kernel = _soft_path if isinstance(quad, Quadratic) else _indefinite.soft_path
    return kernel(quad, check_scale("multiplier μ", multipliers), check_metric(metric))


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


def check_metric(metric: Numbers | None) -> Array | None:
    """The metric as float64, after the check that it is positive definite."""
    if metric is None:
        return None
    if is_concrete(metric):
        matrix = checked_hessian("metric", metric)
        most = np.abs(matrix).sum(axis=0).max()
        if not all_above(matrix, RANK_WITHIN * len(matrix) * most):
            spectrum = np.linalg.eigvalsh(matrix)
            if spectrum[0] <= RANK_WITHIN * len(matrix) * spectrum[-1]:
                raise ValueError(
                    f"metric has eigenvalue {spectrum[0]:.6g}; an ellipsoid needs a positive definite metric: add a small "
                    "multiple of the identity."
                )
        metric = matrix
    return jnp.asarray(metric, jnp.float64)


# --- kernels ----------------------------------------------------------------------------------------------------


class _Frame(NamedTuple):
    """The pair in coordinates in which the metric is the identity, the factor L of A = LLᵀ, and the spectrum of H_f there."""

    white: Quadratic
    L: Array | None
    rates: Array
    U: Array
    c: Array


def _frame(quad: Quadratic, metric: Array | None) -> _Frame:
    white, L = quad, None
    if metric is not None:
        L = jnp.linalg.cholesky(metric)
        H_f, H_s = (congruent(L, H) for H in (quad.H_f, quad.H_s))
        white = Quadratic(H_f, L.T @ quad.theta_f, H_s, L.T @ quad.theta_s)
    rates, U = eigen(white.H_f)
    return _Frame(white, L, rates, U, jnp.where(rates > 0, white.displacement @ U, 0))


@compiled(BRIEF)
def _path(quad: Quadratic, radii: Array, metric: Array | None) -> TrustRegionPoint:
    frame = _frame(quad, metric)

    def one(radius: Array) -> TrustRegionPoint:
        mu, settled = _multiplier(frame.rates, frame.c, radius)
        return _point(quad, frame, mu, radius, settled)

    flat = jax.vmap(one)(radii.ravel())
    return jax.tree.map(lambda leaf: leaf.reshape(radii.shape + leaf.shape[1:]), flat)


@compiled(BRIEF)
def _soft_path(quad: Quadratic, multipliers: Array, metric: Array | None) -> TrustRegionPoint:
    frame = _frame(quad, metric)
    flat = jax.vmap(lambda mu: _point(quad, frame, mu, None, jnp.bool_(True)))(multipliers.ravel())
    return jax.tree.map(lambda leaf: leaf.reshape(multipliers.shape + leaf.shape[1:]), flat)


def _point(quad: Quadratic, frame: _Frame, mu: Array, radius: Array | None, settled: Array) -> TrustRegionPoint:
    """The point with multiplier μ, every part from the filter factors so that nothing small is a difference of large ones."""
    white, L, rates, U, c = frame
    moved, rest = filters(rates, mu)
    inside = (moved * c) @ U.T
    norm = length(moved * c)
    delta = unwhitened(L, inside)
    capability = jnp.sum(rates * (rest * c) ** 2) / 2
    safety = half_square(white.H_s, inside)
    pull = length(rates * c)
    left_over = (inside - white.displacement) @ white.H_f + jnp.where(jnp.isfinite(mu), mu, 0) * inside
    stays = (pull == 0) | ~jnp.isfinite(mu)
    residual = jnp.where(stays, 0, length(left_over) / jnp.where(pull > 0, pull, 1))
    asked = norm if radius is None else radius
    excess = jnp.maximum(jnp.where(asked > 0, norm / jnp.where(asked > 0, asked, 1) - 1, 0), 0)
    result = graded(settled, jnp.bool_(False), capability + safety + norm)
    return TrustRegionPoint(quad.theta_s + delta, delta, mu, asked, Gaps(safety, capability), residual, excess, result)


def _multiplier(rates: Array, c: Array, radius: Array) -> tuple[Float[Array, ""], Array]:
    """The root of the secular equation, 0 where the ball holds the minimiser of least norm; whether it was found."""
    reach = length(c)
    binds = radius < reach
    # In units of the reach: nothing under- or overflows, and the end of the path is at 1.
    unit = jnp.where(reach > 0, reach, 1)
    c, radius = c / unit, jnp.where(binds, radius / unit, 0.5)
    root, settled = _root(rates, c, radius)
    return jnp.where(binds, root, 0), settled | ~binds


@jax.custom_jvp
def _root(rates: Array, c: Array, radius: Array) -> tuple[Float[Array, ""], Array]:
    return secular_root(rates, rates * c, radius)


@_root.defjvp
def _root_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[tuple, tuple]:
    mu, settled = _root(*primals)

    def length_at_root(rates: Array, c: Array) -> tuple[Array, Array]:
        return newton(filters(rates, mu)[0] * c, jnp.where(rates > 0, rates + mu, 0))

    return (mu, settled), implicit(length_at_root, primals, tangents, settled)
