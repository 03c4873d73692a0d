"""Runs on a checkpoint, each a cell of its own: what is finished is kept, what was interrupted goes on."""

import hashlib
import importlib.metadata
import json
from pathlib import Path

from tradeoff import World, bridge, studies
from tradeoff.strategies import Strategy


def cell(
    folder: Path,
    name: str,
    checkpoint: bridge.Checkpoint,
    world: World,
    recipe: bridge.Recipe,
    strategy: Strategy | None = None,
) -> Path:
    """A folder for one run as made here: other settings, sources, libraries or devices start a run of their own."""
    sources = studies.digest(*sorted(Path(bridge.__file__).parent.glob("*.py")))
    libraries = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft")]
    identity = bridge.identity(checkpoint, world, recipe, strategy)
    made_by = json.dumps([identity, sources, libraries, checkpoint.device.type], sort_keys=True)
    return folder / f"{name}-{hashlib.sha256(made_by.encode()).hexdigest()[:12]}"


def aligned(
    checkpoint: bridge.Checkpoint, world: World, recipe: bridge.Recipe, folder: Path, progress: bool
) -> bridge.Checkpoint:
    """The checkpoint after training on the safety data of a world, to be fine-tuned from there."""
    place = cell(folder, "aligned", checkpoint, world, recipe)
    return bridge.merged(checkpoint, bridge.finetune(checkpoint, world, recipe, place, progress))
