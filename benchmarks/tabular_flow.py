"""Tabular softmax flows of a 32 x 16 world, against SciPy penalty by penalty and against batched explicit solvers.

At 1,000 penalties over six decades the flows are stiff and only SciPy's implicit solver is a peer; at 250 over two decades
they are not, and torchdiffeq solves them as one system and diffrax under `vmap`.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from benchmarks.protocol import Benchmark, Contender, peer
from tradeoff import worlds
from tradeoff.dynamics import tabular_flow
from tradeoff.problems import Tabular
from tradeoff.worlds import World

CONTEXTS, RESPONSES = 32, 16
CHECKED = slice(None, None, 111)
"""The penalties at which an answer is compared with a solution at 1e-10."""
TOLERANCE = 1e-6
"""Of the peers, relative; absolute it is a hundredth."""
GATE = 1e-6
"""The largest error of a gap, nats."""


class Sweep(NamedTuple):
    """What is solved: how much of the safety data's law is in the proxy (all of it at 1), penalties, times."""

    similarity: float
    lams: np.ndarray
    times: np.ndarray


class Fields(NamedTuple):
    """Of every penalty, along a first axis: z' = goal - speed softmax(z) from the start that all share."""

    start: Any
    goal: Any
    speed: Any


STIFF = np.geomspace(1e-3, 1e3, 1000), np.geomspace(0.01, 1e4, 101)
MILD = np.geomspace(0.1, 10, 250), np.geomspace(0.01, 100, 101)


@cache
def world(similarity: float) -> World:
    """Half of the contexts are shared; the proxy is exact at similarity 1."""
    return worlds.random(jax.random.key(0), CONTEXTS, RESPONSES, overlap=0.5, similarity=similarity)


def laws(similarity: float) -> list[tuple[np.ndarray, np.ndarray]]:
    """Contexts and responses of the safety data, the task and the proxy."""
    given = world(similarity)
    several = given.safety, given.capability, given.training_safety
    return [(np.asarray(law.p), np.asarray(law.P)) for law in several]


def fields(sweep: Sweep) -> Fields:
    """The fields of all penalties."""
    _, (p_f, P_f), (p_seen, P_seen) = laws(sweep.similarity)
    lams = sweep.lams[:, None, None]
    speed = p_f[:, None] + lams * p_seen[:, None]
    goal = p_f[:, None] * P_f + lams * (p_seen[:, None] * P_seen)
    return Fields(np.asarray(Tabular(world(sweep.similarity)).aligned()), goal, speed)


def gaps_of(similarity: float, log_policies: np.ndarray) -> np.ndarray:
    """Both gaps of policies, shape (2, ...)."""
    both = laws(similarity)[:2]
    return np.stack([(p * (P * (np.log(P) - log_policies)).sum(axis=-1)).sum(axis=-1) for p, P in both])


def softmax(z: np.ndarray) -> np.ndarray:
    """Along the last axis."""
    odds = np.exp(z - z.max(axis=-1, keepdims=True))
    return odds / odds.sum(axis=-1, keepdims=True)


def _loop(sweep: Sweep, tolerance: float) -> np.ndarray:
    """Both gaps, shape (L, 2, T), by LSODA told that its Jacobian is a band: SciPy's fastest here by far."""
    start, goals, speeds = fields(sweep)
    band = RESPONSES - 1
    options: dict[str, Any] = {"rtol": tolerance, "atol": tolerance / 100}
    found = []
    for goal, speed in zip(goals, speeds, strict=True):

        def field(_: float, z: np.ndarray, goal: np.ndarray = goal, speed: np.ndarray = speed) -> np.ndarray:
            return (goal - speed * softmax(z.reshape(CONTEXTS, RESPONSES))).ravel()

        span = 0, sweep.times[-1]
        at = solve_ivp(field, span, start.ravel(), "LSODA", sweep.times, lband=band, uband=band, **options)
        found.append(gaps_of(sweep.similarity, np.log(softmax(at.y.T.reshape(-1, CONTEXTS, RESPONSES)))))
    return np.stack(found)


def _torchdiffeq(torch: Any, solver: Any, sweep: Sweep) -> Callable[[], np.ndarray]:
    """All penalties as one system."""
    start, goal, speed = (torch.from_numpy(np.array(leaf)) for leaf in fields(sweep))
    times = torch.from_numpy(np.append(0.0, sweep.times))
    first = start.expand(len(sweep.lams), CONTEXTS, RESPONSES).contiguous()

    def run() -> np.ndarray:
        with torch.no_grad():
            states = solver.odeint(
                lambda _, z: goal - speed * torch.softmax(z, -1), first, times, rtol=TOLERANCE, atol=TOLERANCE / 100
            )[1:]
            return gaps_of(sweep.similarity, torch.log_softmax(states, -1).numpy()).transpose(2, 0, 1)

    return run


def _diffrax(diffrax: Any, sweep: Sweep) -> Callable[[], np.ndarray]:
    """Every penalty with steps of its own, mapped."""
    given = jax.tree.map(jnp.asarray, (fields(sweep), sweep.times))

    @jax.jit
    def solve(given: tuple[Fields, jax.Array]) -> Any:
        (start, goals, speeds), times = given

        def one(goal: jax.Array, speed: jax.Array) -> Any:
            found = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda _t, z, _args: goal - speed * jax.nn.softmax(z, axis=-1)),
                diffrax.Tsit5(),
                0.0,
                times[-1],
                None,
                start,
                saveat=diffrax.SaveAt(ts=times),
                stepsize_controller=diffrax.PIDController(rtol=TOLERANCE, atol=TOLERANCE / 100),
            )
            return jax.nn.log_softmax(found.ys, axis=-1)

        return jax.vmap(one)(goals, speeds)

    return lambda: gaps_of(sweep.similarity, np.asarray(solve(given))).swapaxes(0, 1)


def _contenders(sweep: Sweep, batched: bool) -> Callable[[], Sequence[Contender]]:
    def ours() -> np.ndarray:
        gaps = tabular_flow(world(sweep.similarity), sweep.lams, sweep.times).gaps
        return np.stack([np.asarray(gaps.safety), np.asarray(gaps.capability)], axis=1)

    def build() -> Sequence[Contender]:
        found = [
            Contender("tradeoff", ours, repeats=3),
            Contender("scipy LSODA loop", lambda: _loop(sweep, TOLERANCE), repeats=1),
        ]
        if batched and (torch := peer("torch")) and (torchdiffeq := peer("torchdiffeq")):
            found.append(Contender("torchdiffeq dopri5", _torchdiffeq(torch, torchdiffeq, sweep), repeats=1))
        if batched and (diffrax := peer("diffrax")):
            found.append(Contender("diffrax Tsit5 vmap", _diffrax(diffrax, sweep), repeats=1))
        return found

    return build


def _error(sweep: Sweep) -> Callable[[Any], float]:
    @cache
    def reference() -> np.ndarray:
        return _loop(sweep._replace(lams=sweep.lams[CHECKED]), 1e-10)

    return lambda found: float(np.abs(found[CHECKED] - reference()).max())


BENCHMARKS = tuple(
    Benchmark(
        name=f"tabular_flow_{name}",
        title=f"tabular flows of a {CONTEXTS} x {RESPONSES} world, {len(sweep.lams)} penalties, {len(sweep.times)} times, {what}: gaps",
        contenders=_contenders(sweep, name == "mild"),
        error=_error(sweep),
        tolerance=GATE,
        bars=bars,
    )
    for name, what, sweep, bars in (
        ("exact", "exact proxy", Sweep(1.0, *STIFF), {"scipy LSODA loop": 30.0}),
        ("poor", "poor proxy", Sweep(0.7, *STIFF), {"scipy LSODA loop": 30.0}),
        ("mild", "poor proxy, not stiff", Sweep(0.7, *MILD), {}),
    )
)
