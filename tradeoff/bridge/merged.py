"""A checkpoint that a run has become: its weights with what was trained written into them, as a checkpoint of its own."""

import copy
import dataclasses
import hashlib
import shutil
import tempfile
from pathlib import Path

import torch
from peft.tuners.lora import Linear
from peft.tuners.tuners_utils import BaseTunerLayer

from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.finetuning import adapted
from tradeoff.bridge.recipe import FinishedRun
from tradeoff.bridge.run_state import digest


def merged(checkpoint: Checkpoint, tuned: FinishedRun) -> Checkpoint:
    r"""The checkpoint after a finished run, to start from anew: $W+BA$ for every adapted matrix, or the trained matrices.

    A model that was aligned by one run is then fine-tuned by another. Nothing is shared with the first checkpoint, which is
    left as it was; the new one needs as much memory again.

    Args:
        checkpoint: the checkpoint that the run started from.
        tuned: the run.

    Returns:
        A checkpoint without adapters, whose digest is that of the first one and of what was trained.

    Raises:
        ValueError: when the checkpoint has adapters on already.

    Source: T19 (framework); LoRA.
    """
    own = dataclasses.replace(checkpoint, model=copy.deepcopy(checkpoint.model))
    with adapted(own, tuned) as one, torch.no_grad():
        if tuned.recipe.rank is None:
            changed = {name: one.model.get_parameter(name).clone() for name in tuned.adapter}
        else:
            layers = [(name, m) for name, m in one.model.named_modules() if isinstance(m, Linear)]
            changed = {f"{name}.weight": m.weight + m.get_delta_weight("default") for name, m in layers}
        name = one.name
    with torch.no_grad():
        for each, tensor in changed.items():
            own.model.get_parameter(each).copy_(tensor)
    made_of = f"{checkpoint.digest} {digest(tuned.adapter)}".encode()
    return dataclasses.replace(
        own, name=name, digests={**checkpoint.digests, "merged": hashlib.sha256(made_of).hexdigest()}
    )


def save(checkpoint: Checkpoint, folder: str | Path) -> None:
    """Write a checkpoint to a new folder in the Hugging Face layout, whole or not at all; `load` reads it.

    Args:
        checkpoint: without adapters on.
        folder: must not be there yet.

    Raises:
        ValueError: when it is, or the checkpoint has adapters on.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} is there already; give a new folder.")
    if any(isinstance(module, BaseTunerLayer) for module in checkpoint.model.modules()):
        raise ValueError(f"{checkpoint.name} has adapters on; save `merged(checkpoint, run)` instead.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        checkpoint.model.save_pretrained(beside, safe_serialization=True)
        checkpoint.tokenizer.save_pretrained(beside)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside)
        raise
