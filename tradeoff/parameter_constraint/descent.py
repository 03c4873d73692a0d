r"""Case II of any problem: descend the capability loss and project on the ball, until a step leads back to where it started.

$\theta\leftarrow\theta+t\,[P(\theta-\eta\nabla L_f)-\theta]$, with the spectral step $\eta=\|\Delta\theta\|^2/\Delta\theta^\top
\Delta\nabla L_f$ and a line search that asks for less than the greatest of the last losses (Birgin, Martínez and Raydan).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int

from tradeoff._records import Numbers, is_concrete, record
from tradeoff.gaps import Gaps
from tradeoff.parameter_constraint import projection
from tradeoff.parameter_constraint._spectral import newton
from tradeoff.parameter_constraint.ball import check_metric
from tradeoff.problems import Problem
from tradeoff.problems.quadratic import length, spectrum

TOLERANCE = 1e-10
"""Descent has converged when the residual is at most this times the gradient at the aligned parameters."""
MEMORY = 10
"""A step must improve on the greatest of so many last losses: spectral steps are not monotone."""
ROUNDING = 2.0**-48
"""Losses that differ by less than this, relative, are equal."""


@record
class ProjectedPoint:
    r"""Where projected descent ended, with its certificate.

    Args:
        parameters: the last parameters, as the aligned ones are made.
        distance: $\|\theta-\theta_s\|_A$, at most the radius.
        gaps: safety and capability gap there, in the unit of the losses.
        residual: $\|P(\theta-\eta\nabla L_f)-\theta\|/\eta$ at the last step size η; 0 exactly at stationary points.
        steps: how many steps were taken.
        converged: whether the residual is at most 1e-10 times the gradient at the aligned parameters; if not, ask for more
            steps, or check that the loss is differentiable on the ball.
    """

    parameters: Any
    distance: Float[Array, ""]
    gaps: Gaps
    residual: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


def projected_descent(
    problem: Problem, aligned: Any, radius: float, metric: Numbers | None = None, steps: int = 10_000
) -> ProjectedPoint:
    r"""A stationary point of the capability loss in a ball around the aligned parameters, for any problem.

    On a convex loss it is the optimum of Case II. Where the loss is not convex it is the one that descent finds from the
    aligned parameters.

    Args:
        problem: any problem.
        aligned: the aligned parameters, any pytree of float64 arrays: the centre of the ball and the start.
        radius: ε in (0, inf].
        metric: A of the ellipsoid $\|\theta-\theta_s\|_A\le\varepsilon$ over the leaves of `aligned` one after the other,
            shape (d, d), positive definite; the identity unless told.
        steps: at most so many.

    Returns:
        A `ProjectedPoint`.

    Raises:
        ValueError: when the radius is not positive, the metric is not positive definite, or the capability loss or its
            gradient is not finite on the way.

    Example:
        >>> from tradeoff.problems import quadratic
        >>> at = projected_descent(quadratic.golden(), quadratic.golden().theta_s, 0.5)
        >>> bool(at.converged), round(float(at.gaps.capability), 9)  # the closed form of `solve`
        (True, 0.75953156)

    Source: T14, T15 (framework).
    """
    projection.check_radius(radius)
    at = _descend(problem, aligned, jnp.asarray(radius, jnp.float64), check_metric(metric), jnp.asarray(steps))
    if is_concrete(at) and not bool(jnp.isfinite(at.residual)):
        raise ValueError(
            f"the gradient of the capability loss is not finite after {int(at.steps)} steps; descend where it is (for tables, "
            "from finite logits), or in a smaller ball."
        )
    return at


class _State(NamedTuple):
    """Where descent stands: position relative to the start, loss, gradient, step size, its projected end, last losses."""

    z: Array
    loss: Array
    slope: Array
    eta: Array
    end: Array
    losses: Array
    count: Array


@eqx.filter_jit
def _descend(problem: Problem, aligned: Any, radius: Array, metric: Array | None, steps: Array) -> ProjectedPoint:
    centre, unravel = ravel_pytree(aligned)
    project = _projector(radius, metric)
    loss_and_slope = jax.value_and_grad(lambda z: problem.objective(unravel(centre + z), 0.0))
    origin = jnp.zeros_like(centre)
    loss, slope = loss_and_slope(origin)
    enough = TOLERANCE * length(slope)

    def residual(state: _State) -> Array:
        return length(state.end - state.z) / state.eta

    def unfinished(state: _State) -> Array:
        return (residual(state) > enough) & (state.count < steps)

    def step(state: _State) -> _State:
        move = state.end - state.z
        asked = jnp.max(state.losses) + ROUNDING * jnp.abs(jnp.max(state.losses))
        fall = jnp.minimum(jnp.dot(state.slope, move), 0)

        def too_long(t: Array) -> Array:
            return ~(loss_and_slope(state.z + t * move)[0] <= asked + 1e-4 * t * fall) & (t > ROUNDING)

        t = jax.lax.while_loop(too_long, lambda t: t / 2, jnp.ones(()))
        z = state.z + t * move
        loss, slope = loss_and_slope(z)
        moved, turned = t * move, slope - state.slope
        bend = jnp.dot(moved, turned)
        eta = jnp.where(bend > 0, jnp.dot(moved, moved) / jnp.where(bend > 0, bend, 1), 2 * state.eta)
        eta = jnp.clip(eta, state.eta * 1e-4, state.eta * 1e4)
        losses = state.losses.at[state.count % MEMORY].set(loss)
        return _State(z, loss, slope, eta, project(z - eta * slope), losses, state.count + 1)

    eta = 1 / jnp.where(length(slope) > 0, length(slope), 1)
    start = _State(origin, loss, slope, eta, project(-eta * slope), jnp.full(MEMORY, loss), jnp.zeros_like(steps))
    last = jax.lax.while_loop(unfinished, step, start)
    parameters = unravel(centre + last.z)
    stretched = last.z if metric is None else jnp.linalg.cholesky(metric).T @ last.z
    left = residual(last)
    return ProjectedPoint(parameters, length(stretched), problem.gaps(parameters), left, last.count, left <= enough)


def _projector(radius: Array, metric: Array | None) -> Callable[[Array], Array]:
    """The map of a displacement to the nearest one of length at most the radius, in the metric."""
    if metric is None:
        return lambda z: z / projection.over([z], radius)
    stretch, U = spectrum(metric)
    return lambda z: U @ _nearest(stretch, U.T @ z, radius)


def _nearest(stretch: Array, z: Array, radius: Array) -> Array:
    r"""The nearest point of $\sum a_ix_i^2\le\varepsilon^2$ to z: $x=z/(1+\nu a)$, by Newton's method from below as in the ball."""

    def climbs(state: tuple[Array, Array, Array]) -> Array:
        return state[1] & (state[2] < 100)

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        nu, _, count = state
        norm, factor = newton(jnp.sqrt(stretch) * z / (1 + nu * stretch), 1 / stretch + nu)
        new = nu + factor * (norm / radius - 1)
        return jnp.maximum(new, nu), new > nu * (1 + ROUNDING), count + 1

    outside = length(jnp.sqrt(stretch) * z) > radius
    nu, *_ = jax.lax.while_loop(climbs, step, (jnp.zeros(()), outside, jnp.int64(0)))
    return z / (1 + nu * stretch)
