"""Traces of a classifier's Hessian: ours, whose interval is calibrated, against its own products and the curvature libraries."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from benchmarks.curvature import WIDTHS, eigenthings_operator, in_torch, problem, setting
from benchmarks.protocol import Benchmark, Contender, peer
from tradeoff import landscape

PRODUCTS = 30
GATE = 0.1
"""Of an estimate from so few products, relative to the trace; its standard error is a few per cent."""
FLOOR, CLOSE = "its products alone", 12
"""What none can do without, and the repeats of ours and of it: they are apart by less than what single readings are."""


@functools.cache
def reference() -> float:
    r"""The trace, exactly and in float64, without products.

    A layer's z is linear in its weights, so with $H_z$ the Hessian of one sample's loss in z its part of the trace is
    $(1+\|x\|^2)\,\mathrm{tr}H_z$ for the layer's input x. Backwards from $H_z=\mathrm{diag}\,\pi-\pi\pi^\top$ and
    $g=\pi-e_y$, a tanh layer has $H\mapsto DHD+\mathrm{diag}(g\odot\tanh'')$ after $H\mapsto W^\top HW$.
    """
    inputs, labels, weights, _ = setting()
    matrices, offsets = ([w.astype(np.float64) for w in each] for each in (weights[::2], weights[1::2]))
    total = 0.0
    for x, label in zip(inputs.astype(np.float64), labels, strict=True):
        states = [x]
        for W, b in zip(matrices[:-1], offsets[:-1], strict=True):
            states.append(np.tanh(W @ states[-1] + b))
        z = matrices[-1] @ states[-1] + offsets[-1]
        law = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        slope, curvature = law - np.eye(len(z))[label], np.diag(law) - np.outer(law, law)
        total += np.trace(curvature) * (1 + states[-1] @ states[-1])
        for layer in range(len(matrices) - 1, 0, -1):
            W, a, below = matrices[layer], states[layer], states[layer - 1]
            slope, curvature = W.T @ slope, W.T @ curvature @ W
            first, second = 1 - a**2, -2 * a * (1 - a**2)
            curvature = first[:, None] * curvature * first + np.diag(slope * second)
            slope = slope * first
            total += np.trace(curvature) * (1 + below @ below)
    return total / len(inputs)


def error(found: Any) -> float:
    """Of an estimate, relative to the trace."""
    return abs(float(found) / reference() - 1)


def _contenders() -> list[Contender]:
    model, weights = problem(jnp.float32)
    operator, key = landscape.hessian(model, weights), jax.random.key(0)
    vectors = jax.random.normal(key, (PRODUCTS, operator.size), jnp.float32)
    found = [
        Contender("tradeoff", lambda: landscape.trace(operator, key, PRODUCTS).trace, repeats=CLOSE),
        Contender(FLOOR, lambda: jax.block_until_ready(operator.rows(vectors)), error=lambda _: 0.0, repeats=CLOSE),
    ]
    if (eigenthings := peer("hessian_eigenthings")) and (torch := peer("torch")):
        product = eigenthings_operator(eigenthings, torch)
        for method in ("hutchinson", "hutch++"):
            found.append(Contender(f"hessian-eigenthings, {method}", _eigenthings(eigenthings, product, method)))
    if (curvlinops := peer("curvlinops")) and (torch := peer("torch")):
        network, _, samples = in_torch(torch)
        matrix = curvlinops.HessianLinearOperator(
            network, torch.nn.CrossEntropyLoss(), list(network.parameters()), [samples], check_deterministic=False
        )
        for name in ("hutchinson_trace", "hutchpp_trace"):
            found.append(Contender(f"curvlinops, {name}", _curvlinops(torch, getattr(curvlinops, name), matrix)))
    if peer("matfree"):
        found.append(Contender("matfree", _matfree()))
    return found


def _eigenthings(eigenthings: Any, product: Any, method: str) -> Callable[[], float]:
    return lambda: eigenthings.trace(product, num_matvecs=PRODUCTS, method=method, seed=0).estimate


def _curvlinops(torch: Any, estimate: Callable[..., Any], matrix: Any) -> Callable[[], float]:
    def run() -> float:
        torch.manual_seed(0)
        return float(estimate(matrix, PRODUCTS))

    return run


def _matfree() -> Callable[[], jax.Array]:
    stochtrace: Any = peer("matfree.stochtrace")
    model, weights = problem(jnp.float32)
    flat, unravel = ravel_pytree(weights)

    def product(v: jax.Array, model: Any, at: jax.Array) -> jax.Array:
        return jax.jvp(jax.grad(lambda z: model.gaps(unravel(z)).safety), (at,), (v,))[1]

    sampler = stochtrace.sampler_signs(flat, num=PRODUCTS)
    estimate = jax.jit(
        stochtrace.estimator_monte_carlo(stochtrace.monte_carlo_trace(), sampler=sampler), static_argnums=0
    )
    return lambda: jax.block_until_ready(estimate(product, jax.random.key(0), model, flat))


BENCHMARKS = (
    Benchmark(
        name="hessian_trace",
        title=f"trace of the Hessian of a network of {sum(a * b + b for a, b in zip(WIDTHS, WIDTHS[1:], strict=False)):,} "
        f"parameters from {PRODUCTS} products, float32; ours with an interval",
        contenders=_contenders,
        error=error,
        tolerance=GATE,
        bars={
            FLOOR: 1 / 1.1,
            "hessian-eigenthings, hutchinson": 1.0,
            "curvlinops, hutchinson_trace": 1.0,
            "matfree": 1.0,
        },
        repeats=3,
    ),
)
