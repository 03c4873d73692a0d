"""Averages of weights along a run: quieter than the run, and closer to where it began."""

from typing import Any

from tradeoff._records import record, static
from tradeoff.strategies._named import Weights, each, mixed, namespace
from tradeoff.strategies._settings import within
from tradeoff.strategies.strategy import Engine, State, Strategy


@record
class EMA(Strategy):
    r"""An exponential moving average of the weights, $m\leftarrow\eta m+(1-\eta)\theta$ from $m_0=\theta_0$.

    Three rules go by the name, and they are not equivalent:

    * "tracked": training goes on as if there were no average, and the average is what is used (the ordinary meaning);
    * "through": training goes on from the average, $\theta\leftarrow\eta\theta+(1-\eta)(\theta+u)$. That is a learning rate of
      $(1-\eta)h$, so whatever it does a smaller learning rate does too;
    * "to the start": $\theta\leftarrow\eta\theta_0+(1-\eta)(\theta+u)$. Its fixed point under plain descent is the optimum of
      L2-SP with strength $\eta/((1-\eta)h)$.

    Args:
        coefficient: η in [0, 1); 0 is no average.
        reading: which of the three.
        every: steps between two updates of a tracked average.

    Unknown: which rule the paper means, its coefficient, and which weights it evaluates. 0.995 is a third-party adapter's.

    Source: [kim2025rethinking]; methods.md 1.
    """

    coefficient: float = 0.995
    reading: str = static(default="tracked")
    every: int = static(default=1)

    kind = "weights"
    source = "kim2025rethinking"

    def __post_init__(self) -> None:
        """Check the settings."""
        within(self, "coefficient", 0, 1, "η (0 is no average)")
        if self.reading not in ("tracked", "through", "to the start"):
            raise ValueError(f"EMA was given reading={self.reading!r}; give 'tracked', 'through' or 'to the start'.")
        if self.every < 1 or (self.every > 1 and self.reading != "tracked"):
            raise ValueError(
                f"EMA was given every={self.every} with reading={self.reading!r}; give at least 1, and 1 unless tracked."
            )

    def init(self, weights: Weights, engine: Engine) -> State:
        """The average of one: the aligned weights."""
        return {"average": weights} if self.reading == "tracked" else {}

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """The weights where this reading puts them, and the average."""
        if self.reading != "tracked":
            origin = weights if self.reading == "through" else engine.start
            return mixed(self.coefficient, origin, moved), state
        new = mixed(self.coefficient, state["average"], moved)
        if self.every > 1:
            due = (step + 1) % self.every == 0
            xp = namespace(moved)
            new = each(lambda a, b: xp.where(xp.asarray(due), a, b), new, state["average"])
        return moved, {"average": new}

    def export(self, state: State, weights: Weights, engine: Engine) -> Weights:
        """The average, if one is tracked."""
        return state["average"] if self.reading == "tracked" else weights
