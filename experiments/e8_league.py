"""E8: every strategy on worlds whose frontier is exact: what it learns, what it costs in safety, how far it ends above the best.

Four worlds in two batches. Pairs of quadratics: an *isotropic* one, where every rule that sees no safety data walks the same
line, which is the frontier; and one with *conflicting* curvatures. Tables of logits: one whose task shares nine tenths of its
prompts with the safety data; and one whose task shares none, in which nothing can be lost and so nothing be preserved.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array
from tqdm import tqdm

from experiments.common import key
from tradeoff import Gaps, dynamics, frontier, parameter_constraint, worlds
from tradeoff.dynamics.engine import JaxEngine, named
from tradeoff.problems import Problem, Quadratic, Tabular
from tradeoff.strategies import (
    HARMFUL,
    SAFETY,
    STARDSS,
    TASK,
    Loss,
    ModelStock,
    Plain,
    SafeLoRA,
    SmallBatch,
    Strategy,
    TaskArithmetic,
    registry,
)
from tradeoff.strategies.registry import Row
from tradeoff.strategies.strategy import Weights
from tradeoff.tolerances import ROOT

QUADRATICS, TABLES = ("isotropic", "conflicting"), ("shared prompts", "no prompt shared")
WORLDS = QUADRATICS + TABLES
SETTINGS = 4
"""Values of a strategy's knob that are tried, at most."""
NO_POLICY = ("give a problem with a policy", "has no matrix")
"""What strategies say that a pair of quadratics gives too little: it has no answers, and its weights are one vector."""
OVER_ALL = ("merge-slerp",)
"""What sees no safety data and moves the answers to safety prompts all the same, by an angle between all the weights."""
GIVEN = ("star-dss", "star-dss-full", "rejection-sampling", "model-stock", "resta", "resta-dare", "safe-lora")
"""What needs more than data; see `given`."""
SEE_NO_TASK = ("raft", "dpo")
"""What aligns and never sees the task's data: not a way to fine-tune."""
DIMS = ("strategy", "setting", "world", "seed", "record")


@dataclass(frozen=True)
class Settings:
    """Worlds drawn anew for every seed, and one budget of steps for all strategies.

    Attributes:
        names: of strategies; all of them unless told.
        rate_quadratic: learning rate, over the largest curvature of the task.
        rate_table: learning rate on the logits.
    """

    names: tuple[str, ...] = ()
    seed: int = 0
    seeds: int = 16
    steps: int = 240
    records: int = 4
    parameters: int = 6
    decades: float = 2.0
    prompts: int = 12
    answers: int = 4
    overlap: float = 0.9
    rate_quadratic: float = 0.05
    rate_table: float = 1.0


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Each strategy's path through the plane of the gaps in every world and for every seed.

    Raises:
        RuntimeError: when a point lies below the exact frontier, or one is safer or less safe than its start where no prompt
            is shared and no safety data are used.
    """
    trained = [
        row for row in registry.all() if row.stage in ("fine-tuning", "alignment") and row.name not in SEE_NO_TASK
    ]
    rows = [row for row in trained if row.name in (settings.names or (row.name,))]
    batches = {QUADRATICS: quadratics(settings), TABLES: tables(settings)}
    shape = (len(rows), SETTINGS, len(WORLDS), settings.seeds, settings.steps + 1)
    safety, capability = np.full(shape, np.nan), np.full(shape, np.nan)
    for number, row in enumerate(tqdm(rows, desc="E8", unit="strategy", disable=not progress)):
        for names, problems in batches.items():
            found = paths(row, problems, settings)
            if found is None:
                continue
            here = [WORLDS.index(name) for name in names]
            for value, into in ((found.safety, safety), (found.capability, capability)):
                path = np.asarray(value).reshape(len(value), len(names), settings.seeds, -1)
                into[number, : len(path), here] = np.moveaxis(path, 1, 0)
    half, least = _at_half(batches, settings, safety, capability)
    kept = slice(None, None, settings.steps // settings.records)
    safety, capability = safety[..., kept], capability[..., kept]
    distance = np.stack(
        [_distance(name, batches, settings, safety[:, :, w], capability[:, :, w]) for w, name in enumerate(WORLDS)],
        axis=2,
    )
    _check(rows, distance, safety)
    nats = {"units": "nats (tables), unit of the losses (quadratics)"}
    some = nats | {"missing": "the strategy has no such setting, or needs a policy and a pair of quadratics has none"}
    return xr.Dataset(
        {
            "safety_gap": (DIMS, safety, some),
            "capability_gap": (DIMS, capability, some),
            "distance": (DIMS, distance, some | {"long_name": "to the exact frontier"}),
            "at_half": (DIMS[:-1], half, some | {"long_name": "safety gap at half the capability gap; missing if never there"}),
            "least_at_half": (DIMS[2:-1], least, nats | {"long_name": "that of the frontier"}),
            "gradients": ("strategy", [gradients_per_step(row) for row in rows], {"long_name": "gradients asked for in a step"}),
        },
        coords={
            "strategy": [row.name for row in rows],
            "kind": ("strategy", [example(row).kind for row in rows]),
            "needs": ("strategy", ["; ".join(example(row).needs) or "nothing" for row in rows]),
            "world": list(WORLDS),
            "seed": np.arange(settings.seeds),
            "setting": np.arange(SETTINGS),
            "knob": ("strategy", [row.knob for row in rows]),
            "value": (("strategy", "setting"), [[*row.values, *[np.nan] * (SETTINGS - len(row.values))] for row in rows], some),
            "record": np.arange(settings.records + 1) * (settings.steps // settings.records),
        },
    )  # fmt: skip


def quadratics(settings: Settings) -> Quadratic:
    """Both kinds of pairs, all seeds, in one batch: isotropic ones first."""

    def one(seed: Array, decades: Array) -> Quadratic:
        axes_f, axes_s, way, scale = jax.random.split(jax.random.fold_in(key(settings.seed), seed), 4)
        spread = 10 ** (decades * jnp.linspace(-0.5, 0.5, settings.parameters))
        turn = [jnp.linalg.qr(jax.random.normal(k, (settings.parameters,) * 2))[0] for k in (axes_f, axes_s)]
        H_f, H_s = ((Q * spread[None, :]) @ Q.T for Q in turn)
        d = jax.random.normal(way, (settings.parameters,))
        unit = jnp.exp(0.3 * jax.random.normal(scale))
        return Quadratic(
            (H_f + H_f.T) / 2, d / jnp.linalg.norm(d), unit * (H_s + H_s.T) / 2, jnp.zeros(settings.parameters)
        )

    seeds = jnp.tile(jnp.arange(settings.seeds), 2)
    return jax.jit(jax.vmap(one))(seeds, jnp.repeat(jnp.array([0.0, settings.decades]), settings.seeds))


def tables(settings: Settings) -> Tabular:
    """Both kinds of worlds, all seeds, in one batch: those with shared prompts first."""

    def one(seed: Array, overlap: Array) -> Tabular:
        drawn = jax.random.fold_in(key(settings.seed), 1_000 + seed)
        world = worlds.random(drawn, settings.prompts, settings.answers, overlap=overlap)
        return Tabular(world.with_exact_proxy())

    seeds = jnp.tile(jnp.arange(settings.seeds), 2)
    return jax.jit(jax.vmap(one))(seeds, jnp.repeat(jnp.array([settings.overlap, 0.0]), settings.seeds))


def paths(row: Row, problems: Problem, settings: Settings) -> Gaps | None:
    """The gaps along a strategy's runs, shape (settings, problems, records); `None` where it needs a policy and there is none."""
    rate = settings.rate_quadratic if isinstance(problems, Quadratic) else settings.rate_table

    def one(problem: Problem, seed: Array, value: Array) -> Gaps:
        start = problem.aligned()  # pyright: ignore[reportAttributeAccessIssue]
        random = jax.random.fold_in(key(settings.seed), seed)
        others = {"learning_rate": settings.rate_table, "steps": settings.steps, "every": settings.steps}
        strategy = given(row, problem, start, random, others)
        if row.knob:
            strategy = dataclasses.replace(strategy, **{row.knob: value})  # pyright: ignore[reportArgumentType]
        stiff = jnp.linalg.norm(problem.H_f, ord=2) if isinstance(problem, Quadratic) else 1.0
        options = {"steps": settings.steps, "key": random}
        if strategy.owns != "step":
            options["learning_rate"] = rate / stiff
        if row.stage == "alignment":
            start = dynamics.descend(
                problem, strategy, loss=SAFETY, start=_unaligned(start, random), **options
            ).exported
            strategy = Plain()
        return dynamics.descend(problem, strategy, start=start, **options).gaps

    count = jax.tree.leaves(problems)[0].shape[0]
    every = jax.vmap(jax.vmap(one, (0, 0, None)), (None, None, 0))
    try:
        return jax.jit(every)(problems, jnp.arange(count) % settings.seeds, jnp.array(row.values or (0.0,)))
    except ValueError as error:
        if isinstance(problems, Quadratic) and any(words in str(error) for words in NO_POLICY):
            return None
        raise


def given(
    row: Row, problem: Problem, start: Any, random: Array, options: dict[str, Any], base: Weights | None = None
) -> Strategy:
    """A strategy with what it needs, where that is more than data: a guard, an unaligned model, models of other seeds.

    Args:
        row: of the registry.
        problem: with a policy, if the strategy needs one of these.
        start: the aligned parameters.
        random: key of other seeds.
        options: of the runs that make other models.
        base: weights before alignment, where there are such; elsewhere the start is trained on harmful answers.
    """
    if row.name not in GIVEN:
        return row.make(named(start))
    if not hasattr(problem, "log_policy"):
        raise ValueError(f"{row.name} needs answers; {NO_POLICY[0]}.")
    law = problem.world.safety  # pyright: ignore[reportAttributeAccessIssue]
    if row.name in ("star-dss", "star-dss-full", "rejection-sampling"):
        # The guard finds an answer to a safety prompt as safe as it is usual there, next to the most usual one.
        safe = jnp.where(law.p[:, None] > 0, law.P / jnp.max(law.P, axis=-1, keepdims=True), 1.0)
        if row.name == "rejection-sampling":
            return STARDSS(jnp.where(safe > 1 / 2, 1.0, 0.0), lam_KL=0.0)
        return STARDSS(safe, kl="full" if row.name == "star-dss-full" else "k2")

    def trained(strategy: Strategy, **more: Any) -> Weights:
        return named(dynamics.descend(problem, strategy, start=start, **options, **more).parameters)

    if row.name == "model-stock":
        return ModelStock(tuple(trained(SmallBatch(), key=jax.random.fold_in(random, 1 + n)) for n in range(2)))
    unaligned = trained(Plain(), loss=HARMFUL) if base is None else base
    if row.name == "safe-lora":
        return SafeLoRA(unaligned, outputs=1)
    return TaskArithmetic(unaligned, drop=0.5 if row.name == "resta-dare" else 0.0)


def gradients_per_step(row: Row, problem: Problem | None = None, start: Any = None, steps: int = 20) -> float:
    """How many gradients of a loss a step asks for, on average over the first steps; a refreshed reference counts when due.

    Args:
        row: of the registry.
        problem: a small table unless given.
        start: its parameters, the aligned ones unless given.
        steps: how many.
    """
    if problem is None:
        problem = Tabular(worlds.golden())
        start = problem.aligned()
    counted: list[str] = []
    compiled = eqx.filter_jit(JaxEngine.gradient)

    class Counting(JaxEngine):
        def gradient(self, loss: Loss, weights: Weights) -> Weights:
            counted.append(type(loss).__name__)
            with jax.disable_jit(False):  # one program, where the strategy around it is run line by line
                return compiled(self, loss, weights)

    engine = Counting(problem, start, key(0), steps, 0.1).prepared()
    with jax.disable_jit():
        strategy, weights = row.make(engine.start), engine.start
        state = strategy.init(weights, engine)
        counted.clear()
        for step in range(steps):
            state = strategy.refresh(state, weights, step, engine)
            gradient = strategy.gradient(lambda at: engine.gradient(TASK, at), state, weights, step, engine)
            moved = {name: weights[name] - 0.1 * gradient[name] for name in weights}
            weights, state = strategy.land(state, weights, moved, step, engine)
    return len(counted) / steps


def distance(problem: Quadratic, points: Gaps) -> Array:
    r"""How far points lie above the frontier of a pair: $\inf_\lambda[G_f+\lambda G_s-V(\lambda)]/(1+\lambda)$, as of a world."""
    lam = jnp.concatenate([jnp.zeros(1), jnp.logspace(-8, 8, 4001)])
    best = parameter_constraint.penalised_gaps(problem, lam)
    value = best.capability + lam * best.safety
    paid = points.capability[:, None] + lam[None, :] * points.safety[:, None] - value[None, :]
    return jnp.minimum(jnp.min(paid / (1 + lam)[None, :], axis=-1), points.safety)


def _distance(name: str, batches: dict, settings: Settings, safety: np.ndarray, capability: np.ndarray) -> np.ndarray:
    """Of every point of a world's column, shape (strategy, setting, seed, record)."""
    found = np.full(safety.shape, np.nan)
    (names, problems) = next((n, p) for n, p in batches.items() if name in n)
    for seed in range(settings.seeds):
        one = jax.tree.map(lambda leaf, s=seed: leaf[names.index(name) * settings.seeds + s], problems)
        known = np.isfinite(safety[:, :, seed])
        points = Gaps(jnp.asarray(safety[:, :, seed][known]), jnp.asarray(capability[:, :, seed][known]))
        measure = (
            distance(one, points) if isinstance(one, Quadratic) else frontier.exact(one.world, [1.0]).distance(points)
        )
        found[:, :, seed][known] = np.asarray(measure)
    return found


def _at_half(
    batches: dict, settings: Settings, safety: np.ndarray, capability: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The safety gap where a path first has half of the start's capability gap (NaN if never), and that of the frontier."""
    lam = np.concatenate([[0.0], np.logspace(-8, 8, 2001), [np.inf]])
    half, least = np.full(safety.shape[:-1], np.nan), np.full((len(WORLDS), settings.seeds), np.nan)
    for names, problems in batches.items():
        for w, name in enumerate(names):
            for seed in range(settings.seeds):
                one = jax.tree.map(lambda leaf, at=w * settings.seeds + seed: leaf[at], problems)
                front = (
                    parameter_constraint.penalised_gaps(one, lam)
                    if isinstance(one, Quadratic)
                    else frontier.exact(one.world, lam)
                )
                safe, capable = (
                    (front.safety, front.capability)
                    if isinstance(front, Gaps)
                    else (front.safety_gap, front.capability_gap)
                )
                target = float(one.gaps(one.aligned()).capability) / 2
                world = WORLDS.index(name)
                least[world, seed] = np.interp(target, capable, safe)
                paths = safety[:, :, world, seed], capability[:, :, world, seed]
                half[:, :, world, seed] = [
                    [first_at(*path, target) for path in zip(*of_row, strict=True)]
                    for of_row in zip(*paths, strict=True)
                ]
    return half, least


def first_at(safety: np.ndarray, capability: np.ndarray, target: float) -> float:
    """The safety gap where a path first has a capability gap, between its points; NaN if never."""
    below = np.flatnonzero(capability <= target)
    if not below.size:
        return np.nan
    at = slice(max(int(below[0]) - 1, 0), int(below[0]) + 1)
    return float(np.interp(-target, -capability[at], safety[at]))


def _check(rows: list[Row], distance: np.ndarray, safety: np.ndarray) -> None:
    least = float(np.nanmin(distance))
    if least < -ROOT.absolute:
        name = rows[int(np.unravel_index(np.nanargmin(distance), distance.shape)[0])].name
        raise RuntimeError(f"{name} comes {-least:.2e} below the exact frontier; one of the two is wrong.")
    table = WORLDS.index("no prompt shared")
    for number, row in enumerate(rows):
        blind = not example(row).needs and row.stage == "fine-tuning" and row.name not in OVER_ALL
        moved = float(np.nanmax(np.abs(safety[number, :, table] - safety[number, :, table, :, :1])))
        if blind and moved > ROOT.absolute:
            raise RuntimeError(
                f"{row.name} moves the safety gap by {moved:.2e} in a table whose task shares no prompt with the safety data; "
                "without features in common nothing can."
            )


def example(row: Row) -> Strategy:
    """The strategy of a row, to ask it what it needs."""
    problem = Tabular(worlds.golden())
    return row.make(named(problem.aligned()))


def _unaligned(aligned: Array, random: Array) -> Array:
    """Where a model is before its alignment: some way off for a quadratic, uniform answers in a table."""
    if aligned.ndim > 1:
        return jnp.zeros_like(aligned)
    way = jax.random.normal(random, aligned.shape)
    return aligned + way / jnp.linalg.norm(way)
