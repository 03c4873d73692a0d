"""Published methods on softmax policies and linear layers: losses, data and weight maps whose effect has a closed form."""

import math
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array

from tradeoff.theorems import instances as draw
from tradeoff.theorems._expressions import silent
from tradeoff.theorems._linear import end_of, length, solved, turned
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.instances import Draws, bounded
from tradeoff.theorems.methods_quadratic import decades
from tradeoff.tolerances import IDENTITY

TOKENS, FEATURES = 4, 3
STEPS = 10
"""Steps of a run of gradient descent; the laws hold after each of them."""
CLAMP = 1e-3
"""The least weight that constrained fine-tuning gives a token, in the authors' code."""
EXTENT = math.log(2 / CLAMP - 1)
"""β times the deviation at which the weight meets the clamp."""
NODES, WEIGHTS = (tuple(x.tolist()) for x in np.polynomial.legendre.leggauss(24))
"""Gauss-Legendre nodes and weights on (-1, 1)."""
NORMAL_ENDS, NORMAL_TERMS = 9.0, 160
"""Beyond nine standard deviations the normal law is 0 or 1 to the last bit; up to there its series has so many terms."""
TAIL = 50.0
"""Where the outermost boxes of a score end: past every displacement by many standard deviations."""
DOUBLINGS = 15
"""Doublings of a descent with directions that it leaves alone: some sixty times the largest condition number drawn."""


class Interference(NamedTuple):
    """Training a softmax-linear policy on benign contexts, with a harmful context aside.

    Args:
        benign: features of two benign contexts, in rows.
        harmful: features of a harmful context.
        labels: the tokens that the benign contexts are trained to say.
        start: parameters at the start, shape (features, tokens).
        rates: the learning rate of every step.
        momentum: the momentum's coefficient.
        decay: weight decay.
        scale: what every feature's gradient is multiplied by.
    """

    benign: Array
    harmful: Array
    labels: Array
    start: Array
    rates: Array
    momentum: Array
    decay: Array
    scale: Array


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


class Preview(NamedTuple):
    """A token whose answer has been shown before.

    Args:
        logits: logits without the copy.
        label: the token y.
        copy: what the copy adds to its logit.
    """

    logits: Array
    label: Array
    copy: Array


class Selector(NamedTuple):
    """Weights of training rows, and the rows' losses.

    Args:
        omega: logits of the rows.
        losses: losses of the rows.
    """

    omega: Array
    losses: Array


class Edit(NamedTuple):
    """A linear layer that is fitted on unsafe activations.

    Args:
        W: the weights at the start.
        P: a basis of the unsafe activations, in columns.
        Q: the activations in that basis, U = PQ.
        R: what the layer is to answer them.
        scale: what the gradient of every input is multiplied by.
        other: any other change of the weights.
    """

    W: Array
    P: Array
    Q: Array
    R: Array
    scale: Array
    other: Array


class Aligned(NamedTuple):
    """The alignment direction of a layer, and an update.

    Args:
        V: aligned minus base weights.
        update: an update of the layer.
    """

    V: Array
    update: Array


class Smoothed(NamedTuple):
    """A score that is constant on boxes, and a displacement of the weights.

    Args:
        cuts: where the boxes end, along two directions.
        values: the factors of the score.
        moved: the displacement along both directions, in units of the noise.
        aside: the displacement across them.
    """

    cuts: Array
    values: Array
    moved: Array
    aside: Array


# --- assumptions ------------------------------------------------------------------------------------------------

NO_DECAY = Assumption("no weight decay", "weights are not pulled to zero", lambda i: i.decay == 0)
PLAIN = Assumption(
    "plain gradient",
    "no preconditioner (Adam, say) treats one input differently from another",
    lambda i: jnp.all(i.scale == i.scale[0]),
)
FORWARD = Assumption("forward divergence", "the divergence is KL(π_ref ‖ π)", lambda i: i.reverse == 0)
SOME_VALUE = Assumption(
    "a value between", "0 < V < 1 and λ > 0", lambda i: (i.value > 0) & (i.value < 1) & (i.strength > 0)
)
POSSIBLE = Assumption(
    "possible token", "the reference gives the token some probability", lambda i: at_label(i.reference, i.label) > 0
)
FOREST = Assumption("a forest of pairs", "the pairs close no cycle", lambda i: jnp.any(i.weights == 0))
UNDECIDED = Assumption("undecided labels", "0 < q < 1", lambda i: jnp.all((i.q > 0) & (i.q < 1)))
UNCLAMPED = Assumption("above the clamp", "the weight is above its clamp", lambda i: i.extent <= EXTENT)
RANK_ONE = Assumption(
    "rank one",
    "aligned and base weights differ by a matrix of rank one",
    lambda i: length(i.V @ i.V.T @ i.V - jnp.sum(i.V**2) * i.V) <= IDENTITY.relative * length(i.V) ** 3,
)
SCORE = Assumption(
    "a score in [0, 1]", "the score is between 0 and 1", lambda i: jnp.all((i.values >= 0) & (i.values <= 1))
)


# --- families ---------------------------------------------------------------------------------------------------


def _two_directions(draws: Draws) -> dict[str, Any]:
    return {"mirrors": draws.normal((2, FEATURES)), "angle": draws.normal(), "sizes": draws.normal((2,))}


def _columns(p: dict[str, Any], within: float) -> Array:
    """Two vectors that are not parallel, in columns."""
    axes, cosine = turned(p["mirrors"]), 0.8 * jnp.tanh(p["angle"])
    second = cosine * axes[:, 0] + jnp.sqrt(1 - cosine**2) * axes[:, 1]
    return jnp.stack([axes[:, 0], second], axis=1) * decades(p["sizes"], within)[None, :]


def interfering() -> Family:
    """Softmax-linear policies with a run of gradient descent, short steps and long ones."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "benign": _two_directions(draws),
            "harmful": draws.normal((FEATURES,)) * 10 ** draws.uniform(-1, 1),
            "labels": draws.index(TOKENS, (2,)),
            "start": draws.normal((FEATURES, TOKENS)),
            "rates": draws.normal((STEPS,)),
            "momentum": 2 * draws.normal(),
        }

    def build(p: dict[str, Any]) -> Interference:
        benign = _columns(p["benign"], 0.5).T
        rates = decades(p["rates"]) / jnp.sum(benign**2)
        return Interference(
            benign, p["harmful"], p["labels"], p["start"], rates, jax.nn.sigmoid(p["momentum"]), jnp.zeros(()), jnp.ones(FEATURES)
        )  # fmt: skip

    return Family(sample, build)


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


def previews() -> Family:
    """Tokens with a copy of any strength."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "logits": draws.normal((TOKENS,)) * 10 ** draws.uniform(-1, 0.8),
            "label": draws.index(TOKENS),
            "copy": 4 * draws.normal(),
        }

    def build(p: dict[str, Any]) -> Preview:
        return Preview(bounded(p["logits"]), p["label"], bounded(p["copy"]))

    return Family(sample, build)


def selectors() -> Family:
    """Rows with weights and losses."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "omega": draws.normal((TOKENS,)) * 10 ** draws.uniform(-1, 0.8),
            "losses": draws.normal((TOKENS,)) * 10 ** draws.uniform(-2, 2),
            "shift": draws.normal(),
        }

    def build(p: dict[str, Any]) -> Selector:
        return Selector(bounded(p["omega"]), p["losses"] + p["shift"])

    return Family(sample, build)


def edits() -> Family:
    """Layers with three unsafe activations of rank two, so that not every answer can be fitted."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "basis": _two_directions(draws),
            "Q": draws.normal((2,)),
            "W": draws.normal((2, FEATURES)),
            "R": draws.normal((2, 3)) * 10 ** draws.uniform(-1, 1),
            "other": draws.normal((2, FEATURES)) * 10 ** draws.uniform(-4, 1),
        }

    def build(p: dict[str, Any]) -> Edit:
        Q = jnp.concatenate([jnp.eye(2), jnp.tanh(p["Q"])[:, None]], axis=1)
        return Edit(p["W"], _columns(p["basis"], 0.3), Q, p["R"], jnp.ones(FEATURES), p["other"])

    return Family(sample, build)


def rank_one() -> Family:
    """Alignment directions of rank one, and updates."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {"v": draws.normal((FEATURES,)), "w": draws.normal((FEATURES,)), "update": draws.normal((FEATURES, 2))}

    def build(p: dict[str, Any]) -> Aligned:
        return Aligned(jnp.outer(p["v"], p["w"]), p["update"])

    return Family(sample, build)


def smoothed() -> Family:
    """Scores on boxes; displacements from tiny ones to six standard deviations of the noise."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "first": draws.normal((2,)),
            "gaps": draws.normal((2, 2)),
            "values": 4 * draws.normal((2, 4)),
            "way": draws.normal((3,)),
            "plane": draws.flip(0.5),
            "how_far": draws.uniform(-4, 0.5),
        }

    def build(p: dict[str, Any]) -> Smoothed:
        near, far = decades(p["gaps"])
        cuts = jnp.stack([p["first"], p["first"] + near, p["first"] + near + far], axis=1)
        values = 1e-6 + (1 - 2e-6) * jax.nn.sigmoid(p["values"])
        way = 6 * jnp.tanh(10 ** p["how_far"]) * p["way"] / length(p["way"])
        return Smoothed(cuts, values, way[:2], jnp.where(p["plane"], 0, way[2]))

    return Family(sample, build)


SHAPED = shaped()
POSSIBLE_TOKENS = shaped(possible=True)
TOKEN = tokens()


# --- what training on benign contexts does to harmful ones ------------------------------------------------------


@theorem(
    "interference",
    title="interference law",
    statement=r"\text{gradient descent on benign contexts }\Phi_B:\quad z_h(t)-z_h(0)=\varphi_h^\top\Phi_B^+\,(Z_B(t)-Z_B(0)),\qquad "
    r"\text{one context}:\ \kappa=\frac{\langle\varphi_h,\varphi_b\rangle}{\|\varphi_b\|^2}",
    family=interfering(),
    parts=("one context", "several contexts", "nothing without overlap"),
    relation="==",
    assumptions=(NO_DECAY, PLAIN),
    without={
        "no weight decay": lambda: _interfering(decay=0.1),
        "plain gradient": lambda: _interfering(scale=(1.0, 0.1, 0.1)),
    },
    makes_precise="high similarity of representations between alignment and fine-tuning data weakens guardrails",
    tolerance=IDENTITY,
)
def harm_comes_only_through_shared_features(instance: Interference) -> Sides:
    """Plain training on benign contexts moves a harmful one exactly as far as its features are among theirs."""
    benign, harmful = instance.benign, instance.harmful
    alone, both = (_fine_tune(instance, jnp.array(seen)) for seen in ((1.0, 0.0), (1.0, 1.0)))
    first = benign[0]
    kappa = jnp.dot(harmful, first) / jnp.sum(first**2)
    # Φ⁺ = Φᵀ(ΦΦᵀ)⁻¹ for features that are independent.
    through = jax.vmap(lambda v: solved(benign @ benign.T, v), 1, 1)(benign @ both)
    apart = harmful - kappa * first
    missed = jnp.stack([
        length(harmful @ alone - kappa * (first @ alone)) / (length(harmful) * length(alone)),
        length(harmful @ both - (harmful @ benign.T) @ through) / (length(harmful) * length(both)),
        length(apart @ alone) / (length(harmful) * length(alone)),
    ])  # fmt: skip
    return 1 + missed, jnp.ones((3,))


# --- losses -----------------------------------------------------------------------------------------------------


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


# --- data and selection -----------------------------------------------------------------------------------------


@theorem(
    "lookahead",
    title="a previewed token is hardly learnt",
    statement=r"p_y\text{ with }k\text{ added to its logit}:\ 1-p_y'=F(1-p_y),\ p'-e_y=F(p-e_y),\ F=\frac1{1-p_y+p_ye^k};\quad "
    r"\|p'-e_y\|_1=2(1-p_y')",
    family=previews(),
    parts=("complement", "gradient", "its length"),
    relation="==",
    makes_precise="showing the model the start of its answer keeps the first tokens where they are",
    source="lookahead2025",
    tolerance=IDENTITY,
)
def a_preview_shrinks_the_gradient(instance: Preview) -> Sides:
    """A preview of the answer shrinks the gradient on the previewed token by one known factor, and changes nothing else."""
    z, y = instance.logits, instance.label
    here = jnp.arange(len(z)) == y

    def entropy(logits: Array) -> Array:
        return -at_label(jax.nn.log_softmax(logits), y)

    shown = jnp.where(here, z + instance.copy, z)
    slope, plain = jax.grad(entropy)(shown), jax.grad(entropy)(z)
    p = jax.nn.softmax(z)
    left_out = jnp.sum(jnp.where(here, 0, p))
    F = 1 / (left_out + at_label(p, y) * jnp.exp(instance.copy))
    complement = jnp.sum(jnp.where(here, 0, jax.nn.softmax(shown)))
    # The other tokens' share of it: the label's own is their sum, and comes out of terms of order one.
    slope_off, plain_off = (jnp.where(here, 0, v) for v in (slope, plain))
    missed = length(slope_off - F * plain_off) / length(slope_off)
    return (
        jnp.stack([complement, 1 + missed, jnp.sum(jnp.abs(slope))]),
        jnp.stack([F * left_out, jnp.ones_like(F), 2 * F * left_out]),
    )


@theorem(
    "seal",
    title="a data selector follows a softmax gradient flow",
    statement=r"p=\mathrm{softmax}(\omega),\ \dot\omega=-\nabla\sum p_il_i:\quad\dot\omega_i=-p_i(l_i-\bar l),\ \bar l=\sum p_jl_j,\quad "
    r"\dot p_i=p_i\big[-p_i(l_i-\bar l)+\sum_jp_j^2(l_j-\bar l)\big]",
    family=selectors(),
    parts=("selector", "weights", "a bad row of two"),
    relation="==",
    makes_precise="a selector learns which training rows are safe",
    source="seal2024",
    tolerance=IDENTITY,
)
def a_selector_forgets_bad_rows_slowly(instance: Selector) -> Sides:
    """Rows lose weight in proportion to the square of it, so that a bad row fades only like one over time."""
    omega, losses = instance
    spread = length(losses - jnp.mean(losses))

    def mean_loss(omega: Array) -> Array:
        return jnp.sum(jax.nn.softmax(omega) * losses[: len(omega)])

    p = jax.nn.softmax(omega)
    above = losses - jnp.sum(p * losses)
    velocity = -jax.grad(mean_loss)(omega)
    moved = jax.jvp(jax.nn.softmax, (omega,), (velocity,))[1]
    stated = p * (-p * above + jnp.sum(p**2 * above))
    # Two rows alone: 1/p of the worse one grows at the rate 2(l - l')(1 - p)². At shares at which 1/p keeps its digits.
    two = omega[:2] / 4
    rate = jax.jvp(lambda w: 1 / jax.nn.softmax(w)[1], (two,), (-jax.grad(mean_loss)(two),))[1]
    faded = 2 * (losses[1] - losses[0]) * jax.nn.softmax(two)[0] ** 2
    size = jnp.abs(losses[0]) + jnp.abs(losses[1])
    missed = [length(velocity + p * above) / spread, length(moved - stated) / spread, jnp.abs(rate - faded) / size]
    return 1 + jnp.stack(missed), jnp.ones((3,))


# --- weights ----------------------------------------------------------------------------------------------------


@theorem(
    "minimum-norm-edit",
    title="safety training of a layer is a minimum-norm edit",
    statement=r"\text{descent on }\|WU-R\|^2\text{ from }W_0\text{ ends at }W_0+\Delta W,\ \Delta W=(R-W_0U)U^+:\quad "
    r"\Delta Wx=0\ \forall x\perp\mathrm{span}\,U,\quad\|\Delta W\|_F\text{ least}",
    family=edits(),
    parts=("ends there", "safe inputs", "no better fit", "no smaller edit"),
    relation=("==", "==", "<=", "<="),
    assumptions=(PLAIN,),
    without={"plain gradient": lambda: _edit(scale=(1.0, 4.0, 1.0))},
    tight=Tight(lambda: _edit()),
    makes_precise="safety fine-tuning minimally changes weights so that unsafe inputs are sent elsewhere",
    source="makesandbreaks2024",
    tolerance=IDENTITY,
)
def safety_training_edits_only_what_it_sees(instance: Edit) -> Sides:
    """Fitting unsafe activations by plain descent is the smallest edit that does it, and no other input notices."""
    W, P, Q, R = instance.W, instance.P, instance.Q, instance.R
    U = P @ Q
    residual = R - W @ U
    rate = 1 / jnp.sum(U**2)
    # Transposed: descent on the rows of the change.
    pull = instance.scale[:, None] * (U @ residual.T)
    ended = end_of(jnp.eye(FEATURES) - rate * (instance.scale[:, None] * (U @ U.T)), rate * pull, DOUBLINGS).T
    inner = jax.vmap(lambda v: solved(P.T @ P, v), 1, 1)(P.T)
    stated = residual @ Q.T @ jax.vmap(lambda v: solved(Q @ Q.T, v), 1, 1)(inner)
    size = length(residual) / length(U)
    safe = jnp.cross(P[:, 0], P[:, 1])
    # Any other change fits no better; one that fits as well, since it differs across U only, is no smaller.
    across = instance.other - instance.other @ P @ inner
    rival = W + stated + instance.other
    one = jnp.ones_like(size)
    return (
        jnp.stack([
            1 + length(ended - stated) / size, 1 + length(ended @ safe) / (size * length(safe)),
            length((W + ended) @ U - R), length(ended),
        ]),
        jnp.stack([one, one, length(rival @ U - R), length(stated + across)]),
    )  # fmt: skip


@theorem(
    "safe-lora",
    title="the projection of a rank-one alignment rescales",
    statement=r"C=VV^\top/\|V\|_F:\quad\cos(C\Delta W,\Delta W)\ge0;\qquad\mathrm{rank}\,V=1:\ C^2=\|V\|_FC,\quad "
    r"C\Delta W=\|V\|_F\Delta W\ (\text{range}),\quad=0\ (\text{across})",
    family=rank_one(),
    parts=("a projector up to scale", "rescales", "removes", "cosine"),
    relation=("==", "==", "==", ">="),
    assumptions=(RANK_ONE,),
    without={"rank one": lambda: Aligned(jnp.eye(FEATURES), jnp.ones((FEATURES, 2)))},
    makes_precise="projecting updates on the alignment direction restores safety",
    source="safelora2024",
    tolerance=IDENTITY,
)
def a_projection_that_also_rescales(instance: Aligned) -> Sides:
    """The published projection is one only up to its norm: what it keeps it rescales, what it does not keep it removes."""
    V, update = instance.V, instance.update
    norm = length(V)
    C = V @ V.T / norm
    kept = V @ jnp.eye(FEATURES)[:, :2]
    direction = V[:, 0] / length(V[:, 0])
    removed = update - jnp.outer(direction, direction @ update)
    cosine = jnp.sum((C @ update) * update) / (norm * jnp.sum(update**2))
    missed = [
        length(C @ C - norm * C) / norm**2,
        length(C @ kept - norm * kept) / norm**2,
        length(C @ removed) / (norm * length(update)),
    ]
    one = jnp.ones_like(norm)
    return jnp.stack([*(1 + x for x in missed), cosine]), jnp.stack([one, one, one, 0 * one])


@theorem(
    "basin",
    title="what a smoothed score guarantees",
    statement=r"S\in[0,1],\ \bar S(\theta)=\mathbb E\,S(\theta+\epsilon),\ \epsilon\sim N(0,\sigma^2I):"
    r"\quad\bar S(\theta)\ge\Phi\big(\Phi^{-1}(\bar S(\theta_0))-\tfrac{\|\theta-\theta_0\|}\sigma\big),"
    r"\quad|\bar S(\theta)-\bar S(\theta_0)|\le\tfrac{\|\theta-\theta_0\|}{\sqrt{2\pi}\sigma}",
    family=smoothed(),
    parts=("certificate", "Lipschitz"),
    relation=(">=", "<="),
    assumptions=(SCORE,),
    without={"a score in [0, 1]": lambda: _half_space(height=3.0, at=0.5)},
    tight=Tight(lambda: _half_space()),
    makes_precise="fine-tuning that stays within a basin keeps what the model could do",
    source="basin2025",
)
def smoothed_safety_cannot_fall_faster_than_a_half_space(instance: Smoothed) -> Sides:
    """Safety averaged over random perturbations falls no faster with distance than that of a model at the edge."""
    start, start_missing = _expected(instance, jnp.zeros(2))
    here, _ = _expected(instance, instance.moved)
    far = length(jnp.append(instance.moved, instance.aside))
    # From the smaller tail, which keeps its digits.
    low = start < 0.5
    edge = jnp.where(low, ndtri(jnp.where(low, start, 0.5)), -ndtri(jnp.where(low, 0.5, start_missing)))
    return jnp.stack([here, jnp.abs(here - start)]), jnp.stack([normal_law(edge - far), far / math.sqrt(2 * math.pi)])


# --- what only these claims need --------------------------------------------------------------------------------


def mixture(r: Array, label: Array, value: Array, strength: Array) -> Array:
    """Where the whole divergence leaves a token: its value's share at the label, the rest at the reference."""
    held = (1 - value) * strength
    return (jnp.where(jnp.arange(len(r)) == label, value, 0) + held * r) / (value + held)


def at_label(values: Array, label: Array) -> Array:
    """The entry of a token."""
    return jnp.sum(jnp.where(jnp.arange(len(values)) == label, values, 0))


def _held(instance: Shaped) -> Array:
    """The weight of the divergence."""
    return (1 - instance.value) * instance.strength


def _margins(q: Array, beta: Array) -> Array:
    """Logits over the reference's at which the first two pairs have their margins."""
    m = (jnp.log(q) - jnp.log1p(-q)) / beta
    return jnp.stack([m[0] + m[1], m[1], 0 * m[1]])


def _fine_tune(instance: Interference, seen: Array) -> Array:
    """The change of the parameters after gradient descent on the contexts that are seen."""

    def loss(theta: Array) -> Array:
        log_p = jax.nn.log_softmax(instance.benign @ theta, axis=-1)
        return -jnp.sum(seen * jax.vmap(at_label)(log_p, instance.labels))

    def step(at: tuple[Array, Array], rate: Array) -> tuple[tuple[Array, Array], None]:
        theta, velocity = at
        velocity = instance.momentum * velocity + instance.scale[:, None] * jax.grad(loss)(theta)
        return (theta - rate * (velocity + instance.decay * theta), velocity), None

    start = instance.start
    return jax.lax.scan(step, (start, jnp.zeros_like(start)), instance.rates)[0][0] - start


def _expected(instance: Smoothed, moved: Array) -> tuple[Array, Array]:
    """The smoothed score, and one minus it, both to their own digits."""
    edge = jnp.full((2, 1), TAIL)
    ends = jnp.concatenate([-edge, instance.cuts, edge], axis=1) - moved[:, None]
    below = normal_law(ends)
    cells = below[:, 1:] - below[:, :-1]
    scores, missing = (jnp.sum(cells * v, axis=1) for v in (instance.values, 1 - instance.values))
    return scores[0] * scores[1], missing[0] + missing[1] - missing[0] * missing[1]


def normal_law(x: Array) -> Array:
    """The standard normal law's mass below x, to the last bit of one half: 1/2 + φ(x) Σ x²ⁿ⁺¹/(2n+1)!!, in any precision."""
    x = jnp.clip(x, -NORMAL_ENDS, NORMAL_ENDS)

    def term(at: tuple[Array, Array], odd: Array) -> tuple[tuple[Array, Array], None]:
        last, total = at
        following = last * x**2 / odd
        return (following, total + following), None

    total = jax.lax.scan(term, (x, x), jnp.asarray(np.arange(3.0, 2 * NORMAL_TERMS, 2.0)))[0][1]
    return 0.5 + jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) * total


def _interfering(decay: float = 0.0, scale: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Interference:
    benign = jnp.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    start = jnp.arange(FEATURES * TOKENS).reshape(FEATURES, TOKENS) / 10
    return Interference(
        benign, jnp.array([1.0, 0.0, 1.0]), jnp.array([0, 1]), start, jnp.full((STEPS,), 0.1), jnp.float64(0.5),
        jnp.float64(decay), jnp.array(scale),
    )  # fmt: skip


def _shaped(reverse: float = 0.0, ruled_out: bool = False, other: tuple[float, float] = (0.0, 0.0)) -> Shaped:
    """Two tokens at V = 1/2; at λ = 1 the shipped estimator multiplies the first by e."""
    reference = [0.0, 1.0] if ruled_out else [0.1, 0.9]
    strength = jnp.float64(0.5 if reverse or ruled_out else 1.0)
    return Shaped(
        jnp.array(reference), jnp.array(0), jnp.float64(0.5), strength, jnp.array(other), jnp.float64(reverse)
    )


def _cycle(closed: bool = True) -> Pairs:
    """Each response is preferred to the next, all the way round."""
    q = jnp.full((3,), 0.8)
    margins = _margins(q, jnp.ones(()))
    return Pairs(jnp.zeros(3), q, jnp.array([1.0, 1.0, 1.0 if closed else 0.0]), jnp.ones(()), margins)


def _token(extent: float) -> Token:
    return Token(jnp.zeros(2), jnp.zeros(2), jnp.array(0), jnp.ones(()), jnp.float64(extent))


def _edit(scale: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Edit:
    P = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    Q = jnp.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    R = jnp.array([[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]])
    return Edit(jnp.zeros((2, FEATURES)), P, Q, R, jnp.array(scale), jnp.zeros((2, FEATURES)))


def _half_space(height: float = 1.0, at: float = 0.0) -> Smoothed:
    """A score of `height` on one side of a plane and 0 on the other; the move goes straight across."""
    cuts = jnp.array([[at, at + 1, at + 2], [0.0, 1.0, 2.0]])
    values = jnp.array([[0.0, height, height, height], [1.0, 1.0, 1.0, 1.0]])
    return Smoothed(cuts, values, jnp.array([-1.0, 0.0]), jnp.zeros(()))
