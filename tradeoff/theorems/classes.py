"""T9 and T10: any model class, any losses, and a proxy of finitely many draws.

Nothing here knows what a model is: a class is a list of members with two losses each, and a member of the class is chosen
whose penalised loss is within η of the least.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.special import comb

from tradeoff import divergences as dv
from tradeoff import gaps, loss_constraint
from tradeoff.theorems import instances as draw
from tradeoff.theorems._expressions import log_share, silent
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.instances import CONTEXTS, RESPONSES, Draws
from tradeoff.tolerances import IDENTITY
from tradeoff.worlds.world import DataLaw, World

MEMBERS = 5
"""Members of a class: enough for a frontier with a corner that no penalty reaches."""
PENALTIES = 5
"""Penalties of a sweep."""
LISTED, MOST_DRAWS = 6, 10
"""Responses, of which some are listed, and the most draws from a context."""

LAMBDA_UP = "raising λ lowers the safety gap and raises the capability gap"
SIMILARITY = "the closer the proxy to the original safety data, the smaller the safety gap"
CASE_ONE = "Case I: a penalty on the proxy loss controls the safety gap, at a price in capability"


# --- instances --------------------------------------------------------------------------------------------------


class Losses(NamedTuple):
    r"""A class as its losses see it, a penalty, and a member chosen.

    Args:
        capability: $L_f$ of every member.
        safety: $\hat L_s$ of every member.
        lam: a penalty.
        eta: how far from the least the penalised loss of the chosen member may be, in its unit.
        chosen: which member it is.
    """

    capability: Float[Array, " N"]
    safety: Float[Array, " N"]
    lam: Float[Array, ""]
    eta: Float[Array, ""]
    chosen: Bool[Array, " N"]

    @property
    def losses(self) -> "Losses":
        """Itself: what `PolicyClass` has as a part."""
        return self

    @property
    def shares(self) -> tuple[Array, Array]:
        """1/(1+λ) and λ/(1+λ): in them no loss is multiplied by 1e6, so that no small one is rounded away."""
        return 1 / (1 + self.lam), self.lam / (1 + self.lam)

    @property
    def excess(self) -> Float[Array, " N"]:
        """Penalised loss of every member above the least, over 1+λ."""
        return _excess(self.capability, self.safety, self.lam)

    @property
    def gaps(self) -> tuple[Array, Array]:
        """Capability gap and proxy gap of every member, above the best of the class."""
        return self.capability - jnp.min(self.capability), self.safety - jnp.min(self.safety)

    def at_chosen(self, values: Array) -> Array:
        """The value at the chosen member."""
        return _mean(values, self.chosen)


class Sweep(NamedTuple):
    """A class as its losses see it, increasing penalties, and how far from the least a minimiser may be."""

    capability: Float[Array, " N"]
    safety: Float[Array, " N"]
    lams: Float[Array, " L"]
    eta: Float[Array, ""]


class PolicyClass(NamedTuple):
    """A world, the members of a class of policies, and one of them chosen at a penalty.

    Args:
        world: the world.
        log_policies: log-probabilities of every member, shape (N, X, Y).
        losses: their losses on the task and on the proxy, the penalty and the choice.
    """

    world: World
    log_policies: Float[Array, "N X Y"]
    losses: Losses


class Sampled(NamedTuple):
    """Safety data of which fine-tuning has some draws from every context.

    Args:
        world: safety data, and a task.
        listed: the responses that are counted; there are K of them.
        draws: n(x), how many draws there are from each context.
        lam: a penalty.
    """

    world: World
    listed: Bool[Array, " Y"]
    draws: Int[Array, " X"]
    lam: Float[Array, ""]


# --- assumptions ------------------------------------------------------------------------------------------------

NEARLY_BEST = Assumption(
    "η-minimiser",
    "the penalised loss of the chosen member is within η of the least",
    lambda i: _within(i.losses),
)
BOTH_GOOD = Assumption(
    "both-good member",
    "some member has the least capability loss and the least proxy loss",
    lambda i: jnp.any((i.capability == jnp.min(i.capability)) & (i.safety == jnp.min(i.safety))),
)
EXACT_MINIMISERS = Assumption("exact minimisers", "η = 0", lambda i: i.eta == 0)
PROBABILITY_LAWS = Assumption(
    "probability laws",
    "safety data and proxy have the same mass",
    lambda i: jnp.abs(jnp.sum(_joint(i.world.safety)) - jnp.sum(_joint(i.world.training_safety))) <= IDENTITY.relative,
)
ALL_LISTED = Assumption(
    "all listed",
    "the safety data say nothing that is not among the K responses that are counted",
    lambda i: jnp.all(i.listed[None, :] | (i.world.safety.P == 0) | (i.world.safety.p == 0)[:, None]),
)


def _within(losses: Losses) -> Array:
    return losses.at_chosen(losses.excess) <= losses.shares[0] * losses.eta + IDENTITY.absolute


# --- families ---------------------------------------------------------------------------------------------------


def policy_classes() -> Family:
    """Policies near the optimum at some penalty or far from any, and one of them chosen: the best, or any with its η."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key, 160)
        return _class_parameters(draws)

    return Family(sample, _policy_class)


def classes(both_good: bool = False) -> Family:
    """Losses of a class of policies, or any numbers at all, and a member chosen: the best, or any with its η.

    With `both_good` one member has the least of either loss.
    """

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key, 180)
        return _class_parameters(draws) | _number_parameters(draws) | {"abstract": draws.flip(0.6)}

    def build(p: dict[str, Any]) -> Losses:
        capability, safety = _numbers(p)
        of_policies = _policy_class(p).losses
        capability = jnp.where(p["abstract"], capability, of_policies.capability)
        safety = jnp.where(p["abstract"], safety, of_policies.safety)
        if both_good:
            first = jnp.arange(MEMBERS) == 0
            capability = jnp.where(first, jnp.min(capability), capability)
            safety = jnp.where(first, jnp.min(safety), safety)
        return _chosen(capability, safety, p)

    return Family(sample, build)


def sweeps() -> Family:
    """Any losses, some members equal in one of them, at penalties from close together to decades apart."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        apart = 10 ** draws.uniform(-2, 1)
        parameters = _number_parameters(draws) | {"log_lam": draws.log_penalty()}
        return parameters | {"log_steps": jnp.log(apart) + draws.normal((PENALTIES - 1,))}

    def build(p: dict[str, Any]) -> Sweep:
        steps = jnp.exp(p["log_steps"])
        later = jnp.arange(PENALTIES)[:, None] > jnp.arange(PENALTIES - 1)[None, :]
        # Half of the way is below the penalty drawn, half above.
        log_lams = p["log_lam"] + jnp.sum(jnp.where(later, steps[None, :], 0), axis=-1) - jnp.sum(steps) / 2
        return Sweep(*_numbers(p), jnp.exp(log_lams), jnp.zeros(()))

    return Family(sample, build)


def sampled() -> Family:
    """Safety data over two to six listed responses, certain to uniform, with none to ten draws from each context."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key, 100)
        shape = (CONTEXTS, LISTED)
        context = jnp.arange(CONTEXTS)
        listed = jnp.arange(LISTED) < 2 + draws.index(LISTED - 1)
        one = jnp.arange(LISTED)[None, :] == 0
        some = draws.flip(0.5)
        spread = 10 ** draws.uniform(-2, 1, (2,))
        return {
            "p_s": draws.normal((CONTEXTS,)) * spread[0],
            "p_f": draws.normal((CONTEXTS,)) * spread[0],
            "in_s": (context == 0) | draws.flip(0.7, (CONTEXTS,)),
            "in_f": (context == 0) | draws.flip(0.7, (CONTEXTS,)),
            "P_s": draws.normal(shape) * spread[1],
            "P_f": draws.normal(shape) * spread[1],
            "allowed": listed[None, :] & (one | some | draws.flip(0.5, shape)),
            "listed": listed,
            "draws": draws.index(MOST_DRAWS + 1, (CONTEXTS,)),
            "log_lam": draws.log_penalty(),
        }

    def build(p: dict[str, Any]) -> Sampled:
        safety = DataLaw(draw.law(p["p_s"], p["in_s"]), draw.law(p["P_s"], p["allowed"]))
        task = DataLaw(draw.law(p["p_f"], p["in_f"]), draw.law(p["P_f"], p["listed"][None, :]))
        return Sampled(World(safety, task), p["listed"], p["draws"], jnp.exp(p["log_lam"]))

    return Family(sample, build)


def _class_parameters(draws: Draws) -> dict[str, Any]:
    log_lam = draws.log_penalty()
    return {
        "world": draw.world_parameters(draws, proxy="covering"),
        "log_lam": log_lam,
        "log_lam_policy": jnp.where(draws.flip(0.4, (MEMBERS,)), log_lam, draws.uniform(-14, 14, (MEMBERS,))),
        "noise": draws.normal((MEMBERS, CONTEXTS, RESPONSES)) * 10 ** draws.uniform(-4, 1),
        "keeps_all": draws.flip(0.5, (MEMBERS,)),
        "lost": 3 * draws.normal((MEMBERS, CONTEXTS, 1)),
        "member": draws.index(MEMBERS),
        "best": draws.flip(0.6),
        "exactly": draws.flip(0.5),
        "log_extra": 4 * draws.normal(),
    }


def _policy_class(p: dict[str, Any]) -> PolicyClass:
    made = draw.world(p["world"])
    members = {name: p[name] for name in ("log_lam_policy", "noise", "keeps_all", "lost")}
    log_policies = jax.vmap(lambda one: draw.policy(made, one))(members)
    capability, safety = (_cross_entropies(law, log_policies) for law in (made.capability, made.training_safety))
    return PolicyClass(made, log_policies, _chosen(capability, safety, p))


def _number_parameters(draws: Draws) -> dict[str, Any]:
    """Losses of any size and sign; some members share one of them."""
    spread = 10 ** draws.uniform(-4, 1, (2,))
    twin = draws.flip(0.3, (2,))[:, None] & draws.flip(0.5, (2, MEMBERS))
    return {
        "level": 3 * draws.normal((2,)),
        "numbers": spread[:, None] * draws.normal((2, MEMBERS)),
        "twin": twin,
    }


def _numbers(p: dict[str, Any]) -> tuple[Array, Array]:
    numbers = p["level"][:, None] + jnp.where(p["twin"], p["numbers"][:, :1], p["numbers"])
    return numbers[0], numbers[1]


def _chosen(capability: Array, safety: Array, p: dict[str, Any]) -> Losses:
    """The losses with a member chosen, and an η that it just keeps, or keeps with room."""
    lam = jnp.exp(p["log_lam"])
    excess = _excess(capability, safety, lam)
    chosen = jnp.where(p["best"], excess == jnp.min(excess), jnp.arange(MEMBERS) == p["member"])
    extra = jnp.where(p["exactly"], 0, jnp.exp(p["log_extra"]))
    return Losses(capability, safety, lam, (1 + lam) * (_mean(excess, chosen) + extra), chosen)


CLASSES = classes()
GOOD_CLASSES = classes(both_good=True)
SWEEPS = sweeps()
POLICY_CLASSES = policy_classes()
SAMPLED = sampled()


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
    excess = jax.vmap(lambda lam: _excess(f, s, lam))(lams)
    near = excess <= (instance.eta / (1 + lams))[:, None] + jnp.min(excess, axis=-1, keepdims=True)
    as_safe = s[None, :] <= s[:, None]
    constrained = jnp.min(jnp.broadcast_to(f[None, :], as_safe.shape), axis=-1, where=as_safe, initial=jnp.inf)
    G_f, G_s, F = (
        _mean(jnp.broadcast_to(gap[None, :], near.shape), near)
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
    joint = _joint(world.safety)
    support = (joint > 0) | (_joint(world.training_safety) > 0)
    safety = _cross_entropies(world.safety, instance.log_policies)
    best, here = (
        _mean(jnp.moveaxis(instance.log_policies, 0, -1), mask) for mask in (safety == jnp.min(safety), losses.chosen)
    )
    ratio = best - here
    oscillation = jnp.max(ratio, where=support, initial=-jnp.inf) - jnp.min(ratio, where=support, initial=jnp.inf)
    bound = jnp.max(-instance.log_policies, where=support[None], initial=0)
    apart = jnp.sum(jnp.abs(joint - _joint(world.training_safety))) / 2
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


# --- T10: a proxy of finitely many draws ------------------------------------------------------------------------


@theorem(
    "T10",
    title="a proxy of finitely many draws",
    statement=r"\hat P_s(y|x)=\frac{N_y+1}{n(x)+K}:\qquad E[\Phi]\le E_{p_s}\log\Big(1+\frac{K-1}{n(x)+1}\Big)"
    r"\le E_{p_s}\Big[\frac{K-1}{n(x)+1}\Big]",
    family=SAMPLED,
    parts=("by counts", "simpler"),
    assumptions=(ALL_LISTED,),
    without={"all listed": lambda: _certain(n=3, listed=2, said=2)},
    tight=Tight(lambda: _certain(n=3, listed=3, said=0)),
    makes_precise=SIMILARITY,
)
def few_draws_make_a_proxy(instance: Sampled) -> Sides:
    """Some n draws of each prompt's answers, each of K counts raised by one, make a proxy that is off by about (K-1)/n nats.

    The left side is the exact expectation over all outcomes of the draws.
    """
    safety, none = instance.world.safety, jnp.zeros(instance.draws.shape)
    mismatch = _expected_divergence(instance, none, 1 - none)
    ratio = _spread_of_counts(instance)
    return (
        jnp.stack([mismatch, jnp.sum(safety.p * jnp.log1p(ratio))]),
        jnp.stack([jnp.sum(safety.p * jnp.log1p(ratio)), jnp.sum(safety.p * ratio)]),
    )


@theorem(
    "T10-gap",
    title="what fine-tuning on finitely many draws costs",
    statement=r"\hat p_s=p_s:\qquad E[G_s(\lambda)]\le E_{p_s}\log\Big(1+\frac{K-1}{n(x)+1}\Big)+E_{p_s}\log\Big(1+\frac{p_f}{\lambda p_s}\Big)"
    r"\le E_{p_s}\log\Big(1+\frac{K-1}{n(x)+1}\Big)+\log\Big(1+\frac1\lambda\Big)",
    family=SAMPLED,
    parts=("by context", "pooled"),
    assumptions=(ALL_LISTED,),
    without={"all listed": lambda: _certain(n=3, listed=2, said=2)},
    tight=Tight(lambda: _certain(n=3, listed=3, said=0)),
    makes_precise=SIMILARITY,
)
def few_draws_cost_a_little_safety(instance: Sampled) -> Sides:
    """Fine-tuning with a penalty on few draws loses, on average over the draws, at most their mismatch and the dilution."""
    world, lam = instance.world, instance.lam
    mismatch = jnp.sum(world.safety.p * jnp.log1p(_spread_of_counts(instance)))
    by_context = mismatch + jnp.sum(log_share(world.safety.p, world.capability.p / lam))
    return (
        jnp.stack([_expected_divergence(instance, *loss_constraint.mixture_weights(world, lam)), by_context]),
        jnp.stack([by_context, mismatch + jnp.log1p(1 / lam)]),
    )


# --- what only these theorems need ------------------------------------------------------------------------------

_COUNTS = np.arange(MOST_DRAWS + 1)
_CHOICES = comb(_COUNTS[:, None], _COUNTS[None, :])
"""Binomial coefficients, n along the rows."""


def _excess(capability: Array, safety: Array, lam: Array) -> Array:
    """Penalised loss of every member above the least, over 1+λ, from differences between members."""
    # The difference of two members changes its sign exactly when they change places, so rounding makes no member better
    # than one that is as good.
    of_f, of_s = 1 / (1 + lam), lam / (1 + lam)
    apart = of_f * (capability[:, None] - capability[None, :]) + of_s * (safety[:, None] - safety[None, :])
    return jnp.max(apart, axis=-1)


def _mean(values: Array, mask: Array) -> Array:
    """The mean of the values in the mask, along the last axis: of several equally good members none comes first."""
    mask = jnp.broadcast_to(mask, values.shape)
    return jnp.sum(jnp.where(mask, values, 0), axis=-1) / jnp.sum(jnp.where(mask, 1.0, 0.0), axis=-1)


def _joint(law: DataLaw) -> Array:
    return law.p[:, None] * law.P


def _cross_entropies(law: DataLaw, log_policies: Array) -> Array:
    return jnp.sum(silent(_joint(law)[None], -log_policies), axis=(1, 2))


def _spread_of_counts(instance: Sampled) -> Array:
    """(K-1)/(n+1) in every context."""
    return (jnp.sum(jnp.where(instance.listed, 1.0, 0.0)) - 1) / (instance.draws.astype(jnp.float64) + 1)


def _expected_divergence(instance: Sampled, task: Array, rest: Array) -> Array:
    r"""$E\,E_{p_s}\mathrm{KL}(P_s\|wP_f+(1-w)\hat P_s)$ over the draws, given both weights in every context.

    The divergence is a sum over responses of terms of which each knows its own count only, so binomials are all it takes.
    """
    world, k, n = instance.world, jnp.asarray(_COUNTS)[None, None, :], instance.draws[:, None, None]
    P, P_f = world.safety.P[:, :, None], world.capability.P[:, :, None]
    K = jnp.sum(jnp.where(instance.listed, 1, 0))
    share = (k + 1).astype(jnp.float64) / (n + K).astype(jnp.float64)
    estimate = jnp.where(instance.listed[None, :, None], share, 0)
    chance = jnp.asarray(_CHOICES)[instance.draws][:, None, :] * _power(P, k) * _power(1 - P, jnp.maximum(n - k, 0))
    task, rest = task[:, None, None], rest[:, None, None]
    terms = dv.kl_terms(P, task * P_f + rest * estimate, task * (P_f - P) + rest * (estimate - P))
    return gaps.weighted(world.safety.p, jnp.sum(silent(chance, terms), axis=(1, 2)))


def _power(x: Array, k: Array) -> Array:
    """A power with an integer exponent, of which 0^0 is one; with derivative 0 at 0."""
    return jnp.where(x > 0, jnp.where(x > 0, x, 1) ** k.astype(jnp.float64), jnp.where(k == 0, 1.0, 0.0))


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
    capability, safety = (_cross_entropies(law, members) for law in (world.capability, world.training_safety))
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


def _certain(n: int, listed: int, said: int) -> Sampled:
    """One context whose answer is always the same, and a task that wants another."""
    rows = np.eye(3)
    world = World(DataLaw([1.0], rows[said : said + 1]), DataLaw([1.0], rows[1:2]))
    return Sampled(world, jnp.arange(3) < listed, jnp.array([n]), jnp.float64(1.0))
