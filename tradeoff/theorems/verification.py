"""Checking a theorem on random instances: vectorised, in batches of bounded memory, replayable from the key."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tradeoff.theorems.claim import Family, Theorem

BATCH = 10_000


@dataclass(frozen=True, eq=False)
class Verdict:
    """What checking a theorem found.

    Args:
        theorem: the theorem.
        holds: whether no instance violated it.
        instances: how many were checked.
        violations: how many violated it (an undefined side counts).
        worst_slack: the least relative slack over instances and parts, in [-1, 1]; negative values within rounding are
            no violation. For an equality, minus the greatest relative error.
        tightest: the greatest ratio of the smaller side to the larger one over instances and parts where both are
            finite; 1 means that the constant cannot be improved. NaN for an equality.
        worst_instance: the instance with the least slack, in full.
        worst_index: its number; `replay(theorem, key, worst_index)` draws it again.
        worst_part: the part with the least slack there, "" when the theorem has one part.
        worst_sides: (left, right) of that part.
        seconds: wall time, compilation included.
    """

    theorem: Theorem
    holds: bool
    instances: int
    violations: int
    worst_slack: float
    tightest: float
    worst_instance: Any
    worst_index: int
    worst_part: str
    worst_sides: tuple[float, float]
    seconds: float

    def __str__(self) -> str:
        name, part = self.theorem.name, f" ({self.worst_part})" if self.worst_part else ""
        if self.holds:
            tightest = "" if np.isnan(self.tightest) else f", tightest ratio {self.tightest:.6f}"
            return f"{name} holds on {self.instances:,} instances{tightest} [{self.seconds:.2f} s]"
        left, right = self.worst_sides
        return (
            f"{name} FAILS on {self.violations:,} of {self.instances:,} instances: at instance {self.worst_index}{part} "
            f"the left side is {left:.17g} and the right side {right:.17g} [{self.seconds:.2f} s]"
        )


def verify(
    theorem: Theorem,
    key: Array,
    instances: int = 10_000,
    progress: Callable[[int], None] | None = None,
) -> Verdict:
    """Check a theorem on random instances of its family.

    Instance number i is drawn from `fold_in(key, i)`, so it does not depend on how many are drawn or in what batches.

    Args:
        theorem: the theorem, registered or a user's own.
        key: a JAX random key.
        instances: how many to draw, at least 1.
        progress: called with the number of instances done after each batch.

    Returns:
        A `Verdict`.

    Raises:
        ValueError: when `instances` is below 1, or the sides are not scalars (or not one for each part).

    Example:
        >>> from tradeoff import theorems
        >>> verdict = verify(theorems.get("T2b"), jax.random.key(0), instances=500)
        >>> verdict.holds, verdict.instances
        (True, 500)
    """
    if instances < 1:
        raise ValueError(f"verify was given instances={instances}; at least 1 is required.")
    began = time.perf_counter()
    size = min(instances, BATCH)
    draw, check = _draws(theorem.family), _checker(theorem)
    violations, tightest, worst = 0, -np.inf, _Worst(np.inf, 0, None, None)
    for start in range(0, instances, size):
        numbers = np.arange(start, start + size)
        batch = draw(key, numbers)
        found = check(batch, numbers < instances)
        slack, at = float(found.slack), int(found.at)
        # An undefined side (NaN) is worse than any slack, and stays the worst.
        if (np.isnan(slack) and not np.isnan(worst.slack)) or slack < worst.slack:
            worst = _Worst(slack, start + at, found, jax.tree.map(lambda leaf, at=at: leaf[at], batch))
        violations += int(found.violations)
        tightest = max(tightest, float(found.ratio))
        if progress is not None:
            progress(min(start + size, instances))
    part = int(worst.found.part)
    return Verdict(
        theorem=theorem,
        holds=violations == 0,
        instances=instances,
        violations=violations,
        worst_slack=worst.slack,
        tightest=tightest if np.isfinite(tightest) else float("nan"),
        worst_instance=worst.instance,
        worst_index=worst.index,
        worst_part=theorem.parts[part] if theorem.parts else "",
        worst_sides=(float(worst.found.left[part]), float(worst.found.right[part])),
        seconds=time.perf_counter() - began,
    )


def replay(theorem: Theorem, key: Array, index: int) -> Any:
    """Instance number `index` of a theorem's family under a key, as `verify` drew it."""
    batch = _draws(theorem.family)(key, np.array([index]))
    return jax.tree.map(lambda leaf: leaf[0], batch)


@lru_cache(maxsize=None)
def _draws(family: Family) -> Callable[[Array, Array], Any]:
    """Compiled drawing of a batch of instances; families are shared, so each is compiled once."""
    return jax.jit(lambda key, numbers: jax.vmap(lambda n: family.draw(jax.random.fold_in(key, n)))(numbers))


class _Found(NamedTuple):
    """What one batch showed: its worst instance, both sides there, and counts."""

    slack: Array
    at: Array
    part: Array
    left: Array
    right: Array
    violations: Array
    ratio: Array


class _Worst(NamedTuple):
    slack: float
    index: int
    found: Any
    instance: Any


@lru_cache(maxsize=None)
def _checker(theorem: Theorem) -> Callable[[Any, Array], _Found]:
    """Compiled check of a batch."""
    equality = jnp.array([relation == "==" for relation in theorem.relations])

    @jax.jit
    def check(batch: Any, counted: Array) -> _Found:
        sides, slack = jax.vmap(theorem.compare)(batch)
        left, right = sides
        violated = jnp.any(jax.vmap(theorem.violations)(sides), axis=-1) & counted
        # A violation beyond rounding outranks any slack within it, and an undefined side outranks both.
        ranked = jnp.where(jnp.isnan(slack), -jnp.inf, slack)
        rank = jnp.where(counted, jnp.min(ranked, axis=-1) - 10 * violated, jnp.inf)
        at = jnp.argmin(rank)
        part = jnp.argmin(ranked[at])
        comparable = jnp.isfinite(left) & jnp.isfinite(right) & (jnp.maximum(left, right) > 0) & ~equality
        ratio = jnp.where(comparable & counted[:, None], 1 - ranked, -jnp.inf)
        return _Found(slack[at, part], at, part, left[at], right[at], jnp.sum(violated), jnp.max(ratio))

    return check
