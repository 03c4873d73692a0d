"""KL and its family between float32 logits of vocabulary size, where the usual formula is noise."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray

from benchmarks.protocol import Benchmark, Contender, peer
from tradeoff import divergences

ROWS, TOKENS = 512, 50_257
LEAST, GREATEST = 1e-9, 1.0
"""KL of the rows, from the least to the greatest, evenly in its logarithm."""
GATE = 1e-5


@functools.cache
def logits() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two models' logits, shape (ROWS, TOKENS): the second is the first and a difference of a size for each row."""
    draw = np.random.default_rng(0)
    a = (3 * draw.normal(size=(ROWS, TOKENS))).astype(np.float32)
    size = np.sqrt(2 * np.geomspace(LEAST, GREATEST, ROWS))
    b = (a + size[:, None] * draw.normal(size=(ROWS, TOKENS))).astype(np.float32)
    return a, b


@functools.cache
def reference() -> NDArray[np.float64]:
    """KL, reverse KL, total variation and Jensen-Shannon of each row in float64, cancellation-free, shape (4, ROWS)."""
    found = []
    for a, b in zip(*logits(), strict=True):
        change = b.astype(np.float64) - a
        P = scipy.special.softmax(a.astype(np.float64))
        r = change - np.log1p(np.sum(P * np.expm1(change)))
        Q = P * np.exp(r)
        over_P, over_Q = np.log1p(np.expm1(r) / 2), np.log1p(np.expm1(-r) / 2)
        found.append(
            (
                np.sum(P * _beyond_first(r)),
                np.sum(Q * _beyond_first(-r)),
                np.sum(P * np.abs(np.expm1(r))) / 2,
                np.sum(P * _beyond_first(over_P) + Q * _beyond_first(over_Q)) / 2,
            )
        )
    return np.array(found).T


def _beyond_first(r: NDArray[np.float64]) -> NDArray[np.float64]:
    """e^r - 1 - r; near zero its series to the eighth order."""
    series = np.zeros_like(r)
    for k in range(8, 2, -1):
        series = r / k * (1 + series)
    return np.where(np.abs(r) < 1e-2, r**2 / 2 * (1 + series), np.expm1(r) - r)


def error(found: Any) -> float:
    """The largest relative error of what was found, KL alone or all four; at least 1 where one is outside its range."""
    values = np.atleast_2d(np.asarray(found, np.float64))
    most = (np.inf, np.inf, 1, np.log(2))[: len(values)]
    outside = np.any(values < 0) or np.any(values.max(axis=1) > most)
    worst = np.max(np.abs(values / reference()[: len(values)] - 1))
    return float(max(worst, 1) if outside else worst)


def _ours(function: Callable[[jax.Array, jax.Array], Any]) -> Callable[[], Any]:
    a, b = (jnp.asarray(x) for x in logits())
    return lambda: jax.block_until_ready(function(a, b))


def _scipy() -> Any:
    a, b = logits()
    return scipy.special.rel_entr(scipy.special.softmax(a, axis=-1), scipy.special.softmax(b, axis=-1)).sum(axis=-1)


def _scipy_entropy() -> Any:
    a, b = logits()
    return scipy.stats.entropy(scipy.special.softmax(a, axis=-1), scipy.special.softmax(b, axis=-1), axis=-1)


def _torch_kl_div(torch: Any) -> Callable[[], Any]:
    a, b = (torch.from_numpy(x) for x in logits())
    functional = torch.nn.functional

    def run() -> Any:
        with torch.no_grad():
            log_P, log_Q = functional.log_softmax(a, -1), functional.log_softmax(b, -1)
            return functional.kl_div(log_Q, log_P, reduction="none", log_target=True).sum(-1).numpy()

    return run


def _peers() -> list[Contender]:
    # They miss the gate, at KL near 1e-9 by any factor and with any sign; how long they take to do so is still told.
    found = [Contender("scipy", _scipy, repeats=3), Contender("scipy.stats.entropy", _scipy_entropy, repeats=3)]
    if torch := peer("torch"):
        found.append(Contender("torch", _torch_kl_div(torch), repeats=3))
    return found


BENCHMARKS = (
    Benchmark(
        name="kl_logits",
        title=f"KL of {ROWS} x {TOKENS} float32 logits, from {LEAST:g} to {GREATEST:g} nats",
        contenders=lambda: [Contender("tradeoff", _ours(divergences.kl_logits)), *_peers()],
        error=error,
        tolerance=GATE,
        bars={"scipy": 6.0, "scipy.stats.entropy": 6.0, "torch": 3.0},
        most_megabytes=64.0,
    ),
    Benchmark(
        name="divergences_of_logits",
        title=f"KL both ways, total variation and Jensen-Shannon of {ROWS} x {TOKENS} float32 logits, against one KL",
        contenders=lambda: [Contender("tradeoff", _ours(divergences.from_logits)), *_peers()],
        error=error,
        tolerance=GATE,
        bars={"scipy": 4.5},
        most_megabytes=64.0,
    ),
)
