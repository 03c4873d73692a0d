"""The state of a fine-tuning run on disk: all that it needs to go on after it was killed, and whose state it is."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from tradeoff.studies import write_atomically

STATE_FILE = "state.safetensors"
FORMAT = "3"
PLAIN_VALUES = (bool, int, float, str, type(None))
HISTORY = ("measured", "gradients", "seconds")


@dataclass(frozen=True, eq=False)
class RunState:
    """Where a run is after so many steps.

    Attributes:
        step: how many steps were done.
        weights: of the training itself, by name, on the CPU.
        moments: of the optimiser, by moment and name.
        strategy: the strategy's state.
        measured: so far, one entry for each measurement: log-policies in a text world, losses on data.
        gradients: how many each step asked for, shape (steps,).
        seconds: how long each step took, shape (steps,).
        exported: the weights that the strategy would use, of a finished run in which they are not those of the training.
    """

    step: int
    weights: Mapping[str, torch.Tensor]
    moments: Mapping[str, torch.Tensor]
    strategy: Any
    measured: np.ndarray
    gradients: np.ndarray
    seconds: np.ndarray
    exported: Mapping[str, torch.Tensor] | None = None


class Store:
    """One run's state in one safetensors file, replaced whole or not at all, and never taken for another run's."""

    def __init__(self, folder: Path, identity: dict[str, str]) -> None:
        self.path = folder / STATE_FILE
        self.identity = identity

    def save(self, state: RunState) -> None:
        """Replace what was saved before."""
        structure, tensors = flattened(state.strategy)
        tensors = {f"strategy/{name}": value for name, value in tensors.items()}
        tensors |= {f"weights/{name}": value for name, value in state.weights.items()} | dict(state.moments)
        tensors |= {f"exported/{name}": value for name, value in (state.exported or {}).items()}
        tensors |= {name: torch.from_numpy(getattr(state, name)) for name in HISTORY}
        # As a tensor, so that the digest covers it.
        tensors["structure"] = torch.frombuffer(bytearray(json.dumps(structure).encode()), dtype=torch.uint8)
        # Tensors of a strategy may share memory with each other, and a file's may not.
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
        metadata = {**self.identity, "step": str(state.step), "sha256": digest(tensors)}

        def write(beside: Path) -> None:
            beside.write_bytes(save(tensors, metadata))

        write_atomically(self.path, write)

    def load(self) -> RunState | None:
        """The saved state, or `None` when nothing was saved yet."""
        for left_behind in self.path.parent.glob(f".{STATE_FILE}.*"):
            left_behind.unlink()  # by a writer that was killed outright
        if not self.path.exists():
            return None
        remedy = f"Delete it to start the run anew: rm '{self.path}'"
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{self.path} is truncated or damaged ({error}). {remedy}") from error
        different = [key for key, value in self.identity.items() if metadata.get(key) != value]
        if different:
            found = "; ".join(f"{key}: saved {metadata.get(key)}, asked for {self.identity[key]}" for key in different)
            raise ValueError(f"{self.path} belongs to another run ({found}). Give another folder, or delete the file.")
        if metadata.get("sha256") != digest(tensors):
            raise ValueError(f"{self.path} was altered: its SHA-256 is not the one that it was saved with. {remedy}")
        structure = json.loads(tensors["structure"].numpy().tobytes())
        return RunState(
            int(metadata["step"]),
            _under("weights/", tensors),
            {name: tensor for name, tensor in tensors.items() if name.startswith("exp_avg")},
            unflattened(structure, _under("strategy/", tensors)),
            *(tensors[name].numpy() for name in HISTORY),
            exported=_under("exported/", tensors) or None,
        )


def moments_of(optimiser: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, Any]:
    """What the optimiser remembers, by moment and name; nothing for plain descent."""
    return {
        f"{moment}/{name}": optimiser.state[p][moment].detach().cpu().clone()
        for name, p in parameters.items()
        for moment in ("exp_avg", "exp_avg_sq")
        if moment in optimiser.state[p]
    }


def restore_moments(
    optimiser: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], saved: RunState
) -> None:
    """Let an optimiser remember what one remembered before."""
    for name, p in parameters.items() if saved.moments else ():
        moments = {m: saved.moments[f"{m}/{name}"].to(p.device).clone() for m in ("exp_avg", "exp_avg_sq")}
        optimiser.state[p] = {"step": torch.tensor(float(saved.step)), **moments}


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of named tensors on the CPU."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(_bytes(tensors[name]))
    return found.hexdigest()


# --- what a strategy remembers, and what it is -------------------------------------------------------------------


def flattened(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A strategy's state as a structure that JSON can say and the tensors that it names.

    Args:
        state: tensors, numbers, strings and `None` in dictionaries, tuples and lists.

    Raises:
        ValueError: when the state holds anything else.

    Example:
        >>> structure, tensors = flattened({"average": {"w": torch.zeros(2)}, "count": 3})
        >>> list(tensors), unflattened(structure, tensors)
        (['average/w'], {'average': {'w': tensor([0., 0.])}, 'count': 3})
    """
    tensors: dict[str, torch.Tensor] = {}

    def visit(value: Any, path: tuple[str, ...]) -> Any:
        if isinstance(value, torch.Tensor):
            name = "/".join(quote(part, safe="") for part in path)
            tensors[name] = value
            return {"tensor": name}
        if isinstance(value, PLAIN_VALUES):
            return {"value": value}
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {"dict": {key: visit(inside, (*path, key)) for key, inside in value.items()}}
        if type(value) in (tuple, list):
            kind = type(value).__name__
            return {kind: [visit(inside, (*path, str(i))) for i, inside in enumerate(value)]}
        where = "/".join(path) or "the whole"
        raise ValueError(
            f"a strategy's state holds a {type(value).__name__} ({where}), which cannot be saved; keep tensors, numbers "
            "and strings in dictionaries with names as keys, tuples and lists, or run without a folder."
        )

    return visit(state, ()), tensors


def unflattened(structure: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The state that `flattened` was given."""
    ((kind, value),) = structure.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "value":
        return value
    if kind == "dict":
        return {key: unflattened(inside, tensors) for key, inside in value.items()}
    parts = [unflattened(inside, tensors) for inside in value]
    return tuple(parts) if kind == "tuple" else parts


def described(setting: Any) -> Any:
    """A strategy and its settings as JSON can say them, arrays by their digests: equal for equal runs.

    Args:
        setting: a strategy, or what is a setting of one.

    Raises:
        ValueError: when a setting cannot be told from another one.

    Example:
        >>> from tradeoff.strategies import EMA
        >>> described(EMA(0.9))
        {'is': 'EMA', 'coefficient': 0.9, 'reading': 'tracked', 'every': 1}
    """
    if isinstance(setting, PLAIN_VALUES):
        return setting
    if isinstance(setting, Mapping):
        return {str(key): described(value) for key, value in setting.items()}
    if isinstance(setting, (tuple, list)):
        return [described(value) for value in setting]
    if dataclasses.is_dataclass(setting) and not isinstance(setting, type):
        fields = {field.name: described(getattr(setting, field.name)) for field in dataclasses.fields(setting)}
        return {"is": type(setting).__name__} | fields
    if isinstance(setting, torch.Tensor) or hasattr(setting, "__array__"):
        array = setting if isinstance(setting, torch.Tensor) else torch.from_numpy(np.array(setting))
        kind = f"{array.dtype} {tuple(array.shape)}".removeprefix("torch.")
        return {"array": kind, "sha256": hashlib.sha256(_bytes(array)).hexdigest()}
    name = f"{getattr(setting, '__module__', '')}:{getattr(setting, '__qualname__', '<')}"
    if "<" not in name:
        return {"is": name}
    raise ValueError(
        f"a strategy has the setting {setting!r}, which has no name to tell this run from another by; give a record "
        "(a dataclass) or a function of a module, or run without a folder."
    )


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _bytes(tensor: torch.Tensor) -> bytes:
    # By way of bytes, for NumPy has no bfloat16.
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
