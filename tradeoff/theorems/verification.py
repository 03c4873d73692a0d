"""Checking a theorem on random instances: vectorised, in batches of bounded memory, replayable from the key."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from tradeoff.theorems.claim import Family, Theorem

BATCH = 1_000
"""Instances are drawn and checked this many at a time: small enough for the cache, and one compiled shape for all runs."""


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
            finite and beyond the absolute allowance; 1 means that the constant cannot be improved. NaN for an equality.
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

    Instance number i is drawn from `fold_in(key, i)`, in batches of one size, so it does not depend on how many are drawn.

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
    draw, check = _draws(theorem.family), _checker(theorem)
    violations, tightest, worst, worst_index = 0, -np.inf, None, 0
    for start in range(0, instances, BATCH):
        numbers = np.arange(start, start + BATCH)
        found = jax.device_get(check(draw(key, numbers), numbers < instances))
        if worst is None or found.rank < worst.rank:
            worst, worst_index = found, start + int(found.at)
        violations += int(found.violations)
        tightest = max(tightest, float(found.ratio))
        if progress is not None:
            progress(min(start + BATCH, instances))
    assert worst is not None  # there is at least one batch
    part = int(worst.part)
    return Verdict(
        theorem=theorem,
        holds=violations == 0,
        instances=instances,
        violations=violations,
        worst_slack=float(worst.slack),
        tightest=tightest if np.isfinite(tightest) else float("nan"),
        worst_instance=replay(theorem, key, worst_index),
        worst_index=worst_index,
        worst_part=theorem.parts[part] if theorem.parts else "",
        worst_sides=(float(worst.left), float(worst.right)),
        seconds=time.perf_counter() - began,
    )


def replay(theorem: Theorem, key: Array, index: int) -> Any:
    """Instance number `index` of a theorem's family under a key, bit for bit as `verify` drew it.

    Raises:
        ValueError: when `index` is negative.
    """
    if index < 0:
        raise ValueError(f"replay was given index={index}; instances are numbered from 0.")
    # The whole batch, because the last bit of an exponential may depend on the shape it is computed in.
    start = index - index % BATCH
    batch = _draws(theorem.family)(key, np.arange(start, start + BATCH))
    return jax.tree.map(lambda leaf: leaf[index - start], batch)


@cache
def _draws(family: Family) -> Callable[[Array, ArrayLike], Any]:
    """Compiled drawing of a batch of instances; families are shared, so each is compiled once."""
    batch = jax.jit(jax.vmap(family.draw))
    return lambda key, numbers: batch(_keys(key, numbers))


@jax.jit
def _keys(key: Array, numbers: Array) -> Array:
    """The keys of a batch of instances; compiled once for all families."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


class _Found(NamedTuple):
    """What one batch showed: its worst instance and part, both sides there, and counts."""

    rank: Array
    slack: Array
    at: Array
    part: Array
    left: Array
    right: Array
    violations: Array
    ratio: Array


@cache
def _checker(theorem: Theorem) -> Callable[[Any, ArrayLike], _Found]:
    """Compiled check of a batch."""
    equality = jnp.array([relation == "==" for relation in theorem.relations])
    floor = theorem.tolerance.absolute

    @jax.jit
    def check(batch: Any, counted: Array) -> _Found:
        sides, slack = jax.vmap(theorem.compare)(batch)
        left, right = sides
        violated = jax.vmap(theorem.violations)(sides) & counted[:, None]
        # A violation beyond rounding outranks any slack within it, and an undefined side outranks both.
        ranked = jnp.where(jnp.isnan(slack), -jnp.inf, slack)
        rank = jnp.where(counted[:, None], ranked - jnp.where(violated, 10, 0), jnp.inf)
        at, part = jnp.unravel_index(jnp.argmin(rank), rank.shape)
        finite = jnp.isfinite(left) & jnp.isfinite(right)
        comparable = finite & (jnp.maximum(left, right) > floor) & ~equality[None, :]
        ratio = jnp.where(comparable & counted[:, None], 1 - ranked, -jnp.inf)
        violations = jnp.sum(jnp.any(violated, axis=-1))
        return _Found(
            rank[at, part], slack[at, part], at, part, left[at, part], right[at, part], violations, jnp.max(ratio)
        )

    return check
