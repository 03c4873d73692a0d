"""Data and its selection: previewed answers are hardly learnt, and a selector forgets bad rows slowly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.theorems._linear import length
from tradeoff.theorems.claim import Family, Sides, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.instances import bounded
from tradeoff.theorems.methods_instances import TOKENS, at_label
from tradeoff.tolerances import IDENTITY


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


# --- families ---------------------------------------------------------------------------------------------------


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
