"""Many claims at once, in processes of their own: tracing holds Python's lock, so threads would wait for each other."""

import contextlib
import dataclasses
import gc
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tradeoff.theorems import registry
from tradeoff.theorems.claim import Family, Theorem
from tradeoff.theorems.verification import Verdict, verify_together

CORES = os.cpu_count() or 1
"""As many processes as there are cores pay: most of the time goes into tracing and compiling, which do not spread."""


def verify_each(
    claims: Sequence[Theorem],
    key: Array,
    instances: int = 10_000,
    progress: Callable[[Theorem, int], None] | None = None,
    folder: Path | None = None,
    processes: int = 1,
) -> Iterator[Verdict]:
    """The verdicts on many theorems, in order.

    Args:
        claims: the theorems.
        key: a JAX random key.
        instances: how many to draw for each.
        progress: called with a theorem and the number of its instances done: after each batch of one that is checked in
            this process, at the end of one that is checked in another.
        folder: where the runs are kept, one record for each theorem.
        processes: how many new processes share the registered claims, if more than one; a user's own stay in this one.
            A script that asks for it needs the usual `if __name__ == "__main__":`.

    Raises:
        ValueError: as `verify`.

    Example:
        >>> from tradeoff import theorems
        >>> claims = [theorems.get("T4a"), theorems.get("T2b")]
        >>> [verdict.theorem.name for verdict in verify_each(claims, jax.random.key(0), instances=100)]
        ['T4a', 'T2b']
    """
    group_of = {claim: group for group in _groups(claims) for claim in group}
    found: dict[Theorem, Verdict] = {}
    with contextlib.ExitStack() as stack:
        tasks = _apart(dict.fromkeys(group_of.values()), key, instances, folder, processes, stack)
        for claim in claims:
            if claim not in found:
                group = group_of[claim]
                if group in tasks:
                    verdicts = tasks[group].result()
                    if progress is not None:
                        for one in group:
                            progress(one, instances)
                else:
                    records = [_record(folder, one.name) for one in group]
                    verdicts = verify_together(group, key, instances, progress, records)
                found |= zip(group, verdicts, strict=True)
            yield dataclasses.replace(found[claim], theorem=claim)


def _groups(claims: Sequence[Theorem]) -> list[tuple[Theorem, ...]]:
    """Registered claims of one family together, because it is drawn once for them; a user's own each by itself."""
    registered = set(registry.all())
    groups: defaultdict[Family | Theorem, list[Theorem]] = defaultdict(list)
    for claim in dict.fromkeys(claims):
        groups[claim.family if claim in registered else claim].append(claim)
    return [tuple(group) for group in groups.values()]


def _apart(
    groups: Collection[tuple[Theorem, ...]],
    key: Array,
    instances: int,
    folder: Path | None,
    processes: int,
    stack: contextlib.ExitStack,
) -> dict[tuple[Theorem, ...], "Future[list[Verdict]]"]:
    """The work of other processes: groups of registered claims, which have names to go by; none where one would do it all."""
    shared = [group for group in groups if group[0] in registry.all()]
    if min(processes, len(shared)) < 2:
        return {}
    # Nor do they collect garbage: there is little, and a lot to look through.
    pool = ProcessPoolExecutor(min(processes, len(shared)), multiprocessing.get_context("spawn"), gc.disable)
    stack.callback(pool.shutdown, cancel_futures=True)  # whoever stops reading stops the work
    seed = np.asarray(jax.random.key_data(key))
    return {group: pool.submit(_verdicts, [claim.name for claim in group], seed, instances, folder) for group in shared}


def _verdicts(names: list[str], seed: np.ndarray, instances: int, folder: Path | None) -> list[Verdict]:
    """What a process finds; claims are functions, which do not travel, so they are left out of the verdicts."""
    claims, records = [registry.get(name) for name in names], [_record(folder, name) for name in names]
    found = verify_together(claims, jax.random.wrap_key_data(jnp.asarray(seed)), instances, None, records)
    return [dataclasses.replace(verdict, theorem=None) for verdict in found]


def _record(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / f"{name}.json"
