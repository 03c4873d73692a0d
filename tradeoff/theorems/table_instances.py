"""Families of tables of logits in a ball around the aligned ones: Case II in the rich class."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.problems.quadratic import length
from tradeoff.problems.tabular import Tabular
from tradeoff.theorems import instances as draw
from tradeoff.theorems.claim import Assumption, Family
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.instances import CONTEXTS, RESPONSES
from tradeoff.tolerances import IDENTITY
from tradeoff.worlds.world import World


class Table(NamedTuple):
    """A world, and logits within a ball around the aligned ones.

    Args:
        world: the world; its safety data have full support, so that aligned logits exist.
        radius: the radius ε.
        lam: a penalty.
        logits: logits at a distance of at most ε from the aligned ones.
    """

    world: World
    radius: Array
    lam: Array
    logits: Array

    @property
    def problem(self) -> Tabular:
        """The rich class over the world."""
        return Tabular(self.world)

    @property
    def step(self) -> Array:
        """Displacement of the logits from the aligned ones."""
        return self.logits - self.problem.aligned()


FULL_SAFETY = Assumption(
    "full-support safety data",
    "the safety data give every response positive probability, so that aligned logits exist",
    lambda i: jnp.all(i.world.safety.P > 0),
)
IN_BALL = Assumption(
    "in the ball",
    "the logits are within the radius of the aligned ones",
    lambda i: length(i.step) <= i.radius * (1 + IDENTITY.relative),
)
SMALL_BALL = Assumption(
    "small ball",
    "half the curvature times the radius squared is below the mismatch of the proxy",
    lambda i: jnp.max(i.world.safety.p) * i.radius**2 / 4 < i.world.proxy_mismatch,
)


@cache
def tables(*, proxy: Any = "exact", mismatch: bool = False) -> Family:
    """Worlds with logits in a ball around the aligned ones: at random, or where a step of the task's gradient leads.

    Args:
        proxy: as in `instances.world_parameters`.
        mismatch: whether the ball is so small that half its curvature is below the mismatch of the proxy (T18(b)).
    """

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "world": draw.world_parameters(draws, full_support=True, proxy=proxy),
            "log_lam": draws.log_penalty(),
            "direction": draws.normal((CONTEXTS, RESPONSES)),
            "downhill": draws.flip(0.5),
            "log_radius": draws.uniform(-4, 1.5) * jnp.log(10.0),
            "inside": 3 * draws.normal() + 2,
        }

    def build(p: dict[str, Any]) -> Table:
        made = draw.world(p["world"])
        aligned = Tabular(made).aligned()
        toward = jnp.where(p["downhill"], pull(made), p["direction"])
        radius = jnp.exp(p["log_radius"])
        if mismatch:
            most = jnp.sqrt(4 * made.proxy_mismatch / jnp.max(made.safety.p))
            radius = most * jax.nn.sigmoid(p["log_radius"])
        way = radius * jax.nn.sigmoid(p["inside"])
        norm = length(toward)
        step = way * toward / jnp.where(norm > 0, norm, 1)
        return Table(made, radius, jnp.exp(p["log_lam"]), aligned + step)

    return Family(sample, build)


def pull(world: World) -> Array:
    r"""$g=-\nabla L_f$ at the aligned logits: $p_f(P_f-P_s)$ in every context."""
    return world.capability.p[:, None] * (world.capability.P - world.safety.P)
