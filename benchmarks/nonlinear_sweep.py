"""Gradient descent of a small network at 64 penalties: `descend` mapped over them, against torch and against plain JAX.

A network of 16 inputs, 32 tanh units and one output fits one target (capability) and another (safety) on the same inputs.
The package has no layout of its own for such sweeps: a user maps `descend`, which adds a strategy, a check of every step and
the gaps at both ends, over a network of theirs. Written with its units first and its samples last, the network's products at
all penalties become one large product under `vmap`; with its samples first, as networks are usually written, they do not.
Both layouts are measured, of `descend` and of the loop that anybody would write.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from benchmarks.protocol import Benchmark, Contender, peer
from tradeoff._records import record
from tradeoff.dynamics import descend
from tradeoff.gaps import Gaps
from tradeoff.strategies import Plain

INPUTS, HIDDEN, SAMPLES = 16, 32, 128
PENALTIES = np.geomspace(0.01, 1, 64).astype(np.float32)
STEPS, RATE = 500, 1 / 64
CHECKED = slice(None, None, 9)
"""The penalties at which an answer is compared with float64."""
GATE = 1e-5
"""The largest error of a weight, relative to the largest weight: 500 steps in float32 lie so far from float64."""

Weights = tuple[Any, Any, Any, Any]
"""W1 of shape (HIDDEN, INPUTS), b1 of shape (HIDDEN,), W2 of shape (HIDDEN,) and b2, a scalar."""


@record
class SamplesFirst:
    """A tanh network whose two losses are its mean square errors against two targets.

    Args:
        inputs: shape (N, d).
        task: the target of capability, shape (N,).
        safety: the target of safety, shape (N,).
    """

    inputs: Float[Array, "N d"]
    task: Float[Array, " N"]
    safety: Float[Array, " N"]

    def output(self, parameters: Weights) -> Float[Array, " N"]:
        """As networks are usually written."""
        W1, b1, W2, b2 = parameters
        return jnp.tanh(self.inputs @ W1.T + b1) @ W2 + b2

    def gaps(self, parameters: Weights) -> Gaps:
        """Both mean square errors."""
        output = self.output(parameters)
        return Gaps(jnp.mean((output - self.safety) ** 2), jnp.mean((output - self.task) ** 2))

    def objective(self, parameters: Weights, lam: Any) -> Array:
        """What is descended."""
        at = self.gaps(parameters)
        return at.capability + lam * at.safety


@record
class UnitsFirst(SamplesFirst):
    """The same network in the layout of which `vmap` makes one product for all penalties."""

    def output(self, parameters: Weights) -> Float[Array, " N"]:
        """Samples last."""
        W1, b1, W2, b2 = parameters
        return W2 @ jnp.tanh(W1 @ self.inputs.T + b1[:, None]) + b2


@cache
def setting() -> tuple[tuple[NDArray[np.float32], ...], tuple[NDArray[np.float32], ...]]:
    """Inputs and both targets; and the first weights."""
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(SAMPLES, INPUTS))
    targets = [np.sin(inputs @ draw.normal(size=INPUTS) / 2) for _ in range(2)]
    weights = draw.normal(size=(HIDDEN, INPUTS)) / 4, np.zeros(HIDDEN), draw.normal(size=HIDDEN) / 6, np.zeros(())
    single = [tuple(np.asarray(each, np.float32) for each in some) for some in ((inputs, *targets), weights)]
    return single[0], single[1]


@cache
def reference() -> tuple[NDArray[np.float64], ...]:
    """The last weights at the penalties that are checked, by back-propagation in NumPy, penalty by penalty."""
    (inputs, task, safety), weights = ([each.astype(np.float64) for each in some] for some in setting())
    found = []
    for lam in PENALTIES[CHECKED].astype(np.float64):
        W1, b1, W2, b2 = (each.copy() for each in weights)
        for _ in range(STEPS):
            hidden = np.tanh(inputs @ W1.T + b1)
            output = hidden @ W2 + b2
            back = 2 / SAMPLES * ((output - task) + lam * (output - safety))
            inner = back[:, None] * W2 * (1 - hidden**2)
            W1, b1 = W1 - RATE * inner.T @ inputs, b1 - RATE * inner.sum(axis=0)
            W2, b2 = W2 - RATE * back @ hidden, b2 - RATE * back.sum()
        found.append((W1, b1, W2, b2))
    return tuple(map(np.stack, zip(*found, strict=True)))


def error(found: Weights) -> float:
    """The largest error of a weight at the penalties that are checked, relative to the largest weight."""
    pairs = zip(found, reference(), strict=True)
    wrong = max(float(np.abs(np.asarray(ours)[CHECKED] - exact).max()) for ours, exact in pairs)
    return wrong / max(float(np.abs(exact).max()) for exact in reference())


def _ours(layout: type[SamplesFirst]) -> Callable[[], Weights]:
    def one(network: SamplesFirst, start: Weights, lam: Any) -> Weights:
        return descend(network, Plain(), steps=STEPS, every=STEPS, learning_rate=RATE, start=start, lam=lam).parameters

    return _mapped(layout, one)


def _plain_jax(layout: type[SamplesFirst]) -> Callable[[], Weights]:
    """The loop that anybody would write."""

    def one(network: SamplesFirst, start: Weights, lam: Any) -> Weights:
        def step(_: Array, held: Weights) -> Weights:
            return jax.tree.map(lambda w, g: w - RATE * g, held, jax.grad(network.objective)(held, lam))

        return jax.lax.fori_loop(0, STEPS, step, start)

    return _mapped(layout, one)


def _mapped(layout: type[SamplesFirst], one: Callable[..., Weights]) -> Callable[[], Weights]:
    data, start = (tuple(map(jnp.asarray, some)) for some in setting())
    sweep = jax.jit(jax.vmap(one, in_axes=(None, None, 0)))
    return lambda: jax.block_until_ready(sweep(layout(*data), start, jnp.asarray(PENALTIES)))


def _torch_loop(torch: Any) -> Weights:
    (inputs, task, safety), start = (tuple(map(torch.from_numpy, some)) for some in setting())
    found = []
    for lam in PENALTIES.tolist():
        W1, b1, W2, b2 = held = [each.clone().requires_grad_() for each in start]
        for _ in range(STEPS):
            output = torch.tanh(torch.nn.functional.linear(inputs, W1, b1)) @ W2 + b2
            loss = (output - task).square().mean() + lam * (output - safety).square().mean()
            slopes = torch.autograd.grad(loss, held)
            with torch.no_grad():
                torch._foreach_add_(held, slopes, alpha=-RATE)
        found.append([each.detach().numpy() for each in held])
    W1, b1, W2, b2 = map(np.stack, zip(*found, strict=True))
    return W1, b1, W2, b2


def _contenders() -> Sequence[Contender]:
    found = [
        Contender("tradeoff", _ours(UnitsFirst)),
        Contender("tradeoff, samples first", _ours(SamplesFirst)),
        Contender("jax.vmap", _plain_jax(SamplesFirst)),
        Contender("jax.vmap, units first", _plain_jax(UnitsFirst)),
    ]
    if torch := peer("torch"):
        found.append(Contender("torch loop", partial(_torch_loop, torch), repeats=1))
    return found


BENCHMARKS = (
    Benchmark(
        name="nonlinear_sweep",
        title=f"{STEPS} steps of a network of {HIDDEN} tanh units at {len(PENALTIES)} penalties, float32",
        contenders=_contenders,
        error=error,
        tolerance=GATE,
        bars={"torch loop": 40.0, "jax.vmap": 1.9},
        repeats=4,
    ),
)
