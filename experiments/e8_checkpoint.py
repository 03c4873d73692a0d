"""E8 on a checkpoint: who keeps safety when no prompt is shared, so that the exact frontier costs nothing.

The task of E10 whose prompts share the most words with the safety prompts. The matrices of the upper layers are trained
themselves, so that averages and merges are those of the model's weights.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from experiments import e10_overlap_of_meaning as e10
from experiments.checkpoint_cells import cell
from tradeoff import World, bridge, frontier
from tradeoff.strategies import Strategy, registry

TASK = "wording and action and object"


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
    made = e10.tasks(settings.world)
    world, base = made[TASK], bridge.load(settings.world.checkpoint)
    start = e10.aligned_checkpoint(settings.world, made, folder, progress)
    runs: dict[str, bridge.FineTuned] = {}

    def train(
        name: str, begun: bridge.Checkpoint, strategy: Strategy | None = None, **changes: object
    ) -> bridge.FineTuned:
        recipe = tuning(settings, **changes)
        return bridge.finetune(
            begun, world, recipe, cell(folder, name, begun, world, recipe, strategy), progress, strategy
        )

    runs["plain"] = train("plain", start)
    runs["plain, gentler"] = train("gentle", start, learning_rate=settings.gentle)
    runs["penalty (Case I)"] = train("penalty", start, penalty=settings.penalty)
    radius = settings.radius * travelled(start, runs["plain"])
    runs["ball (Case II)"] = train("ball", start, radius=radius)
    for name in settings.names:
        row = registry.get(name)
        strategy = row.make({})
        if not row.aligns:
            runs[name] = train(name, start, strategy)
            continue
        alignment = e10.recipe(settings.world, stage="alignment", steps=settings.world.align_steps)
        place = cell(folder, f"aligned-{name}", base, world, alignment, strategy)
        immune = bridge.merged(base, bridge.finetune(base, world, alignment, place, progress, strategy))
        runs[name] = train(name, immune)
    return dataset(world, runs, start)


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


def dataset(world: World, runs: dict[str, bridge.FineTuned], start: bridge.Checkpoint) -> xr.Dataset:
    """Paths, distances and costs, labelled."""
    safety, capability = (
        np.stack([getattr(each, name) for each in runs.values()]) for name in ("safety_gap", "capability_gap")
    )
    certified = frontier.certify(world, np.stack([safety, capability], axis=-1))
    nats, path = {"units": "nats"}, ("strategy", "step")
    return xr.Dataset(
        {
            "safety_gap": (path, safety, nats),
            "capability_gap": (path, capability, nats),
            "distance": (path, np.asarray(certified.distance), nats | {"long_name": "to the exact frontier, at zero here"}),
            "gradients": ("strategy", [float(each.gradients.mean()) for each in runs.values()], {"long_name": "per step"}),
            "seconds": ("strategy", [float(np.median(each.seconds)) for each in runs.values()], {"units": "s per step"}),
        },
        coords={"strategy": list(runs), "step": np.arange(safety.shape[1])},
        attrs={"checkpoint": start.name, "checkpoint_sha256": start.digest},
    )  # fmt: skip
