"""T13: the square-root law: the roots of the two gaps cannot both be small, for quadratics and for a table of logits."""

import jax.numpy as jnp

from tradeoff.divergences import root
from tradeoff.parameter_constraint import penalised_path, solve
from tradeoff.problems.quadratic import half_square, length
from tradeoff.theorems import landscapes as land
from tradeoff.theorems import table_instances as tables
from tradeoff.theorems._quadratics import DEFINITE, greatest, least
from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.landscapes import Landscape
from tradeoff.theorems.table_instances import Table

TABLES = tables.tables()
LIMITS = "fundamental limits of the safety-capability trade-off"


# --- T13: the square-root law -----------------------------------------------------------------------------------


@theorem(
    "T13",
    title="square-root trade-off law",
    statement=r"\sqrt{G_f(\theta)}+\sqrt{\beta_f/\mu_s}\sqrt{G_s(\theta)}\ge\sqrt{G_f(\theta_s)},\quad "
    r"\sqrt{G_f(\theta)}\ge\sqrt{G_f(\theta_s)}-\sqrt{\beta_f/2}\,\|\theta-\theta_s\|,\quad "
    r"\sqrt{G_s(\theta)}+\sqrt{\beta_s/\mu_f}\sqrt{G_f(\theta)}\ge\sqrt{G_s(\theta_f)}",
    family=DEFINITE,
    parts=("any parameters", "by distance", "symmetric", "Case I", "Case II"),
    relation=">=",
    assumptions=(land.SAFETY_CURVED, land.TASK_CURVED),
    without={
        "curved safety loss": "with μ_s = 0 the bound is infinite times zero: what is flat for safety is free (T15(c))",
        "curved task loss": "only the symmetric form needs it, which is empty at μ_f = 0",
    },
    tight=Tight(lambda: land.pair(2 * jnp.eye(2), [1.0, -1.0], 3 * jnp.eye(2), theta=[0.3, -0.3])),
    makes_precise=LIMITS,
)
def both_gaps_cannot_be_small(instance: Landscape) -> Sides:
    """However one trains, the roots of the two gaps add up to at least a fixed amount: the way between the two optima."""
    quad = instance.quad
    case_one = penalised_path(quad, instance.lam).gaps
    case_two = solve(quad, instance.radius).gaps
    at = quad.gaps(instance.theta)
    exchange = jnp.sqrt(greatest(quad.H_f) / least(quad.H_s))
    mirror = jnp.sqrt(greatest(quad.H_s) / least(quad.H_f))
    start, end = (root(half_square(H, quad.displacement)) for H in (quad.H_f, quad.H_s))
    moved = jnp.sqrt(greatest(quad.H_f) / 2) * length(instance.theta - quad.theta_s)
    roots = [root(g.capability) + exchange * root(g.safety) for g in (at, case_one, case_two)]
    return (
        jnp.stack([
            roots[0],
            root(at.capability) + moved,
            root(at.safety) + mirror * root(at.capability),
            roots[1],
            roots[2],
        ]),
        jnp.stack([start, start, end, start, start]),
    )  # fmt: skip


@theorem(
    "T13-table",
    title="square-root law for a table of logits",
    statement=r"\sqrt{G_f(\theta)}\ge\sqrt{G_f(\theta_s)}-\sqrt{\beta_f/2}\,\|\theta-\theta_s\|,\qquad\beta_f=\tfrac12\max p_f",
    family=TABLES,
    relation=">=",
    assumptions=(tables.FULL_SAFETY,),
    without={"full-support safety data": "a policy that rules out a response has no finite logits to start from"},
    makes_precise=LIMITS,
)
def capability_needs_distance(instance: Table) -> Sides:
    """The root of the capability gap falls no faster than the weights move."""
    start = instance.problem.gaps(instance.problem.aligned()).capability
    moved = jnp.sqrt(jnp.max(instance.world.capability.p) / 4) * length(instance.step)
    return root(instance.problem.gaps(instance.logits).capability) + moved, root(start)
