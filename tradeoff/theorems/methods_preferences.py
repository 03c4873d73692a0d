"""Losses against a reference: the margin that preferences reach, and constrained fine-tuning of the first tokens."""

import math
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tradeoff.theorems._linear import length
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.instances import bounded
from tradeoff.theorems.methods_instances import TOKENS, at_label, decades
from tradeoff.tolerances import IDENTITY

CLAMP = 1e-3
"""The least weight that constrained fine-tuning gives a token, in the authors' code."""
EXTENT = math.log(2 / CLAMP - 1)
"""β times the deviation at which the weight meets the clamp."""
NODES, WEIGHTS = (tuple(x.tolist()) for x in np.polynomial.legendre.leggauss(24))
"""Gauss-Legendre nodes and weights on (-1, 1)."""


class Pairs(NamedTuple):
    """Preferences between three responses: the first over the second, the second over the third, the third over the first.

    Args:
        reference: logits of the reference.
        q: how often the one is preferred to the other.
        weights: how often each pair is seen.
        beta: the temperature β.
        other: logits of any policy.
    """

    reference: Array
    q: Array
    weights: Array
    beta: Array
    other: Array


class Token(NamedTuple):
    """A token in constrained fine-tuning.

    Args:
        logits: logits of the policy.
        reference: logits of the reference.
        label: the token y.
        beta: the constraint's strength β.
        extent: β times a deviation Δ.
    """

    logits: Array
    reference: Array
    label: Array
    beta: Array
    extent: Array


# --- assumptions ------------------------------------------------------------------------------------------------

FOREST = Assumption("a forest of pairs", "the pairs close no cycle", lambda i: jnp.any(i.weights == 0))
UNDECIDED = Assumption("undecided labels", "0 < q < 1", lambda i: jnp.all((i.q > 0) & (i.q < 1)))
UNCLAMPED = Assumption("above the clamp", "the weight is above its clamp", lambda i: i.extent <= EXTENT)


# --- families ---------------------------------------------------------------------------------------------------


def pairs() -> Family:
    """Preferences along a chain of three responses."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "reference": draws.normal((3,)) * 10 ** draws.uniform(-1, 0.8),
            "q": 2 * draws.normal((3,)),
            "weights": draws.normal((2,)),
            "beta": draws.normal(),
            "near": draws.flip(0.5),
            "noise": draws.normal((3,)) * 10 ** draws.uniform(-3, 1),
        }

    def build(p: dict[str, Any]) -> Pairs:
        q, beta = jax.nn.sigmoid(bounded(p["q"])), decades(p["beta"], 2.0)
        other = p["reference"] + jnp.where(p["near"], _margins(q, beta), 0) + p["noise"]
        return Pairs(p["reference"], q, jnp.append(decades(p["weights"]), 0.0), beta, other)

    return Family(sample, build)


@cache
def tokens() -> Family:
    """Tokens under a constraint, at any deviation short of the clamp."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "logits": draws.normal((TOKENS,)) * 10 ** draws.uniform(-1, 0.7),
            "moved": draws.normal((TOKENS,)) * 10 ** draws.uniform(-3, 0.7),
            "label": draws.index(TOKENS),
            "beta": draws.normal(),
            "extent": 3 * draws.normal(),
        }

    def build(p: dict[str, Any]) -> Token:
        reference = bounded(p["logits"])
        logits = reference + bounded(p["moved"])
        return Token(logits, reference, p["label"], decades(p["beta"]), EXTENT * jax.nn.sigmoid(p["extent"]))

    return Family(sample, build)


TOKEN = tokens()


# --- preferences ------------------------------------------------------------------------------------------------


@theorem(
    "dpo-margin",
    title="the margin that preferences reach",
    statement=r"-q\log\sigma(\beta m)-(1-q)\log\sigma(-\beta m),\ m=\Delta-\Delta_{\mathrm{ref}}:\quad m^*=\mathrm{logit}(q)/\beta;\quad "
    r"\text{at the reference the slope is }\beta/2",
    family=pairs(),
    parts=("stationary", "no policy is better", "weight at the reference"),
    relation=("==", ">=", "=="),
    assumptions=(FOREST, UNDECIDED),
    without={
        "a forest of pairs": lambda: _cycle(),
        "undecided labels": "with labels that always agree the margin grows without end: stop early or cap it",
    },
    tight=Tight(lambda: _cycle(closed=False)),
    makes_precise="preferences between safe and unsafe responses teach more than safe ones alone",
    source="safetoserve2024",
    tolerance=IDENTITY,
)
def preferences_set_a_margin_and_no_more(instance: Pairs) -> Sides:
    """Where labels disagree preference training stops at a margin that they fix; where they agree it never stops."""
    q, beta, reference = instance.q, instance.beta, instance.reference

    def loss(logits: Array, q: Array, weights: Array) -> Array:
        moved = jax.nn.log_softmax(logits) - jax.nn.log_softmax(reference)
        m = beta * (moved - jnp.roll(moved, -1))
        return -jnp.sum(weights * (q * jax.nn.log_sigmoid(m) + (1 - q) * jax.nn.log_sigmoid(-m)))

    at = reference + _margins(q, beta)
    slope = jax.grad(loss)(at, q, instance.weights)
    first = jnp.eye(3)[0]
    half = -jax.grad(loss)(reference, jnp.ones(3), first)[0]
    return (
        jnp.stack(
            [1 + length(slope) / (beta * jnp.sum(instance.weights)), loss(instance.other, q, instance.weights), half]
        ),
        jnp.stack([jnp.ones_like(beta), loss(at, q, instance.weights), beta / 2]),
    )


# --- constrained fine-tuning ------------------------------------------------------------------------------------


@theorem(
    "constrained-sft",
    title="constrained fine-tuning weighs the gradient",
    statement=r"-\tfrac2\beta\log\sigma(\beta\Delta),\ \Delta=\log\tfrac{\pi(y)}{\pi_{\mathrm{ref}}(y)}:\quad\nabla=w\,\nabla\mathrm{CE},\ "
    r"w=2\sigma(-\beta\Delta),\quad\dot\Delta=w\|e_y-p\|^2,\quad\Delta\le-\log\pi_{\mathrm{ref}}(y)",
    family=TOKEN,
    parts=("weight", "one at the start", "rate", "ceiling"),
    relation=("==", "==", "==", "<="),
    tight=Tight(lambda: Token(jnp.array([60.0, 0.0]), jnp.zeros(2), jnp.array(0), jnp.float64(0.1), jnp.ones(()))),
    makes_precise="constraining the first tokens protects safety",
    source="constrained2024",
    tolerance=IDENTITY,
)
def a_constraint_weighs_the_usual_gradient(instance: Token) -> Sides:
    """The constraint only weighs the usual gradient: fully at the start, less the further a token has moved."""
    z, y, beta = instance.logits, instance.label, instance.beta
    log_ref = at_label(jax.nn.log_softmax(instance.reference), y)

    def entropy(logits: Array) -> Array:
        return -at_label(jax.nn.log_softmax(logits), y)

    def loss(logits: Array) -> Array:
        return -2 / beta * jax.nn.log_sigmoid(beta * (-entropy(logits) - log_ref))

    deviation = -entropy(z) - log_ref
    w = 2 * jax.nn.sigmoid(-beta * deviation)
    slope, plain = jax.grad(loss)(z), jax.grad(entropy)(z)
    start, plain_start = jax.grad(loss)(instance.reference), jax.grad(entropy)(instance.reference)
    rate = jax.jvp(lambda logits: -entropy(logits), (z,), (-slope,))[1]
    off = jnp.arange(len(z)) == y
    square = jnp.sum((jnp.where(off, 1.0, 0.0) - jax.nn.softmax(z)) ** 2)
    one = jnp.ones_like(beta)
    return (
        jnp.stack([1 + length(slope - w * plain) / w, 1 + length(start - plain_start), rate / w, deviation]),
        jnp.stack([one, one, square, -log_ref]),
    )


@theorem(
    "constrained-sft-growth",
    title="constrained fine-tuning grows with the logarithm of time",
    statement=r"\dot\Delta=2\sigma(-\beta\Delta):\quad\Delta+\tfrac{e^{\beta\Delta}-1}\beta=2t,\qquad "
    r"\tfrac1\beta\log(1+2\beta t-\log(1+2\beta t))\le\Delta\le\tfrac1\beta\log(1+2\beta t)",
    family=TOKEN,
    parts=("time", "at most", "at least"),
    relation=("==", "<=", ">="),
    assumptions=(UNCLAMPED,),
    without={"above the clamp": lambda: _token(extent=12.0)},
    tight=Tight(lambda: _token(extent=7.5), 0.999999694730),
    makes_precise="constraining the first tokens protects safety",
    source="constrained2024",
    tolerance=IDENTITY,
)
def a_constrained_token_drifts_ever_more_slowly(instance: Token) -> Sides:
    """A constrained token never stops moving, but moves only with the logarithm of time until its weight meets the clamp."""
    beta, deviation = instance.beta, instance.extent / instance.beta
    # The time that the flow takes: the integral of one over its speed.
    at = deviation * (jnp.array(NODES) + 1) / 2
    speed = jnp.maximum(2 * jax.nn.sigmoid(-beta * at), CLAMP)
    time = jnp.sum(jnp.array(WEIGHTS) / speed) * deviation / 2
    grown = jnp.log1p(2 * beta * time)
    return (
        jnp.stack([2 * time, deviation, deviation]),
        jnp.stack(
            [deviation + jnp.expm1(beta * deviation) / beta, grown / beta, jnp.log1p(2 * beta * time - grown) / beta]
        ),
    )


# --- what only these claims need --------------------------------------------------------------------------------


def _margins(q: Array, beta: Array) -> Array:
    """Logits over the reference's at which the first two pairs have their margins."""
    m = (jnp.log(q) - jnp.log1p(-q)) / beta
    return jnp.stack([m[0] + m[1], m[1], 0 * m[1]])


def _cycle(closed: bool = True) -> Pairs:
    """Each response is preferred to the next, all the way round."""
    q = jnp.full((3,), 0.8)
    margins = _margins(q, jnp.ones(()))
    return Pairs(jnp.zeros(3), q, jnp.array([1.0, 1.0, 1.0 if closed else 0.0]), jnp.ones(()), margins)


def _token(extent: float) -> Token:
    return Token(jnp.zeros(2), jnp.zeros(2), jnp.array(0), jnp.ones(()), jnp.float64(extent))
