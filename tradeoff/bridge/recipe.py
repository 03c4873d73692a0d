"""How a checkpoint is fine-tuned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch

OPTIMISERS = ("adamw", "sgd")
STAGES = ("fine-tuning", "alignment")


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is fine-tuned.

    Attributes:
        penalty: λ ≥ 0, the weight of the (proxy) safety loss beside the task's.
        steps: full-batch steps of the optimiser, without weight decay.
        learning_rate: at the first step; AdamW's falls linearly to 0, that of plain descent stays.
        rank: of the LoRA adapters (scaled by alpha = rank, no dropout), on every linear map of the trained layers; `None`
            to train the matrices of these maps in full. A strategy that acts on weights, such as an average or a merge,
            acts on what is trained: with LoRA on the factors, and the product of averaged factors is not the average of
            the products. With `None` it acts on the weights of the model.
        upper_layers: how many layers, counted from the top, are trained; `None` for all.
        seed: of the adapters' start and of a strategy's random numbers, the only randomness there is.
        save_every: steps between two saves of the state.
        batch_size: prompts in one forward pass; it changes memory and speed, not results.
        radius: ε > 0 of the alignment parameter constraint, on the Frobenius norm of the weights' update over all layers
            together; `None` for no constraint. It holds the optimiser's steps: a strategy that then moves the weights on
            its own may leave the ball.
        optimiser: "adamw", or "sgd" for plain descent. A strategy changes the gradients that the optimiser is given.
        stage: "fine-tuning" descends the penalised loss; "alignment" the (proxy) safety data's loss alone, before any task
            (the penalty is then 0). The stage of a published strategy is in `strategies.registry`.
    """

    penalty: float
    steps: int = 60
    learning_rate: float = 5e-3
    rank: int | None = 32
    upper_layers: int | None = 8
    seed: int = 0
    save_every: int = 10
    batch_size: int = 16
    radius: float | None = None
    optimiser: str = "adamw"
    stage: str = "fine-tuning"

    def __post_init__(self) -> None:
        """Check every field."""
        if not 0 <= self.penalty < np.inf:
            raise ValueError(f"Recipe was given penalty={self.penalty}; the penalty λ must be finite and not negative.")
        if not 0 < self.learning_rate < np.inf:
            raise ValueError(f"Recipe was given learning_rate={self.learning_rate}; it must be finite and positive.")
        if self.radius is not None and not 0 < self.radius < np.inf:
            raise ValueError(
                f"Recipe was given radius={self.radius}; ε must be finite and positive, or None for no ball."
            )
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"Recipe was given optimiser={self.optimiser!r}; give one of {', '.join(OPTIMISERS)}.")
        if self.stage not in STAGES:
            raise ValueError(f"Recipe was given stage={self.stage!r}; give one of {', '.join(STAGES)}.")
        if self.stage == "alignment" and self.penalty != 0:
            raise ValueError(
                f"Recipe was given penalty={self.penalty} with stage='alignment', where there is no task to weigh safety against; "
                "give penalty=0."
            )
        for name in ("steps", "rank", "save_every", "batch_size", "upper_layers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Recipe was given {name}={value}; it must be at least 1.")


@runtime_checkable
class FinishedRun(Protocol):
    """A run, in a text world or on data, as far as its weights are concerned."""

    @property
    def recipe(self) -> Recipe:
        """How it was made."""
        ...

    @property
    def adapter(self) -> Mapping[str, torch.Tensor]:
        """The weights that are used, by name: LoRA factors, or matrices trained in full."""
        ...
