"""Runs on a checkpoint, each in a folder of its own: what is finished is kept, what was interrupted goes on."""

import hashlib
import importlib.metadata
import json
from pathlib import Path

import xarray as xr

from tradeoff import World, bridge, studies
from tradeoff.bridge import finetuning
from tradeoff.strategies import Strategy, registry


def cell(
    folder: Path,
    name: str,
    checkpoint: bridge.Checkpoint,
    world: World,
    recipe: bridge.Recipe,
    strategy: Strategy | None = None,
) -> Path:
    """A folder for one run as made here: other settings, sources, libraries or devices start a run of their own."""
    code = [Path(finetuning.__file__)] if strategy is None else [Path(finetuning.__file__), Path(registry.__file__)]
    sources = studies.digest(*studies.sources(*code))
    libraries = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft")]
    identity = bridge.identity(checkpoint, world, recipe, strategy)
    made_by = json.dumps([identity, sources, libraries, checkpoint.device.type], sort_keys=True)
    return folder / f"{name}-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}"


def alignment(
    checkpoint: bridge.Checkpoint, world: World, recipe: bridge.Recipe, folder: Path, progress: bool
) -> bridge.FineTuned:
    """The training of a checkpoint on the safety data of a world."""
    return bridge.finetune(checkpoint, world, recipe, cell(folder, "aligned", checkpoint, world, recipe), progress)


def path(tuned: bridge.FineTuned, checkpoint: bridge.Checkpoint) -> xr.Dataset:
    """Both gaps at every step of a run, labelled, with what its checkpoint is."""
    nats = {"units": "nats"}
    return xr.Dataset(
        {"safety_gap": ("step", tuned.safety_gap, nats), "capability_gap": ("step", tuned.capability_gap, nats)},
        coords={"step": range(len(tuned.safety_gap))},
        attrs=described(checkpoint),
    )


def described(checkpoint: bridge.Checkpoint) -> dict[str, str]:
    """What a checkpoint is, as attributes of a result."""
    return {
        "checkpoint": checkpoint.name,
        "checkpoint_sha256": checkpoint.digest,
        "checkpoint_files": json.dumps(dict(checkpoint.digests), sort_keys=True),
        "model_device": checkpoint.device.type,
        "model_dtype": str(checkpoint.dtype).removeprefix("torch."),
    }


def description(data: xr.Dataset) -> dict[str, str]:
    """What `described` said in the result of a cell."""
    names = ("checkpoint", "checkpoint_sha256", "checkpoint_files", "model_device", "model_dtype")
    return {name: data.attrs[name] for name in names}
