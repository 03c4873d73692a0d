r"""Pareto frontiers of (safety gap, capability gap): exact, sampled, and how far a point is from them.

With the exact proxy the sweep over penalties *is* the frontier (T7), a convex curve with slope -λ. It bounds every
policy of every model class, so the distance of a measured point to it is a certificate: never negative, and zero only
for the best possible policy.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from tradeoff import divergences as dv
from tradeoff import loss_constraint
from tradeoff._compiling import LEAN, WIDE, compiled
from tradeoff._records import Numbers, record
from tradeoff.gaps import Gaps
from tradeoff.tolerances import SCORE
from tradeoff.worlds.world import World


@record
class Frontier:
    """The exact Pareto frontier of a world, sampled at penalties and evaluated anywhere.

    Args:
        lam: penalties, shape (L,).
        safety_gap: $G_s$ at the penalties, nats, shape (L,).
        capability_gap: $G_f$ at the penalties, nats, shape (L,).
        world: the world, with its true safety data in the place of the proxy.
    """

    lam: Float[Array, " L"]
    safety_gap: Float[Array, " L"]
    capability_gap: Float[Array, " L"]
    world: World

    def capability_at(self, safety_gap: Numbers) -> Float[Array, "*N"]:
        r"""$F(\tau)=\min\{G_f(P): G_s(P)\le\tau\}$, exact and not interpolated.

        Args:
            safety_gap: τ ≥ 0 in nats, a scalar or an array.

        Returns:
            Nats, of the shape of τ; `inf` at τ = 0 when the task needs what the safety data rule out.

        Raises:
            ValueError: when a τ is negative or NaN.

        Example:
            >>> from tradeoff import worlds
            >>> front = exact(worlds.golden(), [1.0])
            >>> round(float(front.capability_at(0.0865564926087)), 12)
            0.113279276419

        Source: T7 (framework).
        """
        tau = loss_constraint.check_scale("safety_gap", safety_gap)
        return _capability_at(self.world, tau)

    def distance(self, points: Gaps | Numbers) -> Float[Array, "*N"]:
        r"""How far each point lies above the frontier: the t for which $(G_s-t,G_f-t)$ is on it.

        $$ t=\inf_{\lambda\in[0,\infty]}\frac{G_f+\lambda G_s-V(\lambda)}{1+\lambda}. $$

        Never negative for the gaps of a policy, of any kind: a negative value is how far a point lies below what is
        possible, hence the size of a bug. (The infimum: $V/(1+\lambda)$ is concave in $1/(1+\lambda)$, so the line that
        first stops the point on its way down the diagonal is the one with the least ratio.)

        Args:
            points: `Gaps`, or (safety, capability) pairs along the last axis, shape (..., 2), in nats.

        Returns:
            Nats, shape (...).

        Raises:
            ValueError: when points are not pairs, or NaN.

        Example:
            >>> from tradeoff import worlds
            >>> front = exact(worlds.golden(), [1.0])
            >>> at = loss_constraint.gaps(worlds.golden(), 1.0)
            >>> round(float(front.distance([at.safety + 0.25, at.capability + 0.25])), 12)
            0.25
        """
        safety, capability = _pairs(points)
        return _distance(self.world, safety, capability)

    def hypervolume(self, reference: Numbers) -> Float[Array, ""]:
        """The area that the sampled points dominate below a reference point, as `hypervolume`.

        Args:
            reference: (safety, capability) in nats, shape (2,).

        Example:
            >>> from tradeoff import worlds
            >>> front = exact(worlds.golden(), [0.1, 1.0, 10.0])
            >>> round(float(front.hypervolume([0.5, 0.5])), 6)
            0.186466
        """
        return hypervolume(jnp.stack([self.safety_gap, self.capability_gap], axis=-1), reference)


def exact(world: World, lams: Numbers) -> Frontier:
    r"""The exact Pareto frontier over all policies, sampled at penalties.

    Args:
        world: the world; the frontier is that of its true safety data, whatever the proxy.
        lams: penalties in [0, inf], shape (L,).

    Returns:
        A `Frontier`.

    Raises:
        ValueError: when a penalty is negative or NaN.

    Example:
        >>> from tradeoff import worlds
        >>> front = exact(worlds.golden(), [0.0, 1.0, jnp.inf])
        >>> [round(gap, 6) for gap in front.capability_gap.tolist()]
        [0.0, 0.113279, 0.422234]

    Source: T7 (framework).
    """
    lams = jnp.atleast_1d(loss_constraint.check_penalty(lams))
    world = world.with_exact_proxy()
    at = loss_constraint.gaps(world, lams)
    return Frontier(lams, at.safety, at.capability, world)


def lower_limit(world: World, safety_gap: Numbers) -> Float[Array, "*N"]:
    r"""The fundamental limit: no policy of any kind with $G_s\le\tau$ has a capability gap below this.

    $G_f\ge-2\Omega\log\cos([E_q\alpha-\Psi(\tau/\Omega)]_+)$ with $q\propto\min(p_s,p_f)$, α the Bhattacharyya angle between
    the two conditional laws and $\Psi(g)=\arccos e^{-g/2}$. It needs only the overlap of contexts and the angles.

    Args:
        world: the world.
        safety_gap: τ ≥ 0 in nats, a scalar or an array.

    Returns:
        Nats, of the shape of τ; 0 when no context is shared.

    Raises:
        ValueError: when a τ is negative or NaN.

    Example:
        >>> from tradeoff import worlds
        >>> round(float(lower_limit(worlds.golden(), 0.0865564926087)), 7)
        0.0156428

    Source: T8(c) (framework).
    """
    tau = loss_constraint.check_scale("safety_gap", safety_gap)
    return _lower_limit(world, tau)


@record
class Certificate:
    """How far measured points lie above what is possible: nothing measured can be below either.

    Args:
        distance: to the exact frontier, nats, of the shape of the points.
        above_limit: capability gap less the fundamental limit at that safety gap (T8), nats, of the same shape.
    """

    distance: Float[Array, "*N"]
    above_limit: Float[Array, "*N"]


def certify(world: World, points: Gaps | Numbers) -> Certificate:
    """The distances of measured points to the exact frontier and to the fundamental limit.

    Args:
        world: the world that they were measured in.
        points: `Gaps`, or (safety, capability) pairs along the last axis, shape (..., 2), in nats.

    Returns:
        Both distances; up to a model's rounding none is negative.

    Raises:
        ValueError: when points are not pairs, or NaN.
        RuntimeError: when a point lies where no policy of any kind can be, which is a bug and not a result.

    Example:
        >>> from tradeoff import worlds
        >>> found = certify(worlds.golden(), [0.5, 0.25])
        >>> round(float(found.distance), 6), round(float(found.above_limit), 6)
        (0.222306, 0.25)

    Source: T7, T8(c) (framework).
    """
    safety, capability = _pairs(points)
    world = world.with_exact_proxy()
    above_limit = jnp.asarray(capability) - lower_limit(world, np.maximum(safety, 0))
    found = Certificate(_distance(world, safety, capability), above_limit)
    for what, margin in (
        ("the exact frontier (T7)", found.distance),
        ("the fundamental limit (T8)", found.above_limit),
    ):
        margins = np.asarray(margin)
        least = np.unravel_index(int(np.argmin(margins)), margins.shape)
        if not margins[least] >= -SCORE.absolute:
            where = f"point {', '.join(map(str, least))} of those" if least else "the point"
            raise RuntimeError(
                f"{where} measured has gaps ({float(safety[least]):.6g}, {float(capability[least]):.6g}) and lies "
                f"{-margins[least]:.3g} nats below {what}. No model can be there: this is a bug in the scores or in the "
                "frontier. Please report it with the world and the gaps."
            )
    return found


def hellinger_arc(gap: Array) -> Array:
    r"""$\Psi(g)=\arccos(e^{-g/2})$, exact for small g, where it is $\sqrt g$."""
    # sin Ψ = sqrt(1 - e^{-g}) and cos Ψ = e^{-g/2}.
    return jnp.arctan2(dv.root(-jnp.expm1(-gap)), jnp.exp(-gap / 2))


# --- sets of points ---------------------------------------------------------------------------------------------


def nondominated(points: Gaps | Numbers) -> Bool[Array, " N"]:
    """Which points no other point dominates (both gaps at least as small, one of them smaller).

    Args:
        points: `Gaps` of shape (N,), or (safety, capability) pairs, shape (N, 2), nats.

    Returns:
        Shape (N,); equal points are all kept.

    Example:
        >>> nondominated([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).tolist()
        [True, True, False]
    """
    safety, capability = _pairs(points)
    order = np.argsort(safety)
    sorted_safety, sorted_capability = safety[order], capability[order]
    # Of points with the same safety gap only those of the least capability gap count.
    begins = np.ones(safety.shape, bool)
    begins[1:] = sorted_safety[1:] != sorted_safety[:-1]
    group, least = np.cumsum(begins) - 1, np.minimum.reduceat(sorted_capability, np.flatnonzero(begins))
    before = np.append(np.inf, np.minimum.accumulate(least))[:-1]
    keep = np.empty(safety.shape, bool)
    keep[order] = (sorted_capability == least[group]) & (least < before)[group]
    return jnp.asarray(keep)


def hypervolume(points: Gaps | Numbers, reference: Numbers) -> Float[Array, ""]:
    """The area dominated by a set of points and bounded by a reference point (the two-objective hypervolume).

    Args:
        points: `Gaps` of shape (N,), or (safety, capability) pairs, shape (N, 2), nats.
        reference: (safety, capability) in nats, shape (2,); points not below it in both count for nothing.

    Returns:
        Square nats.

    Raises:
        ValueError: when points or the reference are not pairs, or NaN.

    Example:
        >>> float(hypervolume([[0.25, 0.5], [0.5, 0.25]], [1.0, 1.0]))
        0.5
    """
    safety, capability = _pairs(points)
    edge_s, edge_f = (np.squeeze(side) for side in _pairs(reference))
    inside = (safety < edge_s) & (capability < edge_f)
    safety, capability = safety[inside], capability[inside]
    order = np.argsort(safety)
    widths = np.diff(safety[order], append=edge_s)
    return jnp.asarray(np.sum(widths * (edge_f - np.minimum.accumulate(capability[order]))))


# --- kernels ----------------------------------------------------------------------------------------------------


def _pairs(points: Gaps | Numbers) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(points, Gaps):
        points = np.stack([points.safety, points.capability], axis=-1)
    pairs = np.asarray(points, np.float64)
    if pairs.ndim == 0 or pairs.shape[-1] != 2 or np.isnan(pairs).any():
        raise ValueError(
            f"points have shape {pairs.shape}{' and hold NaN' if np.isnan(pairs).any() else ''}; "
            "give (safety gap, capability gap) pairs along the last axis, or Gaps."
        )
    return pairs[..., 0], pairs[..., 1]


@compiled(WIDE | LEAN)
def _capability_at(world: World, tau: Array) -> Array:
    dearest = loss_constraint.gaps(world, jnp.inf).capability
    lam = loss_constraint.penalty_for(world, safety_gap=tau)
    inside = (lam > 0) & jnp.isfinite(lam)
    at = loss_constraint.gaps(world, jnp.where(inside, lam, 1))
    # V(λ) - λτ: a tangent of F, so an error in λ enters only squared.
    tangent = at.capability + jnp.where(inside, lam, 1) * (at.safety - tau)
    return jnp.where(lam == 0, 0, jnp.where(inside, jnp.maximum(tangent, 0), dearest))


@compiled(WIDE | LEAN)
def _distance(world: World, safety: Array, capability: Array) -> Array:
    def beyond(log_lam: Array) -> Array:
        at = loss_constraint.gaps(world, jnp.exp(log_lam))
        return (at.safety - at.capability) - (safety - capability)

    lam = jnp.exp(loss_constraint.bisect(beyond, safety.shape))
    # Both sides of the ratio divided by 1 + λ, written so that neither end of the range overflows.
    share = 1 / (1 + lam)
    inner = share * (capability - loss_constraint.value(world, lam)) + (1 - share) * safety
    finite = jnp.isfinite(safety) & jnp.isfinite(capability)
    return jnp.minimum(jnp.where(finite, inner, jnp.inf), jnp.minimum(safety, capability))


@jax.jit
def _lower_limit(world: World, tau: Array) -> Array:
    shared = jnp.minimum(world.safety.p, world.capability.p)
    mass = jnp.sum(shared)
    safe = jnp.where(mass > 0, mass, 1)
    angle = jnp.sum(shared * dv.bhattacharyya_angle(world.safety.P, world.capability.P)) / safe
    remaining = jnp.maximum(angle - hellinger_arc(tau / safe), 0)
    # -2 log cos, by the sine of the smaller of the angle and its complement: exact at 0 and infinite at a right angle.
    small = remaining < jnp.pi / 4
    near = -jnp.log1p(-(jnp.sin(jnp.where(small, remaining, 0)) ** 2))
    far = -2 * jnp.log(jnp.sin(jnp.pi / 2 - jnp.where(small, 0, remaining)))
    return jnp.where(mass > 0, safe * jnp.where(small, near, far), 0)
