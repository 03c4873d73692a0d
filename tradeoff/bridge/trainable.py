"""Which weights of a checkpoint are trained: LoRA factors on the linear maps of its upper layers, or those maps in full."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer

from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.objective import first_adapted

Parameters = Mapping[str, torch.nn.Parameter]
"""Live parameters of a model by name."""


@contextmanager
def trainable(checkpoint: Checkpoint, rank: int | None, upper_layers: int | None, seed: int) -> Iterator[Parameters]:
    """Make weights of the checkpoint's model trainable, and leave the model as it was at the end.

    Args:
        checkpoint: the language model.
        rank: of fresh LoRA factors (alpha = rank, no dropout); `None` for the matrices themselves.
        upper_layers: how many layers, counted from the top; `None` for all.
        seed: of the factors' start.

    Yields:
        The trained parameters by name: peft's names for factors, the model's own for matrices.

    Raises:
        ValueError: when there are adapters on the model already, or fewer layers.
    """
    model = checkpoint.model
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            f"{checkpoint.name} has adapters on already; only one set fits. Leave the `with adapted(...)` block first."
        )
    layers = list(model.base_model.layers)[first_adapted(checkpoint, upper_layers) :]
    maps = {id(m) for layer in layers for m in layer.modules() if isinstance(m, torch.nn.Linear)}
    names = [name for name, module in model.named_modules() if id(module) in maps]
    kind = _in_full(checkpoint, names) if rank is None else _factors(checkpoint, names, rank, seed)
    with kind as parameters:
        yield parameters


def layer_names(parameters: Iterable[str]) -> list[str]:
    """The names of the layers that parameters belong to, in the parameters' order.

    Args:
        parameters: their names.

    Example:
        >>> layer_names(["model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"])
        ['model.layers.1']
    """
    found = (re.match(r".*?\blayers\.\d+(?=\.)", name) for name in parameters)
    return list(dict.fromkeys(match.group() for match in found if match))


def assign(parameters: Parameters, values: Mapping[str, torch.Tensor]) -> None:
    """Put values into parameters, in place."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])


@contextmanager
def _factors(checkpoint: Checkpoint, names: list[str], rank: int, seed: int) -> Iterator[Parameters]:
    model, device = checkpoint.model, checkpoint.device
    settings = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=names)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        wrapped = LoraModel(model, settings, "default")
    try:
        wrapped.eval()
        yield {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    finally:
        wrapped.unload()
        model.requires_grad_(False)


@contextmanager
def _in_full(checkpoint: Checkpoint, names: list[str]) -> Iterator[Parameters]:
    held = {f"{name}.weight": checkpoint.model.get_submodule(name).weight for name in names}
    before = {name: p.detach().clone() for name, p in held.items()}
    asked = {name: p.requires_grad for name, p in held.items()}
    try:
        for p in held.values():
            p.requires_grad_(True)
        yield held
    finally:
        assign(held, before)
        for name, p in held.items():
            p.requires_grad_(asked[name])
            p.grad = None
