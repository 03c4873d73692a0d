"""What several published methods are checked on: pairs of quadratics with the settings of a rule, tokens and features."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.problems.quadratic import Quadratic, spectrum
from tradeoff.theorems import landscapes as land
from tradeoff.theorems._linear import solved, turned
from tradeoff.theorems.claim import Assumption, Family
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.landscapes import SIZE

MERGING = "merging the weights before and after fine-tuning keeps safety and most of the capability"
AVERAGE = "averaging the weights keeps the aligned model's safety without safety data"
SOON = 1e-6
"""A small number of an asymptotic law: its next term weighs about this much."""
STEPS = 24
"""Steps of descent that a run may take: closed forms are checked at any number up to it."""
TOKENS, FEATURES = 4, 3


class Tuned(NamedTuple):
    """A pair of quadratics with the settings of a fine-tuning rule.

    Args:
        quad: the pair.
        step: the learning rate h.
        steps: how many steps are taken, at most `STEPS`.
        strength: the weight of a pull, or of safety against the task.
        share: how much of the tuned model goes into a merge.
        drop: the probability with which an entry of the task vector is dropped.
        time: a time of the gradient flow.
        theta: any parameters.
    """

    quad: Quadratic
    step: Array
    steps: Array
    strength: Array
    share: Array
    drop: Array
    time: Array
    theta: Array


# --- assumptions ------------------------------------------------------------------------------------------------

STABLE = Assumption(
    "stable step",
    "the learning rate is below two over the largest curvature",
    lambda i: i.step * spectrum(i.quad.H_f)[0][-1] < 2,
)
SHARE_INSIDE = Assumption("between the two", "0 ≤ λ ≤ 1", lambda i: (i.share >= 0) & (i.share <= 1))
PLAIN = Assumption(
    "plain gradient",
    "no preconditioner (Adam, say) treats one input differently from another",
    lambda i: jnp.all(i.scale == i.scale[0]),
)


# --- families ---------------------------------------------------------------------------------------------------


@cache
def tuned(*, isotropic_task: bool = False, parallel: bool = False, **options: Any) -> Family:
    """Pairs of quadratics with the settings of a rule; options as `landscapes.quadratics`.

    Args:
        isotropic_task: whether the task Hessian is a multiple of the identity.
        parallel: whether both losses pull along one line between the two optima.
        **options: the other options of the pair.
    """
    pairs = land.quadratics(**options)

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(jax.random.fold_in(key, 1))
        return {
            "pair": pairs.sample(key),
            "step": 2 * draws.normal(),
            "steps": draws.index(STEPS + 1),
            "strength": draws.uniform(-2, 2),
            "share": 2 * draws.normal(),
            "drop": 2 * draws.normal(),
            "across": draws.normal((SIZE,)),
        }

    def build(p: dict[str, Any]) -> Tuned:
        at = pairs.build(p["pair"])
        quad, d = at.quad, at.quad.displacement
        stiff = jnp.trace(quad.H_f)
        if isotropic_task:
            quad = Quadratic(jnp.eye(SIZE) * (stiff / SIZE), quad.theta_f, quad.H_s, quad.theta_s)
        if parallel:
            # H_s d ∥ H_f d: a multiple of H_f, and more curvature across the way only.
            across = jnp.cross(d, p["across"])
            H_s = quad.H_f * quad.H_s[0, 0] / quad.H_f[0, 0] + jnp.outer(across, across)
            quad = Quadratic(quad.H_f, quad.theta_f, H_s, quad.theta_s)
        return Tuned(
            quad=quad,
            step=2 * _inside(p["step"]) / stiff,
            steps=p["steps"],
            strength=stiff * decades(p["strength"], 3.0),
            share=_inside(p["share"]),
            drop=_inside(p["drop"]),
            time=at.time / stiff,
            theta=at.theta,
        )

    return Family(sample, build)


def decades(z: Array, count: float = 1.0) -> Array:
    """Positive, within `count` decades of one."""
    return jnp.exp(count * jnp.log(10.0) * jnp.tanh(z))


def _inside(z: Array) -> Array:
    """In (0, 1), and away from both ends: what decays so slowly that rounding wins is no test."""
    return jax.nn.sigmoid(6 * jnp.tanh(z / 6))


def two_directions(draws: Draws) -> dict[str, Any]:
    """Parameters of two directions in the space of features."""
    return {"mirrors": draws.normal((2, FEATURES)), "angle": draws.normal(), "sizes": draws.normal((2,))}


def columns(p: dict[str, Any], within: float) -> Array:
    """Two vectors that are not parallel, in columns."""
    axes, cosine = turned(p["mirrors"]), 0.8 * jnp.tanh(p["angle"])
    second = cosine * axes[:, 0] + jnp.sqrt(1 - cosine**2) * axes[:, 1]
    return jnp.stack([axes[:, 0], second], axis=1) * decades(p["sizes"], within)[None, :]


TUNED = tuned(decades=2.0, flat_task=False)
FLAT_TASK = tuned(decades=2.0)


# --- what several claims need -----------------------------------------------------------------------------------


def front_displacement(quad: Quadratic, nu: Array) -> Array:
    """The point of the front where a unit of safety loss is worth ν of task loss, from the aligned parameters."""
    return solved(quad.H_f + nu * quad.H_s, quad.pull)


def along_axes(
    task: list[float], d: list[float], *, safety: list[float] | None = None, step: float = 0.1, share: float = 0.25,
    drop: float = 0.5, theta: float = 0.5,
) -> Tuned:  # fmt: skip
    """A pair along the coordinates, aligned at zero, three steps on; θ is `theta` of the way."""
    way = jnp.array(d)
    quad = Quadratic(jnp.diag(jnp.array(task)), way, jnp.diag(jnp.array(safety or [1.0, 1.0, 1.0])), jnp.zeros(SIZE))
    one = jnp.ones(())
    return Tuned(quad, jnp.float64(step), jnp.array(3), one, jnp.float64(share), jnp.float64(drop), one, theta * way)


def at_label(values: Array, label: Array) -> Array:
    """The entry of a token."""
    return jnp.sum(jnp.where(jnp.arange(len(values)) == label, values, 0))
