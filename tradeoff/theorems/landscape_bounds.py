"""T12: what a ball around the aligned weights can cost and gain, by the slopes and curvatures of the two losses."""

import jax.numpy as jnp

from tradeoff.parameter_constraint import solve
from tradeoff.problems.quadratic import half_square, length
from tradeoff.problems.tabular import Tabular
from tradeoff.theorems import landscapes as land
from tradeoff.theorems import table_instances as tables
from tradeoff.theorems._expressions import over
from tradeoff.theorems._quadratics import LANDSCAPE, MILD, PAIRS, greatest, least
from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.landscapes import Landscape
from tradeoff.theorems.table_instances import Table
from tradeoff.worlds.world import DataLaw, World

TABLES = tables.tables()


# --- T12: Lipschitz and smooth landscapes -----------------------------------------------------------------------


@theorem(
    "T12a",
    title="Lipschitz landscape",
    statement=r"L_s\ \ell_s\text{-Lipschitz on the ball}\Longrightarrow G_s(\theta_\varepsilon)\le\ell_s\varepsilon;\quad "
    r"\text{tabular logits: }\ell_s=\sqrt2\|p_s\|_2",
    family=TABLES,
    assumptions=(tables.FULL_SAFETY, tables.IN_BALL),
    without={
        "full-support safety data": "the slope of L_s is bounded all the same; only the aligned logits are at infinity",
        "in the ball": lambda: _table([0.99, 0.01], [0.01, 0.99], length=9.0, radius=1.0),
    },
    tight=Tight(lambda: _table([1 - 1e-6, 1e-6], [0.01, 0.99], length=1e4), 0.99902209588),
    makes_precise=LANDSCAPE,
)
def safety_is_lost_no_faster_than_the_steepest_slope(instance: Table) -> Sides:
    """Within a radius ε of the aligned weights, at most the steepest slope of the safety loss times ε can be lost."""
    steepest = jnp.sqrt(2.0) * length(instance.world.safety.p)
    return instance.problem.gaps(instance.logits).safety, steepest * instance.radius


@theorem(
    "T12b",
    title="smooth landscape",
    statement=r"L_s\ \beta_s\text{-smooth on the ball}\Longrightarrow G_s(\theta_\varepsilon)\le\tfrac12\beta_s\varepsilon^2",
    family=PAIRS,
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.diag(jnp.array([2.0, 1.0])))),
    makes_precise=LANDSCAPE,
)
def safety_is_lost_at_most_quadratically(instance: Landscape) -> Sides:
    """Near weights that minimise the safety loss, what a ball can cost grows with the square of its radius."""
    at = solve(instance.quad, instance.radius)
    return at.gaps.safety, greatest(instance.quad.H_s) * instance.radius**2 / 2


@theorem(
    "T12c",
    title="what an active constraint costs at least",
    statement=r"G_s\ge\tfrac12\mu_s\|\theta-\theta_s\|^2\text{ and the constraint is active}\Longrightarrow "
    r"G_s(\theta_\varepsilon)\ge\tfrac12\mu_s\varepsilon^2",
    family=MILD,
    relation=">=",
    assumptions=(land.CONSTRAINT_BINDS,),
    without={"active constraint": lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.eye(2), radius=2.0)},
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.diag(jnp.array([1.0, 2.0])))),
    makes_precise=LANDSCAPE,
)
def an_active_ball_costs_at_least_its_square(instance: Landscape) -> Sides:
    """If the task uses up the radius and no direction is flat for safety, some safety is certainly lost."""
    at = solve(instance.quad, instance.radius)
    return at.gaps.safety, least(instance.quad.H_s) * instance.radius**2 / 2


@theorem(
    "T12d",
    title="what a ball lets one gain",
    statement=r"s\|g\|-\tfrac12\beta_fs^2\le\mathrm{gain}(\theta_\varepsilon)\le\varepsilon\|g\|,\qquad "
    r"s=\min(\varepsilon,\|g\|/\beta_f)\quad(L_f\text{ convex, }\beta_f\text{-smooth})",
    family=PAIRS,
    parts=("at least", "at most"),
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.eye(2))),
    makes_precise=LANDSCAPE,
)
def the_gain_is_of_the_order_of_radius_times_slope(instance: Landscape) -> Sides:
    """A small ball gains the slope of the task's loss times the radius, no more, and little less."""
    quad, radius = instance.quad, instance.radius
    at = solve(quad, radius)
    gain, slope, beta = quad.gain(at.displacement), length(quad.pull), greatest(quad.H_f)
    s = jnp.minimum(radius, slope / beta)
    return jnp.stack([s * slope - beta * s**2 / 2, gain]), jnp.stack([gain, radius * slope])


@theorem(
    "T12e",
    title="how fast capability comes",
    statement=r"L_f\text{ convex: }G_f(\theta_\varepsilon)\le(1-\varepsilon/R)_+G_f(\theta_s);\quad "
    r"L_f\text{ quadratic: }\le(1-\varepsilon/R)_+^2G_f(\theta_s),\qquad R=\|\theta_f-\theta_s\|>0",
    family=PAIRS,
    parts=("convex", "quadratic"),
    tight=Tight(lambda: land.pair(jnp.eye(2), [1.0, 0.0], jnp.eye(2))),
    makes_precise=LANDSCAPE,
)
def capability_comes_at_least_in_proportion(instance: Landscape) -> Sides:
    """A ball that reaches a fraction of the way to the capable weights closes at least that fraction of the gap."""
    quad = instance.quad
    at = solve(quad, instance.radius)
    # 1 - ε/R from the difference, so that the last of the way is not rounding.
    R = length(quad.displacement)
    left = jnp.maximum((R - instance.radius) / R, 0)
    whole = half_square(quad.H_f, quad.displacement)
    gap = at.gaps.capability
    # The unit is the whole gap: what remains of it past the end of the path is below rounding.
    return jnp.stack([gap, gap]) / whole, jnp.stack([left, left**2])


@theorem(
    "T12-table",
    title="constants of a table of logits",
    statement=r"\beta_s=\tfrac12\max p_s,\quad G_s(\theta_\varepsilon)\le\tfrac14\varepsilon^2\max\{p_s(x):p_f(x)>0\},\quad "
    r"s\|g\|-\tfrac14\max p_f\,s^2\le\mathrm{gain}(\theta_\varepsilon)\le\min\{\varepsilon\|g\|,\sqrt2\|p_f\|_2\varepsilon\}",
    family=TABLES,
    parts=("smooth", "in the task's contexts", "gain at least", "gain at most", "gain by slope"),
    assumptions=(tables.FULL_SAFETY, tables.IN_BALL),
    without={
        "full-support safety data": "the curvature of L_s is bounded all the same; only the aligned logits are at infinity",
        "in the ball": lambda: _table([0.5, 0.5], [0.01, 0.99], length=0.1, radius=0.01),
    },
    tight=Tight(lambda: _table([0.5, 0.5], [0.01, 0.99], length=1e-3)),
    makes_precise=LANDSCAPE,
)
def a_table_has_explicit_constants(instance: Table) -> Sides:
    """For free logits, steepness and curvature are known from the weights of the contexts alone."""
    world, radius = instance.world, instance.radius
    p_s, p_f = world.safety.p, world.capability.p
    aligned = instance.problem.aligned()
    # Gradient methods and active-constraint solutions move no logit outside the task's contexts.
    in_task = jnp.where(p_f[:, None] > 0, instance.step, 0)
    here, there = instance.problem.gaps(instance.logits), instance.problem.gaps(aligned + in_task)
    g = tables.pull(world)
    slope, beta = length(g), jnp.max(p_f) / 2
    s = jnp.minimum(radius, slope / beta)
    start = instance.problem.gaps(aligned).capability
    gain = start - here.capability
    downhill = start - instance.problem.gaps(aligned + s * over(g, jnp.full_like(g, slope))).capability
    most_shared = jnp.max(jnp.where(p_f > 0, p_s, 0))
    return (
        jnp.stack([here.safety, there.safety, s * slope - beta * s**2 / 2, gain, gain]),
        jnp.stack([
            jnp.max(p_s) * radius**2 / 4,
            most_shared * radius**2 / 4,
            downhill,
            radius * slope,
            jnp.sqrt(2.0) * length(p_f) * radius,
        ]),
    )  # fmt: skip


# --- what only these theorems need ------------------------------------------------------------------------------


def _table(P_s: list[float], P_f: list[float], length: float, radius: float | None = None) -> Table:
    """One context; the logits move by `length` from the first response to the second."""
    world = World(DataLaw([1.0], [P_s]), DataLaw([1.0], [P_f]))
    step = length / 2**0.5 * jnp.array([[-1.0, 1.0]])
    at = Tabular(world).aligned() + step
    return Table(world, jnp.float64(length if radius is None else radius), jnp.float64(1.0), at)
