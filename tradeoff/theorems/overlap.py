"""T5: context overlap. Without it there is no trade-off, and with more of it there is more to lose."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff import divergences as dv
from tradeoff import gaps, loss_constraint
from tradeoff.theorems import instances as draw
from tradeoff.theorems._expressions import over
from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.instances import AtPenalty, Overlapping
from tradeoff.tolerances import IDENTITY
from tradeoff.worlds import generate
from tradeoff.worlds.world import DataLaw, World

PEACEFUL = draw.at_penalty(conflict=False)
WORLDS = draw.at_penalty()
GROWING = draw.overlapping()
ONE_CONFLICT = draw.around(lambda: generate.one_conflict(0.4), lam=0.3, within=0.05)

OVERLAP = "more context overlap between alignment and capability data means a worse trade-off"


@theorem(
    "T5a",
    title="no overlap, no trade-off",
    statement=r"O=\emptyset\ \text{or}\ \delta=0\text{ on }O\ \Longrightarrow\ G_s(\lambda)=G_f(\lambda)=0\ \text{ for every }"
    r"\lambda\in(0,\infty)",
    family=PEACEFUL,
    parts=("G_s", "G_f"),
    relation="==",
    assumptions=(draw.NO_CONFLICT, draw.EXACT_PROXY),
    without={
        "no conflict": lambda: AtPenalty(generate.golden(), jnp.float64(1.0)),
        "exact proxy": lambda: AtPenalty(_mistaken_proxy(), jnp.float64(1.0)),
    },
    makes_precise=OVERLAP,
)
def without_conflict_both_gaps_close(instance: AtPenalty) -> Sides:
    """If no prompt is shared, or shared prompts want the same answers, safety and capability cost nothing, at any penalty."""
    at = loss_constraint.gaps(instance.world, instance.lam)
    return jnp.stack([at.safety, at.capability]), jnp.zeros(2)


@theorem(
    "T5b",
    title="overlap harms monotonically",
    statement=r"p_f=(1-\rho)u+\rho v,\ \mathrm{supp}\,u\cap\mathrm{supp}\,p_s=\emptyset\ \Longrightarrow\ "
    r"G_s(\lambda)\text{ and }V(\lambda)\text{ are non-decreasing in }\rho",
    family=GROWING,
    parts=("G_s", "V"),
    assumptions=(draw.OWN_APART,),
    without={"own contexts apart": lambda: _own_context_conflicts()},
    tight=Tight(lambda: _same_overlap_twice()),
    makes_precise=OVERLAP,
)
def more_overlap_harms_more(instance: Overlapping) -> Sides:
    """The more of its weight the task moves onto the safety data's prompts, the more safety, and the more in all, is lost."""
    less, more = instance.world(instance.low), instance.world(instance.high)
    at_less, at_more = (loss_constraint.gaps(world, instance.lam) for world in (less, more))
    return (
        jnp.stack([at_less.safety, loss_constraint.value(less, instance.lam)]),
        jnp.stack([at_more.safety, loss_constraint.value(more, instance.lam)]),
    )


@theorem(
    "T5c",
    title="scaling law of overlap",
    statement=r"p_f=(1-\rho)u+\rho v:\qquad G_s(\lambda,\rho)=g_s(\lambda/\rho),\quad G_f(\lambda,\rho)=\rho\,g_f(\lambda/\rho),\quad "
    r"F_\rho(a)=\rho F_1(a)\quad(g,F_1:\ \rho=1)",
    family=GROWING,
    parts=("G_s", "G_f", "frontier touches", "frontier nowhere above"),
    relation=("==", "==", "==", "<="),
    assumptions=(draw.OWN_APART,),
    without={"own contexts apart": lambda: _own_is_safety()},
    makes_precise=OVERLAP,
    tolerance=IDENTITY,
)
def overlap_only_rescales_the_frontier(instance: Overlapping) -> Sides:
    """An overlap of ρ is full overlap with the penalty divided and the capability axis multiplied by ρ.

    Whatever the contexts that come in: v = p_s, the framework's case, is not needed.
    """
    rho, lam = instance.low, instance.lam
    partial, full = instance.world(rho), instance.world(jnp.ones_like(rho))
    at, scaled = loss_constraint.gaps(partial, lam), loss_constraint.gaps(full, lam / rho)
    # F_ρ is the supremum of its tangents V_ρ(μ) - μ a: the one at λ reaches ρ F_1(a), no other passes it.
    elsewhere = lam * instance.high / rho
    other = loss_constraint.gaps(partial, elsewhere)
    tangent = at.capability + lam * (at.safety - scaled.safety)
    other_tangent = other.capability + elsewhere * (other.safety - scaled.safety)
    right = rho * scaled.capability
    return (
        jnp.stack([at.safety, at.capability, tangent, other_tangent]),
        jnp.stack([scaled.safety, right, right, right]),
    )


@theorem(
    "T5d",
    title="sandwich between scaled frontiers",
    statement=r"r=p_f/p_s\text{ on }O:\qquad r_{\min}F_1^O(a)\ \le\ F(a)\ \le\ r_{\max}F_1^O(a)",
    family=WORLDS,
    parts=("from below", "from above"),
    assumptions=(draw.SHARED_CONTEXT, draw.EXACT_PROXY),
    without={
        "shared context": "without one F = 0 and so is the frontier of an empty measure; r has no values",
        "exact proxy": lambda: AtPenalty(generate.over_penalised(), jnp.float64(100.0)),
    },
    tight=Tight(lambda: AtPenalty(generate.one_conflict(0.5), jnp.float64(1.0))),
    makes_precise=OVERLAP,
)
def frontier_lies_between_scaled_ones(instance: AtPenalty) -> Sides:
    """Up to the least and greatest ratio of task weight to safety weight, only the shared safety prompts matter."""
    world = instance.world
    at = loss_constraint.gaps(world, instance.lam)
    full = _frontier_of_the_restriction(world, at.safety)
    ratio = over(world.capability.p, world.safety.p)
    least = jnp.min(ratio, where=world.shared, initial=jnp.inf)
    greatest = jnp.max(ratio, where=world.shared, initial=0)
    return jnp.stack([least * full, at.capability]), jnp.stack([at.capability, greatest * full])


@theorem(
    "T5e",
    title="the capability gap need not grow with overlap",
    statement=r"P_s\approx(.8,.2),\ P_f\approx(.2,.8),\ \lambda\approx.3:\quad G_f(\rho{=}.05)\le G_f(\rho{=}.4)\ge G_f(\rho{=}1),\quad "
    r" G_s(.05)\le G_s(.4)\le G_s(1)",
    family=ONE_CONFLICT,
    parts=("G_f rises at first", "G_f falls at last", "G_s rises", "G_s rises on"),
    assumptions=(draw.EXACT_PROXY,),
    without={"exact proxy": "an existence claim: one family of worlds is enough, and in it the proxy is exact"},
)
def at_a_fixed_penalty_the_capability_gap_turns(instance: AtPenalty) -> Sides:
    """A caution: at a fixed penalty more overlap can lower the capability gap, because it moves along the frontier."""
    few, some, all_ = (loss_constraint.gaps(_at_overlap(instance.world, rho), instance.lam) for rho in (0.05, 0.4, 1.0))
    return (
        jnp.stack([few.capability, all_.capability, few.safety, some.safety]),
        jnp.stack([some.capability, some.capability, some.safety, all_.safety]),
    )


# --- what only these theorems need ------------------------------------------------------------------------------


def _at_overlap(world: World, rho: float) -> World:
    """The world with the task's weight on the safety data's contexts set to ρ."""
    shared, p_f = world.safety.p > 0, world.capability.p
    inside, outside = (jnp.where(where, p_f, 0) for where in (shared, ~shared))
    moved = rho * inside / jnp.sum(inside) + (1 - rho) * outside / jnp.sum(outside)
    return World(world.safety, DataLaw(moved, world.capability.P))


def _frontier_of_the_restriction(world: World, safety_gap: Array) -> Array:
    """$F_1^O(a)$, the frontier of the measure $p_s|_O$ against itself; its mixtures have one weight in all contexts."""
    p_s, P_s, P_f = jnp.where(world.shared, world.safety.p, 0), world.safety.P, world.capability.P

    def both(log_mu: Array) -> tuple[Array, Array]:
        task, safety = jax.nn.sigmoid(-log_mu), jax.nn.sigmoid(log_mu)
        mixture = task * P_f + safety * P_s
        to_safety = dv.kl_terms(P_s, mixture, task * (P_f - P_s))
        to_task = dv.kl_terms(P_f, mixture, safety * (P_s - P_f))
        return gaps.weighted(p_s, jnp.sum(to_safety, axis=-1)), gaps.weighted(p_s, jnp.sum(to_task, axis=-1))

    log_mu = loss_constraint.bisect(lambda s: both(s)[0] - safety_gap)
    # The tangent at the root: an error of the root enters only squared.
    reached, cost = both(log_mu)
    return cost + jnp.exp(log_mu) * (reached - safety_gap)


def _mistaken_proxy() -> World:
    """Task and safety data agree, and the proxy does not."""
    law = DataLaw([1.0], [[0.5, 0.5]])
    return World(law, law, DataLaw([1.0], [[0.9, 0.1]]))


def _two_contexts(own: list[float], common: list[float], p_s: list[float], low: float, high: float) -> Overlapping:
    """Conflict in the first of two contexts, agreement in the second."""
    safety, answers = DataLaw(p_s, [[0.8, 0.2], [0.5, 0.5]]), jnp.array([[0.2, 0.8], [0.5, 0.5]])
    numbers = (jnp.float64(number) for number in (1.0, low, high))
    return Overlapping(safety, jnp.array(own), jnp.array(common), answers, *numbers)


def _own_context_conflicts() -> Overlapping:
    return _two_contexts([1.0, 0.0], [0.0, 1.0], [0.5, 0.5], 0.1, 0.9)


def _same_overlap_twice() -> Overlapping:
    return _two_contexts([0.0, 1.0], [1.0, 0.0], [1.0, 0.0], 0.5, 0.5)


def _own_is_safety() -> Overlapping:
    return _two_contexts([1.0, 0.0], [1.0, 0.0], [1.0, 0.0], 0.1, 0.9)
