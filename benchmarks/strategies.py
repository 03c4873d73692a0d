"""What a strategy costs beside the gradients that it needs, in both engines: at most a tenth more.

The floor asks the same engine for the same gradients, all of them at the same weights, and descends their sum, for as many
steps. So what gradients at one point have in common the JAX compiler computes once for the floor too; torch, where an engine
answers one question after the other, computes it for each. In the floor are the laws of the data, computed once a run, and
in JAX the gaps at the first and the last weights, since `descend` takes both. Gaps in between are taken of neither: to record
a run is no part of a strategy. Not in the floor are whatever the strategy does with its gradients, its state and its export,
the optimiser, and the check of every step that the weights are finite. Neither keeps the weights on its way, and in both a
program is compiled by the first call, which the protocol reports apart.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.protocol import Benchmark, Contender
from tradeoff.bridge.training import TorchEngine, plain_descent, train
from tradeoff.dynamics import JaxEngine, descend
from tradeoff.dynamics.engine import WHOLE, named
from tradeoff.gaps import Gaps
from tradeoff.problems import SoftmaxLinear
from tradeoff.strategies import ALIGNMENT, EMA, TASK, SafeGrad, Strategy
from tradeoff.worlds import DataLaw, World

PROMPTS, ANSWERS, FEATURES = 2048, 256, 512
STEPS, RATE, RHO, ETA = 30, 5.0, 1.0, 0.9
GATE = 1e-10
FLOOR = "its gradients alone"
BAR = 1 / 1.1


@functools.cache
def problem() -> tuple[SoftmaxLinear, jax.Array]:
    """A softmax-linear policy of 131,072 weights on shared features, and the weights that the safety data come from."""
    draw = np.random.default_rng(0)
    features = draw.normal(size=(PROMPTS, FEATURES)) / np.sqrt(FEATURES)
    aligned = draw.normal(size=(FEATURES, ANSWERS))
    P_s = np.asarray(jax.nn.softmax(features @ aligned))
    P_f = draw.dirichlet(np.full(ANSWERS, 0.3), PROMPTS)
    half = np.arange(PROMPTS) < PROMPTS // 2
    p_s, p_f = np.full(PROMPTS, 1 / PROMPTS), np.where(half, 2 / PROMPTS, 0)
    return SoftmaxLinear(World(DataLaw(p_s, P_s), DataLaw(p_f, P_f)), features), jnp.asarray(aligned)


@functools.cache
def reference(name: str) -> NDArray[np.float64]:
    """Where the run ends, by NumPy."""
    toy, aligned = problem()
    features, start = np.asarray(toy.features), np.asarray(aligned)
    task = np.asarray(toy.world.capability.p[:, None] * toy.world.capability.P)
    p_s = np.asarray(toy.world.safety.p)[:, None]

    def policy(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        z = features @ theta
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    first, theta, shadow = policy(start), start, start
    for step in range(STEPS):
        now = policy(theta)
        g = features.T @ (task.sum(axis=1, keepdims=True) * now - task)
        if name == "safegrad" and step > 0:
            a = features.T @ (p_s * (now - first))
            overlap = np.sum(g * a)
            g = g - min(overlap, 0) / np.sum(a * a) * a + RHO * a
        theta = theta - RATE * g
        shadow = ETA * shadow + (1 - ETA) * theta
    return shadow if name == "ema" else theta


def _in_jax(strategy: Strategy, losses: tuple) -> Callable[[], list[Contender]]:
    def contenders() -> list[Contender]:
        toy, aligned = problem()

        @jax.jit
        def gradients(toy: SoftmaxLinear, aligned: jax.Array) -> tuple[jax.Array, Gaps, Gaps]:
            engine = JaxEngine(toy, aligned, jax.random.key(0), STEPS, RATE).prepared()

            def step(theta: jax.Array, _: Any) -> tuple[jax.Array, None]:
                total = sum(engine.gradient(loss, named(theta))[WHOLE] for loss in losses)
                return theta - RATE * total, None

            end = jax.lax.scan(step, aligned, None, STEPS)[0]
            return end, toy.gaps(aligned), toy.gaps(end)

        def ours() -> NDArray[np.float64]:
            run = descend(toy, strategy, learning_rate=RATE, steps=STEPS, every=STEPS, start=aligned)
            return np.asarray(run.exported)

        return [
            Contender("tradeoff", ours),
            Contender(FLOOR, lambda: jax.block_until_ready(gradients(toy, aligned)), error=lambda _: 0.0),
        ]

    return contenders


def _in_torch(strategy: Strategy, losses: tuple) -> Callable[[], list[Contender]]:
    def contenders() -> list[Contender]:
        toy, aligned = problem()
        features, start = torch.from_numpy(np.array(toy.features)), {WHOLE: torch.from_numpy(np.array(aligned))}

        def policy(weights: Any) -> torch.Tensor:
            return torch.log_softmax(features @ weights[WHOLE], dim=-1)

        def engine() -> TorchEngine:
            return TorchEngine(policy, toy.world, start, jax.random.key(0), STEPS, RATE)

        def ours() -> NDArray[np.float64]:
            last = collections.deque(train(engine(), strategy, plain_descent(RATE)), maxlen=1).pop()
            return last.exported[WHOLE].numpy()

        def gradients() -> NDArray[np.float64]:
            own, weights = engine(), start
            for _ in range(STEPS):
                total = sum(own.gradient(loss, weights)[WHOLE] for loss in losses)
                weights = {WHOLE: weights[WHOLE] - RATE * total}
            return weights[WHOLE].numpy()

        return [Contender("tradeoff", ours), Contender(FLOOR, gradients, error=lambda _: 0.0)]

    return contenders


def _benchmark(name: str, engine: str, strategy: Strategy, losses: tuple) -> Benchmark:
    make = {"jax": _in_jax, "torch": _in_torch}[engine]
    title = f"{STEPS} steps of {name} in {engine} against the {len(losses)} gradients a step that it needs"
    return Benchmark(
        f"strategy_{name}_{engine}",
        title,
        make(strategy, losses),
        lambda found: float(np.max(np.abs(found - reference(name)))),
        GATE,
        {FLOOR: BAR},
    )


BENCHMARKS = tuple(
    _benchmark(name, engine, strategy, losses)
    for engine in ("jax", "torch")
    for name, strategy, losses in (("safegrad", SafeGrad(RHO), (TASK, ALIGNMENT)), ("ema", EMA(ETA), (TASK,)))
)
