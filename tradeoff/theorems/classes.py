"""T9: any model class, any losses.

Nothing here knows what a model is: a class is a list of members with two losses each, and a member of the class is chosen
whose penalised loss is within η of the least.
"""

import jax
import jax.numpy as jnp
import numpy as np

from tradeoff.theorems.claim import Sides, Tight, theorem
from tradeoff.theorems.class_instances import (
    BOTH_GOOD,
    CLASSES,
    EXACT_MINIMISERS,
    GOOD_CLASSES,
    NEARLY_BEST,
    POLICY_CLASSES,
    PROBABILITY_LAWS,
    SWEEPS,
    Losses,
    PolicyClass,
    Sweep,
    above_least,
    cross_entropies,
    joint_law,
    mean_of,
)
from tradeoff.theorems.similarity import SIMILARITY
from tradeoff.worlds.world import DataLaw, World

LAMBDA_UP = "raising λ lowers the safety gap and raises the capability gap"
CASE_ONE = "Case I: a penalty on the proxy loss controls the safety gap, at a price in capability"


# --- T9: any model class, any losses ----------------------------------------------------------------------------


@theorem(
    "T9a",
    title="a penalty bounds both gaps in any class",
    statement=r"\theta_\lambda\in\eta\text{-}\mathrm{argmin}\,L_f+\lambda\hat L_s:\quad "
    r"\hat G_s(\theta_\lambda)\le\tfrac{L_f(\hat\theta_s)-L_f(\theta_\lambda)+\eta}\lambda\le\tfrac{G_f(\hat\theta_s)+\eta}\lambda,\quad "
    r"G_f(\theta_\lambda)\le\lambda[\hat L_s(\theta_f)-\hat L_s(\theta_\lambda)]+\eta\le\lambda\hat G_s(\theta_f)+\eta",
    family=CLASSES,
    parts=("proxy gap by price", "proxy gap by rate", "G_f by price", "G_f by rate"),
    assumptions=(NEARLY_BEST,),
    without={"η-minimiser": lambda: _two_members(lam=10.0, second=False)},
    tight=Tight(lambda: _two_members(lam=1.0, second=True)),
    makes_precise=CASE_ONE,
)
def a_penalty_bounds_both_gaps(instance: Losses) -> Sides:
    """Whatever the models are, safety as the proxy sees it is lost at most as 1/λ, and capability at most as λ.

    The first two pairs are multiplied by λ/(1+λ) and the others by 1/(1+λ), so that no penalty magnifies rounding, and a
    price that is negative is added on the left.
    """
    (of_f, of_s), (G_f, G_s) = instance.shares, instance.gaps
    eta = of_f * instance.eta
    # θ̂_s and θ_f are the best of their kind: of several with the least proxy loss, the one with the least L_f.
    at_proxy = jnp.min(instance.capability, where=G_s == 0, initial=jnp.inf)
    at_task = jnp.min(instance.safety, where=G_f == 0, initial=jnp.inf)
    price_s = of_f * (at_proxy - instance.at_chosen(instance.capability))
    price_f = of_s * (at_task - instance.at_chosen(instance.safety))
    lost_s, lost_f = of_s * instance.at_chosen(G_s), of_f * instance.at_chosen(G_f)
    by_rate = of_f * (at_proxy - jnp.min(instance.capability)), of_s * (at_task - jnp.min(instance.safety))
    return (
        jnp.stack([lost_s + jnp.maximum(-price_s, 0), lost_s, lost_f + jnp.maximum(-price_f, 0), lost_f]),
        jnp.stack([jnp.maximum(price_s, 0), by_rate[0], jnp.maximum(price_f, 0), by_rate[1]]) + eta,
    )


@theorem(
    "T9b",
    title="no member of the class is much better",
    statement=r"G_f(\theta_\lambda)+\lambda\hat G_s(\theta_\lambda)\le G_f(\theta^\circ)+\lambda\hat G_s(\theta^\circ)+\eta"
    r"\quad\text{for every }\theta^\circ\in\Theta",
    family=CLASSES,
    assumptions=(NEARLY_BEST,),
    without={"η-minimiser": lambda: _two_members(lam=10.0, second=False)},
    tight=Tight(lambda: _two_members(lam=1.0, second=True)),
    makes_precise=CASE_ONE,
)
def any_member_is_a_bound(instance: Losses) -> Sides:
    """Any model that one can think of in the class bounds what the minimiser pays in all.

    Both sides are over 1+λ, and the right side is its least value over the class.
    """
    (of_f, of_s), (G_f, G_s) = instance.shares, instance.gaps
    paid = of_f * G_f + of_s * G_s
    return instance.at_chosen(paid), jnp.min(paid) + of_f * instance.eta


@theorem(
    "T9b-both",
    title="a both-good member removes the trade-off",
    statement=r"G_f(\theta^\circ)=\hat G_s(\theta^\circ)=0\text{ for some }\theta^\circ\in\Theta\ \Longrightarrow\ "
    r"G_f(\theta_\lambda)\le\eta,\quad\hat G_s(\theta_\lambda)\le\eta/\lambda",
    family=GOOD_CLASSES,
    parts=("capability", "proxy safety"),
    assumptions=(NEARLY_BEST, BOTH_GOOD),
    without={
        "η-minimiser": lambda: _with_a_good_one(chosen=1),
        "both-good member": lambda: _two_members(lam=1.0, second=False),
    },
    tight=Tight(lambda: _with_a_good_one(chosen=1, eta=1.0)),
    makes_precise="the trade-off is worst when contexts overlap and target outputs differ",
)
def capacity_without_conflict_costs_nothing(instance: Losses) -> Sides:
    """If one model of the class is best at both, training ends within η of it in either loss.

    The sides are multiplied by 1/(1+λ) and λ/(1+λ).
    """
    (of_f, of_s), (G_f, G_s) = instance.shares, instance.gaps
    eta = of_f * instance.eta
    return jnp.stack([of_f * instance.at_chosen(G_f), of_s * instance.at_chosen(G_s)]), jnp.stack([eta, eta])


@theorem(
    "T9c",
    title="monotone in the penalty, in any class",
    statement=r"\lambda<\lambda':\ \hat G_s(\theta_{\lambda'})\le\hat G_s(\theta_\lambda),\ G_f(\theta_{\lambda'})\ge G_f(\theta_\lambda),\ "
    r"\lambda\le\frac{G_f(\theta_{\lambda'})-G_f(\theta_\lambda)}{\hat G_s(\theta_\lambda)-\hat G_s(\theta_{\lambda'})}\le\lambda';\quad "
    r"L_f(\theta_\lambda)=\min\{L_f:\hat L_s\le\hat L_s(\theta_\lambda)\}",
    family=SWEEPS,
    parts=("proxy gap falls", "G_f rises", "a nat costs at least λ", "a nat costs at most λ'", "Everett"),
    relation=("==", "==", "<=", "<=", "=="),
    assumptions=(EXACT_MINIMISERS,),
    without={"exact minimisers": lambda: _sweep(capability=[0.0, 1.0], safety=[1.0, 1.0], eta=2.0)},
    tight=Tight(lambda: _sweep(capability=[0.0, 1.0], safety=[1.0, 0.0], eta=0.0)),
    makes_precise=LAMBDA_UP,
)
def any_class_is_monotone_in_the_penalty(instance: Sweep) -> Sides:
    """In any class, convex or not, a higher penalty gives a lower proxy gap for a higher capability gap.

    Every minimiser solves the constrained problem at its own proxy loss, so a sweep finds members of the frontier, though
    not all: only those that a line supports. Sums over a whole sweep are compared: the length of the way that a gap goes
    with the distance from end to end, and the capability paid with what each step saved, at its lower and higher penalty.
    Where a penalty has several minimisers their mean stands for them.
    """
    f, s, lams = instance.capability, instance.safety, instance.lams
    excess = jax.vmap(lambda lam: above_least(f, s, lam))(lams)
    near = excess <= (instance.eta / (1 + lams))[:, None] + jnp.min(excess, axis=-1, keepdims=True)
    as_safe = s[None, :] <= s[:, None]
    constrained = jnp.min(jnp.broadcast_to(f[None, :], as_safe.shape), axis=-1, where=as_safe, initial=jnp.inf)
    G_f, G_s, F = (
        mean_of(jnp.broadcast_to(gap[None, :], near.shape), near)
        for gap in (f - jnp.min(f), s - jnp.min(s), constrained - jnp.min(f))
    )
    paid, saved = G_f[1:] - G_f[:-1], G_s[:-1] - G_s[1:]
    ways = [jnp.sum(jnp.abs(saved)), jnp.sum(jnp.abs(paid))]
    lower, higher = jnp.sum(lams[:-1] * saved), jnp.sum(lams[1:] * saved)
    return (
        jnp.stack([*ways, lower, jnp.sum(paid), jnp.sum(G_f)]),
        jnp.stack([jnp.sum(saved), jnp.sum(paid), jnp.sum(paid), higher, jnp.sum(F)]),
    )


@theorem(
    "T9d",
    title="from the proxy to the original safety data",
    statement=r"G_s(\theta)\le\hat G_s(\theta)+\mathrm{osc}\big(\log\tfrac{P_{\theta_s}}{P_\theta}\big)\mathrm{TV}(D_s,\hat D_s),\ "
    r"\mathrm{osc}\le2B;\qquad G_s(\theta_\lambda)\le\frac{G_f(\hat\theta_s)+\eta}\lambda+2B\,\mathrm{TV}(D_s,\hat D_s)\quad"
    r"\text{if }0\le-\log P_\theta\le B",
    family=POLICY_CLASSES,
    parts=("any member", "oscillation", "the minimiser"),
    assumptions=(NEARLY_BEST, PROBABILITY_LAWS),
    without={
        "η-minimiser": lambda: _bad_member(),
        "probability laws": lambda: _half_the_mass(),
    },
    tight=Tight(lambda: _as_good_to_the_proxy()),
    makes_precise=SIMILARITY,
)
def a_near_proxy_transfers_to_the_original(instance: PolicyClass) -> Sides:
    """In any class, what the proxy sees is wrong about safety by at most its distance from the original data.

    The last pair is multiplied by λ/(1+λ). B and the oscillation are taken where safety data or proxy have mass.
    """
    world, losses = instance.world, instance.losses
    (of_f, of_s), (G_f, proxy_gap) = losses.shares, losses.gaps
    joint = joint_law(world.safety)
    support = (joint > 0) | (joint_law(world.training_safety) > 0)
    safety = cross_entropies(world.safety, instance.log_policies)
    best, here = (
        mean_of(jnp.moveaxis(instance.log_policies, 0, -1), mask) for mask in (safety == jnp.min(safety), losses.chosen)
    )
    ratio = best - here
    oscillation = jnp.max(ratio, where=support, initial=-jnp.inf) - jnp.min(ratio, where=support, initial=jnp.inf)
    bound = jnp.max(-instance.log_policies, where=support[None], initial=0)
    apart = jnp.sum(jnp.abs(joint - joint_law(world.training_safety))) / 2
    G_s = jnp.sum(joint * jnp.where(support, ratio, 0))
    at_proxy = jnp.min(G_f, where=proxy_gap == 0, initial=jnp.inf)
    return (
        jnp.stack([G_s, oscillation, of_s * G_s]),
        jnp.stack([
            losses.at_chosen(proxy_gap) + oscillation * apart,
            2 * bound,
            of_f * (at_proxy + losses.eta) + of_s * 2 * bound * apart,
        ]),
    )  # fmt: skip


# --- what only these theorems need ------------------------------------------------------------------------------


def _losses(capability: list[float], safety: list[float], lam: float, eta: float, chosen: int) -> Losses:
    losses = jnp.asarray(capability), jnp.asarray(safety)
    return Losses(*losses, jnp.float64(lam), jnp.float64(eta), jnp.arange(len(capability)) == chosen)


def _two_members(lam: float, second: bool) -> Losses:
    """One member is good at the task, the other as good in the eyes of the proxy; at λ = 1 they draw."""
    return _losses([0.0, 1.0], [1.0, 0.0], lam, eta=0.0, chosen=int(second))


def _with_a_good_one(chosen: int, eta: float = 0.0) -> Losses:
    """The first member is best at both; the second loses one nat of capability."""
    return _losses([0.0, 1.0], [0.0, 0.0], lam=1.0, eta=eta, chosen=chosen)


def _sweep(capability: list[float], safety: list[float], eta: float) -> Sweep:
    """Two members at λ = 1 and 2."""
    return Sweep(jnp.asarray(capability), jnp.asarray(safety), jnp.array([1.0, 2.0]), jnp.float64(eta))


def _members(world: World, log_policies: list[list[float]], eta: float, chosen: int) -> PolicyClass:
    """Policies for one context, of which one is chosen at λ = 1."""
    members = jnp.asarray(log_policies)[:, None, :]
    capability, safety = (cross_entropies(law, members) for law in (world.capability, world.training_safety))
    which = jnp.arange(len(log_policies)) == chosen
    return PolicyClass(world, members, Losses(capability, safety, jnp.ones(()), jnp.float64(eta), which))


def _bad_member() -> PolicyClass:
    """Task, safety data and proxy want one and the same, and the worse of two members is chosen."""
    law = DataLaw([1.0], [[1.0, 0.0]])
    return _members(World(law, law), np.log([[0.9, 0.1], [0.5, 0.5]]).tolist(), eta=0.0, chosen=1)


def _half_the_mass() -> PolicyClass:
    """The proxy is the safety data with half of their mass."""
    law = DataLaw([1.0], [[1.0, 0.0]])
    half = jax.tree.map(lambda leaf: 0.5 * leaf if leaf.ndim == 1 else leaf, law)
    return _members(World(law, law, half), np.log([[0.9, 0.1], [0.5, 0.5]]).tolist(), eta=9.0, chosen=1)


def _as_good_to_the_proxy() -> PolicyClass:
    """Two opposite members between which proxy and task cannot tell, and safety data can: it costs 2B TV, all of it."""
    even = DataLaw([1.0], [[0.5, 0.5]])
    return _members(World(DataLaw([1.0], [[1.0, 0.0]]), even, even), [[0.0, -40.0], [-40.0, 0.0]], eta=0.0, chosen=1)
