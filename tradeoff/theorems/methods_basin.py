"""Smoothed scores: how fast safety that is averaged over random perturbations can fall with distance."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array

from tradeoff.theorems._linear import length
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.methods_instances import decades

NORMAL_ENDS, NORMAL_TERMS = 9.0, 160
"""Beyond nine standard deviations the normal law is 0 or 1 to the last bit; up to there its series has so many terms."""
TAIL = 50.0
"""Where the outermost boxes of a score end: past every displacement by many standard deviations."""


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

SCORE = Assumption(
    "a score in [0, 1]", "the score is between 0 and 1", lambda i: jnp.all((i.values >= 0) & (i.values <= 1))
)


# --- families ---------------------------------------------------------------------------------------------------


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


# --- what a basin guarantees ------------------------------------------------------------------------------------


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


# --- what only this claim needs ---------------------------------------------------------------------------------


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


def _half_space(height: float = 1.0, at: float = 0.0) -> Smoothed:
    """A score of `height` on one side of a plane and 0 on the other; the move goes straight across."""
    cuts = jnp.array([[at, at + 1, at + 2], [0.0, 1.0, 2.0]])
    values = jnp.array([[0.0, height, height, height], [1.0, 1.0, 1.0, 1.0]])
    return Smoothed(cuts, values, jnp.array([-1.0, 0.0]), jnp.zeros(()))
