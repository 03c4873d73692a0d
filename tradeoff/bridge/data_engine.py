"""What a strategy may ask of a checkpoint that is trained on samples of instruction data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Never

import jax
import numpy as np
import torch
from jaxtyping import Array

from tradeoff.bridge import processes
from tradeoff.bridge.answers import Answers
from tradeoff.bridge.live import Live
from tradeoff.bridge.training import AbstractTorchEngine, Tensors
from tradeoff.dynamics.engine import random_key
from tradeoff.strategies.losses import Alignment, CrossEntropy, Loss, Weighted

NO_TABLE = (
    "this strategy needs to know every answer's probability, and instruction data say one answer to each question; train it in "
    "a text world (tradeoff.bridge.finetune), or give another strategy."
)


@dataclass(frozen=True)
class Sampling:
    """Which rows of the data a step sees, and how many of them at a time.

    Attributes:
        rows: of the task's data in each step.
        safety_rows: of the safety data in each step.
        tokens: in one forward pass, padding included; a step of more is accumulated, which changes its gradient by rounding
            only.
    """

    rows: int = 8
    safety_rows: int = 8
    tokens: int = 2048

    def __post_init__(self) -> None:
        """Check the counts."""
        for name in ("rows", "safety_rows", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"Sampling was given {name}={getattr(self, name)}; it must be at least 1.")


class DataEngine(AbstractTorchEngine):
    r"""Losses of a checkpoint on a step's rows, and their gradients, at weights by name.

    A loss is the mean over the tokens of the answers, $-\frac1T\sum\log\pi(y_t|x,y_{<t})$ over the T tokens of this step's
    rows: the task's, the safety data's, or on the safety rows the divergence from where training began.

    Args:
        answers: the data by their role, "task" and, if there are any, "safety" and "harmful".
        live: the live parameters, at the start.
        sampling: which rows a step sees.
        key: a JAX random key: rows are drawn without repetition until all were seen, then anew.
        steps: how many steps there will be.
        learning_rate: of the optimiser, NaN unless it is plain descent.
    """

    def __init__(
        self,
        answers: Mapping[str, Answers],
        live: Live,
        sampling: Sampling,
        key: Array,
        steps: int,
        learning_rate: float = float("nan"),
    ) -> None:
        super().__init__(live.weights, key, steps, learning_rate)
        self.live, self._answers, self._sampling, self._key = live, answers, sampling, key
        self.step = 0
        """Whose rows are seen."""

    @property
    def data(self) -> Never:
        """None: instruction data are no table."""
        raise ValueError(NO_TABLE)

    def log_policy(self, weights: Tensors) -> Never:  # noqa: ARG002  (the engine's interface)
        """None, as there are no data of that kind."""
        raise ValueError(NO_TABLE)

    def value(self, loss: Loss, weights: Tensors) -> torch.Tensor:
        """A loss on this step's rows, nats per token."""
        total = torch.zeros((), dtype=torch.float64)
        with self.live.at(weights):
            for weight, term in terms(loss):
                if not isinstance(term, CrossEntropy):
                    raise ValueError(f"{type(term).__name__} has a gradient on instruction data and no value.")
                answers, places = self._seen(term.law)
                total = total - weight * answers.log_probabilities(places).mean().cpu()
        return total

    def gradient(self, loss: Loss, weights: Tensors) -> Tensors:
        """The gradient of a loss on this step's rows, by name."""
        found = [(weight, term) for weight, term in terms(loss) if weight != 0]
        before = {id(term): self._before(term.role) for _, term in found if isinstance(term, Alignment)}

        def pull() -> None:
            for weight, term in found:
                answers, places = self._seen(term.role)
                each = float(weight) / answers.count(places)
                if isinstance(term, Alignment):
                    answers.pull_towards(processes.share(places), before[id(term)], each)
                else:
                    answers.pull(processes.share(places), each)

        return processes.summed(self.live.pulled(pull, weights))

    def _before(self, role: str) -> list[torch.Tensor]:
        """The states in which training began, of this step's rows."""
        answers, places = self._seen(role)
        with self.live.at(self.start), torch.no_grad():
            return [answers.states(batch) for batch in answers.batches(processes.share(places))]

    def _seen(self, role: str) -> tuple[Answers, list[int]]:
        if role not in self._answers:
            raise ValueError(
                f"the strategy or the penalty asks for {role} data, and training was given {' and '.join(self._answers)} data "
                f"only; give finetune_data(..., {role}=...)."
            )
        answers = self._answers[role]
        count = self._sampling.rows if role == "task" else self._sampling.safety_rows
        return answers, drawn(self._key, role, self.step, count, len(answers.rows))


def drawn(key: Array, label: str, step: int, count: int, rows: int) -> list[int]:
    """Which rows a step sees: the next ones of an order that is drawn anew when all were seen.

    Args:
        key: a JAX random key.
        label: of the data; another label, another order.
        step: the number of the step.
        count: how many.
        rows: of how many.

    Example:
        >>> import jax
        >>> first, second = (drawn(jax.random.key(0), "task", step, 2, 4) for step in (0, 1))
        >>> sorted(first + second)
        [0, 1, 2, 3]
    """
    places = np.arange(step * count, (step + 1) * count)
    orders = {
        int(epoch): np.asarray(jax.random.permutation(random_key(key, label, int(epoch)), rows))
        for epoch in np.unique(places // rows)
    }
    return [int(orders[int(place // rows)][place % rows]) for place in places]


def terms(loss: Loss) -> Sequence[tuple[Any, CrossEntropy | Alignment]]:
    """A loss as a weighted sum of those that instruction data have.

    Raises:
        ValueError: when it is another.
    """
    if isinstance(loss, Weighted):
        return [(weight * inner, term) for weight, part in loss.terms for inner, term in terms(part)]
    if isinstance(loss, CrossEntropy | Alignment):
        return [(1.0, loss)]
    raise ValueError(
        f"the strategy descends {type(loss).__name__}, which weighs every answer of a table, and instruction data say one "
        "answer to each question; train it in a text world (tradeoff.bridge.finetune), or give another strategy."
    )
