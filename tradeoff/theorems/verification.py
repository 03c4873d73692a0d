"""Checking a theorem on random instances: vectorised, in batches of bounded memory, replayable from the key.

A long run may keep a record: stopped anywhere it goes on from there, and asked for more instances it draws the rest.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from tradeoff._compiling import LEAN, understood
from tradeoff.theorems.claim import Family, Sides, Terms, Theorem, slack, violations
from tradeoff.theorems.tally import EMPTY, Record

BATCH = 1_000
"""Instances are drawn and checked this many at a time: small enough for the cache, and one compiled shape for all runs."""
QUICK = 100_000
"""Up to so many instances are drawn and checked by programs compiled without optimisation: compiling takes longer."""
UNOPTIMISED = LEAN | {"xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
"""Half to a third of the speed, and a quarter of the time to compile; processes beside this one have the other cores."""
KEPT_EVERY = 10.0
"""Seconds between two writings of a record."""


@dataclass(frozen=True, eq=False)
class Verdict:
    """What checking a theorem found.

    Args:
        theorem: the theorem.
        holds: whether no instance violated it.
        instances: how many were checked.
        violations: how many violated it.
        worst_slack: the least relative slack over instances and parts, in [-1, 1]; negative values within rounding are
            no violation. For an equality, minus the greatest relative error.
        tightest: the greatest ratio of the smaller side to the larger one over instances and parts where both are
            finite and beyond the absolute allowance; 1 means that the constant cannot be improved. NaN for an equality.
        worst_instance: the instance with the least slack, in full.
        worst_index: its number; `replay(theorem, key, worst_index, instances)` draws it again.
        worst_part: the part with the least slack there, "" when the theorem has one part.
        worst_sides: (left, right) of that part.
        seconds: wall time, compilation included; claims that are checked together share theirs evenly.
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
    record: Path | None = None,
) -> Verdict:
    """Check a theorem on random instances of its family.

    Instance number i is drawn from `fold_in(key, i)`, in batches of one size, so it does not depend on how many are drawn.

    Args:
        theorem: the theorem, registered or a user's own.
        key: a JAX random key.
        instances: how many to draw, at least 1.
        progress: called with the number of instances done after each batch.
        record: a JSON file in which the run is kept, with the worst instance in full. A run of the same claim and key
            goes on where the file ends; the file of another claim, key or version of the code is begun anew.

    Returns:
        A `Verdict`.

    Raises:
        ValueError: when `instances` is below 1, the sides are not scalars (or not one for each part) or are undefined
            (NaN) at an instance, the claim gives other sides when it is run again, or the family draws an instance that
            breaks one of the claim's assumptions; the message names the instance.

    Example:
        >>> from tradeoff import theorems
        >>> verdict = verify(theorems.get("T2b"), jax.random.key(0), instances=500)
        >>> verdict.holds, verdict.instances
        (True, 500)
    """
    (verdict,) = verify_together(
        [theorem], key, instances, None if progress is None else lambda _, done: progress(done), [record]
    )
    return verdict


def verify_together(
    claims: Sequence[Theorem],
    key: Array,
    instances: int,
    progress: Callable[[Theorem, int], None] | None,
    records: Sequence[Path | None],
) -> list[Verdict]:
    """What `verify` says of each of several claims about one family, whose instances are drawn once for all of them.

    Args:
        claims: theorems of one family.
        key: a JAX random key.
        instances: how many to draw, at least 1.
        progress: called with a theorem and the number of its instances done after each batch.
        records: for each claim a file that keeps its run, or None.

    Raises:
        ValueError: as `verify`, at the first claim that gives cause.
    """
    if instances < 1:
        raise ValueError(f"verify was given instances={instances}; at least 1 is required.")
    began = time.perf_counter()
    quick = instances <= QUICK
    draw, sides = _drawing(claims[0].family, quick, BATCH), _siding(tuple(claims), quick, BATCH)
    for claim in claims:
        if not claim.sides.__module__.startswith(__package__ or ""):
            _refuse_chance(claim)
    runs = [_Run(claim, key, instances, record) for claim, record in zip(claims, records, strict=True)]
    for start in range(min(run.tally.checked for run in runs), instances, BATCH):
        numbers = np.arange(start, start + BATCH)
        batch = draw(_keys(key, numbers))
        for run, (both, assumed) in zip(runs, sides(batch), strict=True):
            if run.tally.checked == start:  # those that a record has further on wait for the others
                run.take(jax.device_get(_found(both, assumed, numbers < instances, run.terms)), batch)
                if progress is not None:
                    progress(run.theorem, run.tally.checked)
    return [run.verdict((time.perf_counter() - began) / len(runs)) for run in runs]


class _Run:
    """One claim on its way through the instances."""

    def __init__(self, theorem: Theorem, key: Array, instances: int, record: Path | None) -> None:
        self.theorem, self.terms = theorem, theorem.terms
        self._key, self._instances = key, instances
        self._record = None if record is None else Record(record, theorem, key)
        self.tally = EMPTY if self._record is None else self._record.read()
        self._saved = time.perf_counter()
        self._with_worst: Any = None

    def take(self, found: "Found", batch: Any) -> None:
        """Add what a batch showed, and write the record when it is time."""
        _refuse_ill_posed(self.theorem, found, self.tally.checked)
        start = self.tally.checked
        reached = start + BATCH
        self.tally = self.tally.with_batch(found, min(reached, self._instances))
        if self.tally.worst_index >= start:
            self._with_worst = batch
        due = time.perf_counter() - self._saved > KEPT_EVERY or reached + BATCH > self._instances
        if self._record is not None and reached <= self._instances and due:
            self._record.write(self.tally, self._worst)
            self._saved = time.perf_counter()

    @property
    def _worst(self) -> Any:
        index = self.tally.worst_index
        if self._with_worst is None:  # it was met in a run before this one
            return replay(self.theorem, self._key, index, self._instances)
        return _one_of(self._with_worst, index % BATCH)

    def verdict(self, seconds: float) -> Verdict:
        """What the run has found."""
        theorem, tally = self.theorem, self.tally
        return Verdict(
            theorem=theorem,
            holds=tally.violations == 0,
            instances=tally.checked,
            violations=tally.violations,
            worst_slack=tally.worst_slack,
            tightest=tally.tightest if np.isfinite(tally.tightest) else float("nan"),
            worst_instance=self._worst,
            worst_index=tally.worst_index,
            worst_part=theorem.parts[tally.worst_part] if theorem.parts else "",
            worst_sides=tally.worst_sides,
            seconds=seconds,
        )


def slacks(theorem: Theorem, key: Array, instances: int = 1_000) -> Float[Array, "instances parts"]:
    """The relative slack of every part on random instances, the first of those that `verify` draws.

    Args:
        theorem: the theorem.
        key: a JAX random key.
        instances: how many, at least 1.

    Returns:
        Slacks in [-1, 1], shape (instances, parts): one minus the ratio of the smaller side to the larger for an
        inequality, minus the relative error for an equality.

    Raises:
        ValueError: when `instances` is below 1, or the sides are not scalars (or not one for each part).

    Example:
        >>> from tradeoff import theorems
        >>> slacks(theorems.get("T4a"), jax.random.key(0), 5).shape
        (5, 6)
    """
    if instances < 1:
        raise ValueError(f"slacks was given instances={instances}; at least 1 is required.")
    draw, sides = _drawing(theorem.family, True, BATCH), _siding((theorem,), True, BATCH)
    batches = [sides(draw(_keys(key, np.arange(start, start + BATCH))))[0][0] for start in range(0, instances, BATCH)]
    return jnp.concatenate([_slacks(both, theorem.terms) for both in batches])[:instances]


def replay(theorem: Theorem, key: Array, index: int, instances: int = 10_000) -> Any:
    """Instance number `index` of a theorem's family under a key, bit for bit as `verify` drew it.

    Args:
        theorem: the theorem.
        key: the key that `verify` was given.
        index: the number of the instance, from 0.
        instances: how many `verify` was asked for: long runs are compiled otherwise, which moves last bits.

    Raises:
        ValueError: when `index` is negative.
    """
    if index < 0:
        raise ValueError(f"replay was given index={index}; instances are numbered from 0.")
    # The whole batch, because the last bit of an exponential may depend on the shape it is computed in.
    start = index - index % BATCH
    draw = _drawing(theorem.family, instances <= QUICK, BATCH)
    return _one_of(draw(_keys(key, np.arange(start, start + BATCH))), index - start)


def _one_of(batch: Any, place: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf[place]), jax.device_get(batch))


@cache
def _drawing(family: Family, quick: bool, size: int) -> Any:
    """The program that draws a batch of instances from its keys; families are shared, so each is compiled once."""
    draw = jax.jit(jax.vmap(family.draw), compiler_options=understood(UNOPTIMISED if quick else LEAN))
    return draw.lower(_some_keys(size)).compile()


def _some_keys(size: int) -> Any:
    """The shape of the keys of a batch."""
    return jax.eval_shape(lambda: _keys(jax.random.key(0), jnp.arange(size)))


@jax.jit
def _keys(key: Array, numbers: Array) -> Array:
    """The keys of a batch of instances; compiled once for all families."""
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


@cache
def _siding(claims: tuple[Theorem, ...], quick: bool, size: int) -> Any:
    """The program of both sides of each of some claims on a batch, and of whether each of its assumptions is met there."""

    def sides(instance: Any) -> list[tuple[Sides, list[Array]]]:
        return [
            (claim.at(instance), [jnp.asarray(assumption.holds(instance)) for assumption in claim.assumptions])
            for claim in claims
        ]

    drawn = _drawing(claims[0].family, quick, size).out_info
    batch = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), drawn)
    return jax.jit(jax.vmap(sides), compiler_options=understood(UNOPTIMISED if quick else LEAN)).lower(batch).compile()


class Found(NamedTuple):
    """What one batch showed: its worst instance and part, both sides there, counts, and where it was ill posed."""

    rank: Array
    slack: Array
    at: Array
    part: Array
    left: Array
    right: Array
    violations: Array
    ratio: Array
    broken: list[Array]


@jax.jit
def _found(sides: Sides, assumed: list[Array], counted: Array, terms: Terms) -> Found:
    """What a batch of sides shows, of which some count; one program for all claims with as many parts."""
    left, right = sides
    room = _slacks(sides, terms)
    violated = jax.vmap(violations, (0, None))(sides, terms) & counted[:, None]
    # A violation beyond rounding outranks any slack within it, and an undefined side outranks both.
    ranked = jnp.where(jnp.isnan(room), -jnp.inf, room)
    rank = jnp.where(counted[:, None], ranked - jnp.where(violated, 10, 0), jnp.inf)
    at, part = jnp.unravel_index(jnp.argmin(rank), rank.shape)
    finite = jnp.isfinite(left) & jnp.isfinite(right)
    comparable = finite & (jnp.maximum(left, right) > terms.absolute) & ~terms.equality[None, :]
    ratio = jnp.where(comparable & counted[:, None], 1 - ranked, -jnp.inf)
    # For each assumption the first instance without it, or -1.
    broken = [jnp.where(jnp.all(held | ~counted), -1, jnp.argmin(held | ~counted)) for held in assumed]
    return Found(
        rank[at, part], room[at, part], at, part, left[at, part], right[at, part],
        jnp.sum(jnp.any(violated, axis=-1)), jnp.max(ratio), broken,
    )  # fmt: skip


@jax.jit
def _slacks(sides: Sides, terms: Terms) -> Array:
    return jax.vmap(slack, (0, None))(sides, terms)


def _refuse_ill_posed(theorem: Theorem, found: Found, start: int) -> None:
    """A side that is NaN is no verdict, and an instance outside the claim's assumptions is no evidence."""
    for assumption, at in zip(theorem.assumptions, map(int, found.broken), strict=True):
        if at >= 0:
            raise ValueError(
                f"instance {start + at} of {theorem.name} breaks its assumption {assumption.name!r} ({assumption.words}); "
                "give the claim a family whose instances satisfy what it assumes."
            )
    if np.isnan(found.slack):
        part = f" ({theorem.parts[int(found.part)]})" if theorem.parts else ""
        raise ValueError(
            f"at instance {start + int(found.at)} the sides of {theorem.name}{part} are {float(found.left):g} and "
            f"{float(found.right):g}; both must be defined (an infinite side is allowed, NaN is not): find the 0/0, "
            "0·∞ or ∞-∞ in it."
        )


def _refuse_chance(theorem: Theorem) -> None:
    """A claim whose sides come out differently when they are traced again draws random numbers of its own."""
    instance = jax.eval_shape(theorem.family.draw, jax.random.key(0))
    # A new function each time, because JAX traces one function once.
    once, again = (jax.make_jaxpr(lambda one: theorem.sides(one))(instance) for _ in range(2))
    same = str(once.jaxpr) == str(again.jaxpr) and all(
        np.array_equal(one, other) for one, other in zip(once.consts, again.consts, strict=True)
    )
    if not same:
        raise ValueError(
            f"the sides of {theorem.name} differ when they are computed twice; a claim must be a function of its instance "
            "alone: put what is random into the family, where the key is."
        )
