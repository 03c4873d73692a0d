"""Merges of the weights before and after fine-tuning: the square-root law, dropping at random, spherical merging."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.problems.quadratic import half_square
from tradeoff.theorems._linear import length, turned
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.landscapes import SIZE
from tradeoff.theorems.methods_instances import (
    FLAT_TASK,
    MERGING,
    SHARE_INSIDE,
    SOON,
    TUNED,
    Tuned,
    along_axes,
    front_displacement,
)
from tradeoff.tolerances import IDENTITY, LIMIT


class Merged(NamedTuple):
    """Two models of nearly one direction, and how much of the second goes into their merge.

    Args:
        first: the weights before.
        second: the weights after.
        share: how much of the second is taken.
    """

    first: Array
    second: Array
    share: Array


# --- assumptions ------------------------------------------------------------------------------------------------

SOME_KEPT = Assumption("some entries kept", "the drop probability is below one", lambda i: i.drop < 1)
BOTH_CURVED = Assumption(
    "both losses curved on the way",
    "both losses change between the two optima",
    lambda i: (half_square(i.quad.H_f, i.quad.displacement) > 0) & (half_square(i.quad.H_s, i.quad.displacement) > 0),
)
EQUAL_NORMS = Assumption(
    "equal norms",
    "both models have the same norm",
    lambda i: jnp.abs(length(i.first) - length(i.second)) <= IDENTITY.relative * length(i.first),
)


# --- families ---------------------------------------------------------------------------------------------------


def nearly_parallel() -> Family:
    """Two models of one norm, at a small angle."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "mirrors": draws.normal((2, SIZE)),
            "angle": draws.normal(),
            "share": draws.normal(),
            "size": draws.normal(),
        }

    def build(p: dict[str, Any]) -> Merged:
        axes = turned(p["mirrors"])
        angle = SOON**0.5 * jnp.exp(jnp.tanh(p["angle"]))
        size = jnp.exp(jnp.tanh(p["size"]))
        first = size * axes[:, 0]
        return Merged(
            first, jnp.cos(angle) * first + jnp.sin(angle) * size * axes[:, 1], 0.1 + 0.8 * jax.nn.sigmoid(p["share"])
        )

    return Family(sample, build)


# --- merging ----------------------------------------------------------------------------------------------------


@theorem(
    "square-root",
    title="square-root law of merging",
    statement=r"\theta=b+\lambda d,\ 0\le\lambda\le1:\quad\sqrt{L_u/L_u(0)}+\sqrt{L_s/L_s(1)}=1;\quad\text{on the front}\le1",
    family=TUNED,
    parts=("along the merge", "on the front"),
    relation=("==", "<="),
    assumptions=(BOTH_CURVED, SHARE_INSIDE),
    without={
        "both losses curved on the way": "where a loss does not change on the way there is nothing to divide by",
        "between the two": lambda: along_axes([3.0, 2.0, 1.0], [0.3, 0.2, 0.1], share=1.5),
    },
    tight=Tight(lambda: along_axes([2.0, 2.0, 2.0], [0.3, 0.2, 0.1])),
    makes_precise=MERGING,
    source="merging2024",
    tolerance=IDENTITY,
)
def a_merge_trades_root_for_root(instance: Tuned) -> Sides:
    """Along a merge the roots of the two losses, each relative to its end, add up to one; the best curve lies below."""
    quad, d = instance.quad, instance.quad.displacement
    start, end = half_square(quad.H_f, d), half_square(quad.H_s, d)
    theta_merged = (1 - instance.share) * quad.theta_s + instance.share * quad.theta_f
    merged = quad.gaps(theta_merged)
    delta = front_displacement(quad, instance.strength)
    sums = [
        jnp.sqrt(f / start) + jnp.sqrt(s / end)
        for f, s in (
            (merged.capability, merged.safety),
            (half_square(quad.H_f, delta - d), half_square(quad.H_s, delta)),
        )
    ]
    return jnp.stack(sums), jnp.ones((2,))


@theorem(
    "dare-variance",
    title="what dropping at random costs",
    statement=r"\mathbb E[L(b+\lambda\hat d)]=L(b+\lambda d)+\tfrac12\lambda^2\tfrac p{1-p}\sum_iH_{ii}d_i^2,\quad\mathbb E\hat d=d",
    family=FLAT_TASK,
    parts=("loss", "unbiased", "never better"),
    relation=("==", "==", ">="),
    assumptions=(SOME_KEPT,),
    without={"some entries kept": "at p = 1 nothing is kept and the factor 1/(1-p) is infinite"},
    tight=Tight(lambda: along_axes([3.0, 2.0, 1.0], [0.3, 0.2, 0.1], drop=0.0)),
    makes_precise="dropping entries of the task vector and rescaling the rest keeps the tuned model's skill",
    source="merging2024",
    tolerance=IDENTITY,
)
def dropping_at_random_only_adds_noise(instance: Tuned) -> Sides:
    """Random dropping leaves the merge right on average, and in a convex bowl it can only cost."""
    quad, lam, p = instance.quad, instance.share, instance.drop
    d = quad.displacement
    kept = (jnp.arange(2**SIZE)[:, None] >> jnp.arange(SIZE)[None, :]) % 2 == 1
    chance = jnp.prod(jnp.where(kept, 1 - p, p), axis=-1)
    drawn = jnp.where(kept, d / (1 - p), 0)
    expected = jnp.sum(chance * jax.vmap(lambda v: half_square(quad.H_f, lam * v - d))(drawn))
    plain = half_square(quad.H_f, (lam - 1) * d)
    noise = lam**2 * p / (1 - p) * jnp.sum(jnp.diagonal(quad.H_f) * d**2) / 2
    mean = length(chance @ drawn - d) / length(d)
    one = jnp.ones_like(p)
    return jnp.stack([expected, 1 + mean, expected]), jnp.stack([plain + noise, one, plain])


@theorem(
    "slerp-lerp",
    title="spherical merging is linear merging",
    statement=r"\|\theta_0\|=\|\theta_1\|,\ W=\angle(\theta_0,\theta_1)\to0:\quad "
    r"\left\|\frac{\sin((1-\lambda)W)\,\theta_0+\sin(\lambda W)\,\theta_1}{\sin W}-(1-\lambda)\theta_0-\lambda\theta_1\right\|"
    r"\sim\tfrac12W^2\lambda(1-\lambda)\|\theta\|",
    family=nearly_parallel(),
    relation="==",
    assumptions=(EQUAL_NORMS,),
    without={"equal norms": lambda: Merged(jnp.array([1.0, 0.0]), jnp.array([1.2, 1e-3]), jnp.float64(0.5))},
    makes_precise=MERGING,
    source="merging2024",
    tolerance=LIMIT,
)
def merging_on_a_sphere_is_merging_on_a_line(instance: Merged) -> Sides:
    """For models that differ little, merging along the sphere and along the line differ by the square of their angle only."""
    first, second, lam = instance
    angle = 2 * jnp.arctan2(length(second - first), length(second + first))
    spherical = (jnp.sin((1 - lam) * angle) * first + jnp.sin(lam * angle) * second) / jnp.sin(angle)
    linear = (1 - lam) * first + lam * second
    return length(spherical - linear) / angle**2, lam * (1 - lam) * length(first) / 2
