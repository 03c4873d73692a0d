"""Which points of two objectives are not dominated, and the area that they dominate, against moocore."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from benchmarks.protocol import Benchmark, Contender, peer
from tradeoff import frontier

CORNER = (1.5, 1.5)
"""The reference point, beyond some points and not others."""
GATE = 1e-14


class Answer(NamedTuple):
    """Which points are kept, and the area."""

    kept: Any
    area: Any


@cache
def points(count: int) -> NDArray[np.float64]:
    """Gaps above a convex frontier, as those of many runs, by a hundredth on average."""
    draw = np.random.default_rng(0)
    safety = draw.uniform(0, 1, count) ** 2
    front = np.stack([safety, (1 - np.sqrt(safety)) ** 2], axis=-1)
    return front + draw.exponential(0.01, (count, 2))


@cache
def reference(count: int) -> Answer:
    """By a loop over sorted points, each kept when it is lower than all before it; the area is summed without rounding."""
    kept, least, strips = np.zeros(count, bool), math.inf, []
    given = points(count)
    for place in np.lexsort((given[:, 1], given[:, 0])):
        safety, capability = map(float, given[place])
        if capability < least:
            kept[place] = True
            if safety < CORNER[0] and capability < CORNER[1]:
                strips.append((CORNER[0] - safety) * (min(least, CORNER[1]) - capability))
            least = capability
    return Answer(kept, math.fsum(strips))


def _error(count: int) -> Callable[[Answer], float]:
    def error(found: Answer) -> float:
        exact = reference(count)
        same = np.array_equal(np.asarray(found.kept), exact.kept)
        return abs(float(found.area) / exact.area - 1) if same else math.inf

    return error


def _contenders(count: int) -> Callable[[], Sequence[Contender]]:
    def build() -> Sequence[Contender]:
        given = points(count)

        def ours() -> Answer:
            kept = frontier.nondominated(given)
            return Answer(*jax.block_until_ready((kept, frontier.hypervolume(given, CORNER))))

        found = [Contender("tradeoff", ours)]
        if moocore := peer("moocore"):
            found.append(
                Contender(
                    "moocore",
                    lambda: Answer(
                        moocore.is_nondominated(given, keep_weakly=True), moocore.hypervolume(given, ref=CORNER)
                    ),
                )
            )
        return found

    return build


BENCHMARKS = tuple(
    Benchmark(
        name=f"hypervolume_n{count}",
        title=f"the nondominated of {count:,} points of two objectives, and the area that they dominate",
        contenders=_contenders(count),
        error=_error(count),
        tolerance=GATE,
        bars={"moocore": 1 / 1.05},
        repeats=repeats,
    )
    for count, repeats in ((1_000, 200), (10_000, 50), (100_000, 10))
)
