"""Many claims at once, in processes of their own: tracing holds Python's lock, so threads would wait for each other."""

import dataclasses
import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from tradeoff.theorems import registry
from tradeoff.theorems.claim import Family, Theorem
from tradeoff.theorems.verification import Verdict, verify

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

    def here(claim: Theorem) -> Verdict:
        tell = None if progress is None else partial(progress, claim)
        return verify(claim, key, instances, tell, _record(folder, claim.name))

    shared = _by_family(claims) if processes > 1 else []
    if len(shared) < 2:
        yield from map(here, claims)
        return
    seed = np.asarray(jax.random.key_data(key))
    with ProcessPoolExecutor(min(processes, len(shared)), multiprocessing.get_context("spawn")) as pool:
        try:
            tasks = [(names, pool.submit(_verdicts, names, seed, instances, folder)) for names in shared]
            task_of = {name: task for names, task in tasks for name in names}
            for claim in claims:
                if claim.name not in task_of:
                    yield here(claim)
                    continue
                verdict = task_of[claim.name].result()[claim.name]
                if progress is not None:
                    progress(claim, verdict.instances)
                yield dataclasses.replace(verdict, theorem=claim)
        finally:
            # Whoever stops reading stops the work.
            pool.shutdown(cancel_futures=True)


def _by_family(claims: Sequence[Theorem]) -> list[list[str]]:
    """The names of the registered ones among some claims, those of one family together: it is compiled once for them."""
    registered = set(registry.all())
    groups: defaultdict[Family, list[str]] = defaultdict(list)
    for claim in claims:
        if claim in registered:
            groups[claim.family].append(claim.name)
    return list(groups.values())


def _verdicts(names: list[str], seed: np.ndarray, instances: int, folder: Path | None) -> dict[str, Verdict]:
    """What a process finds; claims are functions, which do not travel, so they are left out of the verdicts."""
    key = jax.random.wrap_key_data(jnp.asarray(seed))
    found = {name: verify(registry.get(name), key, instances, record=_record(folder, name)) for name in names}
    return {name: dataclasses.replace(verdict, theorem=None) for name, verdict in found.items()}


def _record(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / f"{name}.json"
