"""Tabular softmax flows of a 32 x 16 world at 1,000 penalties over six decades, against SciPy penalty by penalty."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
from scipy.integrate import solve_ivp

from benchmarks.protocol import Benchmark, Contender
from tradeoff import worlds
from tradeoff.dynamics import tabular_flow
from tradeoff.problems import Tabular
from tradeoff.worlds import World

CONTEXTS, RESPONSES = 32, 16
LAMS, TIMES = np.geomspace(1e-3, 1e3, 1000), np.geomspace(0.01, 1e4, 101)
CHECKED = slice(None, None, 111)
"""The penalties at which an answer is compared with a solution at 1e-10."""
GATE = 1e-6
"""The largest error of a gap, nats."""


@cache
def world(similarity: float) -> World:
    """Half of the contexts are shared; the proxy is exact at similarity 1."""
    return worlds.random(jax.random.key(0), CONTEXTS, RESPONSES, overlap=0.5, similarity=similarity)


def _flow(similarity: float, lam: float, tolerance: float) -> np.ndarray:
    """Both gaps at `TIMES`, shape (2, T), by LSODA told that its Jacobian is a band: SciPy's fastest here by far."""
    given = world(similarity)
    (p_s, P_s), (p_f, P_f), (p_seen, P_seen) = (
        (np.asarray(law.p), np.asarray(law.P)) for law in (given.safety, given.capability, given.training_safety)
    )
    speed = (p_f + lam * p_seen)[:, None]
    goal = p_f[:, None] * P_f + lam * p_seen[:, None] * P_seen

    def softmax(z: np.ndarray) -> np.ndarray:
        odds = np.exp(z - z.max(axis=-1, keepdims=True))
        return odds / odds.sum(axis=-1, keepdims=True)

    def field(_: float, z: np.ndarray) -> np.ndarray:
        return (goal - speed * softmax(z.reshape(CONTEXTS, RESPONSES))).ravel()

    start = np.asarray(Tabular(given).aligned()).ravel()
    band = RESPONSES - 1
    found = solve_ivp(
        field, (0, TIMES[-1]), start, "LSODA", TIMES, lband=band, uband=band, rtol=tolerance, atol=tolerance / 100
    )
    log_policy = np.log(softmax(found.y.T.reshape(-1, CONTEXTS, RESPONSES)))
    return np.stack([(p * (P * (np.log(P) - log_policy)).sum(-1)).sum(-1) for p, P in ((p_s, P_s), (p_f, P_f))])


@cache
def reference(similarity: float) -> np.ndarray:
    """Both gaps at the penalties that are checked, shape (L, 2, T)."""
    return np.stack([_flow(similarity, lam, 1e-10) for lam in LAMS[CHECKED]])


def _contenders(similarity: float) -> Callable[[], Sequence[Contender]]:
    def ours() -> np.ndarray:
        gaps = tabular_flow(world(similarity), LAMS, TIMES).gaps
        return np.stack([np.asarray(gaps.safety), np.asarray(gaps.capability)], axis=1)

    def scipy() -> np.ndarray:
        return np.stack([_flow(similarity, lam, 1e-6) for lam in LAMS])

    return lambda: [Contender("tradeoff", ours, repeats=3), Contender("scipy LSODA loop", scipy, repeats=1)]


def _error(similarity: float) -> Callable[[Any], float]:
    return lambda found: float(np.abs(found[CHECKED] - reference(similarity)).max())


BENCHMARKS = tuple(
    Benchmark(
        name=f"tabular_flow_{name}",
        title=f"tabular flows of a {CONTEXTS} x {RESPONSES} world, {len(LAMS)} penalties, {len(TIMES)} times, {name} proxy: gaps",
        contenders=_contenders(similarity),
        error=_error(similarity),
        tolerance=GATE,
        bars={"scipy LSODA loop": 30},
    )
    for name, similarity in (("exact", 1.0), ("poor", 0.7))
)
