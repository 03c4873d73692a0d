"""Wrong theorems, each one slip of the pen away from a registered one. An engine that passes one of them proves nothing."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from tradeoff import divergences as dv
from tradeoff import frontier, gaps, loss_constraint, theorems
from tradeoff.theorems import Theorem
from tradeoff.theorems._expressions import log_share, over, pooled_entropy
from tradeoff.theorems.claim import Sides

MUTANTS: dict[str, Callable[[], Theorem]] = {}
"""Makers by what is wrong (functions, so that pytest collects no false theorem)."""


def slip(name: str, what: str, **changes):
    """Register a mutant of a theorem: one inequality written out with a mistake in it."""

    def make(sides: Callable[..., Sides]) -> Callable[..., Sides]:
        MUTANTS[f"{name}: {what}"] = lambda: wrong(name, what, sides, **changes)
        return sides

    return make


def wrong(name, what, sides, relation="<=", **changes) -> Theorem:
    """A registered theorem with other sides."""
    base = theorems.get(name)
    return dataclasses.replace(
        base,
        name=f"{name}-wrong",
        title=what,
        sides=sides,
        relation=relation,
        parts=(),
        without={},
        tight=None,
        **changes,
    )


def scaled(name, part, left=1.0, right=1.0, relation=None) -> None:
    """Register a mutant that multiplies the sides of one part by constants."""
    what = f"{part or 'constant'}, {left:g} x left, {right:g} x right" if relation is None else f"{part}, {relation}"

    def make() -> Theorem:
        base = theorems.get(name)
        at = base.parts.index(part) if part else 0

        def sides(instance) -> Sides:
            both = (jnp.atleast_1d(side)[at] for side in base.sides(instance))
            return tuple(constant * side for constant, side in zip((left, right), both, strict=True))

        return wrong(name, what, sides, relation or base.relations[at])

    MUTANTS[f"{name}: {what}"] = make


# --- constants a little off, signs and relations flipped --------------------------------------------------------

scaled("T1", "least value", right=-1)
scaled("T1", "no policy is better", relation=">=")
scaled("T2c", "dG_f = -λ dG_s", right=-1)
scaled("T3", "Pinsker below", left=1.1)
scaled("T3", "conflict above", right=0.9)
scaled("T3", "Bhattacharyya overlap", right=0.9)
scaled("T4a", "G_s by context", right=0.9)
scaled("T4a", "G_f rate", right=0.5)
scaled("T4b", "G_s by rate", right=0.9)
scaled("T5b", "G_s", relation=">=")
scaled("T6d", "", right=1.1)
scaled("T6e", "from above", right=0.5)
scaled("T6f", "by similarity", right=0.9)
scaled("T6g", "rising", left=-1)
scaled("T7", "as safe", right=0.99)
scaled("T8a", "q = min", right=1.05)
scaled("T8b", "", right=1.1)
scaled("T8d", "any policy", relation=">=")

scaled("T9a", "proxy gap by rate", right=0.9)
scaled("T9d", "oscillation", right=0.5)
scaled("T10", "by counts", right=0.9)
scaled("T11a", "chain rule", right=1.01)
scaled("T11a", "by whole answers", right=0.5)
scaled("T11b", "one token", relation=">=", left=0.99)
scaled("T12b", "", right=0.5)
scaled("T12c", "", right=2)
scaled("T12d", "at most", right=0.9)
scaled("T12e", "quadratic", right=0.9)
scaled("T13", "any parameters", right=1.1)
scaled("T13", "Case I", relation="<=")
scaled("T14a", "convex", relation="<=")
scaled("T14a-slope", "", right=-1)
scaled("T14b", "falls", relation=">=")
scaled("T14e", "", relation=">=")
scaled("T15", "price", right=2)
scaled("T15-bracket", "Kantorovich", right=0.5)
scaled("T16b", "not much further", right=0.9)
scaled("T16c", "distance", right=0.7)
scaled("T16d", "flow", right=0.7)
scaled("T16e-quartic", "", right=3)
scaled("T17", "by overlap", right=0.5)
scaled("T17", "by range", right=0.1)
scaled("T18a", "any logits in the ball", relation="<=")
scaled("T18b", "safer than the limit", right=0.5)
scaled("T19a", "Frobenius", relation=">=")
scaled("T19b", "irreducible", right=1.1)


# --- divergences the wrong way round, weights dropped or exchanged, powers, λ upside down -----------------------


@slip("T2a", "swapped divergence", relation="==")
def _(i):
    mixture = jnp.exp(loss_constraint.optimal_policy(i.world, i.lam))
    return loss_constraint.gaps(i.world, i.lam).safety, gaps.weighted(
        i.world.safety.p, dv.kl(mixture, i.world.safety.P)
    )


@slip("T2b", "dropped weight", relation="==")
def _(i):
    mixture = jnp.exp(loss_constraint.optimal_policy(i.world, i.lam))
    surplus = jnp.sum(dv.kl_log(mixture, i.log_policy))
    return gaps.weighted_sum(i.world, i.log_policy, i.lam), loss_constraint.value(i.world, i.lam) + surplus


@slip("T2d", "one power less", relation="==")
def _(i):
    left, right = theorems.get("T2d").sides(i)
    return left, right * jnp.max(loss_constraint.mixture_weights(i.world, i.lam)[0])


@slip("T3", "dropped conflict", relation="<=")
def _(i):
    return jnp.sum(pooled_entropy(i.world.capability.p, i.lam * i.world.safety.p)), loss_constraint.value(
        i.world, i.lam
    )


@slip("T4a", "λ upside down")
def _(i):
    return loss_constraint.gaps(i.world, i.lam).safety, i.lam * i.world.conflict_capability


@slip("T4a", "exchanged overlaps")
def _(i):
    bound = log_share(i.world.conflict_capability, i.world.conflict_safety / i.lam)
    return loss_constraint.gaps(i.world, i.lam).safety, bound


@slip("T4b", "swapped divergence")
def _(i):
    task, _ = loss_constraint.mixture_weights(i.world, i.lam)
    weights = jnp.where(i.world.shared, i.world.safety.p * task, 0)
    bound = gaps.weighted(weights, dv.kl(i.world.capability.P, i.world.safety.P))
    return loss_constraint.gaps(i.world, i.lam).safety, bound


@slip("T4c", "dropped square", relation=">=")
def _(i):
    task, _ = loss_constraint.mixture_weights(i.world, i.lam)
    floor = gaps.weighted(i.world.safety.p, -jnp.log1p(-task * i.world.conflict))
    return loss_constraint.gaps(i.world, i.lam).safety, floor


@slip("T4c", "sum in the place of max", relation=">=")
def _(i):
    task, _ = loss_constraint.mixture_weights(i.world, i.lam)
    squared = (task * i.world.conflict) ** 2
    floor = gaps.weighted(i.world.safety.p, 2 * squared - jnp.log1p(-squared))
    return loss_constraint.gaps(i.world, i.lam).safety, floor


@slip("T4d", "exchanged weights", relation="==")
def _(i):
    left, _ = theorems.get("T4d").sides(i)
    s, f = i.world.safety, i.world.capability
    return left[0], jnp.sum(over(s.p**2, f.p) * dv.chi_squared(f.P, s.P))


@slip("T5c", "capability not scaled", relation="==")
def _(i):
    scaled_ = loss_constraint.gaps(i.world(jnp.ones_like(i.low)), i.lam / i.low)
    return loss_constraint.gaps(i.world(i.low), i.lam).capability, scaled_.capability


@slip("T5c", "ρ upside down", relation="==")
def _(i):
    scaled_ = loss_constraint.gaps(i.world(jnp.ones_like(i.low)), i.lam * i.low)
    return loss_constraint.gaps(i.world(i.low), i.lam).safety, scaled_.safety


@slip("T5d", "exchanged min and max", relation="<=")
def _(i):
    ratio = over(i.world.capability.p, i.world.safety.p)
    least = jnp.min(ratio, where=i.world.shared, initial=jnp.inf)
    left, right = theorems.get("T5d").sides(i)
    greatest = jnp.max(ratio, where=i.world.shared, initial=0)
    return left[0] * greatest / least, right[0]


@slip("T6a", "dropped mismatch")
def _(i):
    ratio = over(i.world.capability.p, i.world.proxy.p)
    return loss_constraint.gaps(i.world, i.lam).safety, jnp.sum(i.world.safety.p * jnp.log1p(ratio / i.lam))


@slip("T6a", "dropped density ratio")
def _(i):
    return loss_constraint.gaps(i.world, i.lam).safety, i.world.proxy_mismatch + jnp.log1p(1 / i.lam)


@slip("T6b", "exchanged weights")
def _(i):
    task, proxy = loss_constraint.mixture_weights(i.world, i.lam)
    s = i.world.safety
    right = gaps.weighted(s.p * proxy, dv.kl(s.P, i.world.capability.P))
    return loss_constraint.gaps(i.world, i.lam).safety, right + gaps.weighted(s.p * task, dv.kl(s.P, i.world.proxy.P))


@slip("T6c", "the sign of Γ", relation="==")
def _(i):
    left, right = theorems.get("T6c").sides(i)
    return left[1], -right[1]


@slip("T6d", "dropped pull of the task", relation=">=")
def _(i):
    squared = dv.total_variation(i.world.safety.P, i.world.proxy.P) ** 2
    return loss_constraint.gaps(i.world, i.lam).safety, 2 * jnp.sum(i.world.safety.p * squared)


@slip("T6e", "max in the place of min")
def _(i):
    seen = i.world.proxy.P
    bound = 2 * dv.total_variation(i.world.safety.P, seen) ** 2 / jnp.max(seen, axis=-1)
    return i.world.proxy_mismatch, gaps.weighted(i.world.safety.p, jnp.log1p(bound))


@slip("T6f-same", "swapped divergence")
def _(i):
    left, _ = theorems.get("T6f-same").sides(i)
    return left[1], i.lam * gaps.weighted(i.world.safety.p, dv.kl(i.world.proxy.P, i.world.safety.P))


@slip("T6g", "the limit is the least")
def _(i):
    left, right = theorems.get("T6g").sides(i)
    return left[0], 0 * right[0]


@slip("T7-slope", "λ upside down", relation="==")
def _(i):
    left, right = theorems.get("T7-slope").sides(i)
    return left[0], over(jnp.where(right[0] > 0, 1.0, 0.0), i.lam)


@slip("T7-one-penalty", "twice the surplus", relation=">=")
def _(i):
    left, right = theorems.get("T7-one-penalty").sides(i)
    return left, right + 2.0 * (right - loss_constraint.value(i.world, i.lam))


@slip("T8a", "a quarter for a half", relation=">=")
def _(i):
    left = sum(
        frontier.hellinger_arc(jnp.max(over(i.q, law.p)) * gap(i.world, i.log_policy) / 2)
        for law, gap in ((i.world.safety, gaps.safety_gap), (i.world.capability, gaps.capability_gap))
    )
    return left, jnp.sum(i.q * dv.bhattacharyya_angle(i.world.safety.P, i.world.capability.P))


@slip("T8a", "dropped density ratios", relation=">=")
def _(i):
    G_s, G_f = gaps.safety_gap(i.world, i.log_policy), gaps.capability_gap(i.world, i.log_policy)
    left = frontier.hellinger_arc(G_s) + frontier.hellinger_arc(G_f)
    return left, jnp.sum(i.q * dv.bhattacharyya_angle(i.world.safety.P, i.world.capability.P))


@slip("T8c", "dropped overlap", relation=">=")
def _(i):
    G_s, G_f = gaps.safety_gap(i.world, i.log_policy), gaps.capability_gap(i.world, i.log_policy)
    return G_f, frontier.lower_limit(i.world, G_s) / i.world.overlap


@slip("T8e", "λ upside down", relation=">=")
def _(i):
    G_s, G_f = gaps.safety_gap(i.world, i.log_policy), gaps.capability_gap(i.world, i.log_policy)
    return G_f, loss_constraint.value(i.world, i.lam) - G_s / i.lam


@slip("T5a", "conflict allowed", relation="==", family=theorems.get("T4a").family, assumptions=())
def _(i):
    return loss_constraint.gaps(i.world, i.lam).safety, jnp.zeros_like(i.lam)
