"""What the solvers of Case II and Case I return: points with their certificates, and a code for every lane of a sweep."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from tradeoff._records import record
from tradeoff.gaps import Gaps

SOLVED, UNBOUNDED, UNSETTLED, NOT_FINITE = range(4)
REMEDIES = {
    UNBOUNDED: "the capability loss falls without end along a direction of negative curvature, or a flat one in which the "
    "task pulls; the aligned parameters stand in for a solution. Give a finite radius, or a larger multiplier",
    UNSETTLED: "the secular equation was not solved to rounding within its steps; the residual says how far it got. Scale "
    "the Hessian so that its eigenvalues span fewer decades",
    NOT_FINITE: "the result is not finite; look for NaN, infinity or overflow in the Hessians and gradients of this lane",
}
"""What went wrong in a lane, and what to do."""


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
        result: 0 where it was solved, else a code of `REMEDIES`, shape (...); `failures` puts it in words.
    """

    theta: Float[Array, "*radii d"]
    displacement: Float[Array, "*radii d"]
    multiplier: Float[Array, "*radii"]
    radius: Float[Array, "*radii"]
    gaps: Gaps
    residual: Float[Array, "*radii"]
    excess: Float[Array, "*radii"]
    result: Int[Array, "*radii"]


@record
class LocalPoint:
    r"""The optimum of Case II on a `LocalModel`, at one radius or many, with its certificate.

    It is the global optimum when `residual` and `excess` are zero, μ ≥ 0 and `curvature` ≥ 0: those conditions are
    necessary and sufficient, whatever the signs of the Hessian.

    Args:
        theta: the parameters $\theta_\varepsilon$, shape (..., d).
        displacement: $\delta=\theta_\varepsilon-\theta_s$, shape (..., d).
        multiplier: μ ≥ max(0, -λ_min), with $d\,\mathrm{gain}/d\varepsilon=\mu\varepsilon$; 0 where the ball does not bind.
        radius: the radius ε asked for, shape (...).
        safety_gap: $\tfrac12\delta^\top H_s\delta$, in the unit of the losses, shape (...).
        gain: $L_f(\theta_s)-L_f(\theta_\varepsilon)\ge0$, in the unit of the losses, shape (...).
        residual: $\|\nabla L_f+\mu A\delta\|/(\|\nabla L_f(\theta_s)\|+\mu\|A\delta\|)$ in the metric, zero to rounding.
        excess: how far the point is outside the ball, relative to the radius, zero to rounding, shape (...).
        curvature: $\mu+\lambda_{\min}\ge0$, the second-order condition, of the Hessian relative to the metric, shape (...).
        hard: whether a step along the bottom eigenvector completes the point, of which the sign is free, shape (...).
        result: 0 where it was solved, else a code of `REMEDIES`, shape (...); `failures` puts it in words.
    """

    theta: Float[Array, "*radii d"]
    displacement: Float[Array, "*radii d"]
    multiplier: Float[Array, "*radii"]
    radius: Float[Array, "*radii"]
    safety_gap: Float[Array, "*radii"]
    gain: Float[Array, "*radii"]
    residual: Float[Array, "*radii"]
    excess: Float[Array, "*radii"]
    curvature: Float[Array, "*radii"]
    hard: Bool[Array, "*radii"]
    result: Int[Array, "*radii"]


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


def failures(point: TrustRegionPoint | LocalPoint) -> tuple[str, ...]:
    """The lanes of a sweep that were not solved, each with its index and the remedy; empty when all were.

    Args:
        point: what `solve`, `path` or `soft_path` returned.

    Returns:
        One sentence for each lane.

    Example:
        >>> from tradeoff.parameter_constraint import path
        >>> from tradeoff.problems.quadratic import LocalModel
        >>> saddle = LocalModel([[1.0, 0.0], [0.0, -2.0]], [1.0, 0.0], jnp.eye(2), [0.0, 0.0])
        >>> at = path(saddle, [1.0, jnp.inf])
        >>> failures(at)[0].partition(" along")[0], at.gain.round(6).tolist()
        ('index 1 (radius inf): the capability loss falls without end', [1.166667, 0.0])
    """
    codes, radii = np.asarray(point.result), np.asarray(point.radius)
    return tuple(
        f"{'index ' + ', '.join(map(str, at)) + ' ' if at else ''}(radius {radii[at]:.6g}): {REMEDIES[int(codes[at])]}."
        for at in np.ndindex(codes.shape)
        if codes[at] != SOLVED
    )


def graded(settled: Array, unbounded: Array, value: Array) -> Int[Array, ""]:
    """The code of a lane: the first that applies of `UNBOUNDED`, `NOT_FINITE` and `UNSETTLED`."""
    code = jnp.where(settled, SOLVED, UNSETTLED)
    code = jnp.where(jnp.isfinite(value), code, NOT_FINITE)
    return jnp.where(unbounded, UNBOUNDED, code)
