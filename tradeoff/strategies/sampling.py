"""Training on samples of the task's data, as it is done in practice: the batch and what is accumulated are settings."""

from typing import Any

from tradeoff._records import record, static
from tradeoff.strategies._named import Weights, namespace
from tradeoff.strategies.losses import Cells
from tradeoff.strategies.strategy import Engine, Gradient, State, Strategy


@record
class SmallBatch(Strategy):
    r"""Each step descends the cross-entropy of $nk$ answers drawn anew from the task's data.

    The gradient is unbiased, with the covariance of one example's over $nk$. Accumulating k micro-batches of n examples is a
    batch of $nk$, exactly, when all count alike (for texts of different lengths, weigh by tokens).

    Args:
        batch: examples in a micro-batch, n ≥ 1.
        accumulation: micro-batches in a step, k ≥ 1.

    Source: [kim2025rethinking]; methods.md 0.3, Q3.
    """

    batch: int = static(default=8)
    accumulation: int = static(default=1)

    kind = "data"
    source = "kim2025rethinking"
    owns = "loss"

    def __post_init__(self) -> None:
        """Check the counts."""
        if self.batch < 1 or self.accumulation < 1:
            raise ValueError(
                f"SmallBatch was given batch={self.batch} and accumulation={self.accumulation}; both count something: give "
                "at least 1."
            )

    def gradient(self, inner: Gradient, state: State, weights: Weights, step: Any, engine: Engine) -> Weights:
        """The gradient on this step's examples."""
        count = self.batch * self.accumulation
        law = engine.data.task
        xp = namespace({"": law})
        edges = xp.cumulative_sum(xp.reshape(law, (-1,)))
        drawn = engine.uniform("small batch", step, (count, 1)) * edges[-1]
        # The cell in which each number falls: a histogram, without an index that a tracer could not have.
        above = xp.astype(drawn <= edges[None, :], law.dtype)
        first = xp.concat([above[:, :1], above[:, 1:] - above[:, :-1]], axis=1)
        return engine.gradient(Cells(xp.reshape(xp.mean(first, axis=0), law.shape)), weights)
