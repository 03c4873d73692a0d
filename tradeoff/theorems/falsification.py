"""Trying to break a claim: gradient ascent over instances, a second opinion in 80 digits, and a smallest counterexample."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
from jaxtyping import Array

from tradeoff._compiling import understood
from tradeoff.theorems import precise
from tradeoff.theorems.claim import Theorem
from tradeoff.theorems.verification import UNOPTIMISED
from tradeoff.worlds.world import SUM_TO_ONE_WITHIN, DataLaw

STEPS = 800
"""Ascent steps of every restart; the step size falls from `RATE` to a hundredth of it."""
RATE = 0.3
ROUNDS = 2
"""Ascents in a row; each starts where the one before was best, so the last ones polish."""


@dataclass(frozen=True, eq=False)
class Falsification:
    """What an attack on a theorem found.

    Args:
        theorem: the theorem.
        broken: whether a violation was found that stands in high precision.
        ratio: the greatest ratio of the smaller side to the larger that any part reached (1: no better constant exists;
            above 1: violated). NaN for an equality.
        part: the part that reached it.
        instance: the tightest instance, or the smallest counterexample found.
        sides: (left, right) of that part there, in float64.
        precise: the same in 80 digits; `None` when the claim uses something that cannot be evaluated so.
        refuted: float64 violations that high precision called off.
        restarts: how many ascents were started.
        seconds: wall time.
    """

    theorem: Theorem
    broken: bool
    ratio: float
    part: str
    instance: Any
    sides: tuple[float, float]
    precise: tuple[Any, Any] | None
    refuted: int
    restarts: int
    seconds: float

    def __str__(self) -> str:
        name, part = self.theorem.name, f" ({self.part})" if self.part else ""
        left, right = self.sides if self.precise is None else (mpmath.nstr(side, 17) for side in self.precise)
        if self.broken:
            checked = "in float64 only" if self.precise is None else "in 80 digits"
            return f"{name}{part} is FALSE: left {left}, right {right} ({checked}) at\n{describe(self.instance)}"
        if np.isnan(self.ratio):
            return f"{name} was not broken by {self.restarts} ascents [{self.seconds:.1f} s]"
        loose = ""
        if self.theorem.relations[0] != "==" and self.ratio < LOOSE:
            loose = (
                f": the constant looks loose by {1 / self.ratio:.2g}x"
                if self.ratio > 0
                else ": the bound is never approached"
            )
        return f"{name} was not broken: no instance above {self.ratio:.4f} of the bound{part}{loose} [{self.seconds:.1f} s]"


LOOSE = 0.9


def falsify(theorem: Theorem, key: Array, restarts: int = 64) -> Falsification:
    """Search for a violation of a theorem, or for its tightest instance.

    Every restart draws an instance of the family and climbs the ratio of its two sides over the unconstrained parameters;
    restarts are shared out over the parts. A violation in float64 is evaluated again with 80 digits before it counts, and
    a true one is simplified: parameters are rounded and entries dropped while it stays one.

    Args:
        theorem: the theorem, registered or a user's own.
        key: a JAX random key.
        restarts: how many ascents, at least 1.

    Returns:
        A `Falsification`.

    Raises:
        ValueError: when `restarts` is below 1, no instance of the family is one of the claim's, or the sides are not scalars
            (or not one for each part).

    Example:
        >>> from tradeoff import theorems
        >>> attack = falsify(theorems.get("T4a"), jax.random.key(0), restarts=8)
        >>> attack.broken, attack.ratio > 0.99
        (False, True)
    """
    if restarts < 1:
        raise ValueError(f"falsify was given restarts={restarts}; at least 1 is required.")
    began = time.perf_counter()
    parameters, parts, ratios = jax.device_get(_climbed(theorem)(jax.random.split(key, restarts)))
    ratios = np.where(np.isnan(ratios), np.inf, np.asarray(ratios))  # an undefined side is a failure, and comes first
    found = [jax.tree.map(lambda leaf, at=at: leaf[at], parameters) for at in range(restarts)]
    inside = [int(at) for at in np.argsort(-ratios) if _sides_at(theorem)(found[at]).belongs]
    if not inside:
        raise ValueError(
            f"none of {restarts} ascents of {theorem.name} began at an instance of the claim; its family must draw laws that "
            "sum to one, and instances that meet the claim's assumptions."
        )
    refuted = 0
    for at in inside:
        candidate, part = found[at], int(parts[at])
        judged = _judge(theorem, candidate, part)
        if judged.broken:
            candidate = _simplified(theorem, candidate, part)
            judged = _judge(theorem, candidate, part)
            break
        if not judged.suspect:
            break
        refuted += 1
    else:
        at = inside[-1]
    equality = theorem.relations[part] == "=="
    return Falsification(
        theorem=theorem,
        broken=judged.broken,
        ratio=float("nan") if equality else float(ratios[at]),
        part=theorem.parts[part] if theorem.parts else "",
        instance=_sides_at(theorem)(candidate).instance,
        sides=judged.sides,
        precise=judged.precise,
        refuted=refuted,
        restarts=restarts,
        seconds=time.perf_counter() - began,
    )


def describe(instance: Any) -> str:
    """An instance as a person would write it down: one line for each array."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(instance):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        lines.append(
            f"  {name} = {np.array2string(np.asarray(leaf), precision=6, separator=', ').replace(chr(10), ' ')}"
        )
    return "\n".join(lines)


@dataclass(frozen=True)
class _Judgement:
    """A candidate's sides, and whether it violates in float64 (suspect) and in high precision too (broken)."""

    suspect: bool
    broken: bool
    sides: tuple[float, float]
    precise: tuple[Any, Any] | None


def _judge(theorem: Theorem, parameters: Any, part: int) -> _Judgement:
    at = _sides_at(theorem)(parameters)
    sides, suspect = (float(at.left[part]), float(at.right[part])), bool(at.violated[part])

    def both(parameters: Any) -> Any:
        left, right = theorem.at(theorem.family.build(parameters))
        return left[part], right[part]

    if not suspect:
        return _Judgement(False, False, sides, None)
    try:
        exact = precise.evaluate(both, parameters)
    except precise.UnsupportedError:
        return _Judgement(True, True, sides, None)
    a, b = exact
    excess = {"<=": a - b, ">=": b - a, "==": abs(a - b)}[theorem.relations[part]]
    allowed = theorem.tolerance.absolute + theorem.tolerance.relative * max(abs(a), abs(b))
    return _Judgement(True, not excess <= allowed, sides, exact)


class _At(NamedTuple):
    """Both sides at an instance, which parts are violated, whether it is one of the family's, and the instance."""

    left: Array
    right: Array
    violated: Array
    belongs: Array
    instance: Any


@cache
def _sides_at(theorem: Theorem) -> Callable[[Any], _At]:
    """Compiled: parameters -> the claim there."""

    def at(parameters: Any) -> _At:
        instance = theorem.family.build(parameters)
        sides = theorem.at(instance)
        laws = [
            x for x in jax.tree.leaves(instance, is_leaf=lambda x: isinstance(x, DataLaw)) if isinstance(x, DataLaw)
        ]
        masses = [jnp.append(jnp.sum(one.P, axis=-1), jnp.sum(one.p)) for one in laws]
        normalised = [jnp.all(jnp.abs(mass - 1) <= SUM_TO_ONE_WITHIN) for mass in masses]
        assumed = [jnp.asarray(assumption.holds(instance)) for assumption in theorem.assumptions]
        defined = [~jnp.any(jnp.isnan(leaf)) for leaf in jax.tree.leaves(instance)]
        belongs = jnp.all(jnp.array([*normalised, *assumed, *defined]))
        return _At(*sides, theorem.violations(sides), belongs, instance)

    return jax.jit(at, compiler_options=understood(UNOPTIMISED))


def _ratio(left: Array, right: Array, relation: str) -> Array:
    """What the ascent climbs: the ratio of the side that must be smaller to the other, or an equality's error."""
    if relation == ">=":
        left, right = right, left
    size = jnp.maximum(jnp.abs(left), jnp.abs(right))
    scale = jnp.where(size > 0, size, 1)
    if relation == "==":
        return jnp.abs(left - right) / scale
    positive = (left > 0) & (right > 0)
    return jnp.where(positive, left / jnp.where(positive, right, 1), 1 - (right - left) / scale)


@cache
def _climbed(theorem: Theorem) -> Callable[[Array], tuple[Any, Array, Array]]:
    """Compiled ascents: keys -> (best parameters, the part that each climbed, the ratio that it reached)."""
    count = len(theorem.relations)

    def climb(key: Array, number: Array) -> tuple[Any, Array, Array]:
        leaves, tree = jax.tree.flatten(theorem.family.sample(key))
        moves = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
        part = number % count
        floor = theorem.tolerance.absolute

        def height(moved: list[Array]) -> tuple[Array, Array]:
            floats = iter(moved)
            mixed = [next(floats) if free else leaf for leaf, free in zip(leaves, moves, strict=True)]
            instance = theorem.family.build(jax.tree.unflatten(tree, mixed))
            left, right = theorem.at(instance)
            heights = jnp.stack([_ratio(left[i], right[i], r) for i, r in enumerate(theorem.relations)])
            # Where both sides are rounding noise around zero there is nothing to climb.
            alive = jnp.maximum(jnp.abs(left[part]), jnp.abs(right[part])) > 100 * floor
            height = jnp.where(alive, heights[part], 0)
            # An ascent may wander out of what the claim assumes, but what it finds there is nothing.
            met = [jnp.asarray(assumption.holds(instance)) for assumption in theorem.assumptions]
            return jnp.where(jnp.isfinite(height), height, 0), jnp.all(jnp.array(met, bool))

        def step(carry: Any, rate: Array) -> tuple[Any, None]:
            here, mean, square, best, best_height = carry
            (value, met), slope = jax.value_and_grad(height, has_aux=True)(here)
            better = met & (value > best_height)
            best = [jnp.where(better, new, old) for new, old in zip(here, best, strict=True)]
            slope = [jnp.where(jnp.isfinite(g), g, 0) for g in slope]
            mean = [0.9 * m + 0.1 * g for m, g in zip(mean, slope, strict=True)]
            square = [0.99 * s + 0.01 * g**2 for s, g in zip(square, slope, strict=True)]
            here = [x + rate * m / (jnp.sqrt(s) + 1e-30) for x, m, s in zip(here, mean, square, strict=True)]
            return (here, mean, square, best, jnp.where(better, value, best_height)), None

        best = [leaf for leaf, free in zip(leaves, moves, strict=True) if free]
        best_height = jnp.float64(-jnp.inf)
        rates = RATE * jnp.logspace(0, -2, STEPS)
        for round_ in range(ROUNDS):
            still = [jnp.zeros_like(x) for x in best]
            start = (best, still, still, best, best_height)
            (_, _, _, best, best_height), _ = jax.lax.scan(step, start, rates / 10**round_)
        floats = iter(best)
        found = [next(floats) if free else leaf for leaf, free in zip(leaves, moves, strict=True)]
        return jax.tree.unflatten(tree, found), part, best_height

    climbs = jax.vmap(climb)
    return jax.jit(lambda keys: climbs(keys, jnp.arange(keys.shape[0])), compiler_options=understood(UNOPTIMISED))


def _simplified(theorem: Theorem, parameters: Any, part: int) -> Any:
    """A counterexample with as many parameters at simple values as it can bear."""
    leaves, tree = jax.tree.flatten(jax.device_get(parameters))
    leaves = [np.array(leaf) for leaf in leaves]
    check = _sides_at(theorem)

    def stands(trial: list[np.ndarray]) -> bool:
        at = check(jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in trial]))
        finite = bool(jnp.isfinite(at.left[part]) & jnp.isfinite(at.right[part]))
        return bool(at.violated[part]) and finite and bool(at.belongs)

    if not stands(leaves):
        return parameters
    for leaf in leaves:
        for index in np.ndindex(leaf.shape):
            before = leaf[index]
            simpler = (
                [False] if leaf.dtype == bool else [0.0, np.round(before), np.round(before, 1), np.round(before, 2)]
            )
            for value in simpler if leaf.dtype.kind in "fb" else []:
                if value == before:
                    break
                leaf[index] = value
                if stands(leaves):
                    break
                leaf[index] = before
    return jax.tree.unflatten(tree, [jnp.asarray(leaf) for leaf in leaves])
