"""How soon the explorer answers a slider: here the error is the median of the answers in seconds, and its tolerance what it may be."""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from benchmarks.protocol import Benchmark, Contender
from tradeoff.explorer.answers import answer
from tradeoff.explorer.view import View

MOST_SECONDS = 0.1
START = View(world="random", contexts=64, responses=16)
MOVES = 15
"""Places of a slider in one run; none is ever asked for again, so nothing is answered from memory."""
FRACTIONS: Iterator[float] = (0.1 + 0.8 * (k * 0.6180339887498949 % 1) for k in itertools.count())


def _moved(slider: str, low: float, high: float) -> Callable[[], float]:
    def run() -> float:
        took = []
        for fraction in itertools.islice(FRACTIONS, MOVES):
            view = replace(START, **{slider: low + (high - low) * fraction})
            began = time.perf_counter()
            answer(view)
            took.append(time.perf_counter() - began)
        return float(np.median(took))

    return run


BENCHMARKS = tuple(
    Benchmark(
        name=f"explorer_{slider}",
        title=f"answers to the slider of {what}, 64 x 16 world, 200 penalties: {MOVES} moves, the median of a move as error",
        contenders=lambda slider=slider, low=low, high=high: [Contender("tradeoff", _moved(slider, low, high))],
        error=lambda seconds: seconds,
        tolerance=MOST_SECONDS,
        bars={},
        repeats=3,
    )
    for slider, what, low, high in (("conflict", "conflict", 0.0, 1.0), ("log10_penalty", "the penalty", -3.0, 3.0))
)
