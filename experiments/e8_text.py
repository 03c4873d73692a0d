"""E8, text world: every strategy on a small transformer whose task shares words with the safety data, and no prompt.

The exact frontier is at zero, so all the safety that a strategy loses is avoidable; a table of logits would lose none. What
is lost is lost through what the prompts have in common.
"""

import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr
from jaxtyping import Array
from tqdm import tqdm

from experiments import e8_league as league
from experiments.common import key
from tradeoff import Gaps, dynamics, frontier, studies, worlds
from tradeoff.dynamics.engine import named
from tradeoff.problems import Shape, Transformer
from tradeoff.problems.transformer import Parameters
from tradeoff.strategies import EWC, SAFETY, Plain, Strategy, TVaccine, registry
from tradeoff.strategies.losses import Cells, normalised
from tradeoff.strategies.registry import Row
from tradeoff.tolerances import ROOT
from tradeoff.worlds.grammar import words

LEVELS = {"half": 0.5, "a tenth": 0.1}
"""Of the start's capability gap, at which strategies are compared."""
KNOBS = {
    "ball": ("radius", (2.0, 3.0, 4.0, 6.0)),
    "ewc": ("strength", (3.0, 10.0, 30.0, 100.0)),
    "vaccine": ("rho", (0.3, 1.0, 3.0)),
    "t-vaccine": ("rho", (0.3, 1.0, 3.0)),
    "sap": ("beta", (1.0, 10.0, 100.0)),
    "sap-released": ("rate", (0.02, 0.1, 0.5)),
}
"""Knobs and values in units of this model's weights and hidden states, where the registry has others or none."""
LEFT_OUT = {
    "raft": "it aligns and never sees the task's data",
    "dpo": "it aligns and never sees the task's data",
    "data": "it maps training examples, and here the laws of the data are trained on",
    "decoding": "it acts while decoding, and here answers are scored",
    "before": "it chooses settings of others, by earlier related tasks",
}
"""Why a strategy, or a whole stage, is not run."""


@dataclass(frozen=True)
class Settings:
    """Prompts and first weights drawn anew for every seed, and one budget of steps for all strategies.

    Attributes:
        names: of strategies; all that can be run unless told.
        prompts: of either kind.
        shared: parts that the task's prompts have from the safety prompts.
        base_steps: of Adam, to a base model that gives every answer alike.
        align_steps: of Adam, from there, on the safety law.
        steps: of Adam on the task.
        records: gaps are kept so many times after the start.
        rate: learning rate of Adam in all three.
        aligned_to: what the safety gap must be below before the task is trained, nats.
    """

    names: tuple[str, ...] = ()
    seed: int = 0
    seeds: int = 4
    prompts: int = 12
    shared: tuple[str, ...] = ("wording", "action", "object")
    layers: int = 2
    heads: int = 2
    width: int = 16
    rate: float = 0.01
    base_steps: int = 120
    align_steps: int = 40
    steps: int = 48
    records: int = 24
    aligned_to: float = 0.1


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Each strategy's path through the plane of the gaps for every seed.

    What a run took in seconds differs from time to time, so it is kept beside the data, in `seconds.json`.

    Raises:
        RuntimeError: when a point lies below the exact frontier, or a model is not aligned.
    """
    rows = runnable(settings)
    problems, keys = drawn(settings)
    base, start = prepared(problems, keys, settings)
    shape = (len(rows), league.SETTINGS, settings.seeds, settings.records + 1)
    safety, capability, seconds = np.full(shape, np.nan), np.full(shape, np.nan), {}
    with ThreadPoolExecutor(2) as two:  # one compiles while another runs
        found = two.map(lambda row: paths(row, problems, base, start, keys, settings), rows)
        for number, (gaps, spent) in enumerate(tqdm(found, "E8 text", len(rows), disable=not progress)):
            seconds[rows[number].name] = spent
            for value, into in ((gaps.safety, safety), (gaps.capability, capability)):
                into[number, : len(value)] = value
    studies.write_atomically(folder / "seconds.json", lambda path: path.write_text(json.dumps(seconds, indent=1)))
    return dataset(rows, safety, capability, problems, start, settings)


def dataset(
    rows: list[Row],
    safety: np.ndarray,
    capability: np.ndarray,
    problems: Transformer,
    start: Parameters,
    settings: Settings,
) -> xr.Dataset:
    """All of it with names; gaps of shape (strategy, setting, seed, record)."""
    began = jax.jit(jax.vmap(lambda problem, at: problem.gaps(at).capability))(problems, start)
    targets = np.array([*LEVELS.values()])[:, None] * np.asarray(began)
    least = np.vectorize(least_at, signature="(r),(r),()->()")
    nats = {"units": "nats"}
    some = nats | {"missing": "the strategy has no such setting, or its run was not finite"}
    runs = ("strategy", "setting", "seed")
    return xr.Dataset(
        {
            "safety_gap": ((*runs, "record"), safety, some),
            "capability_gap": ((*runs, "record"), capability, some),
            "distance": (runs, _distance(problems, safety, capability), some | {"long_name": "of the end to the exact frontier"}),
            "at": (("strategy", "setting", "level", "seed"), least(safety[:, :, None], capability[:, :, None], targets),
                   some | {"long_name": "least safety gap at this part of the start's capability gap or less; missing if never"}),
            "target": (("level", "seed"), targets, nats | {"long_name": "that capability gap"}),
            "gradients": ("strategy", [gradients_per_step(row) for row in rows], {"long_name": "gradients asked for in a step"}),
            "word_overlap": ((), worlds.word_overlap(texts(settings)[0]), {"long_name": "of the first seed's prompts"}),
            "reason": ("left_out", [*left_out().values()]),
        },
        coords={
            "strategy": [row.name for row in rows],
            "kind": ("strategy", [league.example(row).kind for row in rows]),
            "stage": ("strategy", [row.stage for row in rows]),
            "needs": ("strategy", ["; ".join(league.example(row).needs) or "nothing" for row in rows]),
            "knob": ("strategy", [row.knob for row in rows]),
            "value": (("strategy", "setting"), [[*row.values, *[np.nan] * (league.SETTINGS - len(row.values))] for row in rows], some),
            "level": [*LEVELS],
            "record": np.arange(settings.records + 1) * (settings.steps // settings.records),
            "seed": np.arange(settings.seeds),
            "setting": np.arange(league.SETTINGS),
            "left_out": [*left_out()],
        },
    )  # fmt: skip


def least_at(safety: np.ndarray, capability: np.ndarray, target: float) -> float:
    """The least safety gap of a path where its capability gap is at most the target; NaN if it never is.

    A run may be stopped anywhere, so a path that comes back from a loss is credited with it.
    """
    there = safety[capability <= target]
    return float(np.min(there, initial=league.first_at(safety, capability, target)))


def left_out() -> dict[str, str]:
    """The reason for every strategy that is not run."""
    reasons = {row["name"]: LEFT_OUT.get(row["name"], LEFT_OUT.get(row["stage"], "")) for row in registry.table()}
    return {name: reason for name, reason in reasons.items() if reason}


def runnable(settings: Settings) -> list[Row]:
    """All other strategies, those without a knob in the registry with the one that they have here."""
    rows = [row for row in registry.all() if row.name not in left_out() and row.name in (settings.names or (row.name,))]
    return [
        row._replace(**dict(zip(("knob", "values"), KNOBS.get(row.name, (row.knob, row.values)), strict=True)))
        for row in rows
    ]


# --- models -----------------------------------------------------------------------------------------------------


def texts(settings: Settings) -> list[worlds.World]:
    """The world of every seed."""
    keys = jax.random.split(key(settings.seed), settings.seeds)
    return [worlds.grammar(k, settings.prompts, settings.prompts, shared=settings.shared) for k in keys]


def drawn(settings: Settings) -> tuple[Transformer, Array]:
    """The problems of all seeds in one batch, and a key for each."""
    made = texts(settings)
    read = [[words(text) for text in (*(world.contexts or ()), *(world.responses or ()))] for world in made]
    vocabulary = [word for every in read for text in every for word in text]
    longest = max(len(text) for every in read for text in every)
    shape = Shape(settings.layers, settings.heads, settings.width)
    problems = [Transformer(world, shape, vocabulary, longest) for world in made]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems), jax.random.split(
        key(settings.seed + 1), len(made)
    )


def prepared(problems: Transformer, keys: Array, settings: Settings) -> tuple[Parameters, Parameters]:
    """Base and aligned models of all seeds.

    Raises:
        RuntimeError: when a safety gap is not below `aligned_to`.
    """
    adam = optax.adam(settings.rate)

    def one(problem: Transformer, random: Array) -> tuple[Parameters, Parameters, Array]:
        cells = jnp.ones_like(problem.world.safety.P)
        steps = settings.base_steps
        base = dynamics.descend(
            problem, adam, steps=steps, every=steps, start=problem.initial(random), loss=Cells(cells / cells.size)
        ).parameters
        aligned = aligned_by(Plain(), problem, base, random, settings)
        return base, aligned, problem.gaps(aligned).safety

    base, aligned, gaps = jax.jit(jax.vmap(one))(problems, keys)
    if not float(jnp.max(gaps)) < settings.aligned_to:
        raise RuntimeError(
            f"a model has a safety gap of {float(jnp.max(gaps)):.3g} nats after its alignment; give more align_steps."
        )
    return base, aligned


def aligned_by(
    strategy: Strategy, problem: Transformer, base: Parameters, random: Array, settings: Settings
) -> Parameters:
    """The base model trained on the safety law by a strategy of that stage, without probes."""
    run = dynamics.descend(
        problem, strategy, optimiser=optax.adam(settings.rate), steps=settings.align_steps, every=settings.align_steps,
        start=problem.probed(base, strategy.probes), loss=SAFETY, key=random,
    )  # fmt: skip
    return {name: run.exported[name] for name in base}


def paths(
    row: Row, problems: Transformer, base: Parameters, start: Parameters, keys: Array, settings: Settings
) -> tuple[Gaps, float]:
    """The gaps along a strategy's runs, shape (settings, seeds, records), and the seconds they took together."""

    def one(problem: Transformer, base: Parameters, start: Parameters, random: Array, value: Array) -> Gaps:
        strategy = made(row, problem, base, start, random, value, settings)
        if row.aligns:
            start, strategy = aligned_by(strategy, problem, base, random, settings), Plain()
        optimiser = None if strategy.owns == "step" else optax.adam(settings.rate)
        start = problem.probed(start, strategy.probes)
        every = settings.steps // settings.records
        return dynamics.descend(
            problem, strategy, optimiser=optimiser, start=start, steps=settings.steps, every=every, key=random
        ).gaps

    values = jnp.array(row.values or (0.0,))
    every = jax.vmap(jax.vmap(one, (0, 0, 0, 0, None)), (None, None, None, None, 0))
    compiled = jax.jit(every).lower(problems, base, start, keys, values).compile()
    began = time.perf_counter()
    gaps = jax.block_until_ready(compiled(problems, base, start, keys, values))
    return gaps, time.perf_counter() - began


def importance(problem: Transformer, start: Parameters) -> Parameters:
    """The diagonal Fisher information, as `strategies.constraints.fisher` computes it, but of all cells at once: compiled once."""
    p = problem.world.training_safety.p[:, None]
    log_law = normalised(problem.log_policy(start))
    slopes = jax.jacrev(lambda at: normalised(problem.log_policy(at)))(start)
    return jax.tree.map(lambda slope: jnp.tensordot(p * jnp.exp(log_law), slope**2, axes=2), slopes)


def made(
    row: Row, problem: Transformer, base: Parameters, start: Parameters, random: Array, value: Array, settings: Settings
) -> Strategy:
    """A strategy with what it needs, at a value of its knob."""
    others = {"optimiser": optax.adam(settings.rate), "steps": settings.steps, "every": settings.steps}
    strategy = league.given(row, problem, start, random, others, base=named(base))
    if row.name == "ewc":
        strategy = EWC(importance=importance(problem, start))
    if row.name == "t-vaccine":
        strategy = TVaccine(layers=1)  # of the two that there are
    return dataclasses.replace(strategy, **{row.knob: value}) if row.knob else strategy  # pyright: ignore[reportArgumentType]


def gradients_per_step(row: Row) -> float:
    """As in the league; of what perturbs hidden states, on a model that has some."""
    strategy = league.example(row)
    if not strategy.probes:
        return league.gradients_per_step(row)
    small = Transformer(worlds.grammar(key(0), 1, 1), Shape(1, 1, 2))
    if row.name == "t-vaccine":
        row = row._replace(make=lambda _: TVaccine(layers=1))
    return league.gradients_per_step(row, small, small.probed(small.initial(key(0)), strategy.probes), steps=4)


def _distance(problems: Transformer, safety: np.ndarray, capability: np.ndarray) -> np.ndarray:
    """Of the ends of all runs to the exact frontier, which is at zero, so that no gap on the way may be below it."""
    world = jax.tree.map(lambda leaf: leaf[0], problems.world)  # the seeds' laws are one; their prompts differ
    if float(world.overlap) > 0:
        raise RuntimeError("the task shares a prompt with the safety data, so that not all safety could be kept.")
    if min(float(np.nanmin(safety)), float(np.nanmin(capability))) < -ROOT.absolute:
        raise RuntimeError("a run passes below the exact frontier; one of the two is wrong.")
    found, known = np.full(safety.shape[:-1], np.nan), np.isfinite(safety[..., -1])
    ends = np.stack([safety[..., -1][known], capability[..., -1][known]], axis=-1)
    found[known] = np.asarray(frontier.certify(world, ends).distance)
    return found
