"""Averages of weights along a run: quieter than the run, and closer to where it began.

Every average is taken array by array. Of the two factors of a LoRA adapter it is the average of each factor, which is not the
average of their products: for that, train or average the merged weights.
"""

from typing import Any

from jaxtyping import Array

from tradeoff._records import record, static
from tradeoff.strategies._named import Weights, each, mixed, namespace, scaled
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

    coefficient: float | Array = 0.995
    reading: str = static(default="tracked")
    every: int = static(default=1)

    kind = "weights"
    source = "kim2025rethinking"

    @property
    def exports(self) -> str:
        """The average, if one is tracked."""
        return "own" if self.reading == "tracked" else ""

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


@record
class LAWA(Strategy):
    r"""The uniform average of the latest weights, $\frac1K\sum_{j<K}\theta_{t-jc}$; training goes on as if there were none.

    The aligned start is the first of the weights: while there are fewer than K, the average is of those that there are.
    Each direction of curvature α is filtered by $\frac1K\sum_jr^{t-jc}$, $r=1-h\alpha$, under plain descent with learning
    rate h.

    Args:
        last: K ≥ 1, how many weights are averaged; 1 is no average if `every` is 1. As many copies are held in memory.
        every: c ≥ 1, steps between two of them, counted from the start of the run; the steps between leave the average
            as it is.

    Unknown: K and c of the source (5 and 1 are ours), and whether the start counts, which matters for
    the first Kc steps only.

    Source: [lawa2022]; methods.md P13.
    """

    last: int = static(default=5)
    every: int = static(default=1)

    kind = "weights"
    exports = "own"  # pyright: ignore[reportAssignmentType]
    source = "lawa2022"

    def __post_init__(self) -> None:
        """Check the numbers."""
        _counts(self, last=self.last, every=self.every)

    def init(self, weights: Weights, engine: Engine) -> State:
        """As many places as weights are averaged, of which one is taken."""
        return {"taken": _number(weights, 1.0)} | {str(place): weights for place in range(self.last)}

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """The new weights come first, the oldest drop out."""
        kept = {str(place + 1): state[str(place)] for place in range(self.last - 1)}
        taken = namespace(moved).where(state["taken"] < self.last, state["taken"] + 1, state["taken"])
        new = {"taken": taken, "0": moved} | kept
        if self.every == 1:
            return moved, new
        return moved, engine.either((step + 1) % self.every == 0, lambda: new, lambda: state)

    def export(self, state: State, weights: Weights, engine: Engine) -> Weights:
        """The average of the places that are taken."""
        taken, xp = state["taken"], namespace(weights)
        total = scaled(1 / taken, state["0"])
        for place in range(1, self.last):
            share = xp.where(taken > place, 1 / taken, 0 * taken)
            total = each(lambda a, b, w=share: a + w * b, total, state[str(place)])
        return total


@record
class SWA(Strategy):
    r"""The uniform average of the whole tail of a run, as a running mean: `LAWA` without a last one, in one copy of memory.

    $m\leftarrow m+(\theta-m)/k$ for the k-th of the weights $\theta_s,\theta_{s+c},\dots$; before step s nothing is averaged.

    Args:
        since: s ≥ 0, the step at which the tail begins; 0 is the aligned start.
        every: c ≥ 1, steps between two of the averaged weights.

    Unknown: where the tail begins, and the learning rate along it, which the source holds high or cycles: that is the
    optimiser's, not this rule's.

    Source: [swa2018]; methods.md P13.
    """

    since: int = static()
    every: int = static(default=1)

    kind = "weights"
    exports = "own"  # pyright: ignore[reportAssignmentType]
    source = "swa2018"

    def __post_init__(self) -> None:
        """Check the numbers."""
        _counts(self, every=self.every)
        if self.since < 0:
            raise ValueError(
                f"SWA was given since={self.since}; give the step at which the tail begins, 0 for the start."
            )

    def init(self, weights: Weights, engine: Engine) -> State:
        """The average of one: the aligned weights."""
        return {"average": weights}

    def land(self, state: State, weights: Weights, moved: Weights, step: Any, engine: Engine) -> tuple[Weights, State]:
        """The weights as they are, and the mean of the tail so far."""
        xp, one = namespace(moved), _number(moved, 1.0)
        into = xp.asarray(step + 1 - self.since)
        seen = xp.where(into < 0, one, xp.astype(into // self.every + 1, one.dtype))
        share = xp.where((into < 0) | (into % self.every == 0), one / seen, 0 * one)
        return moved, {"average": mixed(share, moved, state["average"])}

    def export(self, state: State, weights: Weights, engine: Engine) -> Weights:
        """The mean of the tail."""
        return state["average"]


def _number(like: Weights, value: float) -> Any:
    """A scalar of the library and precision of weights."""
    return namespace(like).asarray(value, dtype=next(iter(like.values())).dtype)


def _counts(strategy: Strategy, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{type(strategy).__name__} was given {name}={count}; give a number of at least 1.")
