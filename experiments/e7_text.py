"""E7, text world: learning rate, batch, accumulation and averages on a small transformer, at equal examples seen.

The task shares no prompt with the safety data, so the exact frontier demands nothing. What a run loses splits into what
another setting of the optimiser avoids at no worse a capability, which is an artefact, and what no setting avoids.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array

from experiments import e8_text
from tradeoff import Gaps, dynamics, frontier
from tradeoff.problems import Transformer
from tradeoff.problems.transformer import Parameters
from tradeoff.strategies import EMA, SmallBatch, Strategy, compose
from tradeoff.tolerances import ROOT

READINGS = {"tracked": (0.8, 0.9, 0.95), "through": (0.5, 0.8, 0.95), "to the start": (0.01, 0.03, 0.1)}
"""The three averages that go by the name EMA, and the coefficients η that are tried."""
Make = Callable[[Array], Strategy]
"""A strategy at a coefficient."""


@dataclass(frozen=True)
class Settings:
    """The models of the league, and one budget of examples.

    Attributes:
        examples: seen by every run.
        batches: sizes; weights are averaged at the first, and the second is made of the first by accumulation as well.
        rates: how many learning rates of Adam are tried, from `lowest` to `highest`.
        target: the capability gap at which optimisers are compared, over that of the start.
    """

    models: e8_text.Settings = field(default_factory=e8_text.Settings)
    examples: int = 128
    batches: tuple[int, ...] = (2, 8, 32)
    rates: int = 8
    lowest: float = 4e-4
    highest: float = 6e-2
    target: float = 0.1


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Both gaps at the end of every run, the split of what it lost, and the least that every kind of optimiser loses.

    Raises:
        RuntimeError: when a point lies below the frontier, or two optimisers differ that are one.
    """
    problems, keys = e8_text.drawn(settings.models)
    _, start = e8_text.prepared(problems, keys, settings.models)
    rates = np.geomspace(settings.lowest, settings.highest, settings.rates)
    first, second = settings.batches[:2]
    shrunk = (1 - READINGS["through"][0]) * rates[:2]

    def ends(one: tuple[Make, int, tuple[float, ...], np.ndarray]) -> Gaps:
        make, batch, coefficients, rates = one
        return _ends(make, settings.examples // batch, problems, start, keys, coefficients, rates)

    plain = [(lambda _, n=n: SmallBatch(n), n, (0.0,), rates) for n in settings.batches]
    ema = [
        (lambda eta, name=name: compose(SmallBatch(first), EMA(eta, name)), first, etas, rates)
        for name, etas in READINGS.items()
    ]
    same = [
        (lambda _: SmallBatch(first, second // first), second, (0.0,), rates[:2]),
        (lambda _: SmallBatch(first), first, (0.0,), shrunk),
    ]
    with ThreadPoolExecutor(2) as two:  # one compiles while another runs
        found = list(two.map(ends, [*plain, *ema, *same]))
    count = len(plain)
    sampled, averaged = _stacked(found[:count]), _stacked(found[count:-2])
    _check(sampled, averaged, found[-2:])
    world = jax.tree.map(lambda leaf: leaf[0], problems.world)  # the seeds' laws are one; their prompts differ
    for gaps in (sampled, averaged):
        frontier.certify(world, gaps)
    began = np.asarray(jax.jit(jax.vmap(lambda problem, at: problem.gaps(at).capability))(problems, start))
    return dataset(Gaps(sampled.safety[:, 0], sampled.capability[:, 0]), averaged, began, rates, settings)


def dataset(sampled: Gaps, averaged: Gaps, began: np.ndarray, rates: np.ndarray, settings: Settings) -> xr.Dataset:
    """All of it with names; `sampled` has the shape (batch, rate, seed), `averaged` (reading, coefficient, rate, seed)."""
    target = settings.target * began
    kinds = [*[f"batch {n}" for n in settings.batches], *READINGS]
    # Of an average at its best coefficient.
    least = np.concatenate([_least(sampled, target), np.fmin.reduce(_least(averaged, target), axis=1)])
    nats = {"units": "nats"}
    some = nats | {"missing": "no learning rate gets to the target"}
    return xr.Dataset(
        {
            "safety_gap": (("batch", "rate", "seed"), sampled.safety, nats),
            "capability_gap": (("batch", "rate", "seed"), sampled.capability, nats),
            "left": (("batch", "rate", "seed"), best(sampled), nats | {"long_name": "least of any setting at this capability gap"}),
            "averaged_safety_gap": (("reading", "average", "rate", "seed"), averaged.safety, nats),
            "averaged_capability_gap": (("reading", "average", "rate", "seed"), averaged.capability, nats),
            "coefficient": (("reading", "average"), [*READINGS.values()], {"long_name": "η"}),
            "least": (("optimiser", "seed"), least, some | {"long_name": "safety gap at the target, at the best learning rate"}),
            "start": (("seed",), began, nats | {"long_name": "capability gap before training"}),
            "target": (("seed",), target, nats),
        },
        coords={"batch": [*settings.batches], "rate": rates, "reading": [*READINGS], "average": np.arange(3),
                "optimiser": kinds, "seed": np.arange(len(began))},
    )  # fmt: skip


def best(sampled: Gaps) -> np.ndarray:
    """The least safety gap of any run of the same seed whose capability gap is no larger, of the shape of the gaps."""
    safety, capability = (
        np.asarray(value).reshape(-1, value.shape[-1]) for value in (sampled.safety, sampled.capability)
    )
    no_worse = capability[None] <= capability[:, None]
    return np.where(no_worse, safety[None], np.inf).min(axis=1).reshape(sampled.safety.shape)


def _least(gaps: Gaps, target: np.ndarray) -> np.ndarray:
    """The least safety gap at the target, over learning rates and between them, by everything else and the seed."""
    least = np.vectorize(e8_text.least_at, signature="(r),(r),()->()")
    return least(jnp.moveaxis(gaps.safety, -2, -1), jnp.moveaxis(gaps.capability, -2, -1), target)


def _ends(
    make: Make,
    steps: int,
    problems: Transformer,
    start: Parameters,
    keys: Array,
    coefficients: tuple[float, ...],
    rates: np.ndarray,
) -> Gaps:
    """The gaps at the end of every run, shape (coefficients, rates, seeds)."""

    def one(problem: Transformer, start: Parameters, random: Array, eta: Array, rate: Array) -> Array:
        at = dynamics.descend(
            problem, make(eta), optimiser=optax.adam(rate), start=start, steps=steps, every=steps, key=random
        ).gaps
        return jnp.stack([at.safety[-1], at.capability[-1]])

    every = jax.vmap(one, (0, 0, 0, None, None))
    every = jax.vmap(jax.vmap(every, (None, None, None, None, 0)), (None, None, None, 0, None))
    found = jax.jit(every)(problems, start, keys, jnp.array(coefficients), jnp.asarray(rates))
    return Gaps(found[..., 0], found[..., 1])


def _stacked(found: list[Gaps]) -> Gaps:
    return Gaps(jnp.stack([one.safety for one in found]), jnp.stack([one.capability for one in found]))


def _check(sampled: Gaps, averaged: Gaps, same: list[Gaps]) -> None:
    """Nothing below the frontier, which is at zero; accumulation is a batch, an average trained through a learning rate."""
    if (
        min(float(np.min(value)) for gaps in (sampled, averaged) for value in (gaps.safety, gaps.capability))
        < -ROOT.absolute
    ):
        raise RuntimeError("a run lies below the exact frontier; one of the two is wrong.")
    through = [*READINGS].index("through")
    pairs = (
        ("accumulated micro-batches and their batch", same[0].safety[0], sampled.safety[1, 0, :2]),
        ("an average trained through and a smaller learning rate", same[1].safety[0], averaged.safety[through, 0, :2]),
    )
    for words, one, other in pairs:
        apart = float(np.max(np.abs(one / other - 1)))
        if apart > ROOT.relative:
            raise RuntimeError(f"{words} differ by {apart:.1e} of the safety gap; they should be one.")
