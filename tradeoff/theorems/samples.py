"""T10: a proxy of finitely many draws: how far it is off, and what fine-tuning on it costs."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.special import comb

from tradeoff import divergences as dv
from tradeoff import gaps, loss_constraint
from tradeoff.theorems import instances as draw
from tradeoff.theorems._expressions import log_share, silent
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.instances import CONTEXTS
from tradeoff.theorems.similarity import SIMILARITY
from tradeoff.worlds.world import DataLaw, World

LISTED, MOST_DRAWS = 6, 10
"""Responses, of which some are listed, and the most draws from a context."""


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


ALL_LISTED = Assumption(
    "all listed",
    "the safety data say nothing that is not among the K responses that are counted",
    lambda i: jnp.all(i.listed[None, :] | (i.world.safety.P == 0) | (i.world.safety.p == 0)[:, None]),
)


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


SAMPLED = sampled()


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


def _certain(n: int, listed: int, said: int) -> Sampled:
    """One context whose answer is always the same, and a task that wants another."""
    rows = np.eye(3)
    world = World(DataLaw([1.0], rows[said : said + 1]), DataLaw([1.0], rows[1:2]))
    return Sampled(world, jnp.arange(3) < listed, jnp.array([n]), jnp.float64(1.0))
