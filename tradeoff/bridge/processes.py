"""Several processes that train one model, each on its share of a step's rows: `accelerate launch -m tradeoff lm finetune ...`."""

from collections.abc import Sequence

import torch
from accelerate import PartialState
from accelerate.utils import reduce

from tradeoff.bridge.training import Tensors


def _state() -> PartialState:
    """The processes that there are; without a GPU accelerate finds them only where it is told so."""
    return PartialState(cpu=not torch.cuda.is_available())


def share(places: Sequence[int]) -> Sequence[int]:
    """This process's part of some rows; all of them where there is one process."""
    state = _state()
    return places[state.process_index :: state.num_processes]


def summed(gradient: Tensors) -> Tensors:
    """The sum of all processes' gradients, by name."""
    if count() == 1:
        return gradient
    total = reduce({name: tensor.contiguous() for name, tensor in gradient.items()}, reduction="sum")
    assert isinstance(total, dict)
    return total


def count() -> int:
    """How many processes there are."""
    return _state().num_processes


def is_first() -> bool:
    """Whether this process is the one that prints and saves."""
    return _state().is_main_process


def together() -> None:
    """Wait until every process is here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        _state().wait_for_everyone()
