"""E8 on a checkpoint: who keeps safety when no prompt is shared, so that the exact frontier costs nothing.

The task of E10 whose prompts share the most words with the safety prompts. The matrices of the upper layers are trained
themselves, so that averages and merges are those of the model's weights.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from experiments import e10_overlap_of_meaning as e10
from experiments.cells import Cell, run_cells
from experiments.checkpoint_cells import cell, description, path
from tradeoff import bridge, frontier, studies
from tradeoff.strategies import Strategy, registry

TASK = "wording and action and object"
LABELS = {
    "plain": "plain",
    "gentle": "plain, gentler",
    "case-i": "penalty (Case I)",
    "case-ii": "ball (Case II)",
}
"""What is shown for the cells that are no rows of the registry."""


@dataclass(frozen=True)
class Settings:
    """E10's world and alignment, and the strategies that are compared.

    Attributes:
        world: as in E10.
        names: of the registry's rows, with its settings.
        steps: of fine-tuning.
        learning_rate: of AdamW, on the matrices themselves.
        gentle: a second learning rate, of plain fine-tuning only.
        penalty: λ of Case I.
        radius: ε of Case II, as a part of how far plain fine-tuning goes.
    """

    world: e10.Settings = field(default_factory=e10.Settings)
    names: tuple[str, ...] = ("ema", "merge-linear", "l2-sp", "mixing", "safegrad", "spag", "booster", "vaccine")
    steps: int = 20
    learning_rate: float = 1e-4
    gentle: float = 2e-5
    penalty: float = 1.0
    radius: float = 0.3


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """The path of each strategy through the plane of the gaps, and what it cost.

    Raises:
        RuntimeError: when a measured point lies below the exact frontier or the fundamental limit.
    """
    return run_cells(sys.modules[__name__], settings, folder, progress)


def cells(settings: Settings) -> tuple[Cell, ...]:
    """A run for each strategy; those that align the checkpoint themselves start from the one that was not."""
    alike = replace(settings, names=(), gentle=Settings.gentle, penalty=Settings.penalty, radius=Settings.radius)
    return (
        Cell("plain", alike, (e10.ALIGNED,)),
        Cell("gentle", replace(alike, gentle=settings.gentle), (e10.ALIGNED,)),
        Cell("case-i", replace(alike, penalty=settings.penalty), (e10.ALIGNED,)),
        Cell("case-ii", replace(alike, radius=settings.radius), ("e8_checkpoint/plain",)),
        *(
            Cell(name, replace(alike, names=(name,)), () if registry.get(name).aligns else (e10.ALIGNED,))
            for name in settings.names
        ),
    )


def make(settings: Settings, name: str, folder: Path, progress: bool = True) -> xr.Dataset:
    """The path of one strategy through the plane of the gaps. What it took in seconds is kept beside it, in `seconds/`."""
    world = e10.tasks(settings.world)[TASK]
    strategy = None if name in LABELS else registry.get(name).make({})
    if strategy is not None and registry.get(name).aligns:
        start, strategy = _immune(settings, name, strategy, folder, progress), None
    else:
        start = e10.aligned_checkpoint(settings.world, folder.with_name("e10_overlap_of_meaning"), progress)

    def train(called: str, **changes: object) -> bridge.FineTuned:
        recipe = tuning(settings, **changes)
        place = cell(folder, called, start, world, recipe, strategy)
        return bridge.finetune(start, world, recipe, place, progress, strategy)

    changes: dict[str, object] = {}
    if name == "gentle":
        changes = {"learning_rate": settings.gentle}
    elif name == "case-i":
        changes = {"penalty": settings.penalty}
    elif name == "case-ii":
        changes = {"radius": settings.radius * travelled(start, train("plain"))}
    tuned = train(name, **changes)
    spent = json.dumps({"median seconds per step": float(np.median(tuned.seconds))})
    studies.write_atomically(folder / "seconds" / f"{name}.json", lambda beside: beside.write_text(spent))
    return path(tuned, start).assign(gradients=((), float(tuned.gradients.mean()), {"long_name": "per step"}))


def tuning(settings: Settings, **changes: object) -> bridge.Recipe:
    """How all of them fine-tune."""
    given = {"rank": None, "steps": settings.steps, "learning_rate": settings.learning_rate, **changes}
    return e10.recipe(settings.world, **given)


def travelled(start: bridge.Checkpoint, tuned: bridge.FineTuned) -> float:
    """How far the trained matrices went, Frobenius norm over all of them."""
    squares = [
        torch.sum((tensor - start.model.get_parameter(name).detach().cpu()).double() ** 2)
        for name, tensor in tuned.adapter.items()
    ]
    return float(torch.stack(squares).sum().sqrt())


def gather(settings: Settings, parts: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Paths, distances and costs of all strategies, labelled.

    Raises:
        RuntimeError: when a measured point lies below the exact frontier or the fundamental limit.
    """
    runs = {LABELS.get(name, name): run for name, run in parts.items()}
    safety, capability = (np.stack([run[name] for run in runs.values()]) for name in ("safety_gap", "capability_gap"))
    world = e10.tasks(settings.world)[TASK]
    certified = frontier.certify(world, np.stack([safety, capability], axis=-1))
    nats, each = {"units": "nats"}, ("strategy", "step")
    return xr.Dataset(
        {
            "safety_gap": (each, safety, nats),
            "capability_gap": (each, capability, nats),
            "distance": (each, np.asarray(certified.distance), nats | {"long_name": "to the exact frontier, at zero here"}),
            "gradients": ("strategy", [float(run.gradients) for run in runs.values()], {"long_name": "per step"}),
        },
        coords={"strategy": list(runs), "step": np.arange(safety.shape[1])},
        attrs=description(parts["plain"]),
    )  # fmt: skip


def _immune(settings: Settings, name: str, strategy: Strategy, folder: Path, progress: bool) -> bridge.Checkpoint:
    """The checkpoint as a strategy of the stage of alignment leaves it."""
    base, world = bridge.load(settings.world.checkpoint), e10.tasks(settings.world)[TASK]
    recipe = e10.alignment_recipe(settings.world)
    place = cell(folder, f"aligned-{name}", base, world, recipe, strategy)
    return bridge.merged(base, bridge.finetune(base, world, recipe, place, progress, strategy))
