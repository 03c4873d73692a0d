"""Probes on a checkpoint's hidden states: terms, 0 unless a strategy moves them, added to what blocks of layers put out."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch

from tradeoff.bridge.policy import Batch
from tradeoff.strategies._probes import ATTENTION, MLP, PROBE

BLOCKS = {ATTENTION: "self_attn", MLP: "mlp"}
"""The part of a layer whose output is probed."""


class Probing(NamedTuple):
    """What is probed.

    Args:
        kind: "attention", a term for each hidden state behind the attention blocks, or "mlp", one bias behind each MLP.
        layers: the names of the trained layers from the lowest: the probe of layer h is named `probe/h`.
    """

    kind: str
    layers: Sequence[str]


class Probes:
    """The probes of a text world's packed rows, as parameters that are 0.

    Args:
        probing: what is probed.
        layers: the trained layers, from the lowest.
        batches: the packed rows.
        like: a tensor of hidden states, whose width, type and device they have.
    """

    def __init__(
        self, probing: Probing, layers: Iterable[torch.nn.Module], batches: Sequence[Batch], like: torch.Tensor
    ) -> None:
        self.kind = probing.kind
        self.blocks = [layer.get_submodule(BLOCKS[self.kind]) for layer in layers]
        states = (sum(len(batch.tokens) for batch in batches), max(batch.tokens.shape[1] for batch in batches))
        shape = (*states, like.shape[-1]) if self.kind == ATTENTION else (like.shape[-1],)
        self.parameters = {
            f"{PROBE}{name}": torch.nn.Parameter(torch.zeros(shape, dtype=like.dtype, device=like.device))
            for name in probing.layers
        }

    @contextmanager
    def added(self, first: int, batch: Batch) -> Iterator[None]:
        """Let the blocks put out what they compute plus their probes, for the batch of rows that begins with this one."""
        rows, length = batch.tokens.shape
        handles = []
        try:
            for block, probe in zip(self.blocks, self.parameters.values(), strict=True):
                term = probe[first : first + rows, :length] if self.kind == ATTENTION else probe
                handles.append(block.register_forward_hook(partial(_plus, term)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _plus(term: torch.Tensor, _module: torch.nn.Module, _inputs: Any, output: Any) -> Any:
    # Attention puts out its weights as well.
    return (output[0] + term, *output[1:]) if isinstance(output, tuple) else output + term
