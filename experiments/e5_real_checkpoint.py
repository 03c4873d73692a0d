"""E5: a real checkpoint meets its exact frontier: SmolLM2, fine-tuned in a text world at several penalties (T7, T8)."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import xarray as xr

import tradeoff as to
from experiments.cells import Cell, run_cells
from experiments.checkpoint_cells import cell, description, path
from experiments.common import penalties
from tradeoff import bridge, loss_constraint


@dataclass(frozen=True)
class Settings:
    """One text world, one checkpoint, several penalties."""

    checkpoint: str = bridge.SMOLLM2
    penalties: tuple[float, ...] = (0.3, 1.0, 3.0)
    safety_prompts: int = 8
    task_prompts: int = 4
    overlap: float = 0.5
    steps: int = 60
    learning_rate: float = 5e-3
    rank: int = 32
    upper_layers: int = 8
    seed: int = 0
    least: float = 1e-3
    greatest: float = 1e3
    count: int = 121


def run(settings: Settings, folder: Path, progress: bool = True) -> xr.Dataset:
    """Fine-tune at every penalty, each a cell of its own in `folder` that resumes, and lay the path over the frontier.

    Raises:
        RuntimeError: when a measured point lies below the frontier or the fundamental limit, where no policy can be.
    """
    return run_cells(sys.modules[__name__], settings, folder, progress)


def cells(settings: Settings) -> tuple[Cell, ...]:
    """A run for each penalty."""
    alike = replace(settings, least=Settings.least, greatest=Settings.greatest, count=Settings.count)
    return tuple(Cell(name(penalty), replace(alike, penalties=(penalty,))) for penalty in settings.penalties)


def name(penalty: float) -> str:
    """The name of the cell of a penalty."""
    return f"penalty-{penalty:g}"


def make(settings: Settings, part: str, folder: Path, progress: bool = True) -> xr.Dataset:
    """The path of the run at the one penalty of the settings."""
    world, checkpoint = text_world(settings), bridge.load(settings.checkpoint)
    made = path(fine_tuned(settings, checkpoint, world, settings.penalties[0], folder, progress), checkpoint)
    contract = dataclasses.asdict(bridge.contract(checkpoint, world))
    return made.assign_attrs(contract=json.dumps(contract, sort_keys=True))


def gather(settings: Settings, parts: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """The paths of all runs, laid over the frontier."""
    world, runs = text_world(settings), list(parts.values())
    lam = np.array(settings.penalties)
    safety = np.stack([each.safety_gap.values for each in runs])
    capability = np.stack([each.capability_gap.values for each in runs])
    front = to.frontier.exact(world, penalties(settings.least, settings.greatest, settings.count))
    certified = to.frontier.certify(world, np.stack([safety, capability], axis=-1))
    limit = capability - np.asarray(certified.above_limit)
    optimum, value = loss_constraint.gaps(world, lam), np.asarray(loss_constraint.value(world, lam))
    surplus = capability + lam[:, None] * safety - value[:, None]
    each, nats = ("penalty", "step"), {"units": "nats"}
    return xr.Dataset(
        {
            "safety_gap": (each, safety, nats),
            "capability_gap": (each, capability, nats),
            "distance": (
                each,
                np.asarray(certified.distance),
                nats | {"long_name": "distance to the exact frontier, along the diagonal"},
            ),
            "surplus": (
                each,
                surplus,
                nats | {"long_name": "G_f + λ G_s - V(λ): above the best that any model can do"},
            ),
            "limit": (each, limit, nats | {"long_name": "T8(c): the least capability gap at this safety gap"}),
            "optimum_safety_gap": ("penalty", np.asarray(optimum.safety), nats),
            "optimum_capability_gap": ("penalty", np.asarray(optimum.capability), nats),
            "value": ("penalty", value, nats),
            "frontier_safety_gap": ("frontier_lam", np.asarray(front.safety_gap), nats),
            "frontier_capability_gap": ("frontier_lam", np.asarray(front.capability_gap), nats),
            "frontier_limit": ("frontier_lam", np.asarray(to.frontier.lower_limit(world, front.safety_gap)), nats),
        },
        coords={"penalty": lam, "step": np.arange(settings.steps + 1), "frontier_lam": np.asarray(front.lam)},
        attrs=description(runs[0])
        | {
            "contract": runs[0].attrs["contract"],
            "prompts": json.dumps(world.contexts),
            "responses": json.dumps(world.responses),
        },
    )


def text_world(settings: Settings) -> to.World:
    """The prompts, the responses and who wants them said."""
    return to.worlds.requests(settings.safety_prompts, settings.task_prompts, overlap=settings.overlap)


def fine_tuned(
    settings: Settings, checkpoint: bridge.Checkpoint, world: to.World, penalty: float, folder: Path, progress: bool
) -> bridge.FineTuned:
    """The run at one penalty, from the cell in `folder` as far as it got."""
    recipe = bridge.Recipe(
        penalty=penalty,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        rank=settings.rank,
        upper_layers=settings.upper_layers,
        seed=settings.seed,
    )
    return bridge.finetune(checkpoint, world, recipe, cell(folder, name(penalty), checkpoint, world, recipe), progress)
