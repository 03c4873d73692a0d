"""What the frozen lower layers of a checkpoint make of rows: computed once, for every run that trains only what lies above.

Each row goes through them by itself, so that what is kept does not depend on what shared its batch.
"""

from typing import Any

import torch

from tradeoff.bridge.checkpoints import Checkpoint
from tradeoff.bridge.objective import first_adapted, through
from tradeoff.bridge.rows import Row

KEPT_BYTES = 2**30
"""Memory for what lower layers made of rows; rows beyond it are computed each time."""


class LowerStates:
    """The states of rows under the trained layers, each computed when it is first asked for, and kept.

    A run has its own unless it is given some. Given to several (`finetune_data`, `preflight_data`), a row that two of them
    read goes through the lower layers once: of a checkpoint and of what training its upper layers made of it.

    Args:
        checkpoint: the language model.
        upper_layers: how many layers, counted from the top, are trained; `None` for all, where only embeddings are kept.
        most_bytes: memory for what is kept.

    Raises:
        ValueError: when the model has fewer layers.
    """

    def __init__(self, checkpoint: Checkpoint, upper_layers: int | None, most_bytes: int = KEPT_BYTES) -> None:
        self._trunk = checkpoint.model.base_model
        self._count = first_adapted(checkpoint, upper_layers)
        self._kept: dict[tuple[int, ...], torch.Tensor] = {}
        self._room = most_bytes

    def __len__(self) -> int:
        """How many rows are kept."""
        return len(self._kept)

    def of(self, row: Row) -> torch.Tensor:
        """What the lower layers make of a row, shape (tokens, H)."""
        if row.read in self._kept:
            return self._kept[row.read]
        with torch.no_grad():
            hidden = self._trunk.embed_tokens(torch.tensor([row.read], device=self._trunk.embed_tokens.weight.device))
            found = through(self._trunk.layers[: self._count], hidden, *causal(self._trunk, hidden))[0]
        size = found.numel() * found.element_size()
        if size <= self._room:
            self._kept[row.read] = found
            self._room -= size
        return found

    def check(self, checkpoint: Checkpoint, upper_layers: int | None) -> None:
        """Check that these are the states under the upper layers of a checkpoint, which may be another than they were made of.

        Raises:
            ValueError: when that has other lower layers, or more or fewer of them.
        """
        count = first_adapted(checkpoint, upper_layers)
        if count != self._count:
            raise ValueError(
                f"the lower states that were given are those behind {self._count} layers, and {checkpoint.name} trains what "
                f"lies above {count}; make them with the recipe's upper_layers, or give none."
            )
        other = checkpoint.model.base_model
        if other is not self._trunk and not _alike(self._lower(self._trunk), self._lower(other)):
            raise ValueError(
                f"the lower states that were given are of a checkpoint whose lowest {count} layers are not those of "
                f"{checkpoint.name}; make them of it or of one whose upper layers alone were trained, or give none."
            )

    def _lower(self, trunk: Any) -> list[torch.Tensor]:
        return [*trunk.embed_tokens.parameters(), *trunk.layers[: self._count].parameters()]


def causal(trunk: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, object]:
    """The mask, positions and rotations of rows that are padded on the right: padding comes last and is seen by none."""
    length = hidden.shape[1]
    positions = torch.arange(length, device=hidden.device)[None]
    mask = torch.full((length, length), torch.finfo(hidden.dtype).min, dtype=hidden.dtype, device=hidden.device).triu(1)
    return mask[None, None], positions, trunk.rotary_emb(hidden, position_ids=positions)


def _alike(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    kinds = [[(each.shape, each.dtype, each.device) for each in tensors] for tensors in (some, others)]
    return kinds[0] == kinds[1] and all(torch.equal(one, other) for one, other in zip(some, others, strict=True))
