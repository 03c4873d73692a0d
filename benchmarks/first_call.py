"""The first call of closed forms in a fresh process, and the memory of a sweep that records at many times.

The error of a first-call benchmark is the slowest first call in seconds, and its tolerance is what one may take. A process
loads the package and forks before JAX has started; in each fork inputs are made, one form is called and the clock is read.
The time of the contender is that of all processes together and says little. `python -m benchmarks.first_call case_one` lists
the forms of a group with their seconds. The same is measured again, as a benchmark of its own, where JAX keeps what it
compiles in a folder that an earlier process has filled.
"""

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np

from benchmarks.protocol import Benchmark, Contender
from tradeoff import divergences, dynamics, frontier, loss_constraint, parameter_constraint
from tradeoff.problems import Quadratic
from tradeoff.worlds import DataLaw, World

MOST_SECONDS = 0.3
WITH_CACHE = " where JAX's cache holds what is compiled"
LAMS, TIMES = np.geomspace(1e-3, 1e3, 100), np.linspace(0.0, 10.0, 101)
SIZE = 50
SAVES, FEWER = 8001, 801
"""Numbers of save times of the sweep whose memory is taken."""
SWEPT = np.linspace(0.0, 1.0, 64)
CHECKED = slice(None, None, 800)
"""The save times at which its gaps are compared with NumPy."""
MOST_MEGABYTES = 32
"""Four times what the gaps at `SAVES` times take themselves, and a sixth of what the states would."""


def world() -> World:
    """A random world of 32 x 16 with a proxy."""
    draw = np.random.default_rng(0)
    safety, capability, proxy = (
        DataLaw(draw.dirichlet(np.ones(32)), draw.dirichlet(np.ones(16), 32)) for _ in range(3)
    )
    return World(safety, capability, proxy)


def pair() -> Quadratic:
    """Two quadratics of `SIZE` parameters."""
    draw = np.random.default_rng(0)

    def hessian() -> np.ndarray:
        Q = np.linalg.qr(draw.normal(size=(SIZE, SIZE)))[0]
        H = (Q * np.linspace(0.05, 1.5, SIZE)) @ Q.T
        return (H + H.T) / 2

    return Quadratic(hessian(), draw.normal(size=SIZE), hessian(), np.zeros(SIZE))


def laws() -> tuple[jax.Array, jax.Array]:
    """Two laws for each of 32 contexts."""
    both = np.random.default_rng(0).dirichlet(np.ones(16), (2, 32))
    return jax.numpy.asarray(both[0]), jax.numpy.asarray(both[1])


FORMS: Mapping[str, tuple[Callable[[], Any], Mapping[str, Callable[[Any], Any]]]] = {
    "case_one": (
        world,
        {
            "optimal_policy": lambda w: loss_constraint.optimal_policy(w, 1.0),
            "gaps": lambda w: loss_constraint.gaps(w, LAMS),
            "value": lambda w: loss_constraint.value(w, LAMS),
            "penalty_for": lambda w: loss_constraint.penalty_for(w, safety_gap=0.01),
            "lower_limit": lambda w: frontier.lower_limit(w, 0.01),
        },
    ),
    "case_two": (
        pair,
        {
            "path": lambda q: parameter_constraint.path(q, np.geomspace(0.01, 10, 100)),
            "penalised_path": lambda q: parameter_constraint.penalised_path(q, LAMS),
            "price_of_isotropy": lambda q: parameter_constraint.price_of_isotropy(q.H_s, q.pull),
        },
    ),
    "flows": (
        pair,
        {
            "quadratic_flow": lambda q: dynamics.quadratic_flow(q, LAMS, TIMES).gaps,
            "early_stopping_path": lambda q: dynamics.early_stopping_path(q, TIMES),
            "noise_floor": lambda q: dynamics.noise_floor(q, np.eye(SIZE), 0.1),
        },
    ),
    "divergences": (
        laws,
        {
            name: lambda both, name=name: getattr(divergences, name)(*both)
            for name in ("kl", "jensen_shannon", "total_variation", "kl_logits")
        },
    ),
}
"""By group: what makes the inputs, and the forms."""


def first_calls(group: str) -> dict[str, float]:
    """Seconds of the first call of every form of a group, each in a process of its own."""
    context, found = multiprocessing.get_context("fork"), {}
    # What loading has left to collect is no part of a call, and a fork would otherwise collect it amid one.
    gc.collect()
    gc.freeze()
    for name in FORMS[group][1]:
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_first_call, args=(group, name, writer))
        process.start()
        writer.close()
        found[name] = reader.recv()
        process.join()
    return found


def _first_call(group: str, name: str, writer: Connection) -> None:
    make, forms = FORMS[group]
    inputs = jax.block_until_ready(make())
    began = time.perf_counter()
    jax.block_until_ready(forms[name](inputs))
    writer.send(time.perf_counter() - began)


def _in_a_process(group: str, cache: str | None = None) -> dict[str, float]:
    command, environment = [sys.executable, "-m", "benchmarks.first_call", group], dict(os.environ)
    if cache is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


def _contenders(group: str, cached: bool) -> list[Contender]:
    if not cached:
        return [Contender("tradeoff", lambda: _in_a_process(group))]
    kept = tempfile.TemporaryDirectory()
    _in_a_process(group, kept.name)
    return [Contender("tradeoff", lambda: _in_a_process(group, kept.name))]


def _sweep(saves: int) -> Callable[[], np.ndarray]:
    quad, times = pair(), np.linspace(0.0, 10.0, saves)

    def run() -> np.ndarray:
        gaps = dynamics.quadratic_flow(quad, SWEPT, times).gaps
        return np.stack([np.asarray(gaps.safety), np.asarray(gaps.capability)])

    return run


def _error(saves: int) -> Callable[[np.ndarray], float]:
    """The largest error of a gap at some times, relative to the largest, against NumPy in the eigenbasis at every penalty."""

    def error(found: np.ndarray) -> float:
        quad, times = pair(), np.linspace(0.0, 10.0, saves)[CHECKED]
        H_f, H_s, pull = (np.asarray(part) for part in (quad.H_f, quad.H_s, quad.pull))
        rates, U = np.linalg.eigh(H_f + SWEPT[:, None, None] * H_s)
        filters = -np.expm1(-times[None, :, None] * rates[:, None, :]) / rates[:, None, :]
        states = (filters * (pull @ U)[:, None, :]) @ U.swapaxes(1, 2)
        pairs = ((states, H_s), (states - np.asarray(quad.displacement), H_f))
        exact = np.stack([np.sum(v * (v @ H), axis=-1) / 2 for v, H in pairs])
        return float(np.max(np.abs(found[..., CHECKED] - exact).max(axis=(1, 2)) / exact.max(axis=(1, 2))))

    return error


BENCHMARKS = (
    *(
        Benchmark(
            name=f"first_call_{group}{'_cached' if cached else ''}",
            title=f"the slowest first call{WITH_CACHE if cached else ''}, in seconds in the place of an error: {', '.join(forms)}",
            contenders=lambda group=group, cached=cached: _contenders(group, cached),
            error=lambda found: max(found.values()),
            tolerance=MOST_SECONDS,
            bars={},
            repeats=1,
        )
        for group, (_, forms) in FORMS.items()
        for cached in (False, True)
    ),
    Benchmark(
        name="sweep_memory",
        title=f"memory of the gaps of flows at {SAVES:,} times, {SIZE} parameters, {len(SWEPT)} penalties",
        contenders=lambda: [
            Contender("tradeoff", _sweep(SAVES)),
            Contender("a tenth of the times", _sweep(FEWER), error=_error(FEWER)),
        ],
        error=_error(SAVES),
        tolerance=1e-12,
        bars={},
        repeats=3,
        most_megabytes=MOST_MEGABYTES,
    ),
)


if __name__ == "__main__":
    print(json.dumps(first_calls(sys.argv[1])))
