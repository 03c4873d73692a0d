"""The quartic onset: how safety is lost though the task pulls across it, by curvature and by a safe direction that turns."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from tradeoff.dynamics.quadratic import quadratic_flow
from tradeoff.problems.quadratic import Quadratic
from tradeoff.theorems._linear import solved
from tradeoff.theorems.claim import Assumption, Family, Sides, Tight, theorem
from tradeoff.theorems.draws import Draws
from tradeoff.theorems.methods_instances import SOON, decades
from tradeoff.tolerances import EXACT, IDENTITY, LIMIT


class Bent(NamedTuple):
    """Two parameters, of which only the first matters for safety; the task pulls along the second.

    Args:
        A: Hessian of the task loss.
        pull: where the task pulls the aligned parameters.
        s: the safety curvature.
        turn: how fast the safe direction turns.
        time: a time of the gradient flow.
    """

    A: Array
    pull: Array
    s: Array
    turn: Array
    time: Array


# --- assumptions ------------------------------------------------------------------------------------------------

PULLS_ACROSS = Assumption(
    "task pulls across", "the task does not pull where safety is curved", lambda i: i.pull[0] == 0
)
CONVEX_TASK = Assumption(
    "convex task loss",
    "the task Hessian is positive semidefinite",
    lambda i: i.A[0, 0] * i.A[1, 1] >= i.A[0, 1] ** 2 * (1 - EXACT.relative),
)


# --- families ---------------------------------------------------------------------------------------------------


@cache
def bent() -> Family:
    """Two parameters; the task pulls along the one that does not matter for safety."""

    def sample(key: Array) -> dict[str, Any]:
        draws = Draws(key)
        return {
            "p": draws.normal(),
            "q": draws.normal(),
            "mixed": 2 * draws.normal(),
            "pull": draws.normal(),
            "s": draws.normal(),
            "turn": draws.normal(),
            "time": 2 * draws.normal(),
        }

    def build(p: dict[str, Any]) -> Bent:
        first, second = decades(p["p"]), decades(p["q"])
        # The mixed curvature decides how the path bends: of either sign, up to the edge of convexity, not zero.
        size = 0.01 + 0.98 * jnp.tanh(jnp.abs(p["mixed"]))
        mixed = jnp.where(p["mixed"] < 0, -size, size) * jnp.sqrt(first * second)
        A = jnp.stack([jnp.stack([first, mixed]), jnp.stack([mixed, second])])
        pull = jnp.stack([jnp.zeros(()), jnp.where(p["pull"] < 0, -1, 1) * decades(p["pull"])])
        return Bent(A, pull, decades(p["s"]), decades(p["turn"]), decades(p["time"]) ** 2)

    return Family(sample, build)


BENT = bent()


# --- quartic onset ----------------------------------------------------------------------------------------------


@theorem(
    "quartic-onset",
    title="quartic onset in two parameters",
    statement=r"L_s=\tfrac s2x^2,\ A=\begin{pmatrix}p&c\\c&q\end{pmatrix},\ (Aa)_x=0,\ g_y=(Aa)_y:\quad "
    r"L_s(t)=\tfrac18sc^2g_y^2\,t^4+O(t^5)",
    family=BENT,
    relation="==",
    assumptions=(PULLS_ACROSS, CONVEX_TASK),
    without={
        "task pulls across": lambda: _bent(pull=(1e-3, 1.0)),
        "convex task loss": "not needed for the onset, only for a task loss with a minimum",
    },
    makes_precise="alignment collapses with the fourth power of time though the task's gradient is orthogonal to it",
    source="collapse2026",
    tolerance=LIMIT,
)
def curvature_bends_the_path_into_the_safe_direction(instance: Bent) -> Sides:
    """A task that does not pull where safety is curved gets there all the same, with the fourth power of time."""
    g = instance.pull
    # The next term of the onset is (p + q)t/3 of it.
    time = 10 * SOON / jnp.trace(instance.A)
    quad = Quadratic(instance.A, solved(instance.A, g), jnp.diag(jnp.stack([instance.s, 0 * instance.s])), jnp.zeros(2))
    lost = quadratic_flow(quad, 0.0, time).gaps.safety
    return lost / time**4, instance.s * (instance.A[0, 1] * g[1]) ** 2 / 8


@theorem(
    "quartic-turning",
    title="a safe direction that turns",
    statement=r"L_s=\tfrac s2(x-\tfrac k2y^2)^2,\ x=0:\quad L_s(t)=\tfrac18sk^2y^4,\ y=g_y\tfrac{1-e^{-qt}}q,\quad "
    r"L_s(t)\le\tfrac18sk^2g_y^4t^4",
    family=BENT,
    parts=("exact", "at most"),
    relation=("==", "<="),
    assumptions=(CONVEX_TASK,),
    without={"convex task loss": lambda: _concave()},
    tight=Tight(lambda: _bent(q=0.0)),
    makes_precise="no fixed projector removes the collapse: the safe direction turns along the way",
    source="collapse2026",
    tolerance=IDENTITY,
)
def a_fixed_projector_does_not_follow_a_turning_direction(instance: Bent) -> Sides:
    """With the first safe direction frozen safety is still lost, with the fourth power of time, once that direction turns."""
    s, k, g, q = instance.s, instance.turn, instance.pull[1], instance.A[1, 1]
    time = instance.time / (1 + jnp.abs(q))

    def step(y: Array, _: None) -> tuple[Array, None]:
        # The flow y' = g - q y, by its Taylor series over a short time.
        rate, h = g - q * y, time / 128
        series = 1 - q * h / 2 * (1 - q * h / 3 * (1 - q * h / 4 * (1 - q * h / 5 * (1 - q * h / 6 * (1 - q * h / 7)))))
        return y + h * rate * series, None

    y = jax.lax.scan(step, jnp.zeros_like(g), None, 128)[0]
    lost = s * (k * y**2 / 2) ** 2 / 2
    filled = g * jnp.where(q == 0, time, -jnp.expm1(-q * time) / jnp.where(q == 0, 1, q))
    return jnp.stack([lost, lost]), s * k**2 * jnp.stack([filled**4, (g * time) ** 4]) / 8


# --- what only these claims need --------------------------------------------------------------------------------


def _bent(q: float = 1.0, pull: tuple[float, float] = (0.0, 1.0), c: float = 0.0) -> Bent:
    A = jnp.array([[1.0, c], [c, q]])
    one = jnp.ones(())
    return Bent(A, jnp.array(pull), one, one, one)


def _concave() -> Bent:
    """With the task bent downwards the path runs away faster than a straight one."""
    return _bent(q=-1.0)
