"""E10: no prompt is shared and safety is lost all the same: literal overlap, overlap of meaning, and which foretells what is lost.

A checkpoint is aligned on safety prompts, then fine-tuned plainly on tasks whose prompts share more or fewer words with them,
or are safety prompts in part. Where none is, the exact frontier is at zero (T7): all that is lost is lost through the model.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from scipy.stats import rankdata

from experiments.cells import Cell, run_cells
from experiments.checkpoint_cells import alignment, cell, description, path
from tradeoff import World, bridge, frontier, worlds
from tradeoff.worlds import text
from tradeoff.worlds.grammar import COMPLIANCES, REFUSALS, word_overlap

SHARED = ((), ("wording",), ("action", "object"), ("wording", "action", "object"), ("wording", "category"))
"""The parts that a task's prompts have from safety prompts."""
OVERLAPS = (0.25, 0.5)
"""Literal overlaps, of tasks that share no words otherwise."""
ALIGNED = "e10_overlap_of_meaning/aligned"
LOST = ("after the last step", "at its greatest")
"""Which safety gap of a path is foretold."""
FORETELLERS = ("context_overlap", "word_overlap", "feature_overlap", "conflict", "curvature")


@dataclass(frozen=True)
class Settings:
    """One checkpoint, aligned once, and a run for each task."""

    checkpoint: str = bridge.SMOLLM2
    safety_prompts: int = 6
    task_prompts: int = 6
    align_steps: int = 40
    steps: int = 20
    learning_rate: float = 5e-3
    rank: int = 16
    upper_layers: int = 4
    seed: int = 0


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """The path of plain fine-tuning on each task, and what was known of it beforehand.

    Raises:
        RuntimeError: when a measured point lies below the exact frontier or the fundamental limit.
    """
    return run_cells(sys.modules[__name__], settings, folder, progress)


def cells(settings: Settings) -> tuple[Cell, ...]:
    """The alignment, and a run for each task from there."""
    return Cell("aligned", settings), *(Cell(part(task), settings, (ALIGNED,)) for task in tasks(settings))


def part(task: str) -> str:
    """The name of the cell of a task."""
    return task.replace("%", " percent").replace(" ", "-")


def make(settings: Settings, name: str, folder: Path, progress: bool = True) -> xr.Dataset:
    """The path of the alignment, or of plain fine-tuning on one task and what was known of it beforehand.

    Raises:
        RuntimeError: when a measured point lies below the exact frontier or the fundamental limit.
    """
    made = tasks(settings)
    if name == "aligned":
        base = bridge.load(settings.checkpoint)
        return path(alignment(base, made["no words"], alignment_recipe(settings), folder, progress), base)
    world = {part(task): world for task, world in made.items()}[name]
    start, plain = aligned_checkpoint(settings, folder, progress), recipe(settings)
    foretold = bridge.preflight(start, world, plain, penalties=(1.0,), dimensions=2, progress=progress)
    tuned = bridge.finetune(start, world, plain, cell(folder, name, start, world, plain), progress)
    certified = frontier.certify(world, np.stack([tuned.safety_gap, tuned.capability_gap], axis=-1))
    known = [
        float(world.overlap),
        word_overlap(world),
        foretold.feature_overlap,
        -foretold.conflict,
        foretold.plain.curvature["safety"],
    ]
    return path(tuned, start).assign(
        distance=("step", np.asarray(certified.distance), {"units": "nats"}),
        known=("foreteller", np.array(known)),
        foreteller=list(FORETELLERS),
    )


def gather(settings: Settings, parts: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """The paths of all tasks, and how well what was known beforehand ranks what was lost."""
    names = list(tasks(settings))
    runs = [parts[part(task)] for task in names]
    safety, capability, distance, known = (
        np.stack([each[name].values for each in runs]) for name in ("safety_gap", "capability_gap", "distance", "known")
    )
    nats, each = {"units": "nats"}, ("task", "step")
    return xr.Dataset(
        {
            "safety_gap": (each, safety, nats),
            "capability_gap": (each, capability, nats),
            "distance": (each, distance, nats | {"long_name": "to the exact frontier"}),
            "known": (("task", "foreteller"), known, {"long_name": "before training"}),
            "rank_correlation": (
                ("lost", "foreteller"),
                [[_ranks(column, lost) for column in known.T] for lost in (safety[:, -1], safety.max(axis=1))],
                {"long_name": "Spearman's, over the tasks, with the safety gap", "missing": "all tasks alike"},
            ),
        },
        coords={"task": names, "step": np.arange(settings.steps + 1), "foreteller": list(FORETELLERS), "lost": list(LOST)},
        attrs=description(runs[0]),
    )  # fmt: skip


def tasks(settings: Settings) -> dict[str, World]:
    """A text world for each task, all with the same safety prompts."""
    key, counts = jax.random.key(settings.seed), (settings.safety_prompts, settings.task_prompts)
    made = {" and ".join(shared) or "no words": worlds.grammar(key, *counts, shared=shared) for shared in SHARED}
    safety_prompts = (made["no words"].contexts or ())[: settings.safety_prompts]
    sums = [f"What is {3 * n + 2} plus {5 * n + 4}?" for n in range(settings.task_prompts)]
    made["arithmetic"] = text.answered(
        safety_prompts, sums, REFUSALS + COMPLIANCES, overlap=0.0, conflict=1.0, similarity=1.0
    )
    literal = {f"{rho:.0%} of the prompts": worlds.grammar(key, *counts, shared=(), overlap=rho) for rho in OVERLAPS}
    return made | literal


def recipe(settings: Settings, **changes: object) -> bridge.Recipe:
    """Plain fine-tuning on the task's data, unless told."""
    common = {"rank": settings.rank, "upper_layers": settings.upper_layers, "seed": settings.seed}
    return bridge.Recipe(
        **{"penalty": 0.0, "steps": settings.steps, "learning_rate": settings.learning_rate, **common, **changes}
    )


def alignment_recipe(settings: Settings) -> bridge.Recipe:
    """How the checkpoint is aligned."""
    return recipe(settings, stage="alignment", steps=settings.align_steps)


def aligned_checkpoint(settings: Settings, folder: Path, progress: bool) -> bridge.Checkpoint:
    """The checkpoint aligned on the safety prompts that all tasks have in common."""
    base, world = bridge.load(settings.checkpoint), tasks(settings)["no words"]
    return bridge.merged(base, alignment(base, world, alignment_recipe(settings), folder, progress))


def _ranks(known: np.ndarray, lost: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(known), rankdata(lost))[0, 1]) if np.ptp(known) > 0 else np.nan
