"""The interference law: what training on benign contexts does to harmful ones."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.theorems._linear import length, solved
from tradeoff.theorems.claim import Assumption, Family, Sides, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.methods_instances import FEATURES, PLAIN, TOKENS, at_label, columns, decades, two_directions
from tradeoff.tolerances import IDENTITY

STEPS = 10
"""Steps of a run of gradient descent; the laws hold after each of them."""


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


# --- assumptions ------------------------------------------------------------------------------------------------

NO_DECAY = Assumption("no weight decay", "weights are not pulled to zero", lambda i: i.decay == 0)


# --- families ---------------------------------------------------------------------------------------------------


def interfering() -> Family:
    """Softmax-linear policies with a run of gradient descent, short steps and long ones."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "benign": two_directions(draws),
            "harmful": draws.normal((FEATURES,)) * 10 ** draws.uniform(-1, 1),
            "labels": draws.index(TOKENS, (2,)),
            "start": draws.normal((FEATURES, TOKENS)),
            "rates": draws.normal((STEPS,)),
            "momentum": 2 * draws.normal(),
        }

    def build(p: dict[str, Any]) -> Interference:
        benign = columns(p["benign"], 0.5).T
        rates = decades(p["rates"]) / jnp.sum(benign**2)
        return Interference(
            benign, p["harmful"], p["labels"], p["start"], rates, jax.nn.sigmoid(p["momentum"]), jnp.zeros(()), jnp.ones(FEATURES)
        )  # fmt: skip

    return Family(sample, build)


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


# --- what only this claim needs ---------------------------------------------------------------------------------


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


def _interfering(decay: float = 0.0, scale: tuple[float, ...] = (1.0, 1.0, 1.0)) -> Interference:
    benign = jnp.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    start = jnp.arange(FEATURES * TOKENS).reshape(FEATURES, TOKENS) / 10
    return Interference(
        benign, jnp.array([1.0, 0.0, 1.0]), jnp.array([0, 1]), start, jnp.full((STEPS,), 0.1), jnp.float64(0.5),
        jnp.float64(decay), jnp.array(scale),
    )  # fmt: skip
