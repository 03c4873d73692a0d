"""E10: no prompt is shared and safety is lost all the same: literal overlap, overlap of meaning, and which foretells what is lost.

A checkpoint is aligned on safety prompts, then fine-tuned plainly on tasks whose prompts share more or fewer words with them,
or are safety prompts in part. Where none is, the exact frontier is at zero (T7): all that is lost is lost through the model.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import xarray as xr
from scipy.stats import rankdata

from experiments.checkpoint_cells import aligned, cell
from tradeoff import World, bridge, frontier, worlds
from tradeoff.worlds import text
from tradeoff.worlds.grammar import COMPLIANCES, REFUSALS, word_overlap

SHARED = ((), ("wording",), ("action", "object"), ("wording", "action", "object"), ("wording", "category"))
"""The parts that a task's prompts have from safety prompts."""
OVERLAPS = (0.25, 0.5)
"""Literal overlaps, of tasks that share no words otherwise."""
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
    made = tasks(settings)
    start = aligned_checkpoint(settings, made, folder, progress)
    plain = recipe(settings)
    safety, capability, distance, known = [], [], [], []
    for name, world in made.items():
        foretold = bridge.preflight(start, world, plain, penalties=(1.0,), dimensions=2, progress=progress)
        tuned = bridge.finetune(start, world, plain, cell(folder, name, start, world, plain), progress)
        certified = frontier.certify(world, np.stack([tuned.safety_gap, tuned.capability_gap], axis=-1))
        safety.append(tuned.safety_gap)
        capability.append(tuned.capability_gap)
        distance.append(certified.distance)
        known.append(
            [
                float(world.overlap),
                word_overlap(world),
                foretold.feature_overlap,
                -foretold.conflict,
                foretold.plain.curvature["safety"],
            ]
        )
    lost = np.array(distance)[:, -1]
    nats, path = {"units": "nats"}, ("task", "step")
    return xr.Dataset(
        {
            "safety_gap": (path, np.array(safety), nats),
            "capability_gap": (path, np.array(capability), nats),
            "distance": (path, np.array(distance), nats | {"long_name": "to the exact frontier"}),
            "known": (("task", "foreteller"), np.array(known), {"long_name": "before training"}),
            "rank_correlation": (
                "foreteller",
                [_ranks(column, lost) for column in np.array(known).T],
                {"long_name": "Spearman, with the distance to the frontier after the last step", "missing": "all tasks alike"},
            ),
        },
        coords={"task": list(made), "step": np.arange(settings.steps + 1), "foreteller": list(FORETELLERS)},
        attrs={"checkpoint": start.name, "checkpoint_sha256": start.digest},
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


def aligned_checkpoint(settings: Settings, made: dict[str, World], folder: Path, progress: bool) -> bridge.Checkpoint:
    """The checkpoint aligned on the safety prompts that all tasks have in common."""
    alignment = recipe(settings, stage="alignment", steps=settings.align_steps)
    return aligned(bridge.load(settings.checkpoint), made["no words"], alignment, folder, progress)


def _ranks(known: np.ndarray, lost: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(known), rankdata(lost))[0, 1]) if np.ptp(known) > 0 else np.nan
