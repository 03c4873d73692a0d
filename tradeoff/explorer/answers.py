"""What is shown of a view: curves, bounds, a flow and numbers, all by the package's own functions."""

import functools
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff import dynamics, frontier, loss_constraint, parameter_constraint, theorems
from tradeoff.explorer.view import RANGES, View, pair, world_of
from tradeoff.gaps import Gaps
from tradeoff.parameter_constraint import IsotropyPrice, TrustRegionPoint
from tradeoff.theorems.instances import AtPenalty
from tradeoff.worlds.world import World

COUNT = 200
"""Of the penalties, and of the radii, of a curve."""
PENALTIES = np.logspace(*RANGES["log10_penalty"], COUNT)
RADII = np.linspace(*RANGES["radius"], COUNT)
STEP, STOPS, REST = 1.25, 48, 8.0
"""A flow is shown at 0 and at so many times, each `STEP` times the one before, up to `REST` relaxation times: e^-16 is left."""

KEPT = 64
"""So many worlds and points are remembered, so that a slider on its way back is answered at once."""


class Curves(NamedTuple):
    """What depends on the world alone, at `PENALTIES`, nats, each shape (L,)."""

    exact: Gaps
    trained: Gaps
    limit: Array
    floor: Array
    ceiling: Array


class Point(NamedTuple):
    """What holds at the view's penalty, nats, each shape ()."""

    gaps: Gaps
    floor: Array
    ceiling: Array
    limit: Array


class Measures(NamedTuple):
    """The world's own quantities, each shape ()."""

    overlap: Array
    conflict_safety: Array
    conflict_capability: Array
    mismatch: Array


@dataclass(frozen=True)
class Answer:
    r"""Everything that is shown of a view; the arrays are numpy's, the gaps in nats.

    Args:
        view: the view.
        curves: `exact`, the frontier of the true safety data; `trained`, the gaps of the minimiser under the world's
            proxy; `limit`, T8(c) at the exact safety gaps; `floor` and `ceiling` of the trained safety gap (T4(c), T6(b),
            T6(d)); each at `PENALTIES`, shape (L,).
        point: the trained gaps, their bounds, and the limit at their safety gap, at the view's penalty.
        measures: overlap, conflicts, and the mismatch of the proxy.
        distance: of the trained point to the exact frontier, nats.
        times: of the flow, shape (T,).
        flow: the gaps along the gradient flow from the aligned policy, shape (T,).
        ball: Case II of `pair` at `RADII`, shape (R,).
        at_radius: Case II at the view's radius.
        pair_frontier: Case I of `pair` at `PENALTIES`, gaps in the unit of its losses, shape (L,).
        isotropy: the price of a small ball.
    """

    view: View
    curves: Curves
    point: Point
    measures: Measures
    distance: float
    times: Float[np.ndarray, " T"]
    flow: Gaps
    ball: TrustRegionPoint
    at_radius: TrustRegionPoint
    pair_frontier: Gaps
    isotropy: IsotropyPrice

    @property
    def best(self) -> int:
        """Which of `PENALTIES` has the least trained safety gap."""
        return int(np.argmin(self.curves.trained.safety))


def answer(view: View) -> Answer:
    """Compute what is shown of a view.

    Args:
        view: the view.

    Returns:
        An `Answer`.

    Raises:
        RuntimeError: when the flow cannot be followed to its end.

    Example:
        >>> shown = answer(View(world="golden"))
        >>> round(float(shown.point.gaps.safety), 12), round(float(shown.flow.safety[-1]), 6)
        (0.086556492609, 0.086556)

    Source: T2(a), T4, T6, T7, T8(c), T14 (framework).
    """
    world_side = _world_side(view)
    curves, moved = _curves_of(world_side), _moved_to(world_side, view.log10_penalty)
    ball, pair_frontier, isotropy = _case_two()
    at_radius = jax.device_get(parameter_constraint.solve(pair(), view.radius))
    return Answer(view, curves, *moved, ball, at_radius, pair_frontier, isotropy)


def numbers(shown: Answer) -> tuple[tuple[str, float, str], ...]:
    """The numbers beside the curves: what it is, its value, and where it is stated; empty where it is a slider's.

    Example:
        >>> rows = {name: value for name, value, _ in numbers(answer(View(world="over-penalised")))}
        >>> round(rows["mismatch of the proxy Φ"], 5)
        0.51083
    """
    world, point, ball = shown.measures, shown.point, shown.at_radius
    rows = (
        ("penalty λ", shown.view.penalty, ""),
        ("safety gap", point.gaps.safety, "T2a"),
        ("at least", point.floor, "T4c, T6d"),
        ("at most", point.ceiling, "T6b"),
        ("capability gap", point.gaps.capability, "T2a"),
        ("no policy gets below", point.limit, "T8c"),
        ("distance to the frontier", shown.distance, "T7"),
        ("flow, from end to optimum", _apart(shown), "T1"),
        ("best penalty of those drawn", PENALTIES[shown.best], "T6g"),
        ("safety gap there", shown.curves.trained.safety[shown.best], "T6g"),
        ("context overlap Ω", world.overlap, "T5"),
        ("conflict Δ, safety data", world.conflict_safety, "T4a"),
        ("conflict Δ, task's data", world.conflict_capability, "T4a"),
        ("mismatch of the proxy Φ", world.mismatch, "T6a"),
        ("radius ε", shown.view.radius, ""),
        ("multiplier μ", ball.multiplier, "T14a"),
        ("safety gap in the ball", ball.gaps.safety, "T14a"),
        ("capability gap in the ball", ball.gaps.capability, "T14a"),
        ("price of isotropy", shown.isotropy.price, "T15b"),
    )
    return tuple((name, float(value), source) for name, value, source in rows)


def _apart(shown: Answer) -> float:
    """How far the flow ends from the closed form, nats."""
    end = shown.point.gaps
    return float(max(abs(shown.flow.safety[-1] - end.safety), abs(shown.flow.capability[-1] - end.capability)))


def _world_side(view: View) -> View:
    """The view with the sliders at rest that do not move its world: what of it the curves depend on."""
    return replace(view, log10_penalty=0.0, radius=1.0)


@functools.lru_cache(maxsize=KEPT)
def _curves_of(world_side: View) -> Curves:
    return jax.device_get(_curves(world_of(world_side), jnp.asarray(PENALTIES)))


@functools.lru_cache(maxsize=KEPT)
def _moved_to(world_side: View, log10_penalty: float) -> tuple[Point, Measures, float, np.ndarray, Gaps]:
    """What one penalty decides: the point, the world's quantities, the distance, and the flow in time."""
    world, penalty = world_of(world_side), replace(world_side, log10_penalty=log10_penalty).penalty
    point, measures, rest = jax.device_get(_point(world, jnp.float64(penalty)))
    times = np.append(0.0, REST * float(rest) * STEP ** np.arange(1.0 - STOPS, 1.0))
    flow = jax.device_get(dynamics.tabular_flow(world, penalty, times).gaps)
    distance = float(frontier.exact(world, penalty).distance(point.gaps))
    return point, measures, distance, times, Gaps(flow.safety[0], flow.capability[0])


@jax.jit
def _curves(world: World, penalties: Array) -> Curves:
    """All curves of a world as one program; its shapes are those of the world, so a slider compiles nothing."""
    at = jax.vmap(lambda lam: loss_constraint.gaps(world.with_exact_proxy(), lam))(penalties)
    trained = jax.vmap(lambda lam: loss_constraint.gaps(world, lam))(penalties)
    floor, ceiling = jax.vmap(lambda lam: _bounds(world, lam))(penalties)
    return Curves(at, trained, frontier.lower_limit(world, at.safety), floor, ceiling)


def _bounds(world: World, lam: Array) -> tuple[Array, Array]:
    """Between what the registered theorems keep the trained safety gap: T4(c) holds for the exact proxy only."""
    instance = AtPenalty(world, lam)
    by_test = theorems.get("T4c").sides(AtPenalty(world.with_exact_proxy(), lam))[1]
    floor = jnp.maximum(
        theorems.get("T6d").sides(instance)[1], jnp.where(world.proxy_kl == 0, jnp.maximum(by_test[0], by_test[2]), 0)
    )
    return floor, theorems.get("T6b").sides(instance)[1]


@jax.jit
def _point(world: World, lam: Array) -> tuple[Point, Measures, Array]:
    """What holds at one penalty, and the relaxation time of the flow there, as one program."""
    at = loss_constraint.gaps(world, lam)
    measures = Measures(world.overlap, world.conflict_safety, world.conflict_capability, world.proxy_mismatch)
    point = Point(at, *_bounds(world, lam), frontier.lower_limit(world, at.safety))
    return point, measures, dynamics.relaxation_time(world, lam)


@functools.cache
def _case_two() -> tuple[TrustRegionPoint, Gaps, IsotropyPrice]:
    """What of Case II no slider moves."""
    quad = pair()
    return jax.device_get(
        (
            parameter_constraint.path(quad, RADII),
            parameter_constraint.penalised_gaps(quad, PENALTIES),
            parameter_constraint.price_of_isotropy(quad.H_s, quad.pull),
        )
    )
