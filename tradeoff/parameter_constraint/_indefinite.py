r"""Case II on a second-order model of any signs: $\max g^\top\delta-\tfrac12\delta^\top H\delta$ over $\|\delta\|_A\le\varepsilon$.

The solution has $(H+\mu I)\delta=g$ with $H+\mu I\succeq0$, so μ is at least $\max(0,-\lambda_{\min})$. It is sought as the
excess s over that, in which no sum cancels: $\lambda_i+\mu=a_i+s$ with $a_i\ge0$. When the pull has no part in the bottom
eigenspace the step may stay short of the sphere at s = 0 (the hard case); what is missing is taken along the bottom.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff._compiling import BRIEF, compiled
from tradeoff.divergences import root
from tradeoff.parameter_constraint._spectral import RANK_WITHIN, congruent, implicit, newton, secular_root, unwhitened
from tradeoff.parameter_constraint.records import LocalPoint, graded
from tradeoff.problems.quadratic import LocalModel, half_square, length, spectrum


class _Frame(NamedTuple):
    """The model along the axes of its Hessian, in coordinates in which the metric is the identity.

    `rates` are the eigenvalues, `shift` is the least multiplier, `a` the curvatures above it, `b` the pull, `bottom` a unit
    vector of the lowest curvature, and `endless` whether the step grows beyond every bound as the multiplier falls.
    """

    H: Array
    g: Array
    H_s: Array
    L: Array | None
    rates: Array
    U: Array
    b: Array
    shift: Array
    a: Array
    bottom: Array
    endless: Array


def _frame(model: LocalModel, metric: Array | None) -> _Frame:
    H, g, H_s, L = model.H_f, model.g, model.H_s, None
    if metric is not None:
        L = jnp.linalg.cholesky(metric)
        H, H_s, g = congruent(L, H), congruent(L, H_s), jax.scipy.linalg.solve_triangular(L, g, lower=True)
    rates, U = spectrum(H)
    within = RANK_WITHIN * len(H)
    nothing = within * jnp.max(jnp.abs(rates))
    rates = jnp.where(jnp.abs(rates) > nothing, rates, 0)
    shift = jnp.maximum(-rates[0], 0)
    a = jnp.where(rates + shift > nothing, rates + shift, 0)
    low = a == 0
    b = g @ U
    # What rounding leaves of the pull in the bottom eigenspace is no pull.
    b = jnp.where(low & (jnp.abs(b) <= within * length(g)), 0, b)
    # Of a bottom eigenspace of several dimensions, its vector nearest to a coordinate axis: no choice of basis or sign.
    kept = jnp.where(low[None, :], U, 0)
    axis = kept[jnp.argmax(jnp.sum(kept**2, axis=1))]
    reach = length(axis)
    bottom = axis / jnp.where(reach > 0, reach, 1)
    return _Frame(H, g, H_s, L, rates, U, b, shift, a, bottom, jnp.any(low & (b != 0)))


@compiled(BRIEF)
def path(model: LocalModel, radii: Array, metric: Array | None) -> LocalPoint:
    """See `parameter_constraint.path`."""
    frame = _frame(model, metric)
    reach = length(_step(frame.a, frame.b, jnp.zeros(())))

    def one(radius: Array) -> LocalPoint:
        binds = (frame.endless | (radius < reach)) & jnp.isfinite(radius)
        unbounded = jnp.isinf(radius) & (frame.endless | (frame.shift > 0))
        inner = jnp.where(binds, radius, jnp.where(reach > 0, reach / 2, 1))
        s, settled = _root(frame.a, frame.b, inner)
        s = jnp.where(binds, s, 0)
        taken = _step(frame.a, frame.b, s)
        hard = ~binds & (frame.shift > 0) & ~unbounded
        short, beyond = radius - length(taken), radius + length(taken)
        taken = taken + jnp.where(hard, root(jnp.where(hard, short * beyond, 0)), 0) * frame.bottom
        return _point(model, frame, taken, frame.shift + s, radius, hard, unbounded, settled | ~binds)

    flat = jax.vmap(one)(radii.ravel())
    return jax.tree.map(lambda leaf: leaf.reshape(radii.shape + leaf.shape[1:]), flat)


@compiled(BRIEF)
def soft_path(model: LocalModel, multipliers: Array, metric: Array | None) -> LocalPoint:
    """See `parameter_constraint.soft_path`."""
    frame = _frame(model, metric)

    def one(mu: Array) -> LocalPoint:
        s = mu - frame.shift
        unbounded = (s < 0) | ((s == 0) & frame.endless)
        taken = _step(frame.a, frame.b, jnp.where(unbounded, 1, s))
        return _point(model, frame, taken, mu, None, jnp.bool_(False), unbounded, jnp.bool_(True))

    flat = jax.vmap(one)(multipliers.ravel())
    return jax.tree.map(lambda leaf: leaf.reshape(multipliers.shape + leaf.shape[1:]), flat)


@jax.custom_jvp
def _root(a: Array, b: Array, radius: Array) -> tuple[Array, Array]:
    return secular_root(a, b, radius)


@_root.defjvp
def _root_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[tuple, tuple]:
    s, settled = _root(*primals)
    return (s, settled), implicit(lambda a, b: newton(_step(a, b, s), a + s), primals, tangents, settled)


def _step(a: Array, b: Array, s: Array) -> Array:
    """$b_i/(a_i+s)$ along the axes; 0 where nothing pulls, or where only s > 0 would bound the step."""
    stiffness = a + s
    return jnp.where(stiffness > 0, b / jnp.where(stiffness > 0, stiffness, 1), 0)


def _point(
    model: LocalModel,
    frame: _Frame,
    taken: Array,
    mu: Array,
    radius: Array | None,
    hard: Array,
    unbounded: Array,
    settled: Array,
) -> LocalPoint:
    taken = jnp.where(unbounded, 0, taken)
    finite = jnp.where(jnp.isfinite(mu), mu, 0)
    inside, norm = taken @ frame.U.T, length(taken)
    # g·δ - δ·Hδ/2 with g = (H + μ)δ: every term is positive, also where the curvature is not.
    gain = jnp.sum((finite + frame.rates / 2) * taken**2)
    force = length(frame.g) + finite * norm
    left_over = length(inside @ frame.H + finite * inside - frame.g)
    residual = jnp.where((force > 0) & jnp.isfinite(mu), left_over / jnp.where(force > 0, force, 1), 0)
    asked = norm if radius is None else radius
    excess = jnp.maximum(jnp.where(asked > 0, norm / jnp.where(asked > 0, asked, 1) - 1, 0), 0)
    delta = unwhitened(frame.L, inside)
    safety = half_square(frame.H_s, inside)
    result = graded(settled, unbounded, gain + safety + norm)
    curvature = mu + frame.rates[0]
    return LocalPoint(model.theta_s + delta, delta, mu, asked, safety, gain, residual, excess, curvature, hard, result)
