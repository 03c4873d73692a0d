"""Guarded tokens (STAR-DSS): where a token that is partly learnt and partly held at a reference ends."""

import math
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.theorems import instances as draw
from tradeoff.theorems._expressions import silent
from tradeoff.theorems._linear import length
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.instances import bounded
from tradeoff.theorems.methods_instances import TOKENS, at_label, decades
from tradeoff.tolerances import IDENTITY


class Shaped(NamedTuple):
    """One token that is partly learnt and partly held at a reference.

    Args:
        reference: the law r of the reference.
        label: the token y.
        value: how safe a guard finds it, V.
        strength: the weight λ of the divergence.
        other: logits of any policy.
        reverse: how much of the divergence is the reverse one.
    """

    reference: Array
    label: Array
    value: Array
    strength: Array
    other: Array
    reverse: Array


# --- assumptions ------------------------------------------------------------------------------------------------

FORWARD = Assumption("forward divergence", "the divergence is KL(π_ref ‖ π)", lambda i: i.reverse == 0)
SOME_VALUE = Assumption(
    "a value between", "0 < V < 1 and λ > 0", lambda i: (i.value > 0) & (i.value < 1) & (i.strength > 0)
)
POSSIBLE = Assumption(
    "possible token", "the reference gives the token some probability", lambda i: at_label(i.reference, i.label) > 0
)


# --- families ---------------------------------------------------------------------------------------------------


@cache
def shaped(*, possible: bool = False) -> Family:
    """Tokens between learning and a reference; unless `possible`, the reference may rule the token out."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        some = jnp.arange(TOKENS) == draws.index(TOKENS)
        return {
            "reference": draws.normal((TOKENS,)) * 10 ** draws.uniform(-1, 0.8),
            "allowed": some | draws.flip(0.7, (TOKENS,)) | possible,
            "label": draws.index(TOKENS),
            "value": 3 * draws.normal(),
            "strength": draws.normal(),
            "near": draws.flip(0.5),
            "noise": draws.normal((TOKENS,)) * 10 ** draws.uniform(-4, 0.7),
        }

    def build(p: dict[str, Any]) -> Shaped:
        r = draw.law(p["reference"], p["allowed"])
        V, lam = jax.nn.sigmoid(bounded(p["value"])), decades(p["strength"], 2.0)
        target = jnp.where(p["near"], mixture(r, p["label"], V, lam), jnp.full((TOKENS,), 1 / TOKENS))
        other = jnp.log(jnp.maximum(target, math.exp(-draw.LOGIT_BOUND))) + p["noise"]
        return Shaped(r, p["label"], V, lam, other, jnp.zeros(()))

    return Family(sample, build)


SHAPED = shaped()
POSSIBLE_TOKENS = shaped(possible=True)


# --- guarded tokens ---------------------------------------------------------------------------------------------


@theorem(
    "star-dss-kl",
    title="where a guarded token ends, with the whole divergence",
    statement=r"V\,\mathrm{CE}(y)+(1-V)\lambda\,\mathrm{KL}(r\|\pi):\quad\pi^*=\frac{Ve_y+(1-V)\lambda\,r}{V+(1-V)\lambda}",
    family=SHAPED,
    parts=("stationary", "no policy is better", "lifted at least to"),
    relation=("==", ">=", ">="),
    assumptions=(SOME_VALUE, FORWARD),
    without={
        "a value between": "at V = 1 the token is plainly learnt, at V = 0 the reference is kept: both are limits",
        "forward divergence": lambda: _shaped(reverse=1.0),
    },
    tight=Tight(lambda: _shaped(ruled_out=True)),
    makes_precise="a guard's score for each part of a response decides between learning it and keeping the reference",
    source="stardss2025",
    tolerance=IDENTITY,
)
def a_guarded_token_ends_at_a_mixture(instance: Shaped) -> Sides:
    """With the whole divergence a guarded token ends at a mixture, which lifts even a token that the reference rules out."""
    r, y, V, B = instance.reference, instance.label, instance.value, _held(instance)
    best = mixture(r, y, V, instance.strength)

    def loss(logits: Array) -> Array:
        log_p = jax.nn.log_softmax(logits)
        forward = jnp.sum(silent(r, jnp.log(jnp.where(r > 0, r, 1)) - log_p))
        backward = jnp.sum(silent(jnp.exp(log_p), log_p - jnp.log(jnp.maximum(r, math.exp(-draw.LOGIT_BOUND)))))
        return -V * at_label(log_p, y) + B * ((1 - instance.reverse) * forward + instance.reverse * backward)

    at = jnp.where(best > 0, jnp.log(jnp.where(best > 0, best, 1)), -jnp.inf)
    slope = length(jax.grad(loss)(at)) / (V + B)
    return (
        jnp.stack([1 + slope, loss(instance.other), at_label(best, y)]),
        jnp.stack([jnp.ones_like(V), loss(at), V / (V + B)]),
    )


@theorem(
    "star-dss-k2",
    title="where a guarded token ends, with the shipped estimator",
    statement=r"V\,\mathrm{CE}(y)+(1-V)\tfrac\lambda2(\log\tfrac{\pi(y)}{r(y)})^2:\quad "
    r"\pi^*(y)=\min(1,\,r(y)e^f),\ f=\tfrac V{(1-V)\lambda};\quad\text{below the mixture iff }r(y)<r^*",
    family=POSSIBLE_TOKENS,
    parts=("stationary", "no policy is better", "meets the mixture", "stricter below"),
    relation=("==", ">=", "==", ">="),
    assumptions=(SOME_VALUE, POSSIBLE),
    without={
        "a value between": "at V = 1 nothing holds the token back, at V = 0 nothing moves it",
        "possible token": "the estimator is infinite for a token that the reference rules out",
    },
    tight=Tight(lambda: _shaped(other=(math.log(0.1) + 1.0, math.log1p(-0.1 * math.e)))),
    makes_precise="the released per-token estimator holds rare tokens back more than the divergence that it stands for",
    source="stardss2025",
    tolerance=IDENTITY,
)
def the_shipped_estimator_multiplies(instance: Shaped) -> Sides:
    """The shipped estimator multiplies a token's probability by a fixed factor: strict for rare tokens, lax for others."""
    r, y, V, B = instance.reference, instance.label, instance.value, _held(instance)
    f = V / B
    r_y = at_label(r, y)
    log_r = jnp.log(r_y)

    def loss(log_p: Array) -> Array:
        return -V * log_p + B * (log_p - log_r) ** 2 / 2

    # One is an infimum: no finite logits give it.
    capped = log_r + f >= 0
    u = jnp.minimum(log_r + f, 0)
    # The other tokens share what is left as any policy shares it; where one is the infimum nothing is stationary.
    inside = jnp.where(capped, jnp.log(0.5), u)
    rest = jnp.where(jnp.arange(len(r)) == y, -jnp.inf, instance.other)
    others = jax.nn.log_softmax(rest) + jnp.log(-jnp.expm1(inside))
    at = jnp.where(jnp.arange(len(r)) == y, inside, others)
    slope = jax.grad(lambda z: loss(at_label(jax.nn.log_softmax(z), y)))(at)
    missed = jnp.where(capped, 0, length(slope) / (V + B * jnp.abs(log_r)))
    # r* e^f = V/((V + B) - B e^{-f}), where the mixture of r* is the same.
    meets = V / (V - B * jnp.expm1(-f))
    threshold = meets * jnp.exp(-f)
    mixed = (V + B * threshold) / (V + B)
    stricter = (jnp.exp(u) - (V + B * r_y) / (V + B)) * (r_y - threshold)
    one = jnp.ones_like(V)
    return (
        jnp.stack([1 + missed, loss(at_label(jax.nn.log_softmax(instance.other), y)), meets, stricter]),
        jnp.stack([one, loss(u), mixed, 0 * one]),
    )


# --- what only these claims need --------------------------------------------------------------------------------


def mixture(r: Array, label: Array, value: Array, strength: Array) -> Array:
    """Where the whole divergence leaves a token: its value's share at the label, the rest at the reference."""
    held = (1 - value) * strength
    return (jnp.where(jnp.arange(len(r)) == label, value, 0) + held * r) / (value + held)


def _held(instance: Shaped) -> Array:
    """The weight of the divergence."""
    return (1 - instance.value) * instance.strength


def _shaped(reverse: float = 0.0, ruled_out: bool = False, other: tuple[float, float] = (0.0, 0.0)) -> Shaped:
    """Two tokens at V = 1/2; at λ = 1 the shipped estimator multiplies the first by e."""
    reference = [0.0, 1.0] if ruled_out else [0.1, 0.9]
    strength = jnp.float64(0.5 if reverse or ruled_out else 1.0)
    return Shaped(
        jnp.array(reference), jnp.array(0), jnp.float64(0.5), strength, jnp.array(other), jnp.float64(reverse)
    )
