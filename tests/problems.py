"""The bank of named problems that tests and benchmarks share."""

import jax
import numpy as np

import tradeoff as to


def _random(seed: int, **knobs: float) -> to.World:
    return to.worlds.random(jax.random.key(seed), contexts=6, responses=4, **knobs)


def _tiny_gaps() -> to.World:
    """Conditional laws that differ by 1e-6, so that every gap is below 1e-11."""
    world = _random(5)
    P = np.asarray(world.safety.P)
    nudge = 1e-6 * (np.roll(P, 1, axis=1) - P)
    return to.World(world.safety, to.DataLaw(world.capability.p, P + nudge))


def _laws(p_s, P_s, p_f, P_f, proxy=None) -> to.World:
    return to.World(to.DataLaw(p_s, P_s), to.DataLaw(p_f, P_f), proxy and to.DataLaw(*proxy))


WORLDS = {
    "golden": to.worlds.golden(),
    "over_penalised": to.worlds.over_penalised(),
    "late_minimum": to.worlds.late_minimum(),
    "two_minima": to.worlds.two_minima(),
    "one_conflict": to.worlds.one_conflict(0.2),
    "random": _random(1),
    "random_proxy": _random(2, similarity=0.3, overlap=0.8),
    "random_agreeing": _random(3, conflict=0.0),
    "tiny_gaps": _tiny_gaps(),
    "disjoint_responses": _laws([1.0], [[1.0, 0.0]], [1.0], [[0.0, 1.0]]),
    "disjoint_contexts": _laws([1.0, 0.0], [[0.3, 0.7], [0.5, 0.5]], [0.0, 1.0], [[0.9, 0.1], [0.2, 0.8]]),
    "escaping": _laws([0.5, 0.5], [[0.0, 0.4, 0.6], [0.2, 0.8, 0.0]], [0.9, 0.1], [[0.3, 0.7, 0.0], [0.1, 0.2, 0.7]]),
    "one_hot": _laws([0.25, 0.75], [[1.0, 0.0], [0.0, 1.0]], [0.5, 0.5], [[0.5, 0.5], [0.0, 1.0]]),
    "proxy_off_context": _laws(
        [0.5, 0.5, 0.0], [[0.6, 0.4]] * 3, [0.0, 0.5, 0.5], [[0.1, 0.9]] * 3, ([0.2, 0.3, 0.5], [[0.7, 0.3]] * 3)
    ),
}
"""Worlds by name: the theory's own, random ones, and every kind of edge."""
